"""Real agents beside a real coordinator, with finished runs to release and a tiny model for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coordinator.releases import Releasable
from edge_agent.agent import Agent, Trust
from edge_agent.inference.installed import Serving
from edge_agent.participate import Home, Owner
from shared.config import read
from shared.crypto.identity import Identity
from shared.files import digest_of, digest_of_file
from shared.job import Job, plan_run
from shared.key_holder.approvals import Approvals
from shared.models.adapter import Adapter
from shared.models.calibration import Calibration
from shared.transport.memory import Link
from shared.types import DeviceId, Digest, RunId
from shared.wire import codec, topics
from shared.wire.envelope import Post, open_sealed
from shared.wire.messages import BlobRequest, Message
from sim.virtual_time import drive
from tests.support.coordination import Mortal, World
from tests.support.trainers import SeededTrainer

CALIBRATION = Calibration(
    temperature=1.0, threshold=0.5, target_error=0.05, certified_with=0.95, examples=10
)


def finish_run(world: World, name: str, adapter: Adapter, *, at: float | None = None) -> Digest:
    """Have a run behind it that ended with this adapter."""
    digest = world.store.keep(adapter.to_bytes())
    job = read(Job, {"name": name, "privacy": {"noise": "none"}}, source="test")
    plan = plan_run(job, run=RunId(name), shape=adapter.shape, seed=1, simulation=True)
    now = world.time.now() if at is None else at
    world.store.add_run(
        plan.run_id, plan.model_dump_json(), world.store.keep(codec.encode([])), now=now
    )
    world.store.add_milestone(plan.run_id, "finished", {"adapter": digest}, now=now)
    return digest


@dataclass
class Maker:
    """Makes releases out of one model folder, as ``coordinator.registry`` would out of many."""

    folder: Path
    calibration: str = CALIBRATION.model_dump_json()
    failure: Exception | None = None
    made: list[Releasable] = field(default_factory=list)

    @property
    def manifest(self) -> Digest:
        return digest_of_file(self.folder / "manifest.json")

    def __call__(self, releasable: Releasable) -> dict[str, Any]:
        self.made.append(releasable)
        if self.failure is not None:
            raise self.failure
        return {
            "folder": str(self.folder),
            "manifest": self.manifest,
            "calibration": self.calibration,
            "accuracy": 0.75,
        }


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    """Change a model's manifest, and with it the model's name."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


class Device:
    """A device with the real agent; it takes part in no run, since its owner allows none."""

    def __init__(self, world: World, name: str, *, link: Link | None = None) -> None:
        self._world = world
        self._folder = world.folder / "agents" / name
        self.name = DeviceId(name)
        self.home = self._folder / "home"
        self.home.mkdir(parents=True)
        self.identity = Identity.create(self._folder / "identity.key")
        token = world.store.new_token(expires_at=world.time.now() + 1)
        world.store.join(token, self.name, self.identity.public, now=world.time.now())
        Approvals(world.folder / "holder" / "approvals.json").approve(name, self.identity.public)
        self._transport = world.network.attach(name, link)
        self._mortal: Mortal | None = None
        self.released = 0
        """How often the agent said that something new is in force."""
        self.said: list[Message] = []
        """Everything that left the device, in order, over all its lives."""
        listener = world.network.attach(f"listener of {name}")
        listener.open(self._overheard, (topics.up(self.name),))
        self.start()

    @property
    def serving(self) -> Serving | None:
        """What is in force, by the disk."""
        return Serving.load(self.home)

    @property
    def fetched(self) -> list[str]:
        """Digests that were asked for, each once, in order."""
        return list(dict.fromkeys(m.digest for m in self.said if isinstance(m, BlobRequest)))

    @property
    def failures(self) -> Sequence[Exception]:
        """What the present agent took for an event and not for the end."""
        assert self._mortal is not None
        return self._mortal.failures

    @property
    def files(self) -> list[str]:
        """Every file of the home that belongs to a release, relative to it."""
        return sorted(
            str(path.relative_to(self.home))
            for part in ("blobs", "models", "adapters", "serving.json")
            for path in [self.home / part, *(self.home / part).rglob("*")]
            if path.is_file()
        )

    def start(self, *, home: Path | None = None) -> None:
        """Start the agent's process, on another state of its disk if one is given."""
        if home is not None:
            shutil.rmtree(self.home)
            shutil.copytree(home, self.home)
        mortal = Mortal(self._world.time.bench(0.5))
        # Numbered messages are not what is tried here: they live beside the home.
        mortal.actor = self.agent = Agent(
            Home(self.home),
            owner=Owner(self.name, epsilon_budget=1.0),
            trust=Trust(coordinator=self._world.identity.public, key_holder=None, min_devices=2),
            transport=self._transport,
            post=Post(self.identity, self._folder),
            trainer=SeededTrainer(),
            bench=mortal,
            on_release=self._on_release,
        )
        self._mortal = mortal
        drive(mortal, self._transport, self._world.time)

    def cut(self) -> None:
        """End the process, as a power cut would: nothing is said and nothing written."""
        assert self._mortal is not None
        self._mortal.alive = False
        self._transport.close()

    def installed(self, adapter: Digest, manifest: Digest) -> bool:
        """Whether this is in force, whole and unharmed."""
        serving = self.serving
        if serving is None or (serving.adapter, serving.manifest) != (adapter, manifest):
            return False
        folder = self.home / "models" / manifest
        named = json.loads((folder / "manifest.json").read_text())["files"]
        assert digest_of_file(folder / "manifest.json") == manifest
        assert {n: digest_of((folder / n).read_bytes()) for n in named} == {
            n: entry["sha256"] for n, entry in named.items()
        }
        assert digest_of_file(self.home / "adapters" / adapter) == adapter
        return True

    def _on_release(self) -> None:
        self.released += 1

    def _overheard(self, _topic: str, payload: bytes) -> None:
        self.said.append(open_sealed(payload, expected=self.identity.public).message)
