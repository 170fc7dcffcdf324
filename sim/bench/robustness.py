"""What hostile devices do to accuracy under each server rule, in the very simulation.

Every figure is the end of a federated run over memory: devices, coordinator and
key holder as they are, a share of the devices poisoning what they learn from or
what they learnt. The mean is the positive control: it has to fail, or else the
attack was none.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from shared.config import read
from shared.processes import Child
from sim.bench.bars import Bar, told
from sim.population import deal
from sim.scenario import DataTable, Scenario

SHOWN: Final = (0.1, 0.2)
"""Shares of hostile devices at which every rule is shown."""

SWEPT: Final = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Shares that are tried in turn until a rule fails."""

FAILS: Final = 0.1
"""A rule fails where accuracy is more than this below its own without hostile devices."""

TOLD: Final = 0.3
"""The rules are told that this share of what they compare may be hostile; the median needs no telling."""

GROUP: Final = 3
"""Devices in a group: small, since one hostile member spoils it."""

FEWEST_DEVICES: Final = 5 * GROUP
"""Multi-Krum compares five groups or more."""

RULES: Final = ("median", "trimmed-mean", "multikrum")
KINDS: Final = ("label-flip", "scaled-update")

_MOST_PROCESSES: Final = 8
"""Each takes about a gigabyte."""

Progress = Callable[[str], None]
Run = Callable[[Scenario, int], Mapping[str, Any]]
"""Runs a scenario with a seed and returns its report."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A rule, and what it compares."""

    rule: str
    grouped: bool

    @property
    def is_told(self) -> bool:
        """Whether the rule goes by a number of hostile updates."""
        return self.rule in ("trimmed-mean", "multikrum")

    def compared(self, devices: int) -> int:
        """Updates or groups that the rule looks at."""
        return devices // GROUP if self.grouped else devices

    def malicious(self, devices: int) -> int:
        """How many of them the rule is told may be hostile; never more than multi-Krum takes."""
        compared = self.compared(devices)
        return max(1, min(round(TOLD * compared), (compared - 3) // 2))


ARMS: Final = (
    Arm("fedavg", grouped=False),
    *(Arm(rule, grouped=False) for rule in RULES),
    *(Arm(rule, grouped=True) for rule in RULES),
)


@dataclass(frozen=True, slots=True)
class World:
    """What all runs have in common."""

    data: DataTable
    base: str
    devices: int
    rounds: int
    labels: int
    examples: int
    """Of a device, on average."""

    def scenario(self, arm: Arm, kind: str = "none", share: float = 0.0) -> Scenario:
        """The scenario of one run.

        Step size and cap follow from the data and from no result: each label's
        weights get a share of about 1 / labels of a gradient, and a device with
        an average number of examples has weight one. Without noise, so that
        nothing but the attack moves a figure.

        Raises:
            ConfigError: there are too few devices.
        """
        malicious = arm.malicious(self.devices)
        if arm.grouped:
            groups = arm.compared(self.devices)
            protection = {"scheme": "public-key", "groups": groups, "min_devices": GROUP}
        else:
            protection = {"scheme": "clear", "min_devices": 2 * malicious + 3}
        tables = {
            "name": "robustness",
            "data": self.data.model_dump(),
            "model": {"base": self.base},
            "population": {"devices": self.devices},
            "training": {
                "rounds": self.rounds,
                "learning_rate": self.labels / 10,
                "examples_cap": self.examples,
            },
            "privacy": {"noise": "none"},
            "protection": protection,
            "server": {"rule": arm.rule, "malicious": malicious},
            "adversary": {"kind": kind, "share": share},
        }
        return read(Scenario, tables, source="scenario of the measurement")


@dataclass(frozen=True, slots=True)
class Cell:
    """What a number of runs, one for each seed, came to."""

    accuracies: tuple[float, ...]
    rejected: int
    """Rounds, of all runs, whose adapter the coordinator's probe set turned away."""

    @property
    def mean(self) -> float:
        """Mean accuracy over the seeds."""
        return statistics.fmean(self.accuracies)


@dataclass(slots=True)
class Series:
    """One rule under one attack, by share of hostile devices; 0 is without attack."""

    arm: Arm
    kind: str
    cells: dict[float, Cell]

    def fails(self, share: float) -> bool:
        """Whether accuracy at ``share`` is too far below that at 0."""
        return self.cells[0.0].mean - self.cells[share].mean > FAILS

    @property
    def holds_to(self) -> float:
        """The largest share below every one at which the rule failed."""
        ends = self.fails_from
        return max(share for share in self.cells if ends is None or share < ends)

    @property
    def fails_from(self) -> float | None:
        """The smallest share at which the rule failed; None if it never did."""
        return min((share for share in self.cells if self.fails(share)), default=None)

    def sweep(self, measure: Callable[[float], Cell]) -> None:
        """Measure what is shown, then on until the rule fails, then halfway back once."""
        for share in SWEPT:
            if share in SHOWN or self.fails_from is None:
                self.cells[share] = measure(share)
        if self.fails_from is not None:
            between = round((self.holds_to + self.fails_from) / 2, 4)
            self.cells[between] = measure(between)


@dataclass(slots=True)
class _Tally:
    """Counts simulations for whoever watches."""

    progress: Progress
    done: int = 0
    began: float = field(default_factory=time.perf_counter)

    def finished(self, what: str) -> None:
        self.done += 1
        self.progress(f"{self.done} simulations; last: {what}")


def bench_robustness(
    data: DataTable, *, base: str, devices: int, rounds: int, seeds: int, progress: Progress
) -> dict[str, Any]:
    """Measure every rule under both attacks.

    Args:
        data: Where the examples come from.
        base: Folder or hub id of the encoder.
        devices: At least :data:`FEWEST_DEVICES`.
        rounds: Of every run.
        seeds: Every figure is a mean over the seeds 1, 2, … ``seeds``, each with its
            own split, hostile devices and groups.
        progress: Told what has been done.

    Returns:
        JSON values: ``rows``, one for each rule and attack, and ``bars`` with the control.

    Raises:
        LlmOsError: the data cannot be used, or a run failed.
    """
    dealt = deal(data, devices, seed=1)
    parts = [*dealt.devices.values(), dealt.probe]
    world = World(
        data=data,
        base=base,
        devices=devices,
        rounds=rounds,
        labels=len({example.label for part in parts for example in part}),
        examples=math.ceil(sum(map(len, dealt.devices.values())) / devices),
    )
    tally = _Tally(progress)
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as folder:
        fleet = _Processes(min(os.cpu_count() or 1, _MOST_PROCESSES), Path(folder))
        try:
            series, beside = _measure(world, fleet.run, fleet.threads, tally, range(1, seeds + 1))
        finally:
            fleet.close()
    return _result(world, series, seeds=seeds, tally=tally, **beside)


class _Processes:
    """Processes that simulate side by side, each for one thread at a time."""

    def __init__(self, count: int, folder: Path) -> None:
        self._folder = folder
        self._children = [Child("sim.bench.simulation_worker") for _ in range(count)]
        self._idle: SimpleQueue[Child] = SimpleQueue()
        for child in self._children:
            child.start()
            self._idle.put(child)
        self.threads = ThreadPoolExecutor(count, thread_name_prefix="simulations")

    def run(self, scenario: Scenario, seed: int) -> Mapping[str, Any]:
        child = self._idle.get()
        try:
            report: Mapping[str, Any] = child.call(
                "simulate", scenario=scenario.model_dump(), seed=seed, folder=str(self._folder)
            )
        finally:
            self._idle.put(child)
        return report

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        for child in self._children:
            child.close()  # whoever waits for its answer hears of its death
        self.threads.shutdown(wait=True)


def _measure(
    world: World, run: Run, threads: ThreadPoolExecutor, tally: _Tally, seeds: Sequence[int]
) -> tuple[list[Series], dict[str, Any]]:
    """Every series, and what the runs without hostile devices say beside."""

    def cell(arm: Arm, kind: str = "none", share: float = 0.0) -> Cell:
        reports = []
        for seed in seeds:
            reports.append(run(world.scenario(arm, kind, share), seed))
            tally.finished(f"{_name(arm)}, {kind} {share:.0%}, seed {seed}")
        return _cell(reports)

    def swept(arm: Arm, kind: str, clean: Cell) -> Series:
        series = Series(arm, kind, {0.0: clean})
        series.sweep(lambda share: cell(arm, kind, share))
        return series

    mean = ARMS[0]
    # First the mean, a thread for each seed: whoever embeds a seed's texts does so for all others.
    first = _gathered([threads.submit(run, world.scenario(mean), seed) for seed in seeds])
    tally.done += len(first)
    clean = dict(
        zip(ARMS[1:], _gathered([threads.submit(cell, arm) for arm in ARMS[1:]]), strict=True)
    ) | {mean: _cell(first)}
    series = _gathered(
        [threads.submit(swept, arm, kind, clean[arm]) for kind in KINDS for arm in ARMS]
    )
    central = statistics.fmean(report["accuracy"]["central"]["all"] for report in first)
    return series, {"accuracy_central": round(central, 4), "base_model": first[0]["base_model"]}


def _gathered(futures: Sequence[Future[Any]]) -> list[Any]:
    return [future.result() for future in futures]


def _cell(reports: Sequence[Mapping[str, Any]]) -> Cell:
    return Cell(
        tuple(report["accuracy"]["after"]["all"] for report in reports),
        sum(not entry.get("accepted") for report in reports for entry in report["history"]),
    )


def _name(arm: Arm) -> str:
    return f"{arm.rule} {'of groups' if arm.grouped else 'of devices'}"


def _result(
    world: World, series: Sequence[Series], *, seeds: int, tally: _Tally, **beside: Any
) -> dict[str, Any]:
    control = next(s for s in series if s.arm.rule == "fedavg" and s.kind == "scaled-update")
    share = max(SHOWN)
    lost = control.cells[0.0].mean - control.cells[share].mean
    return told(
        "robustness",
        [Bar(f"accuracy that {share:.0%} scaled updates cost the mean", lost, FAILS)],
        data=Path(world.data.path).name,
        labels=world.labels,
        devices=world.devices,
        examples_per_device=world.examples,
        rounds=world.rounds,
        seeds=seeds,
        group=GROUP,
        factor=world.scenario(control.arm).adversary.factor,
        shown=list(SHOWN),
        fails_below=FAILS,
        simulations=tally.done,
        seconds=round(time.perf_counter() - tally.began, 1),
        rows=[_row(world, each) for each in series],
        **beside,
    )


def _row(world: World, series: Series) -> dict[str, Any]:
    arm = series.arm
    return {
        "rule": arm.rule,
        "over": "groups" if arm.grouped else "devices",
        "compared": arm.compared(world.devices),
        "malicious": arm.malicious(world.devices) if arm.is_told else None,
        "adversary": series.kind,
        "accuracy": {
            f"{share:g}": round(cell.mean, 4) for share, cell in sorted(series.cells.items())
        },
        "by_seed": {
            f"{share:g}": list(cell.accuracies) for share, cell in sorted(series.cells.items())
        },
        "rejected_rounds": {
            f"{share:g}": cell.rejected for share, cell in sorted(series.cells.items())
        },
        "holds_to": series.holds_to,
        "fails_from": series.fails_from,
    }
