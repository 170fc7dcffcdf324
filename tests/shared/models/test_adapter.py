"""An adapter has one encoding, and bytes from a peer become a sound adapter or an error."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from shared.errors import NonFiniteUpdate, ProtocolError, ShapeMismatch, UndecodableMessage
from shared.models.adapter import (
    FEATURE_SCALE,
    LABEL_SCALE,
    Adapter,
    AdapterShape,
    Slot,
    unflatten,
)
from shared.types import Digest

ROOT = Path(__file__).parents[3]

BASE = Digest("ab" * 32)
LABELS = ("greet", "退款", "leave")
HEAD = AdapterShape(labels=LABELS, features=4)


def a_shape(method: Any, *, labels: tuple[str, ...] = LABELS) -> AdapterShape:
    """Two slots, of different sizes where the method allows it."""
    if method == "none":
        return AdapterShape(labels=labels, features=4)
    names = ("output", "output") if method == "bottleneck" else ("query", "value")
    outputs = 4 if method == "bottleneck" else 3
    slots = tuple(
        Slot(name=f"layer.{layer}.{name}", inputs=4, outputs=outputs)
        for layer, name in enumerate(names)
    )
    return AdapterShape(labels=labels, features=4, method=method, rank=2, alpha=6.0, slots=slots)


METHODS = ("none", "lora", "rslora", "bottleneck")
SHAPES = (*map(a_shape, METHODS), a_shape("lora", labels=()))


def drawn(shape: AdapterShape, seed: int = 0) -> Adapter:
    rng = np.random.default_rng(seed)
    tensors = {n: rng.normal(size=size).astype(np.float32) for n, size in shape.tensors.items()}
    return Adapter(shape, BASE, tensors)


def some_adapter(seed: int = 0, features: int = 4) -> Adapter:
    return drawn(AdapterShape(labels=LABELS, features=features), seed)


def encoded(
    tensors: dict[str, Any] | None = None, about: object = None, metadata: Any = None, **shape: Any
) -> bytes:
    """What a peer may send instead of an adapter."""
    zeros = {name: np.zeros(size, np.float32) for name, size in HEAD.tensors.items()}
    whole = {"base": BASE, "format": 1, "shape": HEAD.model_dump() | shape}
    text = json.dumps(whole | about if isinstance(about, dict) else about or whole)
    return save(zeros | (tensors or {}), metadata={"llmos": text} if metadata is None else metadata)


@given(st.integers(0, 99), st.sampled_from(SHAPES))
def test_decoding_gives_back_what_was_encoded(seed: int, shape: AdapterShape) -> None:
    adapter = drawn(shape, seed)
    again = Adapter.from_bytes(adapter.to_bytes())
    assert (again.shape, again.base) == (shape, BASE)
    assert all((again.tensors[name] == tensor).all() for name, tensor in adapter.tensors.items())
    assert again.digest == adapter.digest


def test_the_encoding_is_the_same_in_every_process() -> None:
    """Of several metadata keys the order would differ from one process to the next."""
    code = "from tests.shared.models.test_adapter import some_adapter; print(some_adapter().digest)"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1")
    }
    assert digests == {some_adapter().digest}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_part_of_an_adapter_changes_its_digest(shape: AdapterShape) -> None:
    adapter = drawn(shape)
    others = [
        adapter.moved(np.eye(1, adapter.parameters, k)[0] * 1e-2) for k in range(adapter.parameters)
    ]
    others.append(replace(adapter, base=Digest("cd" * 32)))
    if shape.labels:
        changed = shape.model_copy(update={"labels": ("a", *LABELS[1:])})
        others.append(replace(adapter, shape=changed))
    if shape.slots:
        moved = shape.slots[0].model_copy(update={"name": "layer.9" + shape.slots[0].name[7:]})
        changed = shape.model_copy(update={"slots": (moved, *shape.slots[1:])})
        named = {
            name.replace(shape.slots[0].name, moved.name): tensor
            for name, tensor in adapter.tensors.items()
        }
        others.append(Adapter(changed, BASE, named))
        others.append(replace(adapter, shape=shape.model_copy(update={"alpha": 7.0})))
    assert len({one.digest for one in [adapter, *others]}) == len(others) + 1


def test_a_flat_vector_is_the_weight_row_by_row_and_then_the_bias() -> None:
    adapter = some_adapter()
    flat = adapter.flatten()
    assert flat.dtype == np.float32
    assert flat.shape == (adapter.parameters,) == (15,)
    assert flat[4 * 1 + 2] == adapter.weight[1, 2]
    assert flat[4 * 3 + 2] == adapter.bias[2]


@given(st.integers(0, 99))
def test_moving_adds_and_moving_back_returns(seed: int) -> None:
    adapter = some_adapter(seed)
    delta = np.random.default_rng(seed).normal(size=adapter.parameters)
    moved = adapter.moved(delta)
    expected = (adapter.flatten().astype(np.float64) + delta).astype(np.float32)
    assert (moved.flatten() == expected).all()
    assert (moved.shape, moved.base) == (HEAD, BASE)


def test_an_adapter_never_changes() -> None:
    mine = np.zeros((3, 4), np.float32)
    adapter = Adapter(HEAD, BASE, {"head.weight": mine, "head.bias": np.zeros(3, np.float32)})
    mine[0, 0] = 1
    assert adapter.weight[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        adapter.weight[0, 0] = 1
    with pytest.raises(TypeError):
        adapter.tensors["head.bias"] = mine  # type: ignore[index]


def test_logits_scale_the_features() -> None:
    adapter = some_adapter()
    features = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    expected = [
        [sum(FEATURE_SCALE * f * w for f, w in zip(row, weights, strict=True)) + bias
         for weights, bias in zip(adapter.weight, adapter.bias, strict=True)]
        for row in features
    ]  # fmt: skip
    assert adapter.logits(features) == pytest.approx(np.array(expected), rel=1e-5, abs=1e-5)
    assert adapter.logits(features).dtype == np.float32
    best = [LABELS[max(range(3), key=row.__getitem__)] for row in expected]
    assert adapter.predict(features) == best


def test_a_fresh_adapter_finds_every_label_equally_likely() -> None:
    adapter = Adapter.initial(HEAD, BASE)
    assert not adapter.logits(np.ones((2, 4), np.float32)).any()
    assert adapter.predict(np.ones((2, 4), np.float32)) == ["greet", "greet"]


@pytest.mark.parametrize("shape", [(4,), (2, 5), (1, 2, 4)])
def test_features_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch):
        some_adapter().logits(np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(14,), (16,), (15, 1), ()])
def test_a_delta_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch):
        some_adapter().moved(np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_move_to_nowhere_is_refused(bad: float) -> None:
    delta = np.zeros(15)
    delta[7] = bad
    with pytest.raises(NonFiniteUpdate):
        some_adapter().moved(delta)


def test_a_move_that_overflows_a_parameter_is_refused() -> None:
    adapter = some_adapter().moved(np.full(15, 3e38))
    with pytest.raises(NonFiniteUpdate):
        adapter.moved(np.full(15, 3e38))


@pytest.mark.parametrize(
    "labels",
    [(), ("one",), ("a", "a"), ("a", ""), ("a", "x" * 201), ("a", "\ud800")],
    ids=["none", "one", "twice", "empty", "long", "surrogate"],
)
def test_labels_that_name_no_task_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(ShapeMismatch):
        Adapter.initial(AdapterShape.model_construct(labels=labels, features=4), BASE)
    tensors = {
        "head.weight": np.zeros((len(labels), 4), np.float32),
        "head.bias": np.zeros(len(labels), np.float32),
    }
    with pytest.raises(ProtocolError):
        Adapter.from_bytes(encoded(tensors, labels=labels))


def test_the_stand_in_for_a_peer_can_make_an_adapter() -> None:
    """Otherwise the refusals below might have another reason."""
    text = json.dumps(
        {"base": BASE, "format": 1, "shape": HEAD.model_dump()},
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
    )
    Adapter.from_bytes(encoded(metadata={"llmos": text}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 5) + b"[[[[[",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        encoded(metadata={}),
        encoded(metadata={"other": "{}"}),
        encoded(about=[1]),
        encoded(about={"format": 2}),
        encoded(about={"shape": None}),
        encoded(about={"shape": {"labels": LABELS}}),
        encoded(labels="abc"),
        encoded(labels=[1, 2, 3]),
        encoded(features="4"),
        encoded(method="dora"),
        encoded(unknown=1),
        encoded(slots=[{"name": "layer.x.query", "inputs": 4, "outputs": 4}]),
        encoded(about={"base": "AB" * 32}),
        encoded(about={"base": "ab" * 31}),
        encoded(about={"base": None}),
        encoded(tensors={"head.weight": np.zeros((3, 4), np.float64)}),
        encoded(tensors={"head.bias": np.zeros(3, np.float16)}),
        encoded(),  # right content, spelled otherwise
    ],
)
def test_bytes_that_are_no_adapter_are_refused(data: bytes) -> None:
    with pytest.raises(UndecodableMessage):
        Adapter.from_bytes(data)


PAIR = Slot(name="layer.0.query", inputs=4, outputs=4).model_dump()
BEHIND = PAIR | {"name": "layer.0.output"}


@pytest.mark.parametrize(
    "data",
    [
        encoded({"head.weight": np.zeros((2, 4), np.float32)}),
        encoded({"head.weight": np.zeros(12, np.float32)}),
        encoded({"head.weight": np.zeros((3, 0), np.float32)}),
        encoded({"head.bias": np.zeros(4, np.float32)}),
        encoded({"extra": np.zeros(1, np.float32)}),
        encoded(method="lora", rank=2, alpha=1.0, slots=[PAIR]),  # without its tensors
        encoded(method="lora"),
        encoded(method="lora", rank=2, slots=[BEHIND]),
        encoded(method="bottleneck", rank=2, slots=[PAIR]),
        encoded(method="bottleneck", rank=2, slots=[BEHIND | {"outputs": 5}]),
        encoded(method="lora", rank=2, slots=[PAIR, PAIR]),
        encoded(method="none", rank=2),
        encoded(labels=[]),
        encoded(features=0),
        encoded(features=65_537),
    ],
)
def test_parts_that_contradict_each_other_are_refused(data: bytes) -> None:
    with pytest.raises((ShapeMismatch, UndecodableMessage)):
        Adapter.from_bytes(data)


def test_an_adapter_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFiniteUpdate):
        Adapter.from_bytes(encoded({"head.bias": np.array([0, np.nan, 0], np.float32)}))


def test_a_fresh_adapter_has_one_half_of_each_pair_zero_and_the_other_drawn() -> None:
    for method in ("lora", "bottleneck"):
        adapter = Adapter.initial(a_shape(method), BASE, seed=5)
        for name, tensor in adapter.tensors.items():
            if name.endswith((".lora_a", ".down")):
                assert tensor.any()
                assert np.abs(tensor).max() <= 0.5, "U(-1/√4, 1/√4)"
            else:
                assert not tensor.any(), name
        again = Adapter.initial(a_shape(method), BASE, seed=5)
        assert again.digest == adapter.digest
        assert Adapter.initial(a_shape(method), BASE, seed=6).digest != adapter.digest


def test_a_head_may_start_from_the_labels_own_names() -> None:
    features = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    adapter = Adapter.initial(HEAD, BASE, label_features=features)
    assert (adapter.weight == np.float32(LABEL_SCALE) * features).all()
    assert not adapter.bias.any()
    with pytest.raises(ShapeMismatch):
        Adapter.initial(HEAD, BASE, label_features=features[:2])


@pytest.mark.parametrize(
    ("method", "scale"), [("lora", 3.0), ("rslora", 6 / 2**0.5), ("bottleneck", 1.0)]
)
def test_the_scale_is_the_papers(method: str, scale: float) -> None:
    assert a_shape(method).scale == pytest.approx(scale)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_flat_vector_has_the_head_first_and_is_cut_where_it_was_joined(
    shape: AdapterShape,
) -> None:
    adapter = drawn(shape)
    flat = adapter.flatten()
    assert flat.shape == (shape.parameters,)
    for name, tensor in unflatten(flat, shape).items():
        assert (tensor == adapter.tensors[name]).all()
    head = sum(adapter.tensors[name].size for name in shape.tensors if name.startswith("head."))
    assert shape.head_parameters == head
    assert list(shape.tensors)[: len(shape.head)] == list(shape.head)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_graph_is_fed_multiplies_from_the_right(shape: AdapterShape) -> None:
    adapter = drawn(shape)
    fed = adapter.graph_inputs()
    x = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
    assert fed.keys() == adapter.tensors.keys()
    if shape.labels:
        assert x @ fed["head.weight"] + fed["head.bias"] == pytest.approx(
            adapter.logits(x), rel=1e-5, abs=1e-5
        )
    for slot in shape.slots:
        if shape.method == "bottleneck":
            for name in ("down", "up"):
                assert (
                    fed[f"{slot.name}.{name}"] == adapter.tensors[f"{slot.name}.{name}"].T
                ).all()
        else:
            a, b = (adapter.tensors[f"{slot.name}.lora_{half}"] for half in "ab")
            found = x @ fed[f"{slot.name}.lora_a"] @ fed[f"{slot.name}.lora_b"]
            assert found == pytest.approx(shape.scale * (b @ (a @ x.T)).T, rel=1e-4, abs=1e-4)
    assert all(array.flags.c_contiguous and array.dtype == np.float32 for array in fed.values())


GOOD = drawn(a_shape("lora")).to_bytes()


@settings(max_examples=300)
@given(st.data())
def test_corrupted_bytes_are_refused_or_another_sound_adapter(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["flip", "cut", "extend"]))
    at = data.draw(st.integers(0, len(GOOD) - 1))
    corrupted = {
        "flip": GOOD[:at] + bytes([GOOD[at] ^ data.draw(st.integers(1, 255))]) + GOOD[at + 1 :],
        "cut": GOOD[:at],
        "extend": GOOD + b"\0" * (at + 1),
    }[kind]
    try:
        adapter = Adapter.from_bytes(corrupted)
    except (ProtocolError, NonFiniteUpdate):
        return
    assert kind == "flip"
    assert adapter.to_bytes() == corrupted
    assert adapter.digest != drawn(a_shape("lora")).digest
