"""Fewer bits, nearly the same answers; and what adapters touch keeps all its bits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coordinator.registry.graph import fused_graph
from coordinator.registry.quantisation import block_quantised, quantise_int4, quantise_int8
from coordinator.registry.weights import read_encoder
from shared.models.adapter import Adapter, AdapterShape, Slot
from shared.types import Digest
from tests.support.tiny_encoders import FEATURES, LAYERS, make_encoder, open_graph, ragged

QUANTISERS = {"int8": quantise_int8, "int4": quantise_int4}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import onnx

    folder = tmp_path_factory.mktemp("graphs")
    make_encoder(folder)
    encoder = read_encoder(folder)
    paths = {name: folder / f"{name}.onnx" for name in ("float", *QUANTISERS)}
    onnx.save(fused_graph(encoder, adapter_layers=2), paths["float"])
    onnx.save(fused_graph(encoder, adapter_layers=2, apart=True), folder / "apart.onnx")
    quantise_int8(paths["float"], paths["int8"])
    quantise_int4(folder / "apart.onnx", paths["int4"])
    return paths


def features(graph: Path, lengths: list[int], adapter: Adapter | None = None) -> Any:
    session = open_graph(graph)
    inputs = {} if adapter is None else adapter.graph_inputs()
    rows = []
    ids, _ = ragged(lengths)
    for row, length in enumerate(lengths):
        one = ids[row : row + 1, :length]
        feeds = {"input_ids": one, "attention_mask": np.ones_like(one), **inputs}
        rows.append(session.run(["features"], feeds)[0])
    return np.concatenate(rows)


# Random weights have no structure that quantising could spare: trained ones lose far less.
@pytest.mark.parametrize(("kind", "least"), [("int8", 0.98), ("int4", 0.85)])
def test_features_point_where_they_pointed(
    graphs: dict[str, Path], kind: str, least: float
) -> None:
    lengths = [5, 12, 30, 1, 20]
    cosines = (features(graphs["float"], lengths) * features(graphs[kind], lengths)).sum(1)
    assert cosines.mean() > least


@pytest.mark.parametrize("kind", QUANTISERS)
def test_no_product_of_the_base_keeps_its_bits(graphs: dict[str, Path], kind: str) -> None:
    import onnx

    graph = onnx.load(graphs[kind]).graph
    wide = [
        constant.name
        for constant in graph.initializer
        if constant.data_type == onnx.TensorProto.FLOAT
        and len(constant.dims) == 2
        and 0 not in constant.dims
        and not constant.name.endswith(("scales", "_scale"))
    ]
    assert wide == ["position"]
    assert "GatherBlockQuantized" in Counter(node.op_type for node in graph.node)


@pytest.mark.parametrize("kind", QUANTISERS)
def test_everything_an_adapter_feeds_is_still_a_float_input(
    graphs: dict[str, Path], kind: str
) -> None:
    was, now = (open_graph(graphs[each]) for each in ("float", kind))
    optional = [
        {(given.name, given.type, tuple(given.shape)) for given in s.get_overridable_initializers()}
        for s in (was, now)
    ]
    assert optional[0] == optional[1]
    assert {kind for _, kind, _ in optional[1]} == {"tensor(float)"}


@pytest.mark.parametrize("kind", QUANTISERS)
@pytest.mark.parametrize("method", ["lora", "bottleneck"])
def test_an_adapter_moves_the_features_as_it_moves_those_of_the_float_graph(
    graphs: dict[str, Path], kind: str, method: str
) -> None:
    places = ["output"] if method == "bottleneck" else ["query", "value"]
    shape = AdapterShape(
        features=FEATURES,
        method=method,  # type: ignore[arg-type]
        rank=4,
        alpha=8.0,
        slots=tuple(
            Slot(name=f"layer.{LAYERS - 1}.{place}", inputs=FEATURES, outputs=FEATURES)
            for place in places
        ),
    )
    rng = np.random.default_rng(0)
    tensors = {n: rng.normal(size=s).astype(np.float32) for n, s in shape.tensors.items()}
    adapter = Adapter(shape, Digest("a" * 64), tensors)
    lengths = [12, 30, 7]
    moved = features(graphs["float"], lengths, adapter)
    assert (features(graphs["float"], lengths) * moved).sum(1).mean() < 0.9
    assert (features(graphs[kind], lengths, adapter) * moved).sum(1).mean() > 0.9


def test_eight_bits_use_seven_so_that_no_product_saturates(graphs: dict[str, Path]) -> None:
    """Two products of 255 and 127 overflow 16 bits on processors without VNNI."""
    import onnx

    graph = onnx.load(graphs["int8"]).graph
    products = 0
    for constant in graph.initializer:
        if constant.data_type == onnx.TensorProto.INT8 and len(constant.dims) == 2:
            weight = onnx.numpy_helper.to_array(constant).astype(int)
            assert 60 <= np.abs(weight).max() <= 64
            products += 1
    assert products == 4 * LAYERS


def test_the_runtimes_own_fusions_are_in_the_file(graphs: dict[str, Path]) -> None:
    import onnx

    model = onnx.load(graphs["int8"])
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["DynamicQuantizeMatMul"] + kinds["QAttention"] == 4 * LAYERS
    assert "MatMulInteger" not in kinds
    # It would, had we written Add; its own normalisation is five times slower (_residual_norm).
    assert kinds["LayerNormalization"] == 2 * LAYERS + 1
    assert {opset.domain for opset in model.opset_import} == {"", "com.microsoft"}


@given(
    rows=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=70),
        elements=st.floats(-100, 100, width=32),
    ),
    bits=st.sampled_from([4, 8]),
    block=st.sampled_from([16, 32, 128]),
)
def test_no_number_moves_by_more_than_a_step_of_its_block(rows: Any, bits: int, block: int) -> None:
    stored, scales = block_quantised(rows, bits=bits, block=block)
    count, width = rows.shape
    blocks = -(-width // block)
    assert stored.shape == (count, blocks, block * bits // 8)
    assert scales.shape == (count, blocks)
    zero = 1 << (bits - 1)
    for row in range(count):
        for column in range(width):
            where, inside = divmod(column, block)
            if bits == 4:
                pair = int(stored[row, where, inside // 2])
                number = pair >> 4 if inside % 2 else pair & 15
            else:
                number = int(stored[row, where, inside])
            step = float(scales[row, where])
            # The side away from the largest number has one step less: there it is clipped.
            error = abs((number - zero) * step - float(rows[row, column]))
            assert error <= abs(step) * 1.001


def test_the_largest_number_of_a_block_is_kept_exactly() -> None:
    rows = np.array([[0.5, -7.0, 3.0] + [0.0] * 13], np.float32)
    stored, scales = block_quantised(rows, bits=8, block=16)
    assert (int(stored[0, 0, 1]) - 128) * scales[0, 0] == -7.0


def test_a_block_of_zeros_stays_zero() -> None:
    stored, scales = block_quantised(np.zeros((1, 16), np.float32), bits=8, block=16)
    assert set(stored.ravel()) == {128}
    assert np.isfinite(scales).all()
