"""Make a graph's constants smaller: eight bits everywhere, or four.

Q1  what an adapter is multiplied with stays in float32, and so do head and pooling
Q2  eight-bit products cannot saturate, so a device without VNNI computes what one with it does
Q3  what the runtime would fuse at every start is fused in the file

Eight bits: products get integer weights, one scale per column, and quantise what enters them
while they run, one scale per call. So an answer depends a little on the texts it shares a
batch with, and devices ask one text at a time. Four bits: weights alone, a scale per 32
numbers. The table of words is read row by row and never multiplied, so that it keeps a scale
per block either way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordinator.registry.graph import adapter_nodes
from shared.extras import require
from shared.types import FloatMatrix

WORD_BLOCK: Final = 128
"""Features of a word that share a scale in eight bits: 1 - cosine 9e-6 on MiniLM, 1 MB less
than 32 of them."""

INT4_BLOCK: Final = 32
"""Numbers that share a scale in four bits."""

_MICROSOFT: Final = "com.microsoft"
_INT8_COMPUTE: Final = 4
"""MatMulNBits' ``accuracy_level`` that multiplies in integers, the fastest."""


def quantise_int8(source: Path, target: Path) -> None:
    """Write the graph in ``source`` to ``target`` with weights of eight bits."""
    onnx: Any = require("onnx", extra="coordinator")
    quantization: Any = require("onnxruntime.quantization", extra="coordinator")
    graph = onnx.load(source, load_external_data=False).graph
    quantization.quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul", "Attention"],
        per_channel=True,
        # Without VNNI two products of 255 and 127 overflow 16 bits; 255 and 64 do not (Q2).
        reduce_range=True,
        nodes_to_exclude=_kept(graph),
        # Shapes behind com.microsoft operators are not inferred, so it must be told the type.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    model = onnx.load(target)
    _quantise_words(onnx, model.graph, bits=8, block=WORD_BLOCK)
    onnx.save(model, target)
    _fuse_products(onnx, target)


def quantise_int4(source: Path, target: Path) -> None:
    """Write the graph in ``source`` to ``target`` with weights of four bits.

    Attention that has not its products apart keeps its weights.
    """
    onnx: Any = require("onnx", extra="coordinator")
    model = onnx.load(source)
    graph = model.graph
    constants = {constant.name: constant for constant in graph.initializer}
    kept = set(_kept(graph))
    for node in graph.node:
        if node.op_type != "MatMul" or node.name in kept:
            continue
        constant = constants[node.input[1]]
        weight = onnx.numpy_helper.to_array(constant)
        packed, scales = block_quantised(weight.T, bits=4, block=INT4_BLOCK)
        graph.initializer.remove(constant)
        names = [f"{constant.name}.int4", f"{constant.name}.scales"]
        for name, array in zip(names, (packed, scales), strict=True):
            graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        node.CopyFrom(
            onnx.helper.make_node(
                "MatMulNBits",
                [node.input[0], *names],
                node.output,
                name=node.name,
                domain=_MICROSOFT,
                K=weight.shape[0],
                N=weight.shape[1],
                bits=4,
                block_size=INT4_BLOCK,
                accuracy_level=_INT8_COMPUTE,
            )
        )
    _quantise_words(onnx, graph, bits=4, block=INT4_BLOCK)
    onnx.save(model, target)


def block_quantised(
    rows: FloatMatrix, *, bits: int, block: int
) -> tuple[NDArray[np.uint8], FloatMatrix]:
    """Quantise every block of ``block`` numbers of a row with a scale of its own.

    A number x is stored as round(x / scale) + 2^(bits-1), and read back as
    (stored - 2^(bits-1)) · scale.

    Args:
        rows: (n, m)
        bits: 8, or 4: then two numbers share a byte, the first in its lower half.
        block: A power of two from 16, as the runtime's operators want it.

    Returns:
        Bytes (n, ⌈m/block⌉, block·bits/8), the last block filled up with zeros, and scales
        (n, ⌈m/block⌉).
    """
    count, width = rows.shape
    blocks = -(-width // block)
    padded = np.pad(rows, ((0, 0), (0, blocks * block - width))).reshape(count, blocks, block)
    zero = 1 << (bits - 1)
    # The number of largest size becomes -zero, exactly, whichever sign it has.
    largest = np.take_along_axis(padded, np.abs(padded).argmax(-1, keepdims=True), -1)
    # Of numbers this small not even the scale would be one: they become zero.
    nothing = np.abs(largest) < zero * np.finfo(np.float32).tiny
    scales = np.where(nothing, 1, largest / -zero).astype(np.float32)
    stored = np.clip(np.rint(padded / scales) + zero, 0, 2 * zero - 1).astype(np.uint8)
    if bits == 4:
        stored = stored[..., ::2] | stored[..., 1::2] << 4
    return stored, scales[..., 0]


def _quantise_words(onnx: Any, graph: Any, *, bits: int, block: int) -> None:
    """Replace the word table's Gather by one that reads quantised rows."""
    node = next(node for node in graph.node if node.name == "word")
    constant = next(each for each in graph.initializer if each.name == node.input[0])
    table = onnx.numpy_helper.to_array(constant)
    stored, scales = block_quantised(table, bits=bits, block=block)
    # Stored as one row a word; what the last block was filled up with is left out.
    stored = stored.reshape(len(table), -1)[:, : -(-table.shape[1] * bits // 8)]
    graph.initializer.remove(constant)
    kind = onnx.TensorProto.UINT8 if bits == 8 else onnx.TensorProto.UINT4
    words = onnx.helper.make_tensor("word.stored", kind, table.shape, stored.tobytes(), raw=True)
    zero = np.full(scales.size * bits // 8 + 1, 0x80 if bits == 8 else 0x88, np.uint8)
    zeros = onnx.helper.make_tensor(
        "word.zeros", kind, scales.shape, zero[: -(-scales.size * bits // 8)].tobytes(), raw=True
    )
    scales_tensor = onnx.numpy_helper.from_array(scales, "word.scales")
    graph.initializer.extend([words, scales_tensor, zeros])
    options = {"bits": bits} if bits == 8 else {}
    node.CopyFrom(
        onnx.helper.make_node(
            "GatherBlockQuantized",
            ["word.stored", node.input[1], "word.scales", "word.zeros"],
            node.output,
            name=node.name,
            domain=_MICROSOFT,
            gather_axis=0,
            quantize_axis=1,
            block_size=block,
            **options,
        )
    )


def _fuse_products(onnx: Any, path: Path) -> None:
    """Let the runtime write down its own fusions, those that no processor is special to (Q3).

    The quantiser writes each product as six nodes, of which the runtime makes one: on MiniLM
    94 nodes instead of 189 are left, and a session opens in 20 ms instead of 25.
    """
    runtime: Any = require("onnxruntime", extra="coordinator")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3  # errors: it warns of every input that may be left out
    # From memory, for the file it writes is the one it would still be reading.
    runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    model = onnx.load(path)
    # It names every domain that it knows, experiments included.
    used = {node.domain for node in model.graph.node}
    opsets = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    onnx.save(model, path)


def _kept(graph: Any) -> list[str]:
    """Return the names of the products that stay as they are (Q1)."""
    return [*adapter_nodes(graph), "pool"]
