"""Collections of passages: embedded when they come, found by meaning when they are asked for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Final

from coordinator.inference.encoder import Encoder
from coordinator.retrieval.vectors import (
    CollectionCard,
    Hit,
    Passage,
    VectorStore,
    check_same_encoder,
)
from shared.errors import CollectionNotFound, DataError
from shared.types import Digest, FloatMatrix

COLLECTIONS_LIMIT: Final = 1000
"""Of one owner."""
PASSAGES_LIMIT: Final = 200_000
"""In one collection: a search looks at every one, 26 ms for 20,000 of 384 features."""


class Library:
    """The collections, by owner."""

    def __init__(self, encoder: Encoder, open_store: Callable[[], VectorStore]) -> None:
        """Open nothing yet.

        Args:
            encoder: Embeds passages and questions.
            open_store: Called once, when the first collection is asked for.
        """
        self._encoder = encoder
        self._open_store = open_store
        self._opened: VectorStore | None = None
        self._lock = threading.Lock()

    async def add(self, owner: str, name: str, passages: Sequence[Passage]) -> int:
        """Embed passages and keep them; those with the same ids are replaced.

        When this returns they are on disk.

        Returns:
            Tokens that were read.

        Raises:
            DataError: the collection is of another encoder, or would hold too much.
            EngineBusy, EngineError: the encoder cannot answer.
            StorageError: the store cannot.
        """
        known = {passage.id: passage for passage in passages}  # of equal ids the last
        there = await asyncio.to_thread(self._room_for, owner, name, len(known))
        if there is not None and self._encoder.card.base is not None:
            check_same_encoder(there, self._card(owner, name))  # before the work is done
        encoded = await self._encoder.embed([passage.text for passage in known.values()])
        card = self._card(owner, name)
        store = await asyncio.to_thread(self._store)
        await asyncio.to_thread(store.upsert, card, list(known.values()), encoded.values)
        return encoded.tokens

    async def search(self, owner: str, name: str, question: str, *, top: int) -> list[Hit]:
        """The passages nearest to a question, nearest first.

        Raises:
            CollectionNotFound: the owner has no such collection.
            DataError: it is of another encoder.
            EngineBusy, EngineError, StorageError: as :meth:`add`.
        """
        await asyncio.to_thread(self.card, owner, name)  # a missing one is said before any work
        embedding = (await self._encoder.embed([question])).values[0]
        return await self.nearest(owner, name, embedding, top=top)

    async def nearest(
        self, owner: str, name: str, embedding: FloatMatrix, *, top: int
    ) -> list[Hit]:
        """The passages nearest to an embedding, (F,), that this library's encoder made.

        Raises:
            CollectionNotFound, DataError, StorageError: as :meth:`search`.
        """
        there = await asyncio.to_thread(self.card, owner, name)
        check_same_encoder(there, self._card(owner, name))
        store = await asyncio.to_thread(self._store)
        return await asyncio.to_thread(store.search, owner, name, embedding, top=top)

    def card(self, owner: str, name: str) -> CollectionCard:
        """What a collection is.

        Raises:
            CollectionNotFound: the owner has no such collection.
        """
        card = self._store().card(owner, name)
        if card is None:
            raise CollectionNotFound(f"there is no collection named {name!r}")
        return card

    def shown(self, owner: str) -> list[tuple[CollectionCard, int]]:
        """The collections of an owner, and how many passages each holds."""
        store = self._store()
        return [(card, store.count(owner, card.name)) for card in store.cards(owner)]

    def count(self, owner: str, name: str) -> int:
        """How many passages a collection holds.

        Raises:
            CollectionNotFound: the owner has no such collection.
        """
        self.card(owner, name)
        return self._store().count(owner, name)

    def delete(self, owner: str, name: str, ids: Sequence[str]) -> int:
        """Remove passages; how many there were.

        Raises:
            CollectionNotFound: the owner has no such collection.
        """
        self.card(owner, name)
        return self._store().delete(owner, name, ids)

    def drop(self, owner: str, name: str) -> None:
        """Remove a collection.

        Raises:
            CollectionNotFound: the owner has no such collection.
        """
        if not self._store().drop(owner, name):
            raise CollectionNotFound(f"there is no collection named {name!r}")

    def close(self) -> None:
        """Close the store, if it was opened."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def _store(self) -> VectorStore:
        with self._lock:
            if self._opened is None:
                self._opened = self._open_store()
            return self._opened

    def _room_for(self, owner: str, name: str, count: int) -> CollectionCard | None:
        store = self._store()
        card = store.card(owner, name)
        if card is None and len(store.cards(owner)) >= COLLECTIONS_LIMIT:
            raise DataError(f"there are {COLLECTIONS_LIMIT} collections already: drop one first")
        if card is not None and store.count(owner, name) + count > PASSAGES_LIMIT:
            raise DataError(f"a collection holds at most {PASSAGES_LIMIT} passages")
        return card

    def _card(self, owner: str, name: str) -> CollectionCard:
        card = self._encoder.card
        # Known from the first answer on.
        assert card.features is not None
        return CollectionCard(owner, name, Digest(card.base or ""), card.features)
