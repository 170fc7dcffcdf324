"""A report is about a run that finished, and a person reads the same numbers as a machine."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

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
    SumOpened,
    Transition,
    UpdateStored,
)
from coordinator.probe import Probe
from coordinator.store.store import Store
from shared.errors import RoundError, RunNotFound
from shared.files import digest_of
from shared.job import PrivacyTable
from shared.privacy.accountant import Fact, NonPrivate, SampledGaussian
from shared.privacy.ledger import Charge, Ledger
from shared.types import RoundNumber, RunId
from sim.report import Fleet, _epsilon_by_round, _history, build_report, write_report
from sim.tables import show_report
from tests.support.plans import a_plan

RUN = RunId("run")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Of a run that was submitted; the probe is not asked for before it has finished."""
    store = Store(f"sqlite:///{tmp_path / 'store.db'}", tmp_path)
    store.add_run(RUN, a_plan(RUN).model_dump_json(), digest_of(b""), now=0.0)
    no_probe: Any = None
    yield Fleet(store, {}, Probe([], no_probe, no_probe, no_probe, no_probe), "memory")
    store.close()


@pytest.mark.parametrize("outcome", ["failed", "stopped"])
def test_a_run_that_failed_or_was_stopped_has_no_report_but_its_reason(
    fleet: Fleet, outcome: str
) -> None:
    fleet.store.add_milestone(RUN, outcome, {"reason": "too few devices"}, now=1.0)
    with pytest.raises(RoundError, match=f"run run {outcome}: too few devices"):
        build_report(fleet, RUN, stages={})


def test_nor_has_one_that_goes_on(fleet: Fleet) -> None:
    with pytest.raises(RoundError, match="has not finished"):
        build_report(fleet, RUN, stages={})


def test_nor_one_that_nobody_knows(fleet: Fleet) -> None:
    with pytest.raises(RunNotFound):
        build_report(fleet, RunId("another"), stages={})


def test_a_round_is_told_by_numbers_and_by_no_device_and_no_update(fleet: Fleet) -> None:
    digest = digest_of(b"update")
    rows: list[Transition] = [
        Planned(digest),
        KeyAnnounced(b"key"),
        Invited(("a", "b", "c", "d"), 1.0),
        DeviceDeclined("d", "device.busy", "not now"),
        *(Committed(device, digest, b"record") for device in "abc"),
        Proposed(("a", "b", "c")),
        SetFixed(("a", "b", "c"), (0, 0, 0), b"signed", 2.0),
        UpdateStored("a", digest),
        DeviceDeclined("b", "protocol.undecodable", "its update was refused"),
        UpdateStored("c", digest),
        Closed(("a", "c")),
        SumOpened(digest, 2),
        AdapterApplied(digest, False, "no better", {"": 0.5}, 1.25, digest, saturated=0.01234567),
    ]
    for row in rows:
        fleet.store.commit(RUN, RoundNumber(1), row, now=1.0)
    fleet.store.commit(RUN, RoundNumber(2), Planned(digest), now=2.0)
    fleet.store.commit(RUN, RoundNumber(2), RoundFailed("round", "too few"), now=2.0)
    assert _history(fleet.store, RUN) == [
        {
            "round": 1,
            "invited": 4,
            "reported": 2,
            "declined": {"device.busy": 1, "protocol.undecodable": 1},
            "accuracy": {"all": 0.5},
            "loss": 1.25,
            "accepted": False,
            "saturated": 0.012346,
            "reason": "no better",
        },
        {"round": 2, "invited": 0, "reported": 0, "failed": "too few"},
    ]


def a_report(devices: int = 2, **changes: Any) -> dict[str, Any]:
    names = [f"device-{number:02d}" for number in range(1, devices + 1)]
    accuracy = {"all": 0.5, "en": 0.625, "zh": 0.375}
    return {
        "seed": 3,
        "devices": devices,
        "rounds": 2,
        "transport": "mqtt",
        "accuracy": {"before": accuracy, "after": accuracy | {"en": 0.987}, "central": accuracy},
        "epsilon": dict.fromkeys(names, 7.25),
        "privacy": {
            "noise": "local",
            "level": "record",
            "noise_multiplier": 1.5,
            "delta": 1e-5,
            "repeatable_noise": True,
        },
        "bytes_out": {name: {"1": 1000, "2": 2000} for name in names},
        "examples": {"by_device": dict.fromkeys(names, 321)},
        "protection": {
            "scheme": "public-key",
            "parameters": "bfv-4096",
            "min_devices": 2,
            "bytes_per_value": 7.5,
        },
        "who_could_see": [{"what": "training texts", "who": "the device alone"}],
        "stages": {"prepare": 1.0, "other_rounds": 2.5},
        "adapter_hash": "ab" * 32,
    } | changes


def shown(report: dict[str, Any]) -> str:
    text = io.StringIO()
    show_report(report, Console(file=text, width=200))
    return text.getvalue()


def test_the_tables_hold_the_report_s_numbers() -> None:
    text = shown(a_report())
    for part in (
        *("English", "Chinese", "0.987", "0.375", "7.25", "321", "1,500", "3,000", "seed 3"),
        *("training texts", "the device alone", "other rounds 2.5 s; together 3.5 s"),
        *("public-key", "at least 2 devices", "σ/C = 1.500", "δ = 1e-05", "ab" * 32),
    ):
        assert part in text, part
    assert "repeatable from the seed" in text


def test_a_run_without_noise_says_so() -> None:
    privacy = {"noise": "none", "repeatable_noise": False}
    text = shown(a_report(privacy=privacy, epsilon={"device-01": "infinite", "device-02": 1.0}))
    assert "this run trained without noise" in text
    assert "infinite" in text
    assert "repeatable" not in text


def test_a_run_with_hostile_devices_says_which() -> None:
    adversary = {"kind": "scaled-update", "devices": ["device-01", "device-02"]}
    assert "scaled-update by device-01, device-02" in shown(a_report(adversary=adversary))
    assert "adversary" not in shown(a_report(adversary={"kind": "none", "devices": []}))


@pytest.mark.parametrize(("devices", "rows"), [(12, 12), (13, 10)])
def test_of_many_devices_the_first_are_shown_and_the_rest_counted(devices: int, rows: int) -> None:
    text = shown(a_report(devices))
    assert text.count("device-") == rows
    assert ("… and 3 more" in text) is (devices == 13)


def test_a_device_that_never_sent_is_shown_without_a_mean() -> None:
    silent: dict[str, dict[str, int]] = {"device-01": {}, "device-02": {"1": 10}}
    assert "-" in shown(a_report(bytes_out=silent))


def test_it_is_written_whole_and_read_back_the_same(tmp_path: Path) -> None:
    report = a_report(note="工单")
    path = write_report(report, tmp_path / "out")
    assert json.loads(path.read_text(encoding="utf-8")) == report
    assert "工单" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_what_was_spent_after_each_round_is_what_the_ledger_said_then(tmp_path: Path) -> None:
    """Releases of different kinds, of an earlier run too, and a round without a charge."""
    release, count = SampledGaussian(2.0, 0.5, 3), SampledGaussian(10.0, 1.0, 1)
    charges: list[tuple[RunId, int, tuple[Fact, ...]]] = [(RunId("earlier"), 1, (release,))]
    charges += [(RUN, number, (release, count) if number == 1 else (release,)) for number in (1, 2)]
    charges += [(RUN, 4, (SampledGaussian(1.5, 0.5, 1),))]
    ledger, then = Ledger(tmp_path / "ledger.jsonl"), {}
    for run, number, facts in charges:
        ledger.charge(Charge(run, RoundNumber(number), "store", facts, "2026-01-01T00:00:00Z"))
        if run == RUN:
            then[str(number)] = round(ledger.epsilon(1e-5), 4)
    assert _epsilon_by_round(ledger, RUN, PrivacyTable()) == pytest.approx(then)
    lost = Charge(RUN, RoundNumber(5), "store", (NonPrivate("no noise"),), "2026-01-01T00:00:00Z")
    ledger.charge(lost)
    assert _epsilon_by_round(ledger, RUN, PrivacyTable())["5"] == "infinite"
