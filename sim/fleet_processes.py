"""A fleet of real processes on this machine, for the demonstration and for tests.

Everything runs through the same command lines that operators use. Whatever
happens to this process, nothing it started outlives it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final, Self

from coordinator.commands import Client
from coordinator.store.store import ENDINGS, Store
from edge_agent.examples import ExampleStore
from edge_agent.membership import join
from edge_agent.participate import Home
from shared.crypto.identity import Identity, fingerprint, format_public
from shared.data_files import Example
from shared.errors import ChildDied
from shared.job import Job
from shared.key_holder.approvals import Approvals
from shared.processes import die_with_parent
from shared.types import DeviceId
from sim.simulation import simulation_master

START_S: Final = 60.0
"""Longest wait for a process to say that it is ready, on a slow machine."""

STOP_S: Final = 10.0

COORDINATOR: Final = "coordinator"
KEY_HOLDER: Final = "key-holder"


def start_llmos(
    command: Sequence[str], log: IO[bytes], *, nice: int = 0
) -> subprocess.Popen[bytes]:
    """Start ``llmos`` as a process that ends with this one; what it says goes to ``log``."""
    parent = os.getpid()

    def in_the_child() -> None:
        die_with_parent(parent)
        os.nice(nice)

    return subprocess.Popen(  # noqa: S603  our own command line
        [sys.executable, "-m", "shared.command_line", *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C comes to us, and we end the others in order
        preexec_fn=in_the_child,  # noqa: PLW1509  two system calls
    )


class FleetProcesses:
    """Coordinator with broker, key holder and devices, by name."""

    def __init__(self, folder: Path, *, seed: int, min_devices: int) -> None:
        """Describe a fleet; nothing is started yet.

        Args:
            folder: Homes and logs of all processes; must not exist, or be empty.
            seed: The devices' repeatable noise follows from it.
            min_devices: Fewest devices in an opened sum, for holder and devices.
        """
        self.folder = folder
        self._seed = seed
        self._min_devices = min_devices
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, Sequence[str]] = {}
        self._connections = ExitStack()
        self.client: Client
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Self:
        """Nothing happens before the first process is asked for."""
        return self

    def __exit__(self, *_: object) -> None:
        """End every process, devices first."""
        self.stop()

    def home(self, name: str) -> Path:
        """A process's home folder."""
        return self.folder / name

    def device_home(self, device: DeviceId) -> Home:
        """A device's home."""
        return Home(self.home(device))

    def store(self) -> Store:
        """The coordinator's store, opened beside it."""
        home = self.home(COORDINATOR)
        return Store(f"sqlite:///{home / 'store.db'}", home)

    def start_coordinator(self) -> None:
        """Start the coordinator with its broker, then the key holder.

        Raises:
            ChildDied: one of them ended, with the end of its log.
        """
        holder = Identity.load_or_create(self.home(KEY_HOLDER) / "identity.key")
        self._start(
            COORDINATOR,
            [
                *["up", "--port", "0", "--broker-port", "0"],
                *["--key-holder", format_public(holder.public)],
            ],
        )
        self._learn_where()
        # From now on at the same ports, so that whoever is restarted finds the others.
        port = self.ready["url"].rpartition(":")[2]
        self._commands[COORDINATOR] = [
            *["up", "--port", port, "--broker-port", str(self.ready["broker_port"])],
            *["--key-holder", format_public(holder.public)],
        ]
        coordinator = Identity.load(self.home(COORDINATOR) / "identity.key")
        self._start(
            KEY_HOLDER,
            [
                *["keyholder", "run", "--broker", f"127.0.0.1:{self.ready['broker_port']}"],
                *["--coordinator", format_public(coordinator.public)],
                *["--min-devices", str(self._min_devices)],
            ],
        )

    def add_device(self, device: DeviceId, examples: Sequence[Example]) -> None:
        """Let a device join, be approved by the key holder's operator, and get its examples."""
        token = self.client.post("/api/v1/devices/tokens", {})["token"]
        holder = Identity.load(self.home(KEY_HOLDER) / "identity.key")
        join(
            self.home(device),
            self.ready["url"],
            token,
            name=device,
            key_holder=fingerprint(holder.public),
            min_devices=self._min_devices,
            epsilon_budget=None,
            clear_runs=True,
            simulation_seed=simulation_master(self._seed).hex(),
        )
        identity = Identity.load(self.home(device) / "identity.key")
        approvals = Approvals(self.home(KEY_HOLDER) / "approvals.json")
        approvals.approve(device, identity.public)
        ExampleStore(self.device_home(device).examples).add(examples)

    @property
    def devices(self) -> Sequence[DeviceId]:
        """Every device that was started, in that order."""
        others = (COORDINATOR, KEY_HOLDER)
        return [DeviceId(name) for name in self._commands if name not in others]

    def start_device(self, device: DeviceId) -> None:
        """Start a device's agent."""
        self._start(device, ["edge", "run"], wait=False)

    def submit(self, job: Job, probe: Sequence[Example]) -> dict[str, Any]:
        """Submit a job, as ``llmos run submit`` does; its noise is repeatable."""
        body = {
            "job": job.model_dump(),
            "probe": [[e.text, e.label, e.group] for e in probe],
            "seed": self._seed,
            "simulation": True,
        }
        return dict(self.client.post("/api/v1/runs", body))

    def wait_for_run(
        self, run: str, *, watch: Callable[[Mapping[str, Any]], None], timeout_s: float
    ) -> dict[str, Any]:
        """Follow a run until it is over.

        Raises:
            ChildDied: a process ended meanwhile, or the run took too long.
        """
        view: dict[str, Any] = {}

        def over() -> bool:
            view.update(self.client.get(f"/api/v1/runs/{run}"))
            watch(view)
            return view["state"] in ENDINGS

        if not self.wait_until(over, timeout_s=timeout_s):
            raise ChildDied(f"run {run} was not over after {timeout_s:.0f} s")
        return view

    def wait_until(self, holds: Callable[[], bool], *, timeout_s: float) -> bool:
        """Ask again and again until something holds; whether it did in time.

        Raises:
            ChildDied: a process ended meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if holds():
                return True
            self.check()
            time.sleep(0.25)
        return False

    def check(self) -> None:
        """Raise ChildDied if a process has ended that should be running."""
        for name in self.ended():
            status = self._processes[name].poll()
            raise ChildDied(f"{name} ended (status {status}):\n{self.last_words(name)}")

    def ended(self) -> Sequence[str]:
        """The processes that have ended and should be running."""
        return [name for name, process in self._processes.items() if process.poll() is not None]

    def kill(self, name: str) -> None:
        """End one process the hard way, as a crash or a power cut would."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def restart(self, name: str) -> None:
        """Start a process that was killed, with the same command line."""
        self._start(name, self._commands[name], wait=name == COORDINATOR)

    def restart_coordinator(self, *options: str) -> None:
        """End the coordinator in order and start it again, with more options.

        Raises:
            ChildDied: it ended, with the end of its log.
        """
        process = self._processes.pop(COORDINATOR)
        process.send_signal(signal.SIGTERM)
        process.wait(START_S)
        self._commands[COORDINATOR] = [*self._commands[COORDINATOR], *options]
        self._start(COORDINATOR, self._commands[COORDINATOR])
        self._learn_where()

    def pid(self, name: str) -> int:
        """Process id of a running process."""
        return self._processes[name].pid

    def stop(self) -> None:
        """End every process: ask, wait, then kill what is left."""
        self._connections.close()
        names = sorted(self._processes, key=lambda name: (name == COORDINATOR, name == KEY_HOLDER))
        for name in names:
            if self._processes[name].poll() is None:
                self._processes[name].send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for name in names:
            process = self._processes.pop(name)
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, name: str, command: Sequence[str], *, wait: bool = True) -> None:
        self._commands[name] = command
        home = self.home(name)
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        (home / "ready.json").unlink(missing_ok=True)
        with (home / "log").open("ab") as log:
            self._processes[name] = start_llmos([*command, "--home", str(home)], log)
        if wait:
            self._wait_until_ready(name)

    def _wait_until_ready(self, name: str) -> None:
        deadline = time.monotonic() + START_S
        while not (self.home(name) / "ready.json").exists():
            self.check()
            if time.monotonic() > deadline:
                raise ChildDied(f"{name} was not ready after {START_S:.0f} s")
            time.sleep(0.05)

    def _learn_where(self) -> None:
        self.ready = json.loads((self.home(COORDINATOR) / "ready.json").read_text())
        self.client = Client.of_home(self.home(COORDINATOR), self.ready["url"])
        self._connections.callback(self.client.close)

    def last_words(self, name: str) -> str:
        """The end of a process's log."""
        lines = (self.home(name) / "log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-12:])
