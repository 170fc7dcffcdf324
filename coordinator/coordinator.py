"""The coordinator as an actor: messages in, one conductor per run, messages out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final

import structlog

from coordinator.conductor import Conductor
from coordinator.fleet.transport_fleet import AboutDevice, AnswersWith, TransportFleet
from coordinator.inference.front_desk import FrontDesk
from coordinator.inference.questions import Questions
from coordinator.probe import MakeModel
from coordinator.releases import MakeRelease, Releases
from coordinator.store.store import ENDINGS, Store
from coordinator.watch.sightings import NoSightings, Sightings
from shared.actors import Workbench
from shared.crypto.sum_cipher import Adder
from shared.errors import MalformedMessage, NotPermitted, ProtocolError, RoundClosed
from shared.transport.transport import Transport
from shared.types import DeviceId, Digest, PublicKey, RunId
from shared.wire import topics
from shared.wire.chunks import Downloads, serve_blob
from shared.wire.envelope import NO_ROUND, NO_RUN, Envelope, Post
from shared.wire.messages import (
    About,
    Accepted,
    Answering,
    BlobChunk,
    BlobRequest,
    Contribution,
    Declined,
    KeyAnnouncement,
    Opened,
    OpeningRefused,
    Presence,
    Question,
    Receipt,
    Refusal,
    SumSet,
)

TICK_S: Final = 0.25

KEPT_OUT_S: Final = 60.0
"""How often a device that is kept out is told so, at most."""

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
        make_model: MakeModel,
        make_release: MakeRelease | None = None,
        desk: FrontDesk | None = None,
        watch: Sightings | None = None,
    ) -> None:
        """Conduct what the store holds.

        Args:
            store: Runs, rows and blobs.
            transport: Opened by whoever drives this.
            post: Seals and opens envelopes.
            key_holder: The holder's public key; None when only clear sums run.
            bench: Clock and worker threads.
            adder: Adds encrypted updates.
            make_model: Base models for judging.
            make_release: Makes what devices answer with; None releases nothing.
            desk: The way to the model that answers devices' questions; None refuses them.
            watch: Told what is refused; None tells nobody.
        """
        self._store = store
        self._bench = bench
        self._adder = adder
        self._make_model = make_model
        self._watch = watch or NoSightings()
        self.fleet = TransportFleet(
            transport, post, key_holder=key_holder, devices=store.devices, now=bench.now
        )
        self._downloads = Downloads(self._request)
        self._releases = (
            Releases(store=store, fleet=self.fleet, bench=bench, make=make_release)
            if make_release is not None
            else None
        )
        self._questions = Questions(desk, self.fleet, bench)
        self._conductor: Conductor | None = None
        self._told_out: dict[DeviceId, float] = {}
        """When devices that are kept out were told so."""
        self._called = False

    @property
    def topics(self) -> Sequence[str]:
        """Everything that peers publish."""
        return (topics.ALL_UP,)

    def receive(self, topic: str, payload: bytes) -> None:
        """Take one message; what a peer got wrong is refused and logged."""
        try:
            peer, envelope = self.fleet.open(topic, payload)
        except (ProtocolError, NotPermitted) as err:
            self._refused(topic, err, by_itself=isinstance(err, MalformedMessage))
            if isinstance(err, NotPermitted):
                self._tell_out(topic, err)
            return
        # What is downloaded is for the run under way.
        of_current = isinstance(envelope.message, BlobChunk) and self._conductor is not None
        with self._about_current() if of_current else _about(envelope.run):
            try:
                self._handle(peer, envelope)
            except ProtocolError as err:
                self._refused(topic, err, by_itself=True)

    def tick(self) -> float:
        """Do what is due."""
        if not self._called:
            self.fleet.call()
            self._called = True
        with self._about_current():
            self._downloads.tick(self._bench.now())
        conductor = self._current()
        if self._releases is not None:
            self._releases.tick()
        if conductor is None:
            return 1.0
        with _about(conductor.plan.run):
            conductor.advance()
        return TICK_S

    def stop_run(self, run: RunId, reason: str) -> None:
        """End a run: at once if it is under way, else before it begins."""
        current = self._current()
        if current is not None and current.plan.run == run:
            with _about(run):
                current.stop(reason)
        elif self._store.milestones(run).keys().isdisjoint(ENDINGS):
            self._store.add_milestone(run, "stopped", {"reason": reason}, now=self._bench.now())

    def close(self) -> None:
        """Free what judging holds; everything that matters is on disk."""
        if self._conductor is not None:
            self._conductor.close()

    def _current(self) -> Conductor | None:
        if self._conductor is not None and not self._conductor.over:
            return self._conductor
        if self._conductor is not None and self._releases is not None:
            self._releases.run_over()
        self._conductor = None
        for row in self._store.runs():
            if not self._store.milestones(row.run).keys().isdisjoint(ENDINGS):
                continue
            self._conductor = Conductor(
                row,
                store=self._store,
                fleet=self.fleet,
                downloads=self._downloads,
                bench=self._bench,
                adder=self._adder,
                make_model=self._make_model,
                watch=self._watch,
            )
            break
        return self._conductor

    def _about_current(self) -> contextlib.AbstractContextManager[None]:
        return _about(self._conductor.plan.run if self._conductor is not None else NO_RUN)

    def _handle(self, peer: str, envelope: Envelope) -> None:
        message, conductor = envelope.message, self._current()
        if isinstance(message, BlobChunk):
            if self._downloads.receive(peer, message, self._bench.now()) and conductor:
                conductor.progressed()
        elif isinstance(message, BlobRequest):
            self._serve(peer, message)
        elif peer == topics.KEY_HOLDER:
            self._from_key_holder(envelope, conductor)
        else:
            self._from_device(DeviceId(peer), envelope, conductor)

    def _from_key_holder(self, envelope: Envelope, conductor: Conductor | None) -> None:
        match envelope.message:
            case KeyAnnouncement() as message:
                if conductor is not None:
                    conductor.key_announced(envelope, message)
            case SumSet() as message:
                if conductor is not None:
                    conductor.set_fixed(envelope, message)
            case Opened() as message:
                if conductor is not None:
                    conductor.opened(envelope, message)
            case OpeningRefused(code=code, reason=reason):
                if conductor is not None:
                    conductor.opening_refused(envelope, code, reason)
            case message:
                raise ProtocolError(f"the key holder may not send a '{message.kind}'")

    def _from_device(
        self, device: DeviceId, envelope: Envelope, conductor: Conductor | None
    ) -> None:
        match envelope.message:
            case Presence(state=("idle" | "training") as state):
                self.fleet.set_state(device, state)
                if conductor is not None and state == "training":
                    conductor.is_at_work(device)
            case About() as message:
                self.fleet.set_about(device, AboutDevice.read(message))
            case Answering() | Question() as message:
                self._about_answers(device, message)
            case Contribution() as message:
                if conductor is not None and envelope.run == conductor.plan.run:
                    conductor.offered(device, envelope, message)
                else:
                    self._answer_late(device, envelope, message)
            case Accepted():
                if conductor is not None:
                    conductor.accepted(device, envelope)
            case Declined() as message:
                if conductor is not None:
                    conductor.declined(device, envelope, message)
            case message:
                raise ProtocolError(f"{device} may not send a '{message.kind}'")

    def _about_answers(self, device: DeviceId, message: Answering | Question) -> None:
        if isinstance(message, Question):
            self._questions.asked(device, message)
            return
        self.fleet.set_answering(device, AnswersWith(message.adapter, message.manifest))
        if self._releases is not None:
            self._releases.heard(device, message)

    def _answer_late(self, device: DeviceId, envelope: Envelope, message: Contribution) -> None:
        """An update of a run that is over: it was counted, or it never will be."""
        digest = Digest(message.digest)
        answer: Receipt | Refusal = Receipt(digest)
        if self._store.counted(envelope.run, envelope.round, device) != digest:
            answer = Refusal(digest, RoundClosed.code, f"run {envelope.run} is not under way")
        self.fleet.save_replay_guard()
        self.fleet.send(device, answer, run=envelope.run, round_=envelope.round)

    def _serve(self, peer: str, request: BlobRequest) -> None:
        conductor = self._current()
        path = conductor.blob_for(peer, request.digest) if conductor else None
        if path is None and self._releases is not None and peer != topics.KEY_HOLDER:
            path = self._releases.file(request.digest)
        if path is None or not path.exists():
            log.info("blob.withheld", peer=peer, digest=request.digest[:12])
            return
        for chunk in serve_blob(request, path):
            self.fleet.send(DeviceId(peer), chunk, run=NO_RUN, round_=NO_ROUND)
        if conductor is not None and peer != topics.KEY_HOLDER:
            conductor.is_at_work(DeviceId(peer))

    def _request(self, peer: str, request: BlobRequest) -> None:
        self.fleet.send(DeviceId(peer), request, run=NO_RUN, round_=NO_ROUND)

    def _tell_out(self, topic: str, err: NotPermitted) -> None:
        """Tell a device that spoke by its own fresh signature that nobody listens to it."""
        device, now = DeviceId(topics.peer_of(topic) or ""), self._bench.now()
        if now - self._told_out.get(device, float("-inf")) >= KEPT_OUT_S:
            self._told_out[device] = now
            about_no_update = Digest("")
            refusal = Refusal(about_no_update, err.code, str(err))
            self.fleet.send(device, refusal, run=NO_RUN, round_=NO_ROUND)

    def _refused(self, topic: str, err: ProtocolError | NotPermitted, *, by_itself: bool) -> None:
        log.warning("message.refused", topic=topic[:80], code=err.code, error=str(err))
        self._watch.message_refused(topics.peer_of(topic), err, by_itself=by_itself)


@contextlib.contextmanager
def _about(run: str) -> Iterator[None]:
    """Name the run in every line of the log from here on, and below it."""
    with structlog.contextvars.bound_contextvars(**({"run": run} if run != NO_RUN else {})):
        yield
