"""Stores on SQLite and on PostgreSQL, for tests that hold for both."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from coordinator.store import migrations
from coordinator.store.migrations import scripts
from coordinator.store.store import Store
from coordinator.store.tables import metadata
from shared.types import Digest, RunId
from tests.support.postgres import empty_schema

RUN, DIGEST = RunId("run"), Digest("a" * 64)

SQLITE, POSTGRES = "sqlite", "postgres"
DATABASES: Final = [SQLITE, pytest.param(POSTGRES, marks=pytest.mark.postgres)]
"""What a fixture that should run on both is parametrised with."""


@dataclass(frozen=True)
class Place:
    """Where a store is, or will be."""

    url: str
    folder: Path

    def open(self) -> Store:
        return Store(self.url, self.folder)


def sqlite_place(folder: Path) -> Place:
    return Place(f"sqlite:///{folder / 'store.db'}", folder)


@contextlib.contextmanager
def empty_place(kind: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    """An empty database of ``kind``, and a folder for its blobs."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == SQLITE:
        yield sqlite_place(folder)
        return
    with empty_schema(request.getfixturevalue("postgres_server")) as url:
        yield Place(url, folder)


def rows_in(connection: sa.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Everything in our tables, whatever program made them."""
    there = set(sa.inspect(connection).get_table_names())
    return {
        table.name: sorted((tuple(row) for row in connection.execute(sa.select(table))), key=repr)
        for table in metadata.sorted_tables
        if table.name in there
    }


def with_another(folder: Path, content: str) -> ScriptDirectory:
    """Our migrations, and one more."""
    assert migrations.__file__ is not None
    shutil.copytree(Path(migrations.__file__).parent / "versions", folder / "versions")
    (folder / "versions" / "r9998_another.py").write_text(content, encoding="utf-8")
    return scripts(folder)
