"""Encrypted sums against NVFlare's, in one run: bytes, processor time, error.

Both sides get the same updates and answer the same question, the mean over all clients. Ours go
through the very classes that devices, coordinator and key holder use. Times are processor seconds
of this process, whatever number of threads a library starts; sides take turns, so that whatever
else the machine does meets both, and medians are told.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final, TypeVar

import numpy as np

from shared.crypto.sum_cipher import (
    KeyPair,
    Scheme,
    SumContext,
    SumLayout,
    cipher_for,
    opener_for,
)
from shared.privacy.quantiser import Quantiser
from shared.types import FloatVector, RoundNumber, RunId
from sim.bench.bars import Bar, told
from sim.bench.nvflare_he import NvflareSum, is_installed

SPREAD: Final = 0.01
"""Standard deviation of a value; the range that is quantised leaves six of them."""

_STAGES: Final = ((16, 3, 7), (32, 16, 6), (64, 32, 6))
"""Width, width before, and convolutions of a stage; the stem counts to the first."""

RESNET20: Final = (
    *(
        shape
        for width, before, layers in _STAGES
        for layer in range(layers)
        for shape in ((width, before if layer == 0 else width, 3, 3), (width,), (width,))
    ),
    (10, 64),
    (10,),
)
"""Trainable tensors of the ResNet-20 for CIFAR-10 (He et al., CVPR 2016, section 4.2): 19
convolutions, each with a normalisation's weight and bias, and a classifier; 59 tensors."""

Progress = Callable[[str], None]
ResultT = TypeVar("ResultT")

_TO_BYTES: Final = ("quantise", "encrypt", "serialise")
"""From an update to the bytes that are sent. Ours are framed by encrypting, NVFlare's afterwards."""


@dataclass(slots=True)
class Measured:
    """One scheme's figures; times in processor seconds, one entry per repetition."""

    message_bytes: int = 0
    ciphertext_bytes: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    error: float = 0.0

    def timed(self, step: str, work: Callable[..., ResultT], *args: Any, **named: Any) -> ResultT:
        """Do ``work`` with these arguments, and note its time under ``step``."""
        began = time.process_time()
        result = work(*args, **named)
        self.seconds.setdefault(step, []).append(time.process_time() - began)
        return result

    def median(self, *steps: str) -> float:
        """Seconds that these steps took together, of those that this scheme has."""
        return sum(statistics.median(self.seconds[step]) for step in steps if step in self.seconds)

    def figures(self, values: int) -> dict[str, Any]:
        """As ``--json`` shows them: bytes per value, seconds per million values."""
        per_million = {
            step: round(self.median(step) * 1e6 / values, 4) for step in sorted(self.seconds)
        }
        return {
            "bytes_per_value": round(self.message_bytes / values, 3),
            "ciphertext_bytes_per_value": round(self.ciphertext_bytes / values, 3),
            "cpu_s_per_million": per_million,
            "max_error_of_mean": self.error,
        }


def bench_secure_sum(
    *, values: int, clients: int, shapes: str, bits: Sequence[int], repeats: int, progress: Progress
) -> dict[str, Any]:
    """Measure every scheme, and hold the promised figures against what came out.

    Args:
        values: Values of an update; ignored when ``shapes`` names a model.
        clients: How many are summed.
        shapes: ``one`` for one array, ``resnet20`` for that model's tensors.
        bits: Widths at which ours is measured.
        repeats: Rounds, of which medians are taken.
        progress: Told what is measured now.
    """
    sizes = [math.prod(shape) for shape in RESNET20] if shapes == "resnet20" else [values]
    rng = np.random.default_rng(20)
    updates = [rng.normal(0.0, SPREAD, sum(sizes)) for _ in range(clients)]
    ours = {f"public-key, {width} bit": _Ours(Scheme.PUBLIC_KEY, width) for width in bits}
    ours[f"clear, {max(bits)} bit"] = _Ours(Scheme.CLEAR, max(bits))
    found = {name: Measured() for name in ours}
    nvflare = NvflareSum() if is_installed() else None
    if nvflare is not None:
        found["NVFlare"] = Measured()
    for repeat in range(repeats):
        for name, scheme in ours.items():
            progress(f"{name}, round {repeat + 1} of {repeats}")
            scheme.measure(found[name], updates, seed=repeat)
        if nvflare is not None:
            progress(f"NVFlare, round {repeat + 1} of {repeats}")
            _measure_nvflare(nvflare, found["NVFlare"], updates, sizes)
    return told(
        "secure-sum",
        _bars(found, shapes, sum(sizes)),
        values=sum(sizes),
        tensors=len(sizes),
        clients=clients,
        repeats=repeats,
        nvflare=version("nvflare") if nvflare is not None else None,
        schemes={name: measured.figures(sum(sizes)) for name, measured in found.items()},
        ratios=_ratios(found),
    )


@dataclass(frozen=True, slots=True)
class _Ours:
    """One of our schemes at one width."""

    scheme: Scheme
    bits: int

    def measure(self, found: Measured, updates: Sequence[FloatVector], *, seed: int) -> None:
        layout = SumLayout(len(updates[0]), self.bits, max_devices=max(2, len(updates)))
        quantiser = Quantiser(bits=self.bits, value_range=6 * SPREAD)
        uniforms = np.random.default_rng([21, seed]).random((len(updates), layout.count))
        cipher, opener = cipher_for(self.scheme, layout), opener_for(self.scheme, layout)
        keys: KeyPair = opener.new_key_pair()
        context = SumContext(RunId("bench"), RoundNumber(1), keys.key_id)
        total = cipher.begin(context)
        for update, numbers in zip(updates, uniforms, strict=True):
            integers = found.timed("quantise", quantiser.quantise, update, numbers).values
            frame = found.timed(
                "encrypt", cipher.encrypt, integers, public_key=keys.public, context=context
            )
            found.message_bytes = found.ciphertext_bytes = len(frame)
            found.timed("digest", hashlib.sha256, frame)
            found.timed("aggregate with digest", total.add, frame)
        found.seconds["aggregate"] = [
            max(both - alone, 0.0)
            for both, alone in zip(
                found.seconds["aggregate with digest"], found.seconds["digest"], strict=True
            )
        ]
        dump = total.dump()
        opened = found.timed(
            "open",
            opener.open,
            dump,
            secret_key=keys.secret,
            context=context,
            devices=len(updates),
        )
        mean = quantiser.dequantise(opened) / len(updates)
        found.error = max(found.error, float(np.abs(mean - np.mean(updates, axis=0)).max()))


def _measure_nvflare(
    nvflare: NvflareSum, found: Measured, updates: Sequence[FloatVector], sizes: Sequence[int]
) -> None:
    names = [f"tensor {number}" for number in range(len(sizes))]
    cuts = np.cumsum(sizes)[:-1]
    for number, update in enumerate(updates):
        tensors: Mapping[str, FloatVector] = dict(zip(names, np.split(update, cuts), strict=True))
        encrypted = found.timed("encrypt", nvflare.encrypt, tensors)
        found.ciphertext_bytes = nvflare.ciphertext_bytes(encrypted)
        message = found.timed("serialise", nvflare.message, encrypted)
        found.message_bytes = len(message)
        found.timed("aggregate", nvflare.add, message, f"client {number}")
    total = found.timed("mean", nvflare.total)
    opened = found.timed("open", nvflare.open, total, names)
    found.error = max(found.error, float(np.abs(opened - np.mean(updates, axis=0)).max()))


def _ratios(found: Mapping[str, Measured]) -> dict[str, dict[str, float]]:
    """How many times NVFlare's figure each of ours is better."""
    theirs = found.get("NVFlare")
    if theirs is None:
        return {}
    return {
        name: {
            "bytes": round(theirs.message_bytes / ours.message_bytes, 2),
            "bytes, ciphertexts alone": round(theirs.ciphertext_bytes / ours.message_bytes, 2),
            "from update to bytes": round(_ratio(theirs, ours, *_TO_BYTES), 2),
            "aggregate": round(_ratio(theirs, ours, "aggregate"), 2),
            "aggregate with digest": round(
                theirs.median("aggregate") / ours.median("aggregate with digest"), 2
            ),
            "open": round(_ratio(theirs, ours, "open"), 2),
        }
        for name, ours in found.items()
        if name.startswith("public-key")
    }


def _ratio(theirs: Measured | None, ours: Measured, *steps: str) -> float:
    """How many times faster ours takes these steps; NaN without theirs."""
    return math.nan if theirs is None else theirs.median(*steps) / max(ours.median(*steps), 1e-9)


def _bars(found: Mapping[str, Measured], shapes: str, values: int) -> list[Bar]:
    """What was promised of the widths that were measured."""
    theirs, twelve = found.get("NVFlare"), found.get("public-key, 12 bit")
    sixteen = found.get("public-key, 16 bit")
    bars: list[Bar] = []
    if shapes == "resnet20":
        if twelve is not None:
            smaller = theirs.message_bytes / twelve.message_bytes if theirs else math.nan
            bars.append(Bar("12 bit, ResNet-20: times smaller than NVFlare", smaller, 30.0))
        return bars
    if twelve is not None:
        per_value = twelve.message_bytes / values
        bars += [
            Bar("12 bit: bytes per value", per_value, 7.7, at_least=False),
            Bar(
                "12 bit: times smaller than NVFlare",
                theirs.message_bytes / twelve.message_bytes if theirs else math.nan,
                7.5,
            ),
            Bar(
                "12 bit: times faster from update to bytes",
                _ratio(theirs, twelve, *_TO_BYTES),
                4.0,
            ),
            Bar(
                "12 bit: times faster to aggregate, digest apart",
                _ratio(theirs, twelve, "aggregate"),
                8.0,
            ),
        ]
    if sixteen is not None:
        per_value = sixteen.message_bytes / values
        bars.append(Bar("16 bit: bytes per value", per_value, 8.2, at_least=False))
    return bars
