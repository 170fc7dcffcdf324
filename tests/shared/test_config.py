"""A configuration is believed as it is written or refused whole, with everything that is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import Field, Table, parse_address, read, read_json, read_toml
from shared.errors import ConfigError
from shared.job import Job


class Inner(Table):
    """A table in a table."""

    clip_norm: float = Field(1.0, gt=0)
    steps: int = Field(1, ge=1, le=100)


class Outer(Table):
    """Two inner tables and a rule over both."""

    name: str = "run"
    first: Inner = Inner()
    second: Inner = Inner()

    def contradictions(self) -> Iterator[str]:
        """The first may not take more steps."""
        if self.first.steps > self.second.steps:
            yield "first.steps: more than second.steps"


class Needy(Table):
    """Has no default."""

    name: str
    steps: int = 1


def problems(table: dict[str, Any], kind: type[Table] = Outer) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(kind, table, source="test.toml")
    assert "test.toml" in str(caught.value)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def test_an_empty_table_is_all_defaults() -> None:
    assert read(Outer, {}, source="test") == Outer()


def test_three_mistakes_of_three_kinds_cost_one_attempt() -> None:
    found = problems(
        {
            "first": {"steps": 5, "clip_nrom": 2.0},
            "second": {"clip_norm": -1.0},
        }
    )
    assert found == [
        "first.clip_nrom: unknown, did you mean clip_norm?",
        "first.steps: more than second.steps",
        "second.clip_norm: must be greater than 0, not -1.0",
    ]


def test_three_mistakes_in_a_job_cost_one_attempt() -> None:
    found = problems(
        {
            "privacy": {"epsilom": 4.0},
            "training": {"rounds": 0},
            "cohort": {"devices": 3},
        },
        Job,
    )
    assert len(found) == 3
    assert found[0].startswith("cohort.devices: 3 is fewer than protection.min_devices (16)")
    assert found[1] == "privacy.epsilom: unknown, did you mean epsilon?"
    assert found[2].startswith("training.rounds: must be greater than or equal to 1")


def test_a_key_that_resembles_none_gets_no_advice() -> None:
    assert problems({"zzz": 1}) == ["zzz: unknown"]


def test_a_missing_value_is_named_beside_the_others() -> None:
    assert problems({"steps": "many"}, Needy) == [
        "name: missing",
        "steps: must be a valid integer, not 'many'",
    ]


@pytest.mark.parametrize(
    "value", ["5", 5.5, True, None, [5], {}, float("nan"), float("inf"), 0, 101]
)
def test_types_are_strict_and_bounds_are_kept(value: Any) -> None:
    (found,) = problems({"first": {"steps": value}})
    assert found.startswith("first.steps: must be")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_is_finite(value: float) -> None:
    (found,) = problems({"first": {"clip_norm": value}})
    assert found.startswith("first.clip_norm: must be")


@pytest.mark.parametrize("value", [1, 100])
def test_a_value_on_its_bound_is_allowed(value: int) -> None:
    table = {"first": {"steps": value}, "second": {"steps": 100}}
    assert read(Outer, table, source="test").first.steps == value


def test_a_table_that_is_none_is_refused() -> None:
    (found,) = problems({"first": 5})
    assert found.startswith("first: must be")


def test_a_rule_of_an_inner_table_says_where_it_is() -> None:
    class Middle(Table):
        inner: Outer = Outer()

    assert problems({"inner": {"first": {"steps": 2}}}, Middle) == [
        "inner.first.steps: more than second.steps"
    ]


def test_a_table_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(Outer(), "name", "other")  # noqa: B010  a type checker would refuse it too


def test_reading_does_not_change_what_was_read() -> None:
    table = {"first": {"steps": 0, "x": 1}}
    problems(table)
    assert table == {"first": {"steps": 0, "x": 1}}


def test_toml_and_json_give_the_same_table(tmp_path: Path) -> None:
    path = tmp_path / "test.toml"
    path.write_text('name = "ä"\n[second]\nsteps = 7\n', encoding="utf-8")
    from_toml = read_toml(Outer, path)
    assert from_toml.second.steps == 7
    assert read_json(Outer, from_toml.model_dump_json(), source="test") == from_toml


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"name = ", "not TOML"), (b"\xff", "not TOML"), (b"nmae = 'x'", "did you mean name")],
)
def test_a_file_that_cannot_be_understood_is_named(
    tmp_path: Path, content: bytes, why: str
) -> None:
    path = tmp_path / "test.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=why) as caught:
        read_toml(Outer, path)
    assert "test.toml" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml does not exist"):
        read_toml(Outer, tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the whole"),
        ("{", "the whole"),
        ("[]", "the whole"),
        (json.dumps({"nmae": "x"}), "did you mean name"),
        (json.dumps({"first": {"steps": 9}}), "more than second.steps"),
        (json.dumps({"first": {"steps": "9"}}), "first.steps"),
    ],
)
def test_json_of_a_peer_is_held_to_the_same_rules(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        read_json(Outer, text, source="test")


@pytest.mark.parametrize("depth", [50, 900, 100_000])
def test_a_table_of_any_depth_is_refused_with_a_sentence(depth: int) -> None:
    """Other parsers than pydantic's let through what no walk over a table survives."""
    table: dict[str, Any] = {}
    for _ in range(depth):
        table = {"deeper": table}
    with pytest.raises(ConfigError):
        read(Outer, {"first": table}, source="test")
    with pytest.raises(ConfigError):
        read_json(Outer, '{"first": ' * depth + "{}" + "}" * depth, source="test")


@given(st.binary(max_size=50))
def test_noise_is_a_configuration_error(data: bytes) -> None:
    with pytest.raises(ConfigError):
        read_json(Needy, data, source="test")


@given(
    st.from_regex(r"[a-z0-9.]{1,20}|\[::1\]", fullmatch=True),
    st.integers(1, 65_535),
)
def test_an_address_comes_back(host: str, port: int) -> None:
    assert parse_address(f"{host}:{port}") == (host, port)


@pytest.mark.parametrize(
    "text", ["", ":", "host", "host:", ":1", "h:0", "h:65536", "h:-1", "h:1x", "h:²", "h:١", "h: 1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize("depth", [10, 400, 900])
def test_a_table_of_any_depth_is_refused_and_not_a_crash(depth: int) -> None:
    deep: Any = 1
    for _ in range(depth):
        deep = {"a": deep}
    assert problems({"first": deep}) in (["nested too deeply"], ["first.a: unknown"])
