"""A manifest is complete, and a model is what its manifest says or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ModelError
from shared.files import digest_of
from shared.models.manifest import MANIFEST, read_manifest, verify_files

FILES = {"model.onnx": b"graph", "tokenizer.json": b"words"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    write(tmp_path, table())
    return tmp_path


def table() -> dict[str, Any]:
    return {
        "format": 1,
        "name": "some/model",
        "base": "a" * 64,
        "architecture": "bert",
        "features": 8,
        "layers": 2,
        "max_tokens": 16,
        "vocabulary": 50,
        "quantise": "int8",
        "files": {n: {"sha256": digest_of(d), "bytes": len(d)} for n, d in FILES.items()},
        "slots": [{"name": "layer.1.query", "inputs": 8, "outputs": 8}],
        "passes": [
            {
                "name": "export",
                "nodes": 10,
                "bytes": 5,
                "p50_ms_32": 1.5,
                "p50_ms_128": 2.5,
                "agreement": 1.0,
            }
        ],
    }


def write(folder: Path, manifest: Any) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def test_a_model_that_is_whole_is_read_and_named_by_its_manifest(folder: Path) -> None:
    manifest, digest = read_manifest(folder)
    verify_files(folder, manifest)
    assert digest == digest_of((folder / MANIFEST).read_bytes())
    assert manifest.slots[0].name == "layer.1.query"
    assert manifest.passes[0].p50_ms_32 == 1.5


def test_a_manifest_reads_back_as_it_was_written(folder: Path) -> None:
    manifest, _ = read_manifest(folder)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    assert read_manifest(folder)[0] == manifest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t | {"format": 2}, "format"),
        (lambda t: t | {"quantise": "int3"}, "quantise"),
        (lambda t: t | {"base": "A" * 64}, "base"),
        (lambda t: t | {"featurs": 8}, "did you mean features"),
        (lambda t: {k: v for k, v in t.items() if k != "layers"}, "layers: missing"),
        (lambda t: t | {"files": {}}, "model.onnx is not named"),
        (lambda t: t | {"files": t["files"] | {"../x": t["files"]["model.onnx"]}}, "'../x'"),
        (lambda t: t | {"files": t["files"] | {"a/b": t["files"]["model.onnx"]}}, "'a/b'"),
        (lambda t: t | {"files": t["files"] | {MANIFEST: t["files"]["model.onnx"]}}, MANIFEST),
        (lambda t: [t], "valid"),
    ],
)
def test_a_manifest_that_says_too_little_or_leads_elsewhere_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    write(folder, change(table()))
    with pytest.raises(ModelError, match=said):
        read_manifest(folder)


def test_a_folder_without_manifest_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="llmos model import"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(b"wreck"), "not the one"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "not the one"),
    ],
)
def test_a_file_that_is_missing_or_other_is_named(
    folder: Path, name: str, damage: Callable[[Path], Any], said: str
) -> None:
    manifest, _ = read_manifest(folder)
    damage(folder / name)
    with pytest.raises(ModelError, match=f"{name}: .*{said}"):
        verify_files(folder, manifest)


def test_every_damaged_file_is_named_at_once(folder: Path) -> None:
    manifest, _ = read_manifest(folder)
    for name in FILES:
        (folder / name).unlink()
    with pytest.raises(ModelError, match=r"(?s)model\.onnx: missing.*tokenizer\.json: missing"):
        verify_files(folder, manifest)
