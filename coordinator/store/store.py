"""Rows that are never lost: devices, join tokens, API keys, runs and every transition.

    T1  when a method returns, what it wrote survives power loss
    T2  every transition of a round is one committed row, and nothing edits a row
    T3  blobs (plans' probe sets, adapters, updates, sums) are files named by their
        digest; a row never names a blob that is not on disk

SQLite by default, PostgreSQL by URL; :mod:`coordinator.store.database` knows the difference, and
:mod:`coordinator.store.migrations` how the tables of earlier programs become ours. Safe to use from
several threads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_type_hints

import sqlalchemy as sa

from coordinator.federation import rounds
from coordinator.federation.rounds import Transition
from coordinator.store.database import Database
from coordinator.store.migrations import migrate
from coordinator.store.tables import devices as _devices
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


@dataclass(frozen=True, slots=True)
class Device:
    """A device that joined."""

    name: DeviceId
    public_key: PublicKey
    joined_at: float


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

    def opens(self, now: float) -> bool:
        """Whether it opens anything at ``now``."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


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
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.database = Database(url)
        try:
            migrate(self.database)
        except StorageError as err:
            self.close()
            raise StorageError(f"cannot open the store at {self.database.name}: {err}") from err

    def subscribe(self, listener: Callable[[Transition | str], None]) -> None:
        """Tell ``listener`` of every committed transition, and of milestones by their kind."""
        self._listeners.append(listener)

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
        with self.database.reading() as connection:
            found = [
                Device(DeviceId(row.name), PublicKey(row.public_key), row.joined_at)
                for row in connection.execute(sa.select(_devices))
            ]
        # Not by the database, whose order of names may be that of a language.
        return sorted(found, key=lambda device: device.name)

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

    def api_keys(self) -> list[ApiKey]:
        """All keys that were ever made, by name."""
        with self.database.reading() as connection:
            rows = connection.execute(
                sa.select(
                    _keys, *[column for column in _key_roles.c if column.name != "name"]
                ).outerjoin(_key_roles, _key_roles.c.name == _keys.c.name)
            ).all()
        # What is unknown, in a store that knew no roles, has its default.
        found = [
            ApiKey(**{name: value for name, value in row._mapping.items() if value is not None})
            for row in rows
        ]
        return sorted(found, key=lambda key: key.name)

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

    def rotate_key(
        self, name: str, *, prefix: str, secret_sha256: str, former_ends_at: float
    ) -> bool:
        """Give a key another secret; False if there is none of this name, or it was revoked.

        The secret it had goes on until ``former_ends_at``; one before that ends now.
        """
        with self.database.writing() as connection:
            # Written before anything is read, as in :meth:`join`: of two rotations at once, the
            # second waits, and finds the secret of the first.
            found = connection.execute(
                _keys.update()
                .where(_keys.c.name == name, _keys.c.revoked_at.is_(None))
                .values(name=name)
            ).rowcount
            if not found:
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
        with self.database.reading() as connection:
            found = [
                RunRow(RunId(row.run), row.plan, Digest(row.probe), row.submitted_at)
                for row in connection.execute(sa.select(_runs))
            ]
        return sorted(found, key=lambda row: (row.submitted_at, row.run))

    def run(self, run: RunId) -> RunRow:
        """One run. Raises RunNotFound."""
        for row in self.runs():
            if row.run == run:
                return row
        raise RunNotFound(f"no run named {run}")

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
            return {
                row.kind: Milestone(
                    row.kind, codec.decode(row.body, limit=_ROW_LIMIT_BYTES), row.at
                )
                for row in connection.execute(query)
            }

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

    def transitions(self, run: RunId) -> list[TransitionRow]:
        """Every transition of a run's rounds, in the order they were committed."""
        query = sa.select(_transitions).where(_transitions.c.run == run).order_by(_transitions.c.id)
        with self.database.reading() as connection:
            return [
                TransitionRow(
                    RoundNumber(row.round),
                    _transition(row.kind, codec.decode(row.body, limit=_ROW_LIMIT_BYTES)),
                    row.at,
                )
                for row in connection.execute(query)
            ]

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


def _already_joined(name: DeviceId) -> DataError:
    return DataError(f"a device named {name}, or with this key, has already joined")


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _transition(kind: str, body: dict[str, Any]) -> Transition:
    cls = _KINDS[kind]
    hints = get_type_hints(cls)
    values = {
        name: tuple(value) if str(hints[name]).startswith("tuple") else value
        for name, value in body.items()
    }
    built: Transition = cls(**values)
    return built


def by_round(rows: Sequence[TransitionRow]) -> Iterator[tuple[RoundNumber, list[TransitionRow]]]:
    """The rows of each round, rounds in ascending order."""
    grouped: dict[RoundNumber, list[TransitionRow]] = {}
    for row in rows:
        grouped.setdefault(row.round, []).append(row)
    yield from sorted(grouped.items())
