"""Pieces put together are the whole answer, and conversations become the tokens that were trained on."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from functools import cache
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


TEMPLATE = (
    "{{ bos_token }}{% set n = namespace(count=0) %}{%- for m in messages %}\n"
    "    {% if m.role == 'system' %}{% continue %}{% endif %}\n"
    "    {% set n.count = n.count + 1 %}\n"
    "{{ n.count }}{{ m | tojson }}{{ [m.content, '<é>'] | tojson(indent=1, sort_keys=true) }}\n"
    "{% generation %}{{ m.content | trim }}{% endgeneration %}{{ eos_token }}\n"
    "{% endfor %}{{ 'tools' if tools }}{{ strftime_now('%Y') }}{{ pad_token }}{{ unheard_of }}"
)
"""What templates of real models make use of."""


@pytest.mark.model
@pytest.mark.parametrize("place", ["a file", "a word", "a list", "special_tokens_map.json"])
def test_templates_are_rendered_as_transformers_does(
    place: str, tmp_path: Path, folders: dict[str, Path]
) -> None:
    for path in folders["plain"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["bos_token"] = {"content": "[PAD]", "__type": "AddedToken"}
    if place == "a file":
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    elif place == "a list":
        others = {"name": "tool_use", "template": "another"}
        config["chat_template"] = [others, {"name": "default", "template": TEMPLATE}]
    else:
        config["chat_template"] = TEMPLATE
    if place == "special_tokens_map.json":
        config.pop("added_tokens_decoder", None)
        names = {name: config.pop(name) for name in ("bos_token", "eos_token")}
        names["bos_token"] = {"content": "[PAD]", "lstrip": False, "normalized": False}
        (tmp_path / place).write_text(json.dumps(names))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    transformers: Any = importlib.import_module("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = TextModel(tmp_path)
    for conversation in CONVERSATIONS:
        turns = [ChatMessage(role, content) for role, content in conversation]
        messages = [{"role": role, "content": content} for role, content in conversation]
        assert ours.tokens_of(turns) == prompt_ids(theirs, messages)


@pytest.mark.parametrize("prompt", [[], "", [-1], [300], [10**6], [5, True], [5, "a"]])
def test_a_prompt_that_is_empty_or_holds_what_is_no_token_is_refused(
    prompt: Any, text: TextModel
) -> None:
    with pytest.raises(PromptRefused, match="empty" if not prompt else r"from 0 to 299"):
        text.tokens_of(prompt)


def test_tokens_are_taken_as_they_are(text: TextModel) -> None:
    assert text.tokens_of([0, 299, 5]) == [0, 299, 5]


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


@cache
def beginnings() -> frozenset[bytes]:
    """Every sequence of bytes that begins a character and is none yet."""
    first = [*range(0x80, 0xD800, 64), *range(0xE000, 0x110000, 64)]
    spelt = [chr(each).encode() for each in first]
    return frozenset(each[:size] for each in spelt for size in range(1, len(each)))


def without_half(text: TextModel, tokens: Sequence[int]) -> str:
    """Everything decoded at once, but for a last character that may still become one."""
    data = b"".join(text.alternative(token, 0.0).data for token in tokens if token not in (0, END))
    whole = text._decoded(tokens)
    return whole[:-1] if any(data[-size:] in beginnings() for size in (1, 2, 3)) else whole


def until_stop(whole: str, stop: Sequence[str]) -> tuple[str, bool]:
    """A text up to the stop string that is whole first, and whether there is one."""
    places = [(whole.find(each) + len(each), whole.find(each)) for each in stop]
    cuts = [(end, at) for end, at in places if at >= 0]
    return (whole[: min(cuts)[1]], True) if cuts else (whole, False)


ANY = st.one_of(st.integers(0, 299).filter(lambda token: token != END), WORDS)
STOPS = st.lists(st.text(alphabet="ab 北\N{GRINNING FACE}", min_size=1, max_size=4), max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.lists(ANY, max_size=30), STOPS)
def test_any_tokens_are_shown_as_soon_as_may_be_and_to_the_stop_string(
    text: TextModel, parts: list[int | str], stop: list[str]
) -> None:
    tokens: list[int] = []
    for part in parts:
        tokens += [part] if isinstance(part, int) else text.tokens_of(part)
    stream = text.stream(stop=stop, ends=(END,))
    shown = ""
    for count, token in enumerate(tokens, 1):
        if (piece := stream.feed(Emitted(0, token))) is not None:
            shown += piece.text
        whole, stopped = until_stop(without_half(text, tokens[:count]), stop)
        assert stream.stopped == stopped
        if stopped:
            break
        held = [n for each in stop for n in range(1, len(each)) if whole.endswith(each[:n])]
        assert shown == whole[: len(whole) - max(held, default=0)]
    if (piece := stream.finish()) is not None:
        shown += piece.text
    assert (shown, stream.stopped) == until_stop(without_half(text, tokens), stop)
    assert stream.finish() is None


def test_nothing_follows_a_stop_string(text: TextModel) -> None:
    stream = text.stream(stop=["stop"], ends=(END,), logprobs=True)
    for token in text.tokens_of("stop"):
        stream.feed(Emitted(0, token))
    assert stream.stopped
    assert {stream.feed(Emitted(0, token)) for token in text.tokens_of("more")} == {None}
    assert stream.finish() is None


@pytest.fixture(scope="module")
def spelt(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    """With words that begin with a space, which is not shown in front, and bytes for the rest."""
    from tokenizers import Tokenizer, decoders, models

    names = ["<unk>", "</s>", "▁", "▁▁", "▁a", "b", "北", *(f"<0x{n:02X}>" for n in range(256))]
    vocabulary = {name: place for place, name in enumerate(names)}
    options: Any = {"unk_token": "<unk>", "byte_fallback": True}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], **options))
    strip = decoders.Strip(" ", 1, 0)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    folder = tmp_path_factory.mktemp("spelt")
    tokenizer.save(str(folder / "tokenizer.json"))
    return TextModel(folder)


def in_bytes(text: str) -> list[int]:
    return [7 + byte for byte in text.encode()]


PARTS = st.one_of(
    st.integers(0, 6).filter(lambda token: token != END).map(lambda token: [token]),
    st.sampled_from("é京\N{GRINNING FACE}").map(in_bytes),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PARTS, max_size=20), STOPS, st.integers(0, 3))
def test_spaces_and_characters_spelt_in_bytes_are_as_in_the_whole(
    spelt: TextModel, parts: list[list[int]], stop: list[str], half: int
) -> None:
    tokens = [token for part in parts for token in part]
    pieces, stopped = streamed(spelt, tokens + in_bytes("\N{GRINNING FACE}")[:half], stop)
    assert ("".join(pieces), stopped) == until_stop(spelt._decoded(tokens), stop)


def test_a_byte_that_is_no_character_leaves_those_before_it(spelt: TextModel) -> None:
    pieces, _ = streamed(spelt, [*in_bytes("京"), *in_bytes("京")[:1], 5], [])
    assert "".join(pieces) == f"京{CUT}b"


@pytest.mark.parametrize("token", [0, 6 + 0xE4, 10**6])
def test_tokens_that_never_become_text_are_not_decoded_again_and_again(
    token: int, spelt: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [0]
    decode = spelt._decoded

    def counted(tokens: Sequence[int]) -> str:
        sizes.append(len(tokens))
        return decode(tokens)

    monkeypatch.setattr(spelt, "_decoded", counted)
    stream = spelt.stream(stop=(), ends=(END,))
    for _ in range(300):
        stream.feed(Emitted(0, token))
    assert max(sizes) < 40


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
