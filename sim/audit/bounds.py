"""What guesses about training data prove about ε, whatever made the guesses.

B1  a bound holds with the stated confidence for every mechanism: one that is (ε, δ)-private
is accused of more than its ε at most once in 1 / (1 - confidence) audits
B2  better guesses never give a smaller bound
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from shared.types import FloatVector

_MOST: Final = 50.0
"""An ε beyond which nothing is told apart; bounds end here."""


def lower_bound(
    *, canaries: int, guesses: int, right: int, delta: float, confidence: float = 0.95
) -> float:
    """Return the ε that an audit in one training run has proved.

    Each canary was in the training data or not by its own fair coin. Of all of them the
    auditor guesses some, and abstains from the others. An (ε, δ)-private mechanism lets

        P[right ≥ v] ≤ β + α · 2 m δ

    guesses be right, where β = P[Binomial(r, e^ε / (1 + e^ε)) ≥ v] and α is the largest
    P[v > Binomial(r, ·) ≥ v - i] / i. The bound is the largest ε that this rules out.

    Args:
        canaries: m, how many coins there were.
        guesses: r, how many were guessed; fixed before looking.
        right: v of those.
        delta: The δ at which ε is meant.
        confidence: Chance at which the bound must hold.

    Raises:
        ValueError: the numbers are no outcome of an audit.

    Source:
        Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023,
        theorem 5.2. https://arxiv.org/abs/2305.08846

    >>> round(lower_bound(canaries=1000, guesses=100, right=95, delta=0.0), 2)
    2.17
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError(f"{right} of {guesses} guesses of {canaries} cannot be right")
    if not (0 <= delta < 1 and 0 < confidence < 1):
        raise ValueError("delta and confidence must be probabilities")

    def chance(epsilon: float) -> float:
        masses = _binomial(guesses, 1 / (1 + math.exp(-epsilon)))
        at_least = float(masses[right:].sum())
        below = np.cumsum(masses[:right][::-1])  # P[v > W ≥ v - i] for i = 1, 2, …
        alpha = float(np.max(below / np.arange(1, right + 1))) if right else 0.0
        return min(1.0, at_least + alpha * 2 * canaries * delta)

    return _largest(lambda epsilon: chance(epsilon) < 1 - confidence)


def threshold_bound(
    *,
    members: int,
    found: int,
    strangers: int,
    accused: int,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """Return the ε that a membership test with one threshold has proved.

    An (ε, δ)-private mechanism has TPR ≤ e^ε FPR + δ, and 1 - FPR ≤ e^ε (1 - TPR) + δ. Both
    rates are replaced by the ends of their Clopper-Pearson intervals.

    Args:
        members: How many training examples were tested.
        found: How many of them were taken for such.
        strangers: How many others.
        accused: How many of those were.
        delta: The δ at which ε is meant.
        confidence: Chance at which the bound must hold.

    Source:
        Jagielski, Ullman, Oprea, "Auditing Differentially Private Machine Learning", NeurIPS
        2020, section 3; Yeom et al., "Privacy Risk in Machine Learning", CSF 2018 (the test).
    """
    if not (0 <= found <= members and 0 <= accused <= strangers):
        raise ValueError("more were found than there are")
    miss = (1 - confidence) / 2
    tpr, fpr = _at_least(found, members, miss), 1 - _at_least(strangers - accused, strangers, miss)
    best = 0.0
    for likely, unlikely in ((tpr, fpr), (1 - fpr, 1 - tpr)):
        if likely - delta > unlikely > 0:
            best = max(best, math.log((likely - delta) / unlikely))
    return best


def _at_least(successes: int, trials: int, miss: float) -> float:
    """The lower end of Clopper and Pearson's interval for a chance."""
    if successes == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if float(_binomial(trials, middle)[successes:].sum()) < miss:
            low = middle
        else:
            high = middle
    return low


def _largest(is_ruled_out: Callable[[float], bool]) -> float:
    if not is_ruled_out(0.0):
        return 0.0
    low, high = 0.0, _MOST
    for _ in range(60):
        middle = (low + high) / 2
        if is_ruled_out(middle):
            low = middle
        else:
            high = middle
    return low


def _binomial(trials: int, chance: float) -> FloatVector:
    """Probabilities of 0 to ``trials`` successes, (trials + 1,)."""
    k = np.arange(trials + 1)
    if chance <= 0 or chance >= 1:
        return np.asarray((k == (trials if chance >= 1 else 0)).astype(float))
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    log_choose = log_factorial[-1] - log_factorial - log_factorial[::-1]
    return np.asarray(
        np.exp(log_choose + k * math.log(chance) + (trials - k) * math.log1p(-chance))
    )
