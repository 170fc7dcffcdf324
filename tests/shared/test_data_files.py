"""Files that people made are read whole, or refused with everything that is wrong with them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.data_files import Example, read_examples, read_splits
from shared.errors import DataError

# What a text file can hold, less surrounding white space, which reading drops.
cells = (
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30)
    .map(str.strip)
    .filter(bool)
)
examples = st.lists(st.builds(Example, cells, cells, cells), min_size=1, max_size=5)
quietly = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(path: Path, content: str, *, encoding: str = "utf-8") -> Path:
    path.write_bytes(content.encode(encoding))
    return path


@quietly
@given(examples, st.sampled_from(["utf-8", "utf-8-sig"]))
def test_what_a_csv_writer_wrote_is_read_back(
    tmp_path: Path, examples: list[Example], encoding: str
) -> None:
    path = tmp_path / "data.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["group", "utterance", "intent"])
        writer.writerows([one.group, one.text, one.label] for one in examples)
    read = read_examples(path, text_column="utterance", label_column="intent", group_column="group")
    assert read == examples


@quietly
@given(examples, st.booleans())
def test_what_a_json_writer_wrote_is_read_back(
    tmp_path: Path, examples: list[Example], ascii_only: bool
) -> None:
    lines = [
        json.dumps({"text": one.text, "label": one.label, "by": one.group}, ensure_ascii=ascii_only)
        for one in examples
    ]
    path = written(tmp_path / "data.jsonl", "\n\n".join(lines) + "\n")
    assert read_examples(path, group_column="by") == examples


def test_a_group_is_optional(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text,label,user\nhello,greet,ann\nbye,leave,\n")
    assert read_examples(path)[0] == Example("hello", "greet", "")
    grouped = read_examples(path, group_column="user")
    assert [one.group for one in grouped] == ["ann", ""]


def test_a_number_is_a_label_by_its_spelling(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"text": "hello", "label": 3}\n')
    assert read_examples(path) == [Example("hello", "3")]


def test_a_missing_column_is_named_beside_those_that_are_there(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "utterance,intent\nhello,greet\n")
    with pytest.raises(DataError, match="no columns 'text', 'label'; there is 'utterance', 'inte"):
        read_examples(path)
    with pytest.raises(DataError, match="no column 'label'"):
        read_examples(path, text_column="utterance")


def test_a_missing_column_is_named_even_when_there_are_no_lines(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'label'; there is 'text'"):
        read_examples(written(tmp_path / "a.csv", "text\n"))


def test_every_bad_line_is_numbered(tmp_path: Path) -> None:
    content = 'text,label\nhello,greet\n,greet\n"two\nlines",\nbye,leave,extra\nlast\n'
    with pytest.raises(DataError) as caught:
        read_examples(written(tmp_path / "a.csv", content))
    message = str(caught.value)
    for problem in (
        "line 3: nothing in 'text'",
        "line 5: nothing in 'label'",
        "line 6: more cells than the 2 columns",
        "line 7: nothing in 'label'",
    ):
        assert problem in message


def test_every_bad_json_line_is_numbered(tmp_path: Path) -> None:
    content = (
        '{"text": "a", "label": "b"}\n[1]\n{broken\n\n{"text": "a"}\n{"text": 1.5, "label": null}'
    )
    with pytest.raises(DataError) as caught:
        read_examples(written(tmp_path / "a.jsonl", content))
    message = str(caught.value)
    for problem in (
        "line 2: expected an object",
        "line 3: not JSON",
        "line 5: there is no column 'label'; there is 'text'",
        "line 6: nothing in 'text', 'label'",
    ):
        assert problem in message


def test_a_thousand_problems_are_summed_up(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text,label\n" + "x,\n" * 1000)
    with pytest.raises(DataError, match="and 990 more like these") as caught:
        read_examples(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("content", ["", "\n\n", "text,label\n"])
def test_an_empty_csv_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError):
        read_examples(written(tmp_path / "a.csv", content))


def test_an_empty_json_lines_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no examples"):
        read_examples(written(tmp_path / "a.jsonl", "\n"))


def test_a_quote_that_never_ends_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not CSV"):
        read_examples(written(tmp_path / "a.csv", 'text,label\n"hello,greet\nbye,leave\n'))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_file_in_another_encoding_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, "text,label\n退款,refund\n", encoding="gb18030")
    with pytest.raises(DataError, match="not UTF-8"):
        read_examples(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        read_examples(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="cannot read"):
        read_examples(tmp_path / "folder.csv")


@pytest.mark.parametrize("name", ["a.xlsx", "a.json", "a"])
def test_another_kind_of_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"\.csv or \.jsonl"):
        read_examples(written(tmp_path / name, "text,label\nhello,greet\n"))


def test_splits_are_read_by_name(tmp_path: Path) -> None:
    value = {"train": [["hi", "greet"]], "test": [["bye", "leave"]], "oos_test": [["x", "oos"]]}
    splits = read_splits(written(tmp_path / "s.json", json.dumps(value)))
    assert splits == {
        "train": [Example("hi", "greet")],
        "test": [Example("bye", "leave")],
        "oos_test": [Example("x", "oos")],
    }


@pytest.mark.parametrize(
    ("value", "problems"),
    [
        ([], ["expected one JSON object"]),
        ({}, ["there is no 'train'", "there is no 'test'"]),
        ({"train": [], "test": [["a", "b"]]}, ["train is empty"]),
        (
            {"train": [["a", "b"], ["a"], ["a", ""], "ab", [1.5, "b"]], "test": {"a": "b"}},
            ["train, entry 2", "train, entry 3", "train, entry 4", "train, entry 5", "test: expec"],
        ),
    ],
)
def test_splits_of_another_shape_are_refused_with_every_problem(
    tmp_path: Path, value: object, problems: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        read_splits(written(tmp_path / "s.json", json.dumps(value)))
    for problem in problems:
        assert problem in str(caught.value)


def test_splits_that_are_not_json_are_refused_by_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: not JSON"):
        read_splits(written(tmp_path / "s.json", '{"train": [],\n oops}'))
