"""Import a reader: a BERT-shaped model with a head for spans, as a graph that answers questions.

R1  an imported reader is whole or absent, and the same import twice returns the same folder
R2  torch is not needed, and code that comes with a model is not run

Its folder holds ``reader.json``, ``model.onnx`` and ``tokenizer.json``, and lies beside those of
encoders.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from coordinator.registry.graph import span_graph
from coordinator.registry.quantisation import quantise_int8
from coordinator.registry.weights import read_encoder, read_span_head
from shared.config import Field, Table, read_json
from shared.errors import ConfigError, ModelError
from shared.extras import require
from shared.files import appearing_folder, digest_of_file, make_folder
from shared.models.encoder import find_base_model
from shared.models.manifest import GRAPH, TOKENIZER

READER: Final = "reader.json"

_SHA256: Final = r"^[0-9a-f]{64}$"


class ReaderManifest(Table):
    """What an imported reader is.

    Attributes:
        format: Of this file.
        name: Hub id or folder, as it was asked for.
        base: SHA-256 of the weights.
        architecture: ``model_type`` of its configuration.
        features: Width of its layers.
        layers: How many there are.
        max_tokens: Question and passage together, marks counted.
        quantise: How its weights are stored; ``none`` is float32.
        graph: SHA-256 of the graph's file.
        tokenizer: SHA-256 of the tokenizer's.
    """

    format: Literal[1] = 1
    name: str = Field(min_length=1, max_length=4096)
    base: str = Field(pattern=_SHA256)
    architecture: str = Field(min_length=1, max_length=100)
    features: int = Field(ge=1)
    layers: int = Field(ge=1)
    max_tokens: int = Field(ge=1)
    quantise: Literal["int8", "none"]
    graph: str = Field(pattern=_SHA256)
    tokenizer: str = Field(pattern=_SHA256)


@dataclass(frozen=True, slots=True)
class ImportedReader:
    """A reader in the registry."""

    folder: Path
    manifest: ReaderManifest


def import_reader(
    source: str, models_folder: Path, *, quantise: Literal["int8", "none"] = "int8"
) -> ImportedReader:
    """Import a reader into the registry, or return it if it is there (R1).

    Args:
        source: A folder or hub id of a model for extractive question answering.
        models_folder: Where imported models live.
        quantise: How weights are stored; "none" is float32.

    Raises:
        ModelError: there is no such model, it is of no supported shape, it has no head for
            spans, or what was imported before is damaged.
        StorageError: the disk refused.
        DependencyMissing: onnx or onnxruntime is not installed.
    """
    base = find_base_model(source)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(base.name).name).strip("-.") or "reader"
    folder = models_folder / f"{stem[:60]}-{base.digest[:12]}-reader-{quantise}"
    if folder.is_dir():
        return open_reader(folder)
    onnx: Any = require("onnx", extra="coordinator")
    encoder = read_encoder(base.folder)
    graph = span_graph(encoder, read_span_head(base.folder, encoder.features))
    make_folder(models_folder)
    with appearing_folder(folder) as new:
        new.mkdir()
        whole = new / f"float-{GRAPH}"
        onnx.save(graph, whole)
        if quantise == "int8":
            quantise_int8(whole, new / GRAPH)
            whole.unlink()
        else:
            whole.rename(new / GRAPH)
        shutil.copyfile(base.folder / TOKENIZER, new / TOKENIZER)
        manifest = ReaderManifest(
            name=base.name,
            base=base.digest,
            architecture=encoder.architecture,
            features=encoder.features,
            layers=len(encoder.layers),
            max_tokens=encoder.max_tokens,
            quantise=quantise,
            graph=digest_of_file(new / GRAPH),
            tokenizer=digest_of_file(new / TOKENIZER),
        )
        (new / READER).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return open_reader(folder)


def open_reader(folder: Path) -> ImportedReader:
    """Return an imported reader after a look at its hashes.

    Raises:
        ModelError: it is not there, or not what was imported.
    """
    path = folder / READER
    try:
        manifest = read_json(ReaderManifest, path.read_bytes(), source=str(path))
        right = (manifest.graph, manifest.tokenizer)
        damaged = (digest_of_file(folder / GRAPH), digest_of_file(folder / TOKENIZER)) != right
    except (OSError, ConfigError) as err:
        raise ModelError(f"{folder} holds no imported reader: remove it ({err})") from err
    if damaged:
        raise ModelError(f"the reader in {folder} is damaged: remove it, and it is imported again")
    return ImportedReader(folder, manifest)
