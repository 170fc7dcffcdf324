"""Read an encoder's configuration and weights, without torch.

W1  a model is used only if every part of it is understood; what is not is refused by name
W2  no code that comes with a model is run: a JSON file and a safetensors file are read

Families name the same matrices differently. Here they get one set of names, so that the
graph is written once: ``word``, ``position``, ``embedding_norm`` and for each layer
``query``, ``key``, ``value``, ``attention_output``, ``attention_norm``, ``inner``,
``output``, ``output_norm``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from shared.errors import ModelError
from shared.models.architecture import ENCODERS
from shared.types import FloatMatrix

ACTIVATIONS: Final = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "relu": ""}
"""Values of ``hidden_act`` → how ONNX's Gelu approximates it; "" is no Gelu."""

_WEIGHTS: Final = "model.safetensors"
_HEADER_LENGTH: Final = struct.Struct("<Q")

_BERT: Final = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "inner": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}
_DISTILBERT: Final = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention_output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "inner": "ffn.lin1",
    "output": "ffn.lin2",
    "output_norm": "output_layer_norm",
}


@dataclass(frozen=True, slots=True)
class Affine:
    """A dense layer's matrix and bias, or a normalisation's gain and bias."""

    weight: FloatMatrix
    """Of a dense layer (inputs, outputs), the right factor; of a normalisation (F,)."""
    bias: FloatMatrix


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer, its norms behind the residual sums."""

    query: Affine
    key: Affine
    value: Affine
    attention_output: Affine
    attention_norm: Affine
    inner: Affine
    output: Affine
    output_norm: Affine


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """A BERT-shaped encoder, all of it that turns tokens into features."""

    architecture: str
    """The ``model_type`` it was published as."""
    heads: int
    epsilon: float
    """Of every normalisation."""
    activation: str
    """A key of :data:`ACTIVATIONS`."""
    word: FloatMatrix
    """(vocabulary, F)"""
    position: FloatMatrix
    """(max_tokens, F): row n is added to token n. The first segment's row is in it."""
    segment: FloatMatrix
    """(segments, F): what a token has besides that is in another segment than the first; row 0
    is zero. One row where the model knows no segments."""
    embedding_norm: Affine
    layers: tuple[Layer, ...]

    @property
    def features(self) -> int:
        """F, the width of every layer's outcome."""
        return int(self.word.shape[1])

    @property
    def max_tokens(self) -> int:
        """The longest text it can be given, its own marks counted."""
        return int(self.position.shape[0])

    def first_layers(self, count: int) -> Encoder:
        """Return the encoder whose features are what layer ``count`` gives."""
        return dataclasses.replace(self, layers=self.layers[:count])


def read_encoder(folder: Path) -> Encoder:
    """Read an encoder from ``config.json`` and ``model.safetensors``.

    Raises:
        ModelError: it is no encoder of a supported shape, or weights are missing or of
            another shape than the configuration says. Every problem is named.
    """
    config = _read_config(folder)
    tensors = _Tensors(folder / _WEIGHTS)
    distil = config.architecture == "distilbert"
    names = _DISTILBERT if distil else _BERT
    stem = "transformer.layer" if distil else "encoder.layer"
    width, inner = config.features, config.inner
    layers = []
    for number in range(config.layers):
        parts = {}
        for part, name in names.items():
            shape: tuple[int, ...] = (width, width)
            if part in {"inner", "output"}:
                shape = (inner, width) if part == "inner" else (width, inner)
            full = f"{stem}.{number}.{name}"
            norm = part.endswith("norm")
            parts[part] = tensors.norm(full, width) if norm else tensors.dense(full, shape)
        layers.append(Layer(**parts))
    position = tensors.matrix("embeddings.position_embeddings.weight", (config.positions, width))
    segment = np.zeros((1, width), np.float32)
    if not distil:
        segments = (config.segments, width)
        # Texts come one at a time, so every token is in segment 0; a passage that is read for a
        # question is in segment 1.
        segment = tensors.matrix("embeddings.token_type_embeddings.weight", segments)
        position, segment = position + segment[0], segment - segment[0]
    encoder = Encoder(
        architecture=config.architecture,
        heads=config.heads,
        epsilon=config.epsilon,
        activation=config.activation,
        word=tensors.matrix("embeddings.word_embeddings.weight", (config.vocabulary, width)),
        # RoBERTa counts positions from padding_idx + 1 (fairseq's make_positions).
        position=position[config.first_position :],
        segment=segment,
        embedding_norm=tensors.norm("embeddings.LayerNorm", width),
        layers=tuple(layers),
    )
    tensors.refuse_problems()
    return encoder


def read_span_head(folder: Path, features: int) -> Affine:
    """Read the layer that gives every token a logit as an answer's start and one as its end.

    Raises:
        ModelError: the model has no such layer: it was not trained to find answers.
    """
    tensors = _Tensors(folder / _WEIGHTS)
    head = tensors.dense("qa_outputs", (2, features))
    try:
        tensors.refuse_problems()
    except ModelError as err:
        raise ModelError(
            f"{folder} holds no model that finds answers (a BertForQuestionAnswering or the like): "
            f"{err}"
        ) from err
    return head


@dataclass(frozen=True, slots=True)
class _Config:
    """What of ``config.json`` decides the arithmetic."""

    architecture: str
    features: int
    inner: int
    heads: int
    layers: int
    vocabulary: int
    positions: int
    first_position: int
    segments: int
    epsilon: float
    activation: str


def _read_config(folder: Path) -> _Config:
    path = folder / "config.json"
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ModelError(f"{path} cannot be read as JSON: fetch the model again") from err
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a model's configuration: fetch the model again")
    architecture = config.get("model_type")
    if architecture not in ENCODERS:
        raise ModelError(
            f"{folder} holds a model of type {architecture!r}, which cannot be imported: "
            f"supported are {', '.join(ENCODERS)}"
        )
    distil, roberta = architecture == "distilbert", architecture.endswith("roberta")
    problems: list[str] = []

    def count(name: str, default: int | None = None) -> int:
        value = config.get(name, default)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        problems.append(f"{name} must be a whole number from 1, not {value!r}")
        return 1

    padding = config.get("pad_token_id", 1)
    if roberta and not (isinstance(padding, int) and 0 <= padding < 1000):
        problems.append(f"pad_token_id must be a token's number, not {padding!r}")
        padding = 1
    epsilon = config.get("layer_norm_eps", 1e-12)
    if not (isinstance(epsilon, float) and 0 < epsilon < 1):
        problems.append(f"layer_norm_eps must lie between 0 and 1, not {epsilon!r}")
    activation = config.get("activation" if distil else "hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        problems.append(
            f"the activation {activation!r} is not supported, only {', '.join(ACTIVATIONS)}"
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        problems.append(f"positions are {config['position_embedding_type']!r}, not 'absolute'")
    if config.get("is_decoder"):
        problems.append("it is a decoder: its tokens do not see the ones that follow")
    read = _Config(
        architecture=architecture,
        features=count("dim" if distil else "hidden_size"),
        inner=count("hidden_dim" if distil else "intermediate_size"),
        heads=count("n_heads" if distil else "num_attention_heads"),
        layers=count("n_layers" if distil else "num_hidden_layers"),
        vocabulary=count("vocab_size"),
        positions=count("max_position_embeddings", 512),
        first_position=padding + 1 if roberta else 0,
        segments=count("type_vocab_size", 2),
        epsilon=epsilon,
        activation=activation,
    )
    if read.features % read.heads:
        problems.append(f"{read.features} features cannot be shared by {read.heads} heads")
    if read.positions <= read.first_position:
        problems.append(f"{read.positions} positions leave none for a token")
    if problems:
        raise ModelError(f"{path} describes no model that can be imported: {'; '.join(problems)}")
    return read


class _Tensors:
    """A safetensors file's tensors as float32, by their names without the family's prefix.

    What is missing or misshapen is collected, so that one message names all of it.
    """

    def __init__(self, path: Path) -> None:
        try:
            data = np.memmap(path, np.uint8, "r")
            (length,) = _HEADER_LENGTH.unpack(data[: _HEADER_LENGTH.size].tobytes())
            start = _HEADER_LENGTH.size + length
            header: Any = json.loads(data[_HEADER_LENGTH.size : start].tobytes())
            self._entries: Mapping[str, Any] = {
                _bare(name): entry for name, entry in header.items() if name != "__metadata__"
            }
        except (OSError, ValueError, AttributeError, struct.error) as err:
            raise ModelError(
                f"{path} cannot be read as safetensors ({type(err).__name__}): "
                "fetch the model again"
            ) from err
        self._path = path
        self._data = data[start:]
        self._missing: list[str] = []
        self._misshapen: list[str] = []

    def dense(self, name: str, shape: tuple[int, ...]) -> Affine:
        """Return a dense layer stored as (outputs, inputs), turned into a right factor."""
        weight = self.matrix(f"{name}.weight", shape).T
        return Affine(np.ascontiguousarray(weight), self.matrix(f"{name}.bias", shape[:1]))

    def norm(self, name: str, width: int) -> Affine:
        """Return a normalisation; models of 2018 call its parameters gamma and beta."""
        gain, bias = f"{name}.weight", f"{name}.bias"
        if gain not in self._entries and f"{name}.gamma" in self._entries:
            gain, bias = f"{name}.gamma", f"{name}.beta"
        return Affine(self.matrix(gain, (width,)), self.matrix(bias, (width,)))

    def matrix(self, name: str, shape: tuple[int, ...]) -> FloatMatrix:
        """Return one tensor; zeros where there is a problem, which is written down."""
        entry = self._entries.get(name)
        if entry is None:
            self._missing.append(name)
            return np.zeros(shape, np.float32)
        try:
            if tuple(entry["shape"]) != shape:
                self._misshapen.append(f"{name} is {entry['shape']} and not {list(shape)}")
                return np.zeros(shape, np.float32)
            begin, end = entry["data_offsets"]
            raw = self._data[begin:end]
            if entry["dtype"] == "BF16":  # the upper half of a float32
                bits = raw.view("<u2").astype(np.uint32) << 16
                return bits.view(np.float32).reshape(shape)
            kind = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[entry["dtype"]]
            return np.array(raw.view(kind).reshape(shape), np.float32)
        except (KeyError, TypeError, ValueError):
            self._misshapen.append(f"{name} is not {math.prod(shape)} floating-point numbers")
            return np.zeros(shape, np.float32)

    def refuse_problems(self) -> None:
        """Raise the one error that names everything (W1)."""
        problems = [f"missing are {', '.join(self._missing)}"] if self._missing else []
        problems += self._misshapen
        if problems:
            raise ModelError(
                f"{self._path} does not hold the weights that config.json describes: "
                f"{'; '.join(problems)}"
            )


def _bare(name: str) -> str:
    """Return a tensor's name as the model without a task's head has it."""
    head, _, rest = name.partition(".")
    return rest if head in {"bert", "distilbert", "roberta"} else name
