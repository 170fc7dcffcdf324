"""Collections in PostgreSQL with pgvector, which several coordinators may share.

Two tables; an owner may call collections and passages whatever they like, for names are values and
never part of a statement. The only module that knows pgvector.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from coordinator.retrieval.vectors import CollectionCard, Hit, Passage, check_same_encoder
from shared.errors import StorageError
from shared.extras import require
from shared.types import Digest, FloatMatrix

EXTRA: Final = "postgres"

_CONNECT_S: Final = 10
_SETUP_LOCK: Final = 7_203_311
"""Coordinators that start together make the tables one after the other."""

_SCHEMA: Final = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    """CREATE TABLE IF NOT EXISTS llmos_collections (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        owner text NOT NULL, name text NOT NULL,
        encoder text NOT NULL, features integer NOT NULL,
        UNIQUE (owner, name))""",
    """CREATE TABLE IF NOT EXISTS llmos_passages (
        collection bigint NOT NULL REFERENCES llmos_collections ON DELETE CASCADE,
        id text NOT NULL, text text NOT NULL, metadata text NOT NULL,
        embedding vector NOT NULL,
        PRIMARY KEY (collection, id))""",
)
_CARD: Final = "SELECT id, owner, name, encoder, features FROM llmos_collections"


class PostgresVectors:
    """A :class:`~coordinator.retrieval.vectors.VectorStore` on a server."""

    def __init__(self, url: str) -> None:
        """Connect, and make the tables where there are none.

        Args:
            url: ``postgresql://user:password@host/database``.

        Raises:
            DependencyMissing: the extra ``postgres`` is not installed.
            StorageError: no server answers, or it has no pgvector.
        """
        self._psycopg: Any = require("psycopg", extra=EXTRA)
        self._pgvector: Any = require("pgvector.psycopg", extra=EXTRA)
        self._url = url
        self._lock = threading.Lock()
        self._connection: Any = None
        with self._transaction():
            pass

    def cards(self, owner: str) -> list[CollectionCard]:
        """The collections of an owner, by name."""
        with self._transaction() as run:
            rows = run(f'{_CARD} WHERE owner = %s ORDER BY name COLLATE "C"', (owner,))
            return [_card(row) for row in rows]

    def card(self, owner: str, name: str) -> CollectionCard | None:
        """One collection, or ``None``."""
        with self._transaction() as run:
            row = run(f"{_CARD} WHERE owner = %s AND name = %s", (owner, name)).fetchone()
            return None if row is None else _card(row)

    def count(self, owner: str, name: str) -> int:
        """How many passages it holds."""
        with self._transaction() as run:
            query = (
                "SELECT count(*) FROM llmos_passages WHERE collection = "
                "(SELECT id FROM llmos_collections WHERE owner = %s AND name = %s)"
            )
            return int(run(query, (owner, name)).fetchone()[0])

    def upsert(
        self, card: CollectionCard, passages: Sequence[Passage], embeddings: FloatMatrix
    ) -> None:
        """Add passages or replace them; contract in the protocol."""
        with self._transaction() as run:
            run(
                "INSERT INTO llmos_collections (owner, name, encoder, features) "
                "VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                (card.owner, card.name, card.encoder, card.features),
            )
            # Locked, so that nobody drops it before its passages are in.
            row = run(
                f"{_CARD} WHERE owner = %s AND name = %s FOR SHARE", (card.owner, card.name)
            ).fetchone()
            check_same_encoder(_card(row), card)
            rows = [
                (
                    row[0],
                    passage.id,
                    passage.text,
                    json.dumps(passage.metadata, ensure_ascii=False),
                    np.asarray(embedding, np.float32),
                )
                for passage, embedding in zip(passages, embeddings, strict=True)
            ]
            self._connection.cursor().executemany(
                "INSERT INTO llmos_passages (collection, id, text, metadata, embedding) "
                "VALUES (%s, %s, %s, %s, %s) ON CONFLICT (collection, id) DO UPDATE SET "
                "text = excluded.text, metadata = excluded.metadata, "
                "embedding = excluded.embedding",
                rows,
            )

    def delete(self, owner: str, name: str, ids: Sequence[str]) -> int:
        """Remove passages."""
        with self._transaction() as run:
            query = (
                "DELETE FROM llmos_passages WHERE collection = "
                "(SELECT id FROM llmos_collections WHERE owner = %s AND name = %s) "
                "AND id = ANY(%s)"
            )
            return int(run(query, (owner, name, list(ids))).rowcount)

    def drop(self, owner: str, name: str) -> bool:
        """Remove a collection."""
        with self._transaction() as run:
            query = "DELETE FROM llmos_collections WHERE owner = %s AND name = %s"
            return bool(run(query, (owner, name)).rowcount)

    def search(self, owner: str, name: str, embedding: FloatMatrix, *, top: int) -> list[Hit]:
        """The nearest passages; contract in the protocol."""
        with self._transaction() as run:
            rows = run(
                "SELECT id, text, metadata, embedding <=> %s AS distance FROM llmos_passages "
                "WHERE collection = "
                "(SELECT id FROM llmos_collections WHERE owner = %s AND name = %s) "
                'ORDER BY distance, id COLLATE "C" LIMIT %s',
                (np.asarray(embedding, np.float32), owner, name, top),
            ).fetchall()
        return [
            Hit(Passage(identifier, text, json.loads(metadata)), 1.0 - float(distance))
            for identifier, text, metadata, distance in rows
        ]

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """Run statements that all count or none; what was committed is on the server's disk."""
        with self._lock:
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = self._connected()
                with self._connection.transaction():
                    yield self._connection.execute
            except self._psycopg.Error as err:
                said = str(err).strip().splitlines() or [type(err).__name__]
                raise StorageError(f"PostgreSQL cannot be used: {said[0][:300]}") from err

    def _connected(self) -> Any:
        connection = self._psycopg.connect(
            self._url, autocommit=True, connect_timeout=_CONNECT_S, application_name="llmos"
        )
        try:
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SETUP_LOCK,))
                for statement in _SCHEMA:
                    connection.execute(statement)
            # Whatever the server's default is: what is acknowledged is on its disk.
            connection.execute("SET synchronous_commit = on")
            self._pgvector.register_vector(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def _card(row: Any) -> CollectionCard:
    _, owner, name, encoder, features = row
    return CollectionCard(owner, name, Digest(encoder), features)
