"""Random disjoint groups, drawn so that nobody can choose its neighbours.

Group-wise sums let the server outvote poisoned groups while each device stays
hidden among its group. That needs a draw which neither the coordinator nor a
hostile device can steer:

    G1  the holder commits to a secret seed before anybody says to take part
    G2  the set of ciphertexts is fixed before the seed is shown
    G3  the groups follow from seed and set alone, so everybody can check them
    G4  sizes differ by one at most

A device cannot search for a digest that falls in a certain group, nor the
coordinator for a set: both are bound before they could know the seed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from typing import Final

from shared.errors import UndecodableMessage
from shared.types import Digest

SEED_BYTES: Final = 32
_DIGEST_BYTES: Final = hashlib.sha256().digest_size
_DRAW: Final = b"llmos/v1/groups/draw\x00"
_COMMIT: Final = b"llmos/v1/groups/commit\x00"


def new_seed() -> bytes:
    """What one round's groups are drawn from; secret until the set is fixed."""
    return os.urandom(SEED_BYTES)


def commitment_to(seed: bytes) -> str:
    """What is shown of ``seed`` beforehand (G1)."""
    return hashlib.sha256(_COMMIT + seed).hexdigest()


def drawn_groups(
    seed: bytes, digests: Collection[Digest], groups: int
) -> tuple[tuple[Digest, ...], ...]:
    """Deal ``digests`` to ``groups`` groups (G3, G4).

    Each digest is placed by SHA-256 of seed and digest, a random order to
    whoever does not know the seed, and dealt out in turn.

    Returns:
        The groups, each in ascending order of its digests.
    """
    order = sorted(
        digests, key=lambda digest: hashlib.sha256(_DRAW + seed + bytes.fromhex(digest)).digest()
    )
    return tuple(tuple(sorted(order[group::groups])) for group in range(groups))


def joined(digests: Sequence[Digest]) -> bytes:
    """Digests behind each other, 32 bytes each, as messages carry them."""
    return b"".join(bytes.fromhex(digest) for digest in digests)


def parted(data: bytes) -> list[Digest]:
    """What :func:`joined` wrote.

    Raises:
        UndecodableMessage: not whole digests, or one of them twice.
    """
    if len(data) % _DIGEST_BYTES:
        raise UndecodableMessage("a list of digests has 32 bytes for each")
    found = [
        Digest(data[at : at + _DIGEST_BYTES].hex()) for at in range(0, len(data), _DIGEST_BYTES)
    ]
    if len(set(found)) != len(found):
        raise UndecodableMessage("a list of digests names one twice")
    return found
