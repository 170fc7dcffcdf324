"""A scenario is read whole or refused whole, and a contradiction is a mistake like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.config import read
from shared.errors import ConfigError
from shared.job import Job
from sim.scenario import Scenario, read_scenario

ROOT = Path(__file__).parents[2]


def scenario(**tables: Any) -> Scenario:
    return read(Scenario, tables, source="test")


def problems(tmp_path: Path, text: str, *settings: str) -> list[str]:
    path = tmp_path / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        read_scenario(path, settings)
    assert str(path) in str(refused.value) or "options" in str(refused.value)
    return refused.value.problems


def test_three_mistakes_get_one_message_that_names_all_three(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
        [privacy]
        epsilom = 8.0
        [training]
        rounds = 0
        [population]
        devices = 3
        [protection]
        min_devices = 4
        """,
    )
    assert len(found) == 3
    assert any("privacy.epsilom" in each and "did you mean epsilon?" in each for each in found)
    assert any("training.rounds" in each and "0" in each for each in found)
    assert any("population.devices" in each and "min_devices (4)" in each for each in found)


@pytest.mark.parametrize(
    ("devices", "least", "fits"), [(16, 16, True), (15, 16, False), (2, 2, True)]
)
def test_enough_devices_must_exist_for_a_sum(devices: int, least: int, fits: bool) -> None:
    tables = {"population": {"devices": devices}, "protection": {"min_devices": least}}
    if fits:
        assert scenario(**tables).population.devices == devices
    else:
        with pytest.raises(ConfigError, match="no sum could ever be opened"):
            scenario(**tables)


@pytest.mark.parametrize(("devices", "fits"), [(15, True), (14, False)])
def test_enough_devices_must_exist_for_every_group(devices: int, fits: bool) -> None:
    tables = {
        "population": {"devices": devices},
        "protection": {"min_devices": 3, "groups": 5},
        "server": {"rule": "multikrum"},
    }
    if fits:
        assert scenario(**tables).job().cohort.devices == devices
    else:
        with pytest.raises(ConfigError, match="times 5 groups"):
            scenario(**tables)


@pytest.mark.parametrize(
    ("adversary", "refused"),
    [
        ({"kind": "label-flip", "share": 0.5}, ""),
        ({"kind": "label-flip"}, ""),
        ({"kind": "scaled-update", "share": 0.1, "factor": 3}, ""),
        ({"share": 0.1}, "kind is 'none'"),
        ({"kind": "label-flip", "share": 0.51}, "share"),
        ({"kind": "scaled-update", "share": -0.1}, "share"),
        ({"kind": "scaled-update", "factor": 1e7}, "factor"),
        ({"kind": "replay"}, "kind"),
    ],
)
def test_an_adversary_is_one_we_have_and_a_minority(
    adversary: dict[str, Any], refused: str
) -> None:
    tables = {"population": {"devices": 16}, "adversary": adversary}
    if not refused:
        assert scenario(**tables).adversary.share == adversary.get("share", 0.0)
    else:
        with pytest.raises(ConfigError, match=refused):
            scenario(**tables)


@pytest.mark.parametrize(("cohort", "fits"), [(20, True), (21, False)])
def test_a_cohort_cannot_be_larger_than_the_population(cohort: int, fits: bool) -> None:
    tables = {"population": {"devices": 20}, "cohort": {"devices": cohort}}
    if fits:
        assert scenario(**tables).job().cohort.devices == cohort
    else:
        with pytest.raises(ConfigError, match=r"more than population\.devices"):
            scenario(**tables)


def test_without_a_stated_cohort_every_device_is_wanted() -> None:
    job = scenario(population={"devices": 20}, cohort={"lease_s": 7.0}).job()
    assert (job.cohort.devices, job.cohort.lease_s) == (20, 7.0)


def test_the_job_is_the_scenario_without_its_world() -> None:
    tables = {
        "name": "a-name",
        "training": {"rounds": 4},
        "privacy": {"epsilon": 3.0},
        "population": {"devices": 16},
        "data": {"path": "x.csv"},
    }
    job = scenario(**tables).job()
    assert type(job) is Job
    assert (job.name, job.training.rounds, job.privacy.epsilon) == ("a-name", 4, 3.0)


@pytest.mark.parametrize("file", ["scenarios/clinc150.toml", "sim/tickets/demo.toml"])
def test_what_we_ship_is_valid(file: str) -> None:
    shipped = read_scenario(ROOT / file)
    assert shipped.privacy.epsilon == 8.0
    assert shipped.privacy.delta == 1e-5
    assert shipped.job().cohort.devices == shipped.population.devices


def test_a_setting_replaces_one_key_and_leaves_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text("[privacy]\nepsilon = 8.0\ndelta = 1e-6\n[population]\ndevices = 16\n")
    read_ = read_scenario(
        path, ["privacy.epsilon=3.5", "privacy.noise=none", "model.base = /a/folder", "seed=4"]
    )
    assert (read_.privacy.epsilon, read_.privacy.delta, read_.privacy.noise) == (3.5, 1e-6, "none")
    assert (read_.model.base, read_.seed) == ("/a/folder", 4)


def test_mistakes_in_settings_are_told_with_those_of_the_file(tmp_path: Path) -> None:
    found = problems(tmp_path, "[training]\nrounds = 0\n", "privacy.noise=some")
    assert {each.partition(":")[0] for each in found} >= {"training.rounds", "privacy.noise"}


@pytest.mark.parametrize("setting", ["privacy.noise", "name.x=1"])
def test_a_setting_that_sets_nothing_is_refused(tmp_path: Path, setting: str) -> None:
    (problem,) = problems(tmp_path, 'name = "x"\n', setting)
    assert problem.startswith("--set ")


def test_a_file_that_is_missing_or_no_toml_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml does not exist"):
        read_scenario(tmp_path / "nowhere.toml")
    assert "is not TOML" in problems(tmp_path, "[privacy\n")[0]
