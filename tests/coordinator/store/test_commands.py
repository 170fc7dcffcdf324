"""``llmos backup`` and ``llmos restore``: what a person types, and what a machine reads."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.store.backup import last_backup_at
from coordinator.store.store import Store
from shared.crypto.identity import Identity, fingerprint
from shared.types import Digest, RunId
from tests.support.commands import CommandLine
from tests.support.stores import sqlite_place


@pytest.fixture
def llmos(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    monkeypatch.delenv("LLMOS_STORE", raising=False)
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    store = Store(sqlite_place(folder).url, folder)
    Identity.create(folder / "identity.key")
    store.add_run(RunId("run"), "{}", Digest(store.keep(b"probe")), now=1.0)
    store.close()
    return folder


def test_a_coordinator_goes_into_a_file_and_out_of_it(
    llmos: CommandLine, home: Path, tmp_path: Path
) -> None:
    file, new = tmp_path / "backup.tar", tmp_path / "new"
    assert llmos("backup", file, "--home", home, "--json") == 0
    told = json.loads(llmos.out)
    assert told["coordinator"] == fingerprint(Identity.load(home / "identity.key").public)
    assert told["rows"]["runs"] == 1
    assert (told["files"], llmos.err) == (2, "")
    made_at = last_backup_at(home)
    assert made_at is not None
    assert datetime.fromtimestamp(made_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") == told["made_at"]
    assert llmos("restore", file, "--home", new) == 0
    assert f"restored into {new}: coordinator {told['coordinator']}" in llmos.out
    assert last_backup_at(new) is None, "what was restored was not backed up yet"
    store = sqlite_place(new).open()
    assert [row.run for row in store.runs()] == ["run"]
    store.close()


def test_a_refusal_is_one_message_with_every_problem_and_exit_code_1(
    llmos: CommandLine, home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "backup.tar"
    assert llmos("backup", file, "--home", tmp_path / "nobody") == 1
    assert "there is no coordinator in" in llmos.err
    assert llmos("backup", file, "--home", home) == 0
    file.write_bytes(file.read_bytes()[:-1])
    assert llmos("restore", file, "--home", tmp_path / "new") == 1
    assert "cannot be restored:\n  - " in llmos.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_a_password_in_a_url_that_cannot_be_used_is_not_repeated(
    llmos: CommandLine, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    file = tmp_path / "backup.tar"
    if command == "restore":
        assert llmos("backup", file, "--home", home) == 0
    for url in ("mysql://me:s3cret@host/x", "postgresql://me:s3cret@127.0.0.1:1/x"):
        monkeypatch.setenv("LLMOS_STORE", url)
        assert (
            llmos(command, file, "--home", home if command == "backup" else tmp_path / "new") == 1
        )
        assert llmos.err
        assert "s3cret" not in llmos.err + llmos.out
    assert not (tmp_path / "new").exists()
