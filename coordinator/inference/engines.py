"""Which engine serves a model on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordinator.inference.engine import Engine
from coordinator.inference.local_engine import LocalEngine
from coordinator.inference.onnx_runtime import SLOTS
from coordinator.registry.causal_graph import PRECISIONS
from shared.errors import ConfigError

AUTO: Final = "auto"
TENSOR_PARALLEL: Final = "tensor-parallel"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How a language model is run.

    Attributes:
        models: Where graphs are kept.
        runtime: ``onnx`` on the processor, ``transformers`` on a GPU; ``auto`` finds out.
        device: ``cpu`` or ``cuda``; ``auto`` takes a GPU where there is one.
        precision: ``fp32``, ``int8``, ``int4`` for ``onnx``; ``fp32``, ``bf16``, ``fp16`` for
            ``transformers``; ``auto`` is fp32 on the processor and bf16 on a GPU.
        threads: Arithmetic threads; 0 takes every core.
        slots: Most requests at once.
        kv_bytes: Memory for keys and values of requests under way; 0: a share of the machine's.
        tensor_parallel: Processes that hold a part of the model each; 1 keeps it whole.
    """

    models: Path
    runtime: str = AUTO
    device: str = AUTO
    precision: str = AUTO
    threads: int = 0
    slots: int = SLOTS
    kv_bytes: int = 0
    tensor_parallel: int = 1


def make_engine(name_or_path: str, settings: EngineSettings) -> Engine:
    """Describe the engine that serves a model; starting it loads the model.

    Raises:
        ConfigError: the settings contradict each other.
        ModelError: it is neither a folder with a model nor written like a hub id.
    """
    device = settings.device if settings.device != AUTO else _device()
    runtime = settings.runtime
    if settings.tensor_parallel > 1:
        if runtime == "onnx":
            raise ConfigError(["--tensor-parallel: onnx keeps a model whole"], source="options")
        runtime = TENSOR_PARALLEL
    if runtime == AUTO:
        runtime = "onnx" if device == "cpu" else "transformers"
    known = PRECISIONS if runtime == "onnx" else ("fp32", "bf16", "fp16")
    precision = settings.precision
    if precision == AUTO:
        precision = "fp32" if device == "cpu" else "bf16"
    if precision not in known:
        raise ConfigError(
            [f"--precision: {precision} is not among {', '.join(known)} of the engine {runtime}"],
            source="options",
        )
    if runtime == "onnx" and device != "cpu":
        raise ConfigError(["--engine: onnx runs on the processor only"], source="options")
    threads = settings.threads or os.cpu_count() or 1
    table = {
        "runtime": runtime,
        "device": device,
        "precision": precision,
        "slots": settings.slots,
        "kv_bytes": settings.kv_bytes,
        "models": str(settings.models),
    }
    if runtime != TENSOR_PARALLEL:
        return LocalEngine(name_or_path, table, threads=threads)
    count = settings.tensor_parallel
    return LocalEngine(
        name_or_path,
        table,
        threads=max(1, threads // count),
        worker="coordinator.inference.tensor_parallel_worker",
        arguments=(str(count), device),
    )


def _device() -> str:
    """Whether the system shows an NVIDIA GPU; torch, which would tell, takes seconds to import."""
    return "cuda" if Path("/proc/driver/nvidia/version").exists() else "cpu"
