"""An adapter has one encoding, and bytes from a peer become a sound adapter or an error."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from shared.errors import NonFiniteUpdate, ProtocolError, ShapeMismatch, UndecodableMessage
from shared.models.adapter import FEATURE_SCALE, Adapter
from shared.types import Digest

ROOT = Path(__file__).parents[3]

BASE = Digest("ab" * 32)
LABELS = ("greet", "退款", "leave")


def some_adapter(seed: int = 0, features: int = 4) -> Adapter:
    rng = np.random.default_rng(seed)
    return Adapter(
        LABELS,
        features,
        rng.normal(size=(3, features)).astype(np.float32),
        rng.normal(size=3).astype(np.float32),
        BASE,
    )


def encoded(
    tensors: dict[str, Any] | None = None, about: object = None, metadata: Any = None
) -> bytes:
    """What a peer may send instead of an adapter."""
    tensors = {"weight": np.zeros((3, 4), np.float32), "bias": np.zeros(3, np.float32)} | (
        tensors or {}
    )
    whole = {"base": BASE, "format": 1, "labels": LABELS}
    text = json.dumps(whole | about if isinstance(about, dict) else about or whole)
    return save(tensors, metadata={"llmos": text} if metadata is None else metadata)


@given(st.integers(0, 99), st.integers(1, 9))
def test_decoding_gives_back_what_was_encoded(seed: int, features: int) -> None:
    adapter = some_adapter(seed, features)
    again = Adapter.from_bytes(adapter.to_bytes())
    assert (again.labels, again.features, again.base) == (LABELS, features, BASE)
    assert (again.weight == adapter.weight).all()
    assert (again.bias == adapter.bias).all()
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


def test_every_part_of_an_adapter_changes_its_digest() -> None:
    adapter = some_adapter()
    others = [
        adapter.moved(np.eye(1, adapter.parameters, k)[0] * 1e-3) for k in range(adapter.parameters)
    ]
    others.append(
        Adapter(("a", *LABELS[1:]), 4, adapter.weight, adapter.bias, BASE),
    )
    others.append(Adapter(LABELS, 4, adapter.weight, adapter.bias, Digest("cd" * 32)))
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
    assert (moved.labels, moved.features, moved.base) == (LABELS, 4, BASE)


def test_an_adapter_never_changes() -> None:
    mine = np.zeros((3, 4), np.float32)
    adapter = Adapter(LABELS, 4, mine, np.zeros(3, np.float32), BASE)
    mine[0, 0] = 1
    assert adapter.weight[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        adapter.weight[0, 0] = 1


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
    adapter = Adapter.zeros(LABELS, 4, BASE)
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
        Adapter.zeros(labels, 4, BASE)
    tensors = {
        "weight": np.zeros((len(labels), 4), np.float32),
        "bias": np.zeros(len(labels), np.float32),
    }
    with pytest.raises(ProtocolError):
        Adapter.from_bytes(encoded(tensors, {"labels": labels}))


def test_the_stand_in_for_a_peer_can_make_an_adapter() -> None:
    """Otherwise the refusals below might have another reason."""
    text = json.dumps(
        {"base": BASE, "format": 1, "labels": LABELS},
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
        encoded(about={"labels": "abc"}),
        encoded(about={"labels": [1, 2, 3]}),
        encoded(about={"base": "AB" * 32}),
        encoded(about={"base": "ab" * 31}),
        encoded(about={"base": None}),
        encoded(tensors={"extra": np.zeros(1, np.float32)}),
        encoded(tensors={"weight": np.zeros((3, 4), np.float64)}),
        encoded(tensors={"bias": np.zeros(3, np.float16)}),
        encoded(tensors={"weight": np.zeros(12, np.float32)}),
        encoded(),  # right content, spelled otherwise
    ],
)
def test_bytes_that_are_no_adapter_are_refused(data: bytes) -> None:
    with pytest.raises(UndecodableMessage):
        Adapter.from_bytes(data)


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": np.zeros((2, 4), np.float32)},
        {"bias": np.zeros(4, np.float32)},
        {"weight": np.zeros((3, 0), np.float32)},
    ],
)
def test_parts_that_contradict_each_other_are_refused(tensors: dict[str, Any]) -> None:
    with pytest.raises(ShapeMismatch):
        Adapter.from_bytes(encoded(tensors))


def test_an_adapter_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFiniteUpdate):
        Adapter.from_bytes(encoded({"bias": np.array([0, np.nan, 0], np.float32)}))


GOOD = some_adapter().to_bytes()


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
    assert adapter.digest != some_adapter().digest
