"""What is not installed is told apart from what is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import DependencyMissing
from shared.extras import require


def test_what_is_there_is_imported() -> None:
    assert require("json.decoder", extra="x").__name__ == "json.decoder"


@pytest.mark.parametrize("module", ["no_such_library", "no_such_library.part", "json.no_such_part"])
def test_what_is_missing_is_named_with_the_extra_that_brings_it(module: str) -> None:
    with pytest.raises(DependencyMissing, match=r"pip install '\.\[crypto\]'") as caught:
        require(module, extra="crypto")
    assert (caught.value.module, caught.value.extra) == (module, "crypto")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("import its_own_missing_dependency", ModuleNotFoundError),
        ("from json import no_such_name", ImportError),
        ("raise OSError('libgomp is missing')", OSError),
    ],
)
def test_what_is_broken_says_what_broke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, error: type[Exception]
) -> None:
    (tmp_path / "broken_library.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error) as caught:
        require("broken_library", extra="crypto")
    assert not isinstance(caught.value, DependencyMissing)


def test_a_dependency_whose_name_begins_alike_is_not_mistaken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchlike.py").write_text("import torch_like_missing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError):
        require("torchlike", extra="train")
