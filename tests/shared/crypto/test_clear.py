"""What only the clear scheme can check: every single value."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from shared.crypto.clear import ClearOpener, ClearSum
from shared.crypto.sum_cipher import SumContext, SumLayout, key_id_of
from shared.errors import SumOutOfRange, UndecodableMessage
from shared.types import RoundNumber, RunId

LAYOUT = SumLayout(count=3, bits=12, max_devices=4)
CONTEXT = SumContext(RunId("r"), RoundNumber(1), key_id_of(b""))
DIGEST, PAYLOAD = 104, 136


def reframed(frame: bytes, payload: bytes) -> bytes:
    """``frame`` with another payload and the digest that belongs to it."""
    return frame[:DIGEST] + hashlib.sha256(payload).digest() + payload


@pytest.mark.parametrize("excess", [2048, -2048, 32767, -32768])
def test_a_value_beyond_its_bits_is_refused_at_once(excess: int) -> None:
    cipher = ClearSum(LAYOUT)
    frame = cipher.encrypt(np.array([1, 2, 3]), public_key=b"", context=CONTEXT)
    total = cipher.begin(CONTEXT)
    for bad in ([excess, 0, 0], [0, 0, excess]):
        with pytest.raises(UndecodableMessage):
            total.add(reframed(frame, np.array(bad, dtype="<i2").tobytes()))
    total.add(reframed(frame, np.array([2047, -2047, 0], dtype="<i2").tobytes()))
    assert total.devices == 1


@pytest.mark.parametrize(("value", "devices", "fits"), [(4094, 2, True), (4095, 2, False)])
def test_a_total_beyond_its_devices_is_refused(value: int, devices: int, fits: bool) -> None:
    cipher = ClearSum(LAYOUT)
    total = cipher.begin(CONTEXT)
    for _ in range(devices):
        total.add(cipher.encrypt(np.array([0, 0, 0]), public_key=b"", context=CONTEXT))
    dump = reframed(total.dump(), np.array([0, -value, value], dtype="<i4").tobytes())
    opener = ClearOpener(LAYOUT)
    if fits:
        opened = opener.open(dump, secret_key=b"", context=CONTEXT, devices=devices)
        assert opened.tolist() == [0, -value, value]
    else:
        with pytest.raises(SumOutOfRange):
            opener.open(dump, secret_key=b"", context=CONTEXT, devices=devices)
