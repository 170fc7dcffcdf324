"""C1 to C5, the same for every scheme: the clear one may then stand in for the others."""

from __future__ import annotations

import random
import re
import struct
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.crypto.sum_cipher import (
    MAX_DEVICES,
    KeyPair,
    Scheme,
    SumCipher,
    SumContext,
    SumLayout,
    SumOpener,
    Total,
    cipher_for,
    key_id_of,
    opener_for,
)
from shared.errors import (
    CohortTooSmall,
    ConfigError,
    DigestMismatch,
    LlmOsError,
    ShapeMismatch,
    SumOutOfRange,
    UndecodableMessage,
    WrongKey,
)
from shared.types import IntVector, RoundNumber, RunId

HEADER_BYTES = 136


@dataclass(frozen=True)
class Party:
    """Everybody's side of one layout under one scheme."""

    cipher: SumCipher
    opener: SumOpener
    keys: KeyPair
    context: SumContext

    def encrypt(self, values: IntVector) -> bytes:
        return self.cipher.encrypt(values, public_key=self.keys.public, context=self.context)

    def total(self, *frames: bytes) -> Total:
        total = self.cipher.begin(self.context)
        for frame in frames:
            total.add(frame)
        return total

    def open(self, dump: bytes, devices: int) -> IntVector:
        return self.opener.open(
            dump, secret_key=self.keys.secret, context=self.context, devices=devices
        )


@cache
def party(
    scheme: Scheme, bits: int = 12, count: int = 100, max_devices: int = MAX_DEVICES
) -> Party:
    layout = SumLayout(count=count, bits=bits, max_devices=max_devices)
    opener = opener_for(scheme, layout)
    keys = opener.new_key_pair()
    context = SumContext(RunId("run-1"), RoundNumber(3), keys.key_id)
    return Party(cipher_for(scheme, layout), opener, keys, context)


def random_values(p: Party, seed: int) -> IntVector:
    layout = p.cipher.layout
    rng = np.random.default_rng(seed)
    return rng.integers(-layout.magnitude, layout.magnitude + 1, layout.count)


@pytest.fixture(params=list(Scheme))
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return Scheme(request.param)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_sum_at_both_bounds_over_the_most_devices_is_exact(scheme: Scheme, bits: int) -> None:
    # The largest sums that fields are sized for, of either sign, side by side in one slot.
    p = party(scheme, bits=bits)
    magnitude = p.cipher.layout.magnitude
    values = np.where(np.arange(100) % 3 == 0, -magnitude, magnitude)
    total = p.total(*(p.encrypt(values) for _ in range(MAX_DEVICES)))
    assert total.devices == MAX_DEVICES
    assert np.array_equal(p.open(total.dump(), MAX_DEVICES), values * MAX_DEVICES)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), bits=st.sampled_from([8, 12, 16]), devices=st.integers(1, 5))
@pytest.mark.parametrize("scheme", list(Scheme))
def test_the_sum_of_frames_opens_to_the_sum_of_vectors(
    data: st.DataObject, scheme: Scheme, bits: int, devices: int
) -> None:
    p = party(scheme, bits=bits)
    bound = p.cipher.layout.magnitude
    vectors = arrays(np.int64, 100, elements=st.integers(-bound, bound))
    values = [data.draw(vectors) for _ in range(devices)]
    total = p.total(*map(p.encrypt, values))
    assert np.array_equal(p.open(total.dump(), devices), np.sum(values, axis=0))


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("count", [1, 4096, 8191, 8192, 8193, 12288, 12289, 30000])
def test_any_length_survives(scheme: Scheme, bits: int, count: int) -> None:
    # Around the numbers of values that fill a slot row and a ciphertext.
    p = party(scheme, bits=bits, count=count)
    values = random_values(p, count)
    frame = p.encrypt(values)
    assert len(frame) == p.cipher.frame_bytes()
    assert np.array_equal(p.open(p.total(frame).dump(), 1), values)


def test_the_order_of_additions_does_not_show(scheme: Scheme) -> None:
    p = party(scheme)
    frames = [p.encrypt(random_values(p, seed)) for seed in range(6)]
    expected = p.total(*frames).dump()
    for seed in range(4):
        random.Random(seed).shuffle(frames)
        assert p.total(*frames).dump() == expected
    assert p.total(*frames[1:]).dump() != expected


def test_a_dump_leaves_the_total_open_for_more(scheme: Scheme) -> None:
    p = party(scheme)
    first, second = (random_values(p, seed) for seed in (1, 2))
    total = p.total(p.encrypt(first))
    total.dump()
    total.add(p.encrypt(second))
    assert np.array_equal(p.open(total.dump(), 2), first + second)


def other_round(p: Party) -> Party:
    return replace(p, context=replace(p.context, round=RoundNumber(4)))


def other_run(p: Party) -> Party:
    return replace(p, context=replace(p.context, run=RunId("run-2")))


def with_field(frame: bytes, offset: int, data: bytes) -> bytes:
    return frame[:offset] + data + frame[offset + len(data) :]


def bad_frames(p: Party) -> dict[str, tuple[bytes, type[LlmOsError]]]:
    """Every way to be refused, with the error it must raise."""
    layout = p.cipher.layout
    good = p.encrypt(random_values(p, 9))
    shorter = cipher_for(p.cipher.scheme, replace(layout, count=layout.count - 1))
    wider = cipher_for(p.cipher.scheme, replace(layout, bits=16))
    bad: dict[str, tuple[bytes, type[LlmOsError]]] = {
        "nothing": (b"", UndecodableMessage),
        "junk": (b"junk!", UndecodableMessage),
        "junk of the right length": (random.Random(1).randbytes(len(good)), UndecodableMessage),
        "zeros of the right length": (bytes(len(good)), UndecodableMessage),
        "one byte short": (good[:-1], UndecodableMessage),
        "one byte long": (good + b"\0", UndecodableMessage),
        "half": (good[: len(good) // 2], UndecodableMessage),
        "another magic": (with_field(good, 0, b"X"), UndecodableMessage),
        "another version": (with_field(good, 8, b"\2"), UndecodableMessage),
        "a total": (with_field(good, 10, b"\2"), UndecodableMessage),
        "another scheme": (with_field(good, 11, b"\7"), UndecodableMessage),
        "another parameter set": (with_field(good, 12, b"other"), WrongKey),
        "another key": (with_field(good, 44, bytes(8)), WrongKey),
        "another round": (other_round(p).encrypt(random_values(p, 9)), WrongKey),
        "another run": (other_run(p).encrypt(random_values(p, 9)), WrongKey),
        "another count": (with_field(good, 92, struct.pack("<Q", 99)), ShapeMismatch),
        "two contributions": (with_field(good, 100, struct.pack("<I", 2)), ShapeMismatch),
        "a bit of the payload": (
            with_field(good, len(good) - 1, bytes([good[-1] ^ 0x80])),
            DigestMismatch,
        ),
        "a bit of the digest": (with_field(good, 104, bytes([good[104] ^ 1])), DigestMismatch),
        "a shorter vector": (
            shorter.encrypt(random_values(p, 9)[1:], public_key=p.keys.public, context=p.context),
            UndecodableMessage if p.cipher.scheme is Scheme.CLEAR else ShapeMismatch,
        ),
    }
    if p.cipher.scheme is Scheme.CLEAR:
        frame = wider.encrypt(random_values(p, 9), public_key=p.keys.public, context=p.context)
        bad["wider values"] = (frame, WrongKey)
    return bad


def test_every_bad_frame_is_refused_by_name_and_the_total_is_unchanged(scheme: Scheme) -> None:
    p = party(scheme)
    values = [random_values(p, seed) for seed in range(2)]
    total = p.total(p.encrypt(values[0]))
    before = total.dump()
    for name, (frame, error) in bad_frames(p).items():
        with pytest.raises(LlmOsError) as caught:
            total.add(frame)
        assert type(caught.value) is error, name
        assert total.devices == 1, name
        assert total.dump() == before, name
    total.add(p.encrypt(values[1]))
    assert np.array_equal(p.open(total.dump(), 2), values[0] + values[1])


def test_every_bit_of_the_header_counts(scheme: Scheme) -> None:
    p = party(scheme)
    good = p.encrypt(random_values(p, 5))
    total = p.total()
    for bit in range(HEADER_BYTES * 8):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LlmOsError):
            total.add(bytes(flipped))
    total.add(good)  # the control: it was good


def test_a_dump_is_no_contribution_and_a_contribution_no_total(scheme: Scheme) -> None:
    p = party(scheme)
    frame = p.encrypt(random_values(p, 1))
    total = p.total(frame)
    with pytest.raises(UndecodableMessage):
        total.add(total.dump())
    with pytest.raises(UndecodableMessage):
        p.open(frame, 1)


def test_a_total_opens_only_for_its_own_run_round_and_devices(scheme: Scheme) -> None:
    p = party(scheme)
    dump = p.total(p.encrypt(random_values(p, 1)), p.encrypt(random_values(p, 2))).dump()
    for other in (other_run(p), other_round(p)):
        with pytest.raises(WrongKey):
            other.open(dump, 2)
    for devices in (1, 3):
        with pytest.raises(ShapeMismatch):
            p.open(dump, devices)
    with pytest.raises(DigestMismatch):
        p.open(dump[:-1] + bytes([dump[-1] ^ 1]), 2)
    assert p.open(dump, 2).shape == (100,)


def test_a_key_that_the_round_does_not_name_is_refused(scheme: Scheme) -> None:
    p = party(scheme)
    values = random_values(p, 1)
    dump = p.total(p.encrypt(values)).dump()
    with pytest.raises(WrongKey):
        p.cipher.encrypt(values, public_key=p.keys.public + b"!", context=p.context)
    stranger = replace(p.context, key_id=key_id_of(b"somebody else's"))
    with pytest.raises(WrongKey):
        p.cipher.encrypt(values, public_key=p.keys.public, context=stranger)
    with pytest.raises(WrongKey):
        p.opener.open(dump, secret_key=p.keys.secret, context=stranger, devices=1)


def test_one_contribution_more_than_fields_are_sized_for_is_refused(scheme: Scheme) -> None:
    p = party(scheme, max_devices=2)
    frames = [p.encrypt(random_values(p, seed)) for seed in range(3)]
    total = p.total(*frames[:2])
    before = total.dump()
    with pytest.raises(SumOutOfRange):
        total.add(frames[2])
    assert (total.devices, total.dump()) == (2, before)


def test_an_empty_total_has_no_dump(scheme: Scheme) -> None:
    with pytest.raises(CohortTooSmall):
        party(scheme).total().dump()


def test_a_device_cannot_encrypt_what_would_be_refused_or_wrap(scheme: Scheme) -> None:
    p = party(scheme)
    magnitude = p.cipher.layout.magnitude
    for excess in (magnitude + 1, -magnitude - 1):
        values = random_values(p, 1)
        values[50] = excess
        with pytest.raises(ValueError, match="within"):
            p.encrypt(values)
    with pytest.raises(ValueError, match="integers"):
        p.encrypt(np.zeros(100, dtype=np.float64))
    for count in (99, 101):
        with pytest.raises(ShapeMismatch):
            p.encrypt(np.zeros(count, dtype=np.int64))


def test_a_cipher_says_what_it_is(scheme: Scheme) -> None:
    p = party(scheme)
    assert p.cipher.scheme is scheme
    assert p.cipher.layout.count == 100
    names = {cipher_for(scheme, SumLayout(1, bits, 2)).parameter_set for bits in (8, 12, 16)}
    assert len(names) == 3
    assert all(re.fullmatch(r"[a-z0-9.-]{1,32}", name) for name in names)


def test_a_layout_names_everything_that_is_wrong_with_it() -> None:
    with pytest.raises(ConfigError) as caught:
        SumLayout(count=0, bits=13, max_devices=MAX_DEVICES + 1)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "count",
        "bits",
        "max_devices",
    ]
    assert str(MAX_DEVICES) in str(caught.value)
    with pytest.raises(ConfigError):
        SumLayout(count=1, bits=12, max_devices=1)
    for devices in (2, MAX_DEVICES):
        assert SumLayout(count=1, bits=12, max_devices=devices).magnitude == 2047


@pytest.mark.parametrize("key_id", ["", "0" * 15, "0" * 17, "G" * 16, "A" * 16])
def test_a_context_needs_a_key_id(key_id: str) -> None:
    with pytest.raises(ValueError, match="key_id"):
        SumContext(RunId("r"), RoundNumber(1), key_id)


def test_a_context_needs_a_round_that_fits_its_field() -> None:
    with pytest.raises(ValueError, match="round"):
        SumContext(RunId("r"), RoundNumber(-1), "0" * 16)


def test_keys_do_not_show_in_messages() -> None:
    keys = KeyPair(public=b"public", secret=b"very secret")
    assert "very secret" not in f"{keys!r} {keys}"
    assert keys.key_id == key_id_of(b"public")
