"""A collection stays with the encoder that filled it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.retrieval.lance_vectors import LanceVectors
from coordinator.retrieval.library import Library
from coordinator.retrieval.vectors import Passage
from shared.errors import CollectionNotFound, DataError
from shared.types import Digest
from tests.support.encoders import WordEncoder


def library_of(folder: Path, encoder: WordEncoder) -> Library:
    return Library(encoder, lambda: LanceVectors(folder))


def test_another_encoder_is_refused_for_adding_and_for_searching(tmp_path: Path) -> None:
    asyncio.run(library_of(tmp_path, WordEncoder()).add("a", "things", [Passage("1", "a car")]))
    other = WordEncoder()
    other.card = replace(other.card, base=Digest("c" * 64))
    library = library_of(tmp_path, other)
    with pytest.raises(DataError, match="serve that one, or drop the collection"):
        asyncio.run(library.add("a", "things", [Passage("2", "a bus")]))
    assert other.asked == []  # refused before anything was embedded
    with pytest.raises(DataError, match="serve that one"):
        asyncio.run(library.search("a", "things", "car", top=1))
    library.drop("a", "things")
    asyncio.run(library.add("a", "things", [Passage("2", "a bus")]))
    assert library.count("a", "things") == 1


def test_a_search_where_nothing_is_embeds_nothing(tmp_path: Path) -> None:
    encoder = WordEncoder()
    with pytest.raises(CollectionNotFound, match="'things'"):
        asyncio.run(library_of(tmp_path, encoder).search("a", "things", "car", top=1))
    assert encoder.asked == []


def test_a_full_collection_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.retrieval.library.PASSAGES_LIMIT", 2)
    library = library_of(tmp_path, WordEncoder())
    asyncio.run(library.add("a", "things", [Passage("1", "a"), Passage("2", "b")]))
    with pytest.raises(DataError, match="at most 2"):
        asyncio.run(library.add("a", "things", [Passage("3", "c")]))
