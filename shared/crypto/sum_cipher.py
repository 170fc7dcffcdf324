"""What every scheme for encrypted exact sums promises.

A device encrypts one vector of small integers into one *frame*. Whoever adds
frames learns nothing from them. Whoever opens learns the sum, and only the sum
if it added the frames itself:

    C1  a total of K frames opens to the exact sum of their K vectors, for every
        K up to ``SumLayout.max_devices`` and values up to ±``SumLayout.magnitude``
    C2  the order of additions does not matter: the same frames give a total whose
        dump is the same to the byte
    C3  a frame is bound to a run, a round and a key, has one exact length known in
        advance, and is refused whole, with the total as it was before
    C4  adding needs no secret, and no operation of an adder accepts one
    C5  a total that no honest cohort can reach is not handed out

**C3 is not authentication.** The digest in a frame finds accidents; anybody who
knows the public key can make a valid frame. Who sent it is for the signed
contribution record around it, and what an opener may open is for the key
holder: a crafted *total* reveals the secret key (see ``public_key``), so it
opens only totals that it added itself out of contributions it verified.

**Room for one-shot schemes.** In a scheme with one-time keys (OPA,
arXiv 2410.22303; Willow, IACR 2024/936) each device encrypts under a key of its
own against a common public polynomial, and adds to its frame that key,
encrypted to a committee. Such a scheme fits these contracts as it stands:
``public_key`` holds the polynomial and the committee's encryption keys; a frame
is the ciphertext together with the encrypted one-time key; :class:`Total` adds
both parts, and its dump carries the sum of ciphertexts and the encrypted sum of
keys. The committee's quorum turns the latter into *the sum of the one-time
keys*, which is what ``secret_key`` then is: a few kilobytes that open this one
total and nothing else. So no caller may assume that a secret key exists before
the total does, that one party holds it, or that it opens single frames.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from shared.errors import ConfigError
from shared.privacy.quantiser import WIDTHS
from shared.types import IntVector, RoundNumber, RunId

HEADROOM_BITS: Final = 8
"""Every value is added in a field this much wider than itself."""

CAPACITY: Final = 2**HEADROOM_BITS
"""Most contributions that the fields hold.

K values of magnitude 2^(b-1) - 1 sum to at most 2^8 (2^(b-1) - 1) < 2^(b+7) for
K ≤ 2^8: a signed field of b + 8 bits holds the sum, for every width b.
"""

MAX_DEVICES: Final = 240
"""Most contributions in one total: a sixteenth of every field stays out of honest reach.

The range check (C5) lives on that part. A crafted contribution makes the slots of
a ciphertext random, and 4096 slots of two fields all fall within the reach of K
devices with chance (K / 256)^8192: 2^-762 for 240, but 0.8 for 256, whose sums
of 16-bit values may have nearly any value. The limit is the same in clear, so that
a run can change its scheme and nothing else.
"""


class Scheme(StrEnum):
    """How updates are kept from whoever adds them."""

    CLEAR = "clear"
    PUBLIC_KEY = "public-key"


@dataclass(frozen=True, slots=True)
class SumLayout:
    """The vectors that are added: how long, how wide, how many at most.

    Attributes:
        count: Values in one vector, ≥ 1.
        bits: Bits of one value, sign included: 8, 12 or 16.
        max_devices: Most contributions in one total, 2 to :data:`MAX_DEVICES`.

    Raises:
        ConfigError: any of them is not; all problems together.
    """

    count: int
    bits: int
    max_devices: int

    def __post_init__(self) -> None:
        problems = []
        if self.count < 1:
            problems.append(f"count: must be at least 1, not {self.count}")
        if self.bits not in WIDTHS:
            problems.append(f"bits: must be one of {WIDTHS}, not {self.bits}")
        if not 2 <= self.max_devices <= MAX_DEVICES:
            problems.append(
                f"max_devices: must be 2 to {MAX_DEVICES}, not {self.max_devices}; "
                "with more, one value's sum could run into its neighbour's"
            )
        if problems:
            raise ConfigError(problems, source="sum layout")

    @property
    def magnitude(self) -> int:
        """Values lie within ± this."""
        return int(2 ** (self.bits - 1) - 1)


def key_id_of(public_key: bytes) -> str:
    """Name a public key: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class SumContext:
    """What every frame and every total is bound to.

    Attributes:
        run: The run.
        round: Its round.
        key_id: Name of the round's public key.
        group: Tells the totals of one round's disjoint groups apart where they are
            kept. Frames are made before groups are drawn, and know nothing of it.
    """

    run: RunId
    round: RoundNumber
    key_id: str
    group: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.round < 2**64:
            raise ValueError(f"round must be a non-negative 64-bit number, not {self.round}")
        if not re.fullmatch(r"[0-9a-f]{16}", self.key_id):
            raise ValueError(f"key_id must be 16 hexadecimal digits, not {self.key_id!r}")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The keys of one round: everybody encrypts with one half, its holder opens with the other."""

    public: bytes = field(repr=False)
    secret: bytes = field(repr=False)

    @property
    def key_id(self) -> str:
        """The public half's name."""
        return key_id_of(self.public)

    def __repr__(self) -> str:
        return f"KeyPair(key_id={self.key_id!r}, secret=<hidden>)"


class Total(Protocol):
    """A running sum of frames. One thread at a time."""

    @property
    def devices(self) -> int:
        """How many frames are in it."""
        ...

    def add(self, frame: bytes) -> None:
        """Add one contribution; after a refusal the total is as it was (C3).

        Raises:
            UndecodableMessage: not a contribution frame of this scheme, or it
                holds what no encryption produces.
            WrongKey: made for another key, run, round or parameter set.
            ShapeMismatch: another number of values.
            DigestMismatch: the payload is not the one that was framed.
            SumOutOfRange: ``max_devices`` frames are in the total already.
        """
        ...

    def dump(self) -> bytes:
        """Serialise the total, bound to the same context; the same bytes in any order (C2).

        Raises:
            CohortTooSmall: nothing was added yet.
        """
        ...


class SumCipher(Protocol):
    """The side of devices and adders. Holds no key between calls."""

    @property
    def scheme(self) -> Scheme:
        """Which scheme this is."""
        ...

    @property
    def layout(self) -> SumLayout:
        """The vectors it encrypts."""
        ...

    @property
    def parameter_set(self) -> str:
        """Everything two parties must share to understand each other, as a short name."""
        ...

    def frame_bytes(self) -> int:
        """Exact length of one contribution frame, so that others are refused unread."""
        ...

    def encrypt(self, values: IntVector, *, public_key: bytes, context: SumContext) -> bytes:
        """Encrypt one vector into one frame.

        Args:
            values: Shape ``(layout.count,)``, each within ±``layout.magnitude``.
            public_key: The public half that ``context.key_id`` names.
            context: What the frame is for.

        Raises:
            ShapeMismatch: another number of values.
            ValueError: a value lies outside ±``layout.magnitude``.
            WrongKey: ``public_key`` is not the one that ``context`` names, or of
                another parameter set.
            UndecodableMessage: ``public_key`` is damaged.
        """
        ...

    def begin(self, context: SumContext) -> Total:
        """Start an empty total."""
        ...


class SumOpener(Protocol):
    """The key holder's side."""

    def new_key_pair(self) -> KeyPair:
        """Draw keys from the operating system's randomness."""
        ...

    def open(
        self, total: bytes, *, secret_key: bytes, context: SumContext, devices: int
    ) -> IntVector:
        """Open a total's dump that *the caller added itself*; see this module's promises.

        Args:
            total: What :meth:`Total.dump` returned.
            secret_key: The half that belongs to ``context.key_id``.
            context: What the total must be for.
            devices: How many contributions the caller put into it.

        Returns:
            The sum, shape ``(layout.count,)``.

        Raises:
            UndecodableMessage, WrongKey, ShapeMismatch, DigestMismatch: as
                :meth:`Total.add`; a frame is not a total.
            SumOutOfRange: a sum lies outside ±``devices * magnitude``, or a
                place that stays empty in honest frames does not (C5).
        """
        ...


class Adder(Protocol):
    """Adds frames in a process that may die; see ``shared.crypto.sum_worker``.

    Every method raises ChildDied when the process ended: its totals are then gone,
    and are folded again from the frames' files.
    """

    def begin(self, layout: SumLayout, scheme: Scheme, context: SumContext) -> None:
        """Start an empty total for ``context``."""
        ...

    def add(self, context: SumContext, path: Path) -> int:
        """Fold one frame; returns devices so far. Raises as :meth:`Total.add`."""
        ...

    def dump(self, context: SumContext) -> bytes:
        """The total's bytes."""
        ...

    def discard(self, context: SumContext) -> None:
        """Forget a total."""
        ...


def cipher_for(scheme: Scheme, layout: SumLayout) -> SumCipher:
    """The devices' and adders' side of ``scheme``."""
    match scheme:
        case Scheme.CLEAR:
            from shared.crypto.clear import ClearSum

            return ClearSum(layout)
        case Scheme.PUBLIC_KEY:
            from shared.crypto.public_key import PublicKeySum

            return PublicKeySum(layout)


def opener_for(scheme: Scheme, layout: SumLayout) -> SumOpener:
    """The key holder's side of ``scheme``."""
    match scheme:
        case Scheme.CLEAR:
            from shared.crypto.clear import ClearOpener

            return ClearOpener(layout)
        case Scheme.PUBLIC_KEY:
            from shared.crypto.public_key import PublicKeyOpener

            return PublicKeyOpener(layout)
