"""What a base model's ``config.json`` says about its build, read without any framework."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from shared.errors import ConfigError, ModelError
from shared.models.adapter import Slot
from shared.models.encoder import BaseModel

ENCODERS: Final = ("bert", "distilbert", "roberta", "xlm-roberta")
_CAUSAL: Final = ("llama", "qwen2")


@dataclass(frozen=True, slots=True)
class Architecture:
    """The numbers that adapters depend on."""

    kind: str
    """``model_type``: bert, roberta, xlm-roberta, distilbert, llama or qwen2."""
    features: int
    """Width of the hidden states."""
    layers: int
    queries: int
    """Width of all query heads together."""
    values: int
    """Width of all value heads together; less than the queries' when heads are shared."""

    @property
    def is_causal(self) -> bool:
        """Whether it continues texts."""
        return self.kind in _CAUSAL

    def slots(self, method: str, top: int) -> tuple[Slot, ...]:
        """The places for matrices in the ``top`` highest layers, from the bottom up.

        Raises:
            ConfigError: there are fewer layers than that, or no such place in this build.
        """
        if not 1 <= top <= self.layers:
            raise ConfigError(
                [f"adapter.layers: {top}, but the base model has {self.layers} layers"],
                source="job",
            )
        if method == "bottleneck" and self.is_causal:
            raise ConfigError(
                ["adapter.method: a language model takes lora or rslora, not bottleneck"],
                source="job",
            )
        wide = self.features
        found: list[Slot] = []
        for layer in range(self.layers - top, self.layers):
            name = f"layer.{layer}"
            if method == "bottleneck":
                found.append(Slot(name=f"{name}.output", inputs=wide, outputs=wide))
            else:
                found.append(Slot(name=f"{name}.query", inputs=wide, outputs=self.queries))
                found.append(Slot(name=f"{name}.value", inputs=wide, outputs=self.values))
        return tuple(found)


def read_architecture(base: BaseModel) -> Architecture:
    """Read a base model's build.

    Raises:
        ModelError: it is of a kind that is not supported, or its configuration is damaged.
    """
    try:
        config = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
        kind = str(config["model_type"])
        small = kind == "distilbert"
        features = int(config["dim" if small else "hidden_size"])
        layers = int(config["n_layers" if small else "num_hidden_layers"])
        heads = int(config["n_heads" if small else "num_attention_heads"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ModelError(f"{base.folder}: config.json does not describe a base model") from err
    if kind not in (*ENCODERS, *_CAUSAL):
        raise ModelError(
            f"{base.name} is a {kind!r}; supported are {', '.join((*ENCODERS, *_CAUSAL))}"
        )
    width = int(config.get("head_dim") or features // heads)
    shared = int(config.get("num_key_value_heads") or heads)
    if base.layers > layers:
        raise ModelError(f"{base.name} has {layers} layers, {base.layers} cannot be kept")
    return Architecture(kind, features, base.layers or layers, heads * width, shared * width)
