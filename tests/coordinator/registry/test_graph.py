"""The graphs compute what transformers computes, with and without an adapter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.registry.graph import fused_graph, plain_graph, slot_names
from coordinator.registry.weights import Encoder, read_encoder
from shared.models.adapter import Adapter, AdapterShape, Slot
from shared.types import Digest
from tests.support.tiny_encoders import (
    ARCHITECTURES,
    FEATURES,
    LAYERS,
    MAX_TOKENS,
    adapt,
    make_encoder,
    open_graph,
    ragged,
    torch_features,
)

LABELS = ("weather", "banking", "travel")
BASE = Digest("a" * 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    make_encoder(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return read_encoder(folder)


@pytest.fixture(scope="module")
def plain(encoder: Encoder) -> Any:
    return open_graph(plain_graph(encoder))


@pytest.fixture(scope="module")
def slotted(encoder: Encoder) -> Any:
    return open_graph(fused_graph(encoder, adapter_layers=2))


def ask(session: Any, ids: Any, mask: Any, adapter: Adapter | None = None) -> list[Any]:
    inputs = {} if adapter is None else adapter.graph_inputs()
    answers: list[Any] = session.run(None, {"input_ids": ids, "attention_mask": mask, **inputs})
    return answers


def drawn_adapter(method: str, rank: int, *, seed: int = 0, top: int = 2) -> Adapter:
    """An adapter that changes every number it can reach."""
    names = [
        name
        for name in slot_names(LAYERS, top)
        if method != "none" and name.endswith("output") == (method == "bottleneck")
    ]
    shape = AdapterShape(
        labels=LABELS,
        features=FEATURES,
        method=method,  # type: ignore[arg-type]
        rank=rank,
        alpha=3.0,
        slots=tuple(Slot(name=name, inputs=FEATURES, outputs=FEATURES) for name in names),
    )
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.normal(scale=0.3, size=size).astype(np.float32)
        for name, size in shape.tensors.items()
    }
    return Adapter(shape, BASE, tensors)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("changes", [{}, {"seed": 1}])
def test_both_graphs_give_the_features_that_transformers_gives(
    architecture: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = make_encoder(tmp_path, architecture, **changes)
    encoder = read_encoder(tmp_path)
    ids, mask = ragged([7, 1, 20, MAX_TOKENS])
    expected = torch_features(model, ids, mask)
    assert encoder.max_tokens == MAX_TOKENS
    for graph in (plain_graph(encoder), fused_graph(encoder, adapter_layers=None)):
        (features,) = ask(open_graph(graph), ids, mask)
        np.testing.assert_allclose(features, expected, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_every_activation_that_is_accepted_is_computed(activation: str, tmp_path: Path) -> None:
    model = make_encoder(tmp_path, hidden_act=activation)
    encoder = read_encoder(tmp_path)
    ids, mask = ragged([9, 4])
    for graph in (plain_graph(encoder), fused_graph(encoder, adapter_layers=1)):
        features = ask(open_graph(graph), ids, mask)[0]
        np.testing.assert_allclose(features, torch_features(model, ids, mask), atol=1e-5)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.integers(1, MAX_TOKENS), min_size=1, max_size=5), seed=st.integers(0, 99)
)
def test_the_fused_graph_is_the_plain_one_whatever_the_batch(
    plain: Any, slotted: Any, lengths: list[int], seed: int
) -> None:
    ids, mask = ragged(lengths, seed=seed)
    (expected,) = ask(plain, ids, mask)
    np.testing.assert_allclose(ask(slotted, ids, mask)[0], expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.integers(1, MAX_TOKENS), min_size=2, max_size=5), junk=st.integers(0, 60)
)
def test_what_a_text_is_padded_with_does_not_change_its_features(
    plain: Any, slotted: Any, lengths: list[int], junk: int
) -> None:
    ids, mask = ragged(lengths)
    ids = np.where(mask == 1, ids, junk)
    for session in (plain, slotted):
        together = ask(session, ids, mask)[0]
        for row, length in enumerate(lengths):
            own = slice(row, row + 1), slice(0, length)
            alone = ask(session, ids[own], mask[own])[0]
            np.testing.assert_allclose(together[row], alone[0], atol=2e-6)


@pytest.mark.parametrize("method", ["none", "lora", "rslora", "bottleneck"])
@pytest.mark.parametrize("rank", [1, 5])
def test_an_adapter_does_in_the_graph_what_it_does_in_patched_layers(
    folder: Path, slotted: Any, method: str, rank: int, tmp_path: Path
) -> None:
    model = make_encoder(tmp_path)  # the same draw as in ``folder``
    adapter = drawn_adapter(method, 0 if method == "none" else rank)
    adapt(model, adapter)
    ids, mask = ragged([12, 3, 30])
    features, logits = ask(slotted, ids, mask, adapter)
    expected = torch_features(model, ids, mask)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    np.testing.assert_allclose(logits, adapter.logits(expected), atol=1e-4)
    if method != "none":
        without = ask(slotted, ids, mask)[0]
        assert np.abs(without - features).max() > 1e-2, "the adapter did nothing"


@pytest.mark.parametrize("method", ["lora", "bottleneck"])
def test_an_adapter_of_nothing_leaves_every_bit_as_it_is(slotted: Any, method: str) -> None:
    shape = drawn_adapter(method, 4).shape
    fresh = Adapter.initial(shape, BASE)
    ids, mask = ragged([17])
    assert np.array_equal(ask(slotted, ids, mask)[0], ask(slotted, ids, mask, fresh)[0])


def test_adapters_of_any_rank_follow_each_other_and_leave_nothing_behind(slotted: Any) -> None:
    ids, mask = ragged([11])
    before = ask(slotted, ids, mask)
    answers: dict[tuple[str, int], list[Any]] = {}
    for turn in range(2):
        for method, rank in (("lora", 8), ("lora", 1), ("bottleneck", 3), ("rslora", 40)):
            answer = ask(slotted, ids, mask, drawn_adapter(method, rank))
            if turn:
                for was, now in zip(answers[method, rank], answer, strict=True):
                    assert np.array_equal(was, now)
            answers[method, rank] = answer
    for was, now in zip(before, ask(slotted, ids, mask), strict=True):
        assert np.array_equal(was, now)


def test_without_a_head_there_are_no_logits(slotted: Any) -> None:
    ids, mask = ragged([4, 6])
    assert ask(slotted, ids, mask)[1].shape == (2, 0)


@pytest.mark.parametrize("top", [0, 1, 3])
def test_slots_are_in_the_top_layers_and_each_of_them_works(
    folder: Path, encoder: Encoder, top: int, tmp_path: Path
) -> None:
    session = open_graph(fused_graph(encoder, adapter_layers=top))
    optional = {given.name for given in session.get_overridable_initializers()}
    expected = {"head.weight", "head.bias"}
    for layer in range(LAYERS - top, LAYERS):
        expected |= {f"layer.{layer}.{p}.lora_{m}" for p in ("query", "value") for m in "ab"}
        tensors = ("down", "down_bias", "up", "up_bias")
        expected |= {f"layer.{layer}.output.{tensor}" for tensor in tensors}
    assert optional == expected
    if top:
        model = make_encoder(tmp_path)
        adapter = drawn_adapter("lora", 2, top=top)
        adapt(model, adapter)
        ids, mask = ragged([9])
        features = ask(session, ids, mask, adapter)[0]
        np.testing.assert_allclose(features, torch_features(model, ids, mask), atol=1e-5)


def test_products_apart_from_attention_compute_the_same(encoder: Encoder, slotted: Any) -> None:
    apart = fused_graph(encoder, adapter_layers=2, apart=True)
    kinds = Counter(node.op_type for node in apart.graph.node)
    assert "Attention" not in kinds
    assert kinds["MultiHeadAttention"] == LAYERS
    ids, mask = ragged([9, 21])
    np.testing.assert_allclose(
        ask(open_graph(apart), ids, mask)[0], ask(slotted, ids, mask)[0], atol=1e-6
    )


def test_the_first_layers_are_what_torch_has_after_them(folder: Path, tmp_path: Path) -> None:
    model = make_encoder(tmp_path)
    model.encoder.layer = model.encoder.layer[:2]
    ids, mask = ragged([8, 13])
    pruned = read_encoder(folder).first_layers(2)
    (features,) = ask(open_graph(plain_graph(pruned)), ids, mask)
    np.testing.assert_allclose(features, torch_features(model, ids, mask), atol=1e-5)


def test_the_graphs_are_well_formed_and_the_fused_one_is_smaller(encoder: Encoder) -> None:
    import onnx

    plain, fused = plain_graph(encoder), fused_graph(encoder, adapter_layers=None)
    onnx.checker.check_model(plain, full_check=True)
    onnx.checker.check_model(fused)
    assert {node.domain for node in plain.graph.node} == {""}
    assert len(fused.graph.node) < len(plain.graph.node) / 2
