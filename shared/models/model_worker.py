"""A base model in a child process, for a parent that must not hold torch.

The coordinator judges adapters on its public probe set this way. The child keeps its
model between calls, and what the frozen layers made of the last texts; it ends with
:meth:`ModelWorker.close`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.models.adapter import Adapter
from shared.models.encoder import find_base_model
from shared.processes import Child, serve
from shared.types import FloatMatrix, FloatVector

if TYPE_CHECKING:
    from shared.models.pytorch import CausalModel, TextEncoder


class ModelWorker:
    """An encoder or a language model in a process of its own."""

    def __init__(self, base: str, keep_layers: int = 0, *, threads: int = 1) -> None:
        """Describe the worker; its process starts with the first call or :meth:`start`.

        Args:
            base: A folder or hub id, as for :func:`~shared.models.encoder.find_base_model`.
            keep_layers: The base's first so many layers are used; 0 uses all.
            threads: Arithmetic threads of the child.
        """
        self._base = {"base": base, "keep_layers": keep_layers, "threads": threads}
        self._child = Child("shared.models.model_worker", threads=threads)

    def start(self) -> None:
        """Start the process now, so that its imports overlap with other work."""
        self._child.start()

    def encode(self, texts: Sequence[str], *, adapter: bytes = b"") -> FloatMatrix:
        """Return (n, F) features, as :meth:`~shared.models.pytorch.TextEncoder.encode`.

        Args:
            texts: n texts.
            adapter: An encoded adapter, whose inner matrices are in place; none if empty.

        Raises:
            ModelError: the base model cannot be found or used, or the adapter is not made for it.
            UndecodableMessage, ShapeMismatch: the adapter is not one.
            DependencyMissing: torch, transformers or peft is not installed.
            ChildDied: the worker ended before it answered.
        """
        answer = self._child.call("encode", texts=list(texts), adapter=adapter, **self._base)
        rows = np.frombuffer(answer["data"], np.float32).reshape(answer["shape"])
        return rows.copy()  # what frombuffer gives cannot be written to

    def outcome(
        self, pairs: Sequence[tuple[str, str]], *, adapter: bytes = b""
    ) -> tuple[FloatVector, FloatVector]:
        """Return scores and losses, as :meth:`~shared.models.pytorch.CausalModel.outcome`.

        Raises:
            ModelError, UndecodableMessage, ShapeMismatch, DependencyMissing, ChildDied: as
                for :meth:`encode`.
        """
        asked = [list(pair) for pair in pairs]
        answer = self._child.call("outcome", pairs=asked, adapter=adapter, **self._base)
        scores, losses = (np.frombuffer(answer[name]).copy() for name in ("scores", "losses"))
        return scores, losses

    def close(self) -> None:
        """End the process; harmless if there is none."""
        self._child.close()


@lru_cache(maxsize=1)
def _encoder(base: str, keep_layers: int, threads: int) -> TextEncoder:
    from shared.models.pytorch import TextEncoder

    return TextEncoder(find_base_model(base, keep_layers=keep_layers), threads=threads)


@lru_cache(maxsize=1)
def _causal(base: str, keep_layers: int, threads: int) -> CausalModel:
    from shared.models.pytorch import CausalModel

    return CausalModel(find_base_model(base, keep_layers=keep_layers), threads=threads)


def _encode(texts: list[str], adapter: bytes, **base: Any) -> dict[str, Any]:
    features = _encoder(**base).encode(texts, adapter=_decoded(adapter))
    return {"shape": list(features.shape), "data": features.tobytes()}


def _outcome(pairs: list[list[str]], adapter: bytes, **base: Any) -> dict[str, Any]:
    asked = [(prompt, continuation) for prompt, continuation in pairs]
    scores, losses = _causal(**base).outcome(asked, _decoded(adapter))
    return {"scores": scores.tobytes(), "losses": losses.tobytes()}


def _decoded(adapter: bytes) -> Adapter | None:
    return Adapter.from_bytes(adapter) if adapter else None


if __name__ == "__main__":
    serve({"encode": _encode, "outcome": _outcome})
