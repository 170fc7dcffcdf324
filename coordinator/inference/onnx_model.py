"""A causal graph in ONNX Runtime, with keys and values in rows that stay where they are.

O1  keys and values are written in place: a step copies none of them
O2  a row's outcome depends on its own tokens and adapter alone; other rows may stop at other lengths

The graph's attention takes one buffer for past and present and is told every row's length, so a
batch is the first B rows of the buffers, given by address.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordinator.inference.step_model import KeysAndValues, Logits
from coordinator.registry.causal_graph import CausalGraph
from shared.errors import ModelError
from shared.extras import require
from shared.models.adapter import Adapter, place_of
from shared.models.encoder import BaseModel
from shared.types import FloatMatrix

_ERRORS_ONLY: Final = 3
_CPU: Final = "cpu"


class OnnxModel:
    """A :class:`~coordinator.inference.step_model.StepModel` over ONNX Runtime on the processor."""

    def __init__(self, base: BaseModel, graph: CausalGraph, *, threads: int) -> None:
        """Open the graph.

        Args:
            base: What adapters must have been trained on.
            graph: Made of it.
            threads: Arithmetic threads.

        Raises:
            ModelError: the graph cannot be opened.
            DependencyMissing: ONNX Runtime is not installed.
        """
        runtime: Any = require("onnxruntime", extra="coordinator")
        runtime.disable_telemetry_events()  # on Windows it would report to its makers
        options = runtime.SessionOptions()
        # Threads spin while a step runs (the default): measured on two cores, 1.1 times the tokens
        # at sixteen requests and 1.3 times at one.
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        try:
            self._session = runtime.InferenceSession(
                str(graph.graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as err:  # the runtime's exceptions share no other base
            raise ModelError(f"{graph.graph} does not open: {str(err)[:300]}") from err
        self._base, self._graph = base, graph
        self.context_tokens = graph.context_tokens
        self.vocabulary = graph.vocabulary
        self.ends = graph.ends
        self.bytes_per_token = 2 * graph.layers * graph.keys * np.dtype(np.float32).itemsize
        self._width = graph.queries + 2 * graph.keys
        self._kept: list[NDArray[np.float32]] = [np.empty(self._shape(0, 0), np.float32)] * (
            2 * graph.layers
        )
        self._rank = 0
        self._down: list[NDArray[np.float32]] = []
        self._up: list[NDArray[np.float32]] = []
        self._adapted: list[Adapter | None] = []

    def _shape(self, rows: int, tokens: int) -> tuple[int, int, int, int]:
        return (rows, self._graph.kv_heads, tokens, self._graph.head_size)

    @property
    def _rows(self) -> int:
        return len(self._adapted)

    def reserve(self, rows: int, tokens: int) -> None:
        """See :class:`~coordinator.inference.step_model.StepModel`."""
        for index, old in enumerate(self._kept):
            new = np.zeros(self._shape(rows, tokens), np.float32)
            some, length = min(rows, old.shape[0]), min(tokens, old.shape[2])
            new[:some, :, :length] = old[:some, :, :length]
            self._kept[index] = new
        self._adapted = [*self._adapted[:rows], *[None] * (rows - self._rows)]
        self._make_room(self._rank)

    def check(self, adapter: Adapter) -> None:
        """See :class:`~coordinator.inference.step_model.StepModel`."""
        if adapter.base != self._base.digest:
            raise ModelError(
                f"the adapter was trained on the base {adapter.base[:12]}…, "
                f"and {self._base.name} is {self._base.digest[:12]}…"
            )
        if adapter.labels or adapter.shape.method not in {"lora", "rslora"}:
            raise ModelError("the adapter is not one of a language model")
        widths = {"query": self._graph.queries, "value": self._graph.keys}
        for slot in adapter.shape.slots:
            layer, place = place_of(slot.name)
            wanted = (self._graph.features, widths.get(place))
            if layer >= self._graph.layers or (slot.inputs, slot.outputs) != wanted:
                raise ModelError(f"the adapter's {slot.name} has no place in {self._base.name}")

    def place(self, row: int, adapter: Adapter | None) -> None:
        """See :class:`~coordinator.inference.step_model.StepModel`."""
        if adapter is self._adapted[row]:
            return
        self._adapted[row] = adapter
        if adapter is None and all(each is None for each in self._adapted):
            self._make_room(0)
        elif adapter is not None and 2 * adapter.shape.rank > self._rank:
            self._make_room(2 * adapter.shape.rank)
        elif self._rank:
            self._write(row)

    def _make_room(self, rank: int) -> None:
        """Hold low-rank pairs of this rank for every row; none where no row has an adapter."""
        self._rank = rank
        shape = (self._rows, self._graph.features, rank)
        self._down = [np.zeros(shape, np.float32) for _ in range(self._graph.layers)]
        shape = (self._rows, rank, self._width)
        self._up = [np.zeros(shape, np.float32) for _ in range(self._graph.layers)]
        for row in range(self._rows) if rank else ():
            self._write(row)

    def _write(self, row: int) -> None:
        """Lay an adapter's pairs into its row: the queries' first, then the values', then zeros."""
        for down, up in zip(self._down, self._up, strict=True):
            down[row], up[row] = 0.0, 0.0
        adapter = self._adapted[row]
        if adapter is None:
            return
        queries, keys, rank = self._graph.queries, self._graph.keys, adapter.shape.rank
        columns = {"query": slice(0, queries), "value": slice(queries + keys, self._width)}
        ranks = {"query": slice(0, rank), "value": slice(rank, 2 * rank)}
        for slot in adapter.shape.slots:
            layer, place = place_of(slot.name)
            a, b = adapter.tensors[f"{slot.name}.lora_a"], adapter.tensors[f"{slot.name}.lora_b"]
            self._down[layer][row, :, ranks[place]] = a.T
            self._up[layer][row, ranks[place], columns[place]] = adapter.shape.scale * b.T

    def move(self, source: int, target: int, tokens: int) -> None:
        """See :class:`~coordinator.inference.step_model.StepModel`."""
        for kept in self._kept:
            kept[target, :, :tokens] = kept[source, :, :tokens]
        self.place(target, self._adapted[source])

    def read(self, row: int, tokens: Sequence[int], past: int) -> Logits:
        """See :class:`~coordinator.inference.step_model.StepModel`."""
        ids = np.array([tokens], np.int64)
        mask = np.ones((1, past + len(tokens)), np.int64)
        logits: Logits = self._run(row, ids, mask)[0]
        return logits

    def decode(self, tokens: Sequence[int], past: Sequence[int]) -> FloatMatrix:
        """See :class:`~coordinator.inference.step_model.StepModel`."""
        lengths = np.array(past, np.int64) + 1
        mask = (np.arange(int(lengths.max())) < lengths[:, None]).astype(np.int64)
        return self._run(0, np.array(tokens, np.int64)[:, None], mask)

    def _run(self, first: int, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> FloatMatrix:
        rows = slice(first, first + len(ids))
        binding = self._session.io_binding()
        held: list[NDArray[Any]] = [
            ids,
            mask,
        ]  # addresses are given, so nothing may be freed before the run is over
        self._give(binding, "input_ids", ids)
        self._give(binding, "attention_mask", mask)
        binding.bind_output("logits", _CPU)
        for layer in range(self._graph.layers):
            for index, name in ((2 * layer, "key"), (2 * layer + 1, "value")):
                part = self._kept[index][rows]
                held.append(part)
                self._give(binding, f"past_key_values.{layer}.{name}", part)
                binding.bind_output(
                    *(f"present.{layer}.{name}", _CPU, 0, np.float32, part.shape, part.ctypes.data)
                )
            for name, low in (("lora_a", self._down), ("lora_b", self._up)):
                part = low[layer][rows]
                held.append(part)
                self._give(binding, f"{name}.{layer}", part)
        self._session.run_with_iobinding(binding)
        logits: FloatMatrix = binding.get_outputs()[0].numpy()[:, -1]
        del held
        return logits

    @staticmethod
    def _give(binding: Any, name: str, array: NDArray[Any]) -> None:
        binding.bind_input(name, _CPU, 0, array.dtype.type, array.shape, array.ctypes.data)

    def take(self, row: int, start: int, end: int) -> KeysAndValues:
        """See :class:`~coordinator.inference.step_model.StepModel`."""
        return np.stack([kept[row, :, start:end] for kept in self._kept])

    def put(self, row: int, start: int, kept: KeysAndValues) -> None:
        """See :class:`~coordinator.inference.step_model.StepModel`."""
        for buffer, part in zip(self._kept, kept, strict=True):
            buffer[row, :, start : start + part.shape[1]] = part
