"""A round's result is what the papers say, computed from nothing but the opened sum."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.federation.server_update import (
    Evaluation,
    ServerState,
    federated_evaluation,
    gate,
    server_step,
    share_saturated,
    weighted_mean,
)
from shared.errors import GateRefused, ShapeMismatch
from shared.job import ServerTable
from tests.support.coordinator_plans import small_plan

PLAN = small_plan()
COUNT = PLAN.layout.count
BOUND = PLAN.layout.magnitude

PARAMETERS = PLAN.parameters
"""Behind them stand the weight and the share of saturated values."""

vectors = st.lists(st.integers(-BOUND, BOUND), min_size=PARAMETERS, max_size=PARAMETERS)
weights = st.integers(1, BOUND)


@given(st.lists(st.tuples(vectors, weights), min_size=1, max_size=5))
def test_the_mean_is_the_sum_of_weighted_updates_over_the_sum_of_weights(
    devices: list[tuple[list[int], int]],
) -> None:
    total = np.array([[*vector, weight, 9] for vector, weight in devices], np.int64).sum(axis=0)
    mean = weighted_mean(total, PLAN)
    # In fractions, so that only the last float operations of the code under test can differ.
    value_range, levels = Fraction(PLAN.value_range), BOUND
    share = Fraction(sum(weight for _, weight in devices), levels)
    for index in range(PARAMETERS):
        exact = sum(vector[index] for vector, _ in devices) * value_range / levels / share
        assert mean[index] == pytest.approx(float(exact), rel=1e-12, abs=0)


def test_the_mean_of_one_device_is_its_update() -> None:
    weight = BOUND // 2
    total = np.array([*range(-3, PARAMETERS - 3), weight, 9], np.int64)
    update = PLAN.update_quantiser.dequantise(total[:PARAMETERS]) / (weight / BOUND)
    assert weighted_mean(total, PLAN) == pytest.approx(update)


@pytest.mark.parametrize("weight", [0, -1])
def test_without_weight_there_is_no_mean(weight: int) -> None:
    total = np.zeros(COUNT, np.int64)
    total[PARAMETERS] = weight
    with pytest.raises(GateRefused, match="weights"):
        weighted_mean(total, PLAN)


@pytest.mark.parametrize("count", [0, COUNT - 1, COUNT + 1])
def test_a_sum_of_another_length_is_refused(count: int) -> None:
    with pytest.raises(ShapeMismatch, match=f"the run has {COUNT} values"):
        weighted_mean(np.ones(count, np.int64), PLAN)


floats = st.floats(-10, 10)


@given(
    means=st.lists(st.lists(floats, min_size=3, max_size=3), min_size=1, max_size=6),
    rate=st.floats(0.01, 10),
    beta1=st.floats(0, 0.99),
    beta2=st.floats(0, 0.99),
    tau=st.floats(1e-4, 1),
)
def test_fedadam_is_algorithm_2_of_reddi_et_al(
    means: list[list[float]], rate: float, beta1: float, beta2: float, tau: float
) -> None:
    rule = ServerTable(rule="fedadam", learning_rate=rate, beta1=beta1, beta2=beta2, tau=tau)
    state = ServerState.initial()
    m, v = [0.0] * 3, [tau * tau] * 3
    for mean in means:
        change, state = server_step(rule, state, np.array(mean))
        # The state travels through a blob between any two rounds.
        state = ServerState.from_bytes(state.to_bytes())
        for j, delta in enumerate(mean):
            m[j] = beta1 * m[j] + (1 - beta1) * delta
            v[j] = beta2 * v[j] + (1 - beta2) * delta * delta
            assert change[j] == pytest.approx(rate * m[j] / (math.sqrt(v[j]) + tau), rel=1e-9)


@given(mean=st.lists(floats, min_size=3, max_size=3), rate=st.floats(0.01, 10))
def test_fedavg_takes_the_mean_and_keeps_no_state(mean: list[float], rate: float) -> None:
    rule = ServerTable(rule="fedavg", learning_rate=rate)
    change, state = server_step(rule, ServerState.initial(), np.array(mean))
    assert change.tolist() == [rate * value for value in mean]
    assert state.to_bytes() == ServerState.initial().to_bytes() == b""


@given(st.lists(st.floats(allow_nan=False), max_size=5))
def test_moments_survive_their_bytes(values: list[float]) -> None:
    state = ServerState(np.array(values), np.array(values[::-1]))
    again = ServerState.from_bytes(state.to_bytes())
    assert again.momentum.tolist() == values
    assert again.variance.tolist() == values[::-1]


def change_of_norm(norm: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    change = np.zeros(PARAMETERS)
    change[2] = -norm
    return change


EVALUATED = small_plan(evaluation={"share": 0.1})
SIZE = EVALUATED.parameters


@given(score=st.integers(-BOUND, 2 * BOUND), count=st.integers(-BOUND, 2 * BOUND))
def test_an_evaluation_is_the_quotient_of_the_last_two_sums(score: int, count: int) -> None:
    total = np.array([*range(SIZE), BOUND, 9, score, count], np.int64)
    found = federated_evaluation(total, EVALUATED)
    step = Fraction(EVALUATED.job.training.examples_cap) / BOUND
    if count * step < 1:
        assert found is None, "noise has left fewer than one example"
        return
    share = min(max(Fraction(score, count), Fraction(0)), Fraction(1))
    assert found is not None
    assert found.accuracy == pytest.approx(float(share), abs=1e-12)
    assert found.examples == pytest.approx(float(count * step))


def test_the_weight_is_found_in_front_of_the_evaluation() -> None:
    total = np.array([*([BOUND] * SIZE), BOUND // 2, 9, 1, 2], np.int64)
    mean = weighted_mean(total, EVALUATED)
    assert mean == pytest.approx([EVALUATED.value_range / (BOUND // 2 / BOUND)] * SIZE)


def test_a_run_that_does_not_evaluate_has_no_evaluation() -> None:
    assert federated_evaluation(np.ones(COUNT, np.int64), PLAN) is None


@pytest.mark.parametrize("length", [SIZE + 1, SIZE + 2, SIZE + 3, SIZE + 5])
def test_a_sum_of_another_length_says_nothing(length: int) -> None:
    with pytest.raises(ShapeMismatch):
        federated_evaluation(np.ones(length, np.int64), EVALUATED)


def test_one_example_is_enough_and_a_hair_less_is_not() -> None:
    plan = small_plan(evaluation={"share": 0.1}, training={"examples_cap": BOUND})
    total = np.array([*([0] * SIZE), BOUND, 9, 1, 1], np.int64)
    assert federated_evaluation(total, plan) == Evaluation(1.0, 1.0)
    total[-1] = 0
    assert federated_evaluation(total, plan) is None


@given(shares=st.lists(st.integers(0, BOUND), min_size=1, max_size=8))
def test_the_share_saturated_is_the_devices_mean(shares: list[int]) -> None:
    total = np.zeros(COUNT, np.int64)
    total[PARAMETERS] = 5
    total[PARAMETERS + 1] = sum(shares)
    exact = Fraction(sum(shares), BOUND * len(shares))
    assert share_saturated(total, len(shares), PLAN) == pytest.approx(float(exact), abs=1e-12)


@pytest.mark.parametrize(("told", "shown"), [(-BOUND, 0.0), (2 * BOUND, 1.0)])
def test_a_hostile_share_saturated_stays_a_share(told: int, shown: float) -> None:
    total = np.zeros(COUNT, np.int64)
    total[PARAMETERS + 1] = told
    assert share_saturated(total, 1, PLAN) == shown


@given(st.lists(floats, min_size=3, max_size=3))
def test_robust_rules_step_along_what_the_updates_agreed_on(agreed: list[float]) -> None:
    for name in ("median", "trimmed-mean", "multikrum"):
        rule = ServerTable(rule=name, learning_rate=0.5)
        change, state = server_step(rule, ServerState.initial(), np.array(agreed))
        assert change.tolist() == [0.5 * value for value in agreed]
        assert state.to_bytes() == b""


LIMIT = PLAN.update_norm * BOUND


def test_a_change_at_the_bound_passes_and_one_past_it_does_not() -> None:
    gate(change_of_norm(LIMIT), PLAN)
    with pytest.raises(GateRefused, match="bound"):
        gate(change_of_norm(math.nextafter(LIMIT, math.inf)), PLAN)


def test_the_bound_grows_with_the_servers_learning_rate() -> None:
    faster = small_plan(server={"learning_rate": 3.0})
    gate(change_of_norm(3 * LIMIT), faster)
    with pytest.raises(GateRefused, match="bound"):
        gate(change_of_norm(3.001 * LIMIT), faster)


def test_an_adaptive_rule_has_no_such_bound() -> None:
    gate(change_of_norm(1e9 * LIMIT), small_plan(server={"rule": "fedadam"}))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", ["fedavg", "fedadam"])
def test_a_change_that_is_not_finite_is_refused(bad: float, rule: str) -> None:
    with pytest.raises(GateRefused, match="not finite"):
        gate(change_of_norm(bad), small_plan(server={"rule": rule}))


def test_a_change_of_nothing_is_refused_and_the_smallest_is_not() -> None:
    with pytest.raises(GateRefused, match="changed nothing"):
        gate(change_of_norm(0.0), PLAN)
    gate(change_of_norm(1e-100), PLAN)
