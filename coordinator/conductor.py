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
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import structlog

from coordinator.federation.cohort import cohort_stream, draw_cohort
from coordinator.federation.robust import robust_middle
from coordinator.federation.rounds import (
    AdapterApplied,
    Closed,
    DeviceDeclined,
    Invited,
    KeyAnnounced,
    Planned,
    Proposed,
    Quorum,
    Round,
    RoundFailed,
    SetFixed,
    State,
    SumOpened,
    Transition,
)
from coordinator.federation.server_update import (
    ServerState,
    federated_evaluation,
    gate,
    server_step,
    share_saturated,
    weighted_mean,
)
from coordinator.fleet.fleet import Fleet
from coordinator.probe import MakeModel, Probe, prepare_probe
from coordinator.store.store import ENDINGS, RunRow, Store, by_round
from coordinator.submission import read_probe
from coordinator.updates import Updates
from coordinator.watch.sightings import NoSightings, Sightings
from shared.actors import Workbench
from shared.config import read_json
from shared.crypto.sum_cipher import Adder, Scheme
from shared.errors import (
    AlreadyOpened,
    AlreadyReleased,
    CohortTooSmall,
    ConfigError,
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
from shared.types import DeviceId, Digest, FloatVector, IntMatrix, RoundNumber
from shared.wire import topics
from shared.wire.chunks import Downloads
from shared.wire.envelope import Envelope, claimed_sender
from shared.wire.messages import (
    Contribution,
    Declined,
    FixRequest,
    Invitation,
    KeyAnnouncement,
    KeyRequest,
    Opened,
    OpenRequest,
    Receipt,
    Refusal,
    RunOver,
    SumSet,
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
        watch: Sightings | None = None,
    ) -> None:
        """Stand where the run's rows say it stood; ``watch`` is told which updates are refused."""
        self.plan = read_json(RunPlan, row.plan, source=f"plan of {row.run}")
        self._row = row
        self._store = store
        self._fleet = fleet
        self._downloads = downloads
        self._bench = bench
        self._adder = adder
        self._make_model = make_model
        self._watch = watch or NoSightings()
        self._probe: Probe | None = None
        self._preparing: Future[_Prepared] | None = None
        self._judging: _Judging | None = None
        self._round: Round | None = None
        self._updates: Updates | None = None
        self._asked = _Asked()
        self._accepted: set[DeviceId] = set()
        self._progress_at = bench.now()
        self._waiting_since = bench.now()
        self._settled = RoundNumber(0)
        self._failed_in_a_row = 0
        self._learnt = False
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
            self._commit(DeviceDeclined(device, message.code[:64], message.reason[:500]))

    def progressed(self) -> None:
        """Bytes moved or a device of the cohort said it is training: the lease is renewed."""
        self._progress_at = self._bench.now()

    def is_at_work(self, device: DeviceId) -> None:
        """A device fetches what it needs, or says that it is training."""
        if self._round is not None and device in self._round.outstanding:
            self.progressed()

    def offered(self, device: DeviceId, envelope: Envelope, message: Contribution) -> None:
        """A device has an encrypted update for us."""
        updates = self._updates
        if updates is not None and self._is_current(envelope):
            updates.offered(device, envelope, message)
            return
        digest = Digest(message.digest)
        answer: Receipt | Refusal = Receipt(digest)
        if self._store.counted(self.plan.run_id, envelope.round, device) != digest:
            reason = f"round {envelope.round} of {self.plan.run} is over"
            answer = Refusal(digest, RoundClosed.code, reason)
        self._fleet.save_replay_guard()
        self._fleet.send(device, answer, run=envelope.run, round_=envelope.round)

    def key_announced(self, envelope: Envelope, message: KeyAnnouncement) -> None:
        """The key holder made a key pair for a round."""
        round_ = self._round
        if round_ is None or not self._is_current(envelope) or round_.state is not State.PLANNED:
            return
        if not message.answers(self._key_request()):
            self._fail(WrongKey("the key holder announced a key for another layout"))
            return
        self._bring(envelope, message, KeyAnnounced(envelope.raw))

    def set_fixed(self, envelope: Envelope, message: SumSet) -> None:
        """The key holder fixed whose updates may be summed."""
        round_, updates = self._round, self._updates
        if round_ is None or not self._is_current(envelope) or round_.state is not State.FIXING:
            return
        assert updates is not None
        try:
            fixed = updates.set_of(envelope, message)
        except ProtocolError as err:
            self._fail(err)
            return
        self._commit(fixed)
        updates.turn_away()
        self.advance()

    def opened(self, envelope: Envelope, message: Opened) -> None:
        """The key holder opened this round's sums."""
        round_ = self._round
        if round_ is None or not self._is_current(envelope) or round_.state is not State.CLOSING:
            return
        if message.devices != len(round_.closed):
            self._fail(ProtocolError("the key holder opened a sum over another number of devices"))
            return
        values = self.plan.layout.count * len(round_.summed_groups())
        if message.size != np.dtype("<i8").itemsize * values:
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
            self._commit(RoundFailed(code[:64], reason[:500]))
            self.advance()

    def blob_for(self, peer: str, digest: str) -> Path | None:
        """The file that answers a peer's request, if this peer may have it.

        Devices may have the round's adapter and public key; the key holder the
        manifest while the set is fixed, and the updates of a closed round. Nobody
        may have another device's update.
        """
        round_, updates = self._round, self._updates
        if round_ is None or updates is None:
            return None
        if peer == topics.KEY_HOLDER:
            if round_.state is State.FIXING:
                manifest = updates.manifest()
                return self._store.blob(manifest) if digest == manifest else None
            return updates.file(digest) if round_.state is State.CLOSING else None
        allowed = {str(round_.adapter)}
        if (announcement := updates.announcement) is not None:
            allowed.add(announcement.digest)
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
                more = self._ask_for_key(now)
            case State.INVITING:
                more = self._invite(round_, now)
            case State.OPEN:
                more = self._collect(round_, now)
            case State.FIXING:
                more = self._have_fixed(now)
            case State.GATHERING:
                more = self._gather(round_, now)
            case State.CLOSING:
                more = self._have_opened(round_, now)
            case State.OPENED:
                more = self._apply(round_)
            case State.APPLIED | State.FAILED:
                more = self._next_round(round_)
        return more

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
        protection = self.plan.job.protection
        return KeyRequest.of(
            self.plan.scheme, self.plan.layout, protection.groups, protection.min_devices
        )

    def _key_holder_is_silent(self, now: float) -> bool:
        """Whether the key holder has been waited for long enough; the round has then failed."""
        patience_s = self.plan.job.cohort.round_timeout_s
        if now - self._progress_at <= patience_s:
            return False
        self._fail(RoundError(f"the key holder did not answer for {patience_s:.0f} s"))
        return True

    def _invite(self, round_: Round, now: float) -> bool:
        cohort, protection = self.plan.job.cohort, self.plan.job.protection
        here = self._fleet.present()
        present = [device for device in here if not self._fleet.unable(device)]
        fewest = round_.quorum.devices
        wanted = cohort.devices or fewest
        waited = now - self._waiting_since
        if len(present) < wanted or (not cohort.devices and waited < SETTLE_S):
            if self._asked.due("call", now):
                self._fleet.call()
            if waited >= cohort.round_timeout_s:
                self._fail(self._too_few(here, len(present), fewest))
                return True
            if len(present) < fewest or waited < cohort.patience_s:
                return False
        drawn = draw_cohort(
            present,
            cohort.devices,
            most=protection.most,
            dropout=1 - self._reported / self._invited if self._invited else 0.0,
            rng=cohort_stream(self.plan.seed, self.plan.run_id, round_.number),
        )
        self._commit(Invited(drawn, now))
        return True

    def _too_few(self, here: Sequence[DeviceId], able: int, fewest: int) -> CohortTooSmall:
        """Why nobody is invited; with what keeps those who are here, as they said."""
        reasons = Counter(self._fleet.unable(device) for device in here)
        del reasons[""]
        log.warning("cohort.too_small", run=self.plan.run, able=able, unable=dict(reasons))
        return CohortTooSmall(present=able, required=fewest, unable=reasons)

    def _collect(self, round_: Round, now: float) -> bool:
        """Invite until everybody owed has committed to an update, declined, or been given up."""
        cohort = self.plan.job.cohort
        for device in round_.outstanding:
            _, state = self._fleet.heard(device)
            if device in self._accepted and state != "idle":
                continue
            if self._asked.due(f"invite/{device}", now):
                self._send(device, self._invitation(round_))
        enough = cohort.devices and len(round_.commitments) >= cohort.devices
        if round_.outstanding and not enough and not self._is_late(round_.invited_at, now):
            return False
        try:
            proposed = round_.propose()
        except CohortTooSmall as err:
            self._fail(err)
            return True
        self._commit(proposed)
        return True

    def _is_late(self, since: float, now: float) -> bool:
        """Whether devices have been waited for long enough."""
        cohort = self.plan.job.cohort
        return now - self._progress_at > cohort.lease_s or now - since > cohort.round_timeout_s

    def _have_fixed(self, now: float) -> bool:
        """Have the key holder fix the set; in clear there is nobody to ask."""
        updates = self._updates
        assert updates is not None
        if self.plan.scheme is Scheme.CLEAR:
            self._commit(updates.set_in_clear())
            return True
        if self._key_holder_is_silent(now):
            return True
        if self._asked.due("fix", now):
            manifest = updates.manifest()
            size = self._store.blob(manifest).stat().st_size
            self._to_holder(FixRequest(manifest, size))
        return False

    def _gather(self, round_: Round, now: float) -> bool:
        """Ask for the updates of the fixed set until all are here or have been given up."""
        updates = self._updates
        assert updates is not None
        assert round_.fixed is not None
        for device in round_.outstanding:
            if self._asked.due(f"hand over/{device}", now):
                updates.ask(device)
            if round_.state is not State.GATHERING:
                return True  # what was left was on disk already, and the round has moved on
        if round_.outstanding and not self._is_late(round_.fixed.at, now):
            return False
        try:
            closed = round_.close()
        except CohortTooSmall as err:
            self._fail(err)
            return True
        self._commit(closed)
        return True

    def _have_opened(self, round_: Round, now: float) -> bool:
        updates = self._updates
        assert updates is not None
        if self.plan.scheme is Scheme.CLEAR:
            digest = self._store.keep(updates.opened_in_clear())
            self._commit(SumOpened(digest, len(round_.closed)))
            return True
        if self._key_holder_is_silent(now):
            return True
        if self._asked.due("open", now):
            self._to_holder(updates.open_request())
        return False

    def _apply(self, round_: Round) -> bool:
        """Make the next adapter, have it judged beside this thread, then take or reject it."""
        if self._judging is None or self._judging.round != round_.number:
            try:
                new, moments = self._moved(round_)
            except (GateRefused, NonFiniteUpdate) as err:
                self._reject(round_, str(err))
                return True
            except CohortTooSmall as err:
                self._fail(err)
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
        self._commit(self._result(round_, digest, after, judging.moments))
        return True

    def _moved(self, round_: Round) -> tuple[Adapter, ServerState]:
        """The next adapter out of the opened sums, not yet judged.

        Raises:
            GateRefused, NonFiniteUpdate: the sums cannot come from honest training.
            CohortTooSmall: too few of the groups' sums can.
        """
        mean = self._agreed(self._opened_totals(round_))
        change, moments = server_step(self.plan.job.server, self._moments, mean)
        gate(change, self.plan)
        return self._read_adapter(round_.adapter).moved(change * self.plan.step_ratios), moments

    def _agreed(self, totals: IntMatrix) -> FloatVector:
        """One update out of the groups' sums: their mean, or the robust middle of their means.

        Raises:
            GateRefused, NonFiniteUpdate, CohortTooSmall: as :meth:`_moved`.
        """
        server = self.plan.job.server
        if not server.is_robust:
            return weighted_mean(totals.sum(axis=0), self.plan)
        means = []
        for total in totals:
            with contextlib.suppress(GateRefused):  # no weight: no honest group sums to that
                means.append(weighted_mean(total, self.plan))
        if not means:
            raise GateRefused("no group's sum has any weight")
        return robust_middle(server, np.stack(means))

    def _opened_totals(self, round_: Round) -> IntMatrix:
        """The groups' sums, int64, shape (groups, values)."""
        assert round_.opened is not None
        data = self._store.blob(round_.opened.digest).read_bytes()
        return np.frombuffer(data, "<i8").astype(np.int64).reshape(-1, self.plan.layout.count)

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
        self._commit(
            self._result(round_, round_.adapter, self._judged, self._moments, rejected=reason)
        )

    def _result(
        self,
        round_: Round,
        adapter: Digest,
        judged: Accuracy,
        moments: ServerState,
        *,
        rejected: str = "",
    ) -> AdapterApplied:
        # What rides beside the updates is of all groups together: no rule is to outvote a device.
        total = self._opened_totals(round_).sum(axis=0)
        evaluated = federated_evaluation(total, self.plan)
        return AdapterApplied(
            adapter=adapter,
            accepted=not rejected,
            reason=rejected,
            accuracy=judged.by_group | {"": judged.overall},
            loss=judged.loss,
            moments=self._store.keep(moments.to_bytes()),
            evaluated=dataclasses.asdict(evaluated) if evaluated is not None else {},
            saturated=share_saturated(total, len(round_.closed), self.plan),
        )

    def _next_round(self, round_: Round) -> bool:
        self._settle(round_)
        last = round_.number >= self.plan.job.training.rounds
        too_many = min(MAX_FAILED_ROUNDS, self.plan.job.training.rounds)
        if self._failed_in_a_row >= too_many or (last and not self._learnt):
            assert round_.failure is not None
            self._end("failed", code=round_.failure.code, reason=round_.failure.reason)
            return False
        if last:
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
                Quorum.of(self.plan),
                [row.transition for row in rows],
            )
        if self._round is not None:
            self._check_key_holder(self._round)
            self._updates = self._updates_of(self._round)
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
        self._round = Round.replay(self.plan.run_id, number, Quorum.of(self.plan), [planned])
        self._updates = self._updates_of(self._round)
        self._asked = _Asked()
        self._accepted.clear()
        self._waiting_since = self._progress_at = self._bench.now()

    def _updates_of(self, round_: Round) -> Updates:
        return Updates(
            round_,
            self.plan,
            store=self._store,
            fleet=self._fleet,
            downloads=self._downloads,
            bench=self._bench,
            adder=self._adder,
            commit=self._commit,
            moved=self.advance,
            watch=self._watch,
        )

    def _settle(self, round_: Round) -> None:
        """Take over what a finished round leaves behind, once however often this is tried."""
        if round_.number == self._settled:
            return
        self._settled = round_.number
        self._invited += len(round_.cohort)
        self._reported += len(round_.updates)
        if round_.result is not None:
            self._failed_in_a_row = 0
            self._learnt = True
            self._adapter = round_.result.adapter
            self._judged = _as_judged(round_.result.accuracy, round_.result.loss)
            self._moments = ServerState.from_bytes(
                self._store.blob(round_.result.moments).read_bytes()
            )
        elif not _was_spent(round_):
            self._failed_in_a_row += 1
        if self._updates is not None:
            self._updates.discard()
        if round_.opened is not None and self.plan.compares_devices:
            self._store.forget(round_.opened.digest)  # single updates, in clear
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
        self._progress_at = self._bench.now()
        if isinstance(
            transition, Proposed | SetFixed | Closed | SumOpened | AdapterApplied | RoundFailed
        ):
            log.info("round.moved", run=self.plan.run, round=round_.number, state=round_.state)

    # Small things

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

    def _to_holder(self, message: KeyRequest | FixRequest | OpenRequest) -> None:
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


def _was_spent(round_: Round) -> bool:
    """Whether a round had been conducted before, by this coordinator in a life that was lost.

    After a restore from a backup, devices have released their updates of the rounds since, and the
    key holder has opened the sums: each of these rounds fails, and says nothing of the next.
    """
    failure = round_.failure
    return failure is not None and (
        failure.code == AlreadyOpened.code
        or any(row.code == AlreadyReleased.code for row in round_.declined.values())
    )
