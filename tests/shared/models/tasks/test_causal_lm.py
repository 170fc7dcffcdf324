"""A prompt is continued; every example weighs the same, however long it is."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shared.data_files import Example
from shared.models.task import find_task

torch: Any = pytest.importorskip("torch")

TASK = find_task("causal-lm")


def test_a_loss_is_the_mean_over_the_tokens_that_are_asked_for() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 5)
    targets = torch.tensor([[1, 2, 3, 4], [0, -100, 4, -100], [2, 2, -100, -100]])
    losses, scores = TASK.outcome(torch, logits, targets)
    for row in range(3):
        lost, right = [], []
        for token, target in zip(logits[row].tolist(), targets[row].tolist(), strict=True):
            if target != -100:
                lost.append(math.log(sum(map(math.exp, token))) - token[target])
                right.append(token.index(max(token)) == target)
        assert float(losses[row]) == pytest.approx(sum(lost) / len(lost), rel=1e-5)
        assert float(scores[row]) == pytest.approx(sum(right) / len(right))


def test_what_is_not_asked_has_no_gradient() -> None:
    logits = torch.randn(1, 3, 5, requires_grad=True)
    losses, _ = TASK.outcome(torch, logits, torch.tensor([[-100, 2, -100]]))
    losses.sum().backward()
    assert logits.grad[0, 1].abs().sum() > 0
    assert not logits.grad[0, [0, 2]].any()


def test_a_sequence_without_a_question_costs_nothing() -> None:
    losses, scores = TASK.outcome(torch, torch.randn(1, 2, 5), torch.full((1, 2), -100))
    assert losses.tolist() == scores.tolist() == [0.0]


def test_it_has_no_labels_and_wants_examples() -> None:
    assert TASK.labels([Example("x", "b")]) == ()
    assert not TASK.has_head
    assert TASK.base == "causal"
    assert list(TASK.problems([Example("x", "b")])) == []
    assert list(TASK.problems([])) == ["the probe set is empty"]
