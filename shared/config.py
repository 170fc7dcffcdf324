"""Configuration: frozen tables, read once, every problem reported together.

The only module that knows pydantic: others subclass :class:`Table` and use the
re-exported :func:`Field`. A table's own contradictions (rules over several
settings) are reported in the same message as its misspelt keys and bad values,
so that a file with three mistakes costs one attempt and not three.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import ConfigError

__all__ = ["Field", "Table", "parse_address", "read", "read_json", "read_toml"]

TableT = TypeVar("TableT", bound="Table")


class Table(BaseModel):
    """One configuration table: immutable, strictly typed, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def contradictions(self) -> Iterator[str]:
        """Yield one sentence per rule over several settings that does not hold."""
        yield from ()


def read(kind: type[TableT], table: Mapping[str, Any], *, source: str) -> TableT:
    """Build ``kind`` from a parsed table.

    Args:
        kind: The table's class.
        table: Keys and values as ``tomllib`` or ``json`` gives them.
        source: Shown in the message, e.g. the file's name.

    Raises:
        ConfigError: naming every unknown or missing key, every value out of
            range and every contradiction. A misspelt key is never ignored: it
            would leave a default in force that the author believes replaced.
    """
    try:
        built = kind.model_validate(table)
    except ValidationError as err:
        try:
            problems = [_sentence(kind, detail) for detail in err.errors()]
            with_defaults = copy.deepcopy(dict(table))
        except RecursionError:  # JSON may nest far deeper than any table does
            raise ConfigError(["nested too deeply"], source=source) from None
        for detail in err.errors():
            _forget(with_defaults, detail["loc"])
        # When a required value is missing there is nothing to hold the rules against.
        with contextlib.suppress(ValidationError):
            problems += _contradictions(kind.model_validate(with_defaults))
        raise ConfigError(sorted(set(problems)), source=source) from None
    problems = _contradictions(built)
    if problems:
        raise ConfigError(sorted(set(problems)), source=source)
    return built


def read_toml(kind: type[TableT], path: Path) -> TableT:
    """Read ``kind`` from a TOML file.

    Raises:
        ConfigError: the file is absent, is not TOML, or as :func:`read`.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{path} does not exist"], source="configuration file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ConfigError([f"{path} is not TOML: {err}"], source="configuration file") from None
    return read(kind, table, source=str(path))


def read_json(kind: type[TableT], text: str | bytes, *, source: str) -> TableT:
    """Read ``kind`` from JSON, as it travels between processes.

    Raises:
        ConfigError: as :func:`read`, or ``text`` is not JSON.
    """
    try:
        # JSON has no tuples; pydantic's JSON mode accepts arrays for them even when strict.
        built = kind.model_validate_json(text)
    except ValidationError as err:
        raise ConfigError(
            sorted({_sentence(kind, detail) for detail in err.errors()}), source=source
        ) from None
    problems = _contradictions(built)
    if problems:
        raise ConfigError(sorted(set(problems)), source=source)
    return built


def parse_address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT`` into a pair.

    >>> parse_address("127.0.0.1:1883")
    ('127.0.0.1', 1883)

    Raises:
        ConfigError: it is something else.
    """
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65_536:
        raise ConfigError([f"{text!r} is not HOST:PORT"], source="address")
    return host, int(port)


def _contradictions(table: Table, where: str = "") -> list[str]:
    problems = [where + sentence for sentence in table.contradictions()]
    for name in type(table).model_fields:
        value = getattr(table, name)
        if isinstance(value, Table):
            problems += _contradictions(value, f"{where}{name}.")
    return problems


def _sentence(kind: type[Table], detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"]) or "the whole"
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(
            str(detail["loc"][-1]), _known_keys(kind, detail["loc"][:-1]), n=1
        )
        return f"{where}: unknown" + (f", did you mean {close[0]}?" if close else "")
    if detail["type"] == "missing":
        return f"{where}: missing"
    message = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{where}: must be {message}, not {detail['input']!r}"


def _known_keys(kind: type[Table], location: Sequence[str | int]) -> list[str]:
    for part in location:
        field = kind.model_fields.get(str(part))
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, Table)):
            return []
        kind = inner
    return list(kind.model_fields)


def _forget(table: dict[str, Any], location: Sequence[str | int]) -> None:
    if not location:
        return  # the whole is not a table, or a key is not text
    *path, last = location
    node: Any = table
    for part in path:
        if not isinstance(node, dict) or part not in node:
            return
        node = node[part]
    if isinstance(node, dict):
        node.pop(last, None)
