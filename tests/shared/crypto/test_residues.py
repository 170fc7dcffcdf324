"""Packed residues: one way to write, every read checked, addition as in the book."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.crypto.public_key import PARAMETERS
from shared.crypto.residues import Residues, add, pack, packed_bytes, unpack
from shared.errors import UndecodableMessage

DEGREE = 128
PRIMES = sorted({prime for p in PARAMETERS.values() for prime in p.key_primes} | {97, 2**61 - 1})
primes = st.sampled_from(PRIMES)


def polynomials(prime: int) -> st.SearchStrategy[Residues]:
    return arrays(np.uint64, (2, DEGREE), elements=st.integers(0, prime - 1))


@given(st.data(), primes)
def test_what_was_packed_is_unpacked_from_exactly_that_many_bytes(
    data: st.DataObject, prime: int
) -> None:
    residues = data.draw(polynomials(prime))
    bits = prime.bit_length()
    packed = pack(residues, bits=bits)
    assert len(packed) == packed_bytes(polynomials=2, degree=DEGREE, bits=bits)
    assert np.array_equal(unpack(memoryview(packed), prime=prime, degree=DEGREE), residues)


@given(st.data(), primes)
def test_addition_is_modular(data: st.DataObject, prime: int) -> None:
    left, right = data.draw(polynomials(prime)), data.draw(polynomials(prime))
    expected = [
        (a + b) % prime for a, b in zip(left.ravel().tolist(), right.ravel().tolist(), strict=True)
    ]
    assert add(left, right, prime=prime).ravel().tolist() == expected


@pytest.mark.parametrize("prime", PRIMES)
@pytest.mark.parametrize("place", [0, 1, DEGREE - 1, 2 * DEGREE - 1])
def test_the_largest_residue_passes_and_the_prime_itself_does_not(prime: int, place: int) -> None:
    residues = np.zeros((2, DEGREE), dtype=np.uint64)
    residues.flat[place] = prime - 1
    packed = pack(residues, bits=prime.bit_length())
    assert np.array_equal(unpack(memoryview(packed), prime=prime, degree=DEGREE), residues)
    residues.flat[place] = prime
    packed = pack(residues, bits=prime.bit_length())
    with pytest.raises(UndecodableMessage):
        unpack(memoryview(packed), prime=prime, degree=DEGREE)
