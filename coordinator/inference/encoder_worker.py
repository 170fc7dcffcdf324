"""A process in which an imported model of texts answers: one thread, one text at a time.

W1  the same text gets the same bits in every worker, whatever it is asked with (int8 takes its
    scale from the whole batch, so there is none)
W2  adapters are kept as long as there is room; one that is not there is asked for
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shared.errors import DataError, ModelError
from shared.files import digest_of
from shared.models.adapter import Adapter
from shared.processes import serve

if TYPE_CHECKING:
    from shared.models.graph_session import GraphSession, LoadedAdapter

KEPT_ADAPTERS: Final = 32
"""A LoRA of MiniLM has 332 KB, a head of 150 labels 231 KB."""


def _prepare(*, source: str, models: str, reads: bool) -> dict[str, Any]:
    """Import a model, or find the import of it; where it is and what it can do."""
    if reads:
        from coordinator.registry.reader_import import import_reader

        reader = import_reader(source, Path(models))
        about = reader.manifest
        return {
            "folder": str(reader.folder),
            "base": about.base,
            "features": about.features,
            "max_tokens": about.max_tokens,
        }
    from coordinator.registry.model_import import import_model
    from coordinator.registry.release_worker import SLOTTED_LAYERS

    # As releases are made, so that both use one import.
    imported = import_model(source, Path(models), adapter_layers=SLOTTED_LAYERS, passes="quick")
    manifest = imported.manifest
    return {
        "folder": str(imported.folder),
        "base": manifest.base,
        "features": manifest.features,
        "max_tokens": manifest.max_tokens,
    }


class _Model:
    """A session with the adapters that it was asked with lately."""

    def __init__(self, folder: str) -> None:
        from shared.models.graph_session import GraphSession

        self.session: GraphSession = GraphSession(Path(folder))
        self._adapters: OrderedDict[str, LoadedAdapter] = OrderedDict()

    def adapter(self, digest: str, data: bytes | None) -> LoadedAdapter | None:
        """The adapter with this digest, ``None`` if its bytes are needed first (W2)."""
        known = self._adapters.get(digest)
        if known is None:
            if data is None:
                return None
            if digest_of(data) != digest:
                raise DataError("these bytes are not the adapter that was named")
            adapter = Adapter.from_bytes(data)
            if not adapter.labels:
                raise ModelError(f"the adapter {digest[:12]} has no labels to classify into")
            known = self._adapters[digest] = self.session.load_adapter(adapter)
            while len(self._adapters) > KEPT_ADAPTERS:
                self._adapters.popitem(last=False)
        self._adapters.move_to_end(digest)
        return known


@lru_cache(maxsize=1)
def _model(folder: str) -> _Model:
    return _Model(folder)


@lru_cache(maxsize=1)
def _reader(folder: str) -> Any:
    from coordinator.reading.session import SpanSession

    return SpanSession(Path(folder))


def _open(*, folder: str, reads: bool) -> None:
    """Open the model before the first text comes."""
    if reads:
        _reader(folder)
    else:
        _model(folder)


def _embed(*, folder: str, texts: list[str]) -> dict[str, Any]:
    session = _model(folder).session
    return _packed([session.embed(text) for text in texts], sum(map(session.tokens, texts)))


def _classify(
    *, folder: str, texts: list[str], adapter: str, data: bytes | None
) -> dict[str, Any] | None:
    model = _model(folder)
    loaded = model.adapter(adapter, data)
    if loaded is None:
        return None
    logits = [model.session.answer(text, loaded)[1] for text in texts]
    return _packed(logits, sum(map(model.session.tokens, texts)))


def _read(
    *, folder: str, question: str, passages: list[str], answers: int, threshold: float | None
) -> list[list[Any]]:
    spans = _reader(folder).read(question, passages, answers=answers, threshold=threshold)
    return [[s.passage, s.start, s.end, s.text, s.score] for s in spans]


def _packed(rows: list[Any], tokens: int) -> dict[str, Any]:
    values = np.stack(rows).astype("<f4")
    return {"shape": list(values.shape), "values": values.tobytes(), "tokens": tokens}


if __name__ == "__main__":
    serve(
        {
            "prepare": _prepare,
            "open": _open,
            "embed": _embed,
            "classify": _classify,
            "read": _read,
        }
    )
