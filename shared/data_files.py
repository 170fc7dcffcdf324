"""Labelled texts from files that people made: CSV, JSON lines, or one JSON object of splits.

A file is read whole or refused whole, with every problem named and numbered by line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shared.errors import DataError

_PROBLEMS_SHOWN: Final = 10

_FIELD_LIMIT: Final = 1_000_000
"""Characters in one CSV cell; a forgotten quote otherwise swallows the rest of the file."""


_Rows = Iterator[tuple[int, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Example:
    """One text and what it means."""

    text: str
    label: str
    group: str = ""
    """Whom or what it comes from (a language, a user, a domain); empty if nobody said."""


def read_examples(
    path: Path,
    *,
    text_column: str = "text",
    label_column: str = "label",
    group_column: str | None = None,
) -> list[Example]:
    """Read a ``.csv`` (UTF-8, with a header) or ``.jsonl`` (one object per line) file.

    Surrounding white space is dropped. Numbers are taken as labels by their spelling.

    Raises:
        DataError: the file is missing, empty, not UTF-8, of another kind, lacks a column,
            or has lines without text or label; all of them are named.
    """
    reader = {".csv": _csv_rows, ".jsonl": _json_rows}.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: expected a .csv or .jsonl file")
    columns = {"text": text_column, "label": label_column}
    if group_column is not None:
        columns["group"] = group_column
    problems = _Problems(path)
    examples = []
    for line, row in reader(_content(path), list(columns.values()), problems):
        values = {field: _cell(row[column]) for field, column in columns.items()}
        empty = [columns[field] for field in ("text", "label") if not values[field]]
        if empty:
            problems.add(line, f"nothing in {_listed(empty)}")
        else:
            examples.append(Example(**{field: value or "" for field, value in values.items()}))
    if not examples and not problems:
        problems.add(1, "there are no examples in it")
    problems.refuse()
    return examples


def read_splits(path: Path) -> dict[str, list[Example]]:
    """Read one JSON object whose values are lists of ``[text, label]``, as CLINC150 ships.

    Raises:
        DataError: the file is missing, not UTF-8, not such an object, or lacks ``train``
            or ``test``; all problems are named.
    """
    problems = _Problems(path)
    try:
        value = json.loads(_content(path))
    except json.JSONDecodeError as err:
        raise DataError(f"{path}, line {err.lineno}: not JSON: {err.msg}") from err
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected one JSON object of splits, each a list of [text, label]")
    splits: dict[str, list[Example]] = {}
    for name, pairs in value.items():
        if not isinstance(pairs, list):
            problems.add(None, f"{name}: expected a list of [text, label]")
            continue
        splits[name] = []
        for position, pair in enumerate(pairs, start=1):
            if isinstance(pair, list) and len(pair) == 2 and all(map(_cell, pair)):
                splits[name].append(Example(*(str(_cell(part)) for part in pair)))
            else:
                problems.add(None, f"{name}, entry {position}: expected [text, label]")
    for name in ("train", "test"):
        if name not in value:
            problems.add(
                None, f"there is no '{name}' in it; there is {_listed(value) or 'nothing'}"
            )
        elif value[name] == []:
            problems.add(None, f"{name} is empty")
    problems.refuse()
    return splits


class _Problems:
    """What is wrong with one file, gathered so that it can be told at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, line: int | None, problem: str) -> None:
        self._found.append(problem if line is None else f"line {line}: {problem}")

    def refuse(self) -> None:
        """Raise what was found, if anything."""
        if not self._found:
            return
        shown = self._found[:_PROBLEMS_SHOWN]
        if len(self._found) > len(shown):
            shown.append(f"and {len(self._found) - len(shown)} more like these")
        raise DataError(f"cannot use {self._path}:\n" + "\n".join(f"  - {p}" for p in shown))


def _content(path: Path) -> str:
    try:
        # utf-8-sig also reads plain UTF-8; spreadsheets put a byte order mark first. Bytes,
        # since reading as text would turn a carriage return inside a quoted cell into "\n".
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as err:
        raise DataError(f"there is no file {path}") from err
    except UnicodeDecodeError as err:
        raise DataError(
            f"{path} is not UTF-8 (byte {err.start}): save it again with that encoding"
        ) from err
    except OSError as err:
        raise DataError(f"cannot read {path}: {err.strerror}") from err


def _csv_rows(content: str, columns: Sequence[str], problems: _Problems) -> _Rows:
    csv.field_size_limit(_FIELD_LIMIT)
    rows = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        missing = [column for column in columns if column not in (rows.fieldnames or ())]
        if missing:
            problems.add(1, _missing(missing, rows.fieldnames or ()))
            return
        for row in rows:
            if None in row:
                problems.add(rows.line_num, f"more cells than the {len(row) - 1} columns")
            else:
                yield rows.line_num, row
    except csv.Error as err:
        problems.add(rows.line_num, f"not CSV: {err}")


def _json_rows(content: str, columns: Sequence[str], problems: _Problems) -> _Rows:
    # Not splitlines: it also splits at U+2028, which JSON allows inside a string.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as err:
            problems.add(number, f"not JSON: {err}")
            continue
        if not isinstance(value, dict):
            problems.add(number, 'expected an object such as {"text": …, "label": …}')
            continue
        missing = [column for column in columns if column not in value]
        if missing:
            problems.add(number, _missing(missing, value))
        else:
            yield number, value


def _cell(value: object) -> str | None:
    """Return a cell's text, or ``None`` for what is neither text nor a whole number."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None


def _missing(missing: Sequence[str], there: Iterable[str]) -> str:
    kind = "column" if len(missing) == 1 else "columns"
    return f"there is no {kind} {_listed(missing)}; there is {_listed(there) or 'nothing'}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
