"""A stand-in for the one seam of a device behind which torch is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_agent.training.integer_gradient import integer_step
from edge_agent.training.trainer import Trained, TrainRequest
from shared.job import RunPlan
from shared.models.adapter import Adapter
from shared.types import Digest
from tests.support.plans import SHAPE

ADAPTER = Adapter.initial(SHAPE, Digest("ab" * 32))
"""What the plans of ``tests.support.plans`` start from."""


def nothing_happens() -> None:
    """The default for a spy."""


class SeededTrainer:
    """A :class:`~edge_agent.training.trainer.Trainer` whose update follows from the seed alone."""

    def __init__(
        self,
        *,
        before: Callable[[], None] = nothing_happens,
        scores: tuple[float, int] = (0.0, 0),
    ) -> None:
        """``before`` is called when :meth:`train` is, as the first thing that happens.

        ``scores`` is what held-out examples gave: the sum of their scores, and their number.
        """
        self._before = before
        self._scores = scores
        self.prepared = 0
        self.requests: list[TrainRequest] = []
        self.closed = 0

    def prepare(self, plan: RunPlan, store_path: Path, cache_folder: Path) -> int:
        """Count the call."""
        self.prepared += 1
        return 1

    def train(self, request: TrainRequest) -> Trained:
        """Draw an update from the request's seed."""
        self._before()
        self.requests.append(request)
        score_sum, scored = self._scores
        update = update_of(request.seed)
        if request.integer_clip:
            size = len(update)
            integers = integer_step([], request, parameters=size, magnitude=request.magnitude)
            update = integers.astype(np.float32)
        return Trained(
            update,
            request.local_steps,
            examples_used=1,
            score_sum=score_sum,
            scored=scored,
        )

    def close(self) -> None:
        """Count the call."""
        self.closed += 1


def update_of(seed: bytes) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """The update that :class:`SeededTrainer` makes of a seed."""
    rng = np.random.default_rng(list(seed))
    return rng.normal(scale=0.05, size=ADAPTER.parameters).astype(np.float32)
