"""The coordinator's store, with everything that is done to it written down in the audit log.

    S1  what somebody asks for (tokens, keys, people, runs) is written down before it is done; what
        cannot be written down is not done
    S2  what happens by itself (joins, the course of runs) is written down after its row is
        committed, and before the next such row: the log is never more than one row behind
    S3  after a crash, :func:`catch_up` writes down what the log lacks, once

A device joins after its token was checked, so that nobody without one can make the log grow;
and a round goes on where its row says, so that nothing may stand between row and round. Both
are repeated until they are written down. docs/adr/0024 says more. What is done to people is
written down by :mod:`coordinator.people.people`, and caught up with here.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any, Final

import structlog

from coordinator.audit.chain import MAX_TEXT, Action, Entry, Fact, Facts, Record
from coordinator.audit.sink import ADMIN, COORDINATOR, KEY_HOLDER, AuditSink, acting, recorded
from coordinator.federation.rounds import (
    AdapterApplied,
    Invited,
    RoundFailed,
    SumOpened,
    Transition,
)
from coordinator.releases import NOT_RELEASED, RELEASED
from coordinator.store.people import DISABLED, Person
from coordinator.store.store import (
    QUARANTINED,
    REVOKED,
    TRUSTED,
    ApiKey,
    Milestone,
    Store,
)
from shared.config import read_json
from shared.crypto.identity import fingerprint
from shared.crypto.sum_cipher import Scheme
from shared.errors import StorageError
from shared.job import RunPlan
from shared.privacy import accountant
from shared.types import DeviceId, Digest, PublicKey, RoundNumber, RunId

_MILESTONES: Final = {
    "started": Action.RUN_STARTED,
    "finished": Action.RUN_FINISHED,
    "failed": Action.RUN_FAILED,
    "stopped": Action.RUN_STOPPED,
    RELEASED: Action.RELEASE_MADE,
    NOT_RELEASED: Action.RELEASE_FAILED,
}
_RUN_IS_OVER: Final = frozenset({Action.RUN_FINISHED, Action.RUN_FAILED, Action.RUN_STOPPED})
_STANDINGS: Final = {
    TRUSTED: Action.DEVICE_RELEASED,
    QUARANTINED: Action.DEVICE_QUARANTINED,
    REVOKED: Action.DEVICE_REVOKED,
}

_KEY_STANDINGS: Final = frozenset({Action.KEY_QUARANTINED, Action.KEY_RELEASED})

_OF_KEYS: Final = frozenset(
    {Action.KEY_MADE, Action.KEY_ROTATED, *_KEY_STANDINGS, Action.KEY_REVOKED}
)

_ASKED_FOR: Final = frozenset(
    {
        *_STANDINGS.values(),
        *_OF_KEYS,
        Action.PERSON_ADDED,
        Action.ROLE_CHANGED,
        Action.PERSON_DISABLED,
        Action.RUN_SUBMITTED,
    }
)
"""Written down first; of each, the store can tell afterwards whether it was done."""

_LAST_ONLY: Final = (
    frozenset({Action.KEY_ROTATED}),
    frozenset({Action.ROLE_CHANGED}),
    frozenset(_STANDINGS.values()),
    _KEY_STANDINGS,
)
"""Of each of these kinds, the store can tell of a subject's last one only."""

_ROUNDS: Final = frozenset(
    {Action.ROUND_OPENED, Action.SUM_OPENED, Action.ROUND_APPLIED, Action.ROUND_FAILED}
)

log = structlog.get_logger()


class AuditedStore(Store):
    """A :class:`Store` whose changes are written down. Safe to use from several threads."""

    def __init__(self, url: str, folder: Path, *, audit: AuditSink) -> None:
        """Open the store; arguments and errors as :class:`Store`'s, and where to write down."""
        super().__init__(url, folder)
        self._audit = audit
        self._owed: list[Entry] = []
        self._owing = threading.RLock()
        self._judging = threading.Lock()
        """Records and rows of keys' quarantines in one order: the last record is what holds."""
        self._plans: dict[RunId, RunPlan] = {}

    # What somebody asks for: written down, then done (S1)

    def new_token(self, *, expires_at: float) -> str:
        """As :meth:`Store.new_token`. Raises StorageError if it cannot be written down."""
        entry = Entry(Action.TOKEN_MADE, acting.get(), "", {"expires_at": int(expires_at)})
        with recorded(self._audit, entry):
            return super().new_token(expires_at=expires_at)

    def set_standing(self, name: DeviceId, standing: str, reason: str, *, now: float) -> bool:
        """As :meth:`Store.set_standing`. Raises StorageError if it cannot be written down."""
        device = self.device(name)
        if device is None or device.standing == REVOKED:
            return super().set_standing(name, standing, reason, now=now)  # nothing is changed
        facts: Facts = {"reason": _plain(reason)} if reason else {}
        with recorded(self._audit, Entry(_STANDINGS[standing], acting.get(), name, facts)):
            return super().set_standing(name, standing, reason, now=now)

    def add_key(self, key: ApiKey) -> None:
        """As :meth:`Store.add_key`. Raises StorageError if it cannot be written down."""
        if any(other.name == key.name for other in self.api_keys()):
            super().add_key(key)  # says why not, and leaves no trace
            return
        with recorded(self._audit, _key_made(key, acting.get())):
            super().add_key(key)

    def revoke_key(self, name: str, *, now: float) -> bool:
        """As :meth:`Store.revoke_key`. Raises StorageError if it cannot be written down."""
        if not self._is_key(name):
            return super().revoke_key(name, now=now)  # nothing is changed
        with recorded(self._audit, Entry(Action.KEY_REVOKED, acting.get(), name)):
            return super().revoke_key(name, now=now)

    def quarantine_key(self, name: str, reason: str, *, now: float) -> bool:
        """As :meth:`Store.quarantine_key`. Raises StorageError if it cannot be written down."""
        with self._judging:
            if not self._is_key(name, lambda key: key.quarantined_at is None):
                return super().quarantine_key(name, reason, now=now)  # nothing is changed
            facts: Facts = {"reason": _plain(reason)} if reason else {}
            with recorded(self._audit, Entry(Action.KEY_QUARANTINED, acting.get(), name, facts)):
                return super().quarantine_key(name, reason, now=now)

    def release_key(self, name: str) -> bool:
        """As :meth:`Store.release_key`. Raises StorageError if it cannot be written down."""
        with self._judging:
            if not self._is_key(name, lambda key: key.quarantined_at is not None):
                return super().release_key(name)  # nothing is changed
            with recorded(self._audit, Entry(Action.KEY_RELEASED, acting.get(), name)):
                return super().release_key(name)

    def _is_key(self, name: str, such: Callable[[ApiKey], bool] = lambda _: True) -> bool:
        """Whether there is a key of this name that was not revoked, and is such a one."""
        keys = (key for key in self.api_keys() if key.name == name and key.revoked_at is None)
        return any(such(key) for key in keys)

    def rotate_key(
        self, name: str, *, prefix: str, secret_sha256: str, former_ends_at: float
    ) -> bool:
        """As :meth:`Store.rotate_key`. Raises StorageError if it cannot be written down."""
        rotation = {"prefix": prefix, "secret_sha256": secret_sha256}
        if not self._is_key(name):
            return super().rotate_key(name, **rotation, former_ends_at=former_ends_at)
        facts: Facts = {"begins": prefix, "former_ends_at": int(former_ends_at)}
        with recorded(self._audit, Entry(Action.KEY_ROTATED, acting.get(), name, facts)):
            return super().rotate_key(name, **rotation, former_ends_at=former_ends_at)

    def add_run(self, run: RunId, plan: str, probe: Digest, *, now: float) -> None:
        """As :meth:`Store.add_run`. Raises StorageError if it cannot be written down."""
        if any(row.run == run for row in self.runs()):
            super().add_run(run, plan, probe, now=now)  # says why not, and leaves no trace
            return
        with recorded(self._audit, _run_submitted(run, plan, acting.get())):
            super().add_run(run, plan, probe, now=now)

    # What happens by itself: done, then written down (S2)

    def join(self, secret: str, name: DeviceId, public_key: PublicKey, *, now: float) -> None:
        """As :meth:`Store.join`. Raises StorageError until it is written down."""
        with self._owing:
            self._settle()
            joined = any(
                (device.name, device.public_key) == (name, public_key) for device in self.devices()
            )
            super().join(secret, name, public_key, now=now)
            if not joined:
                self._owed.append(_device_joined(name, public_key))
            self._settle()

    def commit(
        self, run: RunId, number: RoundNumber, transition: Transition, *, now: float
    ) -> None:
        """As :meth:`Store.commit`. Raises StorageError while an earlier one is not written down."""
        with self._owing:
            self._settle()
            entry = self.entry_of(run, number, transition)  # nothing may fail behind the row
            super().commit(run, number, transition, now=now)
            self._owe(entry)

    def add_milestone(self, run: RunId, kind: str, facts: dict[str, Any], *, now: float) -> None:
        """As :meth:`Store.add_milestone`. Raises StorageError as :meth:`commit`."""
        with self._owing:
            self._settle()
            happened = kind in self.milestones(run)
            entry = None if happened else _milestone(run, Milestone(kind, facts, now))
            super().add_milestone(run, kind, facts, now=now)
            self._owe(entry)

    def entry_of(self, run: RunId, number: RoundNumber, transition: Transition) -> Entry | None:
        """What is written down of a transition; of most, nothing."""
        subject = f"{run}/{number}"
        match transition:
            case Invited(cohort=cohort):
                plan = self._plan(run)
                alone = _epsilon(plan, plan.round_facts())
                facts: Facts = {"devices": len(cohort), "epsilon": alone}
                return Entry(Action.ROUND_OPENED, COORDINATOR, subject, facts)
            case SumOpened(digest=digest, devices=devices):
                clear = self._plan(run).scheme is Scheme.CLEAR
                actor = COORDINATOR if clear else KEY_HOLDER
                facts = {"devices": devices, "digest": digest}
                return Entry(Action.SUM_OPENED, actor, subject, facts)
            case AdapterApplied(adapter=adapter, accepted=accepted):
                facts = {"adapter": adapter, "accepted": accepted}
                return Entry(Action.ROUND_APPLIED, COORDINATOR, subject, facts)
            case RoundFailed(code=code):
                return Entry(Action.ROUND_FAILED, COORDINATOR, subject, {"code": _plain(code)})
            case _:
                return None

    def _owe(self, entry: Entry | None) -> None:
        """Write down what has happened; if that fails, before anything else happens."""
        if entry is None:
            return
        self._owed.append(entry)
        try:
            self._settle()
        except StorageError as err:
            log.error("audit.behind", action=str(entry.action), error=str(err))

    def _settle(self) -> None:
        while self._owed:
            self._audit.record(self._owed[0])
            del self._owed[0]

    def _plan(self, run: RunId) -> RunPlan:
        if run not in self._plans:
            # One run is conducted at a time.
            self._plans = {run: read_json(RunPlan, self.run(run).plan, source=f"plan of {run}")}
        return self._plans[run]


class Written:
    """What a log says was done, as far as a store can be compared with it."""

    def __init__(self) -> None:
        self._done: dict[tuple[Action, str], int] = {}
        self._rounds: dict[str, set[tuple[Action, str]]] = {}
        self._asked: dict[int, Entry] = {}
        """Since the coordinator last started: what it may not have come to do."""

    def take(self, record: Record) -> None:
        """Learn of one more record."""
        entry = record.entry
        action, subject = entry.action, entry.subject
        if action is Action.COORDINATOR_STARTED:
            self._asked.clear()
        elif action is Action.NOT_DONE:
            of = int(entry.facts.get("of", 0))
            self._asked.pop(of, None)
            self._done = {key: number for key, number in self._done.items() if number != of}
        elif action is Action.LINK_SPENT:
            # Who was disabled may be let in again: the store cannot tell of it any more.
            self._forget_earlier({Action.PERSON_DISABLED}, subject)
        elif action in _ROUNDS:
            self._rounds.setdefault(subject.rpartition("/")[0], set()).add((action, subject))
        elif action in (Action.DEVICE_JOINED, *_ASKED_FOR, *_MILESTONES.values()):
            self._done[action, subject] = record.number
            if action in _ASKED_FOR:
                for kind in _LAST_ONLY:
                    if action in kind:
                        self._forget_earlier(kind, subject)
                self._asked[record.number] = entry
            if action in _RUN_IS_OVER:
                self._rounds.pop(subject, None)

    def _forget_earlier(self, kind: Set[Action], subject: str) -> None:
        for number, entry in list(self._asked.items()):
            if entry.action in kind and entry.subject == subject:
                del self._asked[number]

    def has(self, entry: Entry) -> bool:
        """Whether this is written down. Of a run that is over, everything is (S2)."""
        key = (entry.action, entry.subject)
        if entry.action in _ROUNDS:
            return key in self._rounds.get(entry.subject.rpartition("/")[0], ())
        return key in self._done

    def is_over(self, run: RunId) -> bool:
        """Whether the end of a run is written down, and so all of its rounds."""
        return any((action, run) in self._done for action in _RUN_IS_OVER)

    def asked(self) -> Iterator[tuple[int, Entry]]:
        """What was asked for since the last start, by the number of its record."""
        yield from self._asked.items()


def catch_up(store: AuditedStore, written: Written, audit: AuditSink) -> int:
    """Write down what the store has and the log lacks, and what was asked for and not done (S3).

    To be called before anything else is recorded. Gives how many records that took.

    Raises:
        StorageError: the disk refused; the next call goes on where this one ended.
    """
    count = 0
    for entry, at in _in_store(store, written):
        if not written.has(entry):
            late: dict[str, Fact] = {"late": True, "happened_at": int(at)}
            audit.record(Entry(entry.action, entry.actor, entry.subject, {**entry.facts, **late}))
            count += 1
    keys = {key.name: key for key in store.api_keys()}
    standings = {device.name: _STANDINGS[device.standing] for device in store.devices()}
    people = {person.name: person for person in store.people.people()}
    runs = {str(row.run) for row in store.runs()}
    for number, entry in written.asked():
        name = entry.subject
        match entry.action:
            case action if action in _OF_KEYS:
                done = name in keys and _is_done(entry, keys[name])
            case Action.PERSON_ADDED:
                done = name in people
            case Action.ROLE_CHANGED:
                done = name in people and people[name].role == entry.facts["role"]
            case Action.PERSON_DISABLED:
                done = name in people and people[name].state == DISABLED
            case action if action in _STANDINGS.values():
                done = standings.get(DeviceId(name)) is action
            case _:
                done = name in runs
        if not done:
            facts: Facts = {"of": number, "code": "interrupted"}
            audit.record(Entry(Action.NOT_DONE, entry.actor, name, facts))
            count += 1
    return count


def _is_done(entry: Entry, key: ApiKey) -> bool:
    """Whether a key that is there is what was asked for."""
    match entry.action:
        case Action.KEY_ROTATED:
            return key.prefix == entry.facts["begins"]
        case Action.KEY_QUARANTINED:
            return key.quarantined_at is not None
        case Action.KEY_RELEASED:
            return key.quarantined_at is None
        case Action.KEY_REVOKED:
            return key.revoked_at is not None
        case _:
            return True


def _in_store(store: AuditedStore, written: Written) -> Iterator[tuple[Entry, float]]:
    """Everything in the store that is to be in the log, and when it happened."""
    for device in store.devices():
        yield _device_joined(device.name, device.public_key), device.joined_at
        if device.standing == REVOKED:
            # When, the store does not say.
            yield Entry(Action.DEVICE_REVOKED, ADMIN, device.name), device.joined_at
    for key in store.api_keys():
        yield _key_made(key, ADMIN), key.created_at
        if key.quarantined_at is not None:
            yield Entry(Action.KEY_QUARANTINED, ADMIN, key.name), key.quarantined_at
        if key.revoked_at is not None:
            yield Entry(Action.KEY_REVOKED, ADMIN, key.name), key.revoked_at
    for person in store.people.people():
        yield person_added(person, ADMIN), person.created_at
        if person.state == DISABLED:
            # When, the store does not say.
            yield Entry(Action.PERSON_DISABLED, ADMIN, person.name), person.created_at
    for row in store.runs():
        yield _run_submitted(row.run, row.plan, ADMIN), row.submitted_at
        milestones = store.milestones(row.run)
        entries = [
            (entry, milestone.at)
            for milestone in milestones.values()
            if (entry := _milestone(row.run, milestone)) is not None
        ]
        yield from (pair for pair in entries if pair[0].action is Action.RUN_STARTED)
        if not written.is_over(row.run):
            for transition in store.transitions(row.run):
                entry = store.entry_of(row.run, transition.round, transition.transition)
                if entry is not None:
                    yield entry, transition.at
        yield from (pair for pair in entries if pair[0].action is not Action.RUN_STARTED)


def _device_joined(name: DeviceId, key: PublicKey) -> Entry:
    return Entry(Action.DEVICE_JOINED, f"device:{name}", name, {"fingerprint": fingerprint(key)})


def _key_made(key: ApiKey, actor: str) -> Entry:
    facts: dict[str, Fact] = {"begins": key.prefix}
    if key.expires_at is not None:
        facts["expires_at"] = int(key.expires_at)
    return Entry(Action.KEY_MADE, actor, key.name, facts)


def person_added(person: Person, actor: str) -> Entry:
    """What is written down when somebody is invited, or makes the first account."""
    return Entry(Action.PERSON_ADDED, actor, person.name, {"role": person.role})


def _run_submitted(run: RunId, plan: str, actor: str) -> Entry:
    declared = read_json(RunPlan, plan, source=f"plan of {run}")
    job = declared.job
    facts: Facts = {
        "epsilon": _epsilon(declared, declared.run_facts()),
        "delta": f"{job.privacy.delta:g}",
        "noise": job.privacy.noise,
        "level": job.privacy.level,
        "scheme": str(declared.scheme),
        "rounds": job.training.rounds,
        "min_devices": job.protection.min_devices,
        "simulation": declared.simulation,
    }
    return Entry(Action.RUN_SUBMITTED, actor, run, facts)


def _milestone(run: RunId, milestone: Milestone) -> Entry | None:
    action = _MILESTONES.get(milestone.kind)
    if action is None:
        return None
    facts: Facts = {
        name: _plain(str(milestone.facts[name]))
        for name in ("adapter", "manifest", "code")
        if name in milestone.facts
    }
    return Entry(action, COORDINATOR, run, facts)


def _epsilon(plan: RunPlan, facts: tuple[accountant.Fact, ...]) -> str:
    privacy = plan.job.privacy
    value = accountant.epsilon(facts, delta=privacy.delta, unit=privacy.level)
    return f"{value:.6g}" if math.isfinite(value) else "infinite"


def _plain(text: str) -> str:
    """A text that a record may hold: what a peer wrote could be anything."""
    return "".join(letter for letter in text if letter.isprintable())[:MAX_TEXT]
