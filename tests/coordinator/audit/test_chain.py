"""A record has one spelling and one hash, and a checkpoint is nothing but what it signs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.audit.chain import (
    MAX_LINE_BYTES,
    Action,
    Checkpoint,
    Entry,
    chained,
    parse_line,
    read_record,
)
from shared.errors import AuditDamaged, ConfigError
from tests.support.audit_logs import (
    AT,
    ENTRIES,
    STRANGER,
    chain,
    entry,
    what_the_program_says,
    write,
)


@settings(max_examples=50)
@given(entries=st.lists(ENTRIES, min_size=1, max_size=6))
def test_what_was_chained_is_read_back_in_its_one_spelling(entries: list[Entry]) -> None:
    last = None
    for one in entries:
        record = chained(last, one, AT)
        assert read_record(record.to_line(), after=last) == record
        last = record


@settings(max_examples=50)
@given(entries=st.lists(ENTRIES, min_size=1, max_size=6), every=st.integers(1, 4))
def test_the_program_in_the_docs_agrees_on_every_hash(
    entries: list[Entry], every: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    records, newest = chain(entries, every=every)
    folder = tmp_path_factory.getbasetemp() / "program"
    path = write(folder, [record.to_line() for record in records], newest)
    assert what_the_program_says(path) == ""
    lines = [record.to_line() for record in records]
    lines[-1] = lines[-1].replace(b'"hash":"', b'"hash":"0', 1)
    assert (
        what_the_program_says(write(folder, lines, newest)) == f"record {len(lines)} is not right"
    )


def test_the_longest_record_fits_its_line() -> None:
    facts = {f"{name:a<32}": "语" * 128 for name in "abcdefghijkl"}
    record = chained(None, Entry(Action.KEY_MADE, "\U0001f600" * 80, '"' * 128, facts), 2**53 - 1)
    assert len(record.to_line()) <= MAX_LINE_BYTES
    assert read_record(record.to_line(), after=None) == record


@pytest.mark.parametrize(
    "change",
    [
        {"actor": ""},
        {"actor": "a" * 81},
        {"actor": 3},
        {"subject": "a" * 129},
        {"subject": "two\nlines"},
        {"subject": "\ud800"},
        {"facts": {f"fact_{chr(97 + n)}": 1 for n in range(13)}},
        {"facts": {"epsilon": 0.5}},
        {"facts": {"devices": None}},
        {"facts": {"devices": ["kitchen"]}},
        {"facts": {"Devices": 1}},
        {"facts": {"devices": 2**53}},
        {"facts": {"why": "a" * 129}},
    ],
    ids=str,
)
def test_what_has_no_place_in_a_record_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not what a record may hold"):
        dataclasses.replace(entry(1), **change)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"at": 1.5}, "cannot be read"),
        ({"at": True}, "cannot be read"),
        ({"at": -1}, "cannot be read"),
        ({"number": "1"}, "cannot be read"),
        ({"facts": []}, "cannot be read"),
        ({"facts": {"devices": 1.0}}, "cannot be read"),
        ({"previous": "0" * 63}, "cannot be read"),
        ({"previous": 0}, "cannot be read"),
        ({"action": "unknown-to-this-version"}, "unknown-to-this-version"),
        ({"more": 1}, "fields"),
        ({"hash": "0" * 64}, "hash"),
        ({"subject": "other/1"}, "hash"),
    ],
    ids=str,
)
def test_what_is_no_record_is_refused_with_a_reason(change: dict[str, Any], why: str) -> None:
    fields = chained(None, entry(1), AT).to_json() | change
    line = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    with pytest.raises(AuditDamaged, match=why) as refused:
        read_record(line, after=None)
    assert refused.value.record == 1


@pytest.mark.parametrize(
    "line",
    [b"", b"\n", b"null\n", b"[" * 5000 + b"\n", b"\xff\n", b'{"number":' + b"9" * 5000 + b"}\n"],
    ids=range(6),
)
def test_bytes_that_are_no_json_of_ours_are_refused(line: bytes) -> None:
    with pytest.raises(AuditDamaged):
        parse_line(line, number=1)


def test_a_record_that_leaves_numbers_out_is_refused() -> None:
    """Even where its hash is right and it names the one before."""
    first = chained(None, entry(1), AT)
    later = chained(dataclasses.replace(first, number=4), entry(2), AT)
    with pytest.raises(AuditDamaged, match="it is numbered 5") as refused:
        read_record(later.to_line(), after=first)
    assert refused.value.record == 2


def test_another_spelling_of_the_same_record_is_refused() -> None:
    record = chained(None, entry(1), AT)
    for other in (
        json.dumps(record.to_json()).encode() + b"\n",
        record.to_line().replace(b"accepted", rb"\u0061ccepted"),
        record.to_line().replace(b"{", b"{ ", 1),
        record.to_line().replace(b'{"action"', b'{"at":1,"action"', 1),
        record.to_line()[:-1] + b" \n",
    ):
        with pytest.raises(AuditDamaged, match="spelt"):
            parse_line(other, number=1)


def test_a_checkpoint_survives_as_a_record_and_as_a_line() -> None:
    records, newest = chain([entry(1), entry(2)], every=2)
    assert Checkpoint.of(records[-1]) == newest
    assert Checkpoint.from_line(f"  {newest.to_line()}\n") == newest
    assert (newest.number, newest.hash, newest.at) == (2, records[1].hash, AT + 2)


def test_a_checkpoint_with_anything_else_in_it_is_none() -> None:
    """Its content follows from what it signs, so nothing of it can be changed unnoticed (H2)."""
    records, newest = chain([entry(1)], every=1)
    right = newest.entry()
    forged = dataclasses.replace(newest, key=STRANGER.public).entry()
    for other, at in [
        (right, newest.at + 1),
        (dataclasses.replace(right, actor="admin"), newest.at),
        (dataclasses.replace(right, subject="run"), newest.at),
        (dataclasses.replace(right, facts={**right.facts, "more": 1}), newest.at),
        (dataclasses.replace(right, facts={"key": right.facts["key"]}), newest.at),
        (dataclasses.replace(right, facts={**right.facts, "signature": "A"}), newest.at),
        (dataclasses.replace(right, facts={**right.facts, "key": "llmos"}), newest.at),
        (dataclasses.replace(right, action=Action.REPAIRED), newest.at),
        (forged, newest.at),
    ]:
        with pytest.raises(AuditDamaged, match="no signed checkpoint"):
            Checkpoint.of(chained(records[0], other, at))


def test_a_line_that_was_altered_is_no_checkpoint() -> None:
    _, newest = chain([entry(1), entry(2)], every=2)
    line = newest.to_line()
    for position in range(len(line)):
        other = "B" if line[position] != "B" else "C"
        with pytest.raises(ConfigError, match="altered"):
            Checkpoint.from_line(line[:position] + other + line[position + 1 :])
    for other in ("", "x" * 10_000, line + ":", line[:-3], line.replace(":1:", ":01:", 1), "语"):
        with pytest.raises(ConfigError, match="altered"):
            Checkpoint.from_line(other)


def test_the_program_is_as_short_as_it_is_said_to_be(tmp_path: Path) -> None:
    from tests.support.audit_logs import DOCS

    program = DOCS.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    assert len([line for line in program.splitlines() if line]) <= 27
    assert what_the_program_says(write(tmp_path, [], None)) == ""
