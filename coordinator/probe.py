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
from shared.models.adapter import Adapter
from shared.models.classification import Accuracy, evaluate
from shared.models.encoder import BaseModel, find_base_model
from shared.types import FloatMatrix
from shared.wire import codec


class Embedder(Protocol):
    """Turns texts into features, elsewhere; see ``shared.models.embed_worker``."""

    def encode(self, texts: Sequence[str]) -> FloatMatrix:
        """Features, float32, shape (texts, features)."""
        ...

    def close(self) -> None:
        """Free the memory that the base model takes."""
        ...


MakeEmbedder = Callable[[str], Embedder]
"""An embedder for a base model, by name or folder."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Embedded examples; judges adapters without the base model at hand."""

    examples: Sequence[Example]
    features: FloatMatrix
    label_features: FloatMatrix
    base: BaseModel

    def judge(self, adapter: Adapter) -> Accuracy:
        """Accuracy and loss of an adapter."""
        return evaluate(
            adapter,
            self.features,
            [example.label for example in self.examples],
            [example.group for example in self.examples],
        )


def embed_probe(
    make_embedder: MakeEmbedder,
    base: str,
    examples: Sequence[Example],
    labels: Sequence[str],
    cache: Path,
) -> Probe:
    """Embed a probe set and the names of the labels, or read both from ``cache``."""
    model = find_base_model(base)
    # Names as a person would say them: "track_order" tells the tokenizer little.
    names = [label.replace("_", " ").replace("-", " ") for label in labels]
    texts = [example.text for example in examples] + names
    key = digest_of(codec.encode([model.digest, texts]))
    path = cache / f"{key}.npy"
    if path.exists():
        features = np.load(path)
    else:
        embedder = make_embedder(base)
        try:
            features = embedder.encode(texts)
        finally:
            embedder.close()
        buffer = io.BytesIO()
        np.save(buffer, features)
        write_durably(path, buffer.getvalue())
    return Probe(examples, features[: len(examples)], features[len(examples) :], model)
