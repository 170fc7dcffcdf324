"""What every transport promises, and the grammar of topics.

    T1  while both ends are connected a published message arrives at least once;
        across an outage nothing is queued for anybody
    T2  messages of one sender on one topic arrive in the order of publishing
        (a message that was in flight when a connection broke may arrive again)
    T3  after an outage a transport reconnects and subscribes again by itself
    T4  ``publish`` and ``close`` may be called on any thread, also on the one
        that delivers messages

A step of a protocol that matters is therefore repeated until it is *answered*:
an acknowledgement of the transport says nothing about anybody's disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

Handler = Callable[[str, bytes], None]
"""Receives topic and payload. It must be quick, as a rule an append to the
owner's queue, since nothing else is delivered meanwhile; it may run on a thread
of the transport; and it must not raise."""

MAX_PAYLOAD_BYTES: Final = 1_000_000
"""Longest payload. A broker answers a packet beyond its own limit (Mosquitto 2.1: 2,000,000
bytes) by closing the connection, and the client would resend and be cut off for ever."""

MAX_TOPIC_BYTES: Final = 65_535
"""A topic's length is a 16-bit number on the wire (MQTT 3.1.1, section 1.5.3)."""


class Transport(Protocol):
    """One end of a publish-and-subscribe network."""

    @property
    def bytes_out(self) -> int:
        """Payload bytes published so far, over the life of this object."""
        ...

    @property
    def connected(self) -> bool:
        """Whether a message published now would leave."""
        ...

    def open(self, on_message: Handler, topics: Sequence[str]) -> None:
        """Connect and subscribe; afterwards every message that matches is delivered.

        May be called again after :meth:`close` or after it failed.

        Args:
            on_message: Called once per message, see :data:`Handler`.
            topics: Topic filters with the wildcards of MQTT, ``+`` and ``#``.

        Raises:
            BrokerUnavailable: nobody answers, or the answer is no; the message
                says what to do.
            ValueError: a filter is malformed.
            RuntimeError: it is open already.
        """
        ...

    def publish(self, topic: str, payload: bytes) -> bool:
        """Send one message (T1).

        Returns:
            False if there is no connection now; do not expect the message to arrive.

        Raises:
            ValueError: the topic is malformed or holds a wildcard, or the
                payload is longer than :data:`MAX_PAYLOAD_BYTES`.
        """
        ...

    def close(self) -> None:
        """Send what was published, say goodbye and stop; harmless if not open."""
        ...


def check_topic(topic: str) -> None:
    """Refuse what cannot be published to.

    Raises:
        ValueError: ``topic`` is empty, too long, or holds a wildcard or NUL.
    """
    if not topic or "\0" in topic or len(topic.encode()) > MAX_TOPIC_BYTES:
        raise ValueError(f"a topic has 1 to {MAX_TOPIC_BYTES} bytes and no NUL: {topic!r}")
    if "+" in topic or "#" in topic:
        raise ValueError(f"a topic to publish to has no wildcard: {topic!r}")


def check_filter(topic_filter: str) -> None:
    """Refuse what cannot be subscribed to.

    Raises:
        ValueError: ``topic_filter`` is empty, too long, holds NUL, or has a
            wildcard that is not a whole level or a ``#`` that is not the last.
    """
    if not topic_filter or "\0" in topic_filter or len(topic_filter.encode()) > MAX_TOPIC_BYTES:
        raise ValueError(f"a topic filter has 1 to {MAX_TOPIC_BYTES} bytes: {topic_filter!r}")
    *levels, last = topic_filter.split("/")
    if any("#" in level for level in levels) or any(
        wildcard in level and level != wildcard for level in (*levels, last) for wildcard in "+#"
    ):
        raise ValueError(f"'+' is a whole level and '#' the whole last one: {topic_filter!r}")


def check_payload(payload: bytes) -> None:
    """Refuse what a broker would cut the connection for.

    Raises:
        ValueError: ``payload`` is longer than :data:`MAX_PAYLOAD_BYTES`.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a payload has at most {MAX_PAYLOAD_BYTES} bytes, not {len(payload)}")


def topic_matches(topic_filter: str, topic: str) -> bool:
    """Whether a subscription to ``topic_filter`` receives ``topic``.

    Both are taken to be well formed, see :func:`check_filter`, :func:`check_topic`.

    Source:
        MQTT Version 3.1.1, OASIS Standard 2014, section 4.7. ``#`` also matches
        its parent level; a first level that begins with ``$`` is matched by no
        wildcard.

    Example:
        >>> topic_matches("fed/+/update/#", "fed/a/update"), topic_matches("fed/+", "fed/a/b")
        (True, False)
    """
    wanted, given = topic_filter.split("/"), topic.split("/")
    if given[0].startswith("$") and wanted[0] in ("+", "#"):
        return False
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position == len(given) or level not in ("+", given[position]):
            return False
    return len(wanted) == len(given)
