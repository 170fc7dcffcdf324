"""M1 to M4: stores of earlier programs become ours whole or not at all, those of later ones never."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from coordinator.federation.rounds import Invited, Planned
from coordinator.store.database import Database
from coordinator.store.migrations import migrate, newest_revision, scripts
from coordinator.store.store import Device, Store
from coordinator.store.tables import KEPT, PASSING, metadata
from shared.errors import AccessDenied, StorageError
from shared.types import DeviceId, Digest, PublicKey, RoundNumber, RunId
from tests.support.processes_beside import ROOT
from tests.support.stores import Place, rows_in, sqlite_place, with_another

TICKETS = RunId("tickets")
KITCHEN = Device(DeviceId("kitchen"), PublicKey((7).to_bytes(32)), 1.5)

BREAKS = f"""
import sqlalchemy as sa
from alembic import op

revision = "9998"
down_revision = "{newest_revision()}"

def upgrade():
    op.create_table("more", sa.Column("id", sa.Integer, primary_key=True))
    op.execute("UPDATE schema_version SET version = 6")
    op.add_column("runs", sa.Column("note", sa.Text))
    op.execute("DELETE FROM transitions")
    op.execute("INSERT INTO no_such_table VALUES (1)")
"""  # noqa: S608  a migration that fails


_SINCE = (
    *(table.name for table in PASSING),
    "people",
    "device_standings",
    "api_key_roles",
    "api_key_quarantines",
    "alarms",
    "certificates",
)
"""Tables that schema 4 had not, each before the tables that it refers to."""


def make_schema_4(place: Place) -> None:
    """The store of the last program without migrations, as that program wrote it."""
    dump = Path(__file__).with_name("schema_4.sql").read_text(encoding="utf-8")
    with contextlib.closing(sqlite3.connect(place.folder / "store.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(dump)


def make_schema_3(place: Place) -> None:
    """The one before it differed by a table."""
    make_schema_4(place)
    with contextlib.closing(sqlite3.connect(place.folder / "store.db")) as database, database:
        database.execute("DROP TABLE api_keys")
        database.execute("UPDATE schema_version SET version = 3")


def whole_database(place: Place) -> tuple[dict[str, list[str]], dict[str, list[tuple[Any, ...]]]]:
    """Columns of every table, and every row of ours."""
    database = Database(place.url)
    with database.reading() as connection:
        looking = sa.inspect(connection)
        columns = {
            table: [column["name"] for column in looking.get_columns(table)]
            for table in looking.get_table_names()
        }
        rows = rows_in(connection) if "runs" in columns and "note" not in columns["runs"] else {}
    database.close()
    return columns, rows


def run_on(place: Place, *statements: str) -> None:
    database = Database(place.url)
    with database.writing() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    database.close()


def differences(store: Store) -> list[Any]:
    with store.database.reading() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))


def test_migrations_lead_to_the_tables_in_code(store: Store) -> None:
    assert differences(store) == []


def test_the_comparison_sees_what_is_missing(place: Place, store: Store) -> None:
    run_on(place, "DROP INDEX transitions_by_round", "ALTER TABLE devices ADD COLUMN note TEXT")
    assert [change[0] for change in differences(store)] == ["remove_column", "add_index"]


@pytest.mark.parametrize("make", [make_schema_3, make_schema_4])
def test_a_store_of_an_earlier_program_keeps_every_row(
    tmp_path: Path, make: Callable[[Place], None]
) -> None:
    place = sqlite_place(tmp_path)
    make(place)
    _, before = whole_database(place)
    for _ in range(2):
        store = place.open()
        assert differences(store) == []
        assert store.devices() == [KITCHEN]
        assert [row.run for row in store.runs()] == [TICKETS]
        assert store.milestones(TICKETS)["started"].facts == {"adapter": "b" * 64, "loss": 1.25}
        transitions = [row.transition for row in store.transitions(TICKETS)]
        assert transitions == [Planned(Digest("b" * 64)), Invited(("kitchen",), 4.5)]
        with pytest.raises(AccessDenied, match="already used"):
            store.join("a-join-token", DeviceId("b"), PublicKey(bytes(32)), now=1.0)
        assert [key.tokens_per_minute for key in store.api_keys()] == [2**40][
            : make is make_schema_4
        ]
        store.close()
        _, after = whole_database(place)
        assert {name: after[name] for name in before if name != "schema_version"} == {
            name: rows for name, rows in before.items() if name != "schema_version"
        }
    store = place.open()
    store.join("another-token", DeviceId("b"), PublicKey(bytes(32)), now=1.0)
    store.commit(TICKETS, RoundNumber(2), Planned(Digest("c" * 64)), now=9.0)
    assert len(store.transitions(TICKETS)) == 3
    store.close()


def test_schema_4_is_taken_over_on_both_databases(place: Place) -> None:
    place.open().close()
    run_on(
        place,
        *(f"DROP TABLE {table}" for table in _SINCE),
        "DROP TABLE alembic_version",
        "UPDATE schema_version SET version = 4",
    )
    store = place.open()
    assert differences(store) == []
    store.close()


def test_earlier_programs_find_a_version_that_they_refuse(store: Store) -> None:
    """They know 3 and 4, and would make the table anew if it were missing."""
    with store.database.reading() as connection:
        assert rows_in(connection)["schema_version"] == [(5,)]


@pytest.mark.parametrize(
    ("statements", "what"),
    [
        (["UPDATE alembic_version SET version_num = '9999'"], "revision 9999"),
        (["DROP TABLE alembic_version", "UPDATE schema_version SET version = 6"], "schema 6"),
    ],
    ids=["by its revision", "by its number"],
)
def test_a_store_of_a_newer_program_is_refused_and_left_as_it_is(
    place: Place, store: Store, statements: list[str], what: str
) -> None:
    store.close()
    run_on(place, *statements)
    before, files = whole_database(place), contents(place.folder)
    with pytest.raises(StorageError, match=rf"of a newer program .{what}.*restore a backup"):
        place.open()
    assert whole_database(place) == before
    assert contents(place.folder) == files


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_store_that_is_too_old_is_refused(place: Place, store: Store) -> None:
    store.close()
    run_on(place, "DROP TABLE alembic_version", "UPDATE schema_version SET version = 1")
    with pytest.raises(StorageError, match=r"has schema 1, the oldest .* is 3"):
        place.open()


def test_a_migration_that_fails_half_way_leaves_the_store_as_it_was(
    place: Place, store: Store, tmp_path: Path
) -> None:
    store.commit(RunId("run"), RoundNumber(1), Planned(Digest("c" * 64)), now=9.0)
    store.close()
    before = whole_database(place)
    database = Database(place.url)
    with pytest.raises(StorageError, match=r"as it was: .*no_such_table"):
        migrate(database, with_another(tmp_path / "migrations", BREAKS))
    database.close()
    assert whole_database(place) == before
    again = place.open()
    assert len(again.transitions(RunId("run"))) == 1
    again.close()


def test_a_store_that_is_taken_over_and_migrated_half_way_is_as_it_was(tmp_path: Path) -> None:
    place = sqlite_place(tmp_path)
    make_schema_3(place)
    before = whole_database(place)
    database = Database(place.url)
    with pytest.raises(StorageError, match="as it was"):
        migrate(database, with_another(tmp_path / "migrations", BREAKS))
    database.close()
    assert whole_database(place) == before


def test_an_empty_database_stays_empty_when_its_tables_cannot_all_be_made(
    place: Place, tmp_path: Path
) -> None:
    database = Database(place.url)
    with pytest.raises(StorageError, match="as it was"):
        migrate(database, with_another(tmp_path / "migrations", BREAKS))
    database.close()
    assert whole_database(place) == ({}, {})


OPENS_WHENEVER_TOLD = """
import sys
from pathlib import Path
from coordinator.store.store import Store
print("ready", flush=True)
for _ in sys.stdin:
    try:
        Store(sys.argv[1], Path(sys.argv[2])).close()
        print("opened", flush=True)
    except Exception as err:
        print(repr(err), flush=True)
"""


@contextlib.contextmanager
def openers(place: Place, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that open the store with every line that they are given."""
    command = [sys.executable, "-c", OPENS_WHENEVER_TOLD, place.url, str(place.folder)]
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(count):
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        assert [answer_of(process) for process in processes] == ["ready"] * count
        yield processes


def answer_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_processes_that_open_an_empty_or_old_store_at_once_do_not_meet(place: Place) -> None:
    old = (
        *(f"DROP TABLE {table}" for table in _SINCE),
        "DROP TABLE alembic_version",
        "DROP TABLE api_keys",
        "UPDATE schema_version SET version = 3",
    )
    gone = ("alembic_version", *_SINCE, "api_keys", "schema_version")
    none = [f"DROP TABLE {table}" for table in gone]
    none += [f"DROP TABLE {table.name}" for table in reversed(KEPT) if table.name not in gone]
    with openers(place, 3) as processes:
        for undo in ((), old, none, old, none, old):
            run_on(place, *undo)
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("open\n")
                process.stdin.flush()
            assert [answer_of(process) for process in processes] == ["opened"] * 3
            _, rows = whole_database(place)
            assert rows["schema_version"] == [(5,)]
    store = place.open()
    assert differences(store) == []
    store.close()


def test_threads_may_open_different_stores_at_once(tmp_path: Path) -> None:
    barrier, failures = threading.Barrier(4), list[Exception]()

    def open_it(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        barrier.wait()
        try:
            store = sqlite_place(folder).open()
            assert differences(store) == []
            store.close()
        except Exception as err:  # noqa: BLE001 - whatever it is, the test fails with it
            failures.append(err)

    threads = [threading.Thread(target=open_it, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_revisions_follow_one_another() -> None:
    known = scripts()
    assert known.get_heads() == [newest_revision()]
    revisions = [script.revision for script in known.walk_revisions()]
    assert revisions == [f"{number:04}" for number in range(int(revisions[0]), 2, -1)]
