"""Accuracy and loss are the textbook's, example by example."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ShapeMismatch
from shared.models.adapter import Adapter, AdapterShape
from shared.models.calibration import UNKNOWN
from shared.models.classification import LOSS_LIMIT, evaluate, positions
from shared.types import Digest

BASE = Digest("ab" * 32)
LABELS = ("a", "b", "c")
FRESH = Adapter.initial(AdapterShape(labels=LABELS, features=4), BASE)


def adapter_of(seed: int) -> Adapter:
    rng = np.random.default_rng(seed)
    return FRESH.moved(rng.normal(size=15) * 0.3)


@given(
    seed=st.integers(0, 999),
    labels=st.lists(st.sampled_from([*LABELS, "unknown"]), min_size=1, max_size=12),
)
def test_results_are_those_of_counting_one_by_one(seed: int, labels: list[str]) -> None:
    adapter = adapter_of(seed)
    features = np.random.default_rng(seed).normal(size=(len(labels), 4)).astype(np.float32)
    groups = ["en" if index % 3 else "zh" for index in range(len(labels))]
    result = evaluate(adapter, features, labels, groups)

    predicted = adapter.predict(features)
    right = [one == other for one, other in zip(predicted, labels, strict=True)]
    losses = []
    for row, label in zip(adapter.logits(features).tolist(), labels, strict=True):
        if label == "unknown":
            losses.append(LOSS_LIMIT)
        else:
            total = math.log(sum(math.exp(value) for value in row))
            losses.append(min(LOSS_LIMIT, total - row[LABELS.index(label)]))
    assert result.count == len(labels)
    assert result.overall == sum(right) / len(right)
    assert result.loss == pytest.approx(sum(losses) / len(losses), rel=1e-9)
    assert set(result.by_group) == set(groups)
    for name, share in result.by_group.items():
        members = [ok for ok, group in zip(right, groups, strict=True) if group == name]
        assert share == sum(members) / len(members)


def test_a_hopeless_answer_costs_the_limit_and_no_more() -> None:
    adapter = FRESH.moved(np.r_[np.zeros(12), 1000.0, 0.0, 0.0])
    result = evaluate(adapter, np.zeros((1, 4), np.float32), ["b"], [""])
    assert result.loss == LOSS_LIMIT
    assert math.isfinite(evaluate(adapter, np.zeros((1, 4), np.float32), ["a"], [""]).loss)


def test_an_untrained_adapter_is_as_unsure_as_can_be() -> None:
    result = evaluate(FRESH, np.ones((2, 4), np.float32), ["a", "b"], ["", ""])
    assert result.loss == pytest.approx(math.log(3))
    assert result.overall == 0.5


@pytest.mark.parametrize(("labels", "groups"), [([], []), (["a"], ["x"]), (["a", "b"], ["x"])])
def test_lengths_that_differ_and_nothing_at_all_are_refused(
    labels: list[str], groups: list[str]
) -> None:
    rows = 2 if labels else 0
    with pytest.raises(ValueError, match=r"differ|at least one"):
        evaluate(adapter_of(0), np.zeros((rows, 4), np.float32), labels, groups)


def test_features_of_another_base_are_refused() -> None:
    with pytest.raises(ShapeMismatch):
        evaluate(adapter_of(0), np.zeros((1, 5), np.float32), ["a"], [""])


def test_a_label_that_is_not_known_has_no_position() -> None:
    assert positions(["b", "x", "a", "b"], ("a", "b")).tolist() == [1, UNKNOWN, 0, 1]
    assert positions([], ("a",)).shape == (0,)
