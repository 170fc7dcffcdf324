"""The bench of the management API asks a real coordinator, and measures what it says it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinator.store.store import Store
from sim.bench.management import ROUTES, RUN, fill, seconds_to_verify
from tests.support.brokers import mosquitto_or_skip
from tests.support.commands import CommandLine


def test_a_filled_coordinator_has_as_much_as_was_asked_for(tmp_path: Path) -> None:
    fill(tmp_path / "home", devices=7, keys=5, rows=300)
    home = tmp_path / "home"
    store = Store(f"sqlite:///{home / 'store.db'}", home)
    assert (store.count_devices(), len(store.api_keys())) == (7, 5)
    rows = store.transitions(RUN)
    assert len(rows) == 300
    assert {row.round for row in rows} == {1, 2, 3}
    store.close()


def test_the_log_that_is_verified_is_whole_and_as_long_as_was_asked_for(tmp_path: Path) -> None:
    assert seconds_to_verify(tmp_path / "audit", 600) > 0
    assert len((tmp_path / "audit" / "log.jsonl").read_bytes().splitlines()) == 600


@pytest.mark.broker
@pytest.mark.processes
def test_every_route_is_told_alone_and_under_load(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mosquitto_or_skip()
    llmos = CommandLine(monkeypatch, capsys)
    few = ("--devices", 3, "--keys", 3, "--rows", 100, "--records", 10, "--repeats", 2)
    assert llmos("bench", "management", *few, "--clients", 2, "--json") == 0
    told = json.loads(llmos.out)
    assert [row["route"] for row in told["routes"]] == list(ROUTES)
    assert all(
        0 < row[when]["p50"] <= row[when]["p99"]
        for row in told["routes"]
        for when in ("alone", "loaded")
    )
    assert told["audit_verify_s"] >= 0


def test_rows_are_whole_rounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llmos = CommandLine(monkeypatch, capsys)
    assert llmos("bench", "management", "--rows", 150) == 1
    assert "--rows: a multiple of 100, not 150" in llmos.err
