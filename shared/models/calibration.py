"""When an answer may stay on the device: confidence that means what it says.

C1  with probability at least ``certified_with`` over the calibration examples, the answers
    at or above the threshold are wrong at most ``target_error`` of the time, on questions
    drawn as those examples were
C2  where nothing can be certified the threshold is None, and everything is asked elsewhere
C3  looking for the best threshold costs none of that: the thresholds are tested in an order
    that was fixed beforehand, and the first failure ends it

One part of the examples (a fixed draw) fits the temperature and says where the order
begins; the other, which neither has seen, does the testing. Nothing is promised about
questions of another kind than the examples.

Source:
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2
    (temperature); Clopper and Pearson, Biometrika 26, 1934 (the bound); Angelopoulos et al.,
    "Learn then Test", 2021, section 2.3 and appendix (fixed-sequence testing, and learning the
    sequence from separate data). https://arxiv.org/abs/2110.01052
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shared.config import Field, Table
from shared.errors import DataError
from shared.types import FloatMatrix, FloatVector

UNKNOWN: Final = -1
"""The target of an example whose label the adapter does not have: any local answer is wrong."""

_LEARNING_SHARE: Final = 0.25
_SPLIT_SEED: Final = 20_110_152

_TEMPERATURES: Final = (0.05, 20.0)
"""Examples that are all answered right would otherwise drive the temperature to 0."""

GRID: Final[tuple[float, ...]] = (
    *(0.999999, 0.99999, 0.9999, 0.9995),
    *(
        step / 1000
        for steps in (range(999, 990, -1), range(990, 900, -5), range(900, -1, -20))
        for step in steps
    ),
)
"""Thresholds from strict to loose; fine at the top, where good adapters put most answers."""


class CurvePoint(Table):
    """What one threshold would do, measured on the part that was set aside for testing.

    Attributes:
        threshold: Least confidence of a local answer.
        local_share: Share of questions answered on the device.
        accuracy: Share of those answered right; 1 where there is none.
        error_bound: Upper Clopper-Pearson bound of their error, for this threshold alone.
    """

    threshold: float = Field(ge=0, le=1)
    local_share: float = Field(ge=0, le=1)
    accuracy: float = Field(ge=0, le=1)
    error_bound: float = Field(ge=0, le=1)


class Calibration(Table):
    """From logits to "answer here" or "ask".

    Attributes:
        temperature: Logits are divided by it.
        threshold: Least confidence of a local answer; None if nothing can be certified (C2).
        target_error: Most errors among local answers, as a share.
        certified_with: Confidence in that, over the draw of the examples (C1).
        examples: How many examples it rests on, both parts together.
        curve: From strict to loose, over all of :data:`GRID`.
    """

    temperature: float = Field(gt=0, le=1e6)
    threshold: float | None = Field(ge=0, le=1)
    target_error: float = Field(gt=0, lt=1)
    certified_with: float = Field(gt=0, lt=1)
    examples: int = Field(ge=0)
    curve: tuple[CurvePoint, ...] = Field((), max_length=1000)

    @property
    def local_share(self) -> float:
        """Share of the calibration questions that stay on the device."""
        return max(
            (p.local_share for p in self.curve if p.threshold == self.threshold), default=0.0
        )


def confidence(logits: FloatMatrix | FloatVector, temperature: float) -> FloatVector:
    """Return softmax(logits / temperature) along the last axis, float64.

    >>> confidence(np.array([0.0, 0.0], np.float32), 2.0).tolist()
    [0.5, 0.5]
    """
    scaled = np.asarray(logits, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def fit_temperature(
    logits: FloatMatrix | FloatVector, targets: Sequence[int] | NDArray[Any]
) -> float:
    """Return the temperature under which the targets are likeliest, within fixed limits.

    The mean negative log-likelihood is convex in 1 / T, so its derivative
    ``E_softmax[logit] - logit[target]`` crosses zero once and bisection finds where.

    Args:
        logits: (n, C), C > 1.
        targets: n indices; rows with :data:`UNKNOWN` say nothing here and are left out.

    Returns:
        T > 0; 1 if no row says anything.
    """
    rows, truth = _checked(logits, targets)
    known = truth != UNKNOWN
    rows, truth = rows[known], truth[known]
    if not len(rows):
        return 1.0
    right = rows[np.arange(len(rows)), truth]

    def slope(inverse: float) -> float:
        expected = (confidence(rows, 1 / inverse) * rows).sum(axis=1)
        return float((expected - right).mean())

    low, high = 1 / _TEMPERATURES[1], 1 / _TEMPERATURES[0]
    for _ in range(60):
        middle = math.sqrt(low * high)
        if slope(middle) < 0:
            low = middle
        else:
            high = middle
    return 1 / math.sqrt(low * high)


def error_bound(errors: int, count: int, *, level: float) -> float:
    """Return the one-sided upper Clopper-Pearson bound of a share.

    The p at which seeing at most ``errors`` in ``count`` has probability ``1 - level``: in
    a share ``level`` of all samples the true share is no higher.

    >>> round(error_bound(0, 149, level=0.95), 4)
    0.0199

    Raises:
        ValueError: there cannot be as many errors, or the level is not between 0 and 1.
    """
    if not 0 <= errors <= count or not 0 < level < 1:
        raise ValueError(f"no bound for {errors} errors in {count} at level {level}")
    return float(_bounds(np.array([errors]), np.array([count]), level)[0])


def calibrate(
    logits: FloatMatrix | FloatVector,
    targets: Sequence[int] | NDArray[Any],
    *,
    target_error: float = 0.02,
    level: float = 0.95,
) -> Calibration:
    """Fit the temperature and certify the loosest threshold that the examples allow.

    The order of the tests runs from strict to loose, beginning where the learning part
    suggests that a test is likeliest to succeed: at the strictest thresholds of all too few
    questions remain to certify anything. Each test asks whether the Clopper-Pearson bound at
    ``level`` is at most ``target_error``; the first that fails ends the walk, and therefore
    the chance that the threshold chosen has a higher error is at most ``1 - level``: it is
    only chosen if the first threshold in the order whose error is too high passed its own
    test, whose false-alarm rate is ``1 - level``.

    Args:
        logits: (n, C), C > 1, of examples that the adapter was not trained on.
        targets: n indices; :data:`UNKNOWN` for what the adapter has no label for, which
            counts as an error wherever it would be answered locally.
        target_error: Most errors among local answers, in (0, 1).
        level: Confidence, in (0, 1).

    Raises:
        DataError: there are too few examples to divide, or they are malformed.
    """
    if not (0 < target_error < 1 and 0 < level < 1):
        raise DataError("target error and level lie between 0 and 1")
    rows, truth = _checked(logits, targets)
    if len(truth) < 8:
        raise DataError(f"calibration needs at least 8 examples, there are {len(truth)}")
    # A draw, since files are often sorted by label; the same one every time.
    order = np.random.Generator(np.random.PCG64(_SPLIT_SEED)).permutation(len(truth))
    learning, testing = np.split(order, [max(2, round(_LEARNING_SHARE * len(order)))])
    temperature = fit_temperature(rows[learning], truth[learning])

    def tallies(part: NDArray[Any]) -> list[tuple[int, int]]:
        """Errors and questions at or above every threshold of the grid."""
        probabilities = confidence(rows[part], temperature)
        best, wrong = probabilities.max(axis=1), probabilities.argmax(axis=1) != truth[part]
        return [(int(wrong[best >= t].sum()), int((best >= t).sum())) for t in GRID]

    first = _likeliest(tallies(learning), len(testing) / len(learning), level)
    tested = tallies(testing)
    errors, counts = np.transpose(tested)
    bounds = _bounds(errors, counts, level).tolist()
    threshold = None
    for position in range(first, len(GRID)):
        if bounds[position] > target_error:
            break
        threshold = GRID[position]
    return Calibration(
        temperature=temperature,
        threshold=threshold,
        target_error=target_error,
        certified_with=level,
        examples=len(truth),
        curve=tuple(
            CurvePoint(
                threshold=at,
                local_share=count / len(testing),
                accuracy=1 - wrong / count if count else 1.0,
                error_bound=bound,
            )
            for at, (wrong, count), bound in zip(GRID, tested, bounds, strict=True)
        ),
    )


def _likeliest(learnt: Sequence[tuple[int, int]], scale: float, level: float) -> int:
    """Position in the grid where the test part, ``scale`` times as large, should bound best."""
    errors, counts = np.round(np.transpose(learnt) * scale).astype(np.int64)
    return int(np.argmin(_bounds(errors, counts, level)))


def _bounds(errors: NDArray[Any], counts: NDArray[Any], level: float) -> FloatVector:
    """:func:`error_bound` for many at once, by bisection on the binomial's lower tail."""
    terms = np.arange(int(errors.max()) + 1)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, counts.max() + 1)))])
    rest = np.maximum(counts[:, None] - terms, 0)
    ways = log_factorials[counts][:, None] - log_factorials[terms] - log_factorials[rest]
    ways[terms > errors[:, None]] = -np.inf
    low, high = errors / np.maximum(counts, 1), np.ones(len(errors))
    for _ in range(45):
        # Away from 0 and 1, where 0 times an infinite logarithm would be no number.
        middle = np.clip((low + high) / 2, 1e-300, 1 - 1e-16)
        logs = ways + terms * np.log(middle)[:, None] + rest * np.log1p(-middle)[:, None]
        below = np.exp(logs).sum(axis=1) > 1 - level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(errors == counts, 1.0, high)


def _checked(
    logits: FloatMatrix | FloatVector, targets: Sequence[int] | NDArray[Any]
) -> tuple[FloatVector, NDArray[np.int64]]:
    rows, truth = np.asarray(logits, np.float64), np.asarray(targets, np.int64)
    if rows.ndim != 2 or rows.shape[1] < 2 or truth.shape != rows.shape[:1]:
        raise DataError(f"logits of shape {rows.shape} do not fit {truth.shape} targets")
    if not np.isfinite(rows).all():
        raise DataError("a logit is not finite")
    if len(truth) and not (truth.min() >= UNKNOWN and truth.max() < rows.shape[1]):
        raise DataError(f"a target is not one of the {rows.shape[1]} labels")
    return rows, truth
