"""What a task is: what its examples mean, what is lost on them, and how good an answer is.

A task is one module in :mod:`shared.models.tasks` with a constant ``TASK``. It is found by being
there; nothing else names it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import numpy as np

from shared.data_files import Example
from shared.types import FloatVector


class Task(Protocol):
    """One kind of thing that can be learnt."""

    @property
    def name(self) -> str:
        """As a job spells it: the module's name with hyphens."""
        ...

    @property
    def base(self) -> Literal["encoder", "causal"]:
        """What kind of base model it stands on."""
        ...

    @property
    def has_head(self) -> bool:
        """Whether the adapter has labels of its own."""
        ...

    def labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """The head's labels, out of public examples; none without a head."""
        ...

    def problems(self, examples: Sequence[Example]) -> Iterator[str]:
        """One sentence per reason why these public examples cannot judge an adapter."""
        ...

    def outcome(self, torch: Any, logits: Any, targets: Any) -> tuple[Any, Any]:
        """Losses and scores of a batch.

        Args:
            torch: The module; a task does not import it.
            logits: What base and adapter answer: (n, C), or (n, tokens, vocabulary).
            targets: int64, (n,) positions in the labels, or (n, tokens); -100 where nothing
                is asked.

        Returns:
            Losses in nats, (n,), differentiable, each a mean over what its own example asks;
            and scores in [0, 1], (n,).
        """
        ...


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Results over one set of examples."""

    overall: float
    """Mean score, in [0, 1]: the share of right answers, or of tokens foretold."""
    by_group: dict[str, float]
    """The same within each group, by name."""
    loss: float
    """Mean loss in nats. For a language model exp(loss) is the perplexity."""
    count: int


def summed_up(scores: FloatVector, losses: FloatVector, groups: Sequence[str]) -> Accuracy:
    """Average scores and losses, (n,) each, over all and within n named groups.

    Raises:
        ValueError: there is nothing to average, or the lengths differ.
    """
    if not len(scores) == len(losses) == len(groups):
        raise ValueError(f"{len(scores)} scores, {len(losses)} losses, {len(groups)} groups differ")
    if not len(scores):
        raise ValueError("an accuracy needs at least one example")
    of_group = {
        name: float(scores[[group == name for group in groups]].mean())
        for name in sorted(set(groups))
    }
    return Accuracy(float(np.mean(scores)), of_group, float(np.mean(losses)), len(scores))


@cache
def task_names() -> tuple[str, ...]:
    """Every task there is."""
    tasks = importlib.import_module("shared.models.tasks")
    return tuple(
        sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(tasks.__path__))
    )


def find_task(name: str) -> Task:
    """Return a task by its name.

    Raises:
        KeyError: there is none; a job that names one was refused before.
    """
    if name not in task_names():
        raise KeyError(name)
    module = importlib.import_module("shared.models.tasks." + name.replace("-", "_"))
    task: Task = module.TASK
    return task
