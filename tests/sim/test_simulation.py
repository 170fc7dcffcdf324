"""A simulation is a function of its seed, and is the real thing on another transport and clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.crypto.sum_cipher import Scheme
from shared.errors import DataError, ModelError
from sim.report import SHARED_WITH
from sim.simulation import simulate, simulation_master
from tests.support.small_fleet import SEED, small_population, small_scenario
from tests.support.stories import ROUNDS, Watched

Report = dict[str, Any]


@pytest.fixture
def report(simulated_twice: tuple[Report, Report]) -> Report:
    return simulated_twice[0]


def without_times(report: Report) -> Report:
    return {key: value for key, value in report.items() if key not in ("stages", "scenario")}


@pytest.mark.model
@pytest.mark.slow
def test_the_same_seed_gives_the_same_report_but_for_how_long_it_took(
    simulated_twice: tuple[Report, Report],
) -> None:
    one, other = simulated_twice
    assert json.dumps(without_times(one)) == json.dumps(without_times(other))
    assert one["stages"].keys() == other["stages"].keys()


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.processes
def test_over_memory_and_over_mqtt_the_same_seed_gives_the_same_adapter(
    report: Report, watched: Watched
) -> None:
    assert report["adapter_hash"] == watched.view["adapter"]
    accuracies = [entry["accuracy"]["all"] for entry in report["history"]]
    assert accuracies == [round(r["accuracy"][""], 4) for r in watched.view["rounds"]]


@pytest.mark.model
@pytest.mark.slow
def test_the_report_says_everything_that_the_run_came_to(report: Report, tmp_path: Path) -> None:
    devices = [f"device-{number}" for number in (1, 2, 3)]
    rounds = [str(number) for number in range(1, ROUNDS + 1)]
    assert (report["devices"], report["rounds"]) == (3, ROUNDS)
    assert (report["seed"], report["transport"]) == (SEED, "memory")
    assert report["accuracy"].keys() == {"before", "after", "central"}
    assert list(report["epsilon"]) == devices
    assert [list(sent) for sent in report["bytes_out"].values()] == [rounds] * 3
    size = report["protection"]["update_bytes"]
    for sent in report["bytes_out"].values():
        assert all(size < each < size + 20_000 for each in sent.values())
    assert [entry["reported"] for entry in report["history"]] == [3] * ROUNDS
    population = small_population(small_scenario(tmp_path))
    assert report["examples"]["held_out"] == len(population.probe)
    dealt = {device: len(part) for device, part in population.devices.items()}
    assert report["examples"]["by_device"] == dealt
    assert len(report["adapter_hash"]) == 64
    assert all(seconds >= 0 for seconds in report["stages"].values())
    assert json.loads(json.dumps(report)) == report


@pytest.mark.model
@pytest.mark.slow
def test_it_learns_and_costs_what_was_asked(report: Report) -> None:
    accuracy = report["accuracy"]
    # Three equally frequent labels: guessing is 1/3. Without noise all is answered right.
    assert accuracy["before"]["all"] < 0.5
    assert accuracy["after"]["all"] >= 0.75
    assert accuracy["central"]["all"] >= 0.9
    assert all(0.95 * 8.0 < spent <= 8.0 for spent in report["epsilon"].values())
    assert report["privacy"]["repeatable_noise"] is True


def test_who_could_see_what_is_said_for_every_scheme() -> None:
    assert SHARED_WITH.keys() == set(Scheme)


def test_each_seed_has_its_own_noise() -> None:
    assert simulation_master(1) != simulation_master(2)
    assert simulation_master(1) == simulation_master(1)


# What cannot run leaves nothing behind


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where simulations keep their files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_missing_column_is_told_before_anything_is_made(temporary: Path, tmp_path: Path) -> None:
    scenario = small_scenario(tmp_path, data={"label_column": "intent"})
    with pytest.raises(DataError, match="'intent'"):
        simulate(scenario, seed=1, watch=lambda *_: None)
    assert list(temporary.iterdir()) == []


def test_an_unknown_base_model_is_told_and_nothing_is_left(temporary: Path, tmp_path: Path) -> None:
    scenario = small_scenario(tmp_path, model={"base": "nobody/knows-it"})
    with pytest.raises(ModelError, match="nobody/knows-it"):
        simulate(scenario, seed=1, watch=lambda *_: None)
    assert list(temporary.iterdir()) == []
