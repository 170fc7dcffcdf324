"""What people would run otherwise: transformers' own ways to generate, in a process of their own.

Run by :mod:`sim.bench.serving`. Every way answers the same requests greedily and tells how long
each took to its first token, where that way can tell.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from shared.extras import require
from shared.processes import serve


@dataclass(frozen=True, slots=True)
class Shape:
    """A build whose weights are drawn from a seed, so that anybody has the same."""

    family: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int = 4096


SHAPES: Final = {
    "qwen2-53m": Shape("qwen2", 512, 1536, 12, 8, 2, 32_000),
    "qwen2-1.5b": Shape("qwen2", 1536, 8960, 28, 12, 2, 151_936, 32_768),
    "llama-8b": Shape("llama", 4096, 14_336, 32, 32, 8, 128_256, 8192),
}

BYTE_TOKENS: Final = 300


def _make(folder: str, shape: str, seed: int, dtype: str) -> None:
    """Write a model of a shape, with a tokenizer that knows bytes."""
    torch: Any = require("torch", extra="llm")
    transformers: Any = require("transformers", extra="llm")
    build = SHAPES[shape]
    config, model = {
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }[build.family]
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    torch.set_default_dtype(getattr(torch, dtype))
    made = model(
        config(
            vocab_size=build.vocabulary,
            hidden_size=build.hidden,
            intermediate_size=build.inner,
            num_hidden_layers=build.layers,
            num_attention_heads=build.heads,
            num_key_value_heads=build.kv_heads,
            max_position_embeddings=build.context,
            tie_word_embeddings=build.family == "qwen2",
            # Random weights come to it by chance alone: next to no answer ends early.
            eos_token_id=0,
            bos_token_id=None,
            pad_token_id=0,
        )
    )
    made.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _tokenizer() -> Any:
    tokenizers: Any = require("tokenizers", extra="llm")
    transformers: Any = require("transformers", extra="llm")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=BYTE_TOKENS,
        special_tokens=["<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox"], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **dict.fromkeys(("eos_token", "pad_token"), "<|end|>")
    )


@lru_cache(maxsize=1)
def _model(folder: str, device: str, dtype: str, threads: int) -> Any:
    torch: Any = require("torch", extra="llm")
    transformers: Any = require("transformers", extra="llm")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    return (
        transformers.AutoModelForCausalLM.from_pretrained(
            Path(folder), dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
        .to(device)
        .eval()
    )


def _one_by_one(
    model: dict[str, Any], prompts: Sequence[Sequence[int]], lengths: Sequence[int]
) -> dict[str, Any]:
    """``generate`` for one request after the other."""
    torch: Any = require("torch", extra="llm")
    loaded = _model(**model)
    given: list[list[int]] = []
    began = time.perf_counter()
    for prompt, length in zip(prompts, lengths, strict=True):
        ids = torch.tensor([prompt], device=loaded.device)
        with torch.inference_mode():
            out = loaded.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=length,
                do_sample=False,
            )
        given.append(out[0, len(prompt) :].tolist())
    return {"seconds": time.perf_counter() - began, "tokens": given}


def _static_batch(
    model: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    concurrency: int,
) -> dict[str, Any]:
    """``generate`` for as many at once as wait, padded; a batch ends with its longest answer."""
    torch: Any = require("torch", extra="llm")
    loaded = _model(**model)
    given: list[list[int]] = []
    began = time.perf_counter()
    for start in range(0, len(prompts), concurrency):
        some = prompts[start : start + concurrency]
        wanted = lengths[start : start + concurrency]
        width = max(len(prompt) for prompt in some)
        ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in some]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in some]
        with torch.inference_mode():
            out = loaded.generate(
                torch.tensor(ids, device=loaded.device),
                attention_mask=torch.tensor(mask, device=loaded.device),
                max_new_tokens=max(wanted),
                do_sample=False,
            )
        # What was generated beyond a request's length is thrown away.
        given += [
            row[width : width + length].tolist() for row, length in zip(out, wanted, strict=True)
        ]
    return {"seconds": time.perf_counter() - began, "tokens": given}


def _continuous(
    model: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    concurrency: int,
) -> dict[str, Any]:
    """Transformers' continuous batching, kept filled with so many requests."""
    transformers: Any = require("transformers", extra="llm")
    loaded = _model(**model)
    on_cpu = loaded.device.type == "cpu"
    config = transformers.ContinuousBatchingConfig(
        num_blocks=2048 if on_cpu else None,
        page_size=32 if on_cpu else 256,
        max_batch_tokens=512 if on_cpu else None,
        allow_block_sharing=False,
    )
    generation = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=max(lengths), eos_token_id=0, pad_token_id=0
    )
    given: dict[int, list[int]] = {}
    with loaded.continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=config, warmup=not on_cpu
    ) as manager:

        def ask(number: int) -> None:
            manager.add_request(
                list(prompts[number]), request_id=str(number), max_new_tokens=lengths[number]
            )

        began = time.perf_counter()
        upcoming = iter(range(len(prompts)))
        for number in itertools.islice(upcoming, concurrency):
            ask(number)
        while len(given) < len(prompts):
            result = manager.get_result(timeout=1.0)
            if result is None or not result.is_finished():
                continue
            given[int(result.request_id)] = list(result.generated_tokens)
            for another in itertools.islice(upcoming, 1):
                ask(another)
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "tokens": [given[number] for number in range(len(prompts))]}


def _bandwidth(model: dict[str, Any]) -> float:
    """Bytes per second that the device reads and writes while it copies a gibibyte, 20 times."""
    torch: Any = require("torch", extra="llm")
    source = torch.empty(2**30, dtype=torch.uint8, device=model["device"])
    target = torch.empty_like(source)
    target.copy_(source)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        target.copy_(source)
    torch.cuda.synchronize()
    return float(20 * 2 * source.numel() / (time.perf_counter() - began))


if __name__ == "__main__":
    serve(
        {
            "bandwidth": _bandwidth,
            "make": _make,
            "one by one": _one_by_one,
            "static batch": _static_batch,
            "continuous batching": _continuous,
        }
    )
