"""A real agent on virtual time, facing a coordinator and a key holder that do as a test says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edge_agent.agent import Agent, Trust
from edge_agent.examples import ExampleStore
from edge_agent.outbox import Outbox
from edge_agent.participate import Home, Owner
from edge_agent.training.trainer import Trainer
from shared.crypto.identity import Identity
from shared.crypto.sum_cipher import KeyPair, Scheme, opener_for
from shared.crypto.sum_groups import commitment_to, joined
from shared.data_files import Example
from shared.files import digest_of
from shared.job import RunPlan
from shared.models.adapter import Adapter
from shared.privacy.ledger import Charge, Ledger
from shared.transport.memory import Link, MemoryNetwork
from shared.types import DeviceId, Digest, RoundNumber, RunId
from shared.wire import topics
from shared.wire.chunks import serve_blob
from shared.wire.envelope import NO_ROUND, NO_RUN, Envelope, Post, seal
from shared.wire.messages import (
    BlobChunk,
    BlobRequest,
    Contribution,
    HandOver,
    Invitation,
    KeyAnnouncement,
    Message,
    Receipt,
    Refusal,
    SumSet,
)
from sim.virtual_time import VirtualTime, drive
from tests.support.trainers import ADAPTER, SeededTrainer

MessageT = TypeVar("MessageT", bound=Message)

DEVICE = DeviceId("kitchen")
TRAINS_S = 4.0
SEED = bytes(range(32))
"""What the key holder draws groups from."""


@dataclass
class ScriptedCoordinator:
    """Speaks the real protocol, and only when it is told to; blobs it serves by itself."""

    folder: Path
    network: MemoryNetwork
    device: Identity
    heard: list[Envelope] = field(default_factory=list)
    frames: dict[str, bytes] = field(default_factory=dict)
    serves: bool = True
    """Whether requests for adapters and keys are answered."""

    def __post_init__(self) -> None:
        self.identity = Identity.load_or_create(self.folder / "identity.key")
        self.holder = Identity.load_or_create(self.folder / "holder.key")
        self._post = Post(self.identity, self.folder)
        self._transport = self.network.attach("coordinator")
        self._transport.open(self._receive, (topics.ALL_UP,))

    def said(self, kind: type[MessageT]) -> list[MessageT]:
        """Every message of a kind that the device sent, in order."""
        return [envelope.message for envelope in self.heard if isinstance(envelope.message, kind)]

    def send(self, message: Message, run: str = NO_RUN, round_: int = NO_ROUND) -> bytes:
        """Send a message under a fresh sequence number; gives the bytes, to be replayed."""
        sealed = self._post.seal(message, run=RunId(run), round_=RoundNumber(round_))
        self.send_raw(sealed)
        return sealed

    def send_raw(self, sealed: bytes) -> None:
        """Send bytes, whatever they are."""
        self._transport.publish(topics.down(DEVICE), sealed)

    def invite(
        self,
        plan: RunPlan,
        round_: int = 1,
        *,
        announcement: bytes,
        adapter: Adapter = ADAPTER,
        **changes: Any,
    ) -> bytes:
        """Invite the device to a round; ``changes`` replace the envelope's run or round."""
        start = adapter.to_bytes()
        message = Invitation(
            plan=plan.model_dump_json(),
            adapter=self.blob(start),
            adapter_bytes=len(start),
            announcement=announcement,
        )
        envelope: dict[str, Any] = {"run": plan.run, "round_": round_} | changes
        return self.send(message, **envelope)

    def announcement(
        self,
        plan: RunPlan,
        keys: KeyPair,
        round_: int = 1,
        *,
        signer: Identity | None = None,
        run: str | None = None,
        **changes: Any,
    ) -> bytes:
        """What the pinned key holder, or ``signer``, announces; ``changes`` replace fields."""
        layout = plan.layout
        fields: dict[str, Any] = {
            "scheme": plan.scheme,
            "count": layout.count,
            "bits": layout.bits,
            "max_devices": layout.max_devices,
            "groups": plan.job.protection.groups,
            "draw": commitment_to(SEED),
            "min_devices": plan.job.protection.min_devices,
            "key_id": keys.key_id,
            "digest": self.blob(keys.public),
            "size": len(keys.public),
        } | changes
        return seal(
            signer or self.holder,
            1,
            KeyAnnouncement(**fields),
            run=RunId(run if run is not None else plan.run),
            round_=RoundNumber(round_),
        )

    def blob(self, data: bytes) -> Digest:
        """Have a blob that the device may ask for."""
        digest = digest_of(data)
        (self.folder / digest).write_bytes(data)
        return digest

    def fixed_set(
        self,
        contribution: Contribution,
        *,
        signer: Identity | None = None,
        run: str | None = None,
        round_: int | None = None,
        **changes: Any,
    ) -> bytes:
        """The set of four updates, this one among them, as the pinned key holder signs it.

        ``changes`` replace fields of the message; ``signer``, ``run`` and ``round_`` the rest.
        """
        at = next(envelope for envelope in self.heard if envelope.message == contribution)
        others = [digest_of(str(number).encode()) for number in range(3)]
        fields: dict[str, Any] = {
            "key_id": contribution.key_id,
            "digests": joined([Digest(contribution.digest), *others]),
            "groups": 1,
            "seed": SEED,
        } | changes
        return seal(
            signer or self.holder,
            2,
            SumSet(**fields),
            run=RunId(at.run if run is None else run),
            round_=RoundNumber(at.round if round_ is None else round_),
        )

    def hand_over(self, contribution: Contribution, fixed: bytes | None = None) -> None:
        """Show the device a fixed set, by default a good one, or an empty one for clear updates."""
        at = next(envelope for envelope in self.heard if envelope.message == contribution)
        if fixed is None:
            in_clear = contribution.scheme == Scheme.CLEAR
            fixed = b"" if in_clear else self.fixed_set(contribution)
        self.send(HandOver(fixed), at.run, at.round)

    def fetch(self, contribution: Contribution) -> None:
        """Have an update handed over and ask for it; it arrives in ``frames``."""
        self.hand_over(contribution)
        self.ask_for(contribution)

    def ask_for(self, contribution: Contribution) -> None:
        """Ask for an update, and nothing else."""
        self.frames[contribution.digest] = b""
        self.send(BlobRequest(contribution.digest, 0, contribution.size))

    def settle(self, contribution: Contribution, refusal: str = "") -> bytes:
        """Give a receipt, or refuse the update."""
        if refusal:
            return self.send(Refusal(contribution.digest, refusal, "because"))
        return self.send(Receipt(contribution.digest))

    def _receive(self, _topic: str, payload: bytes) -> None:
        envelope = self._post.open(payload, expected=self.device.public)
        self.heard.append(envelope)
        match envelope.message:
            case BlobRequest() as request if self.serves:
                for chunk in serve_blob(request, self.folder / request.digest):
                    self.send(chunk)
            case BlobChunk() as chunk if len(self.frames.get(chunk.digest, b"")) == chunk.offset:
                self.frames[chunk.digest] += chunk.data
            case _:
                pass


class DeviceWorld:
    """One agent and its coordinator, standing where the files in ``folder`` say they stood.

    A second world on the same folder is the same device after a restart.
    """

    def __init__(
        self,
        folder: Path,
        *,
        epsilon_budget: float = 1000.0,
        min_devices: int = 2,
        clear_runs: bool = False,
        key_holder: bool = True,
        trainer: Trainer | None = None,
        link: Link | None = None,
    ) -> None:
        self.unmet: dict[str, str] = {}
        self.time = VirtualTime(workers=1)
        self.network = MemoryNetwork(
            self.time.schedule, np.random.default_rng(1), now=self.time.now
        )
        self.home = Home(folder / "device")
        ExampleStore(self.home.examples).add([Example(f"text {n}", "refund") for n in range(20)])
        identity = Identity.load_or_create(self.home.folder / "identity.key")
        self.coordinator = ScriptedCoordinator(folder / "coordinator", self.network, identity)
        self.trainer = trainer or SeededTrainer()
        self.transport = self.network.attach(DEVICE, link)
        self.agent = Agent(
            self.home,
            owner=Owner(DEVICE, epsilon_budget),
            trust=Trust(
                coordinator=self.coordinator.identity.public,
                key_holder=self.coordinator.holder.public if key_holder else None,
                min_devices=min_devices,
                clear_runs=clear_runs,
            ),
            transport=self.transport,
            post=Post(identity, self.home.folder),
            trainer=self.trainer,
            bench=self.time.bench(TRAINS_S),
            unmet=lambda: self.unmet,
        )
        drive(self.agent, self.transport, self.time)
        self.run_for(0.0)

    def run_for(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.time.run(until=lambda: False, limit_s=self.time.now() + seconds)

    def close(self) -> None:
        """End the process, as a power cut would: nothing is said and nothing written."""
        self.time.close()

    @property
    def charges(self) -> list[Charge]:
        """What the ledger on disk holds."""
        return Ledger(self.home.ledger).charges()

    @property
    def waiting(self) -> list[tuple[str, int]]:
        """Run and round of every update without a receipt."""
        return [(each.run, each.round) for each in Outbox(self.home.outbox).waiting()]

    @property
    def seeds(self) -> int:
        """How many release seeds are on disk."""
        return len(list(self.home.seeds.glob("*"))) if self.home.seeds.exists() else 0


def new_keys(plan: RunPlan) -> KeyPair:
    """A key pair for a plan's rounds."""
    return opener_for(plan.scheme, plan.layout).new_key_pair()
