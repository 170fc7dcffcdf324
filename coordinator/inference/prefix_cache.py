"""Keys and values of prompts' beginnings, for the next prompt that begins alike.

P1  what was kept under one model, adapter and share is found under these alone
P2  what is found are keys and values of exactly the tokens that were asked for: names are digests
    of all tokens up to the block's end
P3  a prompt's last token is never among what is found: its logits are wanted
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

import numpy as np

from coordinator.inference.step_model import KeysAndValues

BLOCK: Final = 32
"""Tokens that are kept and found together."""


class BlockStore(Protocol):
    """Where blocks are kept."""

    def get(self, name: bytes) -> KeysAndValues | None:
        """A block, or ``None``."""
        ...

    def put(self, name: bytes, block: KeysAndValues) -> None:
        """Keep a block for as long as there is room."""
        ...

    def has(self, name: bytes) -> bool:
        """Whether it need not be put again."""
        ...


class MemoryBlocks:
    """The blocks that were used last, in this process."""

    def __init__(self, limit_bytes: int) -> None:
        """Keep at most so many bytes."""
        self._limit = limit_bytes
        self._used = 0
        self._blocks: OrderedDict[bytes, KeysAndValues] = OrderedDict()

    def get(self, name: bytes) -> KeysAndValues | None:
        """See :class:`BlockStore`."""
        if (block := self._blocks.get(name)) is not None:
            self._blocks.move_to_end(name)
        return block

    def has(self, name: bytes) -> bool:
        """See :class:`BlockStore`."""
        return name in self._blocks

    def put(self, name: bytes, block: KeysAndValues) -> None:
        """See :class:`BlockStore`."""
        if name in self._blocks or block.nbytes > self._limit:
            return
        self._blocks[name] = block
        self._used += block.nbytes
        while self._used > self._limit:
            _, oldest = self._blocks.popitem(last=False)
            self._used -= oldest.nbytes


class SharedBlocks:
    """Blocks of this process before a store that others use too."""

    def __init__(self, near: BlockStore, far: BlockStore) -> None:
        """Keep in both; ask ``far`` for what ``near`` has not, and keep that near."""
        self._near = near
        self._far = far

    def get(self, name: bytes) -> KeysAndValues | None:
        """See :class:`BlockStore`."""
        block = self._near.get(name)
        if block is None and (block := self._far.get(name)) is not None:
            self._near.put(name, block)
        return block

    def has(self, name: bytes) -> bool:
        """Whether it is near, where whatever comes from far or goes there is."""
        return self._near.has(name)

    def put(self, name: bytes, block: KeysAndValues) -> None:
        """See :class:`BlockStore`."""
        self._near.put(name, block)
        self._far.put(name, block)


class PrefixCache:
    """Finds and keeps the beginnings of prompts, block by block."""

    def __init__(self, store: BlockStore, model: str) -> None:
        """Keep what ``model`` computed, which is a name for weights and their precision."""
        self._store = store
        self._model = model

    def find(self, tokens: Sequence[int], *, adapter: str, share: str) -> list[KeysAndValues]:
        """Return the longest beginning that is kept, in order (P1, P2, P3); none without a share.

        Args:
            tokens: Of the prompt.
            adapter: The adapter's digest; empty for the base alone.
            share: Who may use it.
        """
        found: list[KeysAndValues] = []
        if share:
            for _, name in self._names(tokens[:-1], adapter, share):
                block = self._store.get(name)
                if block is None:
                    break
                found.append(block)
        return found

    def keep(
        self,
        tokens: Sequence[int],
        *,
        adapter: str,
        share: str,
        take: Callable[[int, int], KeysAndValues],
    ) -> None:
        """Keep what was computed for ``tokens``; ``take`` copies keys and values of a part out."""
        if share:
            for start, name in self._names(tokens, adapter, share):
                if not self._store.has(name):
                    self._store.put(name, take(start, start + BLOCK))

    def _names(
        self, tokens: Sequence[int], adapter: str, share: str
    ) -> Iterator[tuple[int, bytes]]:
        running = hashlib.sha256()
        for part in (self._model, adapter, share):
            # With its length, so that no two lists of parts are one text.
            running.update(len(part.encode()).to_bytes(8, "little") + part.encode())
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            running.update(np.asarray(tokens[start : start + BLOCK], "<i8").tobytes())
            yield start, running.digest()
