"""MqttTransport when the broker is absent, strange, unwilling or restarted."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from structlog.testing import capture_logs

from coordinator.broker.embedded import EmbeddedBroker
from shared.errors import BrokerUnavailable
from shared.transport import mqtt
from shared.transport.mqtt import MqttTransport
from tests.support.brokers import eventually, running_mosquitto


def nothing(_topic: str, _payload: bytes) -> None:
    """The handler of an end that only sends."""


@contextmanager
def listener(answer: bytes | None = None) -> Iterator[int]:
    """A server that takes connections, reads a little and sends ``answer``; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            taken = []
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    break
                taken.append(connection)
                if answer is not None:
                    connection.recv(1024)
                    connection.sendall(answer)
            for connection in taken:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def network_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("paho")]


def test_an_unused_port_is_a_sentence_that_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    transport = MqttTransport("127.0.0.1", port, "device")
    with pytest.raises(BrokerUnavailable) as caught:
        transport.open(nothing, ["t"])
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "install-broker.sh" in str(caught.value)
    assert not transport.connected
    assert network_threads() == []


def test_something_that_is_not_a_broker_is_given_up_on() -> None:
    with listener() as port:
        transport = MqttTransport("127.0.0.1", port, "device", connect_timeout_s=0.3)
        with pytest.raises(BrokerUnavailable, match="did not answer like an MQTT broker"):
            transport.open(nothing, ["t"])
    assert network_threads() == []


def test_a_refusal_is_reported_with_its_reason() -> None:
    # CONNACK with return code 5, "not authorized" (MQTT 3.1.1, section 3.2.2.3)
    with listener(answer=b"\x20\x02\x00\x05") as port:
        transport = MqttTransport("127.0.0.1", port, "device", username="u")
        with pytest.raises(BrokerUnavailable, match=r"refuses device: Not authorized"):
            transport.open(nothing, ["t"])
    assert network_threads() == []


def test_a_refused_subscription_is_reported_by_name() -> None:
    # CONNACK 0, then SUBACK for message 1: the first granted at QoS 1, the second refused.
    with listener(answer=b"\x20\x02\x00\x00" + b"\x90\x04\x00\x01\x01\x80") as port:
        transport = MqttTransport("127.0.0.1", port, "device")
        with pytest.raises(BrokerUnavailable, match=r"no permission to subscribe to secret$"):
            transport.open(nothing, ["public", "secret"])
    assert network_threads() == []


@pytest.mark.broker
def test_a_failed_open_may_be_tried_again(tmp_path: Path) -> None:
    with running_mosquitto(tmp_path) as broker:
        transport = MqttTransport(broker.host, broker.port, "device")
        broker.stop()
        with pytest.raises(BrokerUnavailable):
            transport.open(nothing, ["t"])
        broker.start()
        transport.open(nothing, ["t"])
        assert transport.connected
        transport.close()


@pytest.mark.broker
def test_after_a_broker_restart_it_reconnects_and_subscribes_again(tmp_path: Path) -> None:
    with capture_logs() as lines, running_mosquitto(tmp_path) as broker:
        got: list[bytes] = []
        reader = MqttTransport(broker.host, broker.port, "reader")
        sender = MqttTransport(broker.host, broker.port, "sender")
        reader.open(lambda _, payload: got.append(payload), ["t/#"])
        sender.open(nothing, [])
        broker.stop()
        assert eventually(lambda: not reader.connected and not sender.connected)
        assert not sender.publish("t/1", b"into the void")
        time.sleep(0.3)  # so that at least one attempt can fail
        broker.start()
        assert eventually(lambda: reader.connected and sender.connected)
        assert sender.publish("t/1", b"back")
        assert eventually(lambda: bool(got))
        reader.close()
        sender.close()
    assert got == [b"back"]
    assert sender.bytes_out == len(b"back")
    # One line when the trouble starts and one when it ends, for each of the two.
    events = [line["event"] for line in lines if line["event"].startswith("transport.")]
    assert sorted(events) == ["transport.disconnected"] * 2 + ["transport.reconnected"] * 2


def test_what_was_in_flight_when_the_connection_broke_is_sent_again() -> None:
    payload = b"once more, with feeling"
    received: list[bytes] = []

    def broker_that_breaks_off(server: socket.socket) -> None:
        for _ in range(2):
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"\x20\x02\x00\x00")  # CONNACK; a PUBACK never follows
                connection.settimeout(10)
                seen = b""
                while not seen.endswith(payload):
                    seen += connection.recv(1024)
                received.append(seen)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=broker_that_breaks_off, args=(server,))
        thread.start()
        sender = MqttTransport("127.0.0.1", server.getsockname()[1], "sender")
        sender.open(nothing, [])
        assert sender.publish("t", payload)
        thread.join(60)
        sender.close()
    # PUBLISH at QoS 1; the second carries the DUP flag (MQTT 3.1.1, section 3.3.1).
    assert [packet[0] for packet in received] == [0x32, 0x3A]
    assert received[0][1:] == received[1][1:]


@pytest.mark.broker
def test_a_broker_that_vanishes_does_not_hold_up_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "FLUSH_S", 60.0)
    with running_mosquitto(tmp_path) as broker:
        sender = MqttTransport(broker.host, broker.port, "sender")
        sender.open(nothing, [])
        for _ in range(400):
            sender.publish("t", bytes(256 * 1024))
        broker.stop()
        started = time.monotonic()
        sender.close()
        assert time.monotonic() - started < 30
    assert network_threads() == []


@pytest.mark.broker
def test_closing_in_a_handler_does_not_wait_for_what_only_it_could_receive(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "FLUSH_S", 60.0)
    end = MqttTransport(broker.host, broker.port, "end")

    def answer_and_leave(_topic: str, payload: bytes) -> None:
        end.publish("answer", payload)
        end.close()

    end.open(answer_and_leave, ["t"])
    end.publish("t", b"")
    assert eventually(lambda: not end.connected, within_s=30)


@pytest.mark.broker
def test_a_handler_that_raises_is_logged_and_the_connection_lives_on(
    broker: EmbeddedBroker,
) -> None:
    got: list[bytes] = []

    def handler(_topic: str, payload: bytes) -> None:
        if payload == b"bad":
            raise KeyError("a bug")
        got.append(payload)

    end = MqttTransport(broker.host, broker.port, "end")
    with capture_logs() as lines:
        end.open(handler, ["t"])
        end.publish("t", b"bad")
        end.publish("t", b"good")
        assert eventually(lambda: got == [b"good"])
        end.close()
    assert [line["event"] for line in lines] == ["transport.handler_failed"]


def test_the_first_retry_comes_within_a_second_and_later_ones_spread_out() -> None:
    transport = MqttTransport("127.0.0.1", 1, "device")
    pauses: list[float] = []

    class Paho:
        def reconnect_delay_set(self, shortest: float, longest: float) -> None:
            assert shortest == longest
            pauses.append(shortest)

    def pauses_of(seed: int) -> list[float]:
        pauses.clear()
        transport._rng = Random(seed)  # type: ignore[misc]
        transport._client = paho
        transport._failed_attempts = 0
        for _ in range(12):
            transport._on_connect_fail(paho, None)
        return list(pauses)

    paho = Paho()
    many = [pauses_of(seed) for seed in range(300)]
    first = [each[0] for each in many]
    last = [each[-1] for each in many]
    assert max(first) <= mqtt.FIRST_RETRY_S
    # The mean of 300 uniform draws on [0, c] has standard deviation c / sqrt(12 * 300) = c / 60.
    # Five of them: right code fails for 1 set of seeds in 1.7 million.
    assert abs(sum(first) / 300 - mqtt.FIRST_RETRY_S / 2) < 5 * mqtt.FIRST_RETRY_S / 60
    assert abs(sum(last) / 300 - mqtt.SLOWEST_RETRY_S / 2) < 5 * mqtt.SLOWEST_RETRY_S / 60
    assert max(last) <= mqtt.SLOWEST_RETRY_S


@pytest.mark.broker
def test_a_patient_one_says_that_it_waits_and_connects_when_a_broker_is_there(
    tmp_path: Path,
) -> None:
    with running_mosquitto(tmp_path) as broker:
        port = broker.port
    end = MqttTransport("127.0.0.1", port, "end", patient=True)
    with capture_logs() as lines:
        end.open(nothing, ["t"])
    (waiting,) = lines
    assert (waiting["event"], waiting["broker"]) == ("transport.waiting", f"127.0.0.1:{port}")
    assert not end.connected
    assert not end.publish("t", b"into the void")
    with EmbeddedBroker(tmp_path, port=port):
        assert eventually(lambda: end.connected)
        end.close()
