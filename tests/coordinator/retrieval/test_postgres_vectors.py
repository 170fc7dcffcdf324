"""What only a server can do: be away, and be shared."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from coordinator.retrieval.postgres_vectors import PostgresVectors
from coordinator.retrieval.vectors import CollectionCard, Passage
from shared.errors import StorageError
from shared.types import Digest

CARD = CollectionCard("alice", "manuals", Digest("a" * 64), 4)


def test_a_server_that_is_not_there_is_an_error_of_ours_without_the_password() -> None:
    with pytest.raises(StorageError, match="PostgreSQL cannot be used") as refused:
        PostgresVectors("postgresql://someone:hidden@127.0.0.1:1/none")
    assert "hidden" not in str(refused.value)


@pytest.mark.postgres
def test_a_connection_that_broke_is_made_again(postgres_url: str) -> None:
    store = PostgresVectors(postgres_url)
    store.upsert(CARD, [Passage("1", "text")], np.eye(4, dtype=np.float32)[:1])
    psycopg: Any = importlib.import_module("psycopg")
    with psycopg.connect(postgres_url) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'llmos'"
        )
    with pytest.raises(StorageError):
        store.count("alice", "manuals")
    assert store.count("alice", "manuals") == 1
    store.close()


@pytest.mark.postgres
def test_two_coordinators_share_collections(postgres_url: str) -> None:
    one, two = PostgresVectors(postgres_url), PostgresVectors(postgres_url)
    one.upsert(CARD, [Passage("1", "text")], np.eye(4, dtype=np.float32)[:1])
    assert two.cards("alice") == [CARD]
    assert two.drop("alice", "manuals")
    assert one.card("alice", "manuals") is None
    one.close()
    two.close()
