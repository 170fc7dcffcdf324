"""The device's own records: one file that training reads and nothing leaves.

X1  after :meth:`ExampleStore.add` returns, the examples survive power loss
X2  an import is taken whole or not at all, and the same example is kept once
X3  a store keeps its identifier for life; the privacy budget is charged to it
X4  a store remembers how many charges it has borne, so that a copy of it beside an empty
    or another store's ledger, or beside one that lost its end, is known for what it is
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.data_files import Example
from shared.errors import DataError, StorageError
from shared.files import disk_errors
from shared.types import Digest

_SQLITE: Final = b"SQLite format 3\0"

_APPLICATION_ID: Final = 0x4C4C4D45
"""SQLite's own mark for whose file this is."""

_SCHEMA: Final = (
    f"PRAGMA application_id = {_APPLICATION_ID}",
    "CREATE TABLE store (id TEXT NOT NULL)",  # and charges, see _ADD_CHARGES
    """CREATE TABLE examples (
        position INTEGER PRIMARY KEY,
        text TEXT NOT NULL,
        label TEXT NOT NULL,
        "group" TEXT NOT NULL,
        UNIQUE (text, label)
    )""",
)
_ADD_CHARGES: Final = "ALTER TABLE store ADD COLUMN charges INTEGER NOT NULL DEFAULT 0"
_BUSY_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Added:
    """What an import changed."""

    new: int
    duplicates: int
    """Already there, or twice in the import."""


def is_held_out(example: Example, share: float) -> bool:
    """Whether an example belongs to the ``share`` that is scored and never trained on.

    Decided by its text alone, so the same in every round, after a restart, and under
    every label that the text may have.
    """
    drawn = int.from_bytes(hashlib.sha256(example.text.encode()).digest()[:8])
    return drawn / 2**64 < share


class ExampleStore:
    """Labelled texts in one SQLite file. Any thread or process may use it at any time."""

    def __init__(self, path: Path) -> None:
        """Open the store, or make it, readable by its owner only.

        Raises:
            DataError: the file is there and is no example store.
            StorageError: the disk refused.
        """
        self._path = path
        if path.is_dir():
            raise DataError(f"{path} is a folder, not an example store")
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite gives its journal files the permissions that this file has.
            with os.fdopen(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), "rb") as file:
                start = file.read(len(_SQLITE))
        # SQLite itself takes a file of a few bytes for an empty database and overwrites it.
        if start not in (b"", _SQLITE):
            raise DataError(f"{path} is not an example store, but another kind of file")
        with self._transaction() as connection:
            (owner,) = connection.execute("PRAGMA application_id").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if owner == 0 and tables == 0:
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute("INSERT INTO store VALUES (?)", (str(uuid.uuid4()),))
            elif owner != _APPLICATION_ID:
                raise DataError(f"{path} is not an example store, but another program's database")
            columns = {row[1] for row in connection.execute("PRAGMA table_info(store)")}
            if "charges" not in columns:  # made before X4
                connection.execute(_ADD_CHARGES)
            (self.store_id,) = connection.execute("SELECT id FROM store").fetchone()
            """Random, made with the file; what the ledger charges."""

    def add(self, examples: Iterable[Example]) -> Added:
        """Take new examples, all or none (X1, X2). Same text and label is the same example.

        Raises:
            StorageError: the disk refused; the store is as it was.
        """
        new = seen = 0
        with self._transaction() as connection:
            for example in examples:
                seen += 1
                new += connection.execute(
                    'INSERT INTO examples (text, label, "group") VALUES (?, ?, ?) '
                    "ON CONFLICT DO NOTHING",
                    (example.text, example.label, example.group),
                ).rowcount
        return Added(new=new, duplicates=seen - new)

    def examples(self) -> list[Example]:
        """Everything, in the order in which it was added."""
        with self._connection() as connection:
            rows = connection.execute(
                'SELECT text, label, "group" FROM examples ORDER BY position'
            ).fetchall()
        return [Example(*row) for row in rows]

    @property
    def count(self) -> int:
        """How many examples there are. Private: it leaves the device only noised."""
        with self._connection() as connection:
            return int(connection.execute("SELECT count(*) FROM examples").fetchone()[0])

    @property
    def charges(self) -> int:
        """How many charges of this store the ledger beside it has at least (X4)."""
        with self._connection() as connection:
            return int(connection.execute("SELECT charges FROM store").fetchone()[0])

    def note_charges(self, count: int) -> None:
        """Remember that the ledger has ``count`` charges of it by now; never fewer than before.

        Raises:
            StorageError: the disk refused; the store is as it was.
        """
        with self._transaction() as connection:
            connection.execute("UPDATE store SET charges = max(charges, ?)", (count,))

    def digest(self) -> Digest:
        """SHA-256 over all examples in their order: equal exactly when the contents are."""
        content = hashlib.sha256()
        for example in self.examples():
            for field in (example.text, example.label, example.group):
                encoded = field.encode()
                content.update(len(encoded).to_bytes(8, "little") + encoded)
        return Digest(content.hexdigest())

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Open a connection for one operation; a connection belongs to one thread."""
        try:
            connection = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
            with contextlib.closing(connection):
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")  # X1
                yield connection
        except sqlite3.OperationalError as err:
            raise StorageError(
                f"cannot use {self._path}: {err}. If the disk is full or read-only, "
                "see to that and start again; nothing was lost"
            ) from err
        except sqlite3.DatabaseError as err:
            raise DataError(f"{self._path} is not an example store: {err}") from err
