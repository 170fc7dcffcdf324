"""What anyone with access may know about devices and runs, out of committed rows."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

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


def view_run(store: Store, row: RunRow) -> RunView:
    """A run with its rounds so far. ``""`` in an accuracy is the whole probe set."""
    milestones = store.milestones(row.run)
    started = milestones.get("started")
    last = next((milestones[k] for k in ENDINGS if k in milestones), None)
    state = last.kind if last else "running" if started else "preparing"
    rounds = [_view_round(number, rows) for number, rows in by_round(store.transitions(row.run))]
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


def run_events(store: Store, row: RunRow) -> list[dict[str, Any]]:
    """Everything that was written down about a run, oldest first; later calls only add at the end.

    Each with ``at`` (seconds since the epoch), ``round`` (0: the run as a whole), ``event``,
    and for some a ``device``, ``reason``, ``accuracy`` or share ``saturated``.
    """
    # Not by ``at``: a clock may be set back, and the last round and the run end at one moment.
    milestones = [
        {"at": milestone.at, "round": 0, "event": kind} | _told(milestone.facts)
        for kind, milestone in store.milestones(row.run).items()
    ]
    events: list[dict[str, Any]] = [{"at": row.submitted_at, "round": 0, "event": "submitted"}]
    events += [event for event in milestones if event["event"] == "started"]
    for number, rows in by_round(store.transitions(row.run)):
        for entry in rows:
            facts = {
                field.name: getattr(entry.transition, field.name)
                for field in dataclasses.fields(entry.transition)
            }
            name = re.sub("(?<!^)(?=[A-Z])", "-", type(entry.transition).__name__).lower()
            events.append({"at": entry.at, "round": int(number), "event": name} | _told(facts))
    return events + [event for event in milestones if event["event"] != "started"]


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


def _view_round(number: int, rows: list[TransitionRow]) -> RoundView:
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
