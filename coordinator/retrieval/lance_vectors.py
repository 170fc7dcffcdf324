"""Collections in LanceDB: files in a folder, opened inside this process.

Each collection is a table. Its name is a digest, for owners may call theirs what they like; what
it is stands in the schema's metadata. The only module that knows lancedb.

LanceDB leaves it to the operating system when its files reach the disk, so they are synchronised
here before anything is acknowledged (V1): 2 to 6 ms a write.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np

from coordinator.retrieval.vectors import CollectionCard, Hit, Passage, check_same_encoder
from shared.errors import StorageError
from shared.extras import require
from shared.files import digest_of, disk_errors, make_folder, sync_folder
from shared.types import Digest, FloatMatrix

EXTRA: Final = "retrieval"

_CARD: Final = b"llmos"
_COLUMNS: Final = ["id", "text", "metadata"]
_TIDY_EVERY: Final = 32
"""Every write leaves a fragment and a version; so many are then put together."""
_KEPT_FOR: Final = timedelta(minutes=1)
"""A search that began before the tidying still reads the version it began with."""


class LanceVectors:
    """A :class:`~coordinator.retrieval.vectors.VectorStore` in a folder."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, or make it.

        Raises:
            DependencyMissing: the extra ``retrieval`` is not installed.
            StorageError: the folder cannot be used.
        """
        lancedb: Any = require("lancedb", extra=EXTRA)
        self._arrow: Any = require("pyarrow", extra=EXTRA)
        with disk_errors(folder):
            make_folder(folder)
        self._folder = folder
        with _ours():
            self._database: Any = lancedb.connect(str(folder))
        # One writer at a time: two would only make each other repeat their work.
        self._lock = threading.RLock()
        self._synced: dict[str, set[Path]] = {}
        self._writes: Counter[str] = Counter()

    def cards(self, owner: str) -> list[CollectionCard]:
        """The collections of an owner, by name."""
        with self._lock, _ours():
            cards = [self._card_of(self._database.open_table(name)) for name in self._tables()]
        return sorted((card for card in cards if card.owner == owner), key=lambda card: card.name)

    def card(self, owner: str, name: str) -> CollectionCard | None:
        """One collection, or ``None``."""
        table = self._table(owner, name)
        return None if table is None else self._card_of(table)

    def count(self, owner: str, name: str) -> int:
        """How many passages it holds."""
        table = self._table(owner, name)
        with _ours():
            return 0 if table is None else int(table.count_rows())

    def upsert(
        self, card: CollectionCard, passages: Sequence[Passage], embeddings: FloatMatrix
    ) -> None:
        """Add passages or replace them; contract in the protocol."""
        with self._lock, _ours():
            table = self._table(card.owner, card.name)
            if table is None:
                table = self._database.create_table(
                    _table_name(card.owner, card.name), schema=self._schema(card)
                )
            else:
                check_same_encoder(self._card_of(table), card)
            rows = self._arrow.table(
                {
                    "id": [passage.id for passage in passages],
                    "text": [passage.text for passage in passages],
                    "metadata": [
                        json.dumps(passage.metadata, ensure_ascii=False) for passage in passages
                    ],
                    "embedding": list(np.asarray(embeddings, np.float32)),
                },
                schema=self._schema(card),
            )
            merge = table.merge_insert("id").when_matched_update_all()
            merge.when_not_matched_insert_all().execute(rows)
            self._acknowledge(table)

    def delete(self, owner: str, name: str, ids: Sequence[str]) -> int:
        """Remove passages."""
        with self._lock, _ours():
            table = self._table(owner, name)
            if table is None:
                return 0
            before = int(table.count_rows())
            table.delete(f"id IN ({', '.join(map(_quoted, ids))})")
            self._acknowledge(table)
            return before - int(table.count_rows())

    def drop(self, owner: str, name: str) -> bool:
        """Remove a collection."""
        with self._lock, _ours():
            if self._table(owner, name) is None:
                return False
            self._database.drop_table(_table_name(owner, name))
            sync_folder(self._folder)
            return True

    def search(self, owner: str, name: str, embedding: FloatMatrix, *, top: int) -> list[Hit]:
        """The nearest passages; contract in the protocol."""
        table = self._table(owner, name)
        if table is None:
            return []
        query = np.asarray(embedding, np.float32)
        with _ours():
            found = table.search(query, vector_column_name="embedding").distance_type("cosine")
            rows = found.select([*_COLUMNS, "_distance"]).limit(top).to_list()
        hits = [
            Hit(
                Passage(row["id"], row["text"], json.loads(row["metadata"])),
                1.0 - float(row["_distance"]),
            )
            for row in rows
        ]
        return sorted(hits, key=lambda hit: (-hit.score, hit.passage.id))

    def close(self) -> None:
        """Nothing is held open that would have to be closed."""

    def _tables(self) -> list[str]:
        return sorted(path.stem for path in self._folder.glob("*.lance"))

    def _table(self, owner: str, name: str) -> Any:
        """The table as it is now, or ``None``."""
        table_name = _table_name(owner, name)
        with self._lock, _ours():
            if not (self._folder / f"{table_name}.lance").is_dir():
                return None
            return self._database.open_table(table_name)

    def _schema(self, card: CollectionCard) -> Any:
        arrow = self._arrow
        about = {"owner": card.owner, "name": card.name, "encoder": card.encoder}
        return arrow.schema(
            [
                *(arrow.field(column, arrow.string(), nullable=False) for column in _COLUMNS),
                arrow.field("embedding", arrow.list_(arrow.float32(), card.features)),
            ],
            metadata={_CARD: json.dumps(about).encode()},
        )

    def _card_of(self, table: Any) -> CollectionCard:
        schema = table.schema
        about = json.loads(schema.metadata[_CARD])
        width = int(schema.field("embedding").type.list_size)
        return CollectionCard(about["owner"], about["name"], Digest(about["encoder"]), width)

    def _acknowledge(self, table: Any) -> None:
        """Bring what was written onto the disk, and tidy up now and then (V1)."""
        self._writes[table.name] += 1
        if self._writes[table.name] % _TIDY_EVERY == 0:
            table.optimize(cleanup_older_than=_KEPT_FOR)
        folder = self._folder / f"{table.name}.lance"
        here = list(folder.rglob("*"))
        synced = self._synced.get(table.name, set())
        for path in (*here, folder, self._folder):
            if path not in synced:
                sync_folder(path)
        # Folders change with every file in them; files never do.
        self._synced[table.name] = {path for path in here if not path.is_dir()}


def _table_name(owner: str, name: str) -> str:
    return digest_of(f"{owner}\0{name}".encode())[:40]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def _ours() -> Iterator[None]:
    """The library's errors, which share no base of their own, as ours."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as err:
        raise StorageError(f"the collections cannot be used: {str(err)[:300]}") from err
