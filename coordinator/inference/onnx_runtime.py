"""A language model on the processor: graph, slots, prefixes and schemas put together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

from coordinator.inference.onnx_model import OnnxModel
from coordinator.inference.prefix_cache import (
    BLOCK,
    BlockStore,
    MemoryBlocks,
    PrefixCache,
    SharedBlocks,
)
from coordinator.inference.schema import Follower, Schemas
from coordinator.inference.slots import SlotRuntime
from coordinator.inference.step_model import StepModel
from coordinator.registry.causal_graph import Precision, causal_graph
from shared.errors import ModelError
from shared.models.encoder import BaseModel

SLOTS: Final = 16
"""Requests at once: on two cores four times as many bring a few percent more tokens a second, and
every one of them waits longer for each of its own."""

KV_SHARE: Final = 1 / 8
"""Of the machine's memory, for keys and values of requests that are being answered."""

PREFIX_SHARE: Final = 1 / 16
"""Of the machine's memory, for beginnings of prompts that were answered."""


@dataclass(frozen=True, slots=True)
class OnnxSettings:
    """How a model is run.

    Attributes:
        precision: Of the weights.
        threads: Arithmetic threads.
        slots: Most requests at once.
        kv_bytes: For keys and values of requests under way; 0: a share of the machine's.
        prefix_bytes: For those of earlier prompts; 0: a share of the machine's.
        prefixes: URL of a Redis where others find them too; empty keeps them here.
    """

    precision: Precision = "fp32"
    threads: int = 1
    slots: int = SLOTS
    kv_bytes: int = 0
    prefix_bytes: int = 0
    prefixes: str = field(default="", repr=False)


def open_onnx_runtime(base: BaseModel, models_folder: Path, settings: OnnxSettings) -> SlotRuntime:
    """Make the graph if it is not there yet, and open it.

    Raises:
        ModelError: it cannot be made or opened, or not even one short request would fit.
        DependencyMissing: the extra ``llm`` is not installed.
        StorageError: the disk refused.
    """
    graph = causal_graph(base, models_folder, settings.precision)
    model = OnnxModel(base, graph, threads=settings.threads)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kv_tokens = (settings.kv_bytes or int(memory * KV_SHARE)) // model.bytes_per_token
    if kv_tokens < min(256, model.context_tokens):
        raise ModelError(
            f"{settings.kv_bytes} bytes hold keys and values of {kv_tokens} tokens of {base.name}: "
            f"give at least {256 * model.bytes_per_token}"
        )
    blocks: BlockStore = MemoryBlocks(settings.prefix_bytes or int(memory * PREFIX_SHARE))
    if settings.prefixes:
        from coordinator.inference.redis_store import RedisBlocks

        shape = (2 * graph.layers, graph.kv_heads, BLOCK, graph.head_size)
        blocks = SharedBlocks(blocks, RedisBlocks(settings.prefixes, shape))
    prefixes = PrefixCache(blocks, f"{base.digest}/{settings.precision}")
    return SlotRuntime(
        model,
        slots=settings.slots,
        kv_tokens=kv_tokens,
        follow=when_asked(base, model),
        prefixes=prefixes,
    )


def when_asked(base: BaseModel, model: StepModel) -> Callable[[str], Follower]:
    """Read the tokenizer for schemas at the first schema: most servers never see one."""

    @lru_cache(maxsize=1)
    def schemas() -> Schemas:
        return Schemas(base.folder / "tokenizer.json", model.ends, model.vocabulary)

    return lambda schema: schemas().follow(schema)
