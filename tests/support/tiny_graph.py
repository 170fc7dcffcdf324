"""A model folder small enough for a unit test, with the inputs and outputs of a real import.

One layer over an embedding table: x = E[ids]; q = x W + b + x A B; h = tanh(q), then the
bottleneck h + gelu(h D + d) U + u; mean over the mask, length-normalised; logits on top.
:func:`slow_answer` says the same in NumPy.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from shared.models.adapter import FEATURE_SCALE, Adapter, AdapterShape, Slot
from shared.types import Digest, FloatMatrix

FEATURES: Final = 8
MAX_TOKENS: Final = 12
BASE: Final = Digest("b" * 64)
LABELS: Final = ("balance", "transfer", "oos")
WORDS: Final = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "is", "my", "balance", "money", "transfer"),
    *("please", "send", "to", "the", "bank", "weather", "余", "额"),
)
QUERY: Final = "layer.0.query"
OUTPUT: Final = "layer.0.output"


def base_tensors(seed: int = 0) -> dict[str, FloatMatrix]:
    """The frozen part: embedding table, one matrix, one bias."""
    rng = np.random.default_rng(seed)
    sizes = {"table": (len(WORDS), FEATURES), "w": (FEATURES, FEATURES), "b": (FEATURES,)}
    return {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}


def tiny_adapter(method: str = "lora", *, seed: int = 1, base: Digest = BASE) -> Adapter:
    """An adapter with all its tensors drawn, so that each of them shows in the answer."""
    slot = OUTPUT if method == "bottleneck" else QUERY
    shape = AdapterShape(
        labels=LABELS,
        features=FEATURES,
        method=method,  # type: ignore[arg-type]
        slots=() if method == "none" else (Slot(name=slot, inputs=FEATURES, outputs=FEATURES),),
        rank=0 if method == "none" else 2,
        alpha=0.0 if method == "none" else 4.0,
    )
    rng = np.random.default_rng(seed)
    return Adapter(
        shape,
        base,
        {name: rng.normal(size=size).astype(np.float32) for name, size in shape.tensors.items()},
    )


def make_tiny_model(folder: Path, *, base: Digest = BASE, seed: int = 0) -> Path:
    """Write manifest.json, model.onnx and tokenizer.json into ``folder``."""
    import onnx
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(_graph(seed), str(folder / "model.onnx"))
    positions = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(positions, unk_token=WORDS[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", positions["[CLS]"]), ("[SEP]", positions["[SEP]"])],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "manifest.json").write_text(json.dumps(_manifest(folder, base)), encoding="utf-8")
    return folder


def slow_answer(ids: list[int], adapter: Adapter | None, seed: int = 0) -> tuple[Any, Any]:
    """What the graph computes, token by token: features and logits in float64."""
    base = {name: tensor.astype(np.float64) for name, tensor in base_tensors(seed).items()}
    tensors: Mapping[str, Any] = {} if adapter is None else adapter.tensors
    total = np.zeros(FEATURES)
    for token in ids:
        x = base["table"][token]
        q = x @ base["w"] + base["b"]
        if adapter is not None and f"{QUERY}.lora_a" in tensors:
            low = tensors[f"{QUERY}.lora_b"] @ (tensors[f"{QUERY}.lora_a"] @ x)
            q = q + adapter.shape.scale * low
        h = np.tanh(q)
        if f"{OUTPUT}.down" in tensors:
            inner = tensors[f"{OUTPUT}.down"] @ h + tensors[f"{OUTPUT}.down_bias"]
            gelu = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in inner])
            h = h + tensors[f"{OUTPUT}.up"] @ gelu + tensors[f"{OUTPUT}.up_bias"]
        total += h
    features = total / len(ids)
    features /= np.linalg.norm(features)
    if adapter is None:
        return features, np.zeros(0)
    return features, FEATURE_SCALE * adapter.weight @ features + adapter.bias


def _graph(seed: int) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    width = FEATURES
    optional: dict[str, tuple[tuple[Any, ...], FloatMatrix]] = {
        "head.weight": ((width, "C"), np.zeros((width, 0), np.float32)),
        "head.bias": (("C",), np.zeros(0, np.float32)),
        f"{QUERY}.lora_a": ((width, "r"), np.zeros((width, 0), np.float32)),
        f"{QUERY}.lora_b": (("r", width), np.zeros((0, width), np.float32)),
        f"{OUTPUT}.down": ((width, "r2"), np.zeros((width, 0), np.float32)),
        f"{OUTPUT}.down_bias": (("r2",), np.zeros(0, np.float32)),
        f"{OUTPUT}.up": (("r2", width), np.zeros((0, width), np.float32)),
        f"{OUTPUT}.up_bias": ((width,), np.zeros(width, np.float32)),
    }
    constants = base_tensors(seed) | {
        "root2": np.array(math.sqrt(2), np.float32),
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
        "tokens_axis": np.array([1], np.int64),
        "last_axis": np.array([2], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "input_ids"], ["x"]),
        node("MatMul", ["x", "w"], ["xw"]),
        node("Add", ["xw", "b"], ["dense"]),
        node("MatMul", ["x", f"{QUERY}.lora_a"], ["xa"]),
        node("MatMul", ["xa", f"{QUERY}.lora_b"], ["xab"]),
        node("Add", ["dense", "xab"], ["q"]),
        node("Tanh", ["q"], ["h"]),
        node("MatMul", ["h", f"{OUTPUT}.down"], ["hd"]),
        node("Add", ["hd", f"{OUTPUT}.down_bias"], ["inner"]),
        node("Div", ["inner", "root2"], ["scaled"]),
        node("Erf", ["scaled"], ["erf"]),
        node("Add", ["erf", "one"], ["erf1"]),
        node("Mul", ["inner", "erf1"], ["twice"]),
        node("Mul", ["twice", "half"], ["gelu"]),
        node("MatMul", ["gelu", f"{OUTPUT}.up"], ["gu"]),
        node("Add", ["gu", f"{OUTPUT}.up_bias"], ["up"]),
        node("Add", ["h", "up"], ["layer"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "last_axis"], ["mask3"]),
        node("Mul", ["layer", "mask3"], ["masked"]),
        node("ReduceSum", ["masked", "tokens_axis"], ["total"], keepdims=0),
        node("ReduceSum", ["mask", "tokens_axis"], ["count"], keepdims=1),
        node("Div", ["total", "count"], ["mean"]),
        node("LpNormalization", ["mean"], ["features"], axis=1, p=2),
        node("MatMul", ["features", "head.weight"], ["product"]),
        node("Add", ["product", "head.bias"], ["logits"]),
    ]
    info = helper.make_tensor_value_info
    inputs = [
        info(name, TensorProto.INT64, ("batch", "tokens"))
        for name in ("input_ids", "attention_mask")
    ]
    inputs += [info(name, TensorProto.FLOAT, dims) for name, (dims, _) in optional.items()]
    outputs = [
        info("features", TensorProto.FLOAT, ("batch", width)),
        info("logits", TensorProto.FLOAT, ("batch", "C")),
    ]
    initialisers = constants | {name: value for name, (_, value) in optional.items()}
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs,
        outputs,
        [numpy_helper.from_array(value, name) for name, value in initialisers.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="tests"
    )


def _manifest(folder: Path, base: Digest) -> dict[str, Any]:
    files = {}
    for name in ("model.onnx", "tokenizer.json"):
        data = (folder / name).read_bytes()
        files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    slots = [{"name": name, "inputs": FEATURES, "outputs": FEATURES} for name in (QUERY, OUTPUT)]
    return {
        "format": 1,
        "name": "tiny",
        "base": base,
        "architecture": "bert",
        "features": FEATURES,
        "layers": 1,
        "max_tokens": MAX_TOKENS,
        "vocabulary": len(WORDS),
        "quantise": "none",
        "files": files,
        "slots": slots,
        "passes": [],
    }
