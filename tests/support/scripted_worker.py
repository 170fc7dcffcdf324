"""An engine's process whose model is a hash: as fast as a process can be, and it breaks when told.

A prompt with the token HANGS never comes back from its step, one with DIES ends the process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coordinator.inference import engine_worker
from coordinator.inference.prefix_cache import MemoryBlocks, PrefixCache
from coordinator.inference.slots import SlotRuntime
from coordinator.inference.step_model import Logits
from shared.models.encoder import BaseModel
from tests.support.step_models import HashModel

HANGS, DIES = 7, 9


class BreakableModel(HashModel):
    """A hash that can be told to hang or to die."""

    def read(self, row: int, tokens: Sequence[int], past: int) -> Logits:
        if HANGS in tokens:
            threading.Event().wait()
        if DIES in tokens:
            os._exit(3)
        return super().read(row, tokens, past)


def scripted(_base: BaseModel, settings: Mapping[str, Any]) -> SlotRuntime:
    """Load; every process leaves a byte in the file ``loads``, and those in ``dies_in`` die."""
    if settings["loads"]:
        loads = Path(settings["loads"])
        with loads.open("ab") as file:
            file.write(b".")
        if loads.stat().st_size in settings["dies_in"]:
            os._exit(4)
    model = BreakableModel(vocabulary=1536, context_tokens=512)
    prefixes = PrefixCache(MemoryBlocks(2**20), "scripted")
    return SlotRuntime(model, slots=4, kv_tokens=4096, prefixes=prefixes)


if __name__ == "__main__":
    assert Path("tests").is_dir()
    engine_worker.main({"scripted": scripted})
