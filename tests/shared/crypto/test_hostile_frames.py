"""No change to a frame's bytes gets past the adder: each has its name, and the total is as it was.

What ``tests/test_hostile_bytes.py`` shows with live processes, here for any change.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.crypto.public_key import DEGREE, PublicKeySum
from shared.crypto.sum_cipher import (
    KeyPair,
    Scheme,
    SumContext,
    SumLayout,
    Total,
    cipher_for,
    opener_for,
)
from shared.errors import LlmOsError, SumOutOfRange, UndecodableMessage
from shared.types import RoundNumber, RunId
from tests.support.hostile import HEADER_BYTES, Poisoner, extended, flipped, spliced, truncated

pytest.importorskip("tenseal", reason="the extra 'crypto' brings it")

LAYOUT = SumLayout(count=300, bits=12, max_devices=3)
DIGEST_AT = 104
NAMED = {
    *("protocol.undecodable", "protocol.wrong_key", "protocol.shape", "protocol.digest"),
}


class Bench:
    """A total that holds one frame, and another frame that was not added yet."""

    def __init__(self, scheme: Scheme) -> None:
        self.cipher = cipher_for(scheme, LAYOUT)
        self.keys: KeyPair = opener_for(scheme, LAYOUT).new_key_pair()
        self.context = SumContext(RunId("run"), RoundNumber(2), self.keys.key_id)
        self.first, self.good = self.frame(1), self.frame(2)
        self.total: Total = self.cipher.begin(self.context)
        self.total.add(self.first)
        self.before = self.total.dump()

    def frame(self, value: int, context: SumContext | None = None) -> bytes:
        return self.cipher.encrypt(
            np.full(LAYOUT.count, value),
            public_key=self.keys.public,
            context=context or self.context,
        )

    def refuses(self, frame: bytes) -> str:
        """The code with which a frame is refused; the total is as it was."""
        with pytest.raises(LlmOsError) as caught:
            self.total.add(frame)
        assert self.total.devices == 1
        assert self.total.dump() == self.before
        return caught.value.code


@cache
def bench(scheme: Scheme) -> Bench:
    return Bench(scheme)


def with_its_digest(frame: bytes) -> bytes:
    """The frame as somebody hostile would send it: its digest fits what it holds."""
    digest = hashlib.sha256(frame[HEADER_BYTES:]).digest()
    return frame[:DIGEST_AT] + digest + frame[HEADER_BYTES:]


schemes = pytest.mark.parametrize("scheme", list(Scheme))


@schemes
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), how=st.sampled_from([flipped, truncated, extended]))
def test_a_changed_frame_is_refused_by_name(
    scheme: Scheme, seed: int, how: Callable[[Random, bytes], bytes]
) -> None:
    b = bench(scheme)
    assert b.refuses(how(Random(seed), b.good)) in NAMED


@schemes
@settings(max_examples=60, deadline=None)
@given(bits=st.sets(st.integers(0, 8 * HEADER_BYTES - 1), min_size=1, max_size=5))
def test_a_changed_header_over_a_whole_payload_is_refused_by_name(
    scheme: Scheme, bits: set[int]
) -> None:
    b = bench(scheme)
    frame = bytearray(b.good)
    for bit in bits:
        frame[bit // 8] ^= 1 << bit % 8
    assert b.refuses(bytes(frame)) in NAMED


@schemes
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_halves_of_two_frames_are_refused_whatever_their_length(scheme: Scheme, seed: int) -> None:
    b, rng = bench(scheme), Random(seed)
    at = rng.randrange(HEADER_BYTES, len(b.good))
    assert b.refuses(spliced(rng, b.first, b.good[:at])) in NAMED
    same_length = b.first[:at] + b.good[at:]
    if same_length not in (b.first, b.good):
        assert b.refuses(same_length) == "protocol.digest"


@settings(max_examples=60, deadline=None)
@given(payload=st.binary(min_size=0, max_size=64), seed=st.integers(0, 2**32))
def test_any_payload_under_its_own_digest_is_refused_or_is_residues(
    payload: bytes, seed: int
) -> None:
    """A repeated pattern may well be residues below the prime: then it is a ciphertext, of nothing."""
    b = bench(Scheme.PUBLIC_KEY)
    size = len(b.good) - HEADER_BYTES
    filled = (payload * size)[:size] if payload else Random(seed).randbytes(size)
    frame = with_its_digest(b.good[:HEADER_BYTES] + filled)
    total = b.cipher.begin(b.context)
    with contextlib.suppress(UndecodableMessage):
        total.add(frame)
    if total.devices:
        assert total.dump()[HEADER_BYTES:] == filled
    else:
        assert b.refuses(frame) == "protocol.undecodable"


def test_every_poisoned_update_is_refused_with_the_code_it_is_made_for() -> None:
    b = bench(Scheme.PUBLIC_KEY)
    assert isinstance(b.cipher, PublicKeySum)
    earlier = b.frame(3, replace(b.context, round=RoundNumber(1)))
    poisons = list(Poisoner(b.cipher, b.context, b.keys.public, earlier).frames())
    assert len(poisons) == 12
    for fault, code, frame in poisons:
        assert len(frame) == len(b.good), "or it would be refused for its length alone"
        assert b.refuses(frame) == code, fault


def test_a_transparent_ciphertext_is_refused_and_one_coefficient_makes_it_none() -> None:
    b = bench(Scheme.PUBLIC_KEY)
    assert isinstance(b.cipher, PublicKeySum)
    (residues,) = b.cipher.read_contribution(b.good, b.context)
    for value, accepted in ((0, False), (1, True)):
        residues[1::2] = 0
        residues[1, DEGREE - 1] = value
        payload = b"".join(b.cipher._payload([residues]))
        frame = with_its_digest(b.good[:HEADER_BYTES] + payload)
        if accepted:
            b.cipher.begin(b.context).add(frame)
        else:
            assert b.refuses(frame) == "protocol.undecodable"


@schemes
def test_past_the_capacity_bound_even_a_good_frame_is_refused(scheme: Scheme) -> None:
    b = bench(scheme)
    total = b.cipher.begin(b.context)
    for value in range(LAYOUT.max_devices):
        total.add(b.frame(value))
    before = total.dump()
    with pytest.raises(SumOutOfRange):
        total.add(b.good)
    assert (total.devices, total.dump()) == (LAYOUT.max_devices, before)


@schemes
def test_the_control_is_counted(scheme: Scheme) -> None:
    """What all these frames were made of is good, in the very total that refused them."""
    b = Bench(scheme)
    for bad in (b.good[:-1], flipped(Random(1), b.good)):
        b.refuses(bad)
    b.total.add(b.good)
    assert b.total.devices == 2
