"""The training process: puts a store through the frozen base once, then trains on the outcome.

Run by :class:`~edge_agent.training.trainer.ChildTrainer`. What the frozen part computed is kept
beside the store, readable by its owner only, under a digest of the base, its depth and the
texts: features for a head, states of every token for matrices in the layers above. For a head
the encoder is in memory only while texts are encoded.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from edge_agent.conditions import low_priority
from edge_agent.examples import ExampleStore, is_held_out
from edge_agent.training import dp_sgd
from edge_agent.training.integer_gradient import integer_step
from edge_agent.training.trainer import TrainRequest
from shared.data_files import Example
from shared.errors import DataError, DependencyMissing, GateRefused, ModelError, NonFiniteUpdate
from shared.files import write_durably
from shared.models.adapter import Adapter, place_of
from shared.models.classification import positions
from shared.models.encoder import BaseModel, find_base_model
from shared.models.pytorch import (
    MAX_PAIR_TOKENS,
    MAX_TOKENS,
    CausalModel,
    Prefix,
    TextEncoder,
    lowest_layer,
    worth_keeping,
)
from shared.models.task import find_task
from shared.processes import serve
from shared.types import FloatMatrix

CACHE_BYTES: Final = 2**30
"""Most that a cache folder holds: of older files, and one of at most ``pytorch.KEPT_BYTES``."""

_DIGEST_BYTES: Final = 32

_found = lru_cache(maxsize=4)(find_base_model)  # hashing the weights takes 0.2 s


def prepare(
    base: str,
    store_path: str,
    cache_folder: str,
    *,
    keep_layers: int = 0,
    task: str = "text-classification",
    slots: Sequence[str] = (),
) -> int:
    """Compute what :func:`train` will need and does not change; return the number of examples.

    Args:
        base: Folder or hub id.
        store_path: The examples.
        cache_folder: Where the outcome is kept.
        keep_layers: The base's first so many layers are used; 0 uses all.
        task: What is trained for.
        slots: Where matrices will be trained inside the base; none trains a head alone.

    Raises:
        DataError: there is no such store, or it is empty.
        ModelError: the base model cannot be found or used.
    """
    examples = _stored(Path(store_path))
    found = _found(base, keep_layers=keep_layers)
    if slots:
        depth = min(layer for layer, _ in map(place_of, slots))
        _prefix(found, examples, Path(cache_folder), task, depth)
    else:
        _features(found, examples, Path(cache_folder))
    return len(examples)


def train(**fields: Any) -> dict[str, Any]:
    """Compute one update from the fields of a :class:`TrainRequest`.

    Raises:
        DataError: there is no such store, or no example has a label that the adapter knows.
        ModelError: the base model cannot be used, or is not the adapter's.
        GateRefused: a local step went wrong.
    """
    paths = {name: Path(fields[name]) for name in ("store_path", "cache_folder")}
    request = TrainRequest(**(fields | paths))
    adapter = Adapter.from_bytes(request.adapter)
    base = _found(request.base, keep_layers=request.keep_layers)
    if base.digest != adapter.base:
        raise ModelError(
            f"the adapter was made for a base model with SHA-256 {adapter.base}, "
            f"but {request.base} here has {base.digest}"
        )
    examples = _stored(request.store_path)
    targets = None
    known = np.ones(len(examples), bool)
    if adapter.labels:
        targets = positions([example.label for example in examples], adapter.labels)
        known = targets >= 0
    held_out = np.array([is_held_out(example, request.held_out_share) for example in examples])
    rows, scored = np.flatnonzero(known & ~held_out), np.flatnonzero(known & held_out)
    if len(rows) == 0:
        raise DataError(f"{request.store_path}: no example has a label that is being trained")
    with _learner(base, examples, targets, adapter, request) as learner:
        score_sum = dp_sgd.scores(learner, scored, request.task)
        if request.integer_clip:
            integers = integer_step(
                _to_be_noised(learner, rows, request),
                request,
                parameters=adapter.parameters,
                magnitude=request.magnitude,
            )
            update = integers.astype(np.float32)  # exact: they have 16 bits
        else:
            update = dp_sgd.local_update(learner, rows, request)
    return {
        "update": update.tobytes(),
        "steps": request.local_steps,
        "examples_used": len(rows),
        "score_sum": score_sum,
        "scored": len(scored),
    }


def stored_features(
    base: str,
    store_path: Path,
    cache_folder: Path,
    keep_layers: int = 0,
    adapter: Adapter | None = None,
) -> tuple[FloatMatrix, list[str]]:
    """Features and labels of a store; for evaluation beside it.

    Args:
        base: Folder or hub id.
        store_path: The examples.
        cache_folder: Where features of the bare base are kept, or what lies below the matrices.
        keep_layers: The base's first so many layers are used; 0 uses all.
        adapter: Its inner matrices, if it has some, are in place.

    Raises:
        DataError: there is no such store, or it is empty.
        ModelError: the base model cannot be found or used.
    """
    examples = _stored(store_path)
    labels = [example.label for example in examples]
    found = _found(base, keep_layers=keep_layers)
    if adapter is None or not adapter.shape.slots:
        return _features(found, examples, cache_folder), labels
    return _encoder(found).encode([example.text for example in examples], adapter=adapter), labels


def _to_be_noised(
    learner: dp_sgd.Learner, rows: dp_sgd.Rows, request: TrainRequest
) -> Iterator[FloatMatrix]:
    """Yield rows that are each clipped as a whole: examples' gradients, or the one update.

    Where devices are hidden nothing may be said of how training went: a device whose own
    went wrong, or whose coin fell so, adds noise alone, and takes as long.
    """
    if not request.update_clip:
        yield from dp_sgd.sample_gradients(learner, rows, request)
        return
    try:
        update = dp_sgd.local_update(learner, rows, request)
    except GateRefused:
        return
    if request.participates:
        yield -update[None, :]  # a step goes down what it is given


@contextlib.contextmanager
def _learner(
    base: BaseModel,
    examples: list[Example],
    targets: dp_sgd.Rows | None,
    adapter: Adapter,
    request: TrainRequest,
) -> Iterator[dp_sgd.Learner]:
    """Yield what is trained, at the adapter's values."""
    folder = request.cache_folder
    if not adapter.shape.slots:
        assert targets is not None, "an adapter without matrices has a head"
        yield dp_sgd.head_learner(_features(base, examples, folder), targets, adapter)
        return
    prefix = _prefix(base, examples, folder, request.task, lowest_layer(adapter.shape))
    with _model(base, request.task).adapted(adapter) as adapted:
        yield dp_sgd.inner_learner(adapted, prefix, targets, adapter)


def _stored(path: Path) -> list[Example]:
    if not path.exists():
        raise DataError(f"there is no example store {path}")
    examples = ExampleStore(path).examples()
    if not examples:
        raise DataError(f"the example store {path} is empty: add examples first")
    return examples


@lru_cache(maxsize=1)
def _encoder(base: BaseModel) -> TextEncoder:
    return TextEncoder(base)


@lru_cache(maxsize=1)
def _causal(base: BaseModel) -> CausalModel:
    return CausalModel(base)


def _model(base: BaseModel, task: str) -> TextEncoder | CausalModel:
    return _causal(base) if find_task(task).base == "causal" else _encoder(base)


def _features(base: BaseModel, examples: list[Example], cache_folder: Path) -> FloatMatrix:
    """Return (n, F) features of all texts."""
    texts = [example.text for example in examples]
    name = _name("features", base, MAX_TOKENS, texts)
    return _kept(cache_folder / name, lambda: TextEncoder(base).encode(texts))


def _prefix(
    base: BaseModel, examples: list[Example], cache_folder: Path, task: str, depth: int
) -> Prefix:
    """Return the texts behind the first ``depth`` layers.

    States are kept where there are layers to be spared and ``pytorch.KEPT_BYTES`` suffice.
    """
    model = _model(base, task)
    if isinstance(model, CausalModel):
        pairs = [(example.text, example.label) for example in examples]
        tokens = model.tokens(pairs)
        texts, limit = [text for pair in pairs for text in pair], MAX_PAIR_TOKENS
    else:
        texts, limit = [example.text for example in examples], MAX_TOKENS
        tokens = model.tokens(texts)
    if depth == 0 or not worth_keeping(tokens, model.features):
        return Prefix(model, tokens, depth)
    path = cache_folder / _name(f"layer-{depth}", base, limit, texts)
    states = _kept(path, lambda: model.states(tokens, depth))
    return Prefix(model, tokens, depth, states)


def _name(kind: str, base: BaseModel, max_tokens: int, texts: Sequence[str]) -> str:
    """A file's name: what its content is a function of."""
    name = hashlib.sha256(f"{base.digest} {max_tokens}".encode())  # kept layers are in the digest
    for text in texts:
        encoded = text.encode()
        name.update(len(encoded).to_bytes(8, "little") + encoded)
    return f"{kind}-{name.hexdigest()[:32]}"


def _kept(path: Path, compute: Callable[[], FloatMatrix]) -> FloatMatrix:
    """Return a float32 matrix, from disk if it is there and whole, behind its SHA-256.

    Raises:
        NonFiniteUpdate: what was computed holds NaN or infinity.
    """
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        stated = file.read(_DIGEST_BYTES)
        if hashlib.file_digest(file, "sha256").digest() == stated:
            file.seek(_DIGEST_BYTES)
            return np.asarray(np.load(file, allow_pickle=False))
    computed = compute()
    if not np.isfinite(computed).all():
        raise NonFiniteUpdate("the base model makes NaN or infinity of these texts")
    content = io.BytesIO()
    np.save(content, computed, allow_pickle=False)
    digest = hashlib.sha256(content.getbuffer()).digest()
    _make_room(path.parent)
    write_durably(path, digest + content.getvalue(), mode=0o600)
    return computed


def _make_room(folder: Path) -> None:
    """Remove the oldest files beyond :data:`CACHE_BYTES`."""
    total = 0
    with contextlib.suppress(FileNotFoundError):  # no folder yet, or tidied at the same time
        newest_first = sorted(folder.iterdir(), key=lambda path: -path.stat().st_mtime_ns)
        for path in newest_first:
            total += path.stat().st_size
            if total > CACHE_BYTES:
                path.unlink()


if __name__ == "__main__":
    with contextlib.suppress(DependencyMissing):
        low_priority()
    with contextlib.suppress(DependencyMissing):  # said when an operation is asked for
        dp_sgd.warm_up()
    serve({"prepare": prepare, "train": train})
