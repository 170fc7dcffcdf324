"""The manifest of an imported model: what it is, and the hashes by which it is known again.

The folder of an imported model holds ``manifest.json``, ``model.onnx`` and
``tokenizer.json``. The SHA-256 of the manifest names the whole, because the manifest names
every other file by its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from shared.config import Field, Table, read_json
from shared.errors import ConfigError, ModelError
from shared.files import digest_of, digest_of_file
from shared.models.adapter import Slot
from shared.types import Digest

MANIFEST: Final = "manifest.json"
GRAPH: Final = "model.onnx"
TOKENIZER: Final = "tokenizer.json"

_SHA256: Final = r"^[0-9a-f]{64}$"
_FILE_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class ModelFile(Table):
    """A file of the model.

    Attributes:
        sha256: Of its content.
        bytes: How many there are.
    """

    sha256: str = Field(pattern=_SHA256)
    bytes: int = Field(ge=1)


class Pass(Table):
    """What one step of the import did to the graph.

    Attributes:
        name: ``export``, ``prune``, ``fuse``, ``adapter slots``, ``int8`` or ``int4``.
        nodes: In the graph's file.
        bytes: Of the graph's file.
        p50_ms_32: Median milliseconds for one text of 32 tokens, on one thread of the
            machine that imported. Only ratios within one table mean something.
        p50_ms_128: The same for 128 tokens.
        agreement: Share of sample texts that are nearest to the same of 16 topics as with
            the plain float32 graph of the same layers; for ``prune``, as with all layers.
    """

    name: str = Field(min_length=1, max_length=40)
    nodes: int = Field(ge=1)
    bytes: int = Field(ge=1)
    p50_ms_32: float = Field(ge=0)
    p50_ms_128: float = Field(ge=0)
    agreement: float = Field(ge=0, le=1)


class Manifest(Table):
    """What an imported model is.

    Attributes:
        format: Of this manifest.
        name: Hub id or folder, as it was asked for.
        base: SHA-256 of the weights, and of how many layers are kept if not all. Adapters
            name their base by it.
        architecture: ``model_type`` of its configuration.
        features: F, the width of its outcome.
        layers: That are left.
        max_tokens: The longest text it takes.
        vocabulary: How many different tokens there are.
        quantise: How its weights are stored; ``none`` is float32.
        files: By name, every file but the manifest.
        slots: Where an adapter's matrices may be added, from the bottom up.
        passes: In the order in which they were made.
    """

    format: Literal[1] = 1
    name: str = Field(min_length=1, max_length=4096)
    base: str = Field(pattern=_SHA256)
    architecture: str = Field(min_length=1, max_length=100)
    features: int = Field(ge=1, le=65_536)
    layers: int = Field(ge=1, le=10_000)
    max_tokens: int = Field(ge=1)
    vocabulary: int = Field(ge=1)
    quantise: Literal["int8", "int4", "none"]
    files: dict[str, ModelFile]
    slots: tuple[Slot, ...] = ()
    passes: tuple[Pass, ...] = ()

    def contradictions(self) -> Iterator[str]:
        """The two files that make a model must be named, and names may not lead elsewhere."""
        for name in self.files:
            if not re.fullmatch(_FILE_NAME, name) or name == MANIFEST:
                yield f"files: {name!a} is not the name of a model's file"
        for name in (GRAPH, TOKENIZER):
            if name not in self.files:
                yield f"files: {name} is not named"


def read_manifest(folder: Path) -> tuple[Manifest, Digest]:
    """Return what the model in ``folder`` is, and the digest that names it.

    Raises:
        ModelError: there is no manifest, or it is not one.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as err:
        raise ModelError(
            f"{folder} holds no imported model ({MANIFEST}: {err.strerror}): "
            "make one with 'llmos model import'"
        ) from err
    try:
        return read_json(Manifest, data, source=str(path)), digest_of(data)
    except ConfigError as err:
        raise ModelError(f"{err}\nremove {folder} and import the model again") from err


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file of the model with the manifest.

    Raises:
        ModelError: naming every file that is missing or not the one that was imported.
    """
    wrong = []
    for name, stated in sorted(manifest.files.items()):
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name}: missing")
        elif path.stat().st_size != stated.bytes or digest_of_file(path) != stated.sha256:
            wrong.append(f"{name}: its content is not the one that was imported")
    if wrong:
        raise ModelError(
            f"the model in {folder} is damaged, remove it and import or fetch it again:\n"
            + "\n".join(f"  - {problem}" for problem in wrong)
        )
