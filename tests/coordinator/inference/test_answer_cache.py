"""An answer is given again to the very same request only, whatever the store holds."""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.inference.answer_cache import (
    MAX_VALUE_BYTES,
    Answer,
    AnswerCache,
    MemoryStore,
    _encoded,
)
from coordinator.inference.engine import (
    Alternative,
    ChatMessage,
    Finished,
    GenerationRequest,
    Piece,
    ServedAdapter,
    TokenLogprob,
)
from shared.types import Digest
from shared.wire import codec

BASE = Digest("a" * 64)
ASKED = GenerationRequest(prompt=(ChatMessage("user", "hi"),), max_tokens=8, logprobs=2)
_A, _B = Alternative("a", b"a", -0.25), Alternative("\ufffd", b"\xe4", -1.5)
ANSWER = Answer(
    (Piece("", (TokenLogprob(_A, (_A, _B)),)), Piece("四ä", (TokenLogprob(_B, (_A,)),))),
    Finished("stop", 12, 3),
)
CHANGES: dict[str, Any] = {
    "prompt": "hi",
    "max_tokens": 9,
    "top_p": 0.5,
    "seed": 1,
    "stop": ("x",),
    "logprobs": 3,
    "schema": "{}",
    "adapter": ServedAdapter("run", b"adapter"),
    "share": "word",
}


def key_of(
    what: GenerationRequest = ASKED, base: Digest | None = BASE, scope: str = "of a"
) -> bytes:
    key = AnswerCache(MemoryStore()).key(base, scope, what)
    assert key is not None
    return key


def found(value: bytes | None, what: GenerationRequest = ASKED, key: bytes | None = None) -> Any:
    """What is read where a store holds ``value``."""
    store = MemoryStore()
    key = key or key_of(what)
    if value is not None:
        store.put(key, value)
    return asyncio.run(AnswerCache(store).get(key, what))


def test_an_answer_is_read_as_it_was_kept() -> None:
    cache = AnswerCache(MemoryStore())
    cache.put(key_of(), ANSWER)
    assert asyncio.run(cache.get(key_of(), ASKED)) == ANSWER
    assert asyncio.run(cache.get(key_of(scope="of b"), ASKED)) is None


def test_every_field_of_a_request_is_part_of_its_key() -> None:
    assert set(CHANGES) | {"temperature"} == {field.name for field in fields(GenerationRequest)}
    keys = {key_of(replace(ASKED, **{name: value})) for name, value in CHANGES.items()}
    keys |= {key_of(), key_of(base=Digest("b" * 64)), key_of(scope="of b"), key_of(scope="public")}
    assert len(keys) == len(CHANGES) + 4
    adapters = [ServedAdapter("run", b"1"), ServedAdapter("run", b"2")]
    assert len({key_of(replace(ASKED, adapter=adapter)) for adapter in adapters}) == 2


@pytest.mark.parametrize(
    "prompts",
    [
        ("ab", (ChatMessage("user", "ab"),)),
        ((), ""),
        ((1, 2), (12,)),
        ((ChatMessage("user", "a"), ChatMessage("user", "b")), (ChatMessage("user", "ab"),)),
        ((ChatMessage("user", "a"),), (ChatMessage("system", "a"),)),
    ],
)
def test_prompts_that_look_alike_have_other_keys(prompts: tuple[Any, Any]) -> None:
    assert len({key_of(replace(ASKED, prompt=prompt)) for prompt in prompts}) == 2


def test_what_is_drawn_by_chance_or_has_unknown_weights_has_no_key() -> None:
    cache = AnswerCache(MemoryStore())
    assert cache.key(BASE, "of a", replace(ASKED, temperature=0.01)) is None
    assert cache.key(None, "of a", ASKED) is None
    assert cache.key(BASE, "of a", replace(ASKED, prompt="\ud800")) is None
    assert cache.key(BASE, "of a", replace(ASKED, temperature=-0.0)) == key_of()


def hostile(**changes: Any) -> bytes:
    """A value as it should be, but for some of its parts."""
    names = ["format", "key", "reason", "prompt", "completion", "pieces"]
    parts = dict(zip(names, codec.decode(_encoded(ANSWER, key_of()), depth=8), strict=True))
    return codec.encode(list((parts | changes).values()))


def test_the_control_of_the_hostile_values_is_read() -> None:
    assert found(hostile()) == ANSWER


TOKEN = ["a", b"a", -0.5]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"\x9f\x9f\x9f",
        codec.encode({"pieces": []}),
        codec.encode([]),
        hostile() + b"\x00",
        hostile()[:-1],
        hostile(format=2),
        hostile(key=b"another" * 4),
        hostile(reason="error"),
        hostile(reason=["stop"]),
        hostile(prompt=-1),
        hostile(prompt="12"),
        hostile(completion=9),
        hostile(completion=True),
        hostile(completion=1.0),
        hostile(pieces="text"),
        hostile(pieces=[["text"]]),
        hostile(pieces=[[b"text", []]]),
        hostile(pieces=[["text", [TOKEN]]]),
        hostile(pieces=[["text", [[TOKEN, [TOKEN, TOKEN, TOKEN]]]]]),
        hostile(pieces=[["text", [[["a", b"a", 0.5], []]]]]),
        hostile(pieces=[["text", [[["a", b"a", float("nan")], []]]]]),
        hostile(pieces=[["text", [[["a", "a", -1.0], []]]]]),
        hostile(pieces=[["text", [[["a", b"a", -1], []]]]]),
    ],
    ids=range(25),
)
def test_a_value_that_is_no_such_answer_is_a_miss(value: bytes) -> None:
    assert found(value) is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_miss(value: bytes) -> None:
    assert found(value) is None


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(hostile()) - 1), st.integers(1, 255))
def test_a_damaged_value_is_a_miss_or_still_well_formed(at: int, change: int) -> None:
    value = bytearray(hostile())
    value[at] ^= change
    answer = found(bytes(value))
    assert answer is None or isinstance(answer, Answer)


def test_log_probabilities_that_were_not_asked_for_are_a_miss() -> None:
    what = replace(ASKED, logprobs=None)
    value = _encoded(ANSWER, key_of(what))
    assert found(value, what) is None


def test_an_answer_that_is_too_long_is_not_kept() -> None:
    store = MemoryStore()
    cache = AnswerCache(store)
    cache.put(key_of(), Answer((Piece("x" * MAX_VALUE_BYTES),), Finished("stop", 1, 1)))
    assert store.bytes == 0
    assert asyncio.run(cache.get(key_of(), ASKED)) is None


def test_memory_is_bounded_and_what_was_asked_for_least_lately_goes() -> None:
    store = MemoryStore(max_bytes=5 * (1000 + 32 + 200))
    for number in range(5):
        store.put(bytes([number]) * 32, b"x" * 1000)
    assert asyncio.run(store.get(bytes([0]) * 32)) is not None
    store.put(bytes([5]) * 32, b"x" * 1000)
    there = [number for number in range(6) if asyncio.run(store.get(bytes([number]) * 32))]
    assert there == [0, 2, 3, 4, 5]
    store.put(bytes([6]) * 32, b"x" * 10_000)
    assert asyncio.run(store.get(bytes([6]) * 32)) is None
    store.put(bytes([5]) * 32, b"y")
    assert store.bytes == 4 * 1232 + 233
    store.close()
    assert store.bytes == 0
