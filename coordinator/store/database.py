"""One database, SQLite or PostgreSQL, as the store needs it.

    D1  a transaction is there whole or not at all, tables included, and on disk when it was
        committed: SQLite in WAL with synchronous=FULL; PostgreSQL with fsync, and with
        synchronous_commit whatever the server's default is
    D2  where a connection is lost while a transaction is committed, the server is asked what
        became of it; as long as nobody knows, nothing else is written
    D3  writers of SQLite take turns from the first statement on, so that what a transaction
        reads is still so when it writes
    D4  no error, repr or log line holds a password

With :mod:`coordinator.store.tables`, the store, its backups and its migrations the only modules
that know SQLAlchemy.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, quote_plus

import sqlalchemy as sa

from shared.errors import ConfigError, StorageError
from shared.extras import require

_POSTGRES: Final = ("postgresql", "postgres", "postgresql+psycopg")

_CONNECT: Final = {
    "application_name": "llmos",
    "connect_timeout": "10",
    # A server that went away without a word is noticed in so many seconds, or milliseconds.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""What libpq is told unless the URL says otherwise."""

_SURE: Final = frozenset({"on", "remote_apply"})
"""Values of synchronous_commit after which a commit survives the server's power loss, and that of
a standby where one is configured."""

_CLAIM: Final = 7_203_313

_ASK_AGAIN_S: Final = (0.1, 0.5, 2.0)
"""How long to wait before a server that was lost is asked again what became of a commit."""


def store_url(text: str, home: Path) -> str:
    """The database's URL out of what a user said; nothing means a file in ``home``.

    Raises:
        ConfigError: it is no PostgreSQL's, or cannot be read.
    """
    if not text:
        return f"sqlite:///{home / 'store.db'}"
    if text.partition("://")[0] not in _POSTGRES:
        # It may hold a password, so it is not repeated.
        raise ConfigError(["--store: expected postgresql://…"], source="options")
    _parsed(text)
    return text


def _parsed(text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        # What cannot be read may be a password with an @ or a / in it.
        problem = "--store: this is no URL; write special characters of a password as %40, %2F, …"
        raise ConfigError([problem], source="options") from None
    if url.drivername not in _POSTGRES:
        return url
    missing = {name: value for name, value in _CONNECT.items() if name not in url.query}
    return url.set(drivername="postgresql+psycopg").update_query_dict(missing)


class Database:
    """Connections to one database. Safe to use from several threads."""

    def __init__(self, url: str) -> None:
        """Describe the database; nothing is opened yet.

        Raises:
            ConfigError: ``url`` cannot be read.
            DependencyMissing: it names PostgreSQL, and the extra ``postgres`` is not installed.
        """
        self._url = _parsed(url)
        self.is_sqlite: Final = self._url.get_backend_name() == "sqlite"
        if not self.is_sqlite:
            require("psycopg", extra="postgres")
        self.engine = sa.create_engine(self._url, pool_pre_ping=not self.is_sqlite)
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _make_sqlite_durable)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        else:
            sa.event.listen(self.engine, "connect", _make_postgres_durable)
        self._writer = self.engine.execution_options(writes=True)
        self._doubted: int | None = None
        """The transaction of which nobody knows whether it was committed (D2)."""

    @property
    def name(self) -> str:
        """The database in messages: where it is, and nothing of who may enter (D4)."""
        if self.is_sqlite:
            return f"sqlite:///{self._url.database}"
        host = self._url.host or self._url.query.get("host") or "localhost"
        port = f":{self._url.port}" if self._url.port else ""
        return f"postgresql://{host}{port}/{self._url.database or ''}"

    def __repr__(self) -> str:
        return f"Database({self.name})"

    def close(self) -> None:
        """Release the connections."""
        self.engine.dispose()

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep a PostgreSQL store to one coordinator, as a lock in its home does a file.

        The claim goes with the connection that holds it, and so with the process.

        Raises:
            StorageError: another process has claimed it, or it cannot be reached.
        """
        if self.is_sqlite:
            yield
            return
        claim = sa.select(
            sa.func.pg_try_advisory_lock(_CLAIM, sa.func.hashtext(sa.func.current_schema()))
        )
        with contextlib.ExitStack() as stack:
            with self._failures("be claimed"):
                connection = stack.enter_context(self.engine.connect())
                stack.callback(connection.invalidate)  # closed, and not kept for others
                claimed = connection.execution_options(isolation_level="AUTOCOMMIT").scalar(claim)
            if not claimed:
                raise StorageError(
                    f"another coordinator works with the store at {self.name}: end it, or give "
                    "this one a database of its own"
                )
            yield

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Read; several statements may see different states.

        Raises:
            StorageError: the database cannot be read now.
        """
        with self._failures("read"), self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """Read one state, however many statements that takes, while others go on writing.

        Raises:
            StorageError: the database cannot be read now.
        """
        with self._failures("read"), self.engine.connect() as connection:
            if not self.is_sqlite:  # in SQLite a transaction sees one state anyway
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction, committed when this is left without an error (D1, D2, D3).

        Raises:
            StorageError: the database refused, or was lost; nothing was written, unless the
                message says that this is not known.
        """
        self._settle()
        with self._failures("write"), self._writer.connect() as connection:
            transaction = connection.begin()
            number = None if self.is_sqlite else connection.scalar(sa.text("SELECT txid_current()"))
            try:
                yield connection
            except BaseException:
                transaction.rollback()
                raise
            try:
                transaction.commit()
            except sa.exc.DBAPIError as err:
                if number is None or not err.connection_invalidated:
                    raise
                self._ask_whether_committed(number)

    def _ask_whether_committed(self, number: int) -> None:
        """Return if transaction ``number`` was committed; raises StorageError if not, or not known."""
        self._doubted = number
        for pause_s in _ASK_AGAIN_S:
            outcome = self._outcome(number)
            if outcome == "committed":
                self._doubted = None
                return
            if outcome == "aborted":
                self._doubted = None
                raise StorageError(f"the store refused to write: {self.name} broke off")
            time.sleep(pause_s)
        raise StorageError(
            f"{self.name} was lost while it committed; whether it did is asked before the next write"
        )

    def _settle(self) -> None:
        """See to it that no commit is in doubt.

        Raises:
            StorageError: one still is, or was made after its caller had been told that nobody
                knew: what this process remembers may then differ from the rows.
        """
        if self._doubted is None:
            return
        outcome = self._outcome(self._doubted)
        if outcome == "aborted":
            self._doubted = None
        elif outcome == "committed":
            raise StorageError(
                f"{self.name} had committed what this process gave up: start it again, "
                "and it goes on from the rows"
            )
        else:
            raise StorageError(f"{self.name} does not say yet whether its last commit was made")

    def _outcome(self, number: int) -> str:
        try:
            with self.engine.connect() as connection:
                status = connection.scalar(sa.text("SELECT txid_status(:n)"), {"n": number})
        except sa.exc.SQLAlchemyError:
            return "unknown"
        return str(status)

    @contextlib.contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        """Turn the database's refusals into ours; what only a mistake of ours explains passes."""
        try:
            yield
        except (sa.exc.IntegrityError, sa.exc.DataError, sa.exc.ProgrammingError):
            raise
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as err:
            raise StorageError(f"the store refused to {what}: {self.reason(err)}") from err

    def reason(self, err: Exception) -> str:
        """What went wrong, in one line without the password (D4)."""
        text = str(getattr(err, "orig", None) or err).strip().partition("\n")[0]
        given = self._url.query.get("password")
        for secret in filter(None, (self._url.password, given if isinstance(given, str) else None)):
            for written in (secret, quote(secret, safe=""), quote_plus(secret)):
                text = text.replace(written, "***")
        return text


def _make_sqlite_durable(connection: Any, _record: Any) -> None:
    # pysqlite begins transactions by itself, and not before CREATE TABLE: that is left to us.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("busy_timeout=10000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _make_postgres_durable(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        if cursor.execute("SHOW fsync").fetchone()[0] != "on":
            raise StorageError(
                "this PostgreSQL runs with fsync=off, so a power cut would lose what was "
                "acknowledged: turn it on"
            )
        if cursor.execute("SHOW synchronous_commit").fetchone()[0] not in _SURE:
            cursor.execute("SET synchronous_commit TO on")
    connection.commit()
