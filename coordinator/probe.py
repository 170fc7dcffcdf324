"""The coordinator's own public examples, on which every new adapter is judged."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from shared.data_files import Example
from shared.files import digest_of, write_durably
from shared.job import RunPlan
from shared.models.adapter import Adapter
from shared.models.classification import evaluate
from shared.models.encoder import BaseModel, find_base_model
from shared.models.task import Accuracy, find_task, summed_up
from shared.types import Digest, FloatMatrix, FloatVector
from shared.wire import codec


class Model(Protocol):
    """A base model at work elsewhere; see ``shared.models.model_worker``."""

    def encode(self, texts: Sequence[str], *, adapter: bytes = b"") -> FloatMatrix:
        """Features, float32, shape (texts, features), with an adapter's inner matrices in place."""
        ...

    def outcome(
        self, pairs: Sequence[tuple[str, str]], *, adapter: bytes = b""
    ) -> tuple[FloatVector, FloatVector]:
        """Scores and losses of continuations after their prompts, (pairs,) each."""
        ...

    def close(self) -> None:
        """Free the memory that the base model takes."""
        ...


MakeModel = Callable[[str, int], Model]
"""A base model by name or folder, with so many of its layers (0: all)."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Public examples, and what it takes to judge adapters on them."""

    examples: Sequence[Example]
    base: BaseModel
    model: Model
    features: FloatMatrix | None
    """Of the bare base model, (examples, F); None for a language model."""
    label_features: FloatMatrix | None
    """Of the labels' names, (C, F)."""

    def judge(self, adapter: Adapter) -> Accuracy:
        """Score and loss of an adapter; takes seconds when it has inner matrices."""
        groups = [example.group for example in self.examples]
        labels = [example.label for example in self.examples]
        if self.features is None:
            pairs = [(example.text, example.label) for example in self.examples]
            scores, losses = self.model.outcome(pairs, adapter=adapter.to_bytes())
            return summed_up(scores, losses, groups)
        features = self.features
        if adapter.shape.slots:
            texts = [example.text for example in self.examples]
            features = self.model.encode(texts, adapter=adapter.to_bytes())
        return evaluate(adapter, features, labels, groups)

    def initial(self, plan: RunPlan) -> Adapter:
        """The adapter that a run starts from."""
        named = plan.job.model.initial == "labels"
        return Adapter.initial(
            plan.shape,
            self.base.digest,
            seed=plan.seed,
            label_features=self.label_features if named else None,
        )

    def close(self) -> None:
        """Free the base model; judging starts it again."""
        self.model.close()


def prepare_probe(
    make_model: MakeModel, plan: RunPlan, examples: Sequence[Example], cache: Path
) -> Probe:
    """Embed a probe set and the names of the labels once, or read both from ``cache``.

    Raises:
        ModelError: the base model cannot be found or used.
        ChildDied, StorageError: as their names say.
    """
    wanted = plan.job.model
    base = find_base_model(wanted.base, keep_layers=wanted.layers)
    model = make_model(wanted.base, wanted.layers)
    if find_task(plan.job.task).base == "causal":
        return Probe(examples, base, model, None, None)
    # Names as a person would say them: "track_order" tells the tokenizer little.
    names = [label.replace("_", " ").replace("-", " ") for label in plan.labels]
    texts = [example.text for example in examples] + names
    features = _embedded(model, base.digest, texts, cache)
    if not plan.shape.slots:
        model.close()
    return Probe(examples, base, model, features[: len(examples)], features[len(examples) :])


def _embedded(model: Model, base: Digest, texts: Sequence[str], cache: Path) -> FloatMatrix:
    path = cache / f"{digest_of(codec.encode([base, list(texts)]))}.npy"
    if path.exists():
        return np.asarray(np.load(path))
    try:
        features = model.encode(texts)
    except BaseException:
        model.close()
        raise
    buffer = io.BytesIO()
    np.save(buffer, features)
    write_durably(path, buffer.getvalue())
    return features
