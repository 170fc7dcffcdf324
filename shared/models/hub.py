"""Folders of models that the Hugging Face hub names: what is cached first, then a download.

Only the files that are asked for are fetched, and no code that comes with a model is run.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from shared.errors import ModelError
from shared.extras import require

Missing = Callable[[Path], Sequence[str]]
"""Names of the files that a folder lacks to be a usable model."""

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_TIMEOUT_S: Final = 5.0


def is_hub_id(text: str) -> bool:
    """Whether ``text`` is written like a hub id.

    >>> is_hub_id("Qwen/Qwen2.5-0.5B-Instruct"), is_hub_id("../Qwen"), is_hub_id("a/b/c")
    (True, False, False)
    """
    return _HUB_ID.fullmatch(text) is not None


def cached_in_hub(hub_id: str, *, missing: Missing) -> Path | None:
    """Return the whole snapshot in the hub's cache, which anything may have put there."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    hub = require("huggingface_hub", extra="train")
    try:
        folder = Path(hub.snapshot_download(hub_id, local_files_only=True))
    except (OSError, ValueError):  # LocalEntryNotFoundError is both
        return None
    return None if missing(folder) else folder


def download_from_hub(
    hub_id: str, *, patterns: Sequence[str], missing: Missing, advice: str
) -> Path:
    """Fetch a model; asked again, only what changed is fetched.

    Args:
        hub_id: ``owner/name``.
        patterns: Files to fetch, as shell patterns.
        missing: What a folder lacks.
        advice: What else one could do, for the message.

    Raises:
        ModelError: the hub cannot or must not be asked, or has no such model.
        DependencyMissing: the hub's client is not installed.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise ModelError(
            f"{hub_id} is not on this machine and HF_HUB_OFFLINE forbids fetching it: {advice}"
        )
    hub = require("huggingface_hub", extra="train")
    try:
        folder = Path(
            hub.snapshot_download(
                hub_id, allow_patterns=list(patterns), etag_timeout=_HUB_TIMEOUT_S
            )
        )
    except Exception as err:  # the client raises those of its HTTP library, which changed twice
        raise ModelError(
            f"{hub_id} is not on this machine and could not be fetched "
            f"({type(err).__name__}): check the name and the network, or {advice}"
        ) from err
    if lacking := missing(folder):
        raise ModelError(f"{hub_id} cannot be used: the hub has no {', '.join(lacking)} for it")
    return folder
