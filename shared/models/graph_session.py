"""Answers from an imported model with ONNX Runtime: no torch, one text at a time.

S1  the same text under the same adapter gives the same bits, whatever was asked before or
    is asked at the same moment: texts are never batched, since dynamic quantisation takes
    its scale from the whole batch
S2  an adapter that does not fit the graph is refused when it is loaded, not when it is used
S3  an adapter is part of the question: another one may follow, or answer at the same time,
    and nothing has to be taken out of the session first

The only module that knows onnxruntime and tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from shared.errors import DataError, ModelError, ShapeMismatch
from shared.extras import require
from shared.models.adapter import Adapter
from shared.models.manifest import GRAPH, TOKENIZER, Manifest, read_manifest, verify_files
from shared.types import Digest, FloatMatrix

_EXTRA: Final = "edge"
_ERRORS_ONLY: Final = 3


@dataclass(frozen=True, slots=True, eq=False)
class LoadedAdapter:
    """An adapter in the form in which a session is fed with it.

    Frozen, so that any number of threads may answer with it.
    """

    digest: Digest
    """Of the adapter."""
    labels: tuple[str, ...]
    """What the logits are about, in their order."""
    model: Digest
    """Of the manifest of the model that it was loaded for."""
    values: Mapping[str, FloatMatrix]
    """The graph's optional inputs. Plain arrays, which the runtime reads where they are: for a
    LoRA of 332 KB on MiniLM that is 0.05 ms a question (of 1.9 at 8 tokens, 5.7 at 32) behind the
    runtime's own adapter format, which wants a file, and 0.16 ms ahead of its OrtValues."""


class GraphSession:
    """An imported encoder, ready to answer. Any thread may use it at any time."""

    def __init__(self, folder: Path, *, verify: bool = False) -> None:
        """Open ``manifest.json``, ``model.onnx`` and ``tokenizer.json`` in ``folder``.

        Args:
            folder: An imported model.
            verify: Whether to compare the files with the manifest's hashes first. Done when
                a model is installed; it costs about as much again as opening it.

        Raises:
            ModelError: a file is missing, damaged, or not what the manifest says.
            DependencyMissing: the extra ``edge`` is not installed.
        """
        self.manifest, self.digest = read_manifest(folder)
        """What the model is, and the SHA-256 of its manifest, which names it."""
        if verify:
            verify_files(folder, self.manifest)
        self._tokenizer = open_tokenizer(folder / TOKENIZER, self.manifest.max_tokens)
        self._session = open_graph(folder / GRAPH)
        optional = self._session.get_overridable_initializers()
        self._optional = {given.name for given in optional}

    def load_adapter(self, adapter: Adapter) -> LoadedAdapter:
        """Check that ``adapter`` belongs to this model and prepare it (S2).

        Raises:
            ModelError: it was trained on another base.
            ShapeMismatch: it has other features, or needs slots that this model lacks.
        """
        check_fit(adapter, self.manifest)
        values = {}
        for name, tensor in adapter.graph_inputs().items():
            if name not in self._optional:
                raise ShapeMismatch(
                    f"the adapter holds {name}, for which {GRAPH} of {self.manifest.name} has no input"
                )
            values[name] = tensor
        return LoadedAdapter(adapter.digest, adapter.labels, self.digest, values)

    def answer(self, text: str, adapter: LoadedAdapter) -> tuple[FloatMatrix, FloatMatrix]:
        """Return features, shape (F,), and logits, shape (C,), of one text (S1, S3).

        Raises:
            DataError: the text cannot be tokenised.
            ModelError: the adapter was loaded for another model.
        """
        if adapter.model != self.digest:
            raise ModelError(
                f"the adapter {adapter.digest[:12]} was loaded for the model {adapter.model[:12]}, "
                f"this is {self.digest[:12]}"
            )
        features, logits = self._run(("features", "logits"), self._ids(text), adapter.values)
        return features, logits

    def embed(self, text: str) -> FloatMatrix:
        """Return the base model's own features of one text, shape (F,), of length 1.

        No adapter takes part, so that embeddings that were kept stay comparable.

        Raises:
            DataError: the text cannot be tokenised.
        """
        features: FloatMatrix = self._run(("features",), self._ids(text), {})[0]
        return features

    def tokens(self, text: str) -> int:
        """How many tokens of ``text`` the model reads, its limit included.

        Raises:
            DataError: the text cannot be tokenised.
        """
        return int(self._ids(text).shape[1])

    def _ids(self, text: str) -> Any:
        # The tokenizer answers text that has no UTF-8 with a bare TypeError.
        if re.search("[\ud800-\udfff]", text):
            raise DataError("the text holds half a character (a lone surrogate)")
        ids = self._tokenizer.encode(text).ids
        if not ids:
            raise DataError("the text is empty")
        return np.array([ids], np.int64)

    def _run(self, outputs: tuple[str, ...], ids: Any, adapter: Mapping[str, Any]) -> list[Any]:
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), **adapter}
        return [result[0] for result in self._session.run(outputs, feeds)]


def check_fit(adapter: Adapter, manifest: Manifest) -> None:
    """Check that ``adapter`` belongs to the model that ``manifest`` describes.

    Raises:
        ModelError: it was trained on another base.
        ShapeMismatch: it has other features, or needs slots that the model lacks.
    """
    if adapter.base != manifest.base:
        raise ModelError(
            f"the adapter {adapter.digest[:12]} was trained on the base {adapter.base[:12]}, "
            f"the model {manifest.name} is the base {manifest.base[:12]}"
        )
    if adapter.features != manifest.features:
        raise ShapeMismatch(
            f"the adapter expects {adapter.features} features, "
            f"the model {manifest.name} gives {manifest.features}"
        )
    slots = {slot.name: slot for slot in manifest.slots}
    for slot in adapter.shape.slots:
        there = slots.get(slot.name)
        if there is None:
            known = ", ".join(slots) or "none"
            raise ShapeMismatch(
                f"the adapter needs the slot {slot.name}, the model {manifest.name} has {known}"
            )
        if there != slot:
            raise ShapeMismatch(
                f"the adapter's slot {slot.name} is {slot.inputs} to {slot.outputs} wide, "
                f"that of the model {manifest.name} {there.inputs} to {there.outputs}"
            )


def open_tokenizer(path: Path, max_tokens: int) -> Any:
    """Open a tokenizer that cuts after ``max_tokens`` and pads nothing.

    Raises:
        ModelError: it cannot be read.
        DependencyMissing: the extra ``edge`` is not installed.
    """
    tokenizers = require("tokenizers", extra=_EXTRA)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as err:  # the library raises bare Exception for a bad file
        raise ModelError(f"{path} is no tokenizer that can be used: {err}") from err
    tokenizer.enable_truncation(max_length=max_tokens)
    tokenizer.no_padding()
    return tokenizer


def open_graph(path: Path) -> Any:
    """Open a graph on one thread, optimised as it is loaded.

    Raises:
        ModelError: it cannot be opened.
        DependencyMissing: the extra ``edge`` is not installed.
    """
    runtime = require("onnxruntime", extra=_EXTRA)
    runtime.disable_telemetry_events()  # on Windows it would report to its makers
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # The optimisation level stays at its highest: it costs a loading int8 MiniLM nothing (40 ms
    # with and without) and gives 2 to 4 % at every question.
    # Otherwise it warns once per adapter input that the input may be left out, which is the idea.
    options.log_severity_level = _ERRORS_ONLY
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # the runtime's exceptions share no other base
        raise ModelError(f"{path} is no graph that ONNX Runtime opens: {str(err)[:300]}") from err
