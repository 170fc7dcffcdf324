"""The adapter: the small trained part on top of a frozen base, and its one encoding.

M1  an adapter has exactly one encoding, so its SHA-256 names it
M2  bytes from a peer become an adapter that is finite and of the stated shape, or an error
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from shared.errors import NonFiniteUpdate, ShapeMismatch, UndecodableMessage
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


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A linear head over mean-pooled, length-normalised features of one base model.

    Two adapters are the same when their :attr:`digest` is.
    """

    labels: tuple[str, ...]
    """C distinct names; the order of the rows of ``weight``."""
    features: int
    """F, the base model's feature count."""
    weight: FloatMatrix
    """(C, F)"""
    bias: FloatMatrix
    """(C,)"""
    base: Digest
    """The base model whose features it expects."""

    def __post_init__(self) -> None:
        """Check the shapes and freeze private copies of the arrays.

        Raises:
            ShapeMismatch: labels, features and arrays contradict each other or exceed the limits.
            NonFiniteUpdate: a parameter is NaN or infinite.
        """
        classes = len(self.labels)
        if not 2 <= classes <= _LABELS_LIMIT or len(set(self.labels)) != classes:
            raise ShapeMismatch(
                f"an adapter needs 2 to {_LABELS_LIMIT} labels, all different; it has {classes}"
            )
        for label in self.labels:
            # A lone surrogate, which JSON can spell, is no text that could be written down.
            if not 0 < len(label) <= _LABEL_CHARACTERS_LIMIT or re.search("[\ud800-\udfff]", label):
                raise ShapeMismatch(
                    f"a label has 1 to {_LABEL_CHARACTERS_LIMIT} characters of text, not {label!a}"
                )
        if not 0 < self.features <= _FEATURES_LIMIT:
            raise ShapeMismatch(f"an adapter has 1 to {_FEATURES_LIMIT} features")
        if self.weight.shape != (classes, self.features) or self.bias.shape != (classes,):
            raise ShapeMismatch(
                f"an adapter of {classes} labels over {self.features} features cannot have "
                f"weight {self.weight.shape} and bias {self.bias.shape}"
            )
        for name in ("weight", "bias"):
            array = np.array(getattr(self, name), dtype=np.float32, order="C")
            if not np.isfinite(array).all():
                raise NonFiniteUpdate(f"the adapter's {name} holds NaN or infinity")
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @classmethod
    def zeros(cls, labels: Sequence[str], features: int, base: Digest) -> Adapter:
        """Return the adapter that training starts from: every label equally likely."""
        return cls(
            labels=tuple(labels),
            features=features,
            weight=np.zeros((len(labels), features), np.float32),
            bias=np.zeros(len(labels), np.float32),
            base=base,
        )

    @classmethod
    def from_label_features(
        cls, labels: Sequence[str], label_features: FloatMatrix, base: Digest
    ) -> Adapter:
        """Return the adapter that knows what its labels are called, and nothing else.

        Each row of ``weight`` is the embedding of the label's own name times
        :data:`LABEL_SCALE`: a zero-shot classifier out of public words.

        Args:
            labels: C names.
            label_features: Their embeddings, length-normalised, shape (C, F).
            base: The base model that embedded them.
        """
        return cls(
            labels=tuple(labels),
            features=label_features.shape[1],
            weight=LABEL_SCALE * label_features,
            bias=np.zeros(len(labels), np.float32),
            base=base,
        )

    @property
    def parameters(self) -> int:
        """Length of :meth:`flatten`: C·F + C."""
        return len(self.labels) * (self.features + 1)

    @property
    def digest(self) -> Digest:
        """SHA-256 of :meth:`to_bytes`: the adapter's name everywhere."""
        return digest_of(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the adapter as safetensors, the same bytes every time (M1)."""
        from safetensors.numpy import save

        # One metadata key only: safetensors writes several in random order.
        about = {"base": self.base, "format": _FORMAT, "labels": self.labels}
        text = json.dumps(about, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return save({"bias": self.bias, "weight": self.weight}, metadata={_METADATA_KEY: text})

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

        labels, base = _about(data)
        try:
            tensors = load(data)
        except (SafetensorError, KeyError, ValueError) as err:
            raise UndecodableMessage(f"not an adapter: {err}") from err
        if set(tensors) != {"bias", "weight"}:
            raise UndecodableMessage("not an adapter: it must hold 'bias' and 'weight' alone")
        weight, bias = tensors["weight"], tensors["bias"]
        if weight.dtype != np.float32 or bias.dtype != np.float32:
            raise UndecodableMessage("not an adapter: its tensors must be float32")
        if weight.ndim != 2:
            raise UndecodableMessage("not an adapter: 'weight' must be a matrix")
        adapter = cls(labels, weight.shape[1], weight, bias, base)
        if adapter.to_bytes() != data:
            raise UndecodableMessage("an adapter has exactly one encoding, and this is another")
        return adapter

    def flatten(self) -> FloatMatrix:
        """Return all parameters as one float32 vector: ``weight`` row by row, then ``bias``."""
        return np.concatenate([self.weight.ravel(), self.bias])

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
        split = self.weight.size
        return Adapter(
            self.labels,
            self.features,
            moved[:split].reshape(self.weight.shape),
            moved[split:],
            self.base,
        )

    def logits(self, features: FloatMatrix) -> FloatMatrix:
        """Return (n, C) logits of (n, F) mean-pooled, length-normalised features.

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


def _about(data: bytes) -> tuple[tuple[str, ...], Digest]:
    """Return labels and base from the header, which safetensors' own reader does not give."""
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
        stated, labels, base = about["format"], about["labels"], about["base"]
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise UndecodableMessage("not an adapter: its header does not say what it is") from err
    if stated != _FORMAT:
        raise UndecodableMessage(f"an adapter of format {stated!r} is unknown to this version")
    if not (isinstance(labels, list) and all(isinstance(name, str) for name in labels)):
        raise UndecodableMessage("not an adapter: its labels are not a list of names")
    if not (isinstance(base, str) and len(base) == 64 and set(base) <= set("0123456789abcdef")):
        raise UndecodableMessage("not an adapter: it does not name its base by SHA-256")
    return tuple(labels), Digest(base)
