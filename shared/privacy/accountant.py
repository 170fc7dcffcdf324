"""What a list of releases costs: ε as a function of facts, in Rényi differential privacy.

    A1  ε never understates: it is an upper bound on the true cost, to double precision
    A2  facts compose: the ε of several runs is the ε of their facts together
    A3  what cannot be accounted for is ε = ∞, a value and not an oversight

The unit of privacy is one record added or removed, or, where it is asked for, one device
with all its records. A fact type never changes its meaning, since ledgers written years
ago are read with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal

import numpy as np

from shared.errors import ConfigError
from shared.types import FloatVector

_FRACTIONAL_ORDERS: Final = np.array(
    [1 + 10 ** (-k / 8) for k in range(24, 8, -1)]
    + [1 + k / 20 for k in range(2, 20)]
    + [1 + k / 10 for k in range(11, 100) if k % 10]
)
"""Down to 1.001 for little noise over many steps; steps of 0.05, then 0.1, for the usual range."""

_INTEGER_ORDERS: Final = np.array([*range(2, 64), *(int(64 * 1.03 ** (k / 2)) for k in range(223))])
"""Up to 1701, 1.5 % apart: with little sampling and much noise the best order is large and sharp."""

ORDERS: Final[FloatVector] = np.concatenate([_FRACTIONAL_ORDERS, _INTEGER_ORDERS]).astype(float)
"""The Rényi orders α at which every cost is computed; ε is the best over them."""

_SAMPLING_HELPS_FROM: Final = 0.05
"""Below this noise multiplier ε is in the thousands; the unsampled cost bounds it well enough."""

_MULTIPLIER_LIMIT: Final = 1e6
"""More noise than any release survives; a search that reaches it has no answer."""


Unit = Literal["record", "device"]
"""What is added or removed between neighbours: one record, or one device with all its records."""


@dataclass(frozen=True, slots=True)
class SampledGaussian:
    """``steps`` releases of a sum of clipped gradients over a fresh Poisson sample.

    Every record enters each sample independently with probability ``sample_rate``;
    a record changes the sum by at most the clip norm S in L2; the release adds
    Gaussian noise with standard deviation ``noise_multiplier`` · S to every coordinate.
    """

    noise_multiplier: float
    """σ / S, dimensionless; 0 is no privacy."""
    sample_rate: float
    """q in [0, 1]; 1 means that every record takes part in every step."""
    steps: int

    def __post_init__(self) -> None:
        """Refuse numbers that describe no mechanism.

        Raises:
            ValueError: a number lies outside its domain.
        """
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise ValueError(f"noise_multiplier must be >= 0, not {self.noise_multiplier}")
        if not 0 <= self.sample_rate <= 1:
            raise ValueError(f"sample_rate must lie in [0, 1], not {self.sample_rate}")
        if self.steps < 0:
            raise ValueError(f"steps must be >= 0, not {self.steps}")


@dataclass(frozen=True, slots=True)
class NonPrivate:
    """A release without any guarantee: ε = ∞ from here on."""

    reason: str


@dataclass(frozen=True, slots=True)
class SharedDiscreteGaussian:
    """``steps`` releases of an integer sum to which several devices each added discrete noise.

    Every record of a device enters each of its samples independently with ``sample_rate``
    and changes the sum by at most ``sensitivity`` in L2. At least ``shares`` devices add
    independent discrete Gaussian noise of variance ``variance`` to every coordinate; nothing
    but the sum is seen. A value wraps where noise exceeds ``reach``.
    """

    variance: int
    """σ² of one device's share, ≥ 1."""
    shares: int
    """Fewest devices' noise in a sum that is opened; 1 is what a device's own share gives."""
    sensitivity: int
    """L2 norm of what one record adds, ≥ 1, in the same integers."""
    dimension: int
    """Values in the vector, ≥ 1."""
    reach: int
    """Noise of more than ± this may wrap, and shows."""
    most: int
    """Most devices in a sum, each of whose wraps would show."""
    sample_rate: float
    """q in [0, 1]."""
    steps: int
    unit: Unit = "record"
    """What ``sensitivity`` and ``sample_rate`` are about: one record, or the whole device."""

    def __post_init__(self) -> None:
        """Refuse numbers that describe no mechanism.

        Raises:
            ValueError: a number lies outside its domain.
        """
        if self.unit not in ("record", "device"):
            raise ValueError(f"unit must be record or device, not {self.unit!r}")
        for name in ("variance", "shares", "sensitivity", "dimension", "reach", "most"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number >= 1, not {value!r}")
        if not 0 <= self.sample_rate <= 1:
            raise ValueError(f"sample_rate must lie in [0, 1], not {self.sample_rate}")
        if self.steps < 0:
            raise ValueError(f"steps must be >= 0, not {self.steps}")

    def alone(self) -> SharedDiscreteGaussian:
        """The same release as whoever knows all other devices' parts of the sum sees it."""
        return replace(self, shares=1)

    @property
    def noise_multiplier(self) -> float:
        """The σ / S of the Gaussian mechanism whose Rényi costs bound this one's from above.

        A sum of n discrete Gaussians is nearly one; what it lacks is τ. The mechanism is
        ½ε²-concentrated private with the ε whose inverse this is.

        Source:
            Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated
            Learning with Secure Aggregation", ICML 2021, theorem 1 and proposition 14.
            https://arxiv.org/abs/2102.06387
        """
        total = math.sqrt(self.shares * self.variance)
        ks = range(1, self.shares)
        tau = 10 * sum(math.exp(-2 * math.pi**2 * self.variance * k / (k + 1)) for k in ks)
        ratio = self.sensitivity / total
        return 1 / min(
            math.sqrt(ratio**2 + tau * self.dimension / 2),
            ratio + tau * math.sqrt(self.dimension),
        )

    @property
    def tail(self) -> float:
        """Chance that any noise of one step exceeds ``reach``: that the sum shows more than it.

        The discrete Gaussian's tail is at most the Gaussian's bound 2 exp(-x²/2σ²) (Canonne,
        Kamath, Steinke 2020, corollary 7). Of one device's part alone nothing more shows:
        what wrapped is a function of value and noise.
        """
        if self.shares == 1:
            return 0.0
        one = 2 * math.exp(-(self.reach**2) / (2 * self.variance))
        return min(1.0, self.most * self.dimension * one)


Fact = SampledGaussian | SharedDiscreteGaussian | NonPrivate


def alone(facts: Iterable[Fact]) -> list[Fact]:
    """``facts`` as the key holder, or all other devices of the sums together, could see them."""
    return [fact.alone() if isinstance(fact, SharedDiscreteGaussian) else fact for fact in facts]


def epsilon(facts: Iterable[Fact], *, delta: float, unit: Unit = "record") -> float:
    """Return the ε at ``delta`` of all ``facts`` together; ``inf`` if one of them is not private.

    The Rényi costs add up order by order, and each order α converts by

        ε(α) = RDP(α) + log(1 - 1/α) - (log δ + log α) / (α - 1)

    of which the smallest holds, and never less than 0. Discrete noise is bounded at integer
    orders only, and the chance that it wraps is taken off δ, for either of two neighbours.

    Args:
        facts: Releases that touched the same records, in any order.
        delta: δ in (0, 1): the probability mass that ε may not cover.
        unit: What is added or removed. A release that hides devices hides a record as well,
            at more ε: with and without the record are each as far from no device at all.
            A release that hides records hides no device.

    Raises:
        ValueError: ``delta`` lies outside (0, 1).

    Source:
        Mironov, "Rényi Differential Privacy", CSF 2017, proposition 1 (composition);
        Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy",
        NeurIPS 2020, proposition 12 (conversion); the same formula as in Opacus.

    >>> round(epsilon([SampledGaussian(2.85, 1.0, 20)], delta=1e-5), 1)
    8.0
    """
    facts = list(facts)
    cost, tail = _composed(facts, unit), _tail(facts)
    if not tail:
        return _converted(cost, delta)
    # At half of δ ε is larger than it will be, so this takes off more than enough.
    at_most = _converted(cost, delta / 2)
    lost = tail * (1 + math.exp(min(at_most, 700.0)))
    return _converted(cost, delta - lost) if lost <= delta / 2 else math.inf


def noise_multiplier_for(
    *, epsilon: float, delta: float, sample_rate: float, steps: int, also: Iterable[Fact] = ()
) -> float:
    """Return the smallest noise multiplier whose releases stay within ``epsilon`` at ``delta``.

    The answer is within a relative 1e-4 of the smallest one, on the side of more noise,
    so that ``epsilon([*also, SampledGaussian(answer, sample_rate, steps)]) <= epsilon``.

    Args:
        epsilon: The total allowed, > 0.
        delta: δ in (0, 1).
        sample_rate: Poisson sampling rate of every step, in [0, 1].
        steps: Number of releases, at least 1.
        also: Facts already charged to the same records.

    Raises:
        ConfigError: no noise is enough: ``also`` alone costs as much, or ``epsilon`` is not > 0.
        ValueError: ``delta``, ``sample_rate`` or ``steps`` lies outside its domain.
    """
    if steps < 1:
        raise ValueError(f"steps must be >= 1, not {steps}")
    before = _composed(also)

    def enough(noise_multiplier: float) -> bool:
        added = _cost(SampledGaussian(noise_multiplier, sample_rate, steps))
        return _converted(before + added, delta) <= epsilon

    if not enough(_MULTIPLIER_LIMIT):
        problem = (
            f"epsilon = {epsilon:g} at delta = {delta:g} cannot be met by any noise: "
            f"what was released before already costs {_converted(before, delta):.4g}"
        )
        raise ConfigError([problem], source="privacy settings")
    low, high = 0.0, 1.0
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def _composed(facts: Iterable[Fact], unit: Unit = "record") -> FloatVector:
    """Return the Rényi cost of all facts together at each of :data:`ORDERS`."""
    total = np.zeros_like(ORDERS)
    for fact in facts:
        total += _cost(fact, unit)
    return total


def _converted(cost: FloatVector, delta: float) -> float:
    """Return ε at ``delta`` of a Rényi cost given at each of :data:`ORDERS`."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), not {delta}")
    if not cost.any():
        return 0.0
    bounds = cost + np.log1p(-1 / ORDERS) - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1)
    return max(0.0, float(bounds.min()))


def _cost(fact: Fact, unit: Unit = "record") -> FloatVector:
    if isinstance(fact, NonPrivate):
        return np.full_like(ORDERS, math.inf)
    if fact.steps == 0:
        return np.zeros_like(ORDERS)
    hides: Unit = fact.unit if isinstance(fact, SharedDiscreteGaussian) else "record"
    if unit == "device" and hides == "record":
        return np.full_like(ORDERS, math.inf)
    if unit == "record" and hides == "device":
        by_way_of_nothing = _cost_by_way_of_nothing(fact.noise_multiplier, fact.sample_rate)
        return np.asarray(fact.steps * by_way_of_nothing)
    cost = np.asarray(fact.steps * _cost_per_step(fact.noise_multiplier, fact.sample_rate))
    if isinstance(fact, SharedDiscreteGaussian):
        # At integer orders sampling's cost is a sum over those below, each of which a bound may
        # take the place of (Mironov, Talwar, Zhang 2019, section 3.3, and theorem 5 for the
        # other direction: mirroring the integers swaps the two). In between nothing is known.
        cost[: len(_FRACTIONAL_ORDERS)] = math.inf
    return cost


@lru_cache(maxsize=256)
def _cost_by_way_of_nothing(noise_multiplier: float, sample_rate: float) -> FloatVector:
    """The Rényi cost of one record where one step hides a whole device, at each order.

    The weak triangle inequality, from a device with the record over none to one without it:
    D_α(P, Q) ≤ (α - ½)/(α - 1) D_2α(P, R) + D_{2α-1}(R, Q), at integer orders. Without
    sampling that is four times the cost, as for a reach twice as long.

    Source:
        Mironov, "Rényi Differential Privacy", CSF 2017, proposition 11.
    """
    cost = np.full_like(ORDERS, math.inf)
    for at in range(len(_FRACTIONAL_ORDERS), len(ORDERS)):
        order = int(ORDERS[at])
        there, back = (
            _cost_at(noise_multiplier, sample_rate, higher) for higher in (2 * order, 2 * order - 1)
        )
        cost[at] = (order - 0.5) / (order - 1) * there + back
    return cost


def _cost_at(noise_multiplier: float, sample_rate: float, order: int) -> float:
    """The Rényi divergence of one step at an integer order of any size."""
    if sample_rate == 0:
        return 0.0
    whole = order / (2 * noise_multiplier**2)
    if sample_rate == 1:
        return whole
    sampled = _log_moment(noise_multiplier, sample_rate, order) / (order - 1)
    return min(max(sampled, 0.0), whole)


def _tail(facts: Iterable[Fact]) -> float:
    return sum(fact.tail * fact.steps for fact in facts if isinstance(fact, SharedDiscreteGaussian))


@lru_cache(maxsize=256)
def _cost_per_step(noise_multiplier: float, sample_rate: float) -> FloatVector:
    """Return the Rényi divergence of one step at each of :data:`ORDERS`."""
    if sample_rate == 0:
        return np.zeros_like(ORDERS)
    if noise_multiplier == 0:
        return np.full_like(ORDERS, math.inf)
    whole = np.asarray(ORDERS / (2 * noise_multiplier**2))
    if sample_rate == 1 or noise_multiplier < _SAMPLING_HELPS_FROM:
        return whole
    log_moments = np.concatenate(
        [
            _log_moments_by_quadrature(noise_multiplier, sample_rate, _FRACTIONAL_ORDERS),
            [_log_moment(noise_multiplier, sample_rate, int(order)) for order in _INTEGER_ORDERS],
        ]
    )
    # Sampling only ever helps; rounding may push a divergence near 0 just below it.
    return np.asarray(np.clip(log_moments / (ORDERS - 1), 0.0, whole))


def _log_moment(sigma: float, q: float, order: int) -> float:
    """Return log E[((1-q) + q·N(1,σ²)/N(0,σ²))^α] under N(0,σ²), for an integer α.

    The binomial expansion in closed form: Σₖ C(α,k) (1-q)^(α-k) q^k exp((k²-k)/2σ²).

    Source:
        Mironov, Talwar, Zhang, "Rényi Differential Privacy of the Sampled Gaussian
        Mechanism", 2019, section 3.3. https://arxiv.org/abs/1908.10530
    """
    k = np.arange(order + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, order + 1)))])
    log_terms = (
        log_factorial[order]
        - log_factorial
        - log_factorial[::-1]
        + (order - k) * math.log1p(-q)
        + k * math.log(q)
        + (k * k - k) / (2 * sigma**2)
    )
    largest = log_terms.max()
    return float(largest + np.log(np.exp(log_terms - largest).sum()))


def _log_moments_by_quadrature(sigma: float, q: float, orders: FloatVector) -> FloatVector:
    """Return the same moments for orders of any kind, by the trapezoidal rule.

    The integrand is analytic within πσ² of the real line and falls off like a Gaussian,
    so the rule with step h errs by exp(-2π·πσ²/h) and exp(-2(πσ/h)²): below double
    precision for the steps taken here. It takes the place of the series in
    section 3.3 of the same paper, which near q = 1/2 needs 16,000 alternating terms at
    orders close to 1 (dp_accounting gives up after 1000 and loses those orders); where
    the series converges the two agree to 1e-9, which the tests check through Opacus.
    """
    step = min(sigma / 8, sigma**2 / 2)
    # (1-q+q·r)^α N(0,σ²) is at most a mixture of N(k,σ²), 0 <= k <= α: twelve σ cover it.
    z = np.arange(-12 * sigma, orders.max() + 12 * sigma, step)
    ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2 * z - 1) / (2 * sigma**2))
    log_density = -(z**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    exponents = np.multiply.outer(orders, ratio) + log_density
    largest = exponents.max(axis=1)
    return np.asarray(
        largest + np.log(np.exp(exponents - largest[:, None]).sum(axis=1)) + math.log(step)
    )
