"""``llmos demo`` and ``llmos sim``: a mistake is a sentence, and leaves nothing half-made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sim import simulation
from sim.scenario import Scenario
from tests.support.commands import CommandLine
from tests.support.reports import a_whole_report
from tests.support.small_fleet import write_tickets

SCENARIO = """
name = "small"
[data]
path = "not-there.csv"
format = "splits"
test = "not-there-either.csv"
[population]
devices = 3
[protection]
min_devices = 3
[training]
rounds = 2
"""


@pytest.fixture
def llmos(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    return write_tickets(tmp_path / "tickets.csv")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "out"


def test_three_mistakes_in_a_scenario_get_one_message(
    llmos: CommandLine, scenario: Path, out: Path
) -> None:
    scenario.write_text(
        SCENARIO + "learnin_rate = 1.0\n[network]\nloss = 0.7\n[server]\nrule = 'sum'\n"
    )
    assert llmos("sim", "run", scenario, "--out", out) == 1
    for mistake in ("training.learnin_rate", "did you mean learning_rate?", "network.loss"):
        assert mistake in llmos.err
    assert "server.rule" in llmos.err
    assert not out.exists()


@pytest.mark.parametrize("command", ["sim", "demo"])
def test_a_file_without_the_label_column_is_told_the_columns_there_are(
    llmos: CommandLine, scenario: Path, tickets: Path, out: Path, command: str
) -> None:
    words = ["sim", "run", scenario] if command == "sim" else ["demo"]
    assert llmos(*words, "--data", tickets, "--label-column", "intent", "--out", out) == 1
    assert "'intent'" in llmos.err
    assert "'text', 'label'" in llmos.err
    assert not out.exists()


@pytest.mark.parametrize("command", ["sim", "demo"])
def test_a_file_that_is_not_there_is_named(
    llmos: CommandLine, scenario: Path, tmp_path: Path, out: Path, command: str
) -> None:
    words = ["sim", "run", scenario] if command == "sim" else ["demo"]
    assert llmos(*words, "--data", tmp_path / "gone.csv", "--out", out) == 1
    assert "gone.csv" in llmos.err
    assert not out.exists()


def test_an_unknown_base_model_is_named_with_what_to_do(
    llmos: CommandLine, scenario: Path, tickets: Path, out: Path
) -> None:
    setting = "model.base=nobody/knows-it"
    assert llmos("sim", "run", scenario, "--data", tickets, "--set", setting, "--out", out) == 1
    assert "nobody/knows-it" in llmos.err
    assert "name a folder" in llmos.err
    assert not out.exists()


def test_more_devices_than_examples_are_refused(
    llmos: CommandLine, tmp_path: Path, out: Path
) -> None:
    path = tmp_path / "few.csv"
    path.write_text("text,label\na,x\nb,x\nc,y\nd,y\n")
    assert llmos("demo", "--data", path, "--out", out) == 1
    assert "2 examples cannot be dealt to 5 devices" in llmos.err
    assert not out.exists()


def test_the_demo_takes_no_folder_that_holds_something_else(
    llmos: CommandLine, tickets: Path, out: Path
) -> None:
    (out / "fleet").mkdir(parents=True)
    (out / "fleet" / "a thesis.doc").write_text("years of work")
    assert llmos("demo", "--data", tickets, "--out", out) == 1
    assert "choose another --out" in llmos.err
    assert (out / "fleet" / "a thesis.doc").read_text() == "years of work"


@pytest.mark.parametrize("below", ["", "deeper"])
@pytest.mark.parametrize("command", ["sim", "demo"])
def test_a_file_where_the_output_folder_should_be_is_told_before_the_work(
    llmos: CommandLine,
    scenario: Path,
    tickets: Path,
    tmp_path: Path,
    asked: Recorded,
    command: str,
    below: str,
) -> None:
    (tmp_path / "taken").write_text("a file")
    out = tmp_path / "taken" / below
    words = ["sim", "run", scenario] if command == "sim" else ["demo"]
    assert llmos(*words, "--data", tickets, "--out", out) == 1
    assert "there is a file where a folder should be" in llmos.err
    assert asked.seed == -1
    assert (tmp_path / "taken").read_text() == "a file"


class Recorded:
    """In place of the simulation: keeps what it was asked for."""

    def __init__(self) -> None:
        self.scenario = Scenario()
        self.seed = -1

    def __call__(self, scenario: Scenario, *, seed: int, watch: Any) -> dict[str, Any]:
        self.scenario, self.seed = scenario, seed
        watch("rounds", 1, 2)
        watch("report", 1, 1)
        raise KeyboardInterrupt


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded()
    monkeypatch.setattr(simulation, "simulate", recorded)
    return recorded


def test_options_replace_the_scenario_s_data_and_seed(
    llmos: CommandLine, scenario: Path, tickets: Path, out: Path, asked: Recorded
) -> None:
    options = ("--data", tickets, "--text-column", "t", "--label-column", "l", "--seed", 9)
    setting = ("--set", "training.rounds=7")
    assert llmos("sim", "run", scenario, *options, *setting, "--out", out) == 130
    data = asked.scenario.data
    assert (data.path, data.text_column, data.label_column) == (str(tickets), "t", "l")
    # The scenario's format and test set belong to its own file.
    assert (data.format, data.test) == ("auto", "")
    assert (asked.seed, asked.scenario.training.rounds) == (9, 7)


def test_without_options_the_scenario_stands(
    llmos: CommandLine, scenario: Path, out: Path, asked: Recorded
) -> None:
    assert llmos("sim", "run", scenario, "--out", out) == 130
    assert asked.scenario.data.path == "not-there.csv"
    assert asked.scenario.data.format == "splits"
    assert asked.seed == 1


def test_an_interrupted_simulation_says_so_and_leaves_nothing(
    llmos: CommandLine, scenario: Path, out: Path, asked: Recorded
) -> None:
    assert llmos("sim", "run", scenario, "--out", out) == 130
    assert "interrupted" in llmos.err
    assert not out.exists()


@pytest.mark.model
@pytest.mark.slow
def test_a_report_is_printed_for_machines_and_shown_again_for_people(
    llmos: CommandLine,
    scenario: Path,
    out: Path,
    simulated_twice: tuple[dict[str, Any], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = simulated_twice[0]
    monkeypatch.setattr(simulation, "simulate", lambda *_, **__: dict(report))
    assert llmos("sim", "run", scenario, "--out", out, "--json") == 0
    assert json.loads(llmos.out) == json.loads((out / "report.json").read_text())
    assert llmos("sim", "report", out) == 0
    assert report["adapter_hash"] in llmos.out.replace("\n", "")
    assert llmos("sim", "run", scenario, "--out", out) == 0
    assert "report.json" in llmos.out.replace("\n", "")


def test_there_is_nothing_to_show_before_a_run(llmos: CommandLine, out: Path) -> None:
    assert llmos("sim", "report", out) == 1
    assert "llmos sim run" in llmos.err
    out.mkdir(parents=True)
    (out / "report.json").write_text("{")
    assert llmos("sim", "report", out) == 1
    assert "is not a report" in llmos.err


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """In place of the simulation: a finished one."""
    report = a_whole_report()
    monkeypatch.setattr(simulation, "simulate", lambda *_, **__: dict(report))
    return report


def test_a_run_leaves_a_page_beside_the_numbers(
    llmos: CommandLine, scenario: Path, out: Path, finished: dict[str, Any]
) -> None:
    assert llmos("sim", "run", scenario, "--out", out) == 0
    assert sorted(file.name for file in out.iterdir()) == ["report.html", "report.json"]
    assert "report.html" in llmos.out.replace("\n", "")
    assert finished["adapter_hash"] in (out / "report.html").read_text()


def test_a_page_is_made_anew_when_asked(
    llmos: CommandLine, scenario: Path, out: Path, finished: dict[str, Any]
) -> None:
    assert llmos("sim", "run", scenario, "--out", out) == 0
    (out / "report.html").unlink()
    assert llmos("sim", "report", out) == 0
    assert "add --html" in llmos.out
    assert not (out / "report.html").exists()
    assert llmos("sim", "report", out, "--html") == 0
    assert finished["adapter_hash"] in (out / "report.html").read_text()


def test_a_run_is_written_for_trackers_too(
    llmos: CommandLine, scenario: Path, out: Path, finished: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "tb"
    assert llmos("sim", "run", scenario, "--out", out, "--tensorboard", folder) == 0
    (run,) = folder.iterdir()
    assert run.name == f"demo-{finished['adapter_hash'][:8]}"
    assert run.name in llmos.out.replace("\n", "")


@pytest.mark.parametrize("command", ["sim", "demo"])
def test_a_tracker_that_is_not_installed_is_told_before_the_work(
    llmos: CommandLine,
    scenario: Path,
    out: Path,
    asked: Recorded,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setattr("sim.trackers.find_spec", lambda _: None)
    words = ["sim", "run", scenario] if command == "sim" else ["demo"]
    assert llmos(*words, "--out", out, "--wandb", out / "wb") == 1
    assert ".[wandb]" in llmos.err
    assert asked.seed == -1
    assert not out.exists()
