"""Our accountant against Opacus' and Google's, over a grid of noise, sampling, steps and δ.

Rényi accountants differ in the orders they try, so the others are given finer ones than ours.
Beside them stand two that follow the whole distribution of the privacy loss, Opacus' PRV and
Google's PLD: they show what composing in Rényi orders gives away.
"""

from __future__ import annotations

import itertools
import logging
import math
import warnings
from collections.abc import Callable
from typing import Any, Final

from edge_agent.prv import epsilon_prv
from shared.errors import PrivacyError
from shared.extras import require
from shared.privacy.accountant import SampledGaussian, epsilon
from sim.bench.bars import Bar, told

NOISES: Final = (0.6, 1.0, 2.0, 5.0)
RATES: Final = (0.001, 0.01, 0.2, 1.0)
STEPS: Final = (1, 100, 2000)
DELTAS: Final = (1e-5, 1e-7)

_FRACTIONS: Final = [1 + 10 ** (-k / 12) for k in range(1, 36)] + [
    1 + k / 16 for k in range(1, 160)
]
_INTEGERS: Final = [*range(2, 128), *sorted({int(128 * 1.004**k) for k in range(648)})]
_OPACUS_LIMIT: Final = 1000
"""Beyond this order its binomials overflow."""

_FOLLOWED: Final = 50.0
"""Beyond this ε a distribution takes minutes and gigabytes to follow, and protects nobody."""


def bench_accountant(*, progress: Callable[[str], None]) -> dict[str, Any]:
    """Compute every ε of the grid by every accountant.

    Raises:
        DependencyMissing: Opacus or dp-accounting is not installed.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # a line for each order its series gives up
    rdp = require("opacus.accountants.analysis.rdp", extra="bench")
    dp = require("dp_accounting", extra="bench")
    rows = []
    grid = list(itertools.product(NOISES, RATES, STEPS, DELTAS))
    for number, (noise, rate, steps, delta) in enumerate(grid, start=1):
        progress(f"setting {number} of {len(grid)}")
        fact = SampledGaussian(noise, rate, steps)
        ours = epsilon([fact], delta=delta)
        rows.append(
            {
                "noise_multiplier": noise,
                "sample_rate": rate,
                "steps": steps,
                "delta": delta,
                "ours": ours,
                "opacus_rdp": _opacus(rdp, fact, delta),
                "dp_accounting_rdp": _google(dp, fact, delta),
                "opacus_prv": _prv(fact, delta) if ours <= _FOLLOWED else None,
                "dp_accounting_pld": _pld(dp, fact, delta) if ours <= _FOLLOWED else None,
            }
        )
    return told("accountant", bars_of(rows), rows=rows)


def bars_of(rows: list[dict[str, Any]]) -> list[Bar]:
    """How far ours lies from the two Rényi accountants, at worst, as shares of theirs.

    Above, each of them is a bar. Below, ours is held against the lower of the two: where one
    stops at order 1000 and the best order is larger, a lower ε is no understatement.
    """
    above = {
        name: max(row["ours"] / row[name] for row in rows) - 1
        for name in ("opacus_rdp", "dp_accounting_rdp")
    }
    below = 1 - min(row["ours"] / min(row["opacus_rdp"], row["dp_accounting_rdp"]) for row in rows)
    return [
        Bar("ours above Opacus' RDP, at most", above["opacus_rdp"], 0.02, at_least=False),
        Bar(
            "ours above dp-accounting's RDP, at most",
            above["dp_accounting_rdp"],
            0.02,
            at_least=False,
        ),
        Bar("ours below both, at most", below, 0.005, at_least=False),
    ]


def _opacus(rdp: Any, fact: SampledGaussian, delta: float) -> float:
    orders = sorted({*_FRACTIONS, *(o for o in map(float, _INTEGERS) if o <= _OPACUS_LIMIT)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the best order is the first or last of them
        cost = rdp.compute_rdp(
            q=fact.sample_rate,
            noise_multiplier=fact.noise_multiplier,
            steps=fact.steps,
            orders=orders,
        )
        found, _ = rdp.get_privacy_spent(orders=orders, rdp=cost, delta=delta)
    return float(found)


def _google(dp: Any, fact: SampledGaussian, delta: float) -> float:
    accountant = dp.rdp.RdpAccountant(sorted({*_FRACTIONS, *_INTEGERS}))
    return float(accountant.compose(_event(dp, fact)).get_epsilon(delta))


def _prv(fact: SampledGaussian, delta: float) -> float | None:
    try:
        return epsilon_prv([fact], delta=delta)
    except PrivacyError:
        return None


def _pld(dp: Any, fact: SampledGaussian, delta: float) -> float | None:
    accountant = dp.pld.PLDAccountant(value_discretization_interval=1e-3)
    found = float(accountant.compose(_event(dp, fact)).get_epsilon(delta))
    return found if math.isfinite(found) else None


def _event(dp: Any, fact: SampledGaussian) -> Any:
    step = dp.GaussianDpEvent(fact.noise_multiplier)
    if fact.sample_rate < 1:
        step = dp.PoissonSampledDpEvent(fact.sample_rate, step)
    return dp.SelfComposedDpEvent(step, fact.steps)
