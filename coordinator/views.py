"""What anyone with access may know about devices and runs, out of committed rows."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from coordinator.federation.rounds import (
    AdapterApplied,
    Closed,
    Committed,
    DeviceDeclined,
    Invited,
    KeyAnnounced,
    Planned,
    Proposed,
    RoundFailed,
    SetFixed,
    State,
    SumOpened,
    UpdateStored,
)
from coordinator.releases import NOT_RELEASED, RELEASED
from coordinator.store.store import ENDINGS, Milestone, RunRow, Store, TransitionRow, by_round
from shared.config import read_json
from shared.job import RunPlan
from shared.types import RunId

_STATE_AFTER = {
    Planned: State.PLANNED,
    KeyAnnounced: State.INVITING,
    Invited: State.OPEN,
    Proposed: State.FIXING,
    SetFixed: State.GATHERING,
    Closed: State.CLOSING,
    SumOpened: State.OPENED,
    AdapterApplied: State.APPLIED,
    RoundFailed: State.FAILED,
}


@dataclass(slots=True)
class RoundView:
    """One round: how many, never who contributed what."""

    round: int
    state: str = State.PLANNED
    invited: int = 0
    committed: int = 0
    reported: int = 0
    declined: dict[str, str] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    loss: float | None = None
    evaluated: dict[str, float] = field(default_factory=dict)
    saturated: float | None = None
    accepted: bool | None = None
    reason: str = ""
    began_at: float = 0.0
    changed_at: float = 0.0


@dataclass(slots=True)
class RunView:
    """One run."""

    run: str
    task: str
    state: str
    reason: str
    submitted_at: float
    adapter: str
    accuracy_before: dict[str, float]
    loss_before: float | None
    release: dict[str, Any]
    """What devices were given to answer with: its accuracy there, or why there is none."""
    rounds: list[RoundView]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run in a list, without its rounds."""

    run: str
    task: str
    state: str
    reason: str
    submitted_at: float
    ended_at: float | None
    round: int
    """The last that was begun; 0: none was."""
    rounds: int
    """How many are planned."""
    accuracy: dict[str, float]
    """By group, as last judged; ``""`` is the whole probe set. Empty before that."""
    epsilon: float | None
    """Planned for the whole run; ``None``: nothing is noised."""
    adapter: str
    release: dict[str, Any]


def summarise_runs(store: Store, rows: Sequence[RunRow]) -> list[RunSummary]:
    """Runs without their rounds, for lists; reads a few rows of each."""
    known = store.progress([row.run for row in rows])
    found = []
    for row in rows:
        progress = known[row.run]
        task, rounds, epsilon = _planned(row.plan)
        state, last = _state(progress.milestones)
        found.append(
            RunSummary(
                run=row.run,
                task=task,
                state=state,
                reason=str(last.facts.get("reason", "")) if last else "",
                submitted_at=row.submitted_at,
                ended_at=last.at if last else None,
                round=progress.round,
                rounds=rounds,
                accuracy=progress.judged.accuracy if progress.judged else {},
                epsilon=epsilon,
                adapter=str(last.facts.get("adapter", "")) if last else "",
                release=_view_release(progress.milestones),
            )
        )
    return found


@functools.lru_cache(maxsize=512)
def _planned(plan: str) -> tuple[str, int, float | None]:
    """Task, rounds and planned ε of a plan, which never changes and takes long to read."""
    job = read_json(RunPlan, plan, source="plan").job
    noised = job.privacy.noise != "none"
    return job.task, job.training.rounds, job.privacy.epsilon if noised else None


def _state(milestones: Mapping[str, Milestone]) -> tuple[str, Milestone | None]:
    """A run's state, and what ended it."""
    last = next((milestones[kind] for kind in ENDINGS if kind in milestones), None)
    return last.kind if last else "running" if "started" in milestones else "preparing", last


def view_run(store: Store, row: RunRow) -> RunView:
    """A run with its rounds so far. ``""`` in an accuracy is the whole probe set."""
    milestones = store.milestones(row.run)
    started = milestones.get("started")
    state, last = _state(milestones)
    rounds = [view_round(number, rows) for number, rows in by_round(store.transitions(row.run))]
    return RunView(
        run=row.run,
        task=read_json(RunPlan, row.plan, source=f"plan of {row.run}").job.task,
        state=state,
        reason=str(last.facts.get("reason", "")) if last else "",
        submitted_at=row.submitted_at,
        adapter=str(last.facts.get("adapter", "")) if last else "",
        accuracy_before=dict(started.facts["accuracy"]) if started else {},
        loss_before=started.facts["loss"] if started else None,
        release=_view_release(milestones),
        rounds=rounds,
    )


def _view_release(milestones: Mapping[str, Milestone]) -> dict[str, Any]:
    if RELEASED in milestones:
        facts = milestones[RELEASED].facts
        return {"manifest": facts["manifest"], "accuracy": facts["accuracy"]}
    return dict(milestones[NOT_RELEASED].facts) if NOT_RELEASED in milestones else {}


@dataclass(frozen=True, slots=True)
class RoundCounts:
    """A round in numbers, without reading what each device sent."""

    round: int
    state: str
    invited: int
    committed: int
    declined: int
    reported: int
    changed_at: float


def count_round(store: Store, run: RunId, number: int) -> RoundCounts:
    """Where the round with this number stands; it must have been begun."""
    counts = store.count_transitions(run, number)
    deciding = [kind for kind in _STATE_AFTER if kind.__name__ in counts]
    last = max(deciding, key=lambda kind: counts[kind.__name__].last_id)
    invited = 0
    for row in store.transitions_of(run, number=number, kinds=(Invited,)):
        assert isinstance(row.transition, Invited)
        invited = len(row.transition.cohort)

    def of(kind: type) -> int:
        return counts[kind.__name__].rows if kind.__name__ in counts else 0

    return RoundCounts(
        round=number,
        state=_STATE_AFTER[last],
        invited=invited,
        committed=of(Committed),
        declined=of(DeviceDeclined),
        reported=of(UpdateStored),
        changed_at=max(counts.values(), key=lambda count: count.last_id).last_at,
    )


class Decline(NamedTuple):
    """That a device declined, and why; or that its update was refused."""

    round: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Participation:
    """How often a device was asked, and what became of it."""

    run: str
    invited: int
    """Rounds whose cohort it was in."""
    took_part: int
    """Rounds whose sum it was counted in."""
    declined: list[Decline]


def participation(store: Store, row: RunRow, device: str) -> Participation:
    """How a device took part in one run: what anybody on the broker can see."""
    invited = took_part = 0
    declined = []
    for each in store.transitions_of(row.run, kinds=(Invited, Closed, DeviceDeclined)):
        match each.transition:
            case Invited(cohort=cohort):
                invited += device in cohort
            case Closed(devices=devices):
                took_part += device in devices
            case DeviceDeclined(device=name, code=code, reason=reason) if name == device:
                declined.append(Decline(int(each.round), code, reason))
            case _:
                pass
    return Participation(row.run, invited, took_part, declined)


EventPlace = tuple[int, int, int]
"""Where an event stands: a part, and in it a round and the id of its row."""

BEFORE_ALL: Final = (0, 0, 0)
_SUBMITTED, _STARTED, _ROUNDS, _REST = range(1, 5)


def events_page(
    store: Store, row: RunRow, after: EventPlace = BEFORE_ALL, *, limit: int
) -> list[tuple[EventPlace, dict[str, Any]]]:
    """The next ``limit`` events of a run behind ``after``, each with its place.

    Rounds are begun one after the other, and after an ending nothing happens in them: so what is
    added later stands behind everything that was there.
    """
    # Not by ``at``: a clock may be set back, and the last round and the run end at one moment.
    found: list[tuple[EventPlace, dict[str, Any]]] = [
        ((_SUBMITTED, 0, 0), {"at": row.submitted_at, "round": 0, "event": "submitted"})
    ]
    for place, milestone in enumerate(store.milestones(row.run).values()):
        part = _STARTED if milestone.kind == "started" else _REST
        found.append(((part, 0, place), milestone_event(milestone)))
    if after[0] <= _ROUNDS:
        behind = after[1:] if after[0] == _ROUNDS else (0, 0)
        for stored in store.transitions_after(row.run, behind, limit=limit):
            what = stored.what
            assert isinstance(what, TransitionRow)
            found.append(((_ROUNDS, what.round, stored.id), transition_event(what)))
    found.sort(key=lambda each: each[0])
    return [each for each in found if each[0] > after][:limit]


def transition_event(row: TransitionRow) -> dict[str, Any]:
    """What anyone with access may know about a transition.

    ``at`` (seconds since the epoch), ``round``, ``event``, and for some a ``device``, ``reason``,
    ``accuracy`` or share ``saturated``.
    """
    facts = {
        field.name: getattr(row.transition, field.name)
        for field in dataclasses.fields(row.transition)
    }
    name = re.sub("(?<!^)(?=[A-Z])", "-", type(row.transition).__name__).lower()
    return {"at": row.at, "round": int(row.round), "event": name} | _told(facts)


def milestone_event(milestone: Milestone) -> dict[str, Any]:
    """The same about a milestone; its ``round`` is 0, the run as a whole."""
    return {"at": milestone.at, "round": 0, "event": milestone.kind} | _told(milestone.facts)


_TOLD: Final = (
    "device",
    "cohort",
    "devices",
    "code",
    "reason",
    "accepted",
    "accuracy",
    "loss",
    "saturated",
)


def _told(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in _TOLD if facts.get(name) not in (None, "")}


def view_round(number: int, rows: Sequence[TransitionRow]) -> RoundView:
    """One round out of its rows, of which there is at least one."""
    view = RoundView(round=number, began_at=rows[0].at)
    for row in rows:
        transition = row.transition
        view.state = _STATE_AFTER.get(type(transition), view.state)
        view.changed_at = row.at
        match transition:
            case Invited(cohort=cohort):
                view.invited = len(cohort)
            case Committed():
                view.committed += 1
            case UpdateStored():
                view.reported += 1
            case DeviceDeclined(device=device, reason=reason):
                view.declined[device] = reason
            case AdapterApplied() as result:
                view.accuracy, view.loss = result.accuracy, result.loss
                view.evaluated, view.saturated = result.evaluated, result.saturated
                view.accepted, view.reason = result.accepted, result.reason
            case RoundFailed(reason=reason):
                view.reason = reason
            case _:
                pass
    return view
