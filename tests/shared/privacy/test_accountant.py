"""ε agrees with two other implementations, composes, and never understates."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError
from shared.privacy import accountant
from shared.privacy.accountant import (
    ORDERS,
    Fact,
    NonPrivate,
    SampledGaussian,
    SharedDiscreteGaussian,
    alone,
    epsilon,
    noise_multiplier_for,
)
from shared.types import FloatVector

DELTA = 1e-5

sigmas = st.floats(0.5, 20)
rates = st.one_of(st.just(1.0), st.floats(0.001, 1))
steps = st.integers(1, 2000)

# Orders that are not ours, so that a gap in our own grid would show.
OTHER_ORDERS = sorted(
    {1 + 10 ** (-k / 15) for k in range(8, 40)}
    | {1.33 + k / 12 for k in range(120)}
    | set(range(12, 100, 3))
    | {int(1.13**k) for k in range(38, 57)}
)
INTEGER_ORDERS = [*range(2, 80), *(int(1.05**k) for k in range(90, 145))]


@cache
def opacus_cost(sigma: float, rate: float, order: float) -> float:
    rdp = pytest.importorskip("opacus.accountants.analysis.rdp")
    return float(rdp.compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=float(order)))


def converted(orders: list[float], costs: list[float]) -> float:
    """The best ε over the orders, one at a time, by the published formula."""
    return max(
        0.0,
        min(
            cost + math.log((order - 1) / order) - (math.log(DELTA) + math.log(order)) / (order - 1)
            for order, cost in zip(orders, costs, strict=True)
        ),
    )


# Opacus' series needs up to 16,000 terms per order near q = 1/2, hence few examples.
@settings(max_examples=10, deadline=None)
@given(sigmas, rates, steps)
@example(0.5, 1.0, 2000)
@example(20.0, 0.001, 1)
@example(0.5, 0.1, 20)
def test_epsilon_is_that_of_opacus_over_a_finer_choice_of_orders(
    sigma: float, rate: float, count: int
) -> None:
    costs = [count * opacus_cost(sigma, rate, order) for order in OTHER_ORDERS]
    theirs = converted(OTHER_ORDERS, costs)
    ours = epsilon([SampledGaussian(sigma, rate, count)], delta=DELTA)
    assert ours <= 1.02 * theirs
    if theirs > 0.05:  # below, orders beyond the 1000 that Opacus can compute are better ones
        assert ours >= 0.995 * theirs


@settings(max_examples=40, deadline=None)
@given(sigmas, rates, steps)
@example(0.5, 1.0, 2000)
@example(20.0, 0.001, 1)
@example(3.484375, 0.001, 1)  # a small ε, whose best order is large and sharp
def test_epsilon_is_that_of_dp_accounting(sigma: float, rate: float, count: int) -> None:
    dp = pytest.importorskip("dp_accounting")
    gaussian = dp.GaussianDpEvent(sigma)
    step = dp.PoissonSampledDpEvent(rate, gaussian) if rate < 1 else gaussian
    # Integer orders only: at fractional ones its series gives up near q = 1/2 and loses orders.
    theirs = dp.rdp.RdpAccountant(INTEGER_ORDERS)
    theirs.compose(dp.SelfComposedDpEvent(step, count))
    ours = epsilon([SampledGaussian(sigma, rate, count)], delta=DELTA)
    assert ours <= 1.02 * theirs.get_epsilon(DELTA)
    best, order = theirs.get_epsilon_and_optimal_order(DELTA)
    if 8 < order < 800 and best > 0.1:  # fractional orders would hardly help it
        assert ours >= 0.995 * best


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("rate", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.8, 2.85])
def test_epsilon_is_never_less_than_the_exact_one(sigma: float, rate: float, count: int) -> None:
    """Against privacy loss distributions, which are tight to about 1e-3."""
    dp = pytest.importorskip("dp_accounting")
    pld = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    exact = pld.from_gaussian_mechanism(sigma, sampling_prob=rate).self_compose(count)
    assert dp is not None
    ours = epsilon([SampledGaussian(sigma, rate, count)], delta=DELTA)
    assert ours >= exact.get_epsilon_for_delta(DELTA) - 1e-3


@settings(max_examples=30, deadline=None)
@given(sigmas, st.floats(0.001, 0.999))
@example(0.5, 0.5)
@example(0.05, 0.3)
def test_quadrature_is_the_closed_form_at_integer_orders(sigma: float, rate: float) -> None:
    orders = np.array([2.0, 3.0, 5.0, 8.0, 11.0])
    exact = [accountant._log_moment(sigma, rate, int(order)) for order in orders]
    quadrature = accountant._log_moments_by_quadrature(sigma, rate, orders)
    assert quadrature == pytest.approx(exact, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 6.0])
def test_the_cost_at_fractional_orders_is_that_of_the_published_series(
    sigma: float, rate: float
) -> None:
    orders = [order for order in ORDERS if 1.2 < order < 4 and order % 1][::7]
    cost = dict(zip(ORDERS, accountant._cost_per_step(sigma, rate), strict=True))
    for order in orders:
        assert cost[order] == pytest.approx(opacus_cost(sigma, rate, order), rel=1e-7, abs=1e-11)


@given(sigmas, rates, st.integers(1, 200), st.integers(1, 200))
@settings(max_examples=20, deadline=None)
def test_facts_compose(sigma: float, rate: float, first: int, second: int) -> None:
    apart = [SampledGaussian(sigma, rate, first), SampledGaussian(sigma, rate, second)]
    together = [SampledGaussian(sigma, rate, first + second)]
    assert epsilon(apart, delta=DELTA) == pytest.approx(epsilon(together, delta=DELTA), rel=1e-12)


@given(sigmas, rates, steps)
@settings(max_examples=20, deadline=None)
def test_less_noise_more_sampling_and_more_steps_cost_more(
    sigma: float, rate: float, count: int
) -> None:
    cost = epsilon([SampledGaussian(sigma, rate, count)], delta=DELTA)
    assert epsilon([SampledGaussian(sigma * 1.1, rate, count)], delta=DELTA) <= cost + 1e-12
    assert epsilon([SampledGaussian(sigma, rate * 0.9, count)], delta=DELTA) <= cost + 1e-12
    assert epsilon([SampledGaussian(sigma, rate, count + 1)], delta=DELTA) >= cost
    assert epsilon([SampledGaussian(sigma, rate, count)], delta=DELTA / 10) >= cost


def test_nothing_released_costs_nothing() -> None:
    assert epsilon([], delta=DELTA) == 0
    assert epsilon([SampledGaussian(1.0, 0.5, 0)], delta=DELTA) == 0
    assert epsilon([SampledGaussian(0.0, 0.0, 9)], delta=DELTA) == 0


@pytest.mark.parametrize("fact", [NonPrivate("evaluation loss"), SampledGaussian(0.0, 0.1, 1)])
def test_one_release_without_a_guarantee_costs_everything(
    fact: NonPrivate | SampledGaussian,
) -> None:
    assert epsilon([SampledGaussian(5.0, 0.1, 1), fact], delta=DELTA) == math.inf


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 50), rates, st.integers(1, 500))
@example(8.0, 1.0, 20)
@example(5000.0, 0.5, 1)
def test_the_noise_found_is_enough_and_hardly_more_than_enough(
    wanted: float, rate: float, count: int
) -> None:
    sigma = noise_multiplier_for(epsilon=wanted, delta=DELTA, sample_rate=rate, steps=count)
    assert epsilon([SampledGaussian(sigma, rate, count)], delta=DELTA) <= wanted
    less = SampledGaussian(sigma * (1 - 1.1e-4), rate, count)
    assert epsilon([less], delta=DELTA) > wanted


def test_what_was_charged_before_calls_for_more_noise() -> None:
    before = SampledGaussian(4.0, 1.0, 10)
    asked = {"epsilon": 8.0, "delta": DELTA, "sample_rate": 1.0, "steps": 20}
    alone = noise_multiplier_for(**asked)  # type: ignore[arg-type]
    after = noise_multiplier_for(**asked, also=[before])  # type: ignore[arg-type]
    assert after > alone
    assert epsilon([before, SampledGaussian(after, 1.0, 20)], delta=DELTA) <= 8.0


@pytest.mark.parametrize("before", [SampledGaussian(0.7, 1.0, 20), NonPrivate("a leak")])
def test_no_noise_makes_up_for_a_budget_already_spent(before: SampledGaussian) -> None:
    with pytest.raises(ConfigError, match="cannot be met by any noise"):
        noise_multiplier_for(epsilon=8, delta=DELTA, sample_rate=1, steps=1, also=[before])


@pytest.mark.parametrize("wanted", [0.0, -1.0, math.nan])
def test_an_epsilon_that_nothing_meets_is_refused(wanted: float) -> None:
    with pytest.raises(ConfigError):
        noise_multiplier_for(epsilon=wanted, delta=DELTA, sample_rate=1, steps=1)


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ((-0.1, 0.5, 1), "noise_multiplier"),
        ((math.nan, 0.5, 1), "noise_multiplier"),
        ((math.inf, 0.5, 1), "noise_multiplier"),
        ((1.0, 1.01, 1), "sample_rate"),
        ((1.0, math.nan, 1), "sample_rate"),
        ((1.0, 0.5, -1), "steps"),
    ],
)
def test_numbers_that_describe_no_mechanism_are_refused(
    numbers: tuple[float, float, int], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        SampledGaussian(*numbers)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_delta_is_a_probability_strictly_between_0_and_1(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon([SampledGaussian(1.0, 1.0, 1)], delta=delta)
    with pytest.raises(ValueError, match="delta"):
        noise_multiplier_for(epsilon=1, delta=delta, sample_rate=1, steps=1)


def test_the_search_is_quick_enough_for_a_device() -> None:
    """It computes a cost at most 40 times, about 2 ms each."""
    accountant._cost_per_step.cache_clear()
    noise_multiplier_for(epsilon=3, delta=DELTA, sample_rate=0.037, steps=200)
    assert accountant._cost_per_step.cache_info().misses <= 40


# Noise that several devices add


def shared(**changes: Any) -> SharedDiscreteGaussian:
    fields: dict[str, Any] = {
        "variance": 640_000,
        "shares": 9,
        "sensitivity": 1500,
        "dimension": 1000,
        "reach": 8800,
        "most": 10,
        "sample_rate": 0.2,
        "steps": 50,
    }
    return SharedDiscreteGaussian(**(fields | changes))


def pmf_of_a_sum(variance: int, shares: int) -> FloatVector:
    """Probabilities of a sum of ``shares`` discrete Gaussians, centred, by convolution."""
    reach = 40
    x = np.arange(-reach, reach + 1)
    one = np.exp(-(x**2) / (2 * variance))
    one /= one.sum()
    total = one
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    return total


@pytest.mark.parametrize("variance", [1, 2, 5])
@pytest.mark.parametrize("shares", [1, 2, 4])
@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("shift", [1, 2])
def test_what_is_charged_for_a_shared_release_is_no_less_than_its_exact_divergence(
    variance: int, shares: int, rate: float, shift: int
) -> None:
    """Both directions, summed over every outcome, in one dimension."""
    fact = shared(
        variance=variance,
        shares=shares,
        sensitivity=shift,
        dimension=1,
        sample_rate=rate,
        steps=1,
    )
    without = np.pad(pmf_of_a_sum(variance, shares), shift)
    with_ = (1 - rate) * without + rate * np.roll(without, shift)
    seen = (without > 1e-250) & (with_ > 1e-250)
    cost = accountant._cost(fact)
    for order in (2, 3, 8):
        charged = float(cost[np.flatnonzero(order == ORDERS)[-1]])
        for p, q in ((with_, without), (without, with_)):
            exponents = order * np.log(p[seen]) + (1 - order) * np.log(q[seen])
            moment = float(np.logaddexp.reduce(exponents))
            assert moment / (order - 1) <= charged * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("rate", [0.05, 0.2, 1.0])
def test_wide_shares_cost_what_one_gaussian_of_their_width_costs(rate: float) -> None:
    fact = shared(sample_rate=rate)
    whole = SampledGaussian(noise_multiplier=3 * 800 / 1500, sample_rate=rate, steps=50)
    exact = epsilon([whole], delta=DELTA)
    assert exact <= epsilon([fact], delta=DELTA) <= 1.05 * exact


def test_a_device_s_own_share_protects_less_and_local_noise_the_same() -> None:
    local = SampledGaussian(noise_multiplier=2.0, sample_rate=1.0, steps=3)
    facts: list[Fact] = [shared(), local]
    assert epsilon(alone(facts), delta=DELTA) > 2 * epsilon(facts, delta=DELTA)
    assert alone([local]) == [local]
    assert epsilon([shared().alone()], delta=DELTA) == pytest.approx(
        epsilon([shared(shares=1)], delta=DELTA)
    )


def test_noise_that_wraps_often_is_no_privacy_and_seldom_costs_delta() -> None:
    assert epsilon([shared(reach=2000)], delta=DELTA) == math.inf
    assert epsilon([shared(reach=1)], delta=DELTA) == math.inf
    unwrapped = epsilon([shared(reach=10_000)], delta=DELTA)
    sometimes = shared(reach=6500)
    assert 0 < sometimes.tail * 50 < DELTA / 1000
    assert unwrapped < epsilon([sometimes], delta=DELTA) < 1.2 * unwrapped


def test_shared_releases_compose_with_each_other_and_with_local_noise() -> None:
    local = SampledGaussian(noise_multiplier=5.0, sample_rate=0.5, steps=3)
    apart = [shared(steps=20), shared(steps=30)]
    assert epsilon(apart, delta=DELTA) == pytest.approx(epsilon([shared()], delta=DELTA))
    assert epsilon([shared(), local], delta=DELTA) > epsilon([shared()], delta=DELTA)


@pytest.mark.parametrize(
    "wrong",
    [
        {name: value}
        for name in ("variance", "shares", "sensitivity", "dimension", "reach", "most")
        for value in (0, -1, 1.5, True)
    ]
    + [{"sample_rate": -0.1}, {"sample_rate": 1.1}, {"steps": -1}],
)
def test_shared_numbers_that_describe_no_mechanism_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        shared(**wrong)


# Devices hidden as a whole


@pytest.mark.parametrize("variance", [2, 9])
@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_a_record_costs_no_less_than_exactly_where_its_device_is_hidden(
    variance: int, rate: float
) -> None:
    """The worst pair in one dimension: with and without the record lie at opposite ends of the clip."""
    fact = shared(
        variance=variance,
        shares=2,
        sensitivity=2,
        dimension=1,
        sample_rate=rate,
        steps=1,
        unit="device",
    )
    silent = np.pad(pmf_of_a_sum(variance, 2), 2)
    with_, without = ((1 - rate) * silent + rate * np.roll(silent, shift) for shift in (2, -2))
    seen = (with_ > 1e-250) & (without > 1e-250)
    cost = accountant._cost(fact, "record")
    for order in (2, 3, 8):
        charged = float(cost[np.flatnonzero(order == ORDERS)[-1]])
        exponents = order * np.log(with_[seen]) + (1 - order) * np.log(without[seen])
        moment = float(np.logaddexp.reduce(exponents))
        assert 0 < moment / (order - 1) <= charged * (1 + 1e-9)


def test_unsampled_a_record_costs_as_if_it_reached_twice_as_far() -> None:
    hidden = shared(sample_rate=1.0, unit="device", steps=3)
    as_far = SampledGaussian(hidden.noise_multiplier / 2, 1.0, 3)
    assert epsilon([hidden], delta=DELTA) == pytest.approx(epsilon([as_far], delta=DELTA), rel=0.04)


def test_a_release_that_hides_devices_hides_records_and_not_the_other_way_round() -> None:
    hidden = shared(unit="device")
    assert epsilon([hidden], delta=DELTA, unit="device") == epsilon([shared()], delta=DELTA)
    assert epsilon([hidden], delta=DELTA) > epsilon([hidden], delta=DELTA, unit="device")
    assert math.isfinite(epsilon([hidden, shared()], delta=DELTA))
    assert epsilon([hidden, shared()], delta=DELTA) > epsilon([hidden], delta=DELTA)
    for of_records in (shared(), SampledGaussian(5.0, 1.0, 1)):
        assert epsilon([hidden, of_records], delta=DELTA, unit="device") == math.inf
    with pytest.raises(ValueError, match="unit must be"):
        shared(unit="town")
