"""Base models with random weights, small enough to be made and run within a test."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from shared.models.adapter import Adapter, AdapterShape
from shared.models.architecture import read_architecture
from shared.models.encoder import BaseModel, find_base_model

ENCODERS: Final = ("bert", "roberta", "distilbert")
LANGUAGE_MODELS: Final = ("llama", "qwen2")
WIDTH: Final = 16
LAYERS: Final = 3
WORDS: Final = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "user", "assistant", "where", "is", "my", "parcel"),
    *("please", "refund", "it", "cancel", "the", "order", "now", "hello", "yes", "no"),
)
BYTE_TOKENS: Final = 300
SPECIAL: Final = {"pad_token": "[PAD]", "eos_token": "[SEP]"}
CHAT: Final = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def make_tiny_base(folder: Path, kind: str, *, seed: int = 0, chat: bool = False) -> BaseModel:
    """Write a model of one of the kinds above into ``folder``, and find it there."""
    torch, transformers = _libraries()
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"vocab_size": len(WORDS), "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    # Dropout as in real configurations: what trains must not let it act.
    common: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 24, **sizes}
    encoders: Any = {
        "bert": (transformers.BertConfig, transformers.BertModel),
        "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
    }
    language_models: Any = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }
    # What a real model is told by training, a random one is told by larger weights.
    wide = {"initializer_range": 0.3}
    if kind == "distilbert":
        config: Any = transformers.DistilBertConfig(
            vocab_size=len(WORDS), dim=WIDTH, hidden_dim=24, n_layers=LAYERS, n_heads=4, **wide
        )
        build: Any = transformers.DistilBertModel
    elif kind in encoders:
        make, build = encoders[kind]
        config = make(**common, **wide, pad_token_id=0, max_position_embeddings=140)
    else:
        make, build = language_models[kind]
        shared_heads = {"num_key_value_heads": 2, "tie_word_embeddings": kind == "qwen2"}
        common |= {"vocab_size": BYTE_TOKENS, **wide, **shared_heads}
        config = make(**common, pad_token_id=0, eos_token_id=1)
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    build(config).save_pretrained(folder)
    _save_tokenizer(folder, causal=kind in LANGUAGE_MODELS, chat=chat)
    return find_base_model(str(folder))


def tiny_adapter(
    base: BaseModel,
    method: Literal["none", "lora", "rslora", "bottleneck"],
    *,
    top: int = 2,
    labels: tuple[str, ...] = ("a", "b", "c"),
    seed: int = 1,
    spread: float = 0.3,
) -> Adapter:
    """An adapter for ``base`` with all its tensors drawn, so that each of them matters."""
    architecture = read_architecture(base)
    inner = method != "none"
    shape = AdapterShape(
        labels=labels,
        features=architecture.features,
        method=method,
        rank=2 if inner else 0,
        alpha=6.0 if inner else 0.0,
        slots=architecture.slots(method, top) if inner else (),
    )
    start = Adapter.initial(shape, base.digest)
    rng = np.random.default_rng(seed)
    return start.moved(rng.normal(scale=spread, size=start.parameters))


def _libraries() -> tuple[Any, Any]:
    return importlib.import_module("torch"), importlib.import_module("transformers")


def _save_tokenizer(folder: Path, *, causal: bool, chat: bool) -> None:
    _, transformers = _libraries()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    positions = {word: index for index, word in enumerate(WORDS)}
    if causal:
        # Of Qwen2 transformers makes byte-level pairs whatever the file says.
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=BYTE_TOKENS,
            special_tokens=["[PAD]", "[SEP]"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator([" ".join(WORDS[4:])] * 9, trainer)
    else:
        tokenizer = Tokenizer(models.WordLevel(positions, unk_token=WORDS[1]))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[(word, positions[word]) for word in ("[CLS]", "[SEP]")],
        )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **SPECIAL | ({} if causal else {"unk_token": "[UNK]"}),
    )
    if chat:
        fast.chat_template = CHAT
    fast.save_pretrained(folder)
