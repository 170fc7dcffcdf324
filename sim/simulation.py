"""Run a scenario: coordinator, key holder and every device, in one process, on virtual time.

The actors are the real ones, with their real stores, ledgers and outboxes in a
temporary folder. Only transport, clock and release seeds are replaced; training,
embedding and encrypted sums run in the same child processes as on real machines.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from coordinator.coordinator import Coordinator
from coordinator.federation.rounds import AdapterApplied, UpdateStored
from coordinator.probe import prepare_probe
from coordinator.store.store import ENDINGS, Store
from coordinator.submission import submit
from edge_agent.agent import Agent, Trust
from edge_agent.examples import ExampleStore
from edge_agent.participate import Home, Owner
from edge_agent.training.trainer import ChildTrainer, Trained, Trainer, TrainRequest
from shared.crypto.identity import Identity
from shared.crypto.sum_worker import SumWorker
from shared.data_files import Example
from shared.errors import RoundError
from shared.job import RunPlan
from shared.key_holder.approvals import Approvals
from shared.key_holder.holder import KeyHolder
from shared.models.model_worker import ModelWorker
from shared.transport.memory import Link, MemoryNetwork, MemoryTransport
from shared.types import DeviceId, PublicKey
from shared.wire import topics
from shared.wire.envelope import Post
from sim.adversary import ScaledTrainer, draw_hostile, with_flipped_labels
from sim.population import Population, deal
from sim.report import Fleet, build_report
from sim.scenario import AdversaryTable, Scenario
from sim.virtual_time import VirtualTime, drive

LIMIT_S: Final = 30 * 24 * 3600.0
"""A run that has not ended after thirty virtual days never will."""

Watch = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done, and of how much."""


def simulation_master(seed: int) -> bytes:
    """The secret all simulated devices derive their release seeds from. Not secret at all."""
    return hashlib.sha256(f"llmos simulation {seed}".encode()).digest()


class Workshop:
    """What may outlast one simulation, so that the next begins at once and ends with the same report.

    That is the training processes, which import for seconds, and what the frozen
    base makes of texts.
    """

    def __init__(self, processes: int, *, features: Path | None = None) -> None:
        """Describe it; :meth:`start` starts the processes.

        Args:
            processes: How many train side by side.
            features: A folder that keeps what was made of texts for whoever has
                the same. Without one every device keeps its own, as real ones do.
        """
        self.features = features
        self.trainers = [ChildTrainer() for _ in range(processes)]

    def start(self) -> None:
        """Start the processes, so that their imports overlap with other work."""
        for trainer in self.trainers:
            trainer.start()

    def close(self) -> None:
        """End the processes."""
        for trainer in self.trainers:
            trainer.close()


class _SharedTrainer:
    """One device's view of a training child that serves several; it outlives each of them."""

    def __init__(self, child: ChildTrainer) -> None:
        self._child = child

    def prepare(self, plan: RunPlan, store_path: Path, cache_folder: Path) -> int:
        return self._child.prepare(plan, store_path, cache_folder)

    def train(self, request: TrainRequest) -> Trained:
        return self._child.train(request)

    def close(self) -> None:
        """The workshop ends its processes itself."""


Inspect = Callable[[Fleet, RunPlan, Mapping[str, Any]], None]
"""Called with what a finished run left behind, its plan and its report, before all of it goes."""


def simulate(
    scenario: Scenario,
    *,
    seed: int,
    watch: Watch,
    workshop: Workshop | None = None,
    population: Population | None = None,
    inspect: Inspect | None = None,
) -> dict[str, Any]:
    """Run ``scenario`` and return its report.

    Args:
        scenario: What to run.
        seed: Everything random follows from it.
        watch: Told about progress.
        workshop: Used and left to further simulations; without one it has its own.
        population: Who has which examples; without one the scenario's data are dealt out.
        inspect: Shown the run's stores while they are there.

    Raises:
        LlmOsError: the scenario cannot run, or its run failed; nothing is left behind.
    """
    began = time.perf_counter()
    population = population or deal(scenario.data, scenario.population.devices, seed=seed)
    hostile = draw_hostile(scenario.adversary, list(population.devices), seed=seed)
    if scenario.adversary.kind == "label-flip":
        population = with_flipped_labels(population, hostile)
    with ExitStack() as stack:
        workspace = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmos-sim-")))
        if workshop is None:
            workshop = Workshop(min(os.cpu_count() or 1, len(population.devices)))
            stack.callback(workshop.close)
        workshop.start()
        if workshop.features is not None:
            _keep_features(workspace, population, workshop.features)
        trainers = _trainers(workshop, scenario.adversary, population, hostile)
        world = _World(scenario, population, trainers, seed=seed, workspace=workspace, stack=stack)
        dealt = time.perf_counter()
        world.run(watch)
        ran = time.perf_counter()
        plan, store = world.plan, world.store
        probe = None
        if plan.labels:
            cache = store.folder / "probe-features"
            probe = prepare_probe(ModelWorker, plan, population.probe, cache)
            stack.callback(probe.close)
        fleet = Fleet(store, world.homes, probe, transport="memory")
        stages = {"prepare": dealt - began, "run": ran - dealt}
        report = build_report(fleet, plan.run_id, stages=stages)
        report["stages"]["report"] = round(time.perf_counter() - ran, 2)
        report["examples"] = {
            "by_device": {device: len(part) for device, part in population.devices.items()},
            "held_out": len(population.probe),
            "labels": len(plan.labels),
        }
        report["adversary"] = scenario.adversary.model_dump() | {"devices": hostile}
        report["scenario"] = scenario.model_dump()
        if inspect is not None:
            inspect(fleet, plan, report)
        return report


class _World:
    """Everything a scenario consists of, wired together."""

    def __init__(
        self,
        scenario: Scenario,
        population: Population,
        trainers: Mapping[DeviceId, Trainer],
        *,
        seed: int,
        workspace: Path,
        stack: ExitStack,
    ) -> None:
        self._scenario = scenario
        self._workspace = workspace
        self._time = VirtualTime(workers=max(2, os.cpu_count() or 1))
        stack.callback(self._time.close)
        rng = np.random.default_rng([seed, 0x11AB])
        self._network = MemoryNetwork(self._time.schedule, rng, now=self._time.now)
        self._link = Link(latency_s=scenario.network.latency_s, loss=scenario.network.loss)
        self.store = Store(
            f"sqlite:///{_made(workspace / 'coordinator') / 'store.db'}", workspace / "coordinator"
        )
        stack.callback(self.store.close)
        self.plan: RunPlan = submit(
            self.store, scenario.job(), population.probe, seed=seed, simulation=True, now=0.0
        )
        coordinator_key = Identity.create(workspace / "coordinator" / "identity.key")
        holder_key = Identity.create(_made(workspace / "key-holder") / "identity.key")
        self.homes: dict[DeviceId, Home] = {}
        slowness = np.linspace(1.0, scenario.population.slowest, len(population.devices))
        for number, (device, examples) in enumerate(population.devices.items()):
            self._add_device(
                device,
                examples,
                trainer=trainers[device],
                work_s=scenario.population.train_s * float(slowness[number]),
                owner=Owner(device, math.inf, simulation_seed=simulation_master(seed)),
                trust=Trust(
                    coordinator=coordinator_key.public,
                    key_holder=holder_key.public,
                    min_devices=scenario.protection.min_devices,
                    clear_runs=True,
                ),
            )
        self._add_key_holder(holder_key, coordinator_key.public, stack)
        self._add_coordinator(coordinator_key, holder_key.public, stack)

    def run(self, watch: Watch) -> None:
        """Let the run happen.

        Raises:
            RoundError: it did not end within thirty virtual days.
        """
        progress = _Progress(self.store, self.plan, len(self.homes), watch)
        if not self._time.run(until=progress.is_over, limit_s=LIMIT_S):
            raise RoundError("the simulated run came to a standstill")

    def _add_device(
        self,
        device: DeviceId,
        examples: list[Example],
        *,
        trainer: Trainer,
        work_s: float,
        owner: Owner,
        trust: Trust,
    ) -> None:
        home = Home(_made(self._workspace / "devices" / device))
        ExampleStore(home.examples).add(examples)
        identity = Identity.create(home.folder / "identity.key")
        token = self.store.new_token(expires_at=1.0)
        self.store.join(token, device, identity.public, now=0.0)
        Approvals(self._workspace / "key-holder" / "approvals.json").approve(
            device, identity.public
        )
        transport = self._network.attach(device, self._link)
        agent = Agent(
            home,
            owner=owner,
            trust=trust,
            transport=transport,
            post=Post(identity, home.folder),
            trainer=trainer,
            bench=self._time.bench(work_s),
        )
        self.homes[device] = home
        drive(agent, transport, self._time)

    def _add_key_holder(self, identity: Identity, coordinator: PublicKey, stack: ExitStack) -> None:
        home = self._workspace / "key-holder"
        adder = SumWorker()
        stack.callback(adder.close)
        transport: MemoryTransport = self._network.attach(topics.KEY_HOLDER)
        holder = KeyHolder(
            home,
            transport=transport,
            post=Post(identity, home),
            coordinator=coordinator,
            min_devices=self._scenario.protection.min_devices,
            bench=self._time.bench(0.1),
            adder=adder,
        )
        drive(holder, transport, self._time)

    def _add_coordinator(self, identity: Identity, holder: PublicKey, stack: ExitStack) -> None:
        adder = SumWorker()
        stack.callback(adder.close)
        transport = self._network.attach("coordinator")
        coordinator = Coordinator(
            store=self.store,
            transport=transport,
            post=Post(identity, self._workspace / "coordinator"),
            key_holder=holder,
            bench=self._time.bench(0.1),
            adder=adder,
            make_model=ModelWorker,
        )
        drive(coordinator, transport, self._time)


class _Progress:
    """Turns committed transitions into progress, and knows when the run is over."""

    def __init__(self, store: Store, plan: RunPlan, devices: int, watch: Watch) -> None:
        self._plan = plan
        self._devices = devices
        self._watch = watch
        self._seen = 0
        self._over = False
        store.subscribe(self._changed)
        watch("embedding examples", 0, 1)

    def is_over(self) -> bool:
        """Whether a last milestone was committed."""
        return self._over

    def _changed(self, what: object) -> None:
        match what:
            case UpdateStored() | AdapterApplied():
                total = self._plan.job.training.rounds * (self._devices + 1)
                self._seen += 1
                self._watch("rounds", self._seen, total)
            case str() as kind if kind in ENDINGS:
                self._over = True
            case _:
                pass


def _trainers(
    workshop: Workshop,
    adversary: AdversaryTable,
    population: Population,
    hostile: Collection[DeviceId],
) -> dict[DeviceId, Trainer]:
    """What each device trains with: the workshop's processes in turn."""
    trainers: dict[DeviceId, Trainer] = {}
    for device, child in zip(population.devices, itertools.cycle(workshop.trainers), strict=False):
        trainers[device] = _SharedTrainer(child)
        if adversary.kind == "scaled-update" and device in hostile:
            trainers[device] = ScaledTrainer(trainers[device], adversary.factor)
    return trainers


def _keep_features(workspace: Path, population: Population, features: Path) -> None:
    """Let devices and coordinator keep features in one folder; files are named by their texts."""
    _made(features)
    _made(workspace / "coordinator")
    (workspace / "coordinator" / "probe-features").symlink_to(features)
    for device in population.devices:
        Home(_made(workspace / "devices" / device)).features.symlink_to(features)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
