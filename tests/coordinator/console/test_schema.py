"""The console's types are those of the API as it is."""

from __future__ import annotations

from pathlib import Path

from tests.support.console_schema import SCHEMA, document, first_line


def test_the_types_are_made_of_the_present_document(tmp_path: Path) -> None:
    with SCHEMA.open(encoding="utf-8") as lines:
        assert next(lines) == first_line(document(tmp_path)), "run `make console-schema`"
