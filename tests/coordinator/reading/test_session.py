"""An imported reader over windows: every token of a long passage is read, places are characters'."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from coordinator.inference.graph_encoder import GraphEncoder
from coordinator.reading.session import SpanSession
from coordinator.registry.reader_import import import_reader
from shared.errors import DataError, ModelError
from tests.support.tiny_encoders import MAX_TOKENS, make_reader

PASSAGE = " ".join("abcdefgh"[n % 8] * (1 + n % 3) for n in range(60))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader") / "tiny"
    make_reader(folder)
    return folder


@pytest.fixture(scope="module")
def session(source: Path) -> SpanSession:
    return SpanSession(import_reader(str(source), source.parent / "models").folder)


def test_windows_overlap_and_cover_the_passage(session: SpanSession) -> None:
    windows = list(session.windows("a b c", PASSAGE))
    assert len(windows) > 2
    assert all(len(window.logits) <= MAX_TOKENS for window in windows)
    covered = [
        {at for start, end in window.offsets for at in range(start, end) if start >= 0}
        for window in windows
    ]
    assert set().union(*covered) == {at for at, sign in enumerate(PASSAGE) if sign != " "}
    assert all(one & two for one, two in itertools.pairwise(covered))


def test_answers_are_the_passages_own_characters(session: SpanSession) -> None:
    found = session.read("a b c", [PASSAGE, "zz yy"], answers=5, threshold=None)
    assert len(found) == 5
    for span in found:
        assert span.text == [PASSAGE, "zz yy"][span.passage][span.start : span.end] != ""
    scores = [span.score for span in found]
    assert scores == sorted(scores, reverse=True)
    assert {span.passage for span in session.read("a", ["b", "c"], answers=9, threshold=None)} == {
        0,
        1,
    }


def test_a_question_that_leaves_no_room_is_refused(session: SpanSession) -> None:
    with pytest.raises(DataError, match="tokens"):
        session.read("a " * 30, ["b"], answers=1)
    with pytest.raises(DataError, match="half a character"):
        session.read("a", ["\ud800"], answers=1)


def test_a_passage_without_words_has_no_answer(session: SpanSession) -> None:
    assert session.read("a", [" \n "], answers=1, threshold=None) == []


def test_in_child_processes_the_answers_are_the_same(source: Path, session: SpanSession) -> None:
    reader = GraphEncoder(str(source), source.parent / "models", reads=True)
    try:
        passages = [PASSAGE, "zz yy", PASSAGE[40:]]
        found = asyncio.run(reader.read("a b c", passages, answers=4, threshold=None))
        assert found == session.read("a b c", passages, answers=4, threshold=None)
        assert reader.card.reads_answers
        with pytest.raises(DataError, match="tokens"):
            asyncio.run(reader.read("a " * 30, ["b"], answers=1))
        with pytest.raises(ModelError, match="no embeddings"):
            asyncio.run(reader.embed(["a"]))
    finally:
        reader.close()
