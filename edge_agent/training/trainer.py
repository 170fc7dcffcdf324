"""Training as the agent sees it: a request in, an update out, torch in another process."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from shared.job import RunPlan
from shared.privacy.release import SEED_BYTES
from shared.processes import Child
from shared.types import FloatMatrix

_MEMORY_LIMIT_BYTES: Final = 6 * 2**30
"""Enough for a language model of half a billion parameters, or MiniLM with some 100,000
examples; beyond it training fails and the device carries on."""


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """Everything one local update is a function of, besides the store's content."""

    store_path: Path
    cache_folder: Path
    """Where encoded features are kept; as private as the store."""
    base: str
    """Folder or hub id of the base model."""
    adapter: bytes
    """The current global adapter, encoded."""
    learning_rate: float
    local_steps: int
    sample_rate: float
    """Poisson sampling rate q in (0, 1]."""
    clip_norm: float | None
    """Bound S on each example's gradient in L2, over all that is trained; ``None`` sets none."""
    noise_multiplier: float
    """σ / S; 0 promises nothing."""
    expected_examples: float
    """ñ, the noised size of the store: gradient sums are divided by q·ñ, never by a true count."""
    seed: bytes
    """The release seed, 32 bytes: Poisson sample and noise are its streams."""
    proximal_mu: float = 0.0
    """FedProx: adds μ·(w - w₀) to the gradient, which touches no record."""
    task: str = "text-classification"
    """What examples mean and what is lost on them."""
    keep_layers: int = 0
    """Only the base's first so many layers are used; 0 uses all."""
    step_ratio: float = 1.0
    """Step size of the matrices inside the base as a multiple of ``learning_rate``."""
    held_out_share: float = 0.0
    """This share of the store, the same in every round, is scored and never trained on."""
    integer_clip: int = 0
    """With distributed noise ``clip_norm`` in whole steps, and the bound on an example's rounded
    gradient; 0 trains with noise of this device's own."""
    update_clip: float = 0.0
    """Bound on the whole update in L2, where noise hides devices; 0 where it hides records."""
    participates: bool = True
    """Whether the update is in the sum at all; otherwise noise leaves alone."""
    share_variance: int = 0
    """Variance of this device's share of discrete noise, in the same steps."""
    coordinate_clamp: int = 0
    """Bound on each value of the summed gradient before noise, in the same steps."""
    magnitude: int = 0
    """Largest integer of an update; beyond it values wrap."""

    def __post_init__(self) -> None:
        """Refuse what would train something other than asked, naming every problem.

        Raises:
            ValueError: a number lies outside its domain, or noise is asked for without a clip.
        """
        clip = math.inf if self.clip_norm is None else self.clip_norm
        checks = {
            "learning_rate must be > 0 and finite": 0 < self.learning_rate < math.inf,
            "local_steps must be >= 1": self.local_steps >= 1,
            "sample_rate must lie in (0, 1]": 0 < self.sample_rate <= 1,
            "clip_norm must be > 0": clip > 0,
            "noise_multiplier must be >= 0 and finite": 0 <= self.noise_multiplier < math.inf,
            "noise needs a finite clip_norm": self.noise_multiplier == 0 or clip < math.inf,
            "expected_examples must be > 0 and finite": 0 < self.expected_examples < math.inf,
            "proximal_mu must be >= 0 and finite": 0 <= self.proximal_mu < math.inf,
            "step_ratio must be > 0 and finite": 0 < self.step_ratio < math.inf,
            "held_out_share must lie in [0, 1)": 0 <= self.held_out_share < 1,
            f"seed must have {SEED_BYTES} bytes": len(self.seed) == SEED_BYTES,
            "distributed noise needs one clipped step, noise and a range": not self.integer_clip
            or (
                (self.update_clip > 0 or (self.local_steps == 1 and self.clip_norm is not None))
                and self.share_variance >= 1
                and 1 <= self.coordinate_clamp < self.magnitude
            ),
        }
        problems = [problem for problem, holds in checks.items() if not holds]
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True, slots=True)
class Trained:
    """What training gave. Only ``update`` was made private; the rest stays on the device."""

    update: FloatMatrix
    """New minus old parameters, each divided by its step ratio: 1 in the head,
    ``step_ratio`` inside the base. float32, in the order of ``Adapter.flatten``. With
    distributed noise whole numbers, in steps of the clip divided by ``integer_clip``."""
    steps: int
    examples_used: int
    """Examples that were trained on: those whose label the adapter knows, without the held out."""
    score_sum: float = 0.0
    """Sum of the starting adapter's scores, in [0, 1] each, on held-out examples."""
    scored: int = 0
    """How many of those there are."""


class Trainer(Protocol):
    """Turns an example store and an adapter into an update."""

    def prepare(self, plan: RunPlan, store_path: Path, cache_folder: Path) -> int:
        """Put the store's texts through what stays frozen, so that rounds start at once.

        Returns:
            How many examples there are.

        Raises:
            DataError: there is no such store, or it is empty.
            ModelError: the base model cannot be found or used.
            DependencyMissing: the extra ``train`` is not installed.
            ChildDied: the training process ended, for want of memory most likely.
        """
        ...

    def train(self, request: TrainRequest) -> Trained:
        """Compute one update; the same request on the same store gives the same bytes.

        Raises:
            DataError: no example has a label that the adapter knows.
            ModelError: the base model cannot be used, or is not the adapter's.
            GateRefused: a local step went wrong; the message says which and how.
            NonFiniteUpdate: what the base makes of the texts is not finite.
            UndecodableMessage, ShapeMismatch: the adapter is not one.
            DependencyMissing, ChildDied: as for :meth:`prepare`.
        """
        ...

    def close(self) -> None:
        """End what was started; harmless if nothing was."""
        ...


class ChildTrainer:
    """A :class:`Trainer` in one warm child process with one arithmetic thread.

    The child imports torch and Opacus when it starts (seconds), so it is kept for a whole
    run. If it dies, the next call starts another, and the seed makes the result the same.
    """

    def __init__(
        self,
        *,
        memory_limit_bytes: int = _MEMORY_LIMIT_BYTES,
        nice: int = 5,
        deadline_s: float | None = None,
    ) -> None:
        """Describe the child; :meth:`start` or the first call starts it.

        Args:
            memory_limit_bytes: Beyond it the child's allocations fail.
            nice: Training yields to answering by this much.
            deadline_s: A call that takes longer ends the child; ``None``: none does.
        """
        self._child = Child(
            "edge_agent.training.child",
            memory_limit_bytes=memory_limit_bytes,
            threads=1,
            nice=nice,
            deadline_s=deadline_s,
        )

    def start(self) -> None:
        """Start the child now, so that its imports overlap with other work."""
        self._child.start()

    def prepare(self, plan: RunPlan, store_path: Path, cache_folder: Path) -> int:
        """See :meth:`Trainer.prepare`."""
        return int(
            self._child.call(
                "prepare",
                base=plan.job.model.base,
                store_path=str(store_path),
                cache_folder=str(cache_folder),
                keep_layers=plan.job.model.layers,
                task=plan.job.task,
                slots=[slot.name for slot in plan.shape.slots],
            )
        )

    def train(self, request: TrainRequest) -> Trained:
        """See :meth:`Trainer.train`."""
        fields = asdict(request)
        paths = {name: str(fields[name]) for name in ("store_path", "cache_folder")}
        answer = self._child.call("train", **(fields | paths))
        return Trained(
            update=np.frombuffer(answer["update"], np.float32).copy(),
            steps=int(answer["steps"]),
            examples_used=int(answer["examples_used"]),
            score_sum=float(answer["score_sum"]),
            scored=int(answer["scored"]),
        )

    def close(self) -> None:
        """End the child; harmless if there is none."""
        self._child.close()
