"""CBOR in and out, with limits that hold before anything is allocated.

    W1  only maps, arrays, text, bytes, integers, floats, booleans and null
    W2  no tags, no indefinite lengths, at most ``MAX_DEPTH`` levels
    W3  a declared length is checked against the bytes that are really there,
        so a short message cannot ask for a large allocation

The checks walk the bytes first (RFC 8949, section 3); only a message that
passed them reaches the CBOR library, whose tag handlers build regular
expressions, dates and shared references from a peer's input.
"""

from __future__ import annotations

from typing import Any, Final

import cbor2

from shared.errors import UndecodableMessage

MAX_MESSAGE_BYTES: Final = 400 * 1024
"""A chunk of 256 KiB, its envelope and room; far below any broker's limit."""

MAX_DEPTH: Final = 6

_ARGUMENT_BYTES: Final = {24: 1, 25: 2, 26: 4, 27: 8}

_SIMPLE: Final = frozenset({20, 21, 22, 25, 26, 27})
"""Of major type 7: false, true, null and the floats; not undefined and not the unassigned."""


def encode(value: Any) -> bytes:
    """Deterministic CBOR of ``value`` (shortest forms, sorted map keys)."""
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes, *, limit: int = MAX_MESSAGE_BYTES, depth: int = MAX_DEPTH) -> Any:
    """Read one CBOR value that satisfies W1 to W3 and fills ``data`` exactly.

    ``depth`` may be fewer levels than :data:`MAX_DEPTH`, where less is expected.

    Raises:
        UndecodableMessage: it does not.
    """
    if len(data) > limit:
        raise UndecodableMessage(f"{len(data)} bytes, at most {limit} are accepted")
    end = _skip(data, 0, depth)
    if end != len(data):
        raise UndecodableMessage(f"{len(data) - end} bytes behind the message")
    try:
        return cbor2.loads(data)
    except (cbor2.CBORDecodeError, ValueError, TypeError) as err:
        raise UndecodableMessage(f"not a CBOR message: {err}") from err


def _skip(data: bytes, at: int, depth: int) -> int:
    """Position behind the item that starts at ``at``."""
    if depth == 0:
        raise UndecodableMessage("nested deeper than it may be")
    if at >= len(data):
        raise UndecodableMessage("the message ends in the middle of an item")
    major, minor = data[at] >> 5, data[at] & 0x1F
    at += 1
    argument = minor
    if minor >= 24:
        width = _ARGUMENT_BYTES.get(minor)
        if width is None:
            raise UndecodableMessage("indefinite or reserved lengths are not used here")
        if at + width > len(data):
            raise UndecodableMessage("the message ends in the middle of a length")
        argument = int.from_bytes(data[at : at + width], "big")
        at += width
    if major == 7 and minor not in _SIMPLE:
        raise UndecodableMessage("simple values other than booleans and null are not used here")
    if major in (0, 1, 7):
        return at
    if major == 6:
        raise UndecodableMessage("tags are not used here")
    if argument > len(data) - at:
        raise UndecodableMessage("a length points behind the end of the message")
    if major in (2, 3):
        return at + argument
    for _ in range(argument if major == 4 else 2 * argument):
        at = _skip(data, at, depth - 1)
    return at
