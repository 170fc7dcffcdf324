"""Every message comes back as it was sent, and nothing that is almost one is accepted."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import UndecodableMessage
from shared.wire import codec, messages
from shared.wire.messages import KINDS, Message, from_body, to_body

BY_TYPE: dict[type, st.SearchStrategy[Any]] = {
    str: st.text(max_size=30),
    bytes: st.binary(max_size=30),
    int: st.integers(0, 2**63 - 1),
}


def fields_of(kind: type[Message]) -> dict[str, type]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def instances(kind: type[Message]) -> st.SearchStrategy[Message]:
    return st.builds(kind, **{name: BY_TYPE[of] for name, of in fields_of(kind).items()})


any_message = st.sampled_from(list(KINDS.values())).flatmap(instances)
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def test_every_message_has_a_kind_of_its_own() -> None:
    classes = {kind for kind in vars(messages).values() if isinstance(kind, type)}
    assert set(KINDS.values()) == {kind for kind in classes if issubclass(kind, Message)} - {
        Message
    }
    assert all(name == kind.kind for name, kind in KINDS.items())


@given(any_message)
def test_a_message_comes_back_equal(message: Message) -> None:
    assert from_body(message.kind, to_body(message)) == message


@given(any_message, st.data())
def test_a_missing_or_unknown_field_is_refused(message: Message, data: st.DataObject) -> None:
    values = codec.decode(to_body(message))
    with pytest.raises(UndecodableMessage, match="has the fields"):
        from_body(message.kind, codec.encode(values | {"extra": 1}))
    if values:
        del values[data.draw(st.sampled_from(sorted(values)))]
        with pytest.raises(UndecodableMessage, match="has the fields"):
            from_body(message.kind, codec.encode(values))


@given(any_message.filter(lambda message: len(dataclasses.fields(message)) > 0), st.data())
def test_a_value_of_another_type_is_refused(message: Message, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([field.name for field in dataclasses.fields(message)]))
    own = fields_of(type(message))[name]
    others: list[Any] = ["a", b"a", 1, 1.0, True, None, [], {}]
    wrong = data.draw(st.sampled_from([v for v in others if type(v) is not own]))
    body = codec.encode(codec.decode(to_body(message)) | {name: wrong})
    with pytest.raises(UndecodableMessage, match=name):
        from_body(message.kind, body)


@kinds
@pytest.mark.parametrize("number", [-1, -(2**63), 2**63, 2**64 - 1])
def test_a_number_that_is_no_size_is_refused(kind: type[Message], number: int) -> None:
    example = {str: "x", bytes: b"x", int: 1}
    values = {name: example[of] for name, of in fields_of(kind).items()}
    for name, of in fields_of(kind).items():
        if of is int:
            with pytest.raises(UndecodableMessage, match=name):
                from_body(kind.kind, codec.encode(values | {name: number}))


@pytest.mark.parametrize("body", [b"", b"\x80", b"\x00", b"\xf6", b"noise"])
@kinds
def test_a_body_that_is_no_map_is_refused(kind: type[Message], body: bytes) -> None:
    with pytest.raises(UndecodableMessage):
        from_body(kind.kind, body)


@given(st.text(max_size=50).filter(lambda name: name not in KINDS))
def test_an_unknown_kind_is_refused(kind: str) -> None:
    with pytest.raises(UndecodableMessage, match="unknown kind"):
        from_body(kind, codec.encode({}))
