"""The adapter: the small trained part on top of a frozen base, and its one encoding.

M1  an adapter has exactly one encoding, so its SHA-256 names it
M2  bytes from a peer become an adapter that is finite and of the stated shape, or an error

An adapter may have a *head*, which turns a text's features into labels, and *inner*
matrices inside the base, one low-rank pair or one bottleneck per slot.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np

from shared.config import Field, Table, read_json
from shared.errors import ConfigError, NonFiniteUpdate, ShapeMismatch, UndecodableMessage
from shared.files import digest_of
from shared.types import Digest, FloatMatrix, FloatVector

FEATURE_SCALE: Final = 10.0
"""Length-normalised features times this give a head's logits a useful range (measured under
DP: accuracy 0.99 where unscaled pooler outputs gave 0.29)."""

LABEL_SCALE: Final = 1.5
"""How strongly label names count at the start. Between 1 and 2 it makes no difference
(measured on two data sets, ε 3 and 8: within one point of accuracy)."""

_METADATA_KEY: Final = "llmos"
_FORMAT: Final = 1
_LABELS_LIMIT: Final = 10_000
_LABEL_CHARACTERS_LIMIT: Final = 200
_FEATURES_LIMIT: Final = 65_536
_BYTES_LIMIT: Final = 256 * 2**20
_HEADER_BYTES_LIMIT: Final = 8 * 2**20
_HEADER_LENGTH: Final = struct.Struct("<Q")


class Slot(Table):
    """A place in the base where trained matrices are added.

    Attributes:
        name: ``layer.5.query`` or ``.value`` takes a low-rank pair, ``layer.5.output`` a
            bottleneck. Layers count from 0 at the bottom.
        inputs: Width of what enters the place.
        outputs: Width of what leaves it.
    """

    name: str = Field(pattern=r"^layer\.[0-9]{1,4}\.(query|value|output)$")
    inputs: int = Field(ge=1, le=_FEATURES_LIMIT)
    outputs: int = Field(ge=1, le=_FEATURES_LIMIT)

    @property
    def place(self) -> tuple[int, str]:
        """The layer, from 0 at the bottom, and what in it: query, value or output."""
        return place_of(self.name)


def place_of(slot: str) -> tuple[int, str]:
    """Read a slot's name.

    >>> place_of("layer.5.query")
    (5, 'query')
    """
    _, layer, part = slot.split(".")
    return int(layer), part


class AdapterShape(Table):
    """What an adapter consists of; its parameters' order follows from it.

    Attributes:
        labels: C distinct names, the head's order; none for an adapter without a head.
        features: F, the width of the base.
        method: ``lora`` and ``rslora`` add scale · B A x to a slot's product, ``bottleneck``
            adds up(gelu(down(h))) to its outcome, ``none`` trains the head alone.
        rank: r, the width of the inner matrices.
        alpha: The scale is alpha / r (LoRA) or alpha / √r (rsLoRA).
        slots: Where.

    Source:
        Hu et al., "LoRA", ICLR 2022, section 4.1; Kalajdzievski, "A Rank Stabilization Scaling
        Factor for Fine-Tuning with LoRA", 2023, section 3; Pfeiffer et al., "AdapterFusion",
        EACL 2021, section 3 (one bottleneck a layer, behind the feed-forward part).
    """

    labels: tuple[str, ...] = ()
    features: int
    method: Literal["none", "lora", "rslora", "bottleneck"] = "none"
    rank: int = Field(0, ge=0, le=1024)
    alpha: float = Field(0.0, ge=0, le=1e6)
    slots: tuple[Slot, ...] = Field((), max_length=4096)

    def contradictions(self) -> Iterator[str]:
        """Labels must be writable and distinct, and something must be trained."""
        classes = len(self.labels)
        if (classes and not 2 <= classes <= _LABELS_LIMIT) or len(set(self.labels)) != classes:
            yield f"a head needs 2 to {_LABELS_LIMIT} labels, all different; it has {classes}"
        for label in self.labels:
            # A lone surrogate, which JSON can spell, is no text that could be written down.
            if not 0 < len(label) <= _LABEL_CHARACTERS_LIMIT or re.search("[\ud800-\udfff]", label):
                yield f"a label has 1 to {_LABEL_CHARACTERS_LIMIT} characters of text, not {label!a}"
        if not 0 < self.features <= _FEATURES_LIMIT:
            yield f"an adapter has 1 to {_FEATURES_LIMIT} features"
        inner = self.method != "none"
        if not classes and not inner:
            yield "an adapter has labels, inner matrices or both; this one has neither"
        if inner != bool(self.slots) or inner != bool(self.rank):
            yield f"the method {self.method!r} does not fit rank {self.rank} in {len(self.slots)} slots"
        names = [slot.name for slot in self.slots]
        if len(set(names)) != len(names):
            yield "a slot is named twice"
        for slot in self.slots:
            if slot.name.endswith("output") != (self.method == "bottleneck"):
                yield f"the slot {slot.name} does not take {self.method!r}"
            if self.method == "bottleneck" and slot.inputs != slot.outputs:
                yield f"the slot {slot.name} of a bottleneck is not square"

    @property
    def scale(self) -> float:
        """What the product of a low-rank pair is multiplied with."""
        if self.method == "lora":
            return self.alpha / self.rank
        return self.alpha / math.sqrt(self.rank) if self.method == "rslora" else 1.0

    @property
    def head(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the head's tensors; empty without labels."""
        classes = len(self.labels)
        if not classes:
            return {}
        return {"head.weight": (classes, self.features), "head.bias": (classes,)}

    @property
    def inner(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the matrices inside the base."""
        shapes: dict[str, tuple[int, ...]] = {}
        for slot in self.slots:
            if self.method == "bottleneck":
                shapes[f"{slot.name}.down"] = (self.rank, slot.inputs)
                shapes[f"{slot.name}.down_bias"] = (self.rank,)
                shapes[f"{slot.name}.up"] = (slot.outputs, self.rank)
                shapes[f"{slot.name}.up_bias"] = (slot.outputs,)
            else:
                shapes[f"{slot.name}.lora_a"] = (self.rank, slot.inputs)
                shapes[f"{slot.name}.lora_b"] = (slot.outputs, self.rank)
        return shapes

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors, in the order of the parameter vector."""
        return self.head | self.inner

    @property
    def parameters(self) -> int:
        """Length of the parameter vector."""
        return sum(math.prod(shape) for shape in self.tensors.values())

    @property
    def head_parameters(self) -> int:
        """How many of the first parameters belong to the head."""
        return sum(math.prod(shape) for shape in self.head.values())


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Trained tensors for one base model.

    Two adapters are the same when their :attr:`digest` is.
    """

    shape: AdapterShape
    base: Digest
    """The base model it was trained on."""
    tensors: Mapping[str, FloatMatrix]
    """float32, as ``shape.tensors`` names and shapes them."""

    def __post_init__(self) -> None:
        """Check the shapes and freeze private copies of the arrays.

        Raises:
            ShapeMismatch: shape and arrays contradict each other or exceed the limits.
            NonFiniteUpdate: a parameter is NaN or infinite.
        """
        for problem in self.shape.contradictions():
            raise ShapeMismatch(problem)
        expected = self.shape.tensors
        if self.tensors.keys() != expected.keys():
            odd = sorted(self.tensors.keys() ^ expected.keys())
            raise ShapeMismatch(f"tensors that are missing or too many: {', '.join(odd[:5])}")
        frozen: dict[str, FloatMatrix] = {}
        for name, shape in expected.items():
            if self.tensors[name].shape != shape:
                raise ShapeMismatch(f"{name} has shape {self.tensors[name].shape}, not {shape}")
            array = np.array(self.tensors[name], dtype=np.float32, order="C")
            if not np.isfinite(array).all():
                raise NonFiniteUpdate(f"the adapter's {name} holds NaN or infinity")
            array.flags.writeable = False
            frozen[name] = array
        object.__setattr__(self, "tensors", MappingProxyType(frozen))

    @classmethod
    def initial(
        cls,
        shape: AdapterShape,
        base: Digest,
        *,
        seed: int = 0,
        label_features: FloatMatrix | None = None,
    ) -> Adapter:
        """Return the adapter that training starts from; the base behaves as without it.

        One half of every inner pair is zero, the other drawn as PyTorch draws a linear
        layer's weight, U(-1/√n, 1/√n) for n inputs.

        Args:
            shape: What it consists of.
            base: The base model it belongs to.
            seed: Of the draw; public.
            label_features: Embeddings of the labels' own names, length-normalised, (C, F):
                the head starts as them times :data:`LABEL_SCALE`, a zero-shot classifier
                out of public words. Without them every label is equally likely.

        Raises:
            ShapeMismatch: the shape contradicts itself, or the label features do not fit.
        """
        rng = np.random.Generator(np.random.PCG64(seed))
        tensors: dict[str, FloatMatrix] = {}
        for name, size in shape.tensors.items():
            if name.endswith((".lora_a", ".down")):
                reach = 1 / math.sqrt(size[1])
                tensors[name] = rng.uniform(-reach, reach, size).astype(np.float32)
            else:
                tensors[name] = np.zeros(size, np.float32)
        if label_features is not None:
            tensors["head.weight"] = (LABEL_SCALE * label_features).astype(np.float32)
        return cls(shape, base, tensors)

    @property
    def labels(self) -> tuple[str, ...]:
        """The head's labels."""
        return self.shape.labels

    @property
    def features(self) -> int:
        """F, the width of the base."""
        return self.shape.features

    @property
    def weight(self) -> FloatMatrix:
        """The head's weight, (C, F)."""
        return self.tensors["head.weight"]

    @property
    def bias(self) -> FloatMatrix:
        """The head's bias, (C,)."""
        return self.tensors["head.bias"]

    @property
    def parameters(self) -> int:
        """Length of :meth:`flatten`."""
        return self.shape.parameters

    @property
    def digest(self) -> Digest:
        """SHA-256 of :meth:`to_bytes`: the adapter's name everywhere."""
        return digest_of(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the adapter as safetensors, the same bytes every time (M1)."""
        from safetensors.numpy import save

        # One metadata key only: safetensors writes several in random order.
        about = {"base": self.base, "format": _FORMAT, "shape": self.shape.model_dump()}
        text = json.dumps(about, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return save(dict(self.tensors), metadata={_METADATA_KEY: text})

    @classmethod
    def from_bytes(cls, data: bytes) -> Adapter:
        """Read an adapter that may come from anyone (M2).

        Raises:
            UndecodableMessage: not an adapter, beyond the limits, or not the one encoding
                that :meth:`to_bytes` gives.
            ShapeMismatch: its parts contradict each other, or exceed the limits.
            NonFiniteUpdate: a parameter is NaN or infinite.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        shape, base = _about(data)
        try:
            tensors = load(data)
        except (SafetensorError, KeyError, ValueError) as err:
            raise UndecodableMessage(f"not an adapter: {err}") from err
        if any(tensor.dtype != np.float32 for tensor in tensors.values()):
            raise UndecodableMessage("not an adapter: its tensors must be float32")
        adapter = cls(shape, base, tensors)
        if adapter.to_bytes() != data:
            raise UndecodableMessage("an adapter has exactly one encoding, and this is another")
        return adapter

    def flatten(self) -> FloatMatrix:
        """Return all parameters as one float32 vector, tensor by tensor, row by row."""
        return np.concatenate([self.tensors[name].ravel() for name in self.shape.tensors])

    def moved(self, delta: FloatVector | FloatMatrix) -> Adapter:
        """Return the adapter whose parameters are these plus ``delta``.

        Args:
            delta: In the order of :meth:`flatten`; added in float64.

        Raises:
            ShapeMismatch: ``delta`` has another length.
            NonFiniteUpdate: the result is not finite.
        """
        if delta.shape != (self.parameters,):
            raise ShapeMismatch(
                f"an update of shape {delta.shape} does not fit {self.parameters} parameters"
            )
        with np.errstate(over="ignore"):
            moved = (self.flatten().astype(np.float64) + delta).astype(np.float32)
        return Adapter(self.shape, self.base, unflatten(moved, self.shape))

    def logits(self, features: FloatMatrix) -> FloatMatrix:
        """Return (n, C) logits of (n, F) mean-pooled, length-normalised features.

        With inner matrices the features must have been computed with them in place.

        Raises:
            ShapeMismatch: the features are not (n, F).
        """
        if features.ndim != 2 or features.shape[1] != self.features:
            raise ShapeMismatch(
                f"features of shape {features.shape} do not fit an adapter over {self.features}"
            )
        return np.asarray(
            (features * np.float32(FEATURE_SCALE)) @ self.weight.T + self.bias, np.float32
        )

    def predict(self, features: FloatMatrix) -> list[str]:
        """Return the likeliest label of every row; of equals, the first."""
        return [self.labels[index] for index in self.logits(features).argmax(axis=1)]

    def graph_inputs(self) -> dict[str, FloatMatrix]:
        """Return what an imported graph is fed: matrices as right factors, scales multiplied in.

        ``head.weight`` (F, C) times :data:`FEATURE_SCALE`, ``<slot>.lora_a`` (inputs, r),
        ``<slot>.lora_b`` (r, outputs) times the scale, ``<slot>.down`` (inputs, r),
        ``<slot>.up`` (r, outputs); biases as they are.
        """
        factors = {"weight": FEATURE_SCALE, "lora_b": self.shape.scale}
        inputs: dict[str, FloatMatrix] = {}
        for name, tensor in self.tensors.items():
            factor = np.float32(factors.get(name.rpartition(".")[2], 1.0))
            inputs[name] = np.ascontiguousarray(tensor.T * factor, np.float32)
        return inputs


def unflatten(vector: FloatMatrix, shape: AdapterShape) -> dict[str, FloatMatrix]:
    """Return the tensors whose parameters, one behind the other, are ``vector``."""
    tensors: dict[str, FloatMatrix] = {}
    start = 0
    for name, size in shape.tensors.items():
        end = start + math.prod(size)
        tensors[name] = vector[start:end].reshape(size)
        start = end
    return tensors


def _about(data: bytes) -> tuple[AdapterShape, Digest]:
    """Return shape and base from the header, which safetensors' own reader does not give."""
    if len(data) > _BYTES_LIMIT:
        raise UndecodableMessage(f"an adapter of {len(data)} bytes is beyond {_BYTES_LIMIT}")
    if len(data) < _HEADER_LENGTH.size:
        raise UndecodableMessage("not an adapter: too short")
    (length,) = _HEADER_LENGTH.unpack_from(data)
    if length > min(_HEADER_BYTES_LIMIT, len(data) - _HEADER_LENGTH.size):
        raise UndecodableMessage("not an adapter: its header does not fit")
    try:
        header: Any = json.loads(data[_HEADER_LENGTH.size : _HEADER_LENGTH.size + length])
        about: Any = json.loads(header["__metadata__"][_METADATA_KEY])
        stated, shape, base = about["format"], about["shape"], about["base"]
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise UndecodableMessage("not an adapter: its header does not say what it is") from err
    if stated != _FORMAT:
        raise UndecodableMessage(f"an adapter of format {stated!r} is unknown to this version")
    if not (isinstance(base, str) and len(base) == 64 and set(base) <= set("0123456789abcdef")):
        raise UndecodableMessage("not an adapter: it does not name its base by SHA-256")
    try:
        return read_json(AdapterShape, json.dumps(shape), source="adapter"), Digest(base)
    except ConfigError as err:
        raise UndecodableMessage(f"not an adapter: {err}") from err
