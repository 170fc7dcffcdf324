"""The training process: encodes an example store once, then trains heads on its features.

Run by :class:`~edge_agent.training.trainer.ChildTrainer`. The encoder is in memory only
while texts are encoded; what it computed is kept beside the store, readable by its owner
only, under the digests of the model and of the texts.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.examples import ExampleStore
from edge_agent.training import dp_sgd
from edge_agent.training.trainer import TrainRequest
from shared.data_files import Example
from shared.errors import DataError, DependencyMissing, ModelError
from shared.files import write_durably
from shared.models.adapter import Adapter
from shared.models.encoder import BaseModel, find_base_model
from shared.models.pytorch import TextEncoder
from shared.processes import serve
from shared.types import FloatMatrix

_found = lru_cache(maxsize=4)(find_base_model)  # hashing the weights takes 0.2 s


def prepare(base: str, store_path: str, cache_folder: str) -> int:
    """Encode the store's texts unless that was done before; return how many there are.

    Raises:
        DataError: there is no such store, or it is empty.
        ModelError: the base model cannot be found or used.
    """
    examples = _stored(Path(store_path))
    _features(_found(base), examples, Path(cache_folder))
    return len(examples)


def train(**fields: Any) -> dict[str, Any]:
    """Compute one update from the fields of a :class:`TrainRequest`.

    Raises:
        DataError: there is no such store, or no example has a label that the adapter knows.
        ModelError: the base model cannot be used, or is not the adapter's.
    """
    paths = {name: Path(fields[name]) for name in ("store_path", "cache_folder")}
    request = TrainRequest(**(fields | paths))
    adapter = Adapter.from_bytes(request.adapter)
    base = _found(request.base)
    if base.digest != adapter.base:
        raise ModelError(
            f"the adapter was made for a base model with SHA-256 {adapter.base}, "
            f"but {request.base} here has {base.digest}"
        )
    examples = _stored(request.store_path)
    features = _features(base, examples, request.cache_folder)
    position = {label: index for index, label in enumerate(adapter.labels)}
    targets = np.array([position.get(example.label, -1) for example in examples])
    known = np.flatnonzero(targets >= 0)
    if len(known) == 0:
        raise DataError(f"{request.store_path}: no example has a label that is being trained")
    update = dp_sgd.local_update(features[known], targets[known], adapter, request)
    return {
        "update": update.tobytes(),
        "steps": request.local_steps,
        "examples_used": len(known),
    }


def stored_features(
    base: str, store_path: Path, cache_folder: Path
) -> tuple[FloatMatrix, list[str]]:
    """Features and labels of a store that was prepared before; for evaluation beside it.

    Raises:
        DataError: there is no such store, or it is empty.
        ModelError: the base model cannot be found or used.
    """
    examples = _stored(store_path)
    features = _features(_found(base), examples, cache_folder)
    return features, [example.label for example in examples]


def _stored(path: Path) -> list[Example]:
    if not path.exists():
        raise DataError(f"there is no example store {path}")
    examples = ExampleStore(path).examples()
    if not examples:
        raise DataError(f"the example store {path} is empty: add examples first")
    return examples


def _features(base: BaseModel, examples: list[Example], cache_folder: Path) -> FloatMatrix:
    """Return (n, F) features of all texts, from the cache if they are there and whole."""
    texts = [example.text for example in examples]
    name = hashlib.sha256(base.digest.encode())
    for text in texts:
        encoded = text.encode()
        name.update(len(encoded).to_bytes(8, "little") + encoded)
    path = cache_folder / f"features-{name.hexdigest()[:32]}.npy"
    with contextlib.suppress(FileNotFoundError, ValueError, EOFError):
        cached = np.load(path, allow_pickle=False)
        if cached.dtype == np.float32 and cached.ndim == 2 and len(cached) == len(texts):
            return np.asarray(cached)
    features = TextEncoder(base).encode(texts)
    content = io.BytesIO()
    np.save(content, features, allow_pickle=False)
    write_durably(path, content.getvalue(), mode=0o600)
    return features


if __name__ == "__main__":
    with contextlib.suppress(DependencyMissing):  # said when an operation is asked for
        dp_sgd.warm_up()
    serve({"prepare": prepare, "train": train})
