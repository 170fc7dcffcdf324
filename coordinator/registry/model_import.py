"""Import a model: from published weights to a folder that devices can answer with.

R1  an imported model is whole or absent: its folder gets its name when everything is in it
R2  the same import twice returns the same folder, and two at a time do not meet
R3  torch is not needed, and code that comes with a model is not run
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from coordinator.registry.graph import fused_graph, plain_graph, slot_names
from coordinator.registry.passes import Effort, Stage, measure
from coordinator.registry.quantisation import quantise_int4, quantise_int8
from coordinator.registry.weights import read_encoder
from shared.errors import ModelError
from shared.extras import require
from shared.files import digest_of_file, disk_errors, make_folder, sync_folder, write_durably
from shared.models.adapter import Slot
from shared.models.encoder import BaseModel, find_base_model
from shared.models.manifest import (
    GRAPH,
    MANIFEST,
    TOKENIZER,
    Manifest,
    ModelFile,
    read_manifest,
    verify_files,
)
from shared.types import Digest

Quantise = Literal["int8", "int4", "none"]

_UNFINISHED: Final = ".importing"
_STAGES: Final = 6
"""Graphs on disk at once, at most, each about as large as the weights."""


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A model in the registry."""

    folder: Path
    manifest: Manifest
    digest: Digest
    """SHA-256 of the manifest: the model's name on devices."""


def import_model(
    source: str,
    models_folder: Path,
    *,
    keep_layers: int = 0,
    quantise: Quantise = "int8",
    adapter_layers: int = 2,
    passes: Effort = "full",
    progress: Callable[[str], None] | None = None,
) -> ImportedModel:
    """Import an encoder into the registry, or return it if it is there (R1, R2).

    Args:
        source: A folder, a hub id, or the hub id of a model that an installed package carries.
        models_folder: Where imported models live.
        keep_layers: Only the first so many layers; 0 keeps all.
        quantise: How weights are stored; "none" is float32.
        adapter_layers: How many layers, from the top, an adapter may reach into.
        passes: How long the table of passes is measured for.
        progress: Told the name of each pass when it begins.

    Raises:
        ModelError: there is no such model, it is of no supported shape, there are not so many
            layers, the disk has no room, or what was imported before is damaged.
        StorageError: the disk refused.
        DependencyMissing: onnx, onnxruntime or tokenizers is not installed.
    """
    base = find_base_model(source, keep_layers=keep_layers)
    folder = models_folder / _folder_name(base, quantise, adapter_layers)
    with _alone(models_folder):
        if folder.is_dir():
            return open_model(folder)
        _check_room(base, models_folder)
        with disk_errors(folder):
            unfinished = models_folder / _UNFINISHED
            unfinished.mkdir()
            try:
                _build(
                    base,
                    unfinished,
                    quantise=quantise,
                    adapter_layers=adapter_layers,
                    effort=passes,
                    progress=progress,
                )
                unfinished.rename(folder)
                sync_folder(models_folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return open_model(folder)


def open_model(folder: Path) -> ImportedModel:
    """Return an imported model after a look at its hashes.

    Raises:
        ModelError: it is not there, or not what was imported.
    """
    manifest, digest = read_manifest(folder)
    verify_files(folder, manifest)
    return ImportedModel(folder, manifest, digest)


def imported_models(models_folder: Path) -> list[Path]:
    """Return the folders of all imported models, by name."""
    return sorted(path.parent for path in models_folder.glob(f"[!.]*/{MANIFEST}"))


def _build(
    base: BaseModel,
    folder: Path,
    *,
    quantise: Quantise,
    adapter_layers: int,
    effort: Effort,
    progress: Callable[[str], None] | None,
) -> None:
    """Fill ``folder``; the manifest comes last."""
    onnx: Any = require("onnx", extra="coordinator")
    encoder = read_encoder(base.folder)
    whole = len(encoder.layers)
    if base.layers >= whole or base.layers < 0:
        raise ModelError(
            f"{base.name} has {whole} layers: keep 1 to {whole - 1} of them, or 0 for all, "
            f"not {base.layers}"
        )
    if not 0 <= adapter_layers <= (base.layers or whole):
        raise ModelError(
            f"{base.name} keeps {base.layers or whole} layers, so an adapter reaches into "
            f"0 to {base.layers or whole} of them, not {adapter_layers}"
        )
    stages: list[Stage] = []

    def stage(name: str, write: Callable[[Path], None], *, compared_with: str) -> Path:
        if progress is not None:
            progress(name)
        graph = folder / f"{name}.onnx"
        write(graph)
        stages.append(Stage(name, graph, compared_with))
        return graph

    def save(graph: Callable[..., Any], **options: Any) -> Callable[[Path], None]:
        return lambda path: onnx.save(graph(encoder, **options), path)

    reference = "export"
    stage("export", save(plain_graph), compared_with="export")
    if base.layers:
        reference = "prune"
        encoder = encoder.first_layers(base.layers)
        stage("prune", save(plain_graph), compared_with="export")
    stage("fuse", save(fused_graph, adapter_layers=None), compared_with=reference)
    slotted = save(fused_graph, adapter_layers=adapter_layers, apart=quantise == "int4")
    last = stage("adapter slots", slotted, compared_with=reference)
    if quantise != "none":
        shrink = quantise_int8 if quantise == "int8" else quantise_int4
        source = last
        last = stage(quantise, lambda path: shrink(source, path), compared_with=reference)
    shutil.copyfile(base.folder / TOKENIZER, folder / TOKENIZER)
    if progress is not None:
        progress("measure")
    table = measure(
        stages,
        folder / TOKENIZER,
        vocabulary=len(encoder.word),
        max_tokens=encoder.max_tokens,
        effort=effort,
    )
    last.rename(folder / GRAPH)
    for each in stages:
        each.graph.unlink(missing_ok=True)
    width = encoder.features
    manifest = Manifest(
        name=base.name,
        base=base.digest,
        architecture=encoder.architecture,
        features=width,
        layers=len(encoder.layers),
        max_tokens=encoder.max_tokens,
        vocabulary=len(encoder.word),
        quantise=quantise,
        files={name: _described(folder / name) for name in (GRAPH, TOKENIZER)},
        slots=tuple(
            Slot(name=name, inputs=width, outputs=width)
            for name in slot_names(len(encoder.layers), adapter_layers)
        ),
        passes=table,
    )
    write_durably(folder / MANIFEST, manifest.model_dump_json(indent=1).encode())


def _described(path: Path) -> ModelFile:
    with path.open("rb+") as file:
        # On disk before the manifest that vouches for it.
        os.fsync(file.fileno())
    return ModelFile(sha256=digest_of_file(path), bytes=path.stat().st_size)


def _folder_name(base: BaseModel, quantise: Quantise, adapter_layers: int) -> str:
    """Return a name that tells apart whatever gives another graph."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(base.name).name).strip("-.") or "model"
    layers = f"-first{base.layers}" if base.layers else ""
    return f"{stem[:60]}-{base.digest[:12]}{layers}-{quantise}-slots{adapter_layers}"


def _check_room(base: BaseModel, models_folder: Path) -> None:
    needed = _STAGES * sum(path.stat().st_size for path in base.folder.glob("*.safetensors"))
    free = shutil.disk_usage(models_folder).free
    if free < needed:
        raise ModelError(
            f"importing {base.name} takes {needed / 1e6:.0f} MB for a while, and {models_folder} "
            f"has {free / 1e6:.0f} MB left: free some space, or name another folder with --home"
        )


@contextlib.contextmanager
def _alone(models_folder: Path) -> Iterator[None]:
    """Wait until nobody else imports into this folder, and clear away what a crash left."""
    with disk_errors(models_folder):
        make_folder(models_folder)
        with (models_folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(models_folder / _UNFINISHED, ignore_errors=True)
            yield
