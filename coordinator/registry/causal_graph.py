"""A causal language model as a graph with places for adapters: made once, served without torch.

C1  a graph is there whole or not at all, and is found again by what it was made from
C2  without an adapter the graph computes what the exported one computed: the places add zeros of
    no rank

onnxruntime-genai's model builder exports (in a process of its own: it takes torch and prints);
this module adds the places. Two inputs for every fused projection of an attention,
``lora_a.LAYER``, (B, D, R), and ``lora_b.LAYER``, (B, R, Q + K + V), give y + (x A) B, row by row,
so that every row of a batch may have an adapter of its own.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from shared.errors import ModelError
from shared.extras import require
from shared.files import appearing_folder
from shared.models.encoder import BaseModel
from shared.processes import die_with_parent

Precision = Literal["fp32", "int8", "int4"]
"""Of the weights; arithmetic between them is in float32."""

PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)

GRAPH: Final = "model.onnx"

_FORMAT: Final = 1
"""Counts changes of what :func:`causal_graph` makes, so that older graphs are made anew."""

_HEAD_STEP: Final = 16
"""ONNX Runtime's grouped attention refuses other widths, when it is run."""

_RECIPE: Final = "graph.json"
_OPTIONS: Final[Mapping[Precision, str]] = {
    "fp32": "prune_lm_head=true",
    # Accuracy level 4 multiplies in int8: on two cores without VNNI, 2.8 times the tokens per
    # second of float32 at one request, 1.2 times at sixteen.
    "int8": "prune_lm_head=true int4_accuracy_level=4 int4_block_size=32",
    "int4": "prune_lm_head=true int4_accuracy_level=4 int4_block_size=32",
}
_PROJECTION: Final = re.compile(r"/model/layers\.(\d+)/attn/qkv_proj/MatMul(_Q\d)?")


@dataclass(frozen=True, slots=True)
class CausalGraph:
    """A graph and the numbers that whoever runs it needs."""

    folder: Path
    precision: Precision
    layers: int
    """L."""
    features: int
    """D, the width of the hidden states."""
    heads: int
    """Heads of queries."""
    kv_heads: int
    head_size: int
    vocabulary: int
    context_tokens: int
    ends: tuple[int, ...]
    """Tokens that end a turn."""

    @property
    def graph(self) -> Path:
        """The ONNX file; its weights lie beside it."""
        return self.folder / GRAPH

    @property
    def queries(self) -> int:
        """Width of all heads of queries together."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of all heads of keys together, and of values."""
        return self.kv_heads * self.head_size


def causal_graph(base: BaseModel, models_folder: Path, precision: Precision) -> CausalGraph:
    """Find the graph of a base model, or make it; some ten seconds for 50 million parameters.

    Args:
        base: A causal model that onnxruntime-genai's builder knows (Llama, Qwen2, Mistral, …).
        models_folder: Where graphs are kept.
        precision: Of the weights.

    Raises:
        ModelError: the builder does not know such a model, or its graph has no such places.
        DependencyMissing: the extra ``llm`` is not installed.
        StorageError: the disk refused.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(base.name).name).strip("-.") or "model"
    folder = models_folder / f"{stem[:60]}-{base.digest[:12]}-causal-{precision}"
    if (found := _read(folder, precision)) is not None:
        return found
    with appearing_folder(folder) as new:
        _export(base, new, precision)
        facts = _facts(base, new)
        if facts["head_size"] % _HEAD_STEP:
            raise ModelError(
                f"the heads of {base.name} are {facts['head_size']} wide; the graph's attention takes "
                f"multiples of {_HEAD_STEP}: this model is served by the engine 'transformers'"
            )
        _add_places(new / GRAPH, facts)
        recipe = {"format": _FORMAT, "base": base.digest, "facts": facts}
        (new / _RECIPE).write_text(json.dumps(recipe), encoding="utf-8")
    made = _read(folder, precision)
    assert made is not None
    return made


def _read(folder: Path, precision: Precision) -> CausalGraph | None:
    try:
        recipe = json.loads((folder / _RECIPE).read_text(encoding="utf-8"))
        if recipe["format"] != _FORMAT:
            return None
        facts = recipe["facts"] | {"ends": tuple(recipe["facts"]["ends"])}
        return CausalGraph(folder=folder, precision=precision, **facts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _export(base: BaseModel, folder: Path, precision: Precision) -> None:
    """Run the builder.

    Raises:
        ModelError: it failed, with the end of what it said.
    """
    require("onnxruntime_genai", extra="llm")
    require("onnx_ir", extra="llm")
    require("torch", extra="llm")
    # The builder keeps every option behind one flag, and reads only what is in the folder.
    options = _OPTIONS[precision].split()
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(base.folder), "-o", str(folder), "-p", precision, "-e", "cpu"]
    command += ["-c", str(folder / "cache"), "--extra_options", *options]
    offline = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(  # noqa: S603  a module that we depend on, no shell
        command,
        env=os.environ | offline,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )
    if done.returncode != 0 or not (folder / GRAPH).is_file():
        said = " ".join(done.stdout.split())[-400:]
        raise ModelError(
            f"{base.name} cannot be made into a graph by onnxruntime-genai's builder: {said}"
        )
    cache = folder / "cache"
    if cache.is_dir() and not any(cache.iterdir()):
        cache.rmdir()


def _facts(base: BaseModel, folder: Path) -> dict[str, Any]:
    """The numbers of :class:`CausalGraph`, from what the builder wrote beside the graph."""
    try:
        model = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        decoder = model["decoder"]
        ends = model["eos_token_id"]
        return {
            "layers": int(decoder["num_hidden_layers"]),
            "features": int(decoder["hidden_size"]),
            "heads": int(decoder["num_attention_heads"]),
            "kv_heads": int(decoder["num_key_value_heads"]),
            "head_size": int(decoder["head_size"]),
            "vocabulary": int(model["vocab_size"]),
            "context_tokens": int(model["context_length"]),
            "ends": ends if isinstance(ends, list) else [ends],
        }
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ModelError(f"the builder did not describe {base.name}: {err!r}") from err


def _add_places(path: Path, facts: Mapping[str, Any]) -> None:
    """Put the inputs and the additions into a graph, in place; its weights stay where they are.

    Raises:
        ModelError: a layer has no fused projection.
    """
    onnx: Any = require("onnx", extra="coordinator")
    model = onnx.load(str(path), load_external_data=False)
    graph, helper = model.graph, onnx.helper
    floating = onnx.TensorProto.FLOAT
    width = (facts["heads"] + 2 * facts["kv_heads"]) * facts["head_size"]
    nodes, placed = [], set()
    for node in graph.node:
        match = _PROJECTION.fullmatch(node.name)
        if match is None:
            nodes.append(node)
            continue
        layer = int(match.group(1))
        placed.add(layer)
        product, a, b = node.output[0], f"lora_a.{layer}", f"lora_b.{layer}"
        alone, down, up = (f"{product}/{part}" for part in ("alone", "down", "up"))
        node.output[0] = alone
        nodes += [
            node,
            helper.make_node("MatMul", [node.input[0], a], [down], f"/lora/{layer}/down"),
            helper.make_node("MatMul", [down, b], [up], f"/lora/{layer}/up"),
            helper.make_node("Add", [alone, up], [product], f"/lora/{layer}/add"),
        ]
        shapes = (
            (a, ["batch_size", facts["features"], "lora_rank"]),
            (b, ["batch_size", "lora_rank", width]),
        )
        graph.input.extend(
            helper.make_tensor_value_info(name, floating, shape) for name, shape in shapes
        )
    if placed != set(range(facts["layers"])):
        missing = sorted(set(range(facts["layers"])) - placed)
        raise ModelError(
            f"the graph has no fused projection of queries, keys and values in layer {missing[0]}: "
            "this kind of model is served by the engine 'transformers'"
        )
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, str(path))
