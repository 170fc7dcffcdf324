"""The edge agent as an actor: present, asked, training, sending, idle again.

Holds neither torch nor a web framework: training runs in a child process, and
``participate`` on a worker thread, so that the agent always answers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from edge_agent.about import SelfDescription
from edge_agent.inference.answering import CoordinatorAnswer
from edge_agent.outbox import Outbox, Waiting
from edge_agent.participate import Home, Invited, Owner, check_allowed, participate
from edge_agent.releases import Releases
from edge_agent.training.trainer import Trainer
from shared.actors import Workbench
from shared.config import read_json
from shared.crypto.sum_cipher import Scheme, key_id_of
from shared.crypto.sum_groups import commitment_to, drawn_groups, parted
from shared.errors import (
    BudgetExceeded,
    CohortTooSmall,
    ConditionsNotMet,
    ConfigError,
    CoordinatorUnavailable,
    LlmOsError,
    OwnerRefuses,
    ProtocolError,
    SeedRefused,
    WrongKey,
)
from shared.files import append_durably
from shared.job import RunPlan
from shared.privacy.release import ReleaseSeeds
from shared.transport.transport import Transport
from shared.types import Digest, PublicKey, RoundNumber, RunId
from shared.wire import topics
from shared.wire.chunks import Downloads, serve_blob
from shared.wire.envelope import NO_ROUND, NO_RUN, Envelope, Post, open_sealed
from shared.wire.messages import (
    About,
    Accepted,
    BlobChunk,
    BlobRequest,
    Call,
    Contribution,
    Declined,
    HandOver,
    Invitation,
    KeyAnnouncement,
    KeyRequest,
    Message,
    Presence,
    Question,
    Receipt,
    Refusal,
    Release,
    Reply,
    RunOver,
    SumSet,
)

PRESENCE_S: Final = 5.0
ANSWERING_S: Final = 60.0
"""How often the coordinator hears what this device answers with."""

ABOUT_S: Final = 15.0
"""How often this device looks whether it has something new to tell of itself."""

ABOUT_AGAIN_S: Final = 600.0
"""How often it tells that in any case: a message may be lost."""

REPEAT_S: Final = 3.0
REPEAT_AT_MOST_S: Final = 60.0
"""An update is announced again after 3 s, then half as often each time: while others still
train there is no answer to it."""

MAX_TRIES: Final = 3
"""A round in which training fails this often is declined: it would block everybody else."""

WARM_S: Final = 600.0
"""How long the training child is kept when nobody said that its run is over."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom this device believes; pinned when it joined.

    Attributes:
        coordinator: The coordinator's public key.
        key_holder: The key holder's, from its owner and never from the
            coordinator; None takes part in clear runs only.
        min_devices: Fewest devices in an opened sum that the owner accepts.
        clear_runs: Whether updates may be added in clear, readable by the
            coordinator.
    """

    coordinator: PublicKey
    key_holder: PublicKey | None
    min_devices: int
    clear_runs: bool = False


@dataclass(slots=True)
class _Task:
    """The round this device is in."""

    plan: RunPlan
    round: RoundNumber
    key_id: str
    draw: str
    bytes_before: int
    started_at: float
    adapter: Path | None = None
    public_key: Path | None = None
    training: bool = False
    fetched: list[Digest] = field(default_factory=list)


@dataclass(slots=True)
class _Announcing:
    """When an update without an answer is announced again."""

    due_at: float = float("-inf")
    pause_s: float = REPEAT_S


class Agent:
    """One device. Driven by one thread."""

    def __init__(
        self,
        home: Home,
        *,
        owner: Owner,
        trust: Trust,
        transport: Transport,
        post: Post,
        trainer: Trainer,
        bench: Workbench,
        on_release: Callable[[], None] = lambda: None,
        unmet: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """Stand where the files in ``home`` say it stood.

        ``on_release`` is called when another model or adapter is in force; ``unmet`` names the
        owner's conditions that do not hold now, each with a sentence for the owner.
        """
        self._home = home
        self._owner = owner
        self._trust = trust
        self._transport = transport
        self._post = post
        self._trainer = trainer
        self._bench = bench
        self._outbox = Outbox(home.outbox)
        self._downloads = Downloads(self._request)

        def installed() -> None:
            on_release()
            self._show_answering()

        self._releases = Releases(home, self._downloads, bench, installed)
        self._questions: dict[str, Future[CoordinatorAnswer]] = {}
        self._answering_at = float("-inf")
        self._out = ""
        """Why nobody listens to this device, as it was told last."""
        self._description = SelfDescription(home, owner, lambda: next(iter(unmet()), ""))
        self._unmet = unmet
        self._about_at = float("-inf")
        self._told: tuple[About, float] | None = None
        """What it told of itself last, and when."""
        self._task: _Task | None = None
        self._present_at = float("-inf")
        self._worked_at = float("inf")
        self._announcing: dict[str, _Announcing] = {}
        self._handed_over: set[str] = set()
        self._rounds: dict[tuple[RunId, RoundNumber], tuple[int, float]] = {}
        self._failures: Counter[tuple[RunId, RoundNumber]] = Counter()

    @property
    def topics(self) -> Sequence[str]:
        """The device's own branch, and the call to everyone."""
        return (topics.down(self._owner.device), topics.CALL)

    def receive(self, topic: str, payload: bytes) -> None:
        """Take one message of the coordinator; everything else is refused and logged."""
        try:
            envelope = self._post.open(payload, expected=self._trust.coordinator)
            self._handle(envelope)
        except ProtocolError as err:
            log.warning("message.refused", topic=topic[:80], code=err.code, error=str(err))

    def tick(self) -> float:
        """Do what is due: presence, stalled downloads, updates without a receipt."""
        now = self._bench.now()
        self._downloads.tick(now)
        if now - self._present_at >= PRESENCE_S:
            self._show()
        if now - self._answering_at >= ANSWERING_S:
            self._show_answering()
        if now - self._about_at >= ABOUT_S:
            self._show_about()
        if self._task is None and now - self._worked_at >= WARM_S:
            self._worked_at = float("inf")
            self._trainer.close()
        waiting = self._outbox.waiting()
        for update in waiting:
            announcing = self._announcing.get(update.digest)
            if announcing is None or now >= announcing.due_at:
                self._announce(update)
        return 0.5 if waiting or self._downloads.under_way else PRESENCE_S

    def close(self) -> None:
        """End the training child."""
        self._trainer.close()

    def _handle(self, envelope: Envelope) -> None:
        match envelope.message:
            case BlobChunk() as chunk:
                self._downloads.receive("coordinator", chunk, self._bench.now())
            case BlobRequest() as request:
                self._serve(request)
            case Call():
                self._told = None  # whoever calls has just started, and knows nothing
                self._show()
                self._show_answering()
                self._show_about()
            case Release() as release:
                self._releases.offered(release)
            case Reply() as reply:
                self._replied(reply)
            case Invitation() as invitation:
                self._invited(envelope, invitation)
            case HandOver(fixed=fixed):
                self._hand_over(envelope, fixed)
            case Receipt(digest=digest):
                self._settled(digest, "receipt")
            case Refusal(digest="", code=code, reason=reason):
                self._kept_out(code, reason)
            case Refusal(digest=digest, code=code, reason=reason):
                log.warning("update.refused", code=code, reason=reason)
                self._settled(digest, "refused")
            case RunOver():
                self._run_over(envelope.run)
            case message:
                raise ProtocolError(f"the coordinator may not send a '{message.kind}'")

    def _kept_out(self, code: str, reason: str) -> None:
        """The coordinator listens to nothing of this device; it goes on to answer here."""
        if reason != self._out:
            self._out = reason
            log.error(
                "device.kept_out",
                code=code,
                reason=reason[:200],
                advice="ask whoever runs the coordinator; questions are answered here as before",
            )

    # Questions to the coordinator's model

    def ask(self, question: str, text: str, answer: Future[CoordinatorAnswer]) -> None:
        """Send a question under an identifier of its own; the reply completes ``answer``."""
        self._questions[question] = answer
        self._send(Question(question, text), NO_RUN, NO_ROUND)

    def forget_question(self, question: str) -> None:
        """Nobody waits for this reply any more."""
        self._questions.pop(question, None)

    def _replied(self, reply: Reply) -> None:
        waiting = self._questions.pop(reply.question, None)
        if waiting is None:
            return  # it came too late
        if reply.code:
            waiting.set_exception(CoordinatorUnavailable(reply.reason or reply.code))
        else:
            waiting.set_result(CoordinatorAnswer(reply.text, reply.model, bool(reply.stand_in)))

    # An invitation

    def _invited(self, envelope: Envelope, invitation: Invitation) -> None:
        run, round_ = envelope.run, envelope.round
        self._out = ""
        task = self._task
        if task is not None and (task.plan.run_id, task.round) == (run, round_):
            self._send(Accepted(), run, round_)
            return
        waiting = self._outbox.find(run, round_)
        if waiting is not None:
            self._send(Accepted(), run, round_)
            self._announce(waiting)
            return
        if task is not None and task.training:
            self._decline(run, round_, "device.busy", "training for another round")
            return
        try:
            plan, announcement = self._checked(envelope, invitation)
            check_allowed(plan, round_, self._home, self._owner)
            self._check_conditions(run, round_)
        except LlmOsError as err:
            self._decline_for(run, round_, err)
            return
        except (ArithmeticError, ValueError) as err:
            self._decline_for(run, round_, _impossible(err))
            return
        self._forget_task()
        key_id = announcement.key_id if announcement is not None else key_id_of(b"")
        draw = announcement.draw if announcement is not None else ""
        now = self._bench.now()
        self._task = task = _Task(plan, round_, key_id, draw, self._transport.bytes_out, now)
        try:
            self._fetch(task, "adapter", Digest(invitation.adapter), invitation.adapter_bytes)
            if announcement is not None:
                self._fetch(task, "public_key", Digest(announcement.digest), announcement.size)
        except LlmOsError:
            self._forget_task()  # or the next invitation would be taken for one under way
            raise
        self._send(Accepted(), run, round_)

    def _check_conditions(self, run: RunId, round_: RoundNumber) -> None:
        """Whether the owner's conditions hold; if not, the coordinator is told.

        A round whose seed is on disk was begun before a crash, and charged: it is finished.

        Raises:
            ConditionsNotMet: one does not.
        """
        begun = ReleaseSeeds(self._home.seeds).holds(run, round_)
        problems = {} if begun else self._unmet()
        if problems:
            log.info("conditions.unmet", **problems)
            self._show_about()  # so that it asks others meanwhile
            raise ConditionsNotMet(problems)

    def _checked(
        self, envelope: Envelope, invitation: Invitation
    ) -> tuple[RunPlan, KeyAnnouncement | None]:
        """Whether this is a round that the device may take part in.

        Raises:
            ConfigError: the plan is not one.
            WrongKey: the round's key is not from the pinned key holder, or not
                for this run, round and layout.
            OwnerRefuses: too few devices would be in the sum, or it is in clear.
        """
        plan = read_json(RunPlan, invitation.plan, source="run plan")
        if plan.run != envelope.run or not 1 <= envelope.round <= plan.job.training.rounds:
            raise ConfigError(["the plan belongs to another run or round"], source="run plan")
        if plan.scheme is Scheme.CLEAR:
            if not self._trust.clear_runs:
                raise OwnerRefuses("this device's owner does not allow updates in clear")
            return plan, None
        if self._trust.key_holder is None:
            raise WrongKey(
                "this device was joined without a key holder: run 'llmos edge join' anew"
            )
        signed = open_sealed(invitation.announcement, expected=self._trust.key_holder)
        announcement = signed.message
        asked = plan.job.protection.groups, plan.job.protection.min_devices
        if (
            not isinstance(announcement, KeyAnnouncement)
            or (signed.run, signed.round) != (envelope.run, envelope.round)
            or not announcement.answers(KeyRequest.of(plan.scheme, plan.layout, *asked))
        ):
            raise WrongKey("the key holder's announcement is for another round or layout")
        if announcement.min_devices < self._trust.min_devices:
            raise OwnerRefuses(
                f"the key holder opens sums over {announcement.min_devices} devices, this "
                f"device's owner asks for at least {self._trust.min_devices}"
            )
        return plan, announcement

    def _fetch(self, task: _Task, what: str, digest: Digest, size: int) -> None:
        def arrived(path: Path) -> None:
            setattr(task, what, path)
            self._train_if_complete(task)

        def failed(err: LlmOsError) -> None:
            log.warning("download.damaged", what=what, error=str(err))
            if task is self._task:
                self._forget_task()  # the next invitation begins anew

        task.fetched.append(digest)
        self._downloads.fetch(
            digest,
            size,
            self._home.blobs / digest,
            peer="coordinator",
            now=self._bench.now(),
            finished=arrived,
            failed=failed,
        )

    def _forget_task(self) -> None:
        """Leave a round before training: what it was fetching is fetched no more."""
        task, self._task = self._task, None
        if task is not None:
            for digest in task.fetched:
                self._downloads.forget("coordinator", digest)
                (self._home.blobs / digest).unlink(missing_ok=True)

    def _train_if_complete(self, task: _Task) -> None:
        if task.adapter is None or task.training or task is not self._task:
            return
        if task.plan.scheme is not Scheme.CLEAR and task.public_key is None:
            return
        try:
            # Again, since fetching took a while.
            self._check_conditions(task.plan.run_id, task.round)
        except ConditionsNotMet as err:
            self._forget_task()
            self._decline_for(task.plan.run_id, task.round, err)
            return
        task.training = True
        invited = Invited(
            plan=task.plan,
            round=task.round,
            adapter=task.adapter.read_bytes(),
            public_key=task.public_key.read_bytes() if task.public_key is not None else b"",
            key_id=task.key_id,
        )
        self._show()
        self._bench.work(
            lambda: participate(invited, self._home, self._owner, self._trainer),
            lambda result: self._trained(task, result),
        )

    def _trained(self, task: _Task, result: Future[bytes]) -> None:
        """An update is ready, or will not be."""
        run, round_ = task.plan.run_id, task.round
        self._task = None
        self._worked_at = self._bench.now()
        try:
            waiting = self._outbox.put(
                run,
                round_,
                result.result(),
                scheme=task.plan.scheme,
                key_id=task.key_id,
                draw=task.draw,
            )
        except LlmOsError as err:
            log.error("participation.failed", run=run, round=round_, code=err.code, error=str(err))
            self._failures[run, round_] += 1
            if not err.retryable or self._failures[run, round_] >= MAX_TRIES:
                self._decline_for(run, round_, err)
        except (ArithmeticError, ValueError) as err:
            self._decline_for(run, round_, _impossible(err))
        else:
            self._rounds[run, round_] = (task.bytes_before, task.started_at)
            self._announce(waiting)
        for blob in (task.adapter, task.public_key):
            if blob is not None:
                blob.unlink(missing_ok=True)
        self._show()

    # An update on its way

    def _announce(self, waiting: Waiting) -> None:
        """Commit to an update by its digest; nothing of it leaves with that (O3)."""
        announcing = self._announcing.setdefault(waiting.digest, _Announcing())
        announcing.due_at = self._bench.now() + announcing.pause_s
        announcing.pause_s = min(2 * announcing.pause_s, REPEAT_AT_MOST_S)
        message = Contribution(
            device=self._owner.device,
            digest=waiting.digest,
            size=waiting.size,
            scheme=waiting.scheme,
            key_id=waiting.key_id,
        )
        self._send(message, waiting.run, waiting.round)

    def _hand_over(self, envelope: Envelope, fixed: bytes) -> None:
        """Let the round's update leave when it is asked for, if the set allows it (O3)."""
        waiting = self._outbox.find(envelope.run, envelope.round)
        if waiting is None:
            return
        try:
            self._check_set(waiting, fixed)
        except (ProtocolError, CohortTooSmall, OwnerRefuses) as err:
            log.warning("update.withheld", run=waiting.run, code=err.code, error=str(err))
            return
        self._handed_over.add(waiting.digest)

    def _check_set(self, waiting: Waiting, fixed: bytes) -> None:
        """Whether the pinned key holder will open this update in a large enough sum only.

        Raises:
            ProtocolError: the set is not the key holder's, not this round's, or
                its groups were not drawn as announced.
            CohortTooSmall: the device's group is smaller than its owner asks for.
            OwnerRefuses: the owner does not allow updates in clear.
        """
        if waiting.scheme == Scheme.CLEAR:
            if not self._trust.clear_runs:
                raise OwnerRefuses("this device's owner does not allow updates in clear")
            return
        if self._trust.key_holder is None:
            raise WrongKey("this device was joined without a key holder")
        signed = open_sealed(fixed, expected=self._trust.key_holder)
        sum_set = signed.message
        if (
            not isinstance(sum_set, SumSet)
            or (signed.run, signed.round) != (waiting.run, waiting.round)
            or sum_set.key_id != waiting.key_id
        ):
            raise WrongKey("the key holder fixed this set for another round or key")
        digests = parted(sum_set.digests)
        drawn_as_announced = commitment_to(sum_set.seed) == waiting.draw
        if not drawn_as_announced or not 1 <= sum_set.groups <= len(digests):
            raise ProtocolError("the groups were not drawn from what the key holder committed to")
        groups = drawn_groups(sum_set.seed, digests, sum_set.groups)
        size = next((len(group) for group in groups if waiting.digest in group), 0)
        if size == 0:
            raise ProtocolError("the fixed set does not hold this update")
        if size < self._trust.min_devices:
            raise CohortTooSmall(present=size, required=self._trust.min_devices)

    def _serve(self, request: BlobRequest) -> None:
        path = self._outbox.frame(request.digest)
        if path is None or request.digest not in self._handed_over:
            return
        for chunk in serve_blob(request, path):
            self._send(chunk, NO_RUN, NO_ROUND)

    def _settled(self, digest: str, outcome: str) -> None:
        for waiting in self._outbox.waiting():
            if waiting.digest == digest:
                self._write_journal(waiting, outcome)
                self._post.guard.save()
                # The seed first: with it and an empty outbox, an invitation to the same round
                # with another adapter would be answered under the same noise.
                ReleaseSeeds(self._home.seeds).erase(waiting.run, waiting.round)
                self._outbox.drop(waiting)
                self._announcing.pop(digest, None)
                self._handed_over.discard(digest)

    def _write_journal(self, waiting: Waiting, outcome: str) -> None:
        before, started_at = self._rounds.pop(
            (waiting.run, waiting.round), (self._transport.bytes_out, self._bench.now())
        )
        record = {
            "run": waiting.run,
            "round": waiting.round,
            "outcome": outcome,
            "update_bytes": waiting.size,
            "bytes_out": self._transport.bytes_out - before,
            "seconds": round(self._bench.now() - started_at, 3),
        }
        append_durably(self._home.folder / "journal.jsonl", json.dumps(record).encode() + b"\n")

    def _run_over(self, run: RunId) -> None:
        if self._task is not None and self._task.plan.run_id == run and not self._task.training:
            self._forget_task()
        for key in [key for key in self._failures if key[0] == run]:
            del self._failures[key]
        if self._task is None:
            self._trainer.close()

    # Small things

    def _show_answering(self) -> None:
        self._answering_at = self._bench.now()
        self._send(self._releases.answering(), NO_RUN, NO_ROUND)

    def _show_about(self) -> None:
        """Tell of this device what was not told yet, or long ago."""
        self._about_at = now = self._bench.now()
        about = self._description.now()
        if self._told is None or self._told[0] != about or now - self._told[1] >= ABOUT_AGAIN_S:
            self._told = about, now
            self._send(about, NO_RUN, NO_ROUND)

    def _show(self) -> None:
        busy = self._task is not None and self._task.training
        self._present_at = self._bench.now()
        self._send(Presence("training" if busy else "idle"), NO_RUN, NO_ROUND)

    def _decline_for(self, run: RunId, round_: RoundNumber, err: LlmOsError) -> None:
        """Decline, and tell no more than the coordinator may know.

        What the owner allows is told in full. Of everything else only the kind: a
        message may hold a path, or say something about the examples. The device's
        own log has it all.
        """
        log.warning("participation.declined", code=err.code, error=str(err))
        told = isinstance(
            err,
            BudgetExceeded | ConditionsNotMet | OwnerRefuses | SeedRefused | ConfigError | WrongKey,
        )
        reason = str(err) if told else (type(err).__doc__ or "").partition("\n")[0]
        self._decline(run, round_, err.code, reason)

    def _decline(self, run: RunId, round_: RoundNumber, code: str, reason: str) -> None:
        log.info("round.declined", run=run, round=round_, code=code, reason=reason)
        self._send(Declined(code, reason), run, round_)

    def _send(self, message: Message, run: RunId, round_: RoundNumber) -> None:
        sealed = self._post.seal(message, run=run, round_=round_)
        self._transport.publish(topics.up(self._owner.device), sealed)

    def _request(self, _peer: str, request: BlobRequest) -> None:
        self._send(request, NO_RUN, NO_ROUND)


def _impossible(err: Exception) -> ConfigError:
    """A plan whose signed numbers no arithmetic survives; a peer's mistake, not a bug of ours."""
    return ConfigError([f"its numbers are out of every range: {err}"], source="run plan")
