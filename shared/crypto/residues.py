"""Polynomials modulo primes, in exactly as many bits as they need.

A ciphertext is a handful of polynomials whose N coefficients are residues of a
b-bit prime. SEAL keeps each in 64 bits; on the wire they take b. There is one
way to write given residues, its length is known in advance, and reading it
needs no parser: whatever the bytes say, they are N numbers of b bits, and those
that are not residues are refused. Adding ciphertexts is adding residues.

Residues are packed in lanes: with L = 64 / gcd(64, b), the polynomial is cut
into L consecutive runs, and the k-th numbers of all runs together fill L b bits,
whole words. Every step then works on consecutive memory.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import UndecodableMessage

Residues = NDArray[np.uint64]
"""Polynomials modulo one prime, shape ``(polynomials, N)``."""

_WORD = 64


def packed_bytes(*, polynomials: int, degree: int, bits: int) -> int:
    """Bytes of so many packed polynomials."""
    return polynomials * degree * bits // 8


def pack(residues: Residues, *, bits: int) -> bytes:
    """Write residues below 2**bits, for a degree that 64 divides."""
    polynomials, degree = residues.shape
    lanes, words = _lanes(bits)
    runs = residues.reshape(polynomials, lanes, degree // lanes)
    packed = np.zeros((polynomials, words, degree // lanes), dtype="<u8")
    for lane in range(lanes):
        word, shift = divmod(lane * bits, _WORD)
        packed[:, word] |= runs[:, lane] << np.uint64(shift)
        if shift + bits > _WORD:
            packed[:, word + 1] |= runs[:, lane] >> np.uint64(_WORD - shift)
    return packed.tobytes()


def unpack(data: memoryview, *, prime: int, degree: int) -> Residues:
    """Read what :func:`pack` wrote with ``prime.bit_length()`` bits.

    Raises:
        UndecodableMessage: a number is not a residue of ``prime``.
    """
    bits = prime.bit_length()
    lanes, words = _lanes(bits)
    packed: NDArray[Any] = np.frombuffer(data, dtype="<u8").reshape(-1, words, degree // lanes)
    residues = np.empty((len(packed), lanes, degree // lanes), dtype=np.uint64)
    mask = np.uint64(2**bits - 1)
    for lane in range(lanes):
        word, shift = divmod(lane * bits, _WORD)
        numbers = packed[:, word] >> np.uint64(shift)
        if shift + bits > _WORD:
            numbers |= packed[:, word + 1] << np.uint64(_WORD - shift)
        np.bitwise_and(numbers, mask, out=residues[:, lane])
    if np.any(residues >= prime):
        raise UndecodableMessage("a ciphertext holds a number beyond its modulus")
    return residues.reshape(-1, degree)


def add(left: Residues, right: Residues, *, prime: int) -> Residues:
    """Add modulo ``prime``, which has at most 63 bits."""
    total = left + right
    # Below the prime the subtraction wraps to a huge number, so the smaller one is the residue.
    return np.asarray(np.minimum(total, total - np.uint64(prime)), dtype=np.uint64)


def _lanes(bits: int) -> tuple[int, int]:
    """How many numbers fill whole words together, and how many words."""
    lanes = _WORD // gcd(_WORD, bits)
    return lanes, lanes * bits // _WORD
