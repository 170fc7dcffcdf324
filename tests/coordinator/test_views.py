"""A view says how far a run is, out of committed rows and of nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from coordinator.federation.rounds import (
    AdapterApplied,
    Closed,
    Committed,
    DeviceDeclined,
    Invited,
    KeyAnnounced,
    Planned,
    Proposed,
    Quorum,
    Round,
    RoundFailed,
    SetFixed,
    SumOpened,
    Transition,
    UpdateStored,
)
from coordinator.store.store import Store
from coordinator.views import RoundView, count_round, events_page, view_run
from shared.types import Digest, RoundNumber, RunId
from tests.support.coordinator_plans import small_plan

RUN, ADAPTER, OTHER = RunId("run"), Digest("0" * 64), Digest("1" * 64)
HISTORY: list[Transition] = [
    Planned(ADAPTER),
    KeyAnnounced(b"key"),
    Invited(("a", "b", "c"), 3.0),
    Committed("a", OTHER, b"record"),
    DeviceDeclined("b", "busy", "is busy"),
    Committed("c", OTHER, b"record"),
    Proposed(("a", "c")),
    SetFixed(("a", "c"), (0, 0), b"signed", 4.0),
    UpdateStored("a", OTHER),
    UpdateStored("c", OTHER),
    Closed(("a", "c")),
    SumOpened(OTHER, 2),
    AdapterApplied(OTHER, True, "", {"": 0.5, "en": 0.6}, 1.25, ADAPTER, saturated=0.25),
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path / 'store.db'}", tmp_path)
    store.add_run(RUN, small_plan().model_dump_json(), ADAPTER, now=1.0)
    yield store
    store.close()


def run_events(store: Store) -> list[dict[str, Any]]:
    """All events of the run."""
    return [event for _, event in events_page(store, store.run(RUN), limit=10_000)]


def write(store: Store, rows: list[Transition], number: int = 1) -> None:
    for at, row in enumerate(rows, start=10):
        store.commit(RUN, RoundNumber(number), row, now=float(at))


def only_round(store: Store) -> RoundView:
    (view,) = view_run(store, store.run(RUN)).rounds
    return view


@pytest.mark.parametrize("length", range(1, len(HISTORY) + 1))
def test_at_every_row_the_view_stands_where_the_round_stands(store: Store, length: int) -> None:
    rows = HISTORY[:length]
    write(store, rows)
    view = only_round(store)
    round_ = Round.replay(RUN, RoundNumber(1), Quorum(2, 2, 1), rows)
    assert view.state == round_.state
    assert (view.invited, view.reported) == (len(round_.cohort), len(round_.updates))
    assert view.committed == len(round_.commitments)
    counts = count_round(store, RUN, 1)
    assert (counts.state, counts.invited, counts.changed_at) == (
        view.state,
        view.invited,
        view.changed_at,
    )
    assert (counts.committed, counts.reported) == (view.committed, view.reported)
    assert counts.declined == len(view.declined)
    assert view.declined == {name: row.reason for name, row in round_.declined.items()}
    assert (view.began_at, view.changed_at) == (10.0, 9.0 + length)


def test_the_history_above_holds_every_kind_but_failure() -> None:
    assert {type(row) for row in HISTORY} | {RoundFailed} == set(get_args(Transition))


def test_a_result_and_a_failure_are_told_with_their_reason(store: Store) -> None:
    write(store, HISTORY)
    write(store, [Planned(OTHER), RoundFailed("privacy.cohort", "2 of 3")], number=2)
    first, second = view_run(store, store.run(RUN)).rounds
    assert (first.accuracy, first.loss, first.accepted) == ({"": 0.5, "en": 0.6}, 1.25, True)
    assert (second.round, second.state, second.reason) == (2, "failed", "2 of 3")
    assert (second.accuracy, second.loss, second.accepted) == ({}, None, None)


@pytest.mark.parametrize("last", ["finished", "failed", "stopped"])
def test_a_run_prepares_runs_and_ends(store: Store, last: str) -> None:
    assert view_run(store, store.run(RUN)).state == "preparing"
    store.add_milestone(
        RUN, "started", {"adapter": ADAPTER, "accuracy": {"": 0.1}, "loss": 2.5}, now=2.0
    )
    running = view_run(store, store.run(RUN))
    assert (running.state, running.accuracy_before, running.adapter) == ("running", {"": 0.1}, "")
    store.add_milestone(RUN, last, {"adapter": OTHER, "reason": "because"}, now=3.0)
    over = view_run(store, store.run(RUN))
    assert (over.state, over.adapter, over.reason) == (last, OTHER, "because")
    assert over.submitted_at == 1.0


def test_a_view_is_json_and_names_nobody_who_contributed(store: Store) -> None:
    write(store, HISTORY)
    text = json.dumps(dataclasses.asdict(view_run(store, store.run(RUN))))
    assert '"a"' not in text
    assert "record" not in text
    assert "signed" not in text


# Events


def told(store: Store) -> list[tuple[int, str]]:
    return [(event["round"], event["event"]) for event in run_events(store)]


def test_events_are_everything_that_was_written_down_in_its_order(store: Store) -> None:
    """All at one moment but the end, when the clock has been set back."""
    store.add_milestone(RUN, "started", {"adapter": ADAPTER, "accuracy": {"": 0.1}}, now=1.0)
    for row in HISTORY:
        store.commit(RUN, RoundNumber(1), row, now=1.0)
    store.commit(RUN, RoundNumber(2), Planned(OTHER), now=1.0)
    store.commit(RUN, RoundNumber(2), RoundFailed("round", "of no use"), now=0.5)
    store.add_milestone(RUN, "finished", {"adapter": OTHER}, now=0.5)
    store.add_milestone(RUN, "released", {"manifest": OTHER, "accuracy": 0.9}, now=0.5)
    names = ["planned", "key-announced", "invited", "committed", "device-declined", "committed"]
    names += ["proposed", "set-fixed", "update-stored", "update-stored", "closed"]
    names += ["sum-opened", "adapter-applied"]
    assert told(store) == [
        *[(0, "submitted"), (0, "started")],
        *[(1, name) for name in names],
        *[(2, "planned"), (2, "round-failed"), (0, "finished"), (0, "released")],
    ]


def test_what_was_told_stays_where_it_was(store: Store) -> None:
    """Whoever follows a run asks again and goes on where they were."""
    before = told(store)
    store.add_milestone(RUN, "started", {"adapter": ADAPTER}, now=50.0)
    for number in (1, 2):
        for row in HISTORY:
            store.commit(RUN, RoundNumber(number), row, now=float(100 - number))
            assert told(store)[: len(before)] == before
            before = told(store)
    store.add_milestone(RUN, "stopped", {"reason": "enough"}, now=0.0)
    assert told(store) == [*before, (0, "stopped")]


def test_events_say_who_and_why_and_hold_no_record(store: Store) -> None:
    write(store, HISTORY)
    events = {event["event"]: event for event in run_events(store)}
    assert events["device-declined"]["device"] == "b"
    assert events["device-declined"]["reason"] == "is busy"
    assert events["sum-opened"]["devices"] == 2
    assert events["adapter-applied"]["accuracy"] == {"": 0.5, "en": 0.6}
    assert events["adapter-applied"]["accepted"] is True
    assert events["adapter-applied"]["at"] == 22.0
    assert events["adapter-applied"]["saturated"] == 0.25
    text = json.dumps(run_events(store))
    assert "record" not in text
    assert "signed" not in text
    assert OTHER not in text, "no update can be told by its digest"


def test_a_release_is_part_of_the_view(store: Store) -> None:
    assert view_run(store, store.run(RUN)).release == {}
    store.add_milestone(RUN, "not-released", {"code": "model", "reason": "damaged"}, now=3.0)
    assert view_run(store, store.run(RUN)).release == {"code": "model", "reason": "damaged"}
    facts = {"manifest": OTHER, "accuracy": 0.9, "folder": "/somewhere", "calibration": "{}"}
    store.add_milestone(RUN, "released", facts, now=4.0)
    assert view_run(store, store.run(RUN)).release == {"manifest": OTHER, "accuracy": 0.9}


def test_what_devices_said_about_their_own_examples_is_shown(store: Store) -> None:
    said = {"accuracy": 0.75, "examples": 61.2}
    applied = HISTORY[-1]
    assert isinstance(applied, AdapterApplied)
    write(store, [*HISTORY[:-1], dataclasses.replace(applied, evaluated=said)])
    assert only_round(store).evaluated == said
