"""What a round is: who is asked, what is owed, when it closes, what may be opened.

    planned ─► inviting ─► open ─► fixing ─► gathering ─► closing ─► opened ─► applied
               cohort      digests  set and   updates      sums       rule, probe set
               drawn       committed groups   folded       opened
                                    fixed                  any state ─► failed(reason)

Devices first commit to their encrypted updates by digest, and hand them out only
against a set that the key holder has fixed and signed. Whoever sees updates can
therefore not answer them with one of its own.

A :class:`Round` is a fold over its transitions. Each is decided here, written
down as one committed row elsewhere, and only then applied, so a restarted
coordinator that replays the rows stands exactly where the old one stood.

    R1  a device is counted at most once, whatever arrives how often in which order
    R2  no update is taken that was not committed to before the set was fixed
    R3  no sum over fewer than ``Quorum.per_group`` devices is ever asked for
    R4  nothing is accepted after the round was closed
    R5  what was applied or failed stays so
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby

from shared.errors import (
    CohortTooSmall,
    DuplicateUpdate,
    IllegalTransition,
    RoundClosed,
    RoundNotFound,
)
from shared.job import RunPlan
from shared.types import DeviceId, Digest, RoundNumber, RunId


class State(StrEnum):
    """Where a round stands."""

    PLANNED = "planned"
    INVITING = "inviting"
    OPEN = "open"
    FIXING = "fixing"
    GATHERING = "gathering"
    CLOSING = "closing"
    OPENED = "opened"
    APPLIED = "applied"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Quorum:
    """How many devices a round needs.

    Attributes:
        devices: Fewest commitments with which a set is proposed.
        per_group: Fewest devices in one sum.
        groups: Fewest sums, for the server's rule to decide anything.
    """

    devices: int
    per_group: int
    groups: int

    @classmethod
    def of(cls, plan: RunPlan) -> Quorum:
        """What a run's rounds need."""
        protection, server = plan.job.protection, plan.job.server
        if plan.compares_devices:
            # Each device is a group of its own; nothing of it is hidden in clear anyway.
            return cls(
                protection.min_devices, 1, max(protection.min_devices, server.fewest_updates)
            )
        return cls(protection.fewest, protection.min_devices, server.fewest_updates)


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
    """A device takes no part, and says why; or its update was refused."""

    device: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Committed:
    """A device is bound to the update with this digest; ``record`` is its signed envelope."""

    device: str
    digest: Digest
    record: bytes


@dataclass(frozen=True, slots=True)
class Proposed:
    """Nobody else is waited for: whoever committed is to be in the set."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetFixed:
    """Whose updates may be summed, and in which groups.

    Attributes:
        devices: Those in the set, ordered by group.
        groups: For each of them the number of its group, ascending from 0.
        signed: The key holder's envelope with the set; empty in clear.
        at: When, in seconds since the epoch.
    """

    devices: tuple[str, ...]
    groups: tuple[int, ...]
    signed: bytes
    at: float


@dataclass(frozen=True, slots=True)
class UpdateStored:
    """A device's encrypted update is on disk."""

    device: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class Closed:
    """These devices' updates are summed, and no others."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SumOpened:
    """The groups' sums, and only they, are known: a blob of int64 with this digest."""

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
        saturated: Share of the devices' values that lay outside the run's range, mean
            over devices.
    """

    adapter: Digest
    accepted: bool
    reason: str
    accuracy: dict[str, float]
    loss: float
    moments: Digest
    evaluated: dict[str, float] = field(default_factory=dict)
    saturated: float = 0.0


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
    | Committed
    | Proposed
    | SetFixed
    | UpdateStored
    | Closed
    | SumOpened
    | AdapterApplied
    | RoundFailed
)

_NEXT: dict[type, tuple[frozenset[State], State | None]] = {
    KeyAnnounced: (frozenset({State.PLANNED}), State.INVITING),
    Invited: (frozenset({State.INVITING}), State.OPEN),
    DeviceDeclined: (frozenset({State.OPEN, State.GATHERING}), None),
    Committed: (frozenset({State.OPEN}), None),
    Proposed: (frozenset({State.OPEN}), State.FIXING),
    SetFixed: (frozenset({State.FIXING}), State.GATHERING),
    UpdateStored: (frozenset({State.GATHERING}), None),
    Closed: (frozenset({State.GATHERING}), State.CLOSING),
    SumOpened: (frozenset({State.CLOSING}), State.OPENED),
    AdapterApplied: (frozenset({State.OPENED}), State.APPLIED),
    RoundFailed: (frozenset(State) - {State.APPLIED, State.FAILED}, State.FAILED),
}


@dataclass(slots=True)
class Round:
    """One round, as the sum of what has happened in it. Driven by one thread."""

    run: RunId
    number: RoundNumber
    quorum: Quorum
    adapter: Digest
    state: State = State.PLANNED
    announcement: bytes = b""
    cohort: tuple[str, ...] = ()
    invited_at: float = 0.0
    declined: dict[str, DeviceDeclined] = field(default_factory=dict)
    commitments: dict[str, Committed] = field(default_factory=dict)
    proposed: tuple[str, ...] = ()
    fixed: SetFixed | None = None
    updates: dict[str, UpdateStored] = field(default_factory=dict)
    closed: tuple[str, ...] = ()
    opened: SumOpened | None = None
    result: AdapterApplied | None = None
    failure: RoundFailed | None = None

    @classmethod
    def replay(
        cls, run: RunId, number: RoundNumber, quorum: Quorum, transitions: Iterable[Transition]
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
        round_ = cls(run, number, quorum, first.adapter)
        for transition in rows:
            round_.apply(transition)
        return round_

    @property
    def outstanding(self) -> list[DeviceId]:
        """Devices that still owe something: an answer while the round is open, then an update."""
        if self.fixed is None:
            owing, done = self.cohort, self.commitments.keys() | self.declined.keys()
        else:
            owing, done = self.fixed.devices, self.updates.keys() | self.declined.keys()
        return [DeviceId(device) for device in owing if device not in done]

    @property
    def groups(self) -> dict[str, int]:
        """The group of every device in the fixed set."""
        if self.fixed is None:
            return {}
        return dict(zip(self.fixed.devices, self.fixed.groups, strict=True))

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in (State.APPLIED, State.FAILED)

    def check_commitment(self, device: DeviceId, digest: Digest) -> bool:
        """Whether this commitment is still to be written down; False if it already is (R1).

        Raises:
            RoundClosed: the set is proposed (R2), or the device was not invited.
            DuplicateUpdate: the device is bound to another update.
        """
        committed = self.commitments.get(device)
        if committed is not None:
            if committed.digest == digest:
                return False
            raise DuplicateUpdate(f"{device} has already committed in round {self.number}")
        if self.state is not State.OPEN:
            raise RoundClosed(f"round {self.number} of {self.run} takes no updates any more")
        if device not in self.cohort or device in self.declined:
            raise RoundClosed(f"{device} is not in the cohort of round {self.number}")
        return True

    def check_update(self, device: DeviceId, digest: Digest) -> bool:
        """Whether this update is still to be stored; False if it already is (R1).

        Raises:
            RoundClosed: the round is closed (R4), or the device is not in the set.
            DuplicateUpdate: the device is bound to another update.
        """
        if self.check_commitment(device, digest):
            raise RoundClosed(f"{device} has not committed to this update")
        if device in self.updates:
            return False
        if self.state is not State.GATHERING:
            raise RoundClosed(f"round {self.number} of {self.run} takes no updates now")
        if device not in self.groups or device in self.declined:
            raise RoundClosed(f"{device} is not in the fixed set of round {self.number}")
        return True

    def propose(self) -> Proposed:
        """Wait for nobody else, and propose the set.

        Raises:
            CohortTooSmall: fewer than ``quorum.devices`` have committed.
            IllegalTransition: the round is not open.
        """
        if self.state is not State.OPEN:
            raise IllegalTransition(f"round {self.number} is {self.state}, not open")
        if len(self.commitments) < self.quorum.devices:
            raise CohortTooSmall(present=len(self.commitments), required=self.quorum.devices)
        return Proposed(tuple(sorted(self.commitments)))

    def summable(self, stored: Iterable[str]) -> tuple[str, ...]:
        """Of these devices, those in groups with enough of them to be summed (R3)."""
        number_of = self.groups
        members = sorted(stored, key=lambda device: (number_of[device], device))
        return tuple(
            device
            for _, group in groupby(members, number_of.__getitem__)
            if len(devices := list(group)) >= self.quorum.per_group
            for device in devices
        )

    def summed_groups(self) -> list[int]:
        """The groups that are summed once the round is closed, ascending."""
        return sorted({self.groups[device] for device in self.closed})

    def close(self) -> Closed:
        """Take no further update; groups with too few of them are left out.

        Raises:
            CohortTooSmall: too few groups are left, or none (R3).
            IllegalTransition: no updates are gathered now.
        """
        if self.state is not State.GATHERING:
            raise IllegalTransition(f"round {self.number} is {self.state}, not gathering")
        devices = self.summable(self.updates)
        if len({self.groups[device] for device in devices}) < self.quorum.groups:
            required = self.quorum.per_group * self.quorum.groups
            present = len(devices) if self.quorum.groups > 1 else len(self.updates)
            raise CohortTooSmall(present=present, required=required)
        return Closed(devices)

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
            case Committed(device=device, digest=digest):
                if not self.check_commitment(DeviceId(device), digest):
                    raise IllegalTransition(f"{device} has committed already")
            case Proposed() if transition != self.propose():
                raise IllegalTransition("a proposed set holds who committed, and nobody else")
            case SetFixed(devices=devices, groups=groups):
                strangers = set(devices) - set(self.proposed)
                if strangers or len(set(devices)) != len(devices) or list(groups) != sorted(groups):
                    raise IllegalTransition("a fixed set holds proposed devices, ordered by group")
            case UpdateStored(device=device, digest=digest):
                if not self.check_update(DeviceId(device), digest):
                    raise IllegalTransition(f"{device} is already counted")
            case Closed() if transition != self.close():
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
            case Committed():
                self.commitments[transition.device] = transition
            case Proposed():
                self.proposed = transition.devices
            case SetFixed():
                self.fixed = transition
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
