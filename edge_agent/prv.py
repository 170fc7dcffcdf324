"""A second opinion on ε: Opacus' accountant of privacy loss random variables (PRV).

It is tighter than Rényi's orders and slower, needs the extra ``train``, and knows sampled
Gaussian noise only. For showing: what an owner allows is always held against the ε of
:mod:`shared.privacy.accountant`, which a device without torch can compute too.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable

from shared.errors import PrivacyError
from shared.extras import require
from shared.privacy.accountant import Fact, NonPrivate, SampledGaussian


def epsilon_prv(facts: Iterable[Fact], *, delta: float, error: float = 0.01) -> float:
    """Return an upper bound on ε at ``delta`` for ``facts`` together; ``inf`` without noise.

    Args:
        facts: What was released.
        delta: In (0, 1).
        error: How far above the true ε the bound may lie.

    Raises:
        DependencyMissing: the extra ``train`` is not installed.
        PrivacyError: a fact is of noise that several devices shared, which this accountant
            does not know, or so much was released that it cannot compute.

    Source:
        Gopi, Lee, Wutschitz, "Numerical Composition of Differential Privacy", NeurIPS 2021.
        https://arxiv.org/abs/2106.02848
    """
    steps: Counter[tuple[float, float]] = Counter()
    for fact in facts:
        if isinstance(fact, NonPrivate):
            return math.inf
        if not isinstance(fact, SampledGaussian):
            raise PrivacyError("the PRV accountant does not know noise that devices shared")
        if fact.steps and fact.noise_multiplier == 0:
            return math.inf
        if fact.sample_rate > 0:
            steps[fact.noise_multiplier, fact.sample_rate] += fact.steps
    history = [(noise, rate, count) for (noise, rate), count in steps.items() if count]
    if not history:
        return 0.0
    accountant = require("opacus.accountants", extra="train").PRVAccountant()
    accountant.history = history
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of overflow far in the tails, which are cut off
            found = float(accountant.get_epsilon(delta, eps_error=error))
    except (ArithmeticError, RuntimeError, ValueError, MemoryError) as err:
        raise PrivacyError(f"the PRV accountant gives no bound here: {err}") from err
    if not math.isfinite(found):
        raise PrivacyError("the PRV accountant gives no bound here")
    return found
