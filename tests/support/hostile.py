"""Bytes that no honest peer sends: mutations of recorded messages, requests and updates.

Everything follows from a seed, so that what broke something can be sent again.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final, cast

import cbor2
import numpy as np

from shared.crypto.identity import Identity
from shared.crypto.public_key import PublicKeySum
from shared.crypto.residues import Residues
from shared.crypto.sum_cipher import SumContext, opener_for
from shared.types import RoundNumber, RunId
from shared.wire.envelope import SequenceSource, _signed
from shared.wire.messages import KINDS, _field_types

HEADER_BYTES: Final = 136
"""Of an update's frame; what is where stands in ``shared.crypto.sum_frame``."""

VALUES: Final = 5_000
"""A list this long is large for a message's field, and small for a machine."""


# Bytes of somebody else


def flipped(rng: Random, data: bytes) -> bytes:
    """``data`` with up to eight bits turned over."""
    out = bytearray(data)
    for place in rng.sample(range(8 * len(data)), min(8 * len(data), rng.randint(1, 8))):
        out[place // 8] ^= 1 << place % 8
    return bytes(out)


def truncated(rng: Random, data: bytes) -> bytes:
    """``data`` up to somewhere: nowhere, its first bytes, anywhere, all but its last."""
    return data[: rng.choice([0, 1, 2, 9, 41, len(data) // 2, rng.randrange(len(data)), -1])]


def extended(rng: Random, data: bytes) -> bytes:
    """``data`` with something behind it: a null, junk, or itself once more."""
    return data + rng.choice([b"\0", b"\xf6", rng.randbytes(rng.randint(1, 300)), data])


def spliced(rng: Random, one: bytes, other: bytes) -> bytes:
    """The beginning of one message and the end of another."""
    return one[: rng.randrange(1, len(one))] + other[rng.randrange(1, len(other)) :]


def bombs(rng: Random) -> bytes:
    """CBOR that is small to send and large, deep or strange to read."""
    deep, many = rng.randint(7, 3000), rng.randint(1000, 100_000)
    head = rng.choice([0x5B, 0x7B, 0x9B, 0xBB])  # bytes, text, array, map with 64-bit lengths
    make: list[Callable[[], bytes]] = [
        lambda: b"\x81" * deep + b"\xf6",
        lambda: b"\xa1\x00" * deep + b"\xf6",
        lambda: bytes([head]) + rng.choice([2**63 - 1, 2**64 - 1, 2**32]).to_bytes(8, "big"),
        lambda: bytes([0x88, head]) + (2**40).to_bytes(8, "big") + rng.randbytes(50),
        lambda: b"\x9f" + b"\x00" * many,
        lambda: b"\xbf" + b"\x61a\x00" * 1000 + b"\xff",
        lambda: b"\x5f" + b"\x41x" * 1000 + b"\xff",
        lambda: cbor2.dumps(cbor2.CBORTag(rng.choice([2, 4, 28, 35, 1, 258]), "(a+)+$" * 50)),
        lambda: cbor2.dumps({str(key): key for key in range(1000)}),
        lambda: b"\x99" + struct.pack(">H", 60_000) + b"\x80" * 60_000,
        lambda: b"\x88\x99" + struct.pack(">H", 60_000) + b"\x80" * 60_007,
        lambda: b"\x88" + b"\xc1\xfb\x7f\xf0" + bytes(6),
        lambda: cbor2.dumps(["x"] * 8),
        lambda: cbor2.dumps([1, "presence", b"", 1, "", 0, b"", b""]),
        lambda: cbor2.dumps([1.0, b"presence", "", float("nan"), 1, "", 0, 0]),
        lambda: b"\xff" * rng.randint(1, 100),
        lambda: rng.randbytes(rng.randint(1, 2000)),
    ]
    return rng.choice(make)()


# Messages of somebody who has a key


class Liar:
    """Signs whatever it likes: bodies that no message has, numbers that no count reaches."""

    def __init__(self, identity: Identity, sequence: SequenceSource) -> None:
        self._identity = identity
        self._sequence = sequence

    def sealed(
        self, kind: str, body: bytes, *, run: str = "", round_: int = 0, version: int = 1
    ) -> bytes:
        """An envelope whose signature is right."""
        head: list[Any] = [version, kind, bytes(self._identity.public), self._sequence.next()]
        head += [run, round_]
        signature = self._identity.sign(_signed(head, body))
        return cbor2.dumps([*head, body, signature], canonical=True)

    def malformed(self, rng: Random, run: str, round_: int) -> bytes:
        """A signed envelope whose body is not what its kind has."""
        kind = rng.choice(sorted(KINDS))
        body = cast("dict[Any, Any]", well_typed(rng, kind))
        field = rng.choice(sorted(body)) if body else "extra"
        wrong: list[Any] = [
            *(None, True, -1, -(2**63), 2**63, 2**64 - 1, float("nan"), float("inf"), 1e308),
            *([], {}, [[[[]]]], {"a": {"b": 1}}, [0] * VALUES),
        ]
        how = rng.randrange(6)
        if how <= 1 or not body:
            body[field] = rng.choice(wrong)
        elif how == 2:
            del body[field]
        elif how == 3:
            body[rng.choice(["more", "", "__class__", 7])] = "x"
        elif how == 4:
            data = cbor2.dumps(body, canonical=True)
            return self.sealed(kind, data[: rng.randrange(len(data))], run=run, round_=round_)
        else:
            other = rng.choice(["", "no-such-kind", "Presence", "__init__", "k" * 5000])
            return self.sealed(other, cbor2.dumps(body, canonical=True), run=run, round_=round_)
        return self.sealed(kind, cbor2.dumps(body, canonical=True), run=run, round_=round_)

    def silly(self, rng: Random, run: str, round_: int, digests: Sequence[str]) -> bytes:
        """A whole and signed message that makes no sense: of the wrong sender, time or size."""
        kind = rng.choice(
            sorted(set(KINDS) - {"presence", "declined", "accepted"}) + ["contribution"] * 9
        )
        body = cast("dict[str, Any]", well_typed(rng, kind))
        if "digest" in body:
            body["digest"] = rng.choice([*digests, *PATHS])
        if kind == "contribution":  # never to the round at hand: that would bind this device
            run, round_ = rng.choice(
                [
                    (run, round_ + 1),
                    (run, round_ - 1),
                    (run, 2**64 - 1),
                    (run, -(2**63)),
                    *(("", 0), ("r" * 50_000, 1), ("../../x", 1), ("\0", 0), ("other", round_)),
                ]
            )
        data = cbor2.dumps(body, canonical=True)
        return self.sealed(kind, data, run=run, round_=round_)


PATHS: Final = ("", "../../../../x", "/etc/passwd", "A" * 64, "0" * 63, "..\0", "0" * 300_000)
"""What a digest might be that is none."""


def well_typed(rng: Random, kind: str) -> dict[str, object]:
    """Fields of the right types for a kind of message, with any values."""
    numbers = (0, 1, 2**20, 2**31, 2**62, 2**63 - 1)
    texts = ("", "x", "idle", "../..", "\0", "é" * 300, "t" * 20_000, *PATHS[:4])
    make: dict[type, Callable[[], object]] = {
        int: lambda: rng.choice(numbers),
        str: lambda: rng.choice(texts),
        bytes: lambda: rng.randbytes(rng.choice([0, 1, 32, 33, 5000])),
    }
    return {name: make[cls]() for name, cls in _field_types(kind).items()}


# Updates that were committed to and handed over as they should be


@dataclass(frozen=True, slots=True)
class Poisoner:
    """Makes frames of the right length that are wrong inside, out of one that is right."""

    cipher: PublicKeySum
    context: SumContext
    public_key: bytes
    earlier: bytes
    """A frame of another device in an earlier round."""

    def frames(self) -> Iterator[tuple[str, str, bytes]]:
        """What is wrong, the code with which it must be refused, and the frame."""
        good = self._encrypted(self.context)
        yield "a flipped bit", "protocol.digest", good[:-1] + bytes([good[-1] ^ 1])
        yield "a flipped bit of the header", "protocol.undecodable", b"M" + good[1:]
        yield "a Zstandard bomb", "protocol.undecodable", self._framed(self._bomb())
        yield "a transparent ciphertext", "protocol.undecodable", self._with(1, slice(None), 0)
        prime = self.cipher.parameters.data_primes[0]
        yield "a residue beyond the prime", "protocol.undecodable", self._with(0, 7, prime)
        yield "another parameter set", "protocol.wrong_key", _with_field(good, 12, b"bfv-8192-58")
        stranger = opener_for(self.cipher.scheme, self.cipher.layout).new_key_pair()
        other = replace(self.context, key_id=stranger.key_id)
        yield "another key", "protocol.wrong_key", self._encrypted(other, stranger.public)
        later = replace(self.context, round=RoundNumber(self.context.round + 1))
        yield "another round", "protocol.wrong_key", self._encrypted(later)
        elsewhere = replace(self.context, run=RunId("elsewhere"))
        yield "another run", "protocol.wrong_key", self._encrypted(elsewhere)
        yield "a replayed frame", "protocol.wrong_key", self.earlier
        yield "a total", "protocol.undecodable", _with_field(good, 10, b"\2")
        yield "two devices in one", "protocol.shape", _with_field(good, 100, struct.pack("<I", 2))

    def _encrypted(self, context: SumContext, public_key: bytes | None = None) -> bytes:
        values = np.ones(self.cipher.layout.count, np.int64)
        key = self.public_key if public_key is None else public_key
        return self.cipher.encrypt(values, public_key=key, context=context)

    def _framed(self, payload: bytes) -> bytes:
        return self.cipher._contribution.wrap(payload, context=self.context, devices=1)

    def _with(self, polynomial: int, place: int | slice, value: int) -> bytes:
        good = self._encrypted(self.context)
        residues: list[Residues] = self.cipher.read_contribution(good, self.context)
        residues[0][polynomial, place] = value
        return self._framed(b"".join(self.cipher._payload(residues)))

    def _bomb(self) -> bytes:
        """A stream that would be a gigabyte of zeros, as SEAL's own files hold them."""
        size = self.cipher.frame_bytes() - HEADER_BYTES
        # Magic, one segment without a checksum, then blocks of 128 KiB of one byte (RFC 8878).
        head = b"\x28\xb5\x2f\xfd" + b"\xa0" + (2**30).to_bytes(4, "little")
        block = (2**17 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
        return (head + block * 8192)[:size].ljust(size, b"\xff")


def _with_field(frame: bytes, offset: int, data: bytes) -> bytes:
    return frame[:offset] + data + frame[offset + len(data) :]


# Requests


@dataclass(frozen=True, slots=True)
class Route:
    """One operation of the API's own description."""

    method: str
    path: str
    takes_body: bool

    @property
    def can_refuse(self) -> bool:
        """Whether it asks for anything that can be wrong, or changes nothing."""
        return self.takes_body or "{" in self.path or self.method == "GET"


def routes_of(openapi: Mapping[str, Any]) -> list[Route]:
    """Every operation that an OpenAPI document describes."""
    return [
        Route(method.upper(), path, "requestBody" in operation)
        for path, operations in sorted(openapi["paths"].items())
        for method, operation in sorted(operations.items())
    ]


@dataclass(frozen=True, slots=True)
class RawRequest:
    """Bytes for a server; ``whole`` if it can know by them that nothing more will follow."""

    data: bytes
    whole: bool = True


def hostile_request(rng: Random, route: Route, token: str) -> RawRequest:
    """One request that no client of ours sends; it changes nothing even with the token.

    No body is one that a route accepts, and no path names anything that exists: so for routes
    that can refuse.
    """
    name = rng.choice(
        [
            *("..", "%2e%2e%2f%2e%2e%2fadmin.token", "%00", "no-such-run", "a" * 3000),
            *("%ff%fe", "..%5c..", "%ED%A0%80", "small%0d%0aX-Evil: 1", "'%20OR%201=1--", "{}"),
        ]
    )
    path = route.path
    while "{" in path:
        before, _, rest = path.partition("{")
        path = before + name.replace("{}", "%7b%7d") + rest.partition("}")[2]
    credential = rng.choice(
        [
            *("", f"Bearer {token}", f"Bearer {token}", "Bearer wrong", f"Bearer {token[:-1]}"),
            *(f"bearer {token}", "Basic YTpi", "Bearer " + "x" * 5000, "Bearer \xe9\xff"),
        ]
    )
    lines = [f"{route.method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    if credential:
        lines.append(f"Authorization: {credential}")
    if rng.random() < 0.1:
        return _malformed_request(rng, lines)
    kind = rng.choice(
        ["application/json"] * 4 + ["text/plain", "multipart/form-data", "", "a/\xff"]
    )
    lines.append(f"Content-Type: {kind}")
    body = hostile_body(rng)
    if credential != f"Bearer {token}" and rng.random() < 0.05:
        body = b" " * 3_000_000  # with the token as much may be a job
    if rng.random() < 0.1:
        lines.append("Transfer-Encoding: chunked")
        return rng.choice(
            [
                RawRequest(_head(lines) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)),
                RawRequest(_head(lines) + b"zz\r\n" + body),
                RawRequest(_head(lines) + b"%x\r\n" % 2**62 + body[:99], whole=False),
            ]
        )
    lines.append(f"Content-Length: {len(body)}")
    return RawRequest(_head(lines) + body)


def hostile_body(rng: Random) -> bytes:
    """What a JSON API should not be sent; no model of ours accepts any of these."""
    deep = rng.choice([50, 900, 20_000])
    # No field has its default: with one, what is asked for would be done.
    never = {"valid_s": "x", "reason": 7}
    shapes: list[dict[str, Any]] = [
        {"job": 7},
        {"token": 1, "name": None, "public_key": []},
        {"token": "t" * 10_000, "name": "../x", "public_key": "\ud800"},
        {"token": "\0", "name": "device-1", "public_key": "llmos-ed25519:" + "A" * 43},
        {"job": {"name": "../../x"}, "probe": [], "seed": 0},
        {"job": {"training": {"rounds": 10**30}}, "probe": [["a", "b", "c"]], "seed": 0},
        {"job": {"name": "\ud800"}, "probe": [], "seed": 0, "simulation": True},
        {"job": {}, "probe": [1] * VALUES, "seed": -1},
        {"job": {}, "probe": [["\ud800", "a", "b"]], "seed": 2**63},
        {"valid_s": -1},
        {"valid_s": [1]},
        {"reason": "r" * 10_000},
        {"model": 1, "messages": [{"role": "user"}]},
        {"model": "m", "messages": [], "stream": True},
    ]
    values: list[Any] = [None, [], "x", 7, *(never | shape for shape in shapes)]
    deep_job = b'{"job": ' + b'{"a":' * deep + b"1" + b"}" * deep + b', "probe": [], "seed": 0}'
    make: list[Callable[[], bytes]] = [
        lambda: json.dumps(rng.choice(values)).encode(),
        lambda: json.dumps(rng.choice(values)).encode(),
        lambda: truncated(rng, json.dumps(never).encode()),
        lambda: b"[" * deep + b"]" * deep,
        lambda: deep_job.replace(b"{", b'{"valid_s": [], ', 1),
        lambda: b'{"valid_s": NaN, "seed": Infinity, "reason": 1e999}',
        lambda: b'{"valid_s": 1e999, "token": -Infinity, "reason": 1}',
        lambda: b'{"seed": ' + b"9" * rng.choice([30, 5000]) + b', "reason": 1, "valid_s": "x"}',
        lambda: b'{"reason": 1, "valid_s": "x", "a": "\xff\xfe"}',
        lambda: b"",
        lambda: rng.randbytes(rng.randint(1, 3000)),
        lambda: b" " * rng.choice([1000, 100_000]),
    ]
    return rng.choice(make)()


def _malformed_request(rng: Random, lines: list[str]) -> RawRequest:
    flood = [f"X-{number}: {'y' * 50}" for number in range(rng.choice([200, 3000]))]
    unfinished = [*lines, "Content-Length: 4000000000"]
    return rng.choice(
        [
            RawRequest(_head([*lines, *flood])),
            RawRequest(_head([*lines, "X-Long: " + "z" * 100_000])),
            RawRequest(_head([*lines, "Content-Length: -5"])),
            RawRequest(_head([*lines, "Content-Length: 5", "Content-Length: 6"]) + b"hello!"),
            RawRequest(_head([*lines, f"Content-Length: {2**70}"]) + b"x"),
            RawRequest(_head(unfinished) + b"x" * 200_000, whole=False),
            RawRequest(_head([*lines, "Transfer-Encoding: gzip"]) + b"x"),
            RawRequest(_head(["\0\1\2 / HTTP/9.9"])),
            RawRequest(_head([f"{lines[0]} more"])),
            RawRequest(rng.randbytes(300) + b"\r\n\r\n"),
            RawRequest(_head(lines)[:-3], whole=False),
        ]
    )


def _head(lines: Sequence[str]) -> bytes:
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
