"""Collections in the PostgreSQL of this test run."""

from __future__ import annotations

import importlib
from typing import Any

import pytest


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """URL of the server, without anybody's collections. Mark tests ``postgres``."""
    psycopg: Any = importlib.import_module("psycopg")
    with psycopg.connect(postgres_server) as connection:
        connection.execute("DROP TABLE IF EXISTS llmos_passages, llmos_collections")
    return postgres_server
