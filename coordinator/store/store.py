"""Rows that are never lost: devices, join tokens, API keys, people, runs and every transition.

    T1  when a method returns, what it wrote survives power loss
    T2  every transition of a round is one committed row, and nothing edits a row
    T3  blobs (plans' probe sets, adapters, updates, sums) are files named by their
        digest; a row never names a blob that is not on disk

SQLite by default, PostgreSQL by URL; :mod:`coordinator.store.database` knows the difference, and
:mod:`coordinator.store.migrations` how the tables of earlier programs become ours. Safe to use from
several threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import heapq
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_type_hints

import sqlalchemy as sa

from coordinator.federation import rounds
from coordinator.federation.rounds import Transition
from coordinator.store.alarms import AlarmRows
from coordinator.store.certificates import CertificateRows
from coordinator.store.database import Database
from coordinator.store.migrations import migrate
from coordinator.store.people import PeopleRows
from coordinator.store.tables import device_standings as _standings
from coordinator.store.tables import devices as _devices
from coordinator.store.tables import key_quarantines as _key_quarantines
from coordinator.store.tables import key_roles as _key_roles
from coordinator.store.tables import keys as _keys
from coordinator.store.tables import milestones as _milestones
from coordinator.store.tables import runs as _runs
from coordinator.store.tables import tokens as _tokens
from coordinator.store.tables import transitions as _transitions
from shared.errors import AccessDenied, DataError, RunNotFound, StorageError
from shared.files import digest_of, disk_errors, write_durably
from shared.types import DeviceId, Digest, PublicKey, RoundNumber, RunId
from shared.wire import codec

_KINDS: Final[dict[str, type]] = {
    kind.__name__: kind
    for kind in (
        rounds.Planned,
        rounds.KeyAnnounced,
        rounds.Invited,
        rounds.DeviceDeclined,
        rounds.Committed,
        rounds.Proposed,
        rounds.SetFixed,
        rounds.UpdateStored,
        rounds.Closed,
        rounds.SumOpened,
        rounds.AdapterApplied,
        rounds.RoundFailed,
    )
}

_ROW_LIMIT_BYTES: Final = 16 * 1024 * 1024


TRUSTED: Final = "trusted"
QUARANTINED: Final = "quarantined"
REVOKED: Final = "revoked"
"""A device's standings. The last is for good: its name and key are never free again."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device that joined."""

    name: DeviceId
    public_key: PublicKey
    joined_at: float
    standing: str = TRUSTED


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that opens what its role may do, without its secret.

    Attributes:
        name: Of the caller, for ever: a revoked key's name is not given again, since quotas,
            metrics and cached answers go by it.
        prefix: How the key begins, to recognise it.
        secret_sha256: Of the whole key, as hexadecimal digits.
        created_at: Seconds since the epoch.
        expires_at: From then on it opens nothing; ``None``: never.
        revoked_at: When it was revoked; ``None``: it was not.
        priority: Higher goes first; 0 is everybody's.
        tokens_per_minute: Of prompts and answers together; 0 for no quota.
        public_cache: Whether what is computed for it may be used for others who say so too.
        role: What it may do; see :mod:`coordinator.api.roles`.
        scopes: To which names that is narrowed, by kind; of a kind that is missing, to none.
        former_sha256: Of the secret before the last rotation, while that still opens something.
        former_ends_at: From then on it opens nothing.
        quarantined_at: Since when it opens nothing until it is let out; ``None``: it may.
    """

    name: str
    prefix: str
    secret_sha256: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    priority: int = 0
    tokens_per_minute: int = 0
    public_cache: bool = False
    role: str = "caller"
    scopes: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    former_sha256: str | None = None
    former_ends_at: float | None = None
    quarantined_at: float | None = None

    def opens(self, now: float) -> bool:
        """Whether it opens anything at ``now``."""
        return not self.is_over(now) and self.quarantined_at is None

    def is_over(self, now: float) -> bool:
        """Whether it was revoked or has expired, and will never open anything again."""
        expired = self.expires_at is not None and now >= self.expires_at
        return expired or self.revoked_at is not None


@dataclass(frozen=True, slots=True)
class RunRow:
    """A submitted run: its plan as JSON, and the digest of its probe set."""

    run: RunId
    plan: str
    probe: Digest
    submitted_at: float


ENDINGS: Final = ("finished", "failed", "stopped")
"""The milestones after which nothing more happens in a run; one of them does at most."""


@dataclass(frozen=True, slots=True)
class Milestone:
    """Something that happens at most once in a run: ``started``, or one of the endings."""

    kind: str
    facts: dict[str, Any]
    at: float


@dataclass(frozen=True, slots=True)
class TransitionRow:
    """One committed transition."""

    round: RoundNumber
    transition: Transition
    at: float


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A committed row with its place among all of its table.

    Attributes:
        id: Rising with every row that is committed.
        run: That it is about.
        what: The row.
    """

    id: int
    run: RunId
    what: TransitionRow | Milestone


@dataclass(frozen=True, slots=True)
class Count:
    """How many rows of one kind there are, the id of the last, and the latest time in them."""

    rows: int
    last_id: int
    last_at: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, without its rounds.

    Attributes:
        milestones: By kind.
        round: The last that was begun; 0: none was.
        judged: The last result on the probe set; ``None`` before the first.
    """

    milestones: dict[str, Milestone]
    round: int = 0
    judged: rounds.AdapterApplied | None = None


class Store:
    """The coordinator's memory."""

    def __init__(self, url: str, folder: Path) -> None:
        """Open the database at ``url``, bring it up to date, and the blobs in ``folder``.

        Raises:
            ConfigError: ``url`` cannot be read.
            DependencyMissing: it names PostgreSQL, and the extra ``postgres`` is not installed.
            StorageError: the database is of a newer program, or cannot be opened.
        """
        self.folder = folder
        self._listeners: list[Callable[[Transition | str], None]] = []
        self._followers: list[Callable[[RunId, RoundNumber, Transition], None]] = []
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.database = Database(url)
        self.people = PeopleRows(self.database)
        self.alarms = AlarmRows(self.database)
        self.certificates = CertificateRows(self.database)
        try:
            migrate(self.database)
        except StorageError as err:
            self.close()
            raise StorageError(f"cannot open the store at {self.database.name}: {err}") from err

    def subscribe(self, listener: Callable[[Transition | str], None]) -> None:
        """Tell ``listener`` of every committed transition, and of milestones by their kind."""
        self._listeners.append(listener)

    def follow(self, follower: Callable[[RunId, RoundNumber, Transition], None]) -> None:
        """Tell ``follower`` of every committed transition, and of which round it is."""
        self._followers.append(follower)

    def close(self) -> None:
        """Release the connections."""
        self.database.close()

    # Blobs

    def blob(self, digest: Digest) -> Path:
        """Where a blob with this digest lies or will lie."""
        return self.folder / "blobs" / digest

    def keep(self, data: bytes) -> Digest:
        """Write a blob, on disk when this returns (T3)."""
        digest = digest_of(data)
        path = self.blob(digest)
        if not path.exists():
            write_durably(path, data)
        return digest

    def forget(self, digest: Digest) -> None:
        """Delete a blob that nothing needs any more."""
        self.blob(digest).unlink(missing_ok=True)

    def update_file(
        self, run: RunId, number: RoundNumber, device: DeviceId, digest: Digest
    ) -> Path:
        """Where one device's encrypted update is spooled until its round is over."""
        return self.folder / "updates" / run / str(number) / f"{device}.{digest[:16]}"

    def forget_updates(self, run: RunId, number: RoundNumber) -> None:
        """Delete the spooled updates of a round that is over."""
        spool = self.folder / "updates" / run / str(number)
        if spool.exists():
            for path in spool.iterdir():
                path.unlink()
            spool.rmdir()

    def spooled_bytes(self, run: RunId, number: RoundNumber) -> int:
        """How much is spooled of a round; files that go meanwhile count for nothing."""
        spool = self.folder / "updates" / run / str(number)
        total = 0
        with contextlib.suppress(FileNotFoundError):
            for path in spool.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    total += path.stat().st_size
        return total

    # Devices

    def new_token(self, *, expires_at: float) -> str:
        """A one-time secret that lets one device join; only its hash is stored."""
        secret = secrets.token_urlsafe(24)
        with self.database.writing() as connection:
            connection.execute(
                _tokens.insert().values(secret_sha256=_hashed(secret), expires_at=expires_at)
            )
        return secret

    def join(self, secret: str, name: DeviceId, public_key: PublicKey, *, now: float) -> None:
        """Spend a token and register a device, both or neither.

        Joining again with the same token, name and key is answered alike, so a
        device that lost the answer may ask again.

        Raises:
            AccessDenied: the token is unknown, expired or spent.
            DataError: the name or the key is taken by another device.
        """
        try:
            with self.database.writing() as connection:
                self._join(connection, secret, name, public_key, now=now)
        except sa.exc.IntegrityError:  # somebody else, at the same moment
            raise _already_joined(name) from None

    def _join(
        self,
        connection: sa.Connection,
        secret: str,
        name: DeviceId,
        public_key: PublicKey,
        *,
        now: float,
    ) -> None:
        this = _tokens.c.secret_sha256 == _hashed(secret)
        # Spent before anything is read: in PostgreSQL two devices that read first would both
        # find the token unspent.
        spent = connection.execute(
            _tokens.update()
            .where(this, _tokens.c.used_by.is_(None), _tokens.c.expires_at >= now)
            .values(used_by=name)
        ).rowcount
        taken = connection.execute(
            sa.select(_devices).where(
                (_devices.c.name == name) | (_devices.c.public_key == public_key)
            )
        ).all()
        revoked = sa.select(_standings.c.name).where(_standings.c.standing == REVOKED)
        if {row.name for row in taken} & set(connection.scalars(revoked)):
            raise AccessDenied("this device was revoked: neither its name nor its key may join")
        if not spent:
            used_by = connection.scalar(sa.select(_tokens.c.used_by).where(this))
            if used_by == name and (name, public_key) in [row[:2] for row in taken]:
                return
            raise AccessDenied(
                "this join token is unknown, expired or already used: "
                "ask for a new one with 'llmos device token'"
            )
        if taken:
            raise _already_joined(name)
        connection.execute(
            _devices.insert().values(name=name, public_key=public_key, joined_at=now)
        )

    def devices(self) -> list[Device]:
        """All devices that joined, by name."""
        return self._devices_where(sa.true())

    def device(self, name: str) -> Device | None:
        """One device that joined."""
        found = self._devices_where(_devices.c.name == name) if name.isprintable() else []
        return found[0] if found else None

    def devices_after(self, name: str = "", *, limit: int) -> list[Device]:
        """Devices that joined and come behind ``name``, by name."""
        return self._devices_where(_spelt(self.database, _devices.c.name) > name, limit=limit)

    def set_standing(self, name: DeviceId, standing: str, reason: str, *, now: float) -> bool:
        """Trust a device so far from now on; False if none of this name joined, or it was revoked."""
        row = {"standing": standing, "reason": reason, "since": now}
        with self.database.writing() as connection:
            # Locks the device, so that nobody lets one out that is being revoked.
            known = connection.execute(
                _devices.update().where(_devices.c.name == name).values(name=name)
            ).rowcount
            this = _standings.c.name == name
            before = connection.scalar(sa.select(_standings.c.standing).where(this))
            if not known or before == REVOKED:
                return False
            if before is None:
                connection.execute(_standings.insert().values(name=name, **row))
            else:
                connection.execute(_standings.update().where(this).values(row))
            return True

    def revoked(self) -> frozenset[str]:
        """Names of devices that were shut out for good."""
        query = sa.select(_standings.c.name).where(_standings.c.standing == REVOKED)
        with self.database.reading() as connection:
            return frozenset(connection.scalars(query))

    def count_devices(self) -> int:
        """How many have joined."""
        with self.database.reading() as connection:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(_devices)) or 0)

    def _devices_where(
        self, condition: sa.ColumnElement[bool], limit: int | None = None
    ) -> list[Device]:
        query = (
            sa.select(_devices, _standings.c.standing)
            .outerjoin(_standings, _standings.c.name == _devices.c.name)
            .where(condition)
            .order_by(_spelt(self.database, _devices.c.name))
        )
        with self.database.reading() as connection:
            return [
                Device(
                    DeviceId(row.name),
                    PublicKey(row.public_key),
                    row.joined_at,
                    row.standing or TRUSTED,
                )
                for row in connection.execute(query.limit(limit))
            ]

    # API keys

    def add_key(self, key: ApiKey) -> None:
        """Keep a new key.

        Raises:
            DataError: there is one of this name, revoked or not.
        """
        try:
            with self.database.writing() as connection:
                for table in (_keys, _key_roles):
                    row = {column.name: getattr(key, column.name) for column in table.c}
                    connection.execute(table.insert().values(row))
        except sa.exc.IntegrityError:
            raise DataError(
                f"there is, or was, a key called {key.name}: choose another name"
            ) from None

    def api_keys(self, after: str = "", limit: int | None = None) -> list[ApiKey]:
        """All keys that were ever made, by name; or the first of those behind ``after``."""
        return read_keys(self.database, after, limit)

    def revoke_key(self, name: str, *, now: float) -> bool:
        """Revoke a key, unless it is already; False if there is none of this name."""
        with self.database.writing() as connection:
            connection.execute(
                _keys.update()
                .where(_keys.c.name == name, _keys.c.revoked_at.is_(None))
                .values(revoked_at=now)
            )
            return (
                connection.scalar(sa.select(_keys.c.name).where(_keys.c.name == name)) is not None
            )

    def quarantine_key(self, name: str, reason: str, *, now: float) -> bool:
        """Let a key open nothing until it is let out; False if none has this name, or it was revoked.

        In quarantine it stays as it is: reason and time are those of the first.
        """
        with self.database.writing() as connection:
            if not _locked_key(connection, name):
                return False
            this = _key_quarantines.c.name == name
            if connection.scalar(sa.select(_key_quarantines.c.name).where(this)) is None:
                row = {"name": name, "reason": reason, "quarantined_at": now}
                connection.execute(_key_quarantines.insert().values(row))
            return True

    def release_key(self, name: str) -> bool:
        """Let a key out of quarantine; False if there is none of this name, or it was revoked."""
        with self.database.writing() as connection:
            if not _locked_key(connection, name):
                return False
            connection.execute(_key_quarantines.delete().where(_key_quarantines.c.name == name))
            return True

    def rotate_key(
        self, name: str, *, prefix: str, secret_sha256: str, former_ends_at: float
    ) -> bool:
        """Give a key another secret; False if there is none of this name, or it was revoked.

        The secret it had goes on until ``former_ends_at``; one before that ends now.
        """
        with self.database.writing() as connection:
            # Written before anything is read, as in :meth:`join`: of two rotations at once, the
            # second waits, and finds the secret of the first.
            if not _locked_key(connection, name):
                return False
            former = connection.scalar(sa.select(_keys.c.secret_sha256).where(_keys.c.name == name))
            connection.execute(
                _keys.update()
                .where(_keys.c.name == name)
                .values(prefix=prefix, secret_sha256=secret_sha256)
            )
            facts = {"former_sha256": former, "former_ends_at": former_ends_at}
            known = connection.execute(
                _key_roles.update().where(_key_roles.c.name == name).values(facts)
            ).rowcount
            if not known:
                row = {"name": name, "role": "caller", "scopes": {}} | facts
                connection.execute(_key_roles.insert().values(row))
            return True

    # Runs

    def add_run(self, run: RunId, plan: str, probe: Digest, *, now: float) -> None:
        """Register a run.

        Raises:
            DataError: a run of this name exists.
        """
        try:
            with self.database.writing() as connection:
                connection.execute(
                    _runs.insert().values(run=run, plan=plan, probe=probe, submitted_at=now)
                )
        except sa.exc.IntegrityError:
            raise DataError(
                f"a run named {run} exists already; give the job another name"
            ) from None

    def runs(self) -> list[RunRow]:
        """All runs, oldest first."""
        return self._runs_where(sa.true())

    def run(self, run: RunId) -> RunRow:
        """One run. Raises RunNotFound."""
        # What cannot be printed is not looked for: not every database takes every text.
        found = self._runs_where(_runs.c.run == run) if run.isprintable() else []
        if not found:
            raise RunNotFound(f"no run named {run}")
        return found[0]

    def runs_after(
        self, after: tuple[float, str] | None = None, *, limit: int, newest: bool = False
    ) -> list[RunRow]:
        """Runs behind the one that was submitted at ``after[0]`` and is called ``after[1]``.

        Oldest first, or newest first.
        """
        place = sa.tuple_(_runs.c.submitted_at, _spelt(self.database, _runs.c.run))
        condition: sa.ColumnElement[bool] = sa.true()
        if after is not None:
            there = sa.tuple_(sa.literal(after[0]), sa.literal(after[1]))
            condition = place < there if newest else place > there
        return self._runs_where(condition, limit=limit, newest=newest)

    def open_runs(self, *, limit: int) -> list[RunRow]:
        """Runs that are not over, oldest first."""
        ended = sa.select(_milestones.c.id).where(
            _milestones.c.run == _runs.c.run, _milestones.c.kind.in_(ENDINGS)
        )
        return self._runs_where(~sa.exists(ended), limit=limit)

    def _runs_where(
        self, condition: sa.ColumnElement[bool], limit: int | None = None, *, newest: bool = False
    ) -> list[RunRow]:
        order = [_runs.c.submitted_at, _spelt(self.database, _runs.c.run)]
        query = sa.select(_runs).where(condition).limit(limit)
        query = query.order_by(*(column.desc() if newest else column for column in order))
        with self.database.reading() as connection:
            return [
                RunRow(RunId(row.run), row.plan, Digest(row.probe), row.submitted_at)
                for row in connection.execute(query)
            ]

    def progress(self, runs: Sequence[RunId]) -> dict[RunId, Progress]:
        """How far these runs are. Reads a few rows of each, however many it has."""
        of_run = _transitions.c.run == _runs.c.run
        last = sa.select(sa.func.max(_transitions.c.round)).where(of_run).scalar_subquery()
        judged = (
            sa.select(_transitions.c.id)
            .where(of_run, _transitions.c.kind == rounds.AdapterApplied.__name__)
            .order_by(_transitions.c.round.desc(), _transitions.c.id.desc())
            .limit(1)
            .scalar_subquery()
        )
        query = sa.select(_runs.c.run, last.label("last"), judged.label("judged"))
        with self.database.reading() as connection:
            rows = connection.execute(query.where(_runs.c.run.in_(runs))).all()
            wanted = [row.judged for row in rows if row.judged is not None]
            results = {
                row.id: _stored_transition(row).transition
                for row in connection.execute(
                    sa.select(_transitions).where(_transitions.c.id.in_(wanted))
                )
            }
            milestones: dict[str, dict[str, Milestone]] = {run: {} for run in runs}
            for row in connection.execute(
                sa.select(_milestones).where(_milestones.c.run.in_(runs)).order_by(_milestones.c.id)
            ):
                milestones[row.run][row.kind] = _stored_milestone(row)
        found = {}
        for row in rows:
            result = results.get(row.judged)
            assert result is None or isinstance(result, rounds.AdapterApplied)
            found[RunId(row.run)] = Progress(milestones[row.run], row.last or 0, result)
        return found

    def transitions_after(
        self, run: RunId, after: tuple[int, int] = (0, 0), *, limit: int
    ) -> list[StoredRow]:
        """Transitions of a run behind the row ``after[1]`` of round ``after[0]``, by round and id."""
        place = sa.tuple_(_transitions.c.round, _transitions.c.id)
        query = (
            sa.select(_transitions)
            .where(_transitions.c.run == run)
            .where(place > sa.tuple_(sa.literal(after[0]), sa.literal(after[1])))
            .order_by(_transitions.c.round, _transitions.c.id)
            .limit(limit)
        )
        return self._stored(query, _stored_transition)

    def transitions_of(
        self, run: RunId, *, number: int | None = None, kinds: Sequence[type] = ()
    ) -> list[TransitionRow]:
        """Transitions of one round or all, of these kinds or all, in the order of the commits."""
        query = sa.select(_transitions).where(_transitions.c.run == run)
        if number is not None:
            query = query.where(_transitions.c.round == number)
        if kinds:
            query = query.where(_transitions.c.kind.in_([kind.__name__ for kind in kinds]))
        with self.database.reading() as connection:
            rows = connection.execute(query.order_by(_transitions.c.id))
            return [_stored_transition(row) for row in rows]

    def count_transitions(self, run: RunId, number: int) -> dict[str, Count]:
        """Rows of one round, by kind."""
        t = _transitions.c
        query = (
            sa.select(t.kind, sa.func.count(), sa.func.max(t.id), sa.func.max(t.at))
            .where(t.run == run, t.round == number)
            .group_by(t.kind)
        )
        with self.database.reading() as connection:
            return {row[0]: Count(*row[1:]) for row in connection.execute(query)}

    def last_ids(self) -> tuple[int, int]:
        """The id of the last transition and of the last milestone; 0 where there is none."""
        with self.database.reading() as connection:
            first, second = (
                connection.scalar(sa.select(sa.func.max(table.c.id))) or 0
                for table in (_transitions, _milestones)
            )
        return first, second

    def committed_after(self, after: tuple[int, int], *, limit: int) -> list[StoredRow]:
        """What was committed behind these ids (:meth:`last_ids`).

        Transitions by their ids and milestones by theirs; between the two, by the clock.
        """
        found = [
            self._stored(
                sa.select(table).where(table.c.id > last).order_by(table.c.id).limit(limit), read
            )
            for table, last, read in (
                (_transitions, after[0], _stored_transition),
                (_milestones, after[1], _stored_milestone),
            )
        ]
        return list(heapq.merge(*found, key=lambda row: row.what.at))[:limit]

    def milestones_of_kind(
        self, kind: str, before: int | None = None, *, limit: int
    ) -> list[StoredRow]:
        """Such milestones of all runs, newest first; those before the row with id ``before``."""
        query = sa.select(_milestones).where(_milestones.c.kind == kind)
        if before is not None:
            query = query.where(_milestones.c.id < before)
        return self._stored(query.order_by(_milestones.c.id.desc()).limit(limit), _stored_milestone)

    def _stored(
        self, query: sa.Select[Any], read: Callable[[Any], TransitionRow | Milestone]
    ) -> list[StoredRow]:
        with self.database.reading() as connection:
            return [
                StoredRow(row.id, RunId(row.run), read(row)) for row in connection.execute(query)
            ]

    def add_milestone(self, run: RunId, kind: str, facts: dict[str, Any], *, now: float) -> None:
        """Commit something that happens once in a run; a second time is ignored."""
        row = {"run": run, "kind": kind, "body": codec.encode(facts), "at": now}
        try:
            with self.database.writing() as connection:
                connection.execute(_milestones.insert().values(row))
        except sa.exc.IntegrityError:
            return
        self._tell(kind)

    def milestones(self, run: RunId) -> dict[str, Milestone]:
        """What has happened in a run, by kind."""
        query = sa.select(_milestones).where(_milestones.c.run == run).order_by(_milestones.c.id)
        with self.database.reading() as connection:
            return {row.kind: _stored_milestone(row) for row in connection.execute(query)}

    def commit(
        self, run: RunId, number: RoundNumber, transition: Transition, *, now: float
    ) -> None:
        """Write one transition of a round (T1, T2)."""
        body = {
            field.name: getattr(transition, field.name) for field in dataclasses.fields(transition)
        }
        with self.database.writing() as connection:
            connection.execute(
                _transitions.insert().values(
                    run=run,
                    round=number,
                    kind=type(transition).__name__,
                    body=codec.encode(body),
                    at=now,
                )
            )
        self._tell(transition)
        for follower in self._followers:
            follower(run, number, transition)

    def transitions(self, run: RunId) -> list[TransitionRow]:
        """Every transition of a run's rounds, in the order they were committed."""
        query = sa.select(_transitions).where(_transitions.c.run == run).order_by(_transitions.c.id)
        with self.database.reading() as connection:
            return [_stored_transition(row) for row in connection.execute(query)]

    def _tell(self, what: Transition | str) -> None:
        for listener in self._listeners:
            listener(what)

    def counted(self, run: RunId, number: RoundNumber, device: DeviceId) -> Digest | None:
        """The digest of the update of ``device`` that is counted in a round, if one is."""
        for row in self.transitions(run):
            match row.transition:
                case rounds.UpdateStored() as stored if row.round == number:
                    if stored.device == device:
                        return stored.digest
        return None


def read_keys(database: Database, after: str = "", limit: int | None = None) -> list[ApiKey]:
    """All keys that were ever made, by name; or the first of those behind ``after``.

    Raises:
        StorageError: the database cannot be read now, or is not a store's.
    """
    name = _spelt(database, _keys.c.name)
    try:
        with database.reading() as connection:
            rows = connection.execute(
                sa.select(
                    _keys,
                    *[column for column in _key_roles.c if column.name != "name"],
                    _key_quarantines.c.quarantined_at,
                )
                .outerjoin(_key_roles, _key_roles.c.name == _keys.c.name)
                .outerjoin(_key_quarantines, _key_quarantines.c.name == _keys.c.name)
                .where(name > after)
                .order_by(name)
                .limit(limit)
            )
            # What is unknown, in a store that knew no roles, has its default.
            return [
                ApiKey(**{name: value for name, value in row._mapping.items() if value is not None})
                for row in rows
            ]
    except sa.exc.ProgrammingError as err:
        raise StorageError(f"{database.name} has not the tables of this program") from err


def _locked_key(connection: sa.Connection, name: str) -> bool:
    """Whether there is a key of this name that was not revoked; nobody else changes it meanwhile."""
    return bool(
        connection.execute(
            _keys.update()
            .where(_keys.c.name == name, _keys.c.revoked_at.is_(None))
            .values(name=name)
        ).rowcount
    )


def _spelt(database: Database, name: sa.Column[str]) -> sa.ColumnElement[str]:
    """A name to be ordered by its letters: PostgreSQL might order by those of a language."""
    return name if database.is_sqlite else sa.collate(name, "C")


def _already_joined(name: DeviceId) -> DataError:
    return DataError(f"a device named {name}, or with this key, has already joined")


def _stored_transition(row: Any) -> TransitionRow:
    body = codec.decode(row.body, limit=_ROW_LIMIT_BYTES)
    return TransitionRow(RoundNumber(row.round), _transition(row.kind, body), row.at)


def _stored_milestone(row: Any) -> Milestone:
    return Milestone(row.kind, codec.decode(row.body, limit=_ROW_LIMIT_BYTES), row.at)


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _transition(kind: str, body: dict[str, Any]) -> Transition:
    cls = _KINDS[kind]
    tuples = _tuples_of(cls)
    values = {name: tuple(value) if name in tuples else value for name, value in body.items()}
    built: Transition = cls(**values)
    return built


@functools.cache
def _tuples_of(cls: type) -> frozenset[str]:
    """Fields that are tuples; to read the annotations takes longer than to read a row."""
    hints = get_type_hints(cls)
    return frozenset(name for name, hint in hints.items() if str(hint).startswith("tuple"))


def by_round(rows: Sequence[TransitionRow]) -> Iterator[tuple[RoundNumber, list[TransitionRow]]]:
    """The rows of each round, rounds in ascending order."""
    grouped: dict[RoundNumber, list[TransitionRow]] = {}
    for row in rows:
        grouped.setdefault(row.round, []).append(row)
    yield from sorted(grouped.items())
