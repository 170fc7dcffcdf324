"""A model is understood as a whole, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.registry.weights import read_encoder
from shared.errors import ModelError
from shared.models.architecture import ENCODERS
from tests.support.tiny_encoders import FEATURES, LAYERS, WORDS, make_encoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_encoder(tmp_path)
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def test_shapes_follow_the_configuration(folder: Path) -> None:
    encoder = read_encoder(folder)
    assert encoder.word.shape == (WORDS, FEATURES)
    assert len(encoder.layers) == LAYERS
    assert encoder.layers[0].inner.weight.shape == (FEATURES, 48)
    assert encoder.layers[0].output.weight.shape == (48, FEATURES)


@pytest.mark.parametrize("architecture", ["gpt2", "albert", None, ["bert"]])
def test_another_architecture_is_refused_with_the_list_of_ours(
    folder: Path, architecture: Any
) -> None:
    change_config(folder, model_type=architecture)
    with pytest.raises(ModelError, match="supported are " + ", ".join(ENCODERS)):
        read_encoder(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "silu"}, "activation 'silu'"),
        ({"hidden_act": None}, "activation None"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "decoder"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_attention_heads": 5}, "5 heads"),
        ({"layer_norm_eps": 0}, "layer_norm_eps"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_a_setting_that_is_not_computed_is_refused_by_name(
    folder: Path, changes: dict[str, Any], named: str
) -> None:
    change_config(folder, **changes)
    with pytest.raises(ModelError, match=named):
        read_encoder(folder)


def test_several_problems_are_one_refusal(folder: Path) -> None:
    change_config(folder, hidden_act="silu", is_decoder=True, vocab_size=-1)
    with pytest.raises(ModelError, match="describes no model") as caught:
        read_encoder(folder)
    assert all(part in str(caught.value) for part in ("silu", "decoder", "vocab_size"))


def test_missing_weights_are_all_named(folder: Path) -> None:
    lost = {"encoder.layer.1.attention.self.key.bias", "embeddings.word_embeddings.weight"}
    change_tensors(folder, lambda t: {k: v for k, v in t.items() if k not in lost})
    with pytest.raises(ModelError) as caught:
        read_encoder(folder)
    assert all(name in str(caught.value) for name in lost)


def test_weights_of_another_shape_are_named_with_both_shapes(folder: Path) -> None:
    change_config(folder, intermediate_size=49)
    with pytest.raises(ModelError, match=r"layer\.0\.intermediate\.dense\.weight is \[48, 32\]"):
        read_encoder(folder)


def test_integers_are_no_weights(folder: Path) -> None:
    name = "embeddings.LayerNorm.bias"
    change_tensors(folder, lambda t: t | {name: t[name].astype(np.int32)})
    with pytest.raises(ModelError, match=f"{name} is not {FEATURES} floating-point"):
        read_encoder(folder)


@pytest.mark.parametrize("prefix", ["bert.", "roberta."])
def test_weights_of_a_model_with_a_task_head_are_found(folder: Path, prefix: str) -> None:
    expected = read_encoder(folder)
    change_tensors(folder, lambda t: {prefix + k: v for k, v in t.items()})
    assert np.array_equal(read_encoder(folder).word, expected.word)


def test_gamma_and_beta_are_a_norms_gain_and_bias(folder: Path) -> None:
    expected = read_encoder(folder)

    def as_of_old(name: str) -> str:
        if "LayerNorm" not in name:
            return name
        return name.replace("weight", "gamma").replace("bias", "beta")

    change_tensors(folder, lambda t: {as_of_old(k): v for k, v in t.items()})
    found = read_encoder(folder)
    assert np.array_equal(found.embedding_norm.weight, expected.embedding_norm.weight)
    assert np.array_equal(found.layers[2].output_norm.bias, expected.layers[2].output_norm.bias)


@pytest.mark.parametrize(("kind", "digits"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_weights_of_sixteen_bits_are_widened(folder: Path, kind: str, digits: float) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    expected = read_encoder(folder)
    path = folder / "model.safetensors"
    save_file({k: v.to(getattr(torch, kind)) for k, v in load_file(path).items()}, path)
    found = read_encoder(folder)
    np.testing.assert_allclose(found.word, expected.word, rtol=digits, atol=1e-7)
    assert found.word.dtype == np.float32


@pytest.mark.parametrize(
    "damage", [b"", b"\x00", b"\xff" * 8, b"\x10" + b"\x00" * 7 + b"not json at all!", b"\0" * 8]
)
def test_damaged_weights_are_refused_with_advice(folder: Path, damage: bytes) -> None:
    (folder / "model.safetensors").write_bytes(damage)
    with pytest.raises(ModelError, match="fetch the model again"):
        read_encoder(folder)


def test_weights_cut_short_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match="floating-point numbers"):
        read_encoder(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "\ud800".encode("utf-8", "surrogatepass")])
def test_a_damaged_configuration_is_refused_with_advice(folder: Path, text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "config.json").write_bytes(data)
    with pytest.raises(ModelError, match="fetch the model again"):
        read_encoder(folder)
