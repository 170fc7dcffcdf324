"""``llmos model`` imports, lists and shows, for people and for machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from coordinator.registry.commands import model
from shared.errors import ModelError
from tests.support.tiny_encoders import make_encoder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coordinator's folder with one imported model."""
    home = tmp_path_factory.mktemp("home")
    source = tmp_path_factory.mktemp("source") / "tiny-bert"
    make_encoder(source)
    call("import", str(source), "--quick", home=home)
    call("import", str(source), "--quick", "--prune", "1", "--adapter-layers", "1", home=home)
    return home


def call(*arguments: str, home: Path) -> str:
    result = CliRunner().invoke(model, [*arguments, "--home", str(home)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def call_json(*arguments: str, home: Path) -> Any:
    return json.loads(call(*arguments, "--json", home=home))


def test_what_was_imported_is_listed(home: Path) -> None:
    views = call_json("ls", home=home)
    assert sorted(view["layers"] for view in views) == [1, 3]
    assert all(view["model"].startswith("tiny-bert-") for view in views)
    assert "int8" in call("ls", home=home)


def test_an_empty_registry_is_an_empty_list(tmp_path: Path) -> None:
    assert call_json("ls", home=tmp_path) == []


def test_a_model_is_shown_with_its_passes_and_its_digest(home: Path) -> None:
    whole = next(view for view in call_json("ls", home=home) if view["layers"] == 3)
    shown = call_json("show", whole["model"], home=home)
    assert shown == whole
    assert [row["name"] for row in shown["passes"]] == ["export", "fuse", "adapter slots", "int8"]
    assert len(shown["digest"]) == 64
    assert "adapter slots" in call("show", whole["model"], home=home)


def test_the_beginning_of_a_name_is_enough_if_it_fits_one(home: Path) -> None:
    pruned = next(view for view in call_json("ls", home=home) if view["layers"] == 1)
    beginning = pruned["model"].partition("-int8")[0]
    assert call_json("show", beginning, home=home)["layers"] == 1
    with pytest.raises(ModelError, match="several models begin with 'tiny'"):
        call("show", "tiny", home=home)
    with pytest.raises(ModelError, match="there is no model 'other'"):
        call("show", "other", home=home)
