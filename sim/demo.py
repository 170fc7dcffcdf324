"""The demonstration: a private fleet on one machine, from first key to final accuracy."""

from __future__ import annotations

import csv
import importlib.resources
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from coordinator.probe import embed_probe
from shared.config import read_json
from shared.errors import DataError, RoundError
from shared.files import disk_errors
from shared.job import RunPlan
from shared.models.embed_worker import EmbedWorker
from shared.models.encoder import find_base_model
from shared.types import RunId
from sim.fleet_processes import FleetProcesses
from sim.population import Population, deal
from sim.report import Fleet, build_report, write_report
from sim.scenario import Scenario, read_scenario

RUN_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What a person may choose; see ``llmos demo --help``."""

    devices: int
    rounds: int
    epsilon: float
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


def demo_scenario(options: DemoOptions) -> Scenario:
    """The shipped scenario with a person's choices in it.

    Raises:
        ConfigError: the choices contradict each other.
        DataError: the chosen file is missing.
    """
    shipped = importlib.resources.files("sim") / "tickets"
    with importlib.resources.as_file(shipped) as folder:
        scenario = read_scenario(folder / "demo.toml")
        path = options.data or folder / "tickets.csv"
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
            "privacy": scenario.privacy.model_copy(update={"epsilon": options.epsilon}),
            "protection": scenario.protection.model_copy(
                update={"min_devices": min(scenario.protection.min_devices, options.devices)}
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


def tell(options: DemoOptions, progress: Progress) -> dict[str, Any]:
    """Run the demonstration and return its report, also written to ``options.out``.

    Raises:
        LlmOsError: something is missing or failed; no process is left and no report.
    """
    stages = _Stages()
    scenario = demo_scenario(options)
    with stages.stage("data"):
        population = deal(scenario.data, options.devices, seed=options.seed)
        find_base_model(scenario.model.base)
    folder = _fresh(options.out)
    with FleetProcesses(
        folder, seed=options.seed, min_devices=scenario.protection.min_devices
    ) as fleet:
        with stages.stage("start"):
            _start(fleet, population, progress)
        view = _run(fleet, scenario, population, progress, stages)
        fleet.stop()
        with stages.stage("report"):
            task = progress.add_task("training centrally, for comparison", total=1)
            report = _report(fleet, population, view, stages)
            progress.update(task, completed=1)
    report["examples"] = {
        "by_device": {device: len(part) for device, part in population.devices.items()},
        "held_out": len(population.probe),
        "labels": len({example.label for example in population.probe}),
    }
    report["stages"] = {name: round(seconds, 2) for name, seconds in stages.seconds.items()}
    write_report(report, options.out)
    return report


def _fresh(out: Path) -> Path:
    """An empty folder for the fleet; what an earlier demonstration left there goes."""
    folder = out / "fleet"
    if folder.exists() and any(folder.iterdir()) and not (folder / "coordinator").exists():
        raise DataError(f"{folder} holds something else: choose another --out")
    with disk_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        (out / "report.json").unlink(missing_ok=True)
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


def _report(
    fleet: FleetProcesses, population: Population, view: Mapping[str, Any], stages: _Stages
) -> dict[str, Any]:
    store = fleet.store()
    try:
        run = RunId(view["run"])
        plan = read_json(RunPlan, store.run(run).plan, source="plan")
        probe = embed_probe(
            EmbedWorker,
            plan.job.model.base,
            population.probe,
            plan.labels,
            store.folder / "probe-features",
        )
        homes = {device: fleet.device_home(device) for device in population.devices}
        return build_report(Fleet(store, homes, probe, "mqtt"), run, stages=stages.seconds)
    finally:
        store.close()
