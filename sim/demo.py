"""The demonstration: a private fleet on one machine, from first key to final accuracy."""

from __future__ import annotations

import csv
import importlib.resources
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.progress import Progress

from coordinator.probe import prepare_probe
from edge_agent.inference.installed import ANSWERS
from shared.config import read_json
from shared.errors import DataError, RoundError
from shared.files import disk_errors, write_durably
from shared.job import RunPlan
from shared.models.encoder import find_base_model
from shared.models.model_worker import ModelWorker
from shared.types import Digest, RunId
from sim.fleet_processes import FleetProcesses
from sim.population import Population, deal
from sim.questions import (
    ask_devices,
    draw_questions,
    released_model,
    told,
    wait_for_model,
    wait_for_release,
)
from sim.report import Fleet, build_report, write_report
from sim.scenario import Scenario, read_scenario
from sim.stand_in import StandIn

RUN_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What a person may choose; see ``llmos demo --help``."""

    devices: int
    rounds: int
    epsilon: float
    noise: Literal["local", "distributed"]
    data: Path | None
    text_column: str
    label_column: str
    group_column: str
    seed: int
    out: Path


@dataclass(slots=True)
class _Stages:
    """How long each part of the story took, in seconds."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


def shipped(name: str) -> Path:
    """A file of the support tickets."""
    return Path(str(importlib.resources.files("sim") / "tickets" / name))


def demo_scenario(options: DemoOptions) -> Scenario:
    """The shipped scenario with a person's choices in it.

    Raises:
        ConfigError: the choices contradict each other.
        DataError: the chosen file is missing.
    """
    scenario = read_scenario(shipped("demo.toml"))
    path = options.data or shipped("tickets.csv")
    group = options.group_column or ("language" if "language" in _columns(path) else "")
    data = scenario.data.model_copy(
        update={
            "path": str(path),
            "text_column": options.text_column,
            "label_column": options.label_column,
            "group_column": group,
        }
    )
    return scenario.model_copy(
        update={
            "data": data,
            "population": scenario.population.model_copy(update={"devices": options.devices}),
            "training": scenario.training.model_copy(update={"rounds": options.rounds}),
            "privacy": scenario.privacy.model_copy(
                update={"epsilon": options.epsilon, "noise": options.noise}
            ),
            "protection": scenario.protection.model_copy(
                update={
                    "min_devices": min(scenario.protection.min_devices, options.devices),
                    "bits": 16 if options.noise == "distributed" else scenario.protection.bits,
                }
            ),
        }
    )


def _columns(path: Path) -> list[str]:
    """The header of a CSV file; nothing for other files, whose reader says what is wrong."""
    if path.suffix.lower() != ".csv" or not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])
    except UnicodeDecodeError:
        return []


Keep = Callable[[dict[str, Any], FleetProcesses], None]


def tell(options: DemoOptions, progress: Progress, *, keep: Keep | None = None) -> dict[str, Any]:
    """Run the demonstration and return its report, also written to ``options.out``.

    ``keep`` is called with the report while everything still runs; when it returns, all ends.

    Raises:
        LlmOsError: something is missing or failed; no process is left and no report.
    """
    stages = _Stages()
    scenario = demo_scenario(options)
    with stages.stage("data"):
        population = deal(scenario.data, options.devices, seed=options.seed)
        find_base_model(scenario.model.base)
    folder = _fresh(options.out)
    with (
        StandIn(options.out) as stand_in,
        FleetProcesses(
            folder, seed=options.seed, min_devices=scenario.protection.min_devices
        ) as fleet,
    ):
        with stages.stage("start"):
            _start(fleet, population, progress)
        view = _run(fleet, scenario, population, progress, stages)
        with stages.stage("release"):
            _release(fleet, population, view, progress)
        with stages.stage("language_model"):
            task = progress.add_task("training a small language model as a stand-in", total=1)
            fleet.restart_coordinator("--model", str(stand_in.wait()))
            card = wait_for_model(fleet)
            progress.update(task, completed=1)
        with stages.stage("answers"):
            asked = _ask(fleet, population, options.seed, progress)
        with stages.stage("report"):
            task = progress.add_task("training centrally, for comparison", total=1)
            report = _report(fleet, population, view, asked, stages)
            report["language_model"] = {
                "name": card["id"],
                "stand_in": card.get("stand_in", False),
            }
            progress.update(task, completed=1)
        report["examples"] = {
            "by_device": {device: len(part) for device, part in population.devices.items()},
            "held_out": len(population.probe),
            "labels": len({example.label for example in population.probe}),
        }
        report["stages"] = {name: round(seconds, 2) for name, seconds in stages.seconds.items()}
        write_report(report, options.out)
        if keep is not None:
            keep(report, fleet)
    return report


def _fresh(out: Path) -> Path:
    """An empty folder for the fleet; what an earlier demonstration left there goes."""
    folder = out / "fleet"
    if folder.exists() and any(folder.iterdir()) and not (folder / "coordinator").exists():
        raise DataError(f"{folder} holds something else: choose another --out")
    with disk_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("report.json", "report.html"):
            (out / name).unlink(missing_ok=True)
        folder.mkdir(parents=True)
    return folder


def _start(fleet: FleetProcesses, population: Population, progress: Progress) -> None:
    task = progress.add_task(
        "starting coordinator, broker, key holder", total=1 + 2 * len(population.devices)
    )
    fleet.start_coordinator()
    progress.advance(task)
    for device, examples in population.devices.items():
        progress.update(task, description=f"{device} makes its key and joins")
        fleet.add_device(device, examples)
        progress.advance(task)
    for device in population.devices:
        progress.update(task, description=f"starting {device}")
        fleet.start_device(device)
        progress.advance(task)
    progress.update(task, description=f"{len(population.devices)} devices joined and started")


def _run(
    fleet: FleetProcesses,
    scenario: Scenario,
    population: Population,
    progress: Progress,
    stages: _Stages,
) -> Mapping[str, Any]:
    job = scenario.job()
    devices, rounds = len(population.devices), job.training.rounds
    embedding = progress.add_task("embedding the public held-out set", total=1)
    learning = progress.add_task("round 1: reading texts, training", total=rounds * (devices + 1))
    began = time.perf_counter()
    marks: dict[str, float] = {}

    def watch(view: Mapping[str, Any]) -> None:
        if view["rounds"] and "embed" not in marks:
            marks["embed"] = time.perf_counter() - began
            progress.update(embedding, completed=1)
        if len(view["rounds"]) > 1 and "first" not in marks:
            marks["first"] = time.perf_counter() - began
        done = sum(r["reported"] + bool(r["accuracy"]) for r in view["rounds"])
        text = "round 1: reading texts, training"
        judged = [r for r in view["rounds"] if r["accuracy"]]
        if judged:
            number = min(judged[-1]["round"] + 1, rounds)
            text = f"round {number}: accuracy so far {judged[-1]['accuracy']['']:.3f}"
        progress.update(learning, completed=done, description=text)

    run = fleet.submit(job, population.probe)["run"]
    view = fleet.wait_for_run(run, watch=watch, timeout_s=RUN_TIMEOUT_S)
    total = time.perf_counter() - began
    embed = marks.get("embed", 0.0)
    first = marks.get("first", total)
    stages.seconds |= {
        "embed": embed,
        "first_round": first - embed,
        "other_rounds": total - first,
    }
    if view["state"] != "finished":
        raise RoundError(f"the run {view['state']}: {view['reason']}")
    return view


def _release(
    fleet: FleetProcesses,
    population: Population,
    view: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Let every device install what was learnt, and know the shop's answers."""
    devices = list(population.devices)
    task = progress.add_task("quantising, calibrating, installing on devices", total=len(devices))
    answers = shipped("answers.csv")
    for device in devices:
        write_durably(fleet.home(device) / ANSWERS, answers.read_bytes())
    wait_for_release(
        fleet,
        devices,
        RunId(view["run"]),
        Digest(view["adapter"]),
        lambda ready: progress.update(task, completed=ready),
    )


def _ask(
    fleet: FleetProcesses, population: Population, seed: int, progress: Progress
) -> list[dict[str, Any]]:
    questions = draw_questions(population.probe, shipped("out_of_scope.csv"), seed=seed)
    task = progress.add_task("asking the devices", total=len(questions))
    return ask_devices(
        fleet,
        list(population.devices),
        questions,
        lambda answered: progress.update(task, completed=answered),
    )


def _report(
    fleet: FleetProcesses,
    population: Population,
    view: Mapping[str, Any],
    asked: Sequence[Mapping[str, Any]],
    stages: _Stages,
) -> dict[str, Any]:
    store = fleet.store()
    try:
        run = RunId(view["run"])
        plan = read_json(RunPlan, store.run(run).plan, source="plan")
        cache = store.folder / "probe-features"
        probe = prepare_probe(ModelWorker, plan, population.probe, cache)
        homes = {device: fleet.device_home(device) for device in population.devices}
        report = build_report(Fleet(store, homes, probe, "mqtt"), run, stages=stages.seconds)
        report["model"], calibration = released_model(store, run)
        report["answers"] = told(asked, calibration)
        return report
    finally:
        store.close()
