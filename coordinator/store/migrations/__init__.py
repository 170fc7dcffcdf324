"""How a store of any earlier program becomes one of this program, when it is opened.

    M1  all migrations are one transaction: a store is at the newest revision or as it was
    M2  whoever opens a store at the same time waits, and then finds it migrated
    M3  a store of a newer program is refused, and nothing in it is touched
    M4  stores from before there were migrations (``schema_version`` 3 and 4) are taken over

Scripts are in ``versions``, one per revision and never changed once released. With them the only
module that knows Alembic.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import sqlalchemy as sa

from coordinator.store.database import Database
from coordinator.store.tables import metadata
from shared.errors import StorageError

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

Scripts: TypeAlias = "ScriptDirectory"

_BEFORE_REVISIONS: Final = {3: "0003", 4: "0004"}
"""Number in ``schema_version`` → the revision that is the same tables."""

_LOCK: Final = 7_203_312
"""Programs that open a PostgreSQL store together migrate it one after the other."""

_one_at_a_time: Final = threading.Lock()
"""What scripts call as ``op`` is one object of the whole process."""


def scripts(folder: Path = Path(__file__).parent) -> ScriptDirectory:
    """The migrations in ``folder``."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(folder))


def newest_revision() -> str:
    """The revision that this program works with."""
    newest = scripts().get_current_head()
    assert newest is not None
    return newest


def revisions(known: ScriptDirectory | None = None) -> set[str]:
    """Every revision that can be brought up to date."""
    return {script.revision for script in (known or scripts()).walk_revisions()}


def revision_of(connection: sa.Connection) -> str | None:
    """The revision of a store; None of an empty database.

    Raises:
        StorageError: it is none that this program knows.
    """
    return _revision(connection, scripts())


def migrate(database: Database, known: ScriptDirectory | None = None) -> None:
    """Bring a store to the newest revision; an empty database gets its tables.

    Args:
        database: To migrate.
        known: The migrations; by default this program's.

    Raises:
        StorageError: the store is of a newer or an unknown program, or a migration failed; it is
            as it was.
    """
    known = known or scripts()
    with database.snapshot() as connection:  # of several tables: somebody may be migrating them
        if _revision(connection, known) == known.get_current_head():
            return  # so that a disk that is full or read-only can still be read
    with _one_at_a_time, database.writing() as connection:
        if not database.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        try:
            _upgrade(connection, known)
        except StorageError:
            raise
        except Exception as err:
            raise StorageError(
                f"it cannot be brought up to date, and is as it was: {database.reason(err)}"
            ) from err


def build(
    database: Database,
    revision: str,
    fill: Callable[[sa.Connection], None],
    known: ScriptDirectory | None = None,
) -> None:
    """Make a store out of rows of ``revision``, and bring it up to date: whole or not at all (M1).

    Args:
        database: Without tables of ours.
        revision: What ``fill`` finds the tables at.
        fill: Puts the rows in.
        known: The migrations; by default this program's.

    Raises:
        StorageError: there is a store already, or it cannot be written.
    """
    known = known or scripts()
    with _one_at_a_time, database.writing() as connection:
        if not database.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        there = set(sa.inspect(connection).get_table_names())
        if there & {"alembic_version", *metadata.tables}:
            raise StorageError(
                f"there is a store at {database.name} already: name an empty database"
            )
        _upgrade(connection, known, revision)
        fill(connection)
        _upgrade(connection, known)


def _upgrade(connection: sa.Connection, known: ScriptDirectory, to: str = "head") -> None:
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext

    found = _revision(connection, known)
    context = MigrationContext.configure(
        connection,
        opts={
            "fn": lambda revision, _context: known._upgrade_revs(to, revision),
            "transactional_ddl": True,
        },
    )
    if found is not None and not context.get_current_heads():
        context.stamp(known, found)  # M4
    with Operations.context(context):
        context.run_migrations()


def _revision(connection: sa.Connection, known: ScriptDirectory) -> str | None:
    """The revision of a store; None of an empty database.

    Raises:
        StorageError: it is none that this program knows (M3).
    """
    from alembic.runtime.migration import MigrationContext

    heads = MigrationContext.configure(connection).get_current_heads()
    if heads:
        unknown = [head for head in heads if head not in revisions(known)]
        if not unknown:
            return heads[0]
        raise _newer(f"revision {', '.join(unknown)}", known)
    if not sa.inspect(connection).has_table("schema_version"):
        return None
    number: Any = connection.scalar(sa.text("SELECT version FROM schema_version"))
    if number is None or number in _BEFORE_REVISIONS:
        return _BEFORE_REVISIONS.get(number)
    if number > max(_BEFORE_REVISIONS):
        raise _newer(f"schema {number}", known)
    raise StorageError(
        f"it has schema {number}, the oldest that this program can bring up to date is "
        f"{min(_BEFORE_REVISIONS)}: begin a new one with another --home"
    )


def _newer(what: str, known: ScriptDirectory) -> StorageError:
    return StorageError(
        f"it is of a newer program ({what}, this one knows up to {known.get_current_head()}): "
        "start that program again, or restore a backup that was made before it"
    )
