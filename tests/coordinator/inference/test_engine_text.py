"""Pieces put together are the whole answer, and conversations become the tokens that were trained on."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.inference.engine import ChatMessage, Role
from coordinator.inference.engine_text import TextModel
from coordinator.inference.token_runtime import Emitted
from shared.errors import ModelError, PromptRefused
from shared.models.pytorch import prompt_ids
from tests.support.language_models import make_model
from tests.support.tiny_models import make_tiny_base

CUT = "\N{REPLACEMENT CHARACTER}"
END = 1
CONVERSATIONS: list[list[tuple[Role, str]]] = [
    [("user", "Where is my parcel?")],
    [("system", "Be kind. "), ("user", " 你好 "), ("assistant", "Hello!"), ("user", "no {{ x }}")],
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    make_tiny_base(root / "chat", "qwen2", chat=True)
    make_tiny_base(root / "plain", "llama")
    return {
        "chat": root / "chat",
        "plain": root / "plain",
        "stand-in": Path(make_model(root / "stand-in").folder),
    }


@pytest.fixture(scope="module")
def text(folders: dict[str, Path]) -> TextModel:
    return TextModel(folders["chat"])


@pytest.mark.model
@pytest.mark.parametrize("kind", ["chat", "plain", "stand-in"])
def test_tokens_are_those_that_transformers_gives(kind: str, folders: dict[str, Path]) -> None:
    transformers: Any = importlib.import_module("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folders[kind])
    ours = TextModel(folders[kind])
    for conversation in CONVERSATIONS:
        turns = [ChatMessage(role, content) for role, content in conversation]
        messages = [{"role": role, "content": content} for role, content in conversation]
        assert ours.tokens_of(turns) == prompt_ids(theirs, messages)
    for each in ("Where is it?", "你好", " two  spaces ", "\N{GRINNING FACE}"):
        assert ours.tokens_of(each) == theirs(each)["input_ids"]


def test_what_the_template_refuses_is_refused_with_its_words(folders: dict[str, Path]) -> None:
    with pytest.raises(PromptRefused, match="there is no question in it"):
        TextModel(folders["stand-in"]).tokens_of([ChatMessage("system", "alone")])


def test_half_a_character_in_a_prompt_is_refused(text: TextModel) -> None:
    with pytest.raises(PromptRefused, match="surrogate"):
        text.tokens_of("\ud83d")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "[1]"),
        ("tokenizer_config.json", "{"),
        ("chat_template.jinja", "{% if %}"),
    ],
)
def test_damaged_files_are_named(
    name: str, content: str, tmp_path: Path, folders: dict[str, Path]
) -> None:
    for path in folders["chat"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelError):
        TextModel(tmp_path)


def streamed(text: TextModel, tokens: list[int], stop: list[str]) -> tuple[list[str], bool]:
    """Pieces of an answer, and whether a stop string ended it."""
    stream = text.stream(stop=stop, ends=(END,))
    pieces = []
    for token in tokens:
        if (piece := stream.feed(Emitted(0, token))) is not None:
            pieces.append(piece.text)
        if stream.stopped:
            break
    if (piece := stream.finish()) is not None:
        pieces.append(piece.text)
    return pieces, stream.stopped


WORDS = st.text(alphabet="ab \n北京é\N{GRINNING FACE}", min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6), st.lists(WORDS, max_size=3))
def test_pieces_put_together_are_the_answer_up_to_the_first_stop_string(
    text: TextModel, words: list[str], stop: list[str]
) -> None:
    whole = "".join(words)
    tokens = text.tokens_of(whole)
    pieces, stopped = streamed(text, [*tokens, END], stop)
    # Of several, the one that is whole first.
    places = [(whole.find(each) + len(each), whole.find(each)) for each in stop]
    cuts = [(end, at) for end, at in places if at >= 0]
    assert "".join(pieces) == (whole[: min(cuts)[1]] if cuts else whole)
    assert stopped == bool(cuts)
    assert all(CUT not in piece for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(2, 299), max_size=40))
def test_any_tokens_give_what_they_decode_to_at_once(text: TextModel, tokens: list[int]) -> None:
    pieces, _ = streamed(text, tokens, [])
    whole = text._decoded(tokens).rstrip(CUT)
    assert "".join(pieces).rstrip(CUT) == whole


def test_a_token_s_bytes_are_its_own_even_where_they_are_half_a_character(text: TextModel) -> None:
    tokens = text.tokens_of("京")
    stream = text.stream(stop=(), ends=(END,), logprobs=True)
    pieces = [stream.feed(Emitted(0, token, -0.5, ((token, -0.5),))) for token in tokens]
    found = [each for piece in pieces if piece is not None for each in piece.logprobs]
    assert b"".join(each.chosen.data for each in found) == "京".encode()
    assert [each.chosen.text for each in found] == [
        each.chosen.data.decode(errors="replace") for each in found
    ]
    assert all(each.likeliest == (each.chosen,) for each in found)
