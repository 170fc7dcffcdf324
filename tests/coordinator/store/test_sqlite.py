"""T1 and D1 where the database is a file: what it is opened with, and disks that refuse."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from coordinator.federation.rounds import Committed
from coordinator.store.store import Store
from shared.errors import StorageError
from shared.types import RoundNumber
from tests.support.processes_beside import in_a_process_of_its_own
from tests.support.stores import DIGEST, RUN, Place, sqlite_place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return sqlite_place(tmp_path)


def test_every_connection_waits_for_the_disk(store: Store) -> None:
    """T1 rests on these two settings; SQLite forgets the second with every connection."""

    def settings_of_a_thread() -> None:
        with store.database.engine.connect() as connection:
            for pragma in ("journal_mode", "synchronous", "foreign_keys"):
                found[pragma] = connection.exec_driver_sql(f"PRAGMA {pragma}").scalar()

    found: dict[str, Any] = {}
    thread = threading.Thread(target=settings_of_a_thread)
    thread.start()
    thread.join()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_secrets_are_not_in_the_files(store: Store) -> None:
    token = store.new_token(expires_at=9.0)
    store.close()
    files = [path.read_bytes() for path in store.folder.glob("store.db*")]
    assert files
    assert not any(token.encode() in data for data in files)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"x" * 5000)
    with pytest.raises(StorageError, match="cannot open the store"):
        sqlite_place(tmp_path).open()


def test_a_read_only_folder_is_a_storage_error(store: Store) -> None:
    code = """
import os, sys
from pathlib import Path
from coordinator.store.store import Store
from coordinator.federation.rounds import Planned
from shared.errors import StorageError
folder = Path(sys.argv[1])
store = Store(f"sqlite:///{folder / 'store.db'}", folder)
store.keep(b"written while it was possible")
store.close()
for path in (*folder.rglob("*"), folder):
    path.chmod(0o500 if path.is_dir() else 0o400)
def refused(action):
    try:
        action()
    except StorageError as err:
        print("refused:", str(err).splitlines()[0])
def commit():
    again = Store(f"sqlite:///{folder / 'store.db'}", folder)
    again.commit("run", 1, Planned("a" * 64), now=1.0)
refused(commit)
refused(lambda: store.keep(b"new"))
refused(lambda: Store(f"sqlite:///{folder / 'new' / 'store.db'}", folder / "new"))
"""
    store.close()
    out = in_a_process_of_its_own(code, str(store.folder), may_override=False)
    for path in (store.folder, *store.folder.rglob("*")):
        path.chmod(0o700)
    lines = out.splitlines()
    assert len(lines) == 3, out
    assert "readonly" in lines[0] or "cannot open" in lines[0]
    assert "permission denied" in lines[1]
    assert "permission denied" in lines[2]
    again = sqlite_place(store.folder).open()
    assert again.transitions(RUN) == []
    again.close()


def test_a_full_disk_is_a_storage_error_and_leaves_no_row(store: Store) -> None:
    row = Committed("a", DIGEST, b"x" * 3_000_000)
    with store.database.engine.connect() as connection:
        # SQLite's own notion of a full disk, for the connection that the pool hands out next.
        connection.exec_driver_sql("PRAGMA max_page_count = 60")
    with pytest.raises(StorageError, match="disk is full"):
        store.commit(RUN, RoundNumber(1), row, now=1.0)
    assert store.transitions(RUN) == []
    with store.database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 100000")
    store.commit(RUN, RoundNumber(1), row, now=1.0)
    assert [row.transition for row in store.transitions(RUN)] == [row]
