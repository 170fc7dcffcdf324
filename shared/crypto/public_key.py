r"""BFV under a public key: devices and adders can encrypt and add, the key's holder opens.

The only importer of tenseal, whose ``sealapi`` gives Microsoft SEAL itself. SEAL
draws keys, encrypts and decrypts. It never reads a peer's bytes: frames and
public keys travel as plain residues (``shared.crypto.residues``), every one
checked, and what SEAL is given to load is an encoding that it wrote itself with
those numbers put in. So there is no compressed stream from outside, no foreign
length, size or parameter to lie about, and adding needs no SEAL at all.

**Packing.** t is a prime ≡ 1 mod 2N, so a plaintext is N independent slots modulo
t. A slot holds n fields of f = b + 8 bits, as :math:`v = \sum_k x_k 2^{fk}` with
signed :math:`x_k`.

    ======  =========  =======  =======  ===============  =============
    values  data       special  t        fields per slot  bytes a value
    ======  =========  =======  =======  ===============  =============
    8 bit   30 + 31    47       48 bits  3 of 16 bits     5.09
    12 bit  57         none     40 bits  2 of 20 bits     7.13
    16 bit  30 + 31    47       48 bits  2 of 24 bits     7.63
    ======  =========  =======  =======  ===============  =============

N = 4096 throughout; 128-bit security allows 109 bits of modulus in all (SEAL
refuses more). Bytes are for vectors that fill their ciphertexts.

**No field runs into the next.** With K ≤ 2^8 contributions of magnitude
M = 2^(b-1) - 1 every field of the sum satisfies :math:`|x_k| \le K M \le 2^8
(2^{b-1} - 1) = 2^{f-1} - 2^8 < 2^{f-1}`. Balanced digits in base 2^f are unique in
that range, so v determines them. :math:`|v| \le (2^{f-1} - 2^8) (2^{fn} - 1) /
(2^f - 1)`, which is below t / 2 for every set above (asserted, tested at the
bound and one past), so the slot modulo t determines v.

**Noise is a tail probability.** A total decrypts rightly while every coefficient
of its noise stays below q / 2t, and *silently* wrongly beyond. A variable X is
sub-Gaussian with proxy w when :math:`E[e^{xX}] \le e^{w x^2 / 2}`; proxies of
independent variables add, weighted by squares, and :math:`P[|X| \ge z] \le
2 e^{-z^2 / 2w}`. SEAL's secrets s and masks u are uniform on {-1, 0, 1} (proxy
2/3), its errors centred binomial of 2 × 21 coins (proxy 21/2, at most 21), and
rounding errors uniform on [-1/2, 1/2] (proxy 1/12). Rounding q m / t costs each
ciphertext at most 1/2 besides. Then for a total of K honest ciphertexts:

- *Without a special prime* (12 bit; q / 2t = 65536) the noise of ciphertext k is
  :math:`-e u_k + e_k + s e'_k` with the key's error e in all of them. Given e and s a
  coefficient of the total's noise has proxy at most :math:`K (\tfrac23 |e|^2 +
  \tfrac{21}{2} (N + 1))`, and :math:`|e|^2 \le 21 N`, twice its mean, but for a chance of
  2^-185 (Bernstein). With K = 256 and z = q / 2t - K the chance is below 2^-117.
- *With a special prime* p (8 and 16 bit; q / 2t = 4096) SEAL encrypts modulo q p and
  divides by p. Of the noise above, at most 21 (2N + 1) < 2^18, that leaves less than
  2^-28. Rounding the first polynomial adds at most 1/2; rounding the second adds
  :math:`\sum_j \pm s_j r_j`, whose r are independent and uniform because that
  polynomial is uniform to anybody who cannot solve the Ring-LWE problem on
  which the scheme stands. Proxy K N / 12; with z = q / 2t - K - 1 below 2^-119.

So a total of a million values (2^19 coefficients) is right but for a chance of
2^-98, far inside the 2^-40 we state. *Honest* is part of the statement: a frame
added 256 times over, or one made with other noise, can make the sum wrong, as a
dishonest update can in any scheme. What it then decrypts to looks random and
fails the range check.

The sets differ from the obvious ones for this bound's sake: for 16 bits one
60-bit prime would encrypt twice as fast, but q / 2t is then 2048 and the bound
no better than 2^-6; for 12 bits a special prime would save 5 % of the bytes and
cost a fifth more time and twice the public key.

**A crafted total reveals the key.** Decryption computes c0 + s c1: whoever gets
(0, Δ) opened gets s. It passes every structural check there is. The opener
must have added the total itself, out of contributions that it verified.
"""

from __future__ import annotations

import math
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from shared.crypto.residues import Residues, add, pack, packed_bytes, unpack
from shared.crypto.sum_checks import check_key, check_range, check_room, check_values
from shared.crypto.sum_cipher import (
    HEADROOM_BITS,
    KeyPair,
    Scheme,
    SumContext,
    SumLayout,
    key_id_of,
)
from shared.crypto.sum_frame import FrameFormat, Kind
from shared.errors import (
    CohortTooSmall,
    LlmOsError,
    SumOutOfRange,
    UndecodableMessage,
    WrongKey,
)
from shared.extras import require
from shared.types import IntVector

DEGREE: Final = 4096
"""N: slots of one ciphertext, coefficients of one polynomial."""

_POLYNOMIALS: Final = 2
"""A ciphertext that was only ever added has two, (c0, c1); so has a public key."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """One parameter set: how values are packed and encrypted.

    Attributes:
        bits: Bits of one value.
        fields: Values in one slot.
        data_primes: The primes whose product is q, the modulus of ciphertexts.
        special_prime: p, which the noise of a fresh ciphertext is divided by, or None.
        plain_modulus: t.
    """

    bits: int
    fields: int
    data_primes: tuple[int, ...]
    special_prime: int | None
    plain_modulus: int

    @property
    def name(self) -> str:
        """The parameter set's id."""
        primes = ".".join(str(prime.bit_length()) for prime in self.key_primes)
        plain_bits = self.plain_modulus.bit_length()
        return f"bfv-{DEGREE}-{primes}-t{plain_bits}-{self.fields}x{self.field_bits}"

    @property
    def key_primes(self) -> tuple[int, ...]:
        """All primes, as keys have them."""
        return (*self.data_primes, *([] if self.special_prime is None else [self.special_prime]))

    @property
    def field_bits(self) -> int:
        """Bits of one field."""
        return self.bits + HEADROOM_BITS

    @property
    def values_per_ciphertext(self) -> int:
        """How many values one ciphertext takes."""
        return DEGREE * self.fields

    def slot_bound(self, devices: int) -> int:
        """The largest slot that a sum over ``devices`` can reach."""
        field = devices * (2 ** (self.bits - 1) - 1)
        return int(sum(field << (self.field_bits * k) for k in range(self.fields)))

    def noise_tail_log2(self, devices: int) -> float:
        """Upper bound on log2 P[one coefficient of a sum's noise is too large]; see above."""
        room = math.prod(self.data_primes) / (2 * self.plain_modulus) - devices - 1
        if self.special_prime is None:
            proxy = devices * (2 / 3 * 21 * DEGREE + 21 / 2 * (DEGREE + 1))
        else:
            proxy = devices * DEGREE / 12
        return 1 - room**2 / (2 * proxy) * math.log2(math.e)

    def pack(self, values: IntVector) -> Residues:
        """Slots modulo t, shape ``(ciphertexts, N)``, of a vector; zeros fill the last."""
        ciphertexts = -(-len(values) // self.values_per_ciphertext)
        padded = np.zeros(ciphertexts * self.values_per_ciphertext, dtype=np.int64)
        padded[: len(values)] = values
        fields = padded.reshape(ciphertexts, self.fields, DEGREE)
        slots = fields[:, -1].copy()
        for index in reversed(range(self.fields - 1)):
            slots <<= self.field_bits
            slots += fields[:, index]
        slots += (slots >> 63) & self.plain_modulus  # t where negative: all ones select it
        return slots.astype(np.uint64)

    def unpack(self, slots: Residues) -> IntVector:
        """All fields of the slots, padding included; inverse of :meth:`pack` within its bounds."""
        rest = slots.astype(np.int64)
        rest[rest > self.plain_modulus // 2] -= self.plain_modulus
        half, base = 1 << (self.field_bits - 1), 1 << self.field_bits
        fields = np.empty((len(slots), self.fields, DEGREE), dtype=np.int64)
        for index in range(self.fields - 1):
            fields[:, index] = ((rest + half) & (base - 1)) - half
            rest = (rest - fields[:, index]) >> self.field_bits
        fields[:, -1] = rest  # whole, so that what does not fit its field fails the range check
        return fields.reshape(-1)


# Primes ≡ 1 mod 2N, the largest of their sizes. t must be coprime to all of the others.
PARAMETERS: Final = {
    8: Parameters(
        bits=8,
        fields=3,
        data_primes=(1073692673, 2147377153),
        special_prime=140737488273409,
        plain_modulus=281474976694273,
    ),
    12: Parameters(
        bits=12,
        fields=2,
        data_primes=(144115188075814913,),
        special_prime=None,
        plain_modulus=1099511480321,
    ),
    16: Parameters(
        bits=16,
        fields=2,
        data_primes=(1073692673, 2147377153),
        special_prime=140737488273409,
        plain_modulus=281474976694273,
    ),
}
"""By bits of one value."""


class PublicKeySum:
    """The devices' and adders' side. Only :meth:`encrypt` needs tenseal."""

    scheme: Final = Scheme.PUBLIC_KEY

    def __init__(self, layout: SumLayout) -> None:
        self.layout: Final = layout
        self.parameters: Final = PARAMETERS[layout.bits]
        self.parameter_set: Final = self.parameters.name
        # The two proofs of this module, with the numbers of this run.
        assert self.parameters.slot_bound(layout.max_devices) < self.parameters.plain_modulus // 2
        assert self.parameters.noise_tail_log2(layout.max_devices) < -100
        self._ciphertexts = -(-layout.count // self.parameters.values_per_ciphertext)
        self._contribution = self._format(Kind.CONTRIBUTION)
        self._total = self._format(Kind.TOTAL)

    def frame_bytes(self) -> int:
        """Exact length of one contribution frame; a total's is the same."""
        return self._contribution.frame_bytes

    def encrypt(self, values: IntVector, *, public_key: bytes, context: SumContext) -> bytes:
        """Encrypt one vector; raises as ``SumCipher.encrypt``, or DependencyMissing."""
        check_values(values, self.layout)
        check_key(public_key, context)
        ciphertexts = _seal(self.parameters).encrypt(self.parameters.pack(values), public_key)
        return self._contribution.wrap(*self._payload(ciphertexts), context=context, devices=1)

    def begin(self, context: SumContext) -> PublicKeyTotal:
        """Start an empty total."""
        return PublicKeyTotal(self, context)

    def read_contribution(self, frame: bytes, context: SumContext) -> list[Residues]:
        """Both polynomials of every ciphertext, by prime; raises as ``Total.add``."""
        return self._read(self._contribution.unwrap(frame, context=context, devices=1))

    def read_total(self, frame: bytes, context: SumContext, devices: int) -> list[Residues]:
        """Both polynomials of every ciphertext, by prime; raises as ``SumOpener.open``."""
        return self._read(self._total.unwrap(frame, context=context, devices=devices))

    def write_total(self, ciphertexts: list[Residues], context: SumContext, devices: int) -> bytes:
        """The frame that :meth:`read_total` reads."""
        return self._total.wrap(*self._payload(ciphertexts), context=context, devices=devices)

    def _format(self, kind: Kind) -> FrameFormat:
        polynomials = self._ciphertexts * _POLYNOMIALS
        return FrameFormat(
            kind=kind,
            scheme=self.scheme,
            parameter_set=self.parameter_set,
            count=self.layout.count,
            payload_bytes=sum(
                packed_bytes(polynomials=polynomials, degree=DEGREE, bits=prime.bit_length())
                for prime in self.parameters.data_primes
            ),
        )

    def _payload(self, ciphertexts: list[Residues]) -> list[bytes]:
        return [
            pack(residues, bits=prime.bit_length())
            for residues, prime in zip(ciphertexts, self.parameters.data_primes, strict=True)
        ]

    def _read(self, payload: memoryview) -> list[Residues]:
        ciphertexts = _unpack_all(payload, self.parameters.data_primes)
        seconds = [residues[1::_POLYNOMIALS] for residues in ciphertexts]
        hidden = np.logical_or.reduce([np.any(second, axis=1) for second in seconds])
        if not np.all(hidden):
            # c1 = 0: c0 is the message itself, readable by all. No encryption comes out like that.
            raise UndecodableMessage("a ciphertext is transparent: it hides nothing")
        return ciphertexts


class PublicKeyTotal:
    """A running encrypted sum: residues, and nothing that could open them."""

    def __init__(self, cipher: PublicKeySum, context: SumContext) -> None:
        self._cipher = cipher
        self._context = context
        self._ciphertexts: list[Residues] | None = None
        self._devices = 0

    @property
    def devices(self) -> int:
        """How many frames are in it."""
        return self._devices

    def add(self, frame: bytes) -> None:
        """Add one contribution, or leave the total as it was."""
        check_room(self._devices, self._cipher.layout)
        new = self._cipher.read_contribution(frame, self._context)
        if self._ciphertexts is not None:
            primes = self._cipher.parameters.data_primes
            new = [
                add(old, addend, prime=prime)
                for old, addend, prime in zip(self._ciphertexts, new, primes, strict=True)
            ]
        self._ciphertexts = new
        self._devices += 1

    def dump(self) -> bytes:
        """The encrypted sum and how many are in it."""
        if self._ciphertexts is None:
            raise CohortTooSmall(present=0, required=1)
        return self._cipher.write_total(self._ciphertexts, self._context, self._devices)


class PublicKeyOpener:
    """The key holder's side."""

    def __init__(self, layout: SumLayout) -> None:
        self._cipher = PublicKeySum(layout)

    def new_key_pair(self) -> KeyPair:
        """Draw keys; 60 or 110 KB public, 60 KB secret. Raises DependencyMissing."""
        return _seal(self._cipher.parameters).new_key_pair()

    def open(
        self, total: bytes, *, secret_key: bytes, context: SumContext, devices: int
    ) -> IntVector:
        """Open a total that *the caller added itself*; raises as ``SumOpener.open``."""
        ciphertexts = self._cipher.read_total(total, context, devices)
        parameters = self._cipher.parameters
        slots = _seal(parameters).decrypt(ciphertexts, secret_key, context.key_id)
        fields = parameters.unpack(slots)
        layout = self._cipher.layout
        check_range(fields, layout, devices)
        if np.any(fields[layout.count :]):
            raise SumOutOfRange("the total holds values where honest contributions hold none")
        return fields[: layout.count]


def _unpack_all(data: memoryview, primes: tuple[int, ...]) -> list[Residues]:
    """Split packed polynomials by prime, each prime's share being proportional to its bits."""
    unit = len(data) // sum(prime.bit_length() for prime in primes)
    residues, start = [], 0
    for prime in primes:
        end = start + unit * prime.bit_length()
        residues.append(unpack(data[start:end], prime=prime, degree=DEGREE))
        start = end
    return residues


_SEAL_HEADER: Final = struct.Struct("<HBBBBHQ")
"""Magic, length of this header, version (major, minor), compression, reserved, length of all."""

_UNCOMPRESSED: Final = 0
_ZSTANDARD: Final = 2

_PUBLIC: Final = struct.Struct("<8s32s")
_PUBLIC_MAGIC: Final = b"LLMOSPUB"
_SECRET: Final = struct.Struct("<8s32s8s")
_SECRET_MAGIC: Final = b"LLMOSSEC"


@dataclass(frozen=True, slots=True)
class _Encoding:
    """How SEAL writes objects of one kind: everything but their residues is constant."""

    head: bytes
    residues: int

    @classmethod
    def learnt_from(cls, saved: bytes, *, residues: int) -> _Encoding:
        """Take the constant part from an object that SEAL saved."""
        magic, size, major, minor, _, reserved, _ = _SEAL_HEADER.unpack_from(saved)
        members = _decompressed(saved)
        constant = members[: len(members) - 8 * residues]
        header = _SEAL_HEADER.pack(
            magic, size, major, minor, _UNCOMPRESSED, reserved, _SEAL_HEADER.size + len(members)
        )
        return cls(head=header + constant, residues=residues)

    def read(self, saved: bytes) -> Residues:
        """The residues of an object that SEAL saved."""
        members = _decompressed(saved)
        constant = self.head[_SEAL_HEADER.size :]
        if len(members) != len(constant) + 8 * self.residues or not members.startswith(constant):
            raise LlmOsError("this tenseal writes SEAL's objects in a way we do not know")
        return np.frombuffer(members, dtype="<u8", offset=len(constant))

    def write(self, residues: Residues) -> bytes:
        """An encoding that SEAL loads."""
        return self.head + residues.astype("<u8").tobytes()


def _decompressed(saved: bytes) -> bytes:
    """What SEAL, in this process, has just compressed."""
    if saved[5] != _ZSTANDARD:
        raise LlmOsError("this tenseal was built without Zstandard; install its wheel instead")
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return bytes(require(name, extra="crypto").decompress(saved[_SEAL_HEADER.size :]))


class _Scratch:
    """A file that only this process sees: SEAL's Python face reads and writes paths.

    In memory where the system offers that; else a temporary file of this user,
    which then holds keys and ciphertexts for a moment.
    """

    def __init__(self, file: IO[bytes], path: str) -> None:
        self._file = file
        self.path = path

    def saved(self, seal_object: Any) -> bytes:
        """What ``seal_object`` saves."""
        seal_object.save(self.path)
        descriptor = self._file.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)

    def load(self, seal_object: Any, context: Any, data: bytes) -> None:
        """Have ``seal_object`` load ``data``. Raises UndecodableMessage when SEAL refuses."""
        descriptor = self._file.fileno()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, data, 0)
        try:
            seal_object.load(context, self.path)
        except (ValueError, RuntimeError) as err:
            raise UndecodableMessage(f"SEAL refuses a {type(seal_object).__name__}: {err}") from err


@contextmanager
def _scratch() -> Iterator[_Scratch]:
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        with os.fdopen(os.memfd_create("seal"), "w+b", buffering=0) as file:
            yield _Scratch(file, f"/proc/self/fd/{file.fileno()}")
    else:
        with tempfile.NamedTemporaryFile(buffering=0) as named:
            yield _Scratch(named.file, named.name)


@lru_cache(maxsize=len(PARAMETERS))
def _seal(parameters: Parameters) -> _Seal:
    return _Seal(parameters)


class _Seal:
    """SEAL under one parameter set. Holds no key between calls."""

    def __init__(self, parameters: Parameters) -> None:
        """Set SEAL up and learn its encodings from a throw-away key.

        Raises:
            DependencyMissing: tenseal is not installed.
            LlmOsError: this tenseal's SEAL refuses the parameters or writes unknown encodings.
        """
        self._parameters = parameters
        self._api = api = require("tenseal.sealapi", extra="crypto")
        settings = api.EncryptionParameters(api.SCHEME_TYPE.BFV)
        settings.set_poly_modulus_degree(DEGREE)
        settings.set_coeff_modulus([api.Modulus(prime) for prime in parameters.key_primes])
        settings.set_plain_modulus(parameters.plain_modulus)
        # SEAL itself enforces 128-bit security here.
        self._context = api.SEALContext(settings, True, api.SEC_LEVEL_TYPE.TC128)
        if not self._context.parameters_set():
            reason = self._context.parameters_error_message()
            raise LlmOsError(f"SEAL refuses {parameters.name}: {reason}")
        self._encoder = api.BatchEncoder(self._context)
        per_prime = _POLYNOMIALS * DEGREE
        key = api.PublicKey()
        api.KeyGenerator(self._context).create_public_key(key)
        ciphertext = api.Ciphertext()
        api.Encryptor(self._context, key).encrypt_zero(ciphertext)
        with _scratch() as scratch:
            self._key_encoding = _Encoding.learnt_from(
                scratch.saved(key), residues=per_prime * len(parameters.key_primes)
            )
            saved = scratch.saved(ciphertext)
            self._encoding = _Encoding.learnt_from(
                saved, residues=per_prime * len(parameters.data_primes)
            )
            # Once per process: what we write is what SEAL reads.
            again = api.Ciphertext()
            scratch.load(again, self._context, self._encoding.write(self._encoding.read(saved)))
            if scratch.saved(again) != saved:
                raise LlmOsError("this tenseal reads SEAL's objects in a way we do not know")

    def new_key_pair(self) -> KeyPair:
        """Fresh keys."""
        generator = self._api.KeyGenerator(self._context)
        key = self._api.PublicKey()
        generator.create_public_key(key)
        primes = self._parameters.key_primes
        name = self._parameters.name.encode("ascii")
        with _scratch() as scratch:
            # Two polynomials, each modulo every prime in turn.
            numbers = self._key_encoding.read(scratch.saved(key))
            by_prime = numbers.reshape(_POLYNOMIALS, len(primes), DEGREE)
            public = _PUBLIC.pack(_PUBLIC_MAGIC, name) + b"".join(
                pack(by_prime[:, index], bits=prime.bit_length())
                for index, prime in enumerate(primes)
            )
            secret = _SECRET.pack(
                _SECRET_MAGIC, name, bytes.fromhex(key_id_of(public))
            ) + scratch.saved(generator.secret_key())
        return KeyPair(public=public, secret=secret)

    def encrypt(self, slots: Residues, public_key: bytes) -> list[Residues]:
        """Encrypt rows of slots; all polynomials by prime.

        Raises:
            UndecodableMessage: ``public_key`` is damaged.
            WrongKey: it belongs to another parameter set.
        """
        encryptor = self._api.Encryptor(self._context, self._public_key(public_key))
        primes = len(self._parameters.data_primes)
        numbers = np.empty((len(slots), _POLYNOMIALS, primes, DEGREE), dtype=np.uint64)
        plaintext, ciphertext = self._api.Plaintext(), self._api.Ciphertext()
        with _scratch() as scratch:
            for index, row in enumerate(slots):
                self._encoder.encode(row.tolist(), plaintext)
                encryptor.encrypt(plaintext, ciphertext)
                saved = self._encoding.read(scratch.saved(ciphertext))
                numbers[index] = saved.reshape(_POLYNOMIALS, primes, DEGREE)
        return [numbers[:, :, prime].reshape(-1, DEGREE) for prime in range(primes)]

    def decrypt(self, ciphertexts: list[Residues], secret_key: bytes, key_id: str) -> Residues:
        """Rows of slots.

        Raises:
            UndecodableMessage: ``secret_key`` is damaged.
            WrongKey: it belongs to another parameter set or another public key.
        """
        decryptor = self._api.Decryptor(self._context, self._secret_key(secret_key, key_id))
        numbers = np.stack([prime.reshape(-1, _POLYNOMIALS, DEGREE) for prime in ciphertexts], 2)
        slots = np.empty((len(numbers), DEGREE), dtype=np.uint64)
        plaintext = self._api.Plaintext()
        with _scratch() as scratch:
            for index, ciphertext_numbers in enumerate(numbers):
                ciphertext = self._api.Ciphertext()
                scratch.load(ciphertext, self._context, self._encoding.write(ciphertext_numbers))
                decryptor.decrypt(ciphertext, plaintext)
                slots[index] = self._encoder.decode_uint64(plaintext)
        return slots

    def _public_key(self, data: bytes) -> Any:
        primes = self._parameters.key_primes
        size = _PUBLIC.size + sum(
            packed_bytes(polynomials=_POLYNOMIALS, degree=DEGREE, bits=prime.bit_length())
            for prime in primes
        )
        if len(data) != size:
            raise UndecodableMessage(f"a public key of {len(data)} bytes, not {size}")
        self._check_head(*_PUBLIC.unpack_from(data), expected_magic=_PUBLIC_MAGIC)
        by_prime = _unpack_all(memoryview(data)[_PUBLIC.size :], primes)
        key = self._api.PublicKey()
        with _scratch() as scratch:
            scratch.load(key, self._context, self._key_encoding.write(np.stack(by_prime, 1)))
        return key

    def _secret_key(self, data: bytes, key_id: str) -> Any:
        if len(data) < _SECRET.size:
            raise UndecodableMessage("this is not a secret key")
        magic, name, key = _SECRET.unpack_from(data)
        self._check_head(magic, name, expected_magic=_SECRET_MAGIC)
        if key.hex() != key_id:
            raise WrongKey(f"the secret key does not belong to the public key {key_id}")
        secret = self._api.SecretKey()
        with _scratch() as scratch:
            scratch.load(secret, self._context, data[_SECRET.size :])
        return secret

    def _check_head(self, magic: bytes, name: bytes, *, expected_magic: bytes) -> None:
        if magic != expected_magic:
            raise UndecodableMessage("this is not a key, or not this half of one")
        if name.rstrip(b"\0") != self._parameters.name.encode("ascii"):
            raise WrongKey(f"the key was not made for {self._parameters.name}")
