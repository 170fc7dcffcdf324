"""Where a causal language model comes from, how it is called, and its digest.

C1  what is already on this machine is used before the network is asked
C2  weights in several files have one digest that does not depend on their order
C3  a stand-in is called one
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from shared.errors import ModelError
from shared.files import digest_of, digest_of_file
from shared.models.encoder import BaseModel
from shared.models.hub import cached_in_hub, download_from_hub, is_hub_id
from shared.types import Digest

STAND_IN: Final = "stand-in"

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
    _INDEX,
    "model*.safetensors",
)
"""Not the whole repository: many carry the same weights in three more formats."""


def find_causal_base(name_or_path: str) -> BaseModel:
    """Find a causal language model by folder or hub id, on this machine first (C1).

    Its digest is the SHA-256 of ``model.safetensors``, as for every other base model; of
    weights in several files that of the sorted lines ``name sha256`` (C2).

    Raises:
        ModelError: there is no such model, or files of it are missing.
        DependencyMissing: the hub has to be asked, and its client is not installed.
    """
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        _refuse_odd_names(name_or_path)
        folder = cached_in_hub(name_or_path, missing=_missing) or download_from_hub(
            name_or_path,
            patterns=_PATTERNS,
            missing=_missing,
            advice="name a folder that holds it",
        )
    elif lacking := _missing(folder):
        raise ModelError(
            f"the folder {folder} holds no usable language model: {', '.join(lacking)} missing"
        )
    return BaseModel(name_or_path, folder, _digest(folder))


def served_name(name_or_path: str) -> tuple[str, bool]:
    """What a model is called when it is served, and whether it is a stand-in.

    A hub id is its own name, a folder is called by its last part, and a stand-in's name
    says that it is one (C3). Neither the network nor the weights are touched.

    Raises:
        ModelError: it is neither a folder with a model nor written like a hub id.
    """
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        _refuse_odd_names(name_or_path)
        return name_or_path, False
    stand_in = _read(folder / _CONFIG).get("stand_in") is True
    name = folder.resolve().name
    return (f"{name}-{STAND_IN}" if stand_in and STAND_IN not in name else name), stand_in


def _refuse_odd_names(name: str) -> None:
    if not is_hub_id(name):
        raise ModelError(
            f"there is no folder {name}, and it is no hub id such as Qwen/Qwen2.5-0.5B-Instruct: "
            "name a folder with config.json, tokenizer.json and model.safetensors, or a hub id"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ModelError(
            f"the folder {path.parent} holds no language model: {path.name} missing"
        ) from err
    except (OSError, ValueError) as err:
        raise ModelError(f"{path} cannot be read: {err}") from err
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not one JSON object")
    return value


def _shards(folder: Path) -> Sequence[str]:
    """Names of the files that hold the weights; one file is preferred to several."""
    if (folder / _WEIGHTS).is_file() or not (folder / _INDEX).is_file():
        return (_WEIGHTS,)
    table = _read(folder / _INDEX).get("weight_map")
    names = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    # An index is a stranger's: a name with a path in it would read files elsewhere.
    if not names or any(Path(name).name != name for name in names):
        raise ModelError(f"{folder / _INDEX} does not name the files of the weights")
    return names


def _missing(folder: Path) -> Sequence[str]:
    needed = (_CONFIG, "tokenizer.json", *_shards(folder))
    return [name for name in needed if not (folder / name).is_file()]


def _digest(folder: Path) -> Digest:
    names = _shards(folder)
    if len(names) == 1:
        return digest_of_file(folder / names[0])
    lines = [f"{name} {digest_of_file(folder / name)}\n" for name in names]
    return digest_of("".join(lines).encode())
