"""The console's form of a run has every setting of a job, and starts where the job does."""

from __future__ import annotations

import re
from typing import Any, Final

from shared.job import Job
from tests.support.console_schema import CONSOLE

FORM: Final = CONSOLE / "src" / "lib" / "job_form.ts"
FIELD: Final = re.compile(r'path: "([\w.]+)",\s*kind: "(\w+)",\s*start: "([^"]*)"')


def settings() -> dict[str, Any]:
    """What a job says unless it is told otherwise, by path."""
    found: dict[str, Any] = {}
    for name, value in Job().model_dump().items():
        tables = value.items() if isinstance(value, dict) else [("", value)]
        found |= {f"{name}.{inner}".rstrip("."): each for inner, each in tables}
    return found


def test_the_form_has_every_setting_and_its_default() -> None:
    fields = {path: start for path, _, start in FIELD.findall(FORM.read_text(encoding="utf-8"))}
    wanted = settings()
    assert fields.keys() == wanted.keys()
    assert fields.pop("name") == ""  # a person names the run
    for path, start in fields.items():
        default = wanted[path]
        assert start == default if isinstance(default, str) else float(start) == default, path
