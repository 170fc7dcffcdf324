"""One update out of several of which some may be hostile: what most of them agree on.

R1  the outcome depends on the updates and not on their order, not even in its rounding
R2  fewer updates than a rule needs for an honest majority are refused, never averaged
R3  besides the updates a few MiB are used, however many parameters there are

The rules bound what up to f hostile updates of any size can do. They do not find
out who is hostile, and hostile updates in the midst of honest ones stay in.
What holds for n single updates holds for the means of n groups, of which each
is hostile as soon as one of its members is.

Source:
    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal
    Statistical Rates", ICML 2018, definitions 1 and 2: coordinate-wise median
    and trimmed mean.
    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant
    Gradient Descent", NeurIPS 2017, sections 3 and 4: Krum's score, Multi-Krum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.errors import CohortTooSmall, NonFiniteUpdate
from shared.job import ServerTable
from shared.types import FloatVector

Updates = NDArray[np.float64]
"""One update in each row."""

_CHUNK: Final = 2**19
"""Values that are looked at together: 4 MiB, so that a chunk and its copy stay in a cache."""

_LARGEST: Final = 1e100
"""No update of a run comes near; sums of squares of smaller values cannot overflow."""


def robust_middle(server: ServerTable, updates: Updates) -> FloatVector:
    r"""The update that a robust rule makes of several, each counting alike.

    With n updates and :math:`f` = ``server.malicious``, per coordinate the
    median, or the mean without the f largest and the f smallest values. Or
    multi-Krum: the mean of the :math:`n - f` updates with the smallest sum of
    squared distances to their :math:`n - f - 2` nearest others.

    Against Flower 1.x: its median is this one; its trimmed mean drops
    :math:`\lfloor \beta n \rfloor` where ours drops f; its Multi-Krum keeps as
    many as it is told and weighs them by their example counts, which a hostile
    device states as it likes.

    Args:
        server: A robust rule, and how many updates may be hostile.
        updates: float64, shape (n, parameters). Left unmodified.

    Returns:
        One update, float64, shape (parameters,).

    Raises:
        CohortTooSmall: n is below ``server.fewest_updates``, so that hostile
            updates could be the majority of those that count.
        NonFiniteUpdate: an update holds NaN, infinity or a value beyond 1e100.
            NaN sorts as the largest number and would shift every middle.
        ValueError: the rule is none that compares updates.

    Example:
        >>> told = np.array([[1.0, 5.0], [2.0, 4.0], [1e9, -1e9]])
        >>> robust_middle(ServerTable(rule="median"), told).tolist()
        [2.0, 4.0]
    """
    present = len(updates)
    if present < server.fewest_updates:
        raise CohortTooSmall(present=present, required=server.fewest_updates)
    # Written so that NaN, which compares false with everything, is refused as well.
    if not all((np.abs(updates[:, part]) <= _LARGEST).all() for part in _parts(updates)):
        raise NonFiniteUpdate("an update to be compared is not finite, or far too large")
    match server.rule:
        case "median":
            # All but the middle one, or the middle two.
            return _trimmed_mean(updates, (present - 1) // 2)
        case "trimmed-mean":
            return _trimmed_mean(updates, server.malicious)
        case "multikrum":
            return _multi_krum(updates, server.malicious)
        case _:
            raise ValueError(f"{server.rule!r} does not compare updates")


def _parts(updates: Updates) -> Iterator[slice]:
    """Ranges of coordinates, each of about :data:`_CHUNK` values over all updates."""
    present, parameters = updates.shape
    width = max(1, _CHUNK // present)
    for start in range(0, parameters, width):
        yield slice(start, min(start + width, parameters))


def _ordered(updates: Updates, part: slice) -> Updates:
    """The values of some coordinates in ascending order, shape (coordinates, n)."""
    columns = np.array(updates[:, part].T, order="C")
    columns.sort(axis=1)
    return columns


def _trimmed_mean(updates: Updates, cut: int) -> FloatVector:
    """Per coordinate the mean without the ``cut`` largest and smallest values."""
    present, parameters = updates.shape
    middle = np.empty(parameters)
    for part in _parts(updates):
        # Summed in ascending order, whichever update a value came from (R1).
        middle[part] = _ordered(updates, part)[:, cut : present - cut].mean(axis=1)
    return middle


def _multi_krum(updates: Updates, malicious: int) -> FloatVector:
    """The mean of the n - f updates whose n - f - 2 nearest others are nearest."""
    # In an order of their own, so that sums round alike and ties fall alike (R1). Ties are
    # between scores that are equal to the last bit; there a digest decides.
    digests = [hashlib.sha256(np.ascontiguousarray(row).data).digest() for row in updates]
    order = sorted(range(len(updates)), key=digests.__getitem__)
    apart = _squared_distances(updates, order)
    np.fill_diagonal(apart, np.inf)  # nobody is its own neighbour
    apart.sort(axis=1)
    scores = apart[:, : len(updates) - malicious - 2].sum(axis=1)
    best = np.argsort(scores, kind="stable")[: len(updates) - malicious]
    total = np.zeros(updates.shape[1])
    for place in sorted(best):
        total += updates[order[place]]
    return total / len(best)


def _squared_distances(updates: Updates, order: list[int]) -> NDArray[np.float64]:
    """Squared Euclidean distances, shape (n, n), the updates taken in ``order``.

    From one matrix of products, |a|² + |b|² - 2 ab: n² d multiplications in the
    linear algebra library instead of as many in a loop. Lengths are taken from
    the coordinate-wise median, since the rounding error of a distance is
    relative to the lengths: from there honest updates are about as long as they
    are far apart, and no hostile one can move them all away.
    """
    centre = _trimmed_mean(updates, (len(updates) - 1) // 2)
    products = np.zeros((len(updates), len(updates)))
    for part in _parts(updates):
        block = updates[order, part] - centre[part]
        products += block @ block.T
    lengths = products.diagonal()
    return np.maximum(lengths[:, None] + lengths[None, :] - 2 * products, 0.0)
