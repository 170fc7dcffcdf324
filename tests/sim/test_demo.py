"""The demonstration does what its options say, and whatever ends it ends all that it started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.config import read
from shared.job import Job
from sim.demo import DemoOptions, demo_scenario
from tests.support.brokers import mosquitto_or_skip
from tests.support.proc import Process, descendants
from tests.support.small_fleet import write_tickets
from tests.support.stories import PATIENCE_S, TRAINING, model_or_skip, wait_for

ROOT = Path(__file__).parents[2]


def options(**changes: object) -> DemoOptions:
    chosen: dict[str, object] = {
        "devices": 5,
        "rounds": 8,
        "epsilon": 8.0,
        "noise": "local",
        "data": None,
        "text_column": "text",
        "label_column": "label",
        "group_column": "",
        "seed": 1,
        "out": Path("runs/demo"),
    }
    return DemoOptions(**(chosen | changes))  # type: ignore[arg-type]


def test_the_shipped_tickets_are_shown_by_language() -> None:
    data = demo_scenario(options()).data
    assert data.group_column == "language"
    assert data.path.endswith("tickets.csv")


def test_a_demo_with_shared_noise_is_a_job_that_holds_together() -> None:
    scenario = demo_scenario(options(noise="distributed", devices=3))
    job = read(Job, scenario.job().model_dump(), source="test")
    assert job.privacy.noise == "distributed"
    assert job.protection.min_devices == 3


def test_a_file_of_one_s_own_is_grouped_only_where_it_can_be(tmp_path: Path) -> None:
    path = write_tickets(tmp_path / "own.csv")
    assert demo_scenario(options(data=path)).data.group_column == ""
    assert demo_scenario(options(data=path, group_column="label")).data.group_column == "label"
    path.write_text("\ufefflanguage,text,label\nen,a,b\n", encoding="utf-8")
    assert demo_scenario(options(data=path)).data.group_column == "language"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_left_to_its_reader(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.csv"
    path.write_bytes(content)
    assert demo_scenario(options(data=path)).data.path == str(path)


@pytest.mark.parametrize(("devices", "least"), [(2, 2), (3, 3), (4, 4), (5, 4), (50, 4)])
def test_options_go_where_they_belong(devices: int, least: int) -> None:
    scenario = demo_scenario(options(devices=devices, rounds=3, epsilon=2.5))
    assert scenario.population.devices == devices
    assert (scenario.training.rounds, scenario.privacy.epsilon) == (3, 2.5)
    assert scenario.protection.min_devices == least
    assert list(scenario.contradictions()) == []


@contextmanager
def demonstration(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """``llmos demo`` as its own process, in a session of its own, and where it writes."""
    mosquitto_or_skip()
    model_or_skip()
    out = folder / "out"
    tickets = write_tickets(folder / "tickets.csv")
    words = ["demo", "--devices", "2", "--rounds", "2", "--data", str(tickets), "--out", str(out)]
    with (
        (folder / "printed").open("wb") as printed,
        subprocess.Popen(
            [sys.executable, "-m", "shared.command_line", *words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process, out
        finally:
            process.kill()


def nobody_yet_but_the_coordinator(started: list[Process]) -> bool:
    return any(" up " in each.command for each in started)


def the_first_trains(started: list[Process]) -> bool:
    """Coordinator, broker, key holder, two devices and a training process."""
    return len(started) >= 6 and any(TRAINING in each.command for each in started)


@pytest.mark.broker
@pytest.mark.model
@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "far_enough", "code"),
    [
        (signal.SIGINT, the_first_trains, 130),
        (signal.SIGTERM, nobody_yet_but_the_coordinator, 130),
        (signal.SIGKILL, the_first_trains, -signal.SIGKILL),
    ],
)
def test_a_signal_ends_every_process_that_was_started(
    tmp_path: Path,
    number: signal.Signals,
    far_enough: Callable[[list[Process]], bool],
    code: int,
) -> None:
    """And so does a signal that leaves it no time to say goodbye."""
    with demonstration(tmp_path) as (demo, out):
        started = wait_for(
            lambda: all_ if far_enough(all_ := descendants(demo.pid)) else None, "the processes"
        )
        os.kill(demo.pid, number)
        assert demo.wait(PATIENCE_S) == code, (tmp_path / "printed").read_text()
        wait_for(lambda: True if not any(each.alive for each in started) else None, "their end")
    assert not (out / "report.json").exists()
    if number is not signal.SIGKILL:
        assert "every process was ended" in (tmp_path / "printed").read_text()
        logs = [file.read_text() for file in (out / "fleet").glob("*/log")]
        assert not any("Traceback" in log for log in logs)


@pytest.mark.broker
@pytest.mark.model
@pytest.mark.processes
@pytest.mark.slow
def test_a_second_demonstration_replaces_the_first(tmp_path: Path) -> None:
    with demonstration(tmp_path) as (demo, out):
        assert demo.wait(PATIENCE_S) == 0, (tmp_path / "printed").read_text()
        report = json.loads((out / "report.json").read_text())
    assert (report["devices"], report["rounds"], report["transport"]) == (2, 2, "mqtt")
    assert {"data", "start", "first_round", "report"} <= report["stages"].keys()
    assert [entry["reported"] for entry in report["history"]] == [2, 2]
    answers = report["answers"]
    assert answers["local"] + answers["cloud"] == len(answers["examples"]) == 17
    assert answers["cloud"] >= 2
    assert (answers["redacted"], report["language_model"]["stand_in"]) == (2, True)
    assert [each["name"] for each in report["model"]["passes"]][-1] == "int8"
    assert (out / "report.html").exists()
    with demonstration(tmp_path) as (demo, _):
        wait_for(lambda: descendants(demo.pid) or None, "a process")
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(PATIENCE_S) == 130, (tmp_path / "printed").read_text()
    assert not (out / "report.json").exists()
