"""What a round is: who is asked, what is owed, when it closes, what may be opened.

    planned ─► inviting ─► open ─► closing ─► opened ─► applied      any state ─► failed(reason)

A :class:`Round` is a fold over its transitions. Each is decided here, written
down as one committed row elsewhere, and only then applied, so a restarted
coordinator that replays the rows stands exactly where the old one stood.

    R1  a device is counted at most once, whatever arrives how often in which order
    R2  the set of contributions is fixed before anybody is asked to open it
    R3  no set with fewer than ``min_devices`` devices is ever fixed
    R4  nothing is accepted after the set was fixed
    R5  what was applied or failed stays so
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from shared.errors import (
    CohortTooSmall,
    DuplicateUpdate,
    IllegalTransition,
    RoundClosed,
    RoundNotFound,
)
from shared.types import DeviceId, Digest, RoundNumber, RunId


class State(StrEnum):
    """Where a round stands."""

    PLANNED = "planned"
    INVITING = "inviting"
    OPEN = "open"
    CLOSING = "closing"
    OPENED = "opened"
    APPLIED = "applied"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Planned:
    """The round exists and starts from ``adapter``."""

    adapter: Digest


@dataclass(frozen=True, slots=True)
class KeyAnnounced:
    """The key holder's signed announcement for this round; empty in clear."""

    announcement: bytes


@dataclass(frozen=True, slots=True)
class Invited:
    """The cohort was drawn at ``at`` (seconds since the epoch)."""

    cohort: tuple[str, ...]
    at: float


@dataclass(frozen=True, slots=True)
class DeviceDeclined:
    """A device takes no part, and says why."""

    device: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateStored:
    """A device's encrypted update is on disk; ``record`` is its signed envelope."""

    device: str
    digest: Digest
    record: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The set of contributions is fixed."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SumOpened:
    """The sum, and only the sum, is known: a blob of int64 with this digest."""

    digest: Digest
    devices: int


@dataclass(frozen=True, slots=True)
class AdapterApplied:
    """The round's result.

    Attributes:
        adapter: What the next round starts from.
        accepted: Whether that is the new adapter; if not, it is the old one.
        reason: Why it was rejected; empty otherwise.
        accuracy: Mean score on the probe set, by group; "" is all.
        loss: Mean loss on the probe set, in nats.
        moments: Blob with the server rule's state for the next round.
        evaluated: What the devices' own examples said about the adapter that the
            round began with (``accuracy``, ``examples``); empty without evaluation.
    """

    adapter: Digest
    accepted: bool
    reason: str
    accuracy: dict[str, float]
    loss: float
    moments: Digest
    evaluated: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RoundFailed:
    """Nothing was or will be opened in this round."""

    code: str
    reason: str


Transition = (
    Planned
    | KeyAnnounced
    | Invited
    | DeviceDeclined
    | UpdateStored
    | Closed
    | SumOpened
    | AdapterApplied
    | RoundFailed
)

_NEXT: dict[type, tuple[frozenset[State], State | None]] = {
    KeyAnnounced: (frozenset({State.PLANNED}), State.INVITING),
    Invited: (frozenset({State.INVITING}), State.OPEN),
    DeviceDeclined: (frozenset({State.OPEN}), None),
    UpdateStored: (frozenset({State.OPEN}), None),
    Closed: (frozenset({State.OPEN}), State.CLOSING),
    SumOpened: (frozenset({State.CLOSING}), State.OPENED),
    AdapterApplied: (frozenset({State.OPENED}), State.APPLIED),
    RoundFailed: (
        frozenset({State.PLANNED, State.INVITING, State.OPEN, State.CLOSING, State.OPENED}),
        State.FAILED,
    ),
}


@dataclass(slots=True)
class Round:
    """One round, as the sum of what has happened in it. Driven by one thread."""

    run: RunId
    number: RoundNumber
    min_devices: int
    adapter: Digest
    state: State = State.PLANNED
    announcement: bytes = b""
    cohort: tuple[str, ...] = ()
    invited_at: float = 0.0
    declined: dict[str, DeviceDeclined] = field(default_factory=dict)
    updates: dict[str, UpdateStored] = field(default_factory=dict)
    closed: tuple[str, ...] = ()
    opened: SumOpened | None = None
    result: AdapterApplied | None = None
    failure: RoundFailed | None = None

    @classmethod
    def replay(
        cls, run: RunId, number: RoundNumber, min_devices: int, transitions: Iterable[Transition]
    ) -> Round:
        """Rebuild a round from its rows.

        Raises:
            RoundNotFound: there are no rows.
            IllegalTransition: the rows are not a round's; the store was edited.
        """
        rows = iter(transitions)
        first = next(rows, None)
        if first is None:
            raise RoundNotFound(f"no round {number} in run {run}")
        if not isinstance(first, Planned):
            raise IllegalTransition(f"round {number} begins with {type(first).__name__}")
        round_ = cls(run, number, min_devices, first.adapter)
        for transition in rows:
            round_.apply(transition)
        return round_

    @property
    def outstanding(self) -> list[DeviceId]:
        """Invited devices that have neither reported nor declined."""
        return [
            DeviceId(device)
            for device in self.cohort
            if device not in self.updates and device not in self.declined
        ]

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in (State.APPLIED, State.FAILED)

    def check_update(self, device: DeviceId, digest: Digest) -> bool:
        """Whether this update is still to be stored; False if it already is (R1).

        Raises:
            RoundClosed: the set is fixed (R4), or the device was not invited.
            DuplicateUpdate: another update of this device is already counted.
        """
        stored = self.updates.get(device)
        if stored is not None:
            if stored.digest == digest:
                return False
            raise DuplicateUpdate(f"{device} has already reported in round {self.number}")
        if self.state is not State.OPEN:
            raise RoundClosed(f"round {self.number} of {self.run} takes no updates any more")
        if device not in self.cohort or device in self.declined:
            raise RoundClosed(f"{device} is not in the cohort of round {self.number}")
        return True

    def close(self) -> Closed:
        """Fix the set of contributions (R2).

        Raises:
            CohortTooSmall: fewer than ``min_devices`` have reported (R3).
            IllegalTransition: the round is not open.
        """
        if self.state is not State.OPEN:
            raise IllegalTransition(f"round {self.number} is {self.state}, not open")
        if len(self.updates) < self.min_devices:
            raise CohortTooSmall(present=len(self.updates), required=self.min_devices)
        return Closed(tuple(sorted(self.updates)))

    def check(self, transition: Transition) -> None:
        """Whether ``transition`` may happen now.

        Raises:
            IllegalTransition: it cannot happen in this state.
            RoundClosed, DuplicateUpdate: as :meth:`check_update`.
        """
        rule = _NEXT.get(type(transition))
        if rule is None or self.state not in rule[0]:
            raise IllegalTransition(
                f"{type(transition).__name__} cannot follow {self.state} in round {self.number}"
            )
        match transition:
            case DeviceDeclined(device=device) if device not in self.outstanding:
                raise IllegalTransition(f"{device} owes nothing in this round")
            case UpdateStored(device=device, digest=digest):
                if not self.check_update(DeviceId(device), digest):
                    raise IllegalTransition(f"{device} is already counted")
            case Closed(devices=devices):
                reported = tuple(sorted(self.updates))
                if devices != reported or len(reported) < self.min_devices:
                    raise IllegalTransition("a closed round holds who reported, and enough of them")
            case _:
                pass

    def apply(self, transition: Transition) -> None:
        """Let ``transition`` have happened. Raises as :meth:`check`; nothing has changed then."""
        self.check(transition)
        match transition:
            case KeyAnnounced():
                self.announcement = transition.announcement
            case Invited():
                self.cohort, self.invited_at = transition.cohort, transition.at
            case DeviceDeclined():
                self.declined[transition.device] = transition
            case UpdateStored():
                self.updates[transition.device] = transition
            case Closed():
                self.closed = transition.devices
            case SumOpened():
                self.opened = transition
            case AdapterApplied():
                self.result = transition
            case RoundFailed():
                self.failure = transition
        self.state = _NEXT[type(transition)][1] or self.state
