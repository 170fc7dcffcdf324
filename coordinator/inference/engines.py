"""Which engine serves a model on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from coordinator.inference.engine import Engine
from coordinator.inference.local_engine import LocalEngine
from coordinator.inference.onnx_runtime import SLOTS
from coordinator.inference.replicated_engine import ReplicatedEngine
from coordinator.inference.upstream_encoder import UpstreamEncoder
from coordinator.inference.upstream_engine import UpstreamEngine
from coordinator.inference.upstream_wire import AdapterNames, parse_nodes
from coordinator.registry.causal_graph import PRECISIONS
from shared.errors import ConfigError

AUTO: Final = "auto"
ENGINES: Final = (AUTO, "onnx", "transformers")
DEVICES: Final = (AUTO, "cpu", "cuda")
MAX_REPLICAS: Final = 64
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
        kv_bytes: Memory for keys and values of requests under way; 0: a share of the machine's,
            or what a GPU has left.
        tensor_parallel: Processes that hold a part of the model each; 1 keeps it whole.
        prefixes: URL of a Redis where beginnings of prompts are shared; only ``onnx`` does.
    """

    models: Path
    runtime: str = AUTO
    device: str = AUTO
    precision: str = AUTO
    threads: int = 0
    slots: int = SLOTS
    kv_bytes: int = 0
    tensor_parallel: int = 1
    prefixes: str = field(default="", repr=False)


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
        "prefixes": settings.prefixes,
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


@dataclass(frozen=True, slots=True)
class Serving:
    """Which language model a coordinator answers with, as its operator says it.

    Attributes:
        model: A folder or hub id; empty for none here.
        engine_kind: A name in :data:`ENGINES`.
        device: A name in :data:`DEVICES`.
        precision: As in :class:`EngineSettings`.
        slots: Most requests at once, of each replica.
        kv_mib: Memory for keys and values, for all replicas together, in MiB; 0: a share of the
            machine's, or what a GPU has left.
        replicas: Processes that hold it, each with its share of the cores.
        tensor_parallel: Processes that hold a part of it each; 1 keeps it whole.
        upstream: Addresses of those who serve it, separated by commas, in place of ``model``.
        upstream_model: As they call it, and we too; empty where they serve models of texts only.
        upstream_encoder: Of theirs, the model that embeds texts; empty for none.
        upstream_reader: Of theirs, the model that finds answers in passages; empty for none.
        upstream_keys: One key for all of them, or one for each, separated by commas.
        adapter_names: How they call a run's adapter.
    """

    model: str = ""
    engine_kind: str = AUTO
    device: str = AUTO
    precision: str = AUTO
    slots: int = SLOTS
    kv_mib: int = 0
    replicas: int = 1
    tensor_parallel: int = 1
    upstream: str = ""
    upstream_model: str = ""
    upstream_encoder: str = ""
    upstream_reader: str = ""
    upstream_keys: str = field(default="", repr=False)
    adapter_names: AdapterNames = "llmos"

    def engine(self, models: Path, *, prefixes: str = "") -> Engine | None:
        """The engine, not started; ``None`` for none.

        Args:
            models: Where graphs are kept.
            prefixes: As in :class:`EngineSettings`.

        Raises:
            ConfigError: the options contradict each other.
            ModelError: ``model`` is neither a folder with a model nor written like a hub id.
        """
        if problems := list(self._problems()):
            raise ConfigError(problems, source="options")
        if self.upstream_model:
            nodes = parse_nodes(self.upstream, self.upstream_keys)
            return UpstreamEngine(nodes, self.upstream_model, adapter_names=self.adapter_names)
        if not self.model:
            return None
        settings = EngineSettings(
            models=models,
            runtime=self.engine_kind,
            device=self.device,
            precision=self.precision,
            threads=max(1, (os.cpu_count() or 1) // self.replicas),
            slots=self.slots,
            kv_bytes=self.kv_mib * 2**20 // self.replicas,
            tensor_parallel=self.tensor_parallel,
            prefixes=prefixes,
        )
        engines = [make_engine(self.model, settings) for _ in range(self.replicas)]
        return engines[0] if len(engines) == 1 else ReplicatedEngine(engines)

    def encoders(self) -> tuple[UpstreamEncoder | None, UpstreamEncoder | None]:
        """Models of texts on other machines, not started: one that embeds, one that reads.

        Raises:
            ConfigError: the options contradict each other.
        """
        if problems := list(self._problems()):
            raise ConfigError(problems, source="options")
        nodes = parse_nodes(self.upstream, self.upstream_keys) if self.upstream else ()
        embeds = UpstreamEncoder(nodes, self.upstream_encoder) if self.upstream_encoder else None
        reads = (
            UpstreamEncoder(nodes, self.upstream_reader, reads=True)
            if self.upstream_reader
            else None
        )
        return embeds, reads

    def _problems(self) -> Iterator[str]:
        theirs = self.upstream_model or self.upstream_encoder or self.upstream_reader
        if self.model and self.upstream_model:
            yield "--model and --upstream-model: one of them answers, name that"
        if theirs and not self.upstream:
            yield "--upstream-model, --upstream-encoder, --upstream-reader: of no --upstream"
        if self.upstream and not theirs:
            yield "--upstream: name --upstream-model, --upstream-encoder or --upstream-reader too"
        if self.upstream_keys and not self.upstream:
            yield "--upstream-key-env: of no --upstream"
        if self.engine_kind not in ENGINES:
            yield f"--engine: {self.engine_kind} is not among {', '.join(ENGINES)}"
        if self.device not in DEVICES:
            yield f"--device: {self.device} is not among {', '.join(DEVICES)}"
        if not 1 <= self.replicas <= MAX_REPLICAS:
            yield f"--replicas: 1 to {MAX_REPLICAS}, not {self.replicas}"
        elif self.replicas > 1 and not self.model:
            yield "--replicas: of no --model"
        if self.tensor_parallel > 1 and not self.model:
            yield "--tensor-parallel: of no --model"
        if self.tensor_parallel > 1 and self.replicas > 1:
            yield "--tensor-parallel and --replicas: not both, they would share the GPUs"
