"""Causal models with random weights whose heads are wide enough for the graph's attention."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.models.adapter import Adapter, place_of
from shared.models.encoder import BaseModel, find_base_model
from shared.types import FloatMatrix
from tests.support.tiny_models import BYTE_TOKENS, make_tiny_base


def make_causal(folder: Path, kind: str, *, seed: int = 0) -> BaseModel:
    """Write a ``llama`` or ``qwen2`` of two layers, heads of 16, with every bias drawn."""
    make_tiny_base(folder, kind, chat=True)
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    make, build = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }[kind]
    torch.manual_seed(seed)
    model = build(
        make(
            vocab_size=BYTE_TOKENS,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=kind == "qwen2",
            initializer_range=0.2,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(tensor, std=0.2)
    model.save_pretrained(folder)
    return find_base_model(str(folder))


class TorchOracle:
    """The whole sequence through transformers, every time; an adapter is merged into the weights."""

    def __init__(self, base: BaseModel, adapter: Adapter | None = None) -> None:
        self._torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")
        self._model = transformers.AutoModelForCausalLM.from_pretrained(base.folder).float().eval()
        for slot in adapter.shape.slots if adapter is not None else ():
            assert adapter is not None
            layer, place = place_of(slot.name)
            attention = self._model.model.layers[layer].self_attn
            projection = {"query": attention.q_proj, "value": attention.v_proj}[place]
            a, b = adapter.tensors[f"{slot.name}.lora_a"], adapter.tensors[f"{slot.name}.lora_b"]
            with self._torch.no_grad():
                projection.weight += self._torch.from_numpy(adapter.shape.scale * b @ a)

    def logits(self, tokens: Sequence[int]) -> FloatMatrix:
        """Of what follows each token, shape (n, V)."""
        with self._torch.inference_mode():
            out = self._model(input_ids=self._torch.tensor([list(tokens)]))
        found: FloatMatrix = out.logits[0].numpy()
        return found

    def greedy(self, tokens: Sequence[int], count: int, ends: Sequence[int] = ()) -> list[int]:
        """Continue with the likeliest token each time."""
        given: list[int] = []
        while len(given) < count and not (given and given[-1] in ends):
            given.append(int(np.argmax(self.logits([*tokens, *given])[-1])))
        return given
