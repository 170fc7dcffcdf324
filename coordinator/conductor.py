"""Conducts one run: round after round, one committed row at a time.

The conductor decides nothing that ``coordinator.federation`` does not say; it
carries decisions to the store, the fleet and the key holder, and repeats every
question until it is answered. Whatever process dies, the rows and files that are
left say how to go on (promise 3 of the product).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import structlog

from coordinator.federation.cohort import cohort_stream, draw_cohort
from coordinator.federation.rounds import (
    AdapterApplied,
    Closed,
    DeviceDeclined,
    Invited,
    KeyAnnounced,
    Planned,
    Round,
    RoundFailed,
    State,
    SumOpened,
    Transition,
    UpdateStored,
)
from coordinator.federation.secure_sum import SecureSum
from coordinator.federation.server_update import (
    Evaluation,
    ServerState,
    federated_evaluation,
    gate,
    server_step,
    weighted_mean,
)
from coordinator.fleet.fleet import Fleet
from coordinator.probe import MakeModel, Probe, prepare_probe
from coordinator.store.store import ENDINGS, RunRow, Store, by_round
from coordinator.submission import read_probe
from shared.actors import Workbench
from shared.config import read_json
from shared.crypto.sum_cipher import Adder, Scheme, SumContext, cipher_for, key_id_of, opener_for
from shared.errors import (
    ChildDied,
    CohortTooSmall,
    ConfigError,
    DuplicateUpdate,
    GateRefused,
    LlmOsError,
    NonFiniteUpdate,
    ProtocolError,
    RoundClosed,
    RoundError,
    StorageError,
    WrongKey,
)
from shared.job import RunPlan
from shared.models.adapter import Adapter
from shared.models.task import Accuracy
from shared.types import DeviceId, Digest, IntVector, RoundNumber
from shared.wire import codec, topics
from shared.wire.chunks import Downloads, is_digest
from shared.wire.envelope import Envelope, claimed_sender, open_sealed
from shared.wire.messages import (
    Contribution,
    Declined,
    Invitation,
    KeyAnnouncement,
    KeyRequest,
    Opened,
    OpenRequest,
    Receipt,
    Refusal,
    RunOver,
)

REPEAT_S: Final = 3.0
"""How long a question waits for its answer before it is asked again."""

SETTLE_S: Final = 2.0
"""With an open cohort, devices that announce themselves get this long to arrive."""

MAX_FAILED_ROUNDS: Final = 3
"""A run ends as failed after so many failed rounds in a row, or when it had no other."""

LOSS_MARGIN: Final = 2.0
"""A new adapter is rejected when its probe loss exceeds both the old one's and
that of guessing by this factor: noise alone stays far below it, divergence does not."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Asked:
    """When questions were last asked, so that they are repeated and not flooded."""

    at: dict[str, float] = field(default_factory=dict)

    def due(self, question: str, now: float) -> bool:
        if now - self.at.get(question, float("-inf")) < REPEAT_S:
            return False
        self.at[question] = now
        return True


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a run needs before its first round; the adapter only if it has not started."""

    probe: Probe
    initial: Adapter | None
    judged: Accuracy | None


@dataclass(slots=True)
class _Judging:
    """A new adapter on its way through the probe set."""

    round: RoundNumber
    adapter: Adapter
    moments: ServerState
    result: Future[Accuracy]


class Conductor:
    """One run, from its first round to its last. Driven by the coordinator's thread."""

    def __init__(
        self,
        row: RunRow,
        *,
        store: Store,
        fleet: Fleet,
        downloads: Downloads,
        bench: Workbench,
        adder: Adder,
        make_model: MakeModel,
    ) -> None:
        """Stand where the run's rows say it stood."""
        self.plan = read_json(RunPlan, row.plan, source=f"plan of {row.run}")
        self._row = row
        self._store = store
        self._fleet = fleet
        self._downloads = downloads
        self._bench = bench
        self._adder = adder
        self._make_model = make_model
        self._probe: Probe | None = None
        self._preparing: Future[_Prepared] | None = None
        self._judging: _Judging | None = None
        self._round: Round | None = None
        self._sum: SecureSum | None = None
        self._asked = _Asked()
        self._accepted: set[DeviceId] = set()
        self._fetching: set[DeviceId] = set()
        self._progress_at = bench.now()
        self._waiting_since = bench.now()
        self._settled = RoundNumber(0)
        self._failed_in_a_row = 0
        self._invited = 0
        self._reported = 0
        self._moments = ServerState.initial()
        self._adapter: Digest | None = None
        self._judged: Accuracy | None = None
        self.over = False
        self._restore()

    # What peers say

    def accepted(self, device: DeviceId, envelope: Envelope) -> None:
        """A device takes part. Saying so once more is no progress."""
        round_ = self._round
        if (
            round_ is not None
            and self._is_current(envelope)
            and device in round_.outstanding
            and device not in self._accepted
        ):
            self._accepted.add(device)
            self._progress_at = self._bench.now()

    def declined(self, device: DeviceId, envelope: Envelope, message: Declined) -> None:
        """A device does not take part."""
        round_ = self._round
        if (
            round_ is not None
            and self._is_current(envelope)
            and round_.state is State.OPEN
            and device in round_.outstanding
        ):
            self._commit(DeviceDeclined(device, message.code, message.reason[:500]))
            self._progress_at = self._bench.now()

    def progressed(self) -> None:
        """Bytes moved or a device of the cohort said it is training: the lease is renewed."""
        self._progress_at = self._bench.now()

    def is_at_work(self, device: DeviceId) -> None:
        """A device fetches what it needs, or says that it is training."""
        if self._round is not None and device in self._round.outstanding:
            self.progressed()

    def offered(self, device: DeviceId, envelope: Envelope, message: Contribution) -> None:
        """A device has an encrypted update for us."""
        digest = Digest(message.digest)
        try:
            if message.device != device:
                raise ProtocolError("the contribution names another device than its sender")
            if not self._wanted(device, envelope, digest):
                self._answer(device, envelope, Receipt(digest))
                return
            self._check_offer(device, message)
        except (RoundClosed, DuplicateUpdate, ProtocolError) as err:
            log.info("update.refused", device=device, code=err.code)
            self._answer(device, envelope, Refusal(digest, err.code, str(err)))
            return
        if device in self._fetching:
            return
        self._fetching.add(device)
        try:
            self._downloads.fetch(
                digest,
                message.size,
                self._store.update_file(self.plan.run_id, envelope.round, device, digest),
                peer=device,
                now=self._bench.now(),
                finished=lambda path: self._arrived(device, envelope, digest, path),
                failed=lambda err: self._fetching.discard(device),
            )
        except LlmOsError:
            self._fetching.discard(device)  # or its next offer would be taken for this one
            raise

    def key_announced(self, envelope: Envelope, message: KeyAnnouncement) -> None:
        """The key holder made a key pair for a round."""
        round_ = self._round
        if round_ is None or not self._is_current(envelope) or round_.state is not State.PLANNED:
            return
        if not message.answers(self._key_request()):
            self._fail(WrongKey("the key holder announced a key for another layout"))
            return
        self._bring(envelope, message, KeyAnnounced(envelope.raw))

    def opened(self, envelope: Envelope, message: Opened) -> None:
        """The key holder opened this round's sum."""
        round_ = self._round
        if round_ is None or not self._is_current(envelope) or round_.state is not State.CLOSING:
            return
        if message.devices != len(round_.closed):
            self._fail(ProtocolError("the key holder opened a sum over another number of devices"))
            return
        if message.size != np.dtype("<i8").itemsize * self.plan.layout.count:
            self._fail(ProtocolError("the key holder opened a sum of another length"))
            return
        self._bring(envelope, message, SumOpened(Digest(message.digest), message.devices))

    def _bring(
        self, envelope: Envelope, message: KeyAnnouncement | Opened, then: Transition
    ) -> None:
        """Fetch the key holder's blob; ``then`` has happened if the round still stands where it did."""
        round_ = self._round
        assert round_ is not None
        digest, state = Digest(message.digest), round_.state

        def arrived(_path: Path) -> None:
            if self._is_current(envelope) and round_.state is state:
                self._commit(then)
                self.advance()

        self._downloads.fetch(
            digest,
            message.size,
            self._store.blob(digest),
            peer=topics.KEY_HOLDER,
            now=self._bench.now(),
            finished=arrived,
            failed=lambda err: log.warning("blob.damaged", kind=message.kind, error=str(err)),
        )

    def opening_refused(self, envelope: Envelope, code: str, reason: str) -> None:
        """The key holder will not make a key for, or open, this round."""
        if self._round is not None and self._is_current(envelope) and not self._round.is_over:
            self._commit(RoundFailed(code, reason[:500]))
            self.advance()

    def blob_for(self, peer: str, digest: str) -> Path | None:
        """The file that answers a peer's request, if this peer may have it.

        Devices may have the round's adapter and public key; the key holder the
        manifest and the contributions of a closed round. Nobody else's update.
        """
        round_ = self._round
        if round_ is None:
            return None
        if peer == topics.KEY_HOLDER:
            if round_.state is not State.CLOSING:
                return None
            for device in round_.closed:
                if round_.updates[device].digest == digest:
                    return self._file_of(round_.updates[device])
            manifest = self._store.blob(Digest(digest))
            return manifest if digest == self._manifest(round_) else None
        allowed = {str(round_.adapter)}
        if round_.announcement:
            allowed.add(self._announcement(round_).digest)
        path = self._store.blob(Digest(digest))
        return path if digest in allowed and path.exists() else None

    # What is due

    def advance(self) -> None:
        """Take every step that is possible now."""
        if self.over:
            return
        if not self._prepare():
            return
        if self._round is None:
            self._plan_round(RoundNumber(1))
        while self._step():
            pass

    def stop(self, reason: str) -> None:
        """End the run without a further round."""
        if self._round is not None and not self._round.is_over:
            self._commit(RoundFailed("stopped", reason))
            self._settle(self._round)
        self._end("stopped", reason=reason)

    def close(self) -> None:
        """Free what judging holds; the run goes on when it is conducted again."""
        if self._probe is not None:
            self._probe.close()

    def _step(self) -> bool:
        """One step of the current round; whether another may be possible at once."""
        round_, now = self._round, self._bench.now()
        assert round_ is not None
        match round_.state:
            case State.PLANNED:
                return self._ask_for_key(now)
            case State.INVITING:
                return self._invite(round_, now)
            case State.OPEN:
                return self._collect(round_, now)
            case State.CLOSING:
                return self._have_opened(round_, now)
            case State.OPENED:
                return self._apply(round_)
            case State.APPLIED | State.FAILED:
                return self._next_round(round_)

    def _ask_for_key(self, now: float) -> bool:
        if self.plan.scheme is Scheme.CLEAR:
            self._commit(KeyAnnounced(b""))
            return True
        if self._key_holder_is_silent(now):
            return True
        if self._asked.due("key", now):
            self._to_holder(self._key_request())
        return False

    def _key_request(self) -> KeyRequest:
        return KeyRequest.of(self.plan.scheme, self.plan.layout)

    def _key_holder_is_silent(self, now: float) -> bool:
        """Whether the key holder has been waited for long enough; the round has then failed."""
        patience_s = self.plan.job.cohort.round_timeout_s
        if now - self._progress_at <= patience_s:
            return False
        self._fail(RoundError(f"the key holder did not answer for {patience_s:.0f} s"))
        return True

    def _invite(self, round_: Round, now: float) -> bool:
        cohort, protection = self.plan.job.cohort, self.plan.job.protection
        present = self._fleet.present()
        wanted = cohort.devices or protection.min_devices
        waited = now - self._waiting_since
        if len(present) < wanted or (not cohort.devices and waited < SETTLE_S):
            if self._asked.due("call", now):
                self._fleet.call()
            if waited >= cohort.round_timeout_s:
                self._fail(CohortTooSmall(present=len(present), required=protection.min_devices))
                return True
            if len(present) < protection.min_devices or waited < cohort.patience_s:
                return False
        drawn = draw_cohort(
            present,
            cohort.devices,
            most=protection.max_devices,
            dropout=1 - self._reported / self._invited if self._invited else 0.0,
            rng=cohort_stream(self.plan.seed, self.plan.run_id, round_.number),
        )
        self._commit(Invited(drawn, now))
        self._progress_at = now
        return True

    def _collect(self, round_: Round, now: float) -> bool:
        cohort = self.plan.job.cohort
        for device in round_.outstanding:
            _, state = self._fleet.heard(device)
            if device in self._accepted and state != "idle":
                continue
            if self._asked.due(f"invite/{device}", now):
                self._send(device, self._invitation(round_))
        expired = (
            now - self._progress_at > cohort.lease_s
            or now - round_.invited_at > cohort.round_timeout_s
        )
        enough = cohort.devices and len(round_.updates) >= cohort.devices
        if round_.outstanding and not expired and not enough:
            return False
        try:
            closed = round_.close()
        except CohortTooSmall as err:
            self._fail(err)
            return True
        self._commit(closed)
        return True

    def _have_opened(self, round_: Round, now: float) -> bool:
        if self.plan.scheme is Scheme.CLEAR:
            total, _ = self._secure_sum(round_).total()
            values = opener_for(Scheme.CLEAR, self.plan.layout).open(
                total, secret_key=b"", context=self._context(round_), devices=len(round_.closed)
            )
            digest = self._store.keep(np.asarray(values, "<i8").tobytes())
            self._commit(SumOpened(digest, len(round_.closed)))
            return True
        if self._key_holder_is_silent(now):
            return True
        if self._asked.due("open", now):
            manifest = self._manifest(round_)
            _, total_digest = self._secure_sum(round_).total()
            size = self._store.blob(manifest).stat().st_size
            self._to_holder(OpenRequest(manifest, size, total_digest))
        return False

    def _apply(self, round_: Round) -> bool:
        """Make the next adapter, have it judged beside this thread, then take or reject it."""
        if self._judging is None or self._judging.round != round_.number:
            try:
                new, moments = self._moved(round_)
            except (GateRefused, NonFiniteUpdate) as err:
                self._reject(round_, str(err))
                return True
            self._judge(round_, new, moments)
        judging = self._judging
        assert judging is not None
        if not judging.result.done():
            return False
        self._judging = None
        try:
            after, before = judging.result.result(), self._judged
        except LlmOsError as err:
            self._fail(err)
            return True
        assert before is not None
        # A guess among C labels; a language model has no worse guess than where it stood.
        chance = math.log(len(self.plan.labels)) if self.plan.labels else before.loss
        if not after.loss <= LOSS_MARGIN * max(before.loss, chance):
            self._reject(
                round_, f"the probe loss would rise from {before.loss:.2f} to {after.loss:.2f}"
            )
            return True
        digest = self._store.keep(judging.adapter.to_bytes())
        self._commit(self._result(digest, after, judging.moments, self._evaluated(round_)))
        return True

    def _moved(self, round_: Round) -> tuple[Adapter, ServerState]:
        """The next adapter out of the opened sum, not yet judged.

        Raises:
            GateRefused, NonFiniteUpdate: the sum cannot come from honest training.
        """
        mean = weighted_mean(self._opened_total(round_), self.plan)
        change, moments = server_step(self.plan.job.server, self._moments, mean)
        gate(change, self.plan)
        return self._read_adapter(round_.adapter).moved(change * self.plan.step_ratios), moments

    def _opened_total(self, round_: Round) -> IntVector:
        assert round_.opened is not None
        data = self._store.blob(round_.opened.digest).read_bytes()
        return np.frombuffer(data, "<i8").astype(np.int64)

    def _judge(self, round_: Round, adapter: Adapter, moments: ServerState) -> None:
        probe = self._probe
        assert probe is not None
        pending: Future[Accuracy] = Future()
        self._judging = judging = _Judging(round_.number, adapter, moments, pending)

        def judged(result: Future[Accuracy]) -> None:
            judging.result = result
            self._progress_at = self._bench.now()

        self._bench.work(lambda: probe.judge(adapter), judged)

    def _reject(self, round_: Round, reason: str) -> None:
        assert self._judged is not None
        log.warning("adapter.rejected", run=self.plan.run, round=round_.number, reason=reason)
        kept = self._result(
            round_.adapter, self._judged, self._moments, self._evaluated(round_), rejected=reason
        )
        self._commit(kept)

    def _evaluated(self, round_: Round) -> Evaluation | None:
        """What the devices' own examples say about the adapter that the round began with."""
        return federated_evaluation(self._opened_total(round_), self.plan)

    def _result(
        self,
        adapter: Digest,
        judged: Accuracy,
        moments: ServerState,
        evaluated: Evaluation | None,
        *,
        rejected: str = "",
    ) -> AdapterApplied:
        return AdapterApplied(
            adapter=adapter,
            accepted=not rejected,
            reason=rejected,
            accuracy=judged.by_group | {"": judged.overall},
            loss=judged.loss,
            moments=self._store.keep(moments.to_bytes()),
            evaluated=dataclasses.asdict(evaluated) if evaluated is not None else {},
        )

    def _next_round(self, round_: Round) -> bool:
        self._settle(round_)
        if self._failed_in_a_row >= min(MAX_FAILED_ROUNDS, self.plan.job.training.rounds):
            assert round_.failure is not None
            self._end("failed", code=round_.failure.code, reason=round_.failure.reason)
            return False
        if round_.number >= self.plan.job.training.rounds:
            self._end("finished")
            return False
        self._plan_round(RoundNumber(round_.number + 1))
        return True

    # How a run begins, goes on and ends

    def _restore(self) -> None:
        milestones = self._store.milestones(self.plan.run_id)
        self.over = not milestones.keys().isdisjoint(ENDINGS)
        if "started" in milestones:
            facts = milestones["started"].facts
            self._adapter = Digest(facts["adapter"])
            self._judged = _as_judged(facts["accuracy"], facts["loss"])
        for number, rows in by_round(self._store.transitions(self.plan.run_id)):
            if self._round is not None:
                self._settle(self._round)
            self._round = Round.replay(
                self.plan.run_id,
                number,
                self.plan.job.protection.min_devices,
                [row.transition for row in rows],
            )
        if self._round is not None:
            self._check_key_holder(self._round)
            log.info(
                "run.resumed", run=self.plan.run, round=self._round.number, state=self._round.state
            )

    def _check_key_holder(self, round_: Round) -> None:
        """Refuse to go on under another key holder than the one that holds the round's key.

        Raises:
            ConfigError: with the round's updates still on disk and none refused.
        """
        if round_.is_over or not round_.announcement:
            return
        if self._fleet.key_holder != claimed_sender(round_.announcement):
            problem = (
                f"round {round_.number} of {self.plan.run} was begun with another key holder: "
                "start with that one's --key-holder"
            )
            raise ConfigError([problem], source="options")

    def _prepare(self) -> bool:
        """Have the probe set embedded and the first adapter judged; whether that is done."""
        if self._probe is not None:
            return True
        if self._preparing is None:
            self._preparing = Future()  # of an answer that is still to come
            plan, row, fresh = self.plan, self._row, self._adapter is None

            def prepare() -> _Prepared:
                cache = self._store.folder / "probe-features"
                examples = read_probe(self._store, row.probe)
                probe = prepare_probe(self._make_model, plan, examples, cache)
                if not fresh:
                    return _Prepared(probe, None, None)
                initial = probe.initial(plan)
                return _Prepared(probe, initial, probe.judge(initial))

            self._bench.work(prepare, self._prepared)
        if not self._preparing.done():
            return False
        try:
            prepared = self._preparing.result()
            self._start_from(prepared)
        except StorageError:
            self._preparing = None
            raise
        except LlmOsError as err:
            self._end("failed", code=err.code, reason=str(err))
            return False
        self._probe = prepared.probe
        self._waiting_since = self._bench.now()
        return True

    def _prepared(self, future: Future[_Prepared]) -> None:
        self._preparing = future

    def _start_from(self, prepared: _Prepared) -> None:
        """Write down what the run starts from, unless that was done before."""
        if prepared.initial is None or prepared.judged is None:
            return
        judged = prepared.judged
        digest = self._store.keep(prepared.initial.to_bytes())
        self._store.add_milestone(
            self.plan.run_id,
            "started",
            {
                "adapter": digest,
                "accuracy": judged.by_group | {"": judged.overall},
                "loss": judged.loss,
            },
            now=self._bench.now(),
        )
        self._adapter, self._judged = digest, judged

    def _plan_round(self, number: RoundNumber) -> None:
        assert self._adapter is not None
        planned = Planned(self._adapter)
        self._store.commit(self.plan.run_id, number, planned, now=self._bench.now())
        self._round = Round.replay(
            self.plan.run_id, number, self.plan.job.protection.min_devices, [planned]
        )
        self._asked = _Asked()
        self._accepted.clear()
        self._fetching.clear()
        self._waiting_since = self._progress_at = self._bench.now()

    def _settle(self, round_: Round) -> None:
        """Take over what a finished round leaves behind, once however often this is tried."""
        if round_.number == self._settled:
            return
        self._settled = round_.number
        self._invited += len(round_.cohort)
        self._reported += len(round_.updates)
        if round_.result is not None:
            self._failed_in_a_row = 0
            self._adapter = round_.result.adapter
            self._judged = _as_judged(round_.result.accuracy, round_.result.loss)
            self._moments = ServerState.from_bytes(
                self._store.blob(round_.result.moments).read_bytes()
            )
        else:
            self._failed_in_a_row += 1
        self._drop_sum()
        self._store.forget_updates(self.plan.run_id, round_.number)

    def _end(self, kind: str, **facts: str) -> None:
        adapter = {"adapter": self._adapter} if self._adapter is not None else {}
        self._store.add_milestone(self.plan.run_id, kind, adapter | facts, now=self._bench.now())
        self.over = True
        self.close()
        for device in self._fleet.known():
            self._send(device, RunOver())
        log.info("run.over", run=self.plan.run, outcome=kind, **facts)

    def _fail(self, err: LlmOsError) -> None:
        self._commit(RoundFailed(err.code, str(err)))

    def _commit(self, transition: Transition) -> None:
        """Check, write down, then let it have happened."""
        round_ = self._round
        assert round_ is not None
        round_.check(transition)
        self._store.commit(self.plan.run_id, round_.number, transition, now=self._bench.now())
        round_.apply(transition)
        if isinstance(transition, Closed | SumOpened | AdapterApplied | RoundFailed):
            log.info("round.moved", run=self.plan.run, round=round_.number, state=round_.state)

    # Updates

    def _wanted(self, device: DeviceId, envelope: Envelope, digest: Digest) -> bool:
        round_ = self._round
        if round_ is None or envelope.round != round_.number:
            if self._store.counted(self.plan.run_id, envelope.round, device) == digest:
                return False
            raise RoundClosed(f"round {envelope.round} of {self.plan.run} is over")
        return round_.check_update(device, digest)

    def _check_offer(self, device: DeviceId, message: Contribution) -> None:
        round_ = self._round
        assert round_ is not None
        if not is_digest(message.digest):
            raise ProtocolError("an update is named by its SHA-256")
        self._check_original(device, Digest(message.digest))
        expected = cipher_for(self.plan.scheme, self.plan.layout).frame_bytes()
        if message.size != expected:
            raise ProtocolError(f"an update of {message.size} bytes, this run's have {expected}")
        if (message.scheme, message.key_id) != (self.plan.scheme, self._context(round_).key_id):
            raise WrongKey("the update is encrypted under another key or scheme")

    def _check_original(self, device: DeviceId, digest: Digest) -> None:
        """Refuse another device's ciphertext: the key holder would refuse the whole set for it."""
        assert self._round is not None
        if self.plan.scheme is not Scheme.CLEAR and any(
            stored.digest == digest and stored.device != device
            for stored in self._round.updates.values()
        ):
            raise DuplicateUpdate(f"{device} sends the update of another device")

    def _arrived(self, device: DeviceId, envelope: Envelope, digest: Digest, path: Path) -> None:
        """An update is complete and on disk: fold it, write it down, send the receipt."""
        self._fetching.discard(device)
        round_ = self._round
        assert round_ is not None
        try:
            if not self._wanted(device, envelope, digest):
                self._answer(device, envelope, Receipt(digest))
                return
            self._check_original(device, digest)
        except LlmOsError as err:
            self._turn_down(device, envelope, digest, path, err)
            return
        secure_sum = self._secure_sum(round_)  # of earlier updates: no fault of this one
        try:
            secure_sum.fold(path)
        except StorageError:
            raise  # not the update's fault: it is offered again
        except LlmOsError as err:
            self._turn_down(device, envelope, digest, path, err)
            return
        try:
            self._commit(UpdateStored(device, digest, envelope.raw))
        except StorageError:
            # The total holds an update that no row names: forget it, the files rebuild it.
            self._drop_sum()
            raise
        self._progress_at = self._bench.now()
        self._answer(device, envelope, Receipt(digest))
        self.advance()

    def _turn_down(
        self, device: DeviceId, envelope: Envelope, digest: Digest, path: Path, err: LlmOsError
    ) -> None:
        """Refuse an update that is here already, and leave no trace of it."""
        path.unlink(missing_ok=True)
        log.warning("update.refused", device=device, code=err.code)
        self._answer(device, envelope, Refusal(digest, err.code, str(err)))

    def _secure_sum(self, round_: Round) -> SecureSum:
        if self._sum is None:
            rebuilt = SecureSum(
                self._adder, self.plan.layout, self.plan.scheme, self._context(round_)
            )
            for stored in round_.updates.values():
                rebuilt.fold(self._file_of(stored))
            self._sum = rebuilt  # only now: half a sum must never be taken for one
        return self._sum

    def _drop_sum(self) -> None:
        """Forget the running total; the stored updates rebuild it."""
        dropped, self._sum = self._sum, None
        if dropped is not None:
            with contextlib.suppress(ChildDied):  # then there is nothing left to discard
                dropped.discard()

    def _file_of(self, stored: UpdateStored) -> Path:
        assert self._round is not None
        return self._store.update_file(
            self.plan.run_id, self._round.number, DeviceId(stored.device), stored.digest
        )

    def _manifest(self, round_: Round) -> Digest:
        records = [round_.updates[device].record for device in round_.closed]
        return self._store.keep(codec.encode(records))

    def _context(self, round_: Round) -> SumContext:
        key_id = self._announcement(round_).key_id if round_.announcement else key_id_of(b"")
        return SumContext(self.plan.run_id, round_.number, key_id)

    def _announcement(self, round_: Round) -> KeyAnnouncement:
        holder = self._fleet.key_holder
        assert holder is not None
        message = open_sealed(round_.announcement, expected=holder).message
        assert isinstance(message, KeyAnnouncement)
        return message

    def _invitation(self, round_: Round) -> Invitation:
        size = self._store.blob(round_.adapter).stat().st_size
        return Invitation(self._row.plan, round_.adapter, size, round_.announcement)

    def _read_adapter(self, digest: Digest) -> Adapter:
        return Adapter.from_bytes(self._store.blob(digest).read_bytes())

    def _is_current(self, envelope: Envelope) -> bool:
        return (
            self._round is not None
            and envelope.run == self.plan.run
            and envelope.round == self._round.number
        )

    def _send(self, device: DeviceId, message: Invitation | RunOver) -> None:
        number = self._round.number if self._round is not None else RoundNumber(0)
        self._fleet.send(device, message, run=self.plan.run_id, round_=number)

    def _answer(self, device: DeviceId, envelope: Envelope, message: Receipt | Refusal) -> None:
        self._fleet.save_replay_guard()
        self._fleet.send(device, message, run=envelope.run, round_=envelope.round)

    def _to_holder(self, message: KeyRequest | OpenRequest) -> None:
        assert self._round is not None
        self._fleet.send(
            DeviceId(topics.KEY_HOLDER),
            message,
            run=self.plan.run_id,
            round_=self._round.number,
        )


def _as_judged(accuracy: Mapping[str, float], loss: float) -> Accuracy:
    """What was written down about an adapter; how many examples there were is not needed again."""
    groups = {name: value for name, value in accuracy.items() if name}
    return Accuracy(accuracy[""], groups, loss, count=0)
