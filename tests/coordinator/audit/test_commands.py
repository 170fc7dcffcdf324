"""An auditor reads, checks and copies the log with one word each, and exit codes say what was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinator.audit.chain import Action, Checkpoint, Entry, Record
from coordinator.audit.verify import LOG, NEWEST
from shared.crypto.identity import Identity, fingerprint, format_public
from tests.support.audit_logs import AT, IDENTITY, chain, what_the_program_says, write
from tests.support.commands import CommandLine

ENTRIES = [
    Entry(Action.KEY_MADE, "admin", "trial", {"begins": "llmos_abc"}),
    Entry(Action.RUN_SUBMITTED, "admin", "trial", {"epsilon": "8"}),
    Entry(Action.ROUND_OPENED, "coordinator", "trial/1", {"devices": 5}),
    Entry(Action.SUM_OPENED, "key-holder", "trial/1", {"digest": "d" * 64}),
    Entry(Action.ROUND_OPENED, "coordinator", "trial-2/1"),
    Entry(Action.NOT_DONE, "admin", "trial", {"of": 2, "code": "storage"}),
]


@pytest.fixture
def llmos(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    monkeypatch.setenv("COLUMNS", "200")
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A coordinator's home with a log of six actions; its checkpoints are after 4, and at the end."""
    identity = Identity.create(tmp_path / "identity.key")
    records, newest = chain(ENTRIES, every=4, signed_by=identity)
    write(tmp_path / "audit", [record.to_line() for record in records], newest)
    return tmp_path


def records_in(folder: Path) -> list[Record]:
    from coordinator.audit.verify import records_of

    return list(records_of(folder / LOG))


def test_a_whole_log_is_said_to_be_whole_by_whom_it_is_signed(
    llmos: CommandLine, home: Path
) -> None:
    assert llmos("audit", "verify", "--home", home) == 0
    key = Identity.load(home / "identity.key").public
    assert "8 records, 2 checkpoints" in llmos.out
    assert f"signed by {fingerprint(key)}, the key that was given" in llmos.out
    assert llmos.out.rstrip().endswith("whole")
    assert llmos("audit", "verify", "--home", home, "--json") == 0
    said = json.loads(llmos.out)
    assert (said["whole"], said["records"], said["pinned"], said["compared"]) == (True, 8, True, 1)
    assert said["newest"]["key"] == format_public(key)


def test_a_damaged_log_is_exit_code_1_with_record_and_reason(
    llmos: CommandLine, home: Path
) -> None:
    path = home / "audit" / LOG
    path.write_bytes(path.read_bytes().replace(b'"devices":5', b'"devices":6'))
    assert llmos("audit", "verify", "--home", home) == 1
    assert "NOT WHOLE: record 3: its content is not what its hash was made of" in llmos.out
    assert llmos("audit", "verify", "--home", home, "--json") == 1
    said = json.loads(llmos.out)
    assert (said["whole"], said["bad_record"], said["records"]) == (False, 3, 2)
    assert llmos("audit", "show", "--home", home) == 1
    assert "record 3 of the audit log" in llmos.err


def test_a_copy_is_checked_without_the_coordinator_and_says_what_is_not_shown(
    llmos: CommandLine, home: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy" / "trail.jsonl"
    copy.parent.mkdir()
    copy.write_bytes((home / "audit" / LOG).read_bytes())
    assert llmos("audit", "verify", copy) == 0
    assert "a key that you should compare" in llmos.out
    assert "no checkpoint was compared" in llmos.out
    key = format_public(Identity.load(home / "identity.key").public)
    assert llmos("audit", "verify", copy, "--public-key", key) == 0
    assert "the key that was given" in llmos.out
    assert llmos("audit", "verify", copy, "--public-key", format_public(IDENTITY.public)) == 1
    assert "signed by" in llmos.out
    assert llmos("audit", "verify", home / "audit") == 0, "a folder will do"


def test_the_line_of_a_checkpoint_shows_later_that_nothing_before_it_is_gone(
    llmos: CommandLine, home: Path
) -> None:
    assert llmos("audit", "checkpoint", "--home", home) == 0
    line = llmos.out.strip()
    assert llmos("audit", "verify", "--home", home, "--against", line) == 0
    assert "it still contains the checkpoint after record 7" in llmos.out
    records = records_in(home / "audit")
    older = Checkpoint.of(records[4])
    write(home / "audit", [record.to_line() for record in records[:5]], older)
    assert llmos("audit", "verify", "--home", home) == 0, "by itself it looks whole"
    assert llmos("audit", "verify", "--home", home, "--against", line) == 1
    assert "cut off" in llmos.out
    assert llmos("audit", "verify", "--home", home, "--against", line[:-2]) == 1
    assert "invalid checkpoint" in llmos.err
    assert llmos("audit", "checkpoint", "--home", home, "--json") == 0
    assert json.loads(llmos.out)["line"] == older.to_line()


def test_what_is_not_signed_yet_is_said(llmos: CommandLine, home: Path) -> None:
    records = records_in(home / "audit")
    older = Checkpoint.of(records[4])
    write(home / "audit", [record.to_line() for record in records[:6]], older)
    assert llmos("audit", "verify", "--home", home) == 0
    assert "the last 1 records are not signed yet" in llmos.out


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ([], [1, 2, 3, 4, 5, 6, 7, 8]),
        (["--limit", "2"], [7, 8]),
        (["--limit", "0"], [1, 2, 3, 4, 5, 6, 7, 8]),
        (["--actor", "admin"], [1, 2, 7]),
        (["--action", "round-opened"], [3, 6]),
        (["--run", "trial"], [2, 3, 4, 7]),
        (["--since", "2023-11-14T22:13:25"], [6, 7, 8]),
        (["--since", "2023-11-15T00:13:25+02:00", "--actor", "admin"], [7]),
        (["--since", "2024-01-01"], []),
    ],
    ids=str,
)
def test_records_are_shown_as_they_are_asked_for(
    llmos: CommandLine, home: Path, options: list[str], numbers: list[int]
) -> None:
    assert AT == 1_700_000_000  # 2023-11-14 22:13:20 UTC
    assert llmos("audit", "show", "--home", home, "--json", *options) == 0
    assert [json.loads(line)["number"] for line in llmos.out.splitlines()] == numbers


def test_the_table_shows_who_did_what(llmos: CommandLine, home: Path) -> None:
    assert llmos("audit", "show", "--home", home, "--actor", "key-holder") == 0
    for word in (
        "2023-11-14 22:13:24Z",
        "key-holder",
        "sum-opened",
        "trial/1",
        "digest=dddddddddddd…",
    ):
        assert word in llmos.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "--action", "tea-made"], "--action: 'tea-made' is none"),
        (["show", "--since", "yesterday"], "--since: 'yesterday' is no time"),
        (["verify", "/nowhere/at/all"], "No such file"),
        (["show", "/nowhere/at/all"], "No such file"),
        (["export", "/nowhere/at/all"], "No such file"),
        (["checkpoint", "/nowhere/at/all"], "there is no checkpoint"),
        (["verify", "--public-key", "llmos"], "not a public key"),
    ],
    ids=str,
)
def test_a_wrong_word_is_one_sentence(
    llmos: CommandLine, home: Path, words: list[str], said: str
) -> None:
    assert llmos("audit", *words, "--home", home) == 1
    assert said in llmos.err


def test_an_export_is_the_log_and_can_be_checked_by_others(
    llmos: CommandLine, home: Path, tmp_path: Path
) -> None:
    assert llmos("audit", "export", "--home", home) == 0
    assert llmos.out == (home / "audit" / LOG).read_text(encoding="utf-8")
    out = tmp_path / "export.jsonl"
    assert llmos("audit", "export", "--home", home, "--out", out) == 0
    assert out.read_bytes() == (home / "audit" / LOG).read_bytes()
    assert what_the_program_says(out) == ""
    assert llmos("audit", "export", "--home", home, "--out", out) == 1
    assert "File exists" in llmos.err


def test_an_export_of_a_damaged_log_leaves_no_file(
    llmos: CommandLine, home: Path, tmp_path: Path
) -> None:
    path, out = home / "audit" / LOG, tmp_path / "export.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"devices":5', b'"devices":6'))
    assert llmos("audit", "export", "--home", home, "--out", out) == 1
    assert not out.exists()
    (home / "audit" / NEWEST).write_text("other")
    assert llmos("audit", "checkpoint", "--home", home) == 1
