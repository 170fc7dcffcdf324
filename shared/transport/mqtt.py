"""MQTT 3.1.1 at quality of service 1: the transport of real devices.

Only the subset that every broker has is used: clean sessions, no retained
messages, no wills. The one importer of paho.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from random import Random
from typing import Any, Final

import structlog

from shared.errors import BrokerUnavailable
from shared.extras import require
from shared.tls import Credentials
from shared.transport.transport import Handler, check_filter, check_payload, check_topic

log = structlog.get_logger()

QOS: Final = 1
KEEPALIVE_S: Final = 20
"""A peer that vanished without a word is noticed within 1.5 times this."""

MAX_IN_FLIGHT: Final = 64
"""Messages sent but not yet acknowledged by the broker; further ones wait their turn here.
Paho's own 20 would allow 200 messages a second at 100 ms; on loopback it makes no difference."""

_QUEUE_IS_FULL: Final = 15
"""Paho's code for a message that it did not keep, because 65,535 are waiting already. With any
other code it keeps the message and sends it when the connection is back."""

FIRST_RETRY_S: Final = 1.0
SLOWEST_RETRY_S: Final = 15.0
FLUSH_S: Final = 10.0
"""How long :meth:`MqttTransport.close` waits for the broker's acknowledgements."""


class MqttTransport:
    """One connection to a broker; a :class:`~shared.transport.transport.Transport`.

    Messages are delivered on a thread of this object. Nothing is queued by
    ``publish`` while there is no connection; what was in flight when it broke is
    sent again after it is back, so that it arrives at least once.
    """

    def __init__(
        self,
        host: str,
        port: int,
        client_name: str,
        *,
        username: str | None = None,
        password: str | None = None,
        credentials: Credentials | None = None,
        patient: bool = False,
        connect_timeout_s: float = 10.0,
    ) -> None:
        """Describe the connection; nothing is opened yet.

        Args:
            host: Name or address of the broker.
            port: Its TCP port.
            client_name: The MQTT client identifier. A second connection with the
                same one ends the first, so no two processes may share it.
            username: For a broker that asks for one.
            password: Goes with ``username``.
            credentials: For TLS, with a certificate of its own; ``None`` speaks in clear.
            patient: Whether :meth:`open` returns although no broker answers, and tries go on.
            connect_timeout_s: Bound on each attempt to connect, in seconds.
        """
        self._host: Final = host
        self._port: Final = port
        self._client_name: Final = client_name
        self._username: Final = username
        self._password: Final = password
        self._credentials: Final = credentials
        self._patient: Final = patient
        self._connect_timeout_s: Final = connect_timeout_s
        self._rng: Final = Random()
        self._changed: Final = threading.Condition()
        # All below is guarded by _changed. It is never held during a call into
        # paho, which calls back while it holds locks of its own.
        self._client: Any = None
        self._on_message: Handler | None = None
        self._filters: tuple[str, ...] = ()
        self._ready = False
        self._refusal: str | None = None
        self._failed_attempts = 0
        self._unacknowledged = 0
        self._bytes_out = 0
        self._network_thread: int | None = None

    @property
    def bytes_out(self) -> int:
        """Payload bytes published so far."""
        return self._bytes_out

    @property
    def connected(self) -> bool:
        """Whether the broker has confirmed this connection and its subscriptions."""
        return self._ready

    def open(self, on_message: Handler, topics: Sequence[str]) -> None:
        """Connect and subscribe; returns when the broker has confirmed both.

        A patient one returns before that where nobody answers or it is refused.

        Raises:
            BrokerUnavailable: nobody answers at the address, or not like a
                broker, or it refuses this client or a subscription.
            DependencyMissing: paho is not installed.
            ValueError: a filter is malformed.
            RuntimeError: it is open already.
        """
        for topic_filter in topics:
            check_filter(topic_filter)
        client = self._new_client()
        with self._changed:
            if self._client is not None:
                raise RuntimeError(f"{self._client_name} is open already")
            self._client = client
            self._on_message = on_message
            self._filters = tuple(topics)
            self._refusal = None
            self._failed_attempts = 0
            self._unacknowledged = 0
        try:
            self._connect(client)
        except BaseException:
            self._stop()
            raise

    def publish(self, topic: str, payload: bytes) -> bool:
        """Hand one message to the broker; False if it is not connected now."""
        check_topic(topic)
        check_payload(payload)
        with self._changed:
            if not self._ready:
                return False
            client = self._client
            self._unacknowledged += 1
        outcome = client.publish(topic, payload, qos=QOS)
        with self._changed:
            if outcome.rc == 0:
                self._bytes_out += len(payload)
                return True
            if outcome.rc == _QUEUE_IS_FULL:
                self._unacknowledged -= 1
            return False

    def close(self) -> None:
        """Wait at most :data:`FLUSH_S` for the broker to acknowledge, then disconnect.

        There is no waiting on the thread that delivers messages: it is the one
        that would have to receive the acknowledgements.
        """
        with self._changed:
            if threading.get_ident() != self._network_thread:
                self._changed.wait_for(
                    lambda: not self._ready or self._unacknowledged == 0, FLUSH_S
                )
        self._stop()

    def _new_client(self) -> Any:
        paho = require("paho.mqtt.client", extra="mqtt")
        client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=self._client_name,
            clean_session=True,
            protocol=paho.MQTTv311,
        )
        client.connect_timeout = self._connect_timeout_s
        client.max_inflight_messages_set(MAX_IN_FLIGHT)
        if self._username is not None:
            client.username_pw_set(self._username, self._password)
        if self._credentials is not None:
            client.tls_set_context(self._credentials.context)
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_paho_message
        client.on_disconnect = self._on_disconnect
        client.on_connect_fail = self._on_connect_fail
        return client

    def _connect(self, client: Any) -> None:
        where = f"{self._host}:{self._port}"
        advice = (
            "start it, or correct the address (`sh deploy/install-broker.sh` installs Mosquitto)"
        )
        try:
            client.connect(self._host, self._port, keepalive=KEEPALIVE_S)
        except OSError as err:
            if not self._patient:
                raise BrokerUnavailable(f"no MQTT broker at {where} ({err}): {advice}") from err
            log.warning("transport.waiting", broker=where, reason=str(err))
        client.loop_start()
        if self._patient:
            return
        with self._changed:
            answered = self._changed.wait_for(
                lambda: self._ready or self._refusal is not None, self._connect_timeout_s
            )
            refusal = self._refusal
        if refusal is not None:
            raise BrokerUnavailable(f"the broker at {where} refuses {self._client_name}: {refusal}")
        if not answered:
            raise BrokerUnavailable(
                f"{where} took the connection but did not answer like an MQTT broker within "
                f"{self._connect_timeout_s:g} s: {advice}"
            )

    def _stop(self) -> None:
        with self._changed:
            client, self._client = self._client, None
            self._ready = False
            self._network_thread = None
            self._changed.notify_all()
        if client is not None:
            client.disconnect()
            client.loop_stop()

    # From here on: called by paho on its network thread.

    @staticmethod
    def _on_socket_open(_client: Any, _userdata: Any, sock: socket.socket) -> None:
        # Nagle's algorithm holds a small packet back until the delayed acknowledgement of the one
        # before: question and answer over loopback took 88 ms with it and 0.9 ms without (measured).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect(
        self, client: Any, _userdata: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        if reason.is_failure:
            self._refused(client, str(reason))
            return
        with self._changed:
            self._network_thread = threading.get_ident()
            filters = self._filters
        if filters:
            client.subscribe([(topic_filter, QOS) for topic_filter in filters])
        else:
            self._now_ready(client)

    def _on_subscribe(
        self, client: Any, _userdata: Any, _mid: int, reasons: Sequence[Any], _properties: Any
    ) -> None:
        refused = [
            topic_filter
            for topic_filter, reason in zip(self._filters, reasons, strict=True)
            if reason.is_failure
        ]
        if refused:
            self._refused(client, f"no permission to subscribe to {', '.join(refused)}")
        else:
            self._now_ready(client)

    def _now_ready(self, client: Any) -> None:
        with self._changed:
            if client is not self._client:
                return
            after_trouble = self._failed_attempts > 0
            self._ready = True
            self._failed_attempts = 0
            self._changed.notify_all()
        if after_trouble:
            log.info("transport.reconnected", client=self._client_name)

    def _refused(self, client: Any, why: str) -> None:
        with self._changed:
            if client is not self._client:
                return
            self._refusal = why
            self._changed.notify_all()
        log.warning("transport.refused", client=self._client_name, reason=why)

    def _on_publish(
        self, client: Any, _userdata: Any, _mid: int, _reason: Any, _properties: Any
    ) -> None:
        with self._changed:
            if client is self._client:
                self._unacknowledged -= 1
                self._changed.notify_all()

    def _on_paho_message(self, client: Any, _userdata: Any, message: Any) -> None:
        with self._changed:
            handler = self._on_message if client is self._client else None
        if handler is None:
            return
        try:
            handler(message.topic, message.payload)
        except Exception:  # an error here would end the network thread, and so the connection
            log.exception("transport.handler_failed", client=self._client_name)

    def _on_disconnect(
        self, client: Any, _userdata: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        self._lost(client, str(reason))

    def _on_connect_fail(self, client: Any, _userdata: Any) -> None:
        self._lost(client, "no answer")

    def _lost(self, client: Any, why: str) -> None:
        """Choose the pause before the next attempt.

        Source:
            Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015
            ("full jitter"): devices that lost the same broker do not come back
            in step.
        """
        with self._changed:
            if client is not self._client:
                return
            first = self._ready
            self._ready = False
            ceiling = min(FIRST_RETRY_S * 2**self._failed_attempts, SLOWEST_RETRY_S)
            self._failed_attempts = min(self._failed_attempts + 1, 16)
            self._changed.notify_all()
        pause = self._rng.uniform(0, ceiling)
        # Setting it also restarts paho's own doubling, so that this is the pause it takes.
        client.reconnect_delay_set(pause, pause)
        if first:
            log.warning("transport.disconnected", client=self._client_name, reason=why)
