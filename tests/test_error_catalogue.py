"""Every error can be looked up: one code, one line in the tree, one paragraph in the docs."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from shared import errors

DOCS = Path(__file__).parents[1] / "docs" / "errors.md"


def family(root: type[errors.LlmOsError]) -> list[type[errors.LlmOsError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in family(child))]


KINDS = family(errors.LlmOsError)


def sections() -> dict[str, str]:
    """Text below each heading of the page, by code."""
    parts = re.split(r"^## `([a-z_.]+)`$", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_codes_are_unique() -> None:
    assert [code for code, uses in Counter(kind.code for kind in KINDS).items() if uses > 1] == []


def test_every_error_lives_in_the_one_module() -> None:
    assert {kind.__module__ for kind in KINDS} == {errors.__name__}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_line_in_the_tree_below_its_parent(
    kind: type[errors.LlmOsError],
) -> None:
    lines = (errors.__doc__ or "").splitlines()
    names = {}
    for line in lines:
        if match := re.match(r"^( {4}[│├└─ ]*)([A-Z]\w+)", line):
            names[match[2]] = len(match[1])
    assert kind.__name__ in names
    if kind is not errors.LlmOsError:
        assert kind.__base__ is not None
        assert names[kind.__name__] > names[kind.__base__.__name__]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_documented(kind: type[errors.LlmOsError]) -> None:
    text = sections().get(kind.code, "")
    assert len(text.split()) >= 15, f"docs/errors.md says too little about `{kind.code}`"


def test_the_page_describes_nothing_that_does_not_exist() -> None:
    assert set(sections()) <= {kind.code for kind in KINDS}
