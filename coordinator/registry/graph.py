"""Write an encoder as an ONNX graph, straight from its weights.

G1  both graphs compute the same: mean-pooled, length-normalised features
G2  what a text is padded with does not change its features
G3  without adapter tensors the slots change nothing: their ranks are 0

The *plain* graph consists of standard operators and says what is computed. The *fused* graph
says the same with the runtime's own operators (domain ``com.microsoft``) where those are
faster, a third of the nodes, and has the slots. It is written and not found by a pattern
matcher: one that no longer knows an exporter's patterns slows a model down without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from coordinator.registry.weights import ACTIVATIONS, Affine, Encoder, Layer
from shared.extras import require
from shared.types import FloatMatrix

OPSET: Final = 21
"""Of 2024; the first with both Gelu and four-bit integers."""

_IR_VERSION: Final = 10
_MICROSOFT: Final = "com.microsoft"
_MASKED: Final = float(np.finfo(np.float32).min)


def slot_names(layers: int, adapter_layers: int) -> list[str]:
    """Return the names of the slots in the top ``adapter_layers`` of ``layers`` layers.

    >>> slot_names(6, 1)
    ['layer.5.query', 'layer.5.value', 'layer.5.output']
    """
    return [
        f"layer.{number}.{place}"
        for number in range(max(layers - adapter_layers, 0), layers)
        for place in ("query", "value", "output")
    ]


def adapter_nodes(graph: Any) -> list[str]:
    """Return the names of the nodes that multiply with an adapter's tensors."""
    return [node.name for node in graph.node if node.name.startswith(("adapter.", "head."))]


def plain_graph(encoder: Encoder) -> Any:
    """Return the graph in standard operators, ``features`` alone coming out."""
    graph = _Writer()
    heads, width = encoder.heads, encoder.features
    states = graph.node("Gather", graph.constant("word", encoder.word), "input_ids")
    states = graph.node("Add", states, _positions(graph, encoder))
    states = _norm(graph, states, "embedding_norm", encoder.embedding_norm, encoder.epsilon)
    mask = graph.node("Cast", "attention_mask", to=graph.float)
    hidden = graph.node("Sub", graph.scalar(1.0), graph.node("Unsqueeze", mask, graph.axes(1, 2)))
    hidden = graph.node("Mul", hidden, graph.scalar(_MASKED))
    to_heads = graph.constant("to_heads", np.array([0, 0, heads, width // heads], np.int64))
    from_heads = graph.constant("from_heads", np.array([0, 0, width], np.int64))
    scale = graph.scalar((width // heads) ** -0.5)

    for number, layer in enumerate(encoder.layers):
        place = f"layer.{number}"

        def split(part: str, dense: Affine, perm: Sequence[int], *, source: str = states) -> str:
            joined = _dense(graph, source, part, dense)
            return graph.node("Transpose", graph.node("Reshape", joined, to_heads), perm=perm)

        query = split(f"{place}.query", layer.query, (0, 2, 1, 3))
        key = split(f"{place}.key", layer.key, (0, 2, 3, 1))
        value = split(f"{place}.value", layer.value, (0, 2, 1, 3))
        scores = graph.node("Mul", graph.node("MatMul", query, key), scale)
        scores = graph.node("Softmax", graph.node("Add", scores, hidden), axis=-1)
        context = graph.node("Transpose", graph.node("MatMul", scores, value), perm=(0, 2, 1, 3))
        context = graph.node("Reshape", context, from_heads)
        context = _dense(graph, context, f"{place}.attention_output", layer.attention_output)
        states = _norm(
            graph,
            graph.node("Add", context, states),
            f"{place}.attention_norm",
            layer.attention_norm,
            encoder.epsilon,
        )
        inner = _dense(graph, states, f"{place}.inner", layer.inner)
        inner = _activated(graph, inner, encoder.activation)
        output = _dense(graph, inner, f"{place}.output", layer.output)
        states = _norm(
            graph,
            graph.node("Add", output, states),
            f"{place}.output_norm",
            layer.output_norm,
            encoder.epsilon,
        )
    _pooled(graph, states, mask)
    return graph.model({"features": ("batch", width)})


def fused_graph(encoder: Encoder, *, adapter_layers: int | None, apart: bool = False) -> Any:
    """Return the graph in the runtime's fused operators.

    Args:
        encoder: What to write.
        adapter_layers: How many layers, counted from the top, get slots; then there are a
            head and ``logits`` too. None: neither slots nor head.
        apart: Keep the query, key and value product of every layer out of its attention, for
            quantisation to four bits, which there is of products alone. Otherwise they are
            one node where there are no slots (3 % faster at 32 tokens, in int8).
    """
    graph = _Writer()
    width = encoder.features
    words = graph.node("Gather", graph.constant("word", encoder.word), "input_ids", name="word")
    states = _residual_norm(
        graph,
        words,
        _positions(graph, encoder),
        "embedding_norm",
        encoder.embedding_norm,
        epsilon=encoder.epsilon,
    )
    hidden = graph.node("Cast", "attention_mask", to=graph.int32)
    slots = set(slot_names(len(encoder.layers), adapter_layers or 0))
    for number, layer in enumerate(encoder.layers):
        states = _fused_layer(
            graph,
            encoder,
            f"layer.{number}",
            layer,
            states,
            hidden=hidden,
            slots=slots,
            apart=apart,
        )
    mask = graph.node("Cast", "attention_mask", to=graph.float)
    features = _pooled(graph, states, mask)
    outputs: dict[str, tuple[Any, ...]] = {"features": ("batch", width)}
    if adapter_layers is not None:
        weight = graph.adapter("head.weight", np.zeros((width, 0), np.float32), (width, "labels"))
        bias = graph.adapter("head.bias", np.zeros(0, np.float32), ("labels",))
        product = graph.node("MatMul", features, weight, name="head.product")
        graph.node("Add", product, bias, name="head.sum", output="logits")
        outputs["logits"] = ("batch", "labels")
    return graph.model(outputs)


def span_graph(encoder: Encoder, head: Affine) -> Any:
    """Return the fused graph of a reader: a question and a passage come in, logits out.

    Inputs are ``input_ids``, ``attention_mask`` and ``token_type_ids``, (batch, tokens); where the
    model knows one segment only, every token counts as in it. ``spans``, (batch, tokens, 2), is
    how well an answer starts, and ends, at each token.
    """
    graph = _Writer()
    graph.more_input("token_type_ids")
    words = graph.node("Gather", graph.constant("word", encoder.word), "input_ids", name="word")
    last = graph.constant("last_segment", np.array(len(encoder.segment) - 1, np.int64))
    segments = graph.node("Min", "token_type_ids", last)
    segment = graph.node("Gather", graph.constant("segment", encoder.segment), segments)
    states = _residual_norm(
        graph,
        graph.node("Sum", words, segment),
        _positions(graph, encoder),
        "embedding_norm",
        encoder.embedding_norm,
        epsilon=encoder.epsilon,
    )
    hidden = graph.node("Cast", "attention_mask", to=graph.int32)
    for number, layer in enumerate(encoder.layers):
        states = _fused_layer(
            graph,
            encoder,
            f"layer.{number}",
            layer,
            states,
            hidden=hidden,
            slots=set(),
            apart=False,
        )
    # Named as an adapter's head is, so that quantisation leaves it as it is.
    weight = graph.constant("head.weight", head.weight)
    product = graph.node("MatMul", states, weight, name="head.product")
    bias = graph.constant("head.bias", head.bias)
    graph.node("Add", product, bias, name="head.sum", output="spans")
    return graph.model({"spans": ("batch", "tokens", 2)})


def _fused_layer(
    graph: _Writer,
    encoder: Encoder,
    place: str,
    layer: Layer,
    states: str,
    *,
    hidden: str,
    slots: set[str],
    apart: bool,
) -> str:
    width = encoder.features
    epsilon = encoder.epsilon
    parts = (layer.query, layer.key, layer.value)
    joined = graph.constant(f"{place}.qkv.weight", np.concatenate([p.weight for p in parts], 1))
    bias = graph.constant(f"{place}.qkv.bias", np.concatenate([p.bias for p in parts]))
    options: dict[str, Any] = {
        "num_heads": encoder.heads,
        "mask_filter_value": _MASKED,
        "domain": _MICROSOFT,
    }
    if apart or f"{place}.query" in slots:
        product = graph.node("MatMul", states, joined, name=f"{place}.qkv")
        query, key, value = graph.nodes("Split", product, outputs=3, axis=-1, num_outputs=3)
        if f"{place}.query" in slots:
            query = _low_rank(graph, states, query, f"{place}.query", width)
            value = _low_rank(graph, states, value, f"{place}.value", width)
        context = graph.node("MultiHeadAttention", query, key, value, bias, hidden, **options)
    else:
        context = graph.node(
            "Attention", states, joined, bias, hidden, name=f"{place}.qkv", **options
        )
    context = _dense(graph, context, f"{place}.attention_output", layer.attention_output)
    states = _residual_norm(
        graph, context, states, f"{place}.attention_norm", layer.attention_norm, epsilon=epsilon
    )
    if ACTIVATIONS[encoder.activation] == "none":
        inner = _product(graph, states, f"{place}.inner", layer.inner)
        bias = graph.constant(f"{place}.inner.bias", layer.inner.bias)
        inner = graph.node("BiasGelu", inner, bias, domain=_MICROSOFT)
    else:
        inner = _dense(graph, states, f"{place}.inner", layer.inner)
        inner = _activated(graph, inner, encoder.activation)
    output = _dense(graph, inner, f"{place}.output", layer.output)
    if f"{place}.output" in slots:
        output = _bottleneck(graph, output, f"{place}.output", width)
    return _residual_norm(
        graph, output, states, f"{place}.output_norm", layer.output_norm, epsilon=epsilon
    )


def _low_rank(graph: _Writer, states: str, product: str, slot: str, width: int) -> str:
    """Add x·A·B to a product; A is (inputs, 0) and B (0, outputs) until an adapter comes."""
    rank = f"{slot}.rank"
    a = graph.adapter(f"{slot}.lora_a", np.zeros((width, 0), np.float32), (width, rank))
    b = graph.adapter(f"{slot}.lora_b", np.zeros((0, width), np.float32), (rank, width))
    down = graph.node("MatMul", states, a, name=f"adapter.{slot}.a")
    up = graph.node("MatMul", down, b, name=f"adapter.{slot}.b")
    return graph.node("Add", product, up)


def _bottleneck(graph: _Writer, output: str, slot: str, width: int) -> str:
    """Return h + gelu(h·down + down_bias)·up + up_bias."""
    rank = f"{slot}.rank"
    empty = np.zeros(0, np.float32)
    down = graph.adapter(f"{slot}.down", np.zeros((width, 0), np.float32), (width, rank))
    down_bias = graph.adapter(f"{slot}.down_bias", empty, (rank,))
    up = graph.adapter(f"{slot}.up", np.zeros((0, width), np.float32), (rank, width))
    up_bias = graph.adapter(f"{slot}.up_bias", np.zeros(width, np.float32), (width,))
    inner = graph.node("MatMul", output, down, name=f"adapter.{slot}.down")
    inner = graph.node("Gelu", graph.node("Add", inner, down_bias))
    added = graph.node("MatMul", inner, up, name=f"adapter.{slot}.up")
    return graph.node("Sum", output, added, up_bias)


def _positions(graph: _Writer, encoder: Encoder) -> str:
    """Return the positions' rows, (tokens, F), as many as the batch has tokens."""
    tokens = graph.node("Shape", "input_ids", start=1, end=2)
    table = graph.constant("position", encoder.position)
    return graph.node("Slice", table, graph.axes(0), tokens)


def _product(graph: _Writer, states: str, name: str, dense: Affine) -> str:
    weight = graph.constant(f"{name}.weight", dense.weight)
    return graph.node("MatMul", states, weight, name=name)


def _dense(graph: _Writer, states: str, name: str, dense: Affine) -> str:
    product = _product(graph, states, name, dense)
    return graph.node("Add", product, graph.constant(f"{name}.bias", dense.bias))


def _residual_norm(
    graph: _Writer, states: str, skip: str, name: str, norm: Affine, *, epsilon: float
) -> str:
    """Normalise states + skip.

    The sum is written ``Sum`` because the runtime turns ``Add`` before a normalisation into
    SkipLayerNormalization, which is five times slower than the two apart: 288 µs against 51
    for 128 tokens of 384 features, ONNX Runtime 1.32, one thread.
    """
    return _norm(graph, graph.node("Sum", states, skip), name, norm, epsilon)


def _norm(graph: _Writer, states: str, name: str, norm: Affine, epsilon: float) -> str:
    gain = graph.constant(f"{name}.weight", norm.weight)
    bias = graph.constant(f"{name}.bias", norm.bias)
    return graph.node("LayerNormalization", states, gain, bias, axis=-1, epsilon=epsilon)


def _activated(graph: _Writer, states: str, activation: str) -> str:
    approximate = ACTIVATIONS[activation]
    if not approximate:
        return graph.node("Relu", states)
    return graph.node("Gelu", states, approximate=approximate)


def _pooled(graph: _Writer, states: str, mask: str) -> str:
    """Write ``features``. A mean of length 1 is a sum of length 1: nothing is divided twice."""
    row = graph.node("Unsqueeze", mask, graph.axes(1))
    total = graph.node("Squeeze", graph.node("MatMul", row, states, name="pool"), graph.axes(1))
    return graph.node("LpNormalization", total, axis=-1, p=2, output="features")


class _Writer:
    """Collects nodes and constants; every outcome gets a name of its own."""

    def __init__(self) -> None:
        self._onnx: Any = require("onnx", extra="coordinator")
        self.float: int = self._onnx.TensorProto.FLOAT
        self.int32: int = self._onnx.TensorProto.INT32
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._inputs = [
            self._tensor(name, self._onnx.TensorProto.INT64, ("batch", "tokens"))
            for name in ("input_ids", "attention_mask")
        ]

    def more_input(self, name: str) -> None:
        """Declare another input of whole numbers, (batch, tokens)."""
        whole = self._onnx.TensorProto.INT64
        self._inputs.append(self._tensor(name, whole, ("batch", "tokens")))

    def constant(self, name: str, array: np.ndarray[Any, Any]) -> str:
        """Store an array under its name, once."""
        if name not in self._constants:
            contiguous = np.ascontiguousarray(array)
            self._constants[name] = self._onnx.numpy_helper.from_array(contiguous, name)
        return name

    def scalar(self, value: float) -> str:
        return self.constant(f"scalar_{value}", np.array(value, np.float32))

    def axes(self, *axes: int) -> str:
        return self.constant(f"axes_{'_'.join(map(str, axes))}", np.array(axes, np.int64))

    def adapter(self, name: str, default: FloatMatrix, shape: Sequence[int | str]) -> str:
        """Declare an input that may be left out."""
        self._inputs.append(self._tensor(name, self.float, shape))
        return self.constant(name, default)

    def node(
        self, operator: str, *inputs: str, name: str = "", output: str = "", **options: Any
    ) -> str:
        """Write a node with one outcome, and return the outcome's name."""
        (only,) = self.nodes(operator, *inputs, name=name, output=output, **options)
        return only

    def nodes(
        self,
        operator: str,
        *inputs: str,
        outputs: int = 1,
        name: str = "",
        output: str = "",
        domain: str = "",
        **options: Any,
    ) -> list[str]:
        """Write a node with several outcomes."""
        stem = f"{operator}_{len(self._nodes)}"
        names = [output or f"{stem}.{index}" for index in range(outputs)]
        node = self._onnx.helper.make_node(
            operator, inputs, names, name=name or stem, domain=domain, **options
        )
        self._nodes.append(node)
        return names

    def model(self, outputs: dict[str, tuple[Any, ...]]) -> Any:
        """Return the finished model."""
        helper = self._onnx.helper
        graph = helper.make_graph(
            self._nodes,
            "encoder",
            self._inputs,
            [self._tensor(name, self.float, shape) for name, shape in outputs.items()],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="llmos"
        )
        # There is nothing to fold before quantising; else the runtime's quantiser warns.
        helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
        return model

    def _tensor(self, name: str, kind: int, shape: Sequence[int | str]) -> Any:
        return self._onnx.helper.make_tensor_value_info(name, kind, shape)
