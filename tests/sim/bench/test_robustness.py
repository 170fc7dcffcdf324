"""The measurement of robust rules asks for runs that can be, and finds the share at which a rule fails."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.data_files import Example, read_examples
from shared.errors import ConfigError
from sim.bench import robustness
from sim.bench.robustness import (
    ARMS,
    FEWEST_DEVICES,
    GROUP,
    KINDS,
    SHOWN,
    SWEPT,
    Arm,
    Cell,
    Series,
    World,
    bench_robustness,
)
from sim.scenario import DataTable, Scenario
from tests.support.commands import CommandLine
from tests.support.proc import descendants
from tests.support.small_fleet import SEED, small_scenario, write_tickets
from tests.support.stories import model_or_skip

DATA = DataTable(path="not-there.csv")


def world(devices: int) -> World:
    return World(data=DATA, base="any", devices=devices, rounds=3, labels=20, examples=50)


# What is asked for


@given(st.integers(FEWEST_DEVICES, 200), st.sampled_from(ARMS), st.sampled_from(KINDS))
def test_every_arm_is_a_scenario_without_contradictions(devices: int, arm: Arm, kind: str) -> None:
    asked = world(devices).scenario(arm, kind, 0.5)
    assert (asked.server.rule, asked.adversary.kind) == (arm.rule, kind)
    assert (asked.protection.groups > 1) == (asked.protection.scheme == "public-key") == arm.grouped
    if arm.grouped:
        assert devices // asked.protection.groups >= asked.protection.min_devices == GROUP
    # All devices are wanted, and the loss of a few would not stop a run in clear.
    assert asked.protection.fewest <= devices == asked.job().cohort.devices


def test_with_one_device_fewer_multi_krum_has_too_few_groups() -> None:
    with pytest.raises(ConfigError, match="at least 5"):
        world(FEWEST_DEVICES - 1).scenario(Arm("multikrum", grouped=True))


@pytest.mark.parametrize(
    ("devices", "grouped", "malicious"), [(36, False, 11), (36, True, 4), (15, True, 1)]
)
def test_rules_are_told_of_a_third_at_most(devices: int, grouped: bool, malicious: int) -> None:
    assert Arm("multikrum", grouped=grouped).malicious(devices) == malicious


# Where a rule fails


def series(**accuracy_by_percent: float) -> Series:
    cells = {int(key[1:]) / 100: Cell((value,), 0) for key, value in accuracy_by_percent.items()}
    return Series(ARMS[1], "label-flip", cells)


def test_a_rule_fails_past_a_tenth_below_its_own_start() -> None:
    assert not series(_0=0.9, _10=0.8).fails(0.1)
    assert series(_0=0.9, _10=0.7999).fails(0.1)
    assert series(_0=0.9, _10=0.7, _20=0.85, _30=0.2).fails_from == 0.1


@given(st.floats(0.001, 0.6))
def test_a_sweep_finds_the_share_at_which_a_rule_breaks(breaks_at: float) -> None:
    measured = []

    def measure(share: float) -> Cell:
        measured.append(share)
        return Cell((0.9 if share < breaks_at else 0.3, 0.9 if share < breaks_at else 0.5), 1)

    swept = series(_0=0.9)
    swept.sweep(measure)
    assert len(measured) == len(set(measured)) <= len(SWEPT) + 1
    assert set(SHOWN) <= set(measured)
    assert swept.holds_to < breaks_at
    if swept.fails_from is None:
        assert breaks_at > max(SWEPT) == swept.holds_to
    else:
        assert breaks_at <= swept.fails_from <= swept.holds_to + 0.05 + 1e-9


# The whole, with runs that are made up


class MadeUp:
    """In the place of processes: a mean breaks at once, the others past three tenths."""

    instances: list[MadeUp]
    withstands = False
    """Whether scaled updates harm nobody."""

    def __init__(self, count: int, folder: Path) -> None:
        assert folder.is_dir()
        self.threads = ThreadPoolExecutor(count)
        self.asked: list[tuple[Scenario, int]] = []
        self.closed = False
        self.instances.append(self)

    def run(self, scenario: Scenario, seed: int) -> Mapping[str, Any]:
        self.asked.append((scenario, seed))
        kind, share = scenario.adversary.kind, scenario.adversary.share
        mean = scenario.server.rule == "fedavg"
        harmless = kind == "scaled-update" and self.withstands
        fails = not harmless and (share > 0 if mean else share > 0.3)
        learnt = 0.9 if mean else 0.85
        return {
            "accuracy": {"after": {"all": 0.5 if fails else learnt}, "central": {"all": 0.95}},
            "history": [{"accepted": True}, {"accepted": not fails}, {"failed": "so it goes"}],
            "base_model": {"name": "any", "sha256": "ab"},
        }

    def close(self) -> None:
        self.closed = True
        self.threads.shutdown()


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> type[MadeUp]:
    class Fresh(MadeUp):
        instances: list[MadeUp] = []  # noqa: RUF012  one list for one test

    monkeypatch.setattr(robustness, "_Processes", Fresh)
    return Fresh


def measured(folder: Path, *, seeds: int = 2) -> dict[str, Any]:
    table = DataTable(path=str(write_tickets(folder / "tickets.csv")))
    return bench_robustness(
        table, base="any", devices=15, rounds=3, seeds=seeds, progress=lambda _: None
    )


def test_every_rule_is_measured_under_every_attack_with_every_seed(
    tmp_path: Path, made_up: type[MadeUp]
) -> None:
    result = measured(tmp_path)
    (processes,) = made_up.instances
    assert processes.closed
    assert result["simulations"] == len(processes.asked)
    assert {seed for _, seed in processes.asked} == {1, 2}
    assert len(result["rows"]) == len(ARMS) * len(KINDS)
    clean = [s for s, _ in processes.asked if s.adversary.kind == "none"]
    assert len(clean) == 2 * len(ARMS)
    assert result["labels"] == 3
    assert result["examples_per_device"] == 5  # 72 of 90 texts, over 15 devices
    assert clean[0].training.learning_rate == pytest.approx(0.3)
    assert clean[0].training.examples_cap == 5
    assert json.loads(json.dumps(result)) == result
    rows = {(row["rule"], row["over"], row["adversary"]): row for row in result["rows"]}
    mean = rows["fedavg", "devices", "scaled-update"]
    assert (mean["holds_to"], mean["fails_from"]) == (0.0, 0.05)
    assert mean["accuracy"] == {"0": 0.9, "0.05": 0.5, "0.1": 0.5, "0.2": 0.5}
    assert mean["rejected_rounds"]["0.1"] == 4
    assert mean["malicious"] is None
    krum = rows["multikrum", "groups", "label-flip"]
    assert (krum["compared"], krum["malicious"]) == (5, 1)
    assert (krum["holds_to"], krum["fails_from"]) == (0.3, 0.35)
    assert krum["accuracy"]["0"] == krum["accuracy"]["0.3"] == 0.85
    (control,) = result["bars"]
    assert (control["measured"], control["wanted"], control["holds"]) == (0.4, 0.1, True)


def test_a_mean_that_withstands_the_attack_is_said(tmp_path: Path, made_up: type[MadeUp]) -> None:
    made_up.withstands = True
    result = measured(tmp_path, seeds=1)
    (control,) = result["bars"]
    assert (control["measured"], control["holds"]) == (0.0, False)
    for row in result["rows"]:
        withstood = row["adversary"] == "scaled-update"
        assert (row["fails_from"] is None) == (row["holds_to"] == max(SWEPT)) == withstood


def test_a_run_that_fails_ends_the_measurement_and_its_processes(
    tmp_path: Path, made_up: type[MadeUp], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Mapping[str, Any]:
        raise ConfigError(["no such base"])

    monkeypatch.setattr(made_up, "run", fail)
    with pytest.raises(ConfigError, match="no such base"):
        measured(tmp_path)
    assert made_up.instances[0].closed


@pytest.mark.model
@pytest.mark.slow
def test_processes_simulate_and_end_with_what_they_started(tmp_path: Path) -> None:
    model_or_skip()
    scenario = small_scenario(tmp_path, privacy={"noise": "none"}, protection={"scheme": "clear"})
    before = {process.pid for process in descendants(os.getpid())}
    processes = robustness._Processes(1, tmp_path)
    try:
        one, other = (processes.run(scenario, SEED) for _ in range(2))
        started = [each for each in descendants(os.getpid()) if each.pid not in before]
    finally:
        processes.close()
    assert one["adapter_hash"] == other["adapter_hash"]
    assert list((tmp_path / "features").iterdir())
    assert not list(tmp_path.glob("llmos-sim-*"))
    assert len(started) >= 2, "a worker and what trains for it"
    deadline = time.monotonic() + 60
    while any(process.alive for process in started):
        assert time.monotonic() < deadline, "processes were left behind"
        time.sleep(0.05)


# The command


@pytest.fixture
def llmos(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


def test_the_command_shows_a_table_and_goes_by_the_control(
    llmos: CommandLine, made_up: type[MadeUp], tmp_path: Path
) -> None:
    data = write_tickets(tmp_path / "tickets.csv")
    assert llmos("bench", "robustness", "--data", data, "--devices", "15") == 0
    assert llmos.out.count("trimmed-mean") == 4, "nothing is cut off"
    assert "above" not in llmos.out
    made_up.withstands = True
    assert llmos("bench", "robustness", "--data", data, "--devices", "15") == 1
    assert "above 50%" in llmos.out


def test_without_data_it_measures_the_english_tickets(
    llmos: CommandLine, made_up: type[MadeUp], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Example] = []

    def reading(self: MadeUp, scenario: Scenario, seed: int) -> Mapping[str, Any]:
        if not read:
            read.extend(read_examples(Path(scenario.data.path)))
        return MadeUp.run(self, scenario, seed)

    monkeypatch.setattr(made_up, "run", reading)
    assert llmos("bench", "robustness", "--json") == 0
    result = json.loads(llmos.out)
    assert result["data"] == "tickets.jsonl"
    assert (result["devices"], result["labels"]) == (36, 24)
    assert len(read) == 3360
    assert not any("一" <= letter <= "龥" for example in read for letter in example.text)


@pytest.mark.parametrize("words", [["--format", "xml"], ["--data", "not-there.csv"]])
def test_a_mistake_is_a_sentence(llmos: CommandLine, words: list[str]) -> None:
    assert llmos("bench", "robustness", *words) == 1
    assert len(llmos.err.strip().splitlines()) <= 2
