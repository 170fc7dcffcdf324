"""The fleet over any transport: signed envelopes on the devices' own topics."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from coordinator.store.store import TRUSTED, Device
from shared.errors import NotPermitted, ProtocolError, UndecodableMessage
from shared.transport.transport import Transport
from shared.types import DeviceId, PublicKey, RoundNumber, RunId
from shared.wire import topics
from shared.wire.envelope import Envelope, Post
from shared.wire.messages import PASSING, About, Call, Message

PRESENT_S: Final = 20.0
"""A device that was not heard for this long is not asked (it speaks every 5 s)."""

AWAY: Final = "away"


@dataclass(frozen=True, slots=True)
class AnswersWith:
    """What a device said it answers with: digests of an adapter and of a model's manifest.

    Both are empty where it answers with nothing.
    """

    adapter: str
    manifest: str


@dataclass(frozen=True, slots=True)
class AboutDevice:
    """What a device said of itself.

    Attributes:
        version: Of its agent.
        condition: Why it would decline an invitation now, a code; empty: nothing it knows of.
        budget_left: ε that is left of its owner's budget; ``None``: the owner does not tell.
    """

    version: str
    condition: str
    budget_left: float | None

    @classmethod
    def read(cls, message: About) -> AboutDevice:
        """Read what a device sent. Raises ProtocolError: a text is other than it may be."""
        for name, pattern in (
            ("version", _VERSION),
            ("condition", _CODE),
            ("budget_left", _EPSILON),
        ):
            if not pattern.fullmatch(getattr(message, name)):
                raise ProtocolError(f"about.{name} is not what a device may tell")
        left = float(message.budget_left) if message.budget_left else None
        return cls(message.version, message.condition, left)


_VERSION: Final = re.compile(r"[0-9A-Za-z.+!_-]{1,32}")
_CODE: Final = re.compile(r"[a-z-]{0,32}")
_EPSILON: Final = re.compile(r"([0-9]{1,9}(\.[0-9]{1,6})?)?")


@dataclass(slots=True)
class _Station:
    public_key: PublicKey
    standing: str = TRUSTED
    heard_at: float = float("-inf")
    state: str = "unknown"
    answers_with: AnswersWith | None = None
    about: AboutDevice | None = None


class TransportFleet:
    """Devices and the key holder, as peers with keys. Driven by one thread."""

    def __init__(
        self,
        transport: Transport,
        post: Post,
        *,
        key_holder: PublicKey | None,
        devices: Callable[[], list[Device]],
        now: Callable[[], float],
    ) -> None:
        """Reach peers over ``transport``.

        Args:
            transport: Opened by whoever drives the coordinator.
            post: Seals and opens envelopes.
            key_holder: The holder's public key; None when only clear sums run.
            devices: The registry; asked again when an unknown device speaks.
            now: The clock.
        """
        self._transport = transport
        self._post = post
        self._registry = devices
        self._now = now
        self._holder = key_holder
        self._stations: dict[DeviceId, _Station] = {}
        self.judging = threading.Lock()
        """Held while a standing is written down and then set here."""
        self._refresh()

    def present(self) -> list[DeviceId]:
        """Devices heard lately, idle and trusted."""
        since = self._now() - PRESENT_S
        return [
            name
            for name, station in self._stations.items()
            if station.heard_at >= since and station.state == "idle" and station.standing == TRUSTED
        ]

    def unable(self, device: DeviceId) -> str:
        """The passing condition for which a device said it takes no part now; empty: none."""
        about = self.about(device)
        return about.condition if about is not None and about.condition in PASSING else ""

    def known(self) -> list[DeviceId]:
        """Every device that joined."""
        return list(self._stations)

    @property
    def key_holder(self) -> PublicKey | None:
        """The key holder's public key, if this coordinator works with one."""
        return self._holder

    def save_replay_guard(self) -> None:
        """Make what was accepted so far durable, before it is answered."""
        self._post.guard.save()

    def heard(self, device: DeviceId) -> tuple[float, str]:
        """When a device was last heard, and what it said it was doing."""
        station = self._stations.get(device)
        return (station.heard_at, station.state) if station else (float("-inf"), "unknown")

    def state(self, device: DeviceId) -> str:
        """What a device does now, as it said; ``away`` if it was not heard lately."""
        heard_at, state = self.heard(device)
        return state if self._now() - heard_at <= PRESENT_S else AWAY

    def send(self, device: DeviceId, message: Message, *, run: RunId, round_: RoundNumber) -> None:
        """Send a message to one device, or to the key holder by its name."""
        sealed = self._post.seal(message, run=run, round_=round_)
        self._transport.publish(topics.down(device), sealed)

    def call(self) -> None:
        """Ask every device that hears it to show itself."""
        self._transport.publish(topics.CALL, self._post.seal(Call()))

    def open(self, topic: str, payload: bytes) -> tuple[str, Envelope]:
        """The peer that published on ``topic``, and its message.

        Raises:
            ProtocolError: not an envelope, an unknown peer, another peer's
                signature, or a replay.
            NotPermitted: it is from a device that is not trusted now.
        """
        peer = topics.peer_of(topic)
        key = self._key_of(peer) if peer is not None else None
        if peer is None or key is None:
            raise UndecodableMessage(f"nobody known publishes on {topic[:80]!r}")
        envelope = self._post.open(payload, expected=key)
        station = self._stations.get(DeviceId(peer))
        if station is not None:
            station.heard_at = self._now()
            if station.standing != TRUSTED:  # by its own fresh signature: it is really this one
                raise NotPermitted(f"{peer} is {station.standing}")
        return peer, envelope

    def set_standing(self, device: DeviceId, standing: str) -> None:
        """Trust a device so far from now on. Safe on any thread."""
        station = self._stations.get(device)
        if station is not None:  # else its row says so when it first speaks
            station.standing = standing

    def set_state(self, device: DeviceId, state: str) -> None:
        """Remember what a device said it is doing."""
        self._stations[device].state = state

    def set_answering(self, device: DeviceId, what: AnswersWith) -> None:
        """Remember what a device said it answers with."""
        self._stations[device].answers_with = what

    def answering(self, device: DeviceId) -> AnswersWith | None:
        """What a device answers with; ``None``: it has not said since this process began."""
        station = self._stations.get(device)
        return station.answers_with if station else None

    def set_about(self, device: DeviceId, what: AboutDevice) -> None:
        """Remember what a device said of itself."""
        self._stations[device].about = what

    def about(self, device: DeviceId) -> AboutDevice | None:
        """What a device said of itself; ``None``: it has not since this process began."""
        station = self._stations.get(device)
        return station.about if station else None

    def _key_of(self, peer: str) -> PublicKey | None:
        if peer == topics.KEY_HOLDER:
            return self._holder
        if peer not in self._stations:
            self._refresh()
        station = self._stations.get(DeviceId(peer))
        return station.public_key if station else None

    def _refresh(self) -> None:
        with self.judging:  # or a standing that is set between row and memory would be lost
            for device in self._registry():
                self._stations.setdefault(device.name, _Station(device.public_key, device.standing))
