"""A text has one of the run's labels."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shared.data_files import Example
from shared.models.task import find_task

torch: Any = pytest.importorskip("torch")

TASK = find_task("text-classification")


def test_losses_and_scores_are_those_of_each_text_alone() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
    losses, scores = TASK.outcome(torch, logits, torch.tensor([0, 1, 2]))
    expected = []
    for row, target in zip(logits.tolist(), (0, 1, 2), strict=True):
        expected.append(math.log(sum(map(math.exp, row))) - row[target])
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)
    assert scores.tolist() == [1.0, 0.0, 0.0]


def test_the_labels_are_the_distinct_ones_sorted() -> None:
    examples = [Example("x", "b"), Example("y", "a"), Example("z", "b")]
    assert TASK.labels(examples) == ("a", "b")
    assert TASK.has_head
    assert TASK.base == "encoder"


@pytest.mark.parametrize("labels", ["", "a", "aaa"])
def test_fewer_than_two_labels_tell_nothing_apart(labels: str) -> None:
    (problem,) = TASK.problems([Example(f"text {n}", one) for n, one in enumerate(labels)])
    assert "at least 2" in problem


def test_two_labels_are_enough() -> None:
    assert list(TASK.problems([Example("x", "b"), Example("y", "a")])) == []
