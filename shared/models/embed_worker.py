"""Features of texts from a child process, for a parent that must not hold torch.

The coordinator embeds its public probe set this way. The child keeps its encoder
between calls and ends with :meth:`EmbedWorker.close`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.models.encoder import find_base_model
from shared.processes import Child, serve
from shared.types import FloatMatrix

if TYPE_CHECKING:
    from shared.models.pytorch import TextEncoder


class EmbedWorker:
    """A text encoder in a process of its own."""

    def __init__(self, base: str, *, threads: int = 1) -> None:
        """Describe the worker; its process starts with the first call or :meth:`start`.

        Args:
            base: A folder or hub id, as for :func:`~shared.models.encoder.find_base_model`.
            threads: Arithmetic threads of the child.
        """
        self._base = base
        self._threads = threads
        self._child = Child("shared.models.embed_worker", threads=threads)

    def start(self) -> None:
        """Start the process now, so that its imports overlap with other work."""
        self._child.start()

    def encode(self, texts: Sequence[str], *, max_tokens: int = 128) -> FloatMatrix:
        """Return (n, F) features, as :meth:`~shared.models.pytorch.TextEncoder.encode`.

        Raises:
            ModelError: the base model cannot be found or used.
            DependencyMissing: torch or transformers is not installed.
            ChildDied: the worker ended before it answered.
        """
        answer = self._child.call(
            "encode",
            base=self._base,
            texts=list(texts),
            max_tokens=max_tokens,
            threads=self._threads,
        )
        rows = np.frombuffer(answer["data"], np.float32).reshape(answer["shape"])
        return rows.copy()  # what frombuffer gives cannot be written to

    def close(self) -> None:
        """End the process; harmless if there is none."""
        self._child.close()


@lru_cache(maxsize=1)
def _encoder(base: str, threads: int) -> TextEncoder:
    from shared.models.pytorch import TextEncoder

    return TextEncoder(find_base_model(base), threads=threads)


def _encode(base: str, texts: list[str], max_tokens: int, threads: int) -> dict[str, Any]:
    features = _encoder(base, threads).encode(texts, max_tokens=max_tokens)
    return {"shape": list(features.shape), "data": features.tobytes()}


if __name__ == "__main__":
    serve({"encode": _encode})
