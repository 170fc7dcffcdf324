"""Who is asked to take part in a round."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from shared.types import DeviceId, RoundNumber, RunId


def cohort_stream(seed: int, run: RunId, number: RoundNumber) -> np.random.Generator:
    """The generator that draws one round's cohort: the same after a restart."""
    material = hashlib.sha256(f"cohort/{seed}/{run}/{number}".encode()).digest()
    return np.random.default_rng(int.from_bytes(material, "big"))


def invitations(wanted: int, *, dropout: float) -> int:
    """How many devices to invite so that about ``wanted`` report.

    >>> invitations(10, dropout=0.2)
    13

    Args:
        wanted: Updates the round should have.
        dropout: Share of invited devices that did not report so far, in [0, 1);
            at most half of the invitations are planned to be lost.
    """
    return math.ceil(wanted / (1.0 - min(dropout, 0.5)))


def draw_cohort(
    present: Sequence[DeviceId],
    wanted: int,
    *,
    most: int,
    dropout: float,
    rng: np.random.Generator,
) -> tuple[DeviceId, ...]:
    """Draw a cohort uniformly without replacement, over-inviting for drop-outs.

    The draw depends on the *set* of present devices, not on the order in which
    they showed up.

    Args:
        present: Devices that could take part.
        wanted: Updates the round should have; 0 invites everyone present.
        most: No more than this many are ever invited: the sum's fields hold no more.
        dropout: Share of invited devices that did not report so far.
        rng: Stream of this round.
    """
    ordered = sorted(set(present))
    count = min(most, len(ordered) if wanted == 0 else invitations(wanted, dropout=dropout))
    if count >= len(ordered):
        return tuple(ordered)
    chosen = rng.choice(len(ordered), size=count, replace=False)
    return tuple(ordered[index] for index in sorted(chosen))
