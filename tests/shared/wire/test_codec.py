"""What we send comes back equal; whatever else arrives is refused before it costs anything."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import UndecodableMessage
from shared.wire.codec import MAX_DEPTH, MAX_MESSAGE_BYTES, decode, encode

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.binary(max_size=40),
)


def nested(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(children, max_size=4), st.dictionaries(st.text(max_size=5), children, max_size=4)
    )


values = scalars
for _ in range(MAX_DEPTH - 1):
    values = st.one_of(scalars, nested(values))


@given(values)
def test_every_allowed_value_comes_back_equal_and_of_its_type(value: Any) -> None:
    again = decode(encode(value))
    assert repr(again) == repr(cbor2.loads(cbor2.dumps(value, canonical=True)))
    assert again == value


def test_nan_and_the_sign_of_zero_come_back() -> None:
    assert math.isnan(decode(encode(math.nan)))
    assert math.copysign(1, decode(encode(-0.0))) == -1


@given(values)
def test_equal_values_are_equal_bytes(value: Any) -> None:
    """Signatures are over encodings: the order in which a map was built must not show."""
    assert encode(decode(encode(value))) == encode(value)
    turned = dict(reversed(value.items())) if isinstance(value, dict) else value
    assert encode(turned) == encode(value)


@given(st.binary(max_size=60))
def test_noise_is_refused_or_allowed_and_never_anything_else(data: bytes) -> None:
    try:
        value = decode(data)
    except UndecodableMessage:
        return
    allowed = (dict, list, tuple, str, bytes, int, float, bool, type(None))

    def check(item: Any) -> None:
        assert isinstance(item, allowed) or type(item).__name__ == "frozendict"
        if isinstance(item, list | tuple):
            for child in item:
                check(child)
        elif isinstance(item, dict):
            for key, child in item.items():
                check(key)
                check(child)

    check(value)


@given(values, st.binary(min_size=1, max_size=9))
def test_bytes_behind_a_message_are_refused(value: Any, more: bytes) -> None:
    with pytest.raises(UndecodableMessage, match="behind the message"):
        decode(encode(value) + more)


@given(values, st.data())
def test_a_message_that_was_cut_off_is_refused(value: Any, data: st.DataObject) -> None:
    whole = encode(value)
    with pytest.raises(UndecodableMessage):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


def lists(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_depth_is_allowed_to_its_limit_and_not_beyond() -> None:
    assert decode(encode(lists(MAX_DEPTH))) == lists(MAX_DEPTH)
    with pytest.raises(UndecodableMessage, match="nested deeper"):
        decode(encode(lists(MAX_DEPTH + 1)))
    with pytest.raises(UndecodableMessage, match="nested deeper"):
        decode(b"\x81" * 100_000 + b"\x00")
    with pytest.raises(UndecodableMessage, match="nested deeper"):
        decode(b"\xa1" * 100_000 + b"\x00")


def test_size_is_allowed_to_its_limit_and_not_beyond() -> None:
    head = len(encode(bytes(MAX_MESSAGE_BYTES))) - MAX_MESSAGE_BYTES
    assert decode(encode(bytes(MAX_MESSAGE_BYTES - head))) == bytes(MAX_MESSAGE_BYTES - head)
    one_more = encode(bytes(MAX_MESSAGE_BYTES - head + 1))
    with pytest.raises(UndecodableMessage, match="at most"):
        decode(one_more)
    assert len(decode(one_more, limit=len(one_more))) == MAX_MESSAGE_BYTES - head + 1


HUGE = [2**16 - 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1]


@pytest.mark.parametrize("major", [2, 3, 4, 5])
@pytest.mark.parametrize("count", HUGE)
def test_a_lying_length_allocates_nothing(major: int, count: int) -> None:
    lie = bytes([major << 5 | 27]) + count.to_bytes(8, "big") + b"\x00" * 20
    tracemalloc.start()
    with pytest.raises(UndecodableMessage, match="behind the end"):
        decode(lie)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("inside", [0, 1, 4])
def test_a_lying_length_inside_an_honest_one_is_found(inside: int) -> None:
    lie = b"\x9a\xff\xff\xff\xff"
    with pytest.raises(UndecodableMessage):
        decode(b"\x81" * inside + lie)
    # A map of as many pairs as there are bytes left would need twice as many items.
    with pytest.raises(UndecodableMessage):
        decode(b"\xa4" + b"\x00" * 4)


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("a date", cbor2.dumps(cbor2.CBORTag(0, "2026-01-01T00:00:00Z"))),
        ("a big number", cbor2.dumps(2**64)),
        ("a regular expression", cbor2.dumps(cbor2.CBORTag(35, "(a+)+$"))),
        ("a shared value", bytes.fromhex("d81c81d81d00")),
        ("a tag inside", b"\x81" + cbor2.dumps(cbor2.CBORTag(4, [1, 1]))),
        ("a tag as key", b"\xa1" + cbor2.dumps(cbor2.CBORTag(4, [1, 1])) + b"\x00"),
        ("a tag in the shape of a map", b"\xc1\x00\x00"),
        ("self-described CBOR", b"\xd9\xd9\xf7\x00"),
        ("a string without a length", b"\x7f\x61a\xff"),
        ("bytes without a length", b"\x5f\x41a\xff"),
        ("an array without a length", b"\x9f\x00\xff"),
        ("a map without a length", b"\xbf\x00\x00\xff"),
        ("a break", b"\xff"),
        ("undefined", b"\xf7"),
        ("an unassigned simple value", b"\xe0"),
        ("a simple value of two bytes", b"\xf8\x20"),
        ("false in two bytes", b"\xf8\x14"),
        ("a reserved length", b"\x1c"),
        ("nothing", b""),
        ("text that is no UTF-8", b"\x61\xff"),
        ("half a length", b"\x19\x01"),
    ],
)
def test_what_the_format_does_not_use_is_refused(what: str, data: bytes) -> None:
    with pytest.raises(UndecodableMessage):
        decode(data)


def test_refused_bytes_never_reach_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def untouched(_: bytes) -> None:
        raise AssertionError("the library was asked")

    monkeypatch.setattr(cbor2, "loads", untouched)
    for data in (cbor2.dumps(2**64), b"\x9a\xff\xff\xff\xff", b"\x9f\xff", b"\xf7", b"\x00\x00"):
        with pytest.raises(UndecodableMessage):
            decode(data)
