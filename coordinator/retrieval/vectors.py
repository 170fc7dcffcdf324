"""Where passages and their embeddings are kept: one contract for every store.

V1  what :meth:`VectorStore.upsert` and :meth:`~VectorStore.delete` acknowledged is on disk
V2  a collection holds embeddings of one encoder only; another one's are refused
V3  an owner sees own collections only, whatever names others gave theirs
V4  a search looks at every passage and is exact; what it finds is in order of cosine, and of id
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from shared.errors import DataError
from shared.types import Digest, FloatMatrix


@dataclass(frozen=True, slots=True)
class Passage:
    """A text that is kept.

    Attributes:
        id: Its owner's name for it; another passage with the same id takes its place.
        text: What is embedded and read.
        metadata: A JSON object, given back as it came.
    """

    id: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CollectionCard:
    """What a collection is.

    Attributes:
        owner: Name of the API key that made it.
        name: Its owner's name for it.
        encoder: SHA-256 of the encoder's weights that all embeddings are from (V2).
        features: Their width.
    """

    owner: str
    name: str
    encoder: Digest
    features: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found."""

    passage: Passage
    score: float
    """Cosine with the question, from -1 to 1."""


class VectorStore(Protocol):
    """A store of collections. Blocking; any thread may call it.

    Every method raises :class:`~shared.errors.StorageError` where the store cannot be used.
    """

    def cards(self, owner: str) -> list[CollectionCard]:
        """The collections of an owner, by name (V3)."""
        ...

    def card(self, owner: str, name: str) -> CollectionCard | None:
        """One collection, or ``None``."""
        ...

    def count(self, owner: str, name: str) -> int:
        """How many passages it holds; 0 where there is none."""
        ...

    def upsert(
        self, card: CollectionCard, passages: Sequence[Passage], embeddings: FloatMatrix
    ) -> None:
        """Add passages, in the place of those with the same ids; the first make the collection.

        Args:
            card: Which collection, and what the embeddings are from.
            passages: With different ids.
            embeddings: One row for each, of length 1, float32.

        Raises:
            DataError: the collection holds embeddings of another encoder (V2).
        """
        ...

    def delete(self, owner: str, name: str, ids: Sequence[str]) -> int:
        """Remove passages; how many of them there were."""
        ...

    def drop(self, owner: str, name: str) -> bool:
        """Remove a collection with all in it; whether there was one."""
        ...

    def search(self, owner: str, name: str, embedding: FloatMatrix, *, top: int) -> list[Hit]:
        """The ``top`` passages nearest to an embedding of shape (F,), nearest first (V4)."""
        ...

    def close(self) -> None:
        """Give back connections and files."""
        ...


def check_same_encoder(there: CollectionCard, asked: CollectionCard) -> None:
    """Refuse to mix embeddings (V2).

    Raises:
        DataError: the encoders differ.
    """
    if (there.encoder, there.features) != (asked.encoder, asked.features):
        raise DataError(
            f"the collection {there.name} holds embeddings of the encoder {there.encoder[:12]} "
            f"({there.features} features), this coordinator serves {asked.encoder[:12]} "
            f"({asked.features}): serve that one, or drop the collection and fill it again"
        )
