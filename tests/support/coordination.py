"""A real coordinator on virtual time, among devices that do as a test tells them.

Coordinator, conductor, store, fleet, wire, ciphers, sum worker and key holder are
the real ones. Only the encoder is replaced, by fixed features, and the agents, by
:class:`ScriptedDevice`, which speaks the real protocol and sends what it is given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from coordinator.coordinator import Coordinator
from coordinator.federation.rounds import Planned, Transition, UpdateStored
from coordinator.inference.engine import Engine
from coordinator.inference.front_desk import FrontDesk
from coordinator.probe import MakeModel
from coordinator.releases import MakeRelease
from coordinator.store.store import Store
from coordinator.submission import submit
from coordinator.watch.sightings import Sightings
from shared.actors import Actor, Workbench
from shared.config import read, read_json
from shared.crypto.identity import Identity
from shared.crypto.sum_cipher import Adder, Scheme, SumContext, cipher_for, key_id_of
from shared.data_files import Example
from shared.errors import AlreadyReleased, LlmOsError
from shared.files import digest_of
from shared.job import Job, RunPlan
from shared.key_holder.approvals import Approvals
from shared.key_holder.holder import KeyHolder
from shared.models.adapter import Adapter
from shared.transport.memory import MemoryNetwork, MemoryTransport
from shared.types import (
    DeviceId,
    Digest,
    FloatMatrix,
    FloatVector,
    IntVector,
    PublicKey,
    RoundNumber,
    RunId,
)
from shared.wire import topics
from shared.wire.chunks import CHUNK_BYTES, Downloads
from shared.wire.envelope import NO_ROUND, NO_RUN, Envelope, Post, open_sealed
from shared.wire.messages import (
    Accepted,
    BlobChunk,
    BlobRequest,
    Call,
    Contribution,
    Declined,
    HandOver,
    Invitation,
    KeyAnnouncement,
    Message,
    Presence,
    Receipt,
    Refusal,
)
from sim.virtual_time import VirtualTime, drive

ResultT = TypeVar("ResultT")

FEATURES = 4
PROBE = [
    Example(f"{label} text {number}", label, group)
    for label in ("cancel", "refund", "track")
    for number, group in enumerate(("en", "zh"))
]
RUN = RunId("trial")
ENDS = ("finished", "failed", "stopped")


BASE_CONFIG: Final = {
    "model_type": "bert",
    "hidden_size": FEATURES,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
}


def make_base(folder: Path) -> Path:
    """A base model as far as the coordinator looks at one: a config and a digest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(BASE_CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


class FixedFeatures:
    """Features of length one that depend on the text alone."""

    def __init__(self, base: str, layers: int = 0) -> None:
        self.base = base

    def encode(self, texts: Sequence[str], *, adapter: bytes = b"") -> FloatMatrix:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) for text in texts]
        rows = np.stack([np.random.default_rng(seed).normal(size=FEATURES) for seed in seeds])
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)

    def outcome(
        self, pairs: Sequence[tuple[str, str]], *, adapter: bytes = b""
    ) -> tuple[FloatVector, FloatVector]:
        raise NotImplementedError("no language model is judged here")

    def close(self) -> None:
        """Nothing was started."""


def job_tables(base: Path, **tables: dict[str, Any]) -> dict[str, Any]:
    """A small job in clear over at least three devices; ``tables`` change it."""
    job: dict[str, Any] = {
        "name": RUN,
        "model": {"base": str(base)},
        "training": {"rounds": 2, "learning_rate": 1.0},
        "privacy": {"noise": "none"},
        "protection": {"scheme": "clear", "min_devices": 3, "max_devices": 8},
        "cohort": {"lease_s": 30.0, "patience_s": 10.0, "round_timeout_s": 300.0},
    }
    for name, table in tables.items():
        job[name] = {**job.get(name, {}), **table}
    return job


@dataclass
class Crash(BaseException):
    """The coordinator's process ends here. No handler of ours may catch it."""

    at: str


class Mortal:
    """An actor with its bench, dead as soon as its process is.

    As ``ActorLoop`` does, it takes a failure of ours for an event and not for the end.
    """

    def __init__(self, bench: Workbench) -> None:
        self.alive = True
        self.actor: Actor
        self.failures: list[LlmOsError] = []
        self._bench = bench

    @property
    def topics(self) -> Sequence[str]:
        return self.actor.topics

    def receive(self, topic: str, payload: bytes) -> None:
        if self.alive:
            self._carefully(lambda: self.actor.receive(topic, payload))

    def tick(self) -> float:
        wanted = self._carefully(self.actor.tick) if self.alive else 1e9
        return 1.0 if wanted is None else wanted

    def close(self) -> None:
        self.actor.close()

    def now(self) -> float:
        return self._bench.now()

    def work(self, task: Callable[[], ResultT], done: Callable[[Future[ResultT]], None]) -> None:
        self._bench.work(
            task, lambda result: self._carefully(lambda: done(result)) if self.alive else None
        )

    def _carefully(self, step: Callable[[], ResultT]) -> ResultT | None:
        try:
            return step()
        except LlmOsError as err:
            self.failures.append(err)
            return None


@dataclass
class Offer:
    """An update that a scripted device has made."""

    contribution: Contribution
    frame: bytes
    run: RunId
    round: RoundNumber
    answered: bool = False
    offered_at: float = float("-inf")


@dataclass
class ScriptedDevice:
    """One device. Its public attributes are the script, and what it was told."""

    name: DeviceId
    transport: MemoryTransport
    post: Post
    now: Callable[[], float]
    coordinator: PublicKey
    key_holder: PublicKey
    folder: Path

    silent: bool = False
    """Hears everything and does not react."""
    hides: bool = False
    """Is not present, but takes part when it is asked."""
    declines: tuple[str, str] | None = None
    withholds: bool = False
    """Announces an update and never hands it out."""
    insists: bool = False
    """Announces again although it was answered."""
    releases_once: bool = False
    """As an agent, declines a round whose update was answered, and has it no more."""
    alter: Callable[[Contribution], Contribution] = lambda contribution: contribution
    """Changes what is announced, before it is signed."""
    scores: tuple[int, int] = (0, 0)
    """Quantised sum of scores and number of held-out examples, in a run that evaluates."""
    tamper: Callable[[bytes], bytes] = lambda frame: frame
    """Changes the update itself; the announcement then fits what it became."""

    receipts: list[str] = field(default_factory=list)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    invitations: list[RoundNumber] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    offers: dict[tuple[RunId, RoundNumber], Offer] = field(default_factory=dict)
    handed_over: list[tuple[RoundNumber, bytes]] = field(default_factory=list)
    """The rounds whose update was asked for, each with the key holder's signed set."""
    asked: list[BlobRequest] = field(default_factory=list)
    present_at: float = float("-inf")

    def __post_init__(self) -> None:
        self._downloads = Downloads(lambda _, request: self.send(request))

    @property
    def topics(self) -> Sequence[str]:
        return (topics.down(self.name), topics.CALL)

    def values(self, plan: RunPlan, number: int) -> IntVector:
        """The update of a round: small integers, a weight that is not zero, and the scores."""
        seed = int.from_bytes(hashlib.sha256(f"{self.name}/{number}".encode()).digest()[:8])
        rng = np.random.default_rng(seed)
        values = rng.integers(-200, 201, plan.layout.count)
        values[plan.parameters] = rng.integers(1, 1000)
        if plan.evaluates:
            values[-2:] = self.scores
        return values

    def receive(self, _topic: str, payload: bytes) -> None:
        envelope = self.post.open(payload, expected=self.coordinator)
        match envelope.message:
            case BlobChunk() as chunk:
                self.blobs[chunk.digest] = self.blobs.get(chunk.digest, b"") + chunk.data
                self._downloads.receive("coordinator", chunk, self.now())
            case Receipt(digest=digest):
                self.receipts.append(digest)
                self._answered(digest)
            case Refusal(digest=digest, code=code):
                self.refusals.append((digest, code))
                self._answered(digest)
            case HandOver(fixed=fixed):
                self.handed_over.append((envelope.round, fixed))
            case BlobRequest() as request:
                self.asked.append(request)
                self._serve(request)
            case Call() if not self.silent and not self.hides:
                self.show()
            case Invitation() as invitation:
                self.invitations.append(envelope.round)
                if not self.silent:
                    self._take_part(envelope, invitation)
            case _:
                pass

    def tick(self) -> float:
        self._downloads.tick(self.now())
        if not self.silent and not self.hides and self.now() - self.present_at >= 5.0:
            self.show()
        for offer in self.offers.values():
            due = self.now() - offer.offered_at >= 3.0
            if due and not self.silent and (self.insists or not offer.answered):
                self.announce(offer)
        return 1.0

    def close(self) -> None:
        """Nothing was started."""

    def show(self, state: str = "idle") -> None:
        """Say that this device is there."""
        self.present_at = self.now()
        self.send(Presence(state))

    def send(self, message: Message, run: RunId = NO_RUN, number: RoundNumber = NO_ROUND) -> None:
        """Sign and publish a message on this device's own branch."""
        sealed = self.post.seal(message, run=run, round_=number)
        self.transport.publish(topics.up(self.name), sealed)

    def announce(self, offer: Offer) -> None:
        """Offer an update, for the first time or again."""
        offer.offered_at = self.now()
        self.send(offer.contribution, offer.run, offer.round)

    def prepare(
        self, plan: RunPlan, number: RoundNumber, values: IntVector, public_key: bytes = b""
    ) -> Offer:
        """Encrypt ``values`` into an offer, and keep it until it is answered."""
        context = SumContext(plan.run_id, number, key_id_of(public_key))
        cipher = cipher_for(plan.scheme, plan.layout)
        frame = self.tamper(cipher.encrypt(values, public_key=public_key, context=context))
        contribution = self.alter(
            Contribution(self.name, digest_of(frame), len(frame), plan.scheme, context.key_id)
        )
        offer = Offer(contribution, frame, plan.run_id, number)
        self.offers[plan.run_id, number] = offer
        return offer

    def _take_part(self, envelope: Envelope, invitation: Invitation) -> None:
        run, number = envelope.run, envelope.round
        if self.declines is not None:
            self.send(Declined(*self.declines), run, number)
            return
        known = self.offers.get((run, number))
        if self.releases_once and known is not None and known.answered:
            self.send(Declined(AlreadyReleased.code, "this round's update is out"), run, number)
            return
        self.send(Accepted(), run, number)
        if known is not None:
            return
        plan = read_json(RunPlan, invitation.plan, source="plan")
        if plan.scheme is Scheme.CLEAR:
            self.announce(self.prepare(plan, number, self.values(plan, number)))
            return
        announced = open_sealed(invitation.announcement, expected=self.key_holder).message
        assert isinstance(announced, KeyAnnouncement)

        def arrived(path: Path) -> None:
            if (run, number) not in self.offers:
                values = self.values(plan, number)
                self.announce(self.prepare(plan, number, values, path.read_bytes()))

        self._downloads.fetch(
            Digest(announced.digest),
            announced.size,
            self.folder / announced.digest,
            peer="coordinator",
            now=self.now(),
            finished=arrived,
            failed=lambda err: None,
        )

    def _serve(self, request: BlobRequest) -> None:
        for offer in self.offers.values():
            gone = self.withholds or (self.releases_once and offer.answered)
            if offer.contribution.digest == request.digest and not gone:
                end = min(request.offset + request.length, len(offer.frame))
                for at in range(request.offset, end, CHUNK_BYTES):
                    data = offer.frame[at : min(at + CHUNK_BYTES, end)]
                    self.send(BlobChunk(request.digest, at, data))

    def _answered(self, digest: str) -> None:
        for offer in self.offers.values():
            if offer.contribution.digest == digest:
                offer.answered = True


class World:
    """A coordinator, its key holder and its devices, on one virtual clock."""

    def __init__(self, folder: Path, adder: Adder, *, stack: ExitStack) -> None:
        self.folder = folder
        self.base = make_base(folder / "base")
        self.home = folder / "coordinator"
        self.adder = adder
        self.time = VirtualTime(workers=1)
        stack.callback(self.time.close)
        self._stack = stack
        self.network = MemoryNetwork(
            self.time.schedule, np.random.default_rng(7), now=self.time.now
        )
        self.home.mkdir()
        self.identity = Identity.create(self.home / "identity.key")
        self.holder_identity = Identity.create(folder / "holder.key")
        self.transport = self.network.attach("coordinator")
        self.devices: dict[str, ScriptedDevice] = {}
        self.restarts = 0
        self.committed: list[Transition | str] = []
        """What was committed, in order, over all lives of the coordinator."""
        self.make_model: MakeModel = FixedFeatures
        self.make_release: MakeRelease | None = None
        self.engine: Engine | None = None
        self.watch: Sightings | None = None
        self.work_s = 0.1
        """How long everything takes that the coordinator has done beside its thread."""
        self.crash_at: Callable[[Transition | str], bool] = lambda _: False
        """Asked after every commit; the coordinator's process ends where it says so."""
        self.make_store: Callable[[str, Path], Store] = Store
        self.store = self._open_store()
        self.coordinator: Coordinator
        self._mortal: Mortal | None = None

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return any(what in ENDS for what in self.committed if isinstance(what, str))

    @property
    def failures(self) -> list[LlmOsError]:
        """What the coordinator's present process took for an event and not for the end."""
        assert self._mortal is not None
        return self._mortal.failures

    @property
    def rows(self) -> list[Transition]:
        """Every transition as it was heard; the same as the store's, and cheap to ask for."""
        return [what for what in self.committed if not isinstance(what, str)]

    def submit(self, **tables: dict[str, Any]) -> RunPlan:
        """Submit a small job; see :func:`job_tables`."""
        return submit(
            self.store,
            read(Job, job_tables(self.base, **tables), source="job"),
            PROBE,
            seed=11,
            simulation=True,
            now=self.time.now(),
        )

    def add_device(self, name: str, *, joins: bool = True) -> ScriptedDevice:
        """A device that has joined, and that the key holder's operator has approved."""
        folder = self.folder / "devices" / name
        folder.mkdir(parents=True)
        identity = Identity.create(folder / "identity.key")
        if joins:
            token = self.store.new_token(expires_at=self.time.now() + 1)
            self.store.join(token, DeviceId(name), identity.public, now=self.time.now())
            Approvals(self.folder / "holder" / "approvals.json").approve(name, identity.public)
        device = ScriptedDevice(
            DeviceId(name),
            self.network.attach(name),
            Post(identity, folder),
            self.time.now,
            self.identity.public,
            self.holder_identity.public,
            folder,
        )
        self.devices[name] = device
        drive(device, device.transport, self.time)
        return device

    def add_devices(self, names: str) -> list[ScriptedDevice]:
        """One device per letter."""
        return [self.add_device(f"device-{letter}") for letter in names]

    def add_key_holder(self, adder: Adder, *, min_devices: int = 3) -> KeyHolder:
        """The real one."""
        home = self.folder / "holder"
        transport = self.network.attach(topics.KEY_HOLDER)
        holder = KeyHolder(
            home,
            transport=transport,
            post=Post(self.holder_identity, home),
            coordinator=self.identity.public,
            min_devices=min_devices,
            bench=self.time.bench(0.1),
            adder=adder,
        )
        drive(holder, transport, self.time)
        return holder

    def start(self) -> None:
        """Start the coordinator's process, or start it again."""
        mortal = Mortal(self.time.bench(self.work_s))
        mortal.actor = self.coordinator = Coordinator(
            store=self.store,
            transport=self.transport,
            post=Post(self.identity, self.home),
            key_holder=self.holder_identity.public,
            bench=mortal,
            adder=self.adder,
            make_model=self.make_model,
            make_release=self.make_release,
            desk=FrontDesk({self.engine.card.name: self.engine}) if self.engine else None,
            watch=self.watch,
        )
        self._mortal = mortal
        drive(mortal, self.transport, self.time)

    def kill(self) -> None:
        """End the coordinator's process: what it held in memory is gone."""
        if self._mortal is not None:
            self._mortal.alive = False
        self.transport.close()
        self.store.close()

    def restart(self) -> None:
        """Kill it and start it on the same folder."""
        self.kill()
        self.restarts += 1
        self.store = self._open_store()
        self.start()

    def run(self, until: Callable[[], bool] | None = None, *, for_s: float = 5000.0) -> bool:
        """Let time pass until something holds, by default until the run is over."""
        limit = self.time.now() + for_s
        while True:
            try:
                return self.time.run(until=until or (lambda: self.over), limit_s=limit)
            except Crash:
                self.restart()

    def run_for(self, seconds: float) -> None:
        """Let virtual time pass."""
        end = self.time.now() + seconds
        self.run(lambda: self.time.now() >= end, for_s=seconds + 10)

    def counted(self, number: int) -> dict[str, Digest]:
        """Which update of which device was counted in a round."""
        found, current = {}, 0
        for row in self.rows:
            current += isinstance(row, Planned)
            if isinstance(row, UpdateStored) and current == number:
                found[row.device] = row.digest
        return found

    def adapter(self) -> Adapter:
        """What the run has learnt."""
        digest = next(
            self.store.milestones(RUN)[kind].facts["adapter"]
            for kind in ("finished", "failed", "stopped", "started")
            if kind in self.store.milestones(RUN)
        )
        return Adapter.from_bytes(self.store.blob(Digest(digest)).read_bytes())

    def expected_adapter(self, plan: RunPlan, rounds: Sequence[Sequence[str]]) -> Adapter:
        """What the run should have learnt: FedAvg over exactly these devices, the slow way."""
        adapter = self.first_adapter()
        for number, names in enumerate(rounds, start=1):
            mean = np.array(self.expected_mean(plan, number, names))
            adapter = adapter.moved(mean * plan.step_ratios)
        return adapter

    def expected_mean(self, plan: RunPlan, number: int, names: Sequence[str]) -> list[float]:
        """The mean update of a round over exactly these devices, the slow way."""
        vectors = [self.devices[name].values(plan, number).tolist() for name in names]
        sums = [sum(column) for column in zip(*vectors, strict=True)]
        size = plan.parameters
        weight = sums[size] * plan.share_quantiser.step
        return [total * plan.update_quantiser.step / weight for total in sums[:size]]

    def first_adapter(self) -> Adapter:
        """What the run began with."""
        started = Digest(self.store.milestones(RUN)["started"].facts["adapter"])
        return Adapter.from_bytes(self.store.blob(started).read_bytes())

    def _open_store(self) -> Store:
        store = self.make_store(f"sqlite:///{self.home / 'store.db'}", self.home)
        self._stack.callback(store.close)

        def heard(what: Transition | str) -> None:
            self.committed.append(what)
            if self.crash_at(what):
                raise Crash(str(what))

        store.subscribe(heard)
        return store
