"""A network in one process, with its weather, for simulation and tests.

The shape is a broker's: every end has one link to the middle, and a message
crosses its sender's link and then each receiver's. Nothing here knows a real
clock or draws a number of its own: time, the calling back after a delay and
randomness are handed in, so a virtual clock and a seed make a run repeatable.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Final

import numpy as np

from shared.transport.transport import (
    Handler,
    check_filter,
    check_payload,
    check_topic,
    topic_matches,
)

Schedule = Callable[[float, Callable[[], None]], None]
"""Calls back after that many seconds; callbacks that are due at the same moment
run in the order in which they were scheduled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What lies between one end and the middle of the network, in both directions.

    Attributes:
        latency_s: Added to every message, seconds, ≥ 0.
        loss: Probability that a message which enters the link does not leave
            it, 0 ≤ loss ≤ 1. Its sender does not learn of it.
        bandwidth_bytes_per_s: Payload bytes per second and direction, > 0;
            messages queue for it. None means no limit.
        outages: Half-open intervals ``[start, end)`` in seconds of the network's
            clock during which the end is disconnected. A message that is on the
            link when one begins is lost.
    """

    latency_s: float = 0.0
    loss: float = 0.0
    bandwidth_bytes_per_s: float | None = None
    outages: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0):
            raise ValueError(f"latency_s must be finite and ≥ 0, not {self.latency_s}")
        if not 0 <= self.loss <= 1:
            raise ValueError(f"loss must lie in [0, 1], not {self.loss}")
        if self.bandwidth_bytes_per_s is not None and not self.bandwidth_bytes_per_s > 0:
            raise ValueError(f"bandwidth_bytes_per_s must be > 0, not {self.bandwidth_bytes_per_s}")
        for start, end in self.outages:
            if not start < end:
                raise ValueError(f"an outage must end after it starts, not ({start}, {end})")

    def is_up(self, at_s: float) -> bool:
        """Whether the end is connected at this moment."""
        return not any(start <= at_s < end for start, end in self.outages)

    def stays_up(self, start_s: float, end_s: float) -> bool:
        """Whether no outage touches the time from ``start_s`` to ``end_s`` inclusive."""
        return not any(start <= end_s and start_s < end for start, end in self.outages)


@dataclass(slots=True)
class _Lane:
    """One direction of one link: first in, first out."""

    free_at_s: float = 0.0
    waiting: deque[tuple[str, bytes] | None] = field(default_factory=deque)
    """What is on it, oldest first; None for a message that gets lost on the way."""


@dataclass(slots=True, eq=False)
class _Session:
    """From one ``open`` to the next ``close``; a message never outlives it."""

    on_message: Handler
    filters: tuple[str, ...]
    up: _Lane = field(default_factory=_Lane)
    down: _Lane = field(default_factory=_Lane)


class MemoryNetwork:
    """The middle: knows its ends and carries messages between them.

    Thread-safe if ``schedule`` is; handlers run where ``schedule`` calls back.
    """

    def __init__(
        self, schedule: Schedule, rng: np.random.Generator, *, now: Callable[[], float]
    ) -> None:
        """Make a network without ends.

        Args:
            schedule: Runs everything that happens later, also with delay 0: a
                message is never delivered inside ``publish``.
            rng: Decides which messages are lost; drawn from only on links with
                ``loss > 0``.
            now: The clock that ``schedule`` runs on, in seconds.
        """
        self._schedule: Final = schedule
        self._rng: Final = rng
        self._now: Final = now
        self._ends: dict[str, MemoryTransport] = {}
        self._lock: Final = Lock()

    def attach(self, name: str, link: Link | None = None) -> MemoryTransport:
        """A new end of the network, not yet open.

        Args:
            name: Only for reading; two ends must not share one.
            link: The end's weather; by default a perfect one.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._ends:
            raise ValueError(f"{name} is attached already")
        end = MemoryTransport(self, name, link or Link())
        self._ends[name] = end
        return end

    def send(self, sender: MemoryTransport, topic: str, payload: bytes) -> bool:
        """Put a message on its sender's link; False if that is down. Called by the ends."""
        with self._lock:
            session = sender.session
            if session is None or not sender.link.is_up(self._now()):
                return False
            sender.bytes_out += len(payload)
            delay = self._enter(sender.link, session.up, topic, payload)
        self._schedule(delay, partial(self._fan_out, session.up))
        return True

    def is_up(self, end: MemoryTransport) -> bool:
        """Whether the end is open and outside its outages. Called by the ends."""
        return end.session is not None and end.link.is_up(self._now())

    def _enter(self, link: Link, lane: _Lane, topic: str, payload: bytes) -> float:
        """Queue a message on a link; seconds until it has crossed it."""
        now = self._now()
        bandwidth = link.bandwidth_bytes_per_s
        start = max(now, lane.free_at_s)
        lane.free_at_s = start + (len(payload) / bandwidth if bandwidth is not None else 0.0)
        arrives = lane.free_at_s + link.latency_s
        survives = link.stays_up(now, arrives) and not (
            link.loss > 0 and self._rng.random() < link.loss
        )
        lane.waiting.append((topic, payload) if survives else None)
        return arrives - now

    # A callback takes the oldest message of its lane, not one of its own: arrival
    # times that differ by less than a rounding error then cannot change the order.

    def _fan_out(self, up: _Lane) -> None:
        with self._lock:
            message = up.waiting.popleft()
            if message is None:
                return
            crossing = [
                (self._enter(end.link, end.session.down, *message), end, end.session)
                for end in self._ends.values()
                if end.session is not None
                and any(topic_matches(wanted, message[0]) for wanted in end.session.filters)
            ]
        for delay, end, session in crossing:
            self._schedule(delay, partial(self._deliver, end, session))

    def _deliver(self, end: MemoryTransport, session: _Session) -> None:
        with self._lock:
            message = session.down.waiting.popleft()
            if message is None or end.session is not session:
                return
        session.on_message(*message)


class MemoryTransport:
    """One end of a :class:`MemoryNetwork`; a :class:`~shared.transport.transport.Transport`.

    A handler that raises is heard: the error goes to whoever runs the schedule.
    """

    def __init__(self, network: MemoryNetwork, name: str, link: Link) -> None:
        """Made by :meth:`MemoryNetwork.attach`."""
        self._network: Final = network
        self.name: Final = name
        self.link: Final = link
        self.session: _Session | None = None
        self.bytes_out = 0

    @property
    def connected(self) -> bool:
        """Whether a message published now would leave."""
        return self._network.is_up(self)

    def open(self, on_message: Handler, topics: Sequence[str]) -> None:
        """Subscribe; succeeds in an outage too, and is then connected when it ends."""
        if self.session is not None:
            raise RuntimeError(f"{self.name} is open already")
        for topic_filter in topics:
            check_filter(topic_filter)
        self.session = _Session(on_message, tuple(topics))

    def publish(self, topic: str, payload: bytes) -> bool:
        """Send one message; False if this end is not connected."""
        check_topic(topic)
        check_payload(payload)
        return self._network.send(self, topic, payload)

    def close(self) -> None:
        """Leave; what was published still crosses, what was on its way here is lost."""
        self.session = None
