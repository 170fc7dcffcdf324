"""A base's build is read from its configuration alone, and says what fits where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError, ModelError
from shared.models.architecture import Architecture, read_architecture
from shared.models.encoder import BaseModel
from shared.types import Digest

BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
QWEN2 = BERT | {"model_type": "qwen2", "num_key_value_heads": 2}


def a_base(folder: Path, config: Any, *, layers: int = 0) -> BaseModel:
    (folder / "config.json").write_text(json.dumps(config))
    return BaseModel("tiny", folder, Digest("ab" * 32), layers)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BERT, Architecture("bert", 16, 3, 16, 16)),
        (BERT | {"model_type": "xlm-roberta"}, Architecture("xlm-roberta", 16, 3, 16, 16)),
        (
            {"model_type": "distilbert", "dim": 12, "n_layers": 2, "n_heads": 3},
            Architecture("distilbert", 12, 2, 12, 12),
        ),
        (QWEN2, Architecture("qwen2", 16, 3, 16, 8)),
        (QWEN2 | {"head_dim": 6}, Architecture("qwen2", 16, 3, 24, 12)),
        (QWEN2 | {"num_key_value_heads": None}, Architecture("qwen2", 16, 3, 16, 16)),
    ],
)
def test_the_numbers_are_those_of_the_configuration(
    tmp_path: Path, config: dict[str, Any], expected: Architecture
) -> None:
    assert read_architecture(a_base(tmp_path, config)) == expected
    assert expected.is_causal == (expected.kind == "qwen2")


def test_kept_layers_count_from_the_bottom(tmp_path: Path) -> None:
    assert read_architecture(a_base(tmp_path, BERT, layers=2)).layers == 2
    assert read_architecture(a_base(tmp_path, BERT, layers=3)).layers == 3
    with pytest.raises(ModelError, match="has 3 layers, 4 cannot be kept"):
        read_architecture(a_base(tmp_path, BERT, layers=4))


@pytest.mark.parametrize("config", [{}, [], {"model_type": "bert"}, BERT | {"hidden_size": "x"}])
def test_a_damaged_configuration_is_refused(tmp_path: Path, config: object) -> None:
    with pytest.raises(ModelError, match="does not describe a base model"):
        read_architecture(a_base(tmp_path, config))


def test_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'t5'"):
        read_architecture(a_base(tmp_path, BERT | {"model_type": "t5"}))


def test_slots_are_those_of_the_top_layers_from_the_bottom_up(tmp_path: Path) -> None:
    encoder = read_architecture(a_base(tmp_path, BERT))
    assert [slot.name for slot in encoder.slots("lora", 2)] == [
        "layer.1.query",
        "layer.1.value",
        "layer.2.query",
        "layer.2.value",
    ]
    (only,) = encoder.slots("bottleneck", 1)
    assert (only.name, only.inputs, only.outputs) == ("layer.2.output", 16, 16)


def test_shared_heads_make_the_values_narrower(tmp_path: Path) -> None:
    query, value = read_architecture(a_base(tmp_path, QWEN2)).slots("rslora", 1)
    assert (query.inputs, query.outputs) == (16, 16)
    assert (value.inputs, value.outputs) == (16, 8)


@pytest.mark.parametrize("top", [0, 4])
def test_layers_that_do_not_exist_take_no_matrices(tmp_path: Path, top: int) -> None:
    with pytest.raises(ConfigError, match="has 3 layers"):
        read_architecture(a_base(tmp_path, BERT)).slots("lora", top)


def test_a_language_model_takes_no_bottleneck(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not bottleneck"):
        read_architecture(a_base(tmp_path, QWEN2)).slots("bottleneck", 1)
