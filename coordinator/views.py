"""What anyone with access may know about devices and runs, out of committed rows."""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.federation.rounds import (
    AdapterApplied,
    Closed,
    DeviceDeclined,
    Invited,
    KeyAnnounced,
    Planned,
    RoundFailed,
    State,
    SumOpened,
    UpdateStored,
)
from coordinator.store.store import ENDINGS, RunRow, Store, TransitionRow, by_round

_STATE_AFTER = {
    Planned: State.PLANNED,
    KeyAnnounced: State.INVITING,
    Invited: State.OPEN,
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
    reported: int = 0
    declined: dict[str, str] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    loss: float | None = None
    accepted: bool | None = None
    reason: str = ""
    began_at: float = 0.0
    changed_at: float = 0.0


@dataclass(slots=True)
class RunView:
    """One run."""

    run: str
    state: str
    reason: str
    submitted_at: float
    adapter: str
    accuracy_before: dict[str, float]
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
        state=state,
        reason=str(last.facts.get("reason", "")) if last else "",
        submitted_at=row.submitted_at,
        adapter=str(last.facts.get("adapter", "")) if last else "",
        accuracy_before=dict(started.facts["accuracy"]) if started else {},
        rounds=rounds,
    )


def _view_round(number: int, rows: list[TransitionRow]) -> RoundView:
    view = RoundView(round=number, began_at=rows[0].at)
    for row in rows:
        transition = row.transition
        view.state = _STATE_AFTER.get(type(transition), view.state)
        view.changed_at = row.at
        match transition:
            case Invited(cohort=cohort):
                view.invited = len(cohort)
            case UpdateStored():
                view.reported += 1
            case DeviceDeclined(device=device, reason=reason):
                view.declined[device] = reason
            case AdapterApplied() as result:
                view.accuracy, view.loss = result.accuracy, result.loss
                view.accepted, view.reason = result.accepted, result.reason
            case RoundFailed(reason=reason):
                view.reason = reason
            case _:
                pass
    return view
