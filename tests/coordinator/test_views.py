"""A view says how far a run is, out of committed rows and of nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from coordinator.federation.rounds import (
    AdapterApplied,
    Closed,
    DeviceDeclined,
    Invited,
    KeyAnnounced,
    Planned,
    Round,
    RoundFailed,
    SumOpened,
    Transition,
    UpdateStored,
)
from coordinator.store.store import Store
from coordinator.views import RoundView, view_run
from shared.types import Digest, RoundNumber, RunId

RUN, ADAPTER, OTHER = RunId("run"), Digest("0" * 64), Digest("1" * 64)
HISTORY: list[Transition] = [
    Planned(ADAPTER),
    KeyAnnounced(b"key"),
    Invited(("a", "b", "c"), 3.0),
    UpdateStored("a", OTHER, b"record"),
    DeviceDeclined("b", "busy", "is busy"),
    UpdateStored("c", OTHER, b"record"),
    Closed(("a", "c")),
    SumOpened(OTHER, 2),
    AdapterApplied(OTHER, True, "", {"": 0.5, "en": 0.6}, 1.25, ADAPTER),
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path / 'store.db'}", tmp_path)
    store.add_run(RUN, "{}", ADAPTER, now=1.0)
    yield store
    store.close()


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
    round_ = Round.replay(RUN, RoundNumber(1), 2, rows)
    assert view.state == round_.state
    assert (view.invited, view.reported) == (len(round_.cohort), len(round_.updates))
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
    store.add_milestone(RUN, "started", {"adapter": ADAPTER, "accuracy": {"": 0.1}}, now=2.0)
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
