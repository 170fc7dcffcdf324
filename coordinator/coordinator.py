"""The coordinator as an actor: messages in, one conductor per run, messages out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

from coordinator.conductor import Conductor
from coordinator.federation.secure_sum import Adder
from coordinator.fleet.transport_fleet import TransportFleet
from coordinator.probe import MakeEmbedder
from coordinator.store.store import Store
from shared.actors import Workbench
from shared.errors import LlmOsError, ProtocolError, StorageError
from shared.transport.transport import Transport
from shared.types import DeviceId, PublicKey, RunId
from shared.wire import topics
from shared.wire.chunks import Downloads, serve_blob
from shared.wire.envelope import NO_ROUND, NO_RUN, Envelope, Post
from shared.wire.messages import (
    Accepted,
    BlobChunk,
    BlobRequest,
    Contribution,
    Declined,
    KeyAnnouncement,
    Opened,
    OpeningRefused,
    Presence,
)

TICK_S: Final = 0.25

log = structlog.get_logger()


class Coordinator:
    """Conducts the submitted runs one after the other. Driven by one thread."""

    def __init__(
        self,
        *,
        store: Store,
        transport: Transport,
        post: Post,
        key_holder: PublicKey | None,
        bench: Workbench,
        adder: Adder,
        make_embedder: MakeEmbedder,
    ) -> None:
        self._store = store
        self._transport = transport
        self._bench = bench
        self._adder = adder
        self._make_embedder = make_embedder
        self.fleet = TransportFleet(
            transport, post, key_holder=key_holder, devices=store.devices, now=bench.now
        )
        self._downloads = Downloads(self._request)
        self._conductor: Conductor | None = None
        self._called = False
        self._disk_trouble = False

    @property
    def topics(self) -> Sequence[str]:
        """Everything that peers publish."""
        return (topics.ALL_UP,)

    def receive(self, topic: str, payload: bytes) -> None:
        """Take one message; what a peer got wrong is refused and logged."""
        try:
            peer, envelope = self.fleet.open(topic, payload)
            self._handle(peer, envelope)
        except ProtocolError as err:
            log.warning("message.refused", topic=topic[:80], code=err.code, error=str(err))
        except StorageError as err:
            self._trouble(err)

    def tick(self) -> float:
        """Do what is due."""
        if not self._called:
            self.fleet.call()
            self._called = True
        try:
            self._downloads.tick(self._bench.now())
            conductor = self._current()
            if conductor is None:
                return 1.0
            conductor.advance()
        except StorageError as err:
            self._trouble(err)
        else:
            if self._disk_trouble:
                self._disk_trouble = False
                log.info("disk.recovered")
        return TICK_S

    def stop_run(self, run: RunId, reason: str) -> None:
        """End a run: at once if it is under way, else before it begins."""
        current = self._current()
        if current is not None and current.plan.run == run:
            current.stop(reason)
            return
        if not self._store.milestones(self._store.run(run).run).keys() & {"finished", "failed"}:
            self._store.add_milestone(run, "stopped", {"reason": reason}, now=self._bench.now())

    def close(self) -> None:
        """Nothing to release: everything that matters is on disk."""

    def _current(self) -> Conductor | None:
        if self._conductor is not None and not self._conductor.over:
            return self._conductor
        self._conductor = None
        for row in self._store.runs():
            if self._store.milestones(row.run).keys() & {"finished", "failed", "stopped"}:
                continue
            self._conductor = Conductor(
                row,
                store=self._store,
                fleet=self.fleet,
                downloads=self._downloads,
                bench=self._bench,
                adder=self._adder,
                make_embedder=self._make_embedder,
            )
            break
        return self._conductor

    def _handle(self, peer: str, envelope: Envelope) -> None:
        message, device, conductor = envelope.message, DeviceId(peer), self._current()
        match message:
            case BlobChunk():
                if self._downloads.receive(peer, message, self._bench.now()) and conductor:
                    conductor.progressed()
            case BlobRequest():
                self._serve(peer, message)
            case Presence() if peer != topics.KEY_HOLDER:
                self.fleet.set_state(device, message.state)
                if conductor and message.state == "training":
                    conductor.is_training(device)
            case _ if conductor is None:
                log.info("message.late", kind=message.kind, peer=peer)
            case KeyAnnouncement() if peer == topics.KEY_HOLDER:
                conductor.key_announced(envelope, message)
            case Opened() if peer == topics.KEY_HOLDER:
                conductor.opened(envelope, message)
            case OpeningRefused() if peer == topics.KEY_HOLDER:
                conductor.opening_refused(envelope, message.code, message.reason)
            case Accepted():
                conductor.accepted(device, envelope)
            case Declined():
                conductor.declined(device, envelope, message)
            case Contribution():
                conductor.offered(device, envelope, message)
            case _:
                raise ProtocolError(f"{peer} may not send a '{message.kind}'")

    def _serve(self, peer: str, request: BlobRequest) -> None:
        conductor = self._current()
        path = conductor.blob_for(peer, request.digest) if conductor else None
        if path is None or not path.exists():
            log.info("blob.withheld", peer=peer, digest=request.digest[:12])
            return
        for chunk in serve_blob(request, path):
            self.fleet.send(DeviceId(peer), chunk, run=NO_RUN, round_=NO_ROUND)

    def _request(self, peer: str, request: BlobRequest) -> None:
        self.fleet.send(DeviceId(peer), request, run=NO_RUN, round_=NO_ROUND)

    def _trouble(self, err: LlmOsError) -> None:
        """Say once that the disk refuses; nothing was acknowledged, everything is repeated."""
        if not self._disk_trouble:
            log.error("disk.failing", error=str(err))
        self._disk_trouble = True
