"""A base model is found on this machine first, and is the pinned one or none at all."""

from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ModelError
from shared.models import encoder
from shared.models.encoder import MINILM, PINNED, find_base_model, is_on_this_machine
from shared.types import Digest

WEIGHTS = b"weights"
DIGEST = Digest(hashlib.sha256(WEIGHTS).hexdigest())


def model_folder(folder: Path, *, weights: bytes = WEIGHTS) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


class Hub:
    """Stands in for ``huggingface_hub``: what is cached, what can be fetched, what was asked."""

    def __init__(self) -> None:
        self.cached: Path | None = None
        self.remote: Path | None = None
        self.asked: list[bool] = []

    def snapshot_download(self, _: str, *, local_files_only: bool = False, **__: Any) -> str:
        self.asked.append(local_files_only)
        found = self.cached if local_files_only else self.remote
        if found is None:
            raise FileNotFoundError("LocalEntryNotFoundError")
        return str(found)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """A hub and a machine on which nothing is installed; the pinned digest is that of WEIGHTS."""
    hub = Hub()
    module = types.ModuleType("huggingface_hub")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    module.snapshot_download = hub.snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(encoder.PINNED, MINILM, DIGEST)
    monkeypatch.setitem(encoder._REPACKAGED, MINILM, ("repackaged_for_this_test", "model"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return hub


def install_package(tmp_path: Path, **kwargs: Any) -> Path:
    package = tmp_path / "site" / "repackaged_for_this_test"
    folder = model_folder(package / "model", **kwargs)
    (package / "__init__.py").write_text("raise RuntimeError('was imported')")
    return folder


def test_a_folder_is_used_as_it_is(tmp_path: Path, hub: Hub) -> None:
    folder = model_folder(tmp_path / "mine", weights=b"of my own")
    base = find_base_model(str(folder))
    assert (base.name, base.folder) == (str(folder), folder)
    assert base.digest == hashlib.sha256(b"of my own").hexdigest()
    assert hub.asked == []


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused_by_its_name(tmp_path: Path, missing: str) -> None:
    folder = model_folder(tmp_path / "mine")
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=missing):
        find_base_model(str(folder))


def test_the_hub_s_cache_comes_first(tmp_path: Path, hub: Hub) -> None:
    install_package(tmp_path)
    hub.cached = model_folder(tmp_path / "cache")
    assert find_base_model(MINILM).folder == hub.cached
    assert hub.asked == [True]


def test_the_installed_package_comes_next_and_is_not_imported(tmp_path: Path, hub: Hub) -> None:
    folder = install_package(tmp_path)
    base = find_base_model(MINILM)
    assert (base.folder, base.digest) == (folder, DIGEST)
    assert hub.asked == [True], "nothing was fetched"


def test_an_incomplete_cache_is_passed_over(tmp_path: Path, hub: Hub) -> None:
    hub.cached = model_folder(tmp_path / "cache")
    (hub.cached / "tokenizer.json").unlink()
    folder = install_package(tmp_path)
    assert find_base_model(MINILM).folder == folder


def test_whether_a_model_is_here_is_told_without_asking_the_network(
    tmp_path: Path, hub: Hub
) -> None:
    hub.remote = model_folder(tmp_path / "fetched")
    assert not is_on_this_machine(MINILM)
    assert hub.asked == [True]
    hub.cached = hub.remote
    assert is_on_this_machine(MINILM)
    assert False not in hub.asked


def test_an_installed_package_is_on_this_machine(tmp_path: Path, hub: Hub) -> None:
    install_package(tmp_path)
    assert is_on_this_machine(MINILM)
    assert False not in hub.asked


def test_the_network_comes_last(tmp_path: Path, hub: Hub) -> None:
    hub.remote = model_folder(tmp_path / "fetched")
    assert find_base_model(MINILM).folder == hub.remote
    assert hub.asked == [True, False]


@pytest.mark.parametrize("source", ["cached", "packaged", "remote"])
def test_other_weights_than_the_pinned_ones_are_refused_from_any_source(
    tmp_path: Path, hub: Hub, source: str
) -> None:
    if source == "packaged":
        install_package(tmp_path, weights=b"changed")
    else:
        setattr(hub, source, model_folder(tmp_path / source, weights=b"changed"))
    with pytest.raises(ModelError, match="are not those of"):
        find_base_model(MINILM)


def test_a_model_without_a_pin_may_have_any_weights(tmp_path: Path, hub: Hub) -> None:
    hub.remote = model_folder(tmp_path / "fetched", weights=b"any")
    assert find_base_model("someone/else").digest == hashlib.sha256(b"any").hexdigest()


def test_offline_nothing_is_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids"):
        find_base_model("someone/else")
    assert hub.asked == [True]


@pytest.mark.parametrize(
    ("name", "advice"), [(MINILM, r"pip install '\.\[demo\]'"), ("someone/else", "name a folder")]
)
def test_what_is_nowhere_comes_with_advice(hub: Hub, name: str, advice: str) -> None:
    with pytest.raises(ModelError, match=advice):
        find_base_model(name)
    assert hub.asked == [True, False]


def test_a_fetched_model_that_lacks_a_file_is_refused(tmp_path: Path, hub: Hub) -> None:
    hub.remote = model_folder(tmp_path / "fetched")
    (hub.remote / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        find_base_model("someone/else")


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere/at/all", "a/b/c", "a/../b"])
def test_what_is_neither_folder_nor_hub_id_is_refused_without_asking(hub: Hub, name: str) -> None:
    with pytest.raises(ModelError, match="name a folder with"):
        find_base_model(name)
    assert hub.asked == []


def test_the_pin_is_the_digest_the_authors_published() -> None:
    assert PINNED[MINILM] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
