"""Encoder folders small enough for a unit test, as transformers would publish them.

Every parameter is drawn, the norms' too, so that each of them shows in the features.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from shared.models.adapter import Adapter
from shared.types import FloatMatrix

ARCHITECTURES: Final = ("bert", "roberta", "xlm-roberta", "distilbert")
WORDS: Final = 61
FEATURES: Final = 32
LAYERS: Final = 3
MAX_TOKENS: Final = 40
PADDING: Final = 1

_COMMON: Final = {
    "vocab_size": WORDS,
    "hidden_size": FEATURES,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": PADDING,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "type_vocab_size": 2,
}


def make_encoder(folder: Path, architecture: str = "bert", *, seed: int = 0, **changes: Any) -> Any:
    """Write config.json, model.safetensors and tokenizer.json; return the torch model."""
    return _make("AutoModel", folder, architecture, seed=seed, **changes)


def make_reader(folder: Path, architecture: str = "bert", *, seed: int = 0, **changes: Any) -> Any:
    """The same with a head for spans and segments that show; return the torch model."""
    return _make("AutoModelForQuestionAnswering", folder, architecture, seed=seed, **changes)


def _make(kind: str, folder: Path, architecture: str, *, seed: int, **changes: Any) -> Any:
    import torch

    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    offset = PADDING + 1 if architecture.endswith("roberta") else 0
    if architecture == "distilbert":
        config: Any = transformers.DistilBertConfig(
            vocab_size=WORDS, dim=FEATURES, n_layers=LAYERS, n_heads=4, hidden_dim=48,
            max_position_embeddings=MAX_TOKENS, pad_token_id=PADDING, **changes,
        )  # fmt: skip
    else:
        config = transformers.AutoConfig.for_model(
            architecture, **{**_COMMON, "max_position_embeddings": MAX_TOKENS + offset, **changes}
        )
    model = getattr(transformers, kind).from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = 0.3 * torch.randn(parameter.shape, generator=generator)
            gain = name.endswith("weight") and parameter.ndim == 1
            parameter.copy_(drawn + 1 if gain else drawn)
    model.save_pretrained(folder, safe_serialization=True)
    _write_tokenizer(folder)
    return model


def torch_features(model: Any, ids: Any, mask: Any) -> FloatMatrix:
    """Mean over the tokens that count, length 1: (batch, F)."""
    import torch

    with torch.no_grad():
        states = model(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)
        ).last_hidden_state
    weights = torch.tensor(mask)[..., None].to(states.dtype)
    means = (states * weights).sum(1) / weights.sum(1)
    features: FloatMatrix = torch.nn.functional.normalize(means, dim=1).numpy()
    return features


def adapt(model: Any, adapter: Adapter) -> None:
    """Patch a BERT of transformers so that it computes with the adapter's inner matrices."""
    import torch

    class Patched(torch.nn.Module):
        def __init__(self, dense: Any, tensors: dict[str, Any]) -> None:
            super().__init__()
            self.dense, self.tensors = dense, tensors

        def forward(self, x: Any) -> Any:
            y, t = self.dense(x), self.tensors
            if "lora_a" in t:
                return y + adapter.shape.scale * (x @ t["lora_a"].T) @ t["lora_b"].T
            inner = torch.nn.functional.gelu(y @ t["down"].T + t["down_bias"])
            return y + inner @ t["up"].T + t["up_bias"]

    for slot in adapter.shape.slots:
        _, number, place = slot.name.split(".")
        layer = model.encoder.layer[int(number)]
        owner = layer.output if place == "output" else layer.attention.self
        attribute = "dense" if place == "output" else place
        tensors = {
            name.removeprefix(f"{slot.name}."): torch.tensor(value)
            for name, value in adapter.tensors.items()
            if name.startswith(f"{slot.name}.")
        }
        setattr(owner, attribute, Patched(getattr(owner, attribute), tensors))


def ragged(lengths: Sequence[int], *, seed: int = 0) -> tuple[Any, Any]:
    """Texts of these many tokens, padded at their ends: ids and mask, (batch, tokens)."""
    rng = np.random.default_rng(seed)
    ids = np.full((len(lengths), max(lengths)), PADDING, np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = rng.integers(PADDING + 1, WORDS, length)
        mask[row, :length] = 1
    return ids, mask


def open_graph(model: Any) -> Any:
    """A session over a graph in memory or a file's path."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *letters, *(f"##{each}" for each in letters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
