"""What every store of vectors promises: one contract, run against all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.retrieval.lance_vectors import LanceVectors
from coordinator.retrieval.vectors import CollectionCard, Passage, VectorStore
from shared.errors import DataError
from shared.types import Digest, FloatMatrix

CARD = CollectionCard("alice", "manuals", Digest("a" * 64), 4)

OpenStore = Callable[[], VectorStore]


@pytest.fixture(params=["lance", pytest.param("postgres", marks=pytest.mark.postgres)])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    """Opens the same store again and again."""
    opened: list[VectorStore] = []
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""

    def open_it() -> VectorStore:
        if url:
            from coordinator.retrieval.postgres_vectors import PostgresVectors

            opened.append(PostgresVectors(url))
        else:
            opened.append(LanceVectors(tmp_path / "collections"))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> VectorStore:
    return open_store()


def rows(*values: tuple[float, ...]) -> FloatMatrix:
    matrix = np.array(values, np.float32)
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), np.float32)


def fill(store: VectorStore, card: CollectionCard = CARD) -> None:
    passages = [Passage("one", "first"), Passage("two", "second", {"page": 2, "of": ["a", None]})]
    store.upsert(card, passages, rows((1, 0, 0, 0), (0, 1, 0, 0)))


def test_the_nearest_passage_comes_first_with_its_cosine(store: VectorStore) -> None:
    fill(store)
    hits = store.search("alice", "manuals", rows((3, 4, 0, 0))[0], top=5)
    assert [hit.passage.id for hit in hits] == ["two", "one"]
    assert [hit.score for hit in hits] == pytest.approx([0.8, 0.6], abs=1e-6)
    assert hits[0].passage == Passage("two", "second", {"page": 2, "of": ["a", None]})
    assert len(store.search("alice", "manuals", rows((3, 4, 0, 0))[0], top=1)) == 1


def test_a_passage_with_a_known_id_takes_the_others_place(store: VectorStore) -> None:
    fill(store)
    store.upsert(
        CARD,
        [Passage("one", "new", {"v": 1}), Passage("3", "third")],
        rows((0, 0, 1, 0), (0, 0, 0, 1)),
    )
    assert store.count("alice", "manuals") == 3
    (hit,) = store.search("alice", "manuals", rows((0, 0, 1, 0))[0], top=1)
    assert hit.passage == Passage("one", "new", {"v": 1})
    assert hit.score == pytest.approx(1.0, abs=1e-6)


def test_of_equally_near_passages_the_smaller_id_comes_first(store: VectorStore) -> None:
    ids = ["m", "b", "z", "a"]
    store.upsert(CARD, [Passage(each, each) for each in ids], rows(*[(1, 1, 0, 0)] * 4))
    hits = store.search("alice", "manuals", rows((1, 0, 0, 0))[0], top=4)
    assert [hit.passage.id for hit in hits] == sorted(ids)


def test_a_collection_refuses_another_encoders_embeddings(store: VectorStore) -> None:
    fill(store)
    other = CollectionCard("alice", "manuals", Digest("c" * 64), 4)
    with pytest.raises(DataError, match="holds embeddings of the encoder"):
        store.upsert(other, [Passage("x", "x")], rows((1, 0, 0, 0)))
    wider = CollectionCard("alice", "manuals", CARD.encoder, 5)
    with pytest.raises(DataError, match="features"):
        store.upsert(wider, [Passage("x", "x")], rows((1, 0, 0, 0, 0)))
    assert store.count("alice", "manuals") == 2


def test_owners_do_not_see_each_others_collections(store: VectorStore) -> None:
    fill(store)
    assert store.card("bob", "manuals") is None
    assert store.search("bob", "manuals", rows((1, 0, 0, 0))[0], top=3) == []
    assert store.delete("bob", "manuals", ["one"]) == 0
    assert not store.drop("bob", "manuals")
    fill(store, CollectionCard("bob", "manuals", Digest("d" * 64), 4))
    store.drop("bob", "manuals")
    assert store.cards("bob") == []
    assert store.cards("alice") == [CARD]
    assert store.count("alice", "manuals") == 2


def test_what_was_deleted_is_found_no_more(store: VectorStore) -> None:
    fill(store)
    assert store.delete("alice", "manuals", ["two", "no such", "it's"]) == 1
    assert [
        hit.passage.id for hit in store.search("alice", "manuals", rows((0, 1, 0, 0))[0], top=5)
    ] == ["one"]
    assert store.drop("alice", "manuals")
    assert store.card("alice", "manuals") is None
    assert store.count("alice", "manuals") == 0


@pytest.mark.parametrize("odd", ["it's", 'a"b', "a\\b", "x'; DROP TABLE x; --", "名字", "%_", " "])
def test_ids_and_texts_may_hold_anything(store: VectorStore, odd: str) -> None:
    store.upsert(
        CARD,
        [Passage(odd, odd, {odd: odd}), Passage("k", "kept")],
        rows((1, 0, 0, 0), (0, 1, 0, 0)),
    )
    (hit,) = store.search("alice", "manuals", rows((1, 0, 0, 0))[0], top=1)
    assert hit.passage == Passage(odd, odd, {odd: odd})
    assert store.delete("alice", "manuals", [odd]) == 1
    assert store.count("alice", "manuals") == 1


def test_a_store_that_is_opened_again_has_everything(open_store: OpenStore) -> None:
    first = open_store()
    for number in range(40):  # more than are put together at a time
        first.upsert(CARD, [Passage(f"p{number}", "text")], rows((1, number, 0, 0)))
    first.close()
    second = open_store()
    assert second.cards("alice") == [CARD]
    assert second.count("alice", "manuals") == 40
    (hit,) = second.search("alice", "manuals", rows((1, 39, 0, 0))[0], top=1)
    assert hit.passage.id == "p39"


def test_a_second_process_that_is_killed_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    code = """
import os, sys, signal
import numpy as np
from pathlib import Path
from coordinator.retrieval.lance_vectors import LanceVectors
from coordinator.retrieval.vectors import CollectionCard, Passage
store = LanceVectors(Path(sys.argv[1]))
card = CollectionCard("alice", "manuals", "a" * 64, 4)
for number in range(5):
    store.upsert(card, [Passage(str(number), "text")], np.eye(4, dtype=np.float32)[:1])
print("acknowledged", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.stdout == "acknowledged\n", run.stderr
    assert LanceVectors(tmp_path).count("alice", "manuals") == 5


def test_files_are_synchronised_before_a_write_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[Path] = set()
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    store = LanceVectors(tmp_path)
    for _ in range(2):
        fill(store)
        files: set[Any] = {path for path in tmp_path.rglob("*") if path.is_file()}
        assert files
        assert files <= synced
