"""What a language model is called when it is served, and that a stand-in is called one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from shared.errors import ModelError
from shared.models.hub import is_hub_id

STAND_IN: Final = "stand-in"

_CONFIG: Final = "config.json"


def served_name(name_or_path: str) -> tuple[str, bool]:
    """What a model is called when it is served, and whether it is a stand-in.

    A hub id is its own name, a folder is called by its last part, and a stand-in's name
    says that it is one. Neither the network nor the weights are touched.

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
