"""What was computed for one prompt is found by another only where it is exactly the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.inference.prefix_cache import (
    BLOCK,
    BlockStore,
    MemoryBlocks,
    PrefixCache,
    SharedBlocks,
)
from coordinator.inference.step_model import KeysAndValues

prompts = st.lists(st.integers(0, 2), min_size=1, max_size=4 * BLOCK)


def as_block(tokens: list[int], start: int, end: int) -> KeysAndValues:
    return np.array(tokens[start:end], np.float32)[None, None, :, None]


def kept(cache: PrefixCache, tokens: list[int], adapter: str, share: str) -> None:
    cache.keep(
        tokens,
        adapter=adapter,
        share=share,
        take=lambda start, end: as_block(tokens, start, end),
    )


def found(cache: PrefixCache, tokens: list[int], adapter: str, share: str) -> list[int]:
    blocks = cache.find(tokens, adapter=adapter, share=share)
    return [int(value) for block in blocks for value in block.ravel()]


def in_memory() -> BlockStore:
    return MemoryBlocks(2**24)


def in_memory_before_others() -> BlockStore:
    return SharedBlocks(MemoryBlocks(200), MemoryBlocks(2**24))


@pytest.mark.parametrize("make_store", [in_memory, in_memory_before_others])
@given(
    asked=st.lists(st.tuples(prompts, st.sampled_from(["", "a"]), st.sampled_from(["", "k", "l"])))
)
def test_what_is_found_was_computed_for_exactly_these_tokens_adapter_and_share(
    make_store: Callable[[], BlockStore], asked: list[tuple[list[int], str, str]]
) -> None:
    cache = PrefixCache(make_store(), "model")
    seen: list[tuple[list[int], str, str]] = []
    for tokens, adapter, share in asked:
        # The slow oracle: the longest beginning, in whole blocks, that some earlier one shares.
        longest = 0
        for earlier, its_adapter, its_share in seen:
            if (its_adapter, its_share) == (adapter, share) and share:
                for end in range(BLOCK, len(tokens), BLOCK):
                    if len(earlier) >= end and earlier[:end] == tokens[:end]:
                        longest = max(longest, end)
        assert found(cache, tokens, adapter, share) == tokens[:longest]
        kept(cache, tokens, adapter, share)
        seen.append((tokens, adapter, share))


def test_words_that_run_together_alike_are_different_names() -> None:
    cache = PrefixCache(MemoryBlocks(2**20), "model")
    tokens = [1] * (BLOCK + 1)
    kept(cache, tokens, "ab", "c")
    assert found(cache, tokens, "a", "bc") == []
    assert found(cache, tokens, "ab", "c") == [1] * BLOCK


def test_another_model_finds_nothing() -> None:
    store = MemoryBlocks(2**20)
    tokens = [1] * (BLOCK + 1)
    kept(PrefixCache(store, "one"), tokens, "", "k")
    assert found(PrefixCache(store, "other"), tokens, "", "k") == []


def test_memory_holds_no_more_than_it_may_and_what_was_used_last() -> None:
    block = as_block([1] * BLOCK, 0, BLOCK)
    store = MemoryBlocks(3 * block.nbytes)
    for name in (b"a", b"b", b"c"):
        store.put(name, block)
    assert store.get(b"a") is not None
    store.put(b"d", block)
    assert [store.has(name) for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    store.put(b"wide", as_block([1] * 4 * BLOCK, 0, 4 * BLOCK))
    assert not store.has(b"wide")
    assert store.has(b"d")


def test_what_one_coordinator_computed_another_finds_and_asks_for_once() -> None:
    shared = MemoryBlocks(2**20)
    near = MemoryBlocks(2**20)
    tokens = [1] * (2 * BLOCK + 1)
    kept(PrefixCache(SharedBlocks(MemoryBlocks(2**20), shared), "model"), tokens, "", "k")
    cache = PrefixCache(SharedBlocks(near, shared), "model")
    assert found(cache, tokens, "", "other") == []
    assert found(cache, tokens, "", "k") == [1] * 2 * BLOCK
    assert found(PrefixCache(near, "model"), tokens, "", "k") == [1] * 2 * BLOCK
