"""``llmos audit security`` says what is to be done, and its exit code whether there is anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.service import secret_token
from tests.support.commands import CommandLine


@pytest.fixture
def llmos(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    secret_token(home / "admin.token")
    return home


def found(llmos: CommandLine) -> dict[str, Any]:
    return {one["code"]: one for one in json.loads(llmos.out)["findings"]}


def test_notes_alone_are_exit_code_0_and_more_is_1(llmos: CommandLine, home: Path) -> None:
    assert llmos("audit", "security", "--home", home) == 0
    assert "0 to be acted on" in llmos.out
    (home / "admin.token").chmod(0o644)
    assert llmos("audit", "security", "--home", home) == 1
    assert "secret-open" in llmos.out
    assert "chmod 600 the file" in llmos.out
    assert "1 to be acted on" in llmos.out
    assert llmos("audit", "security", "--home", home, "--json") == 1
    assert found(llmos)["secret-open"]["severity"] == "critical"
    assert (home / "admin.token").read_text() not in llmos.out


def test_offline_nobody_is_asked_and_without_an_answer_that_is_a_note(
    llmos: CommandLine, home: Path
) -> None:
    assert llmos("audit", "security", "--home", home, "--json") == 0
    assert "advisories-not-asked" in found(llmos)
    words = ("--online", "--osv", "http://127.0.0.1:9", "--json")
    assert llmos("audit", "security", "--home", home, *words) == 0
    assert "advisories-not-asked" not in found(llmos)
    notes = [one for one in json.loads(llmos.out)["findings"] if one["code"] == "not-checked"]
    assert any("127.0.0.1:9 does not answer" in one["detail"] for one in notes)


def test_with_an_answer_vulnerable_libraries_are_named(
    llmos: CommandLine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coordinator.security import advisories
    from coordinator.security.facts import Advisory

    def ask(_: object, *, url: str) -> list[Advisory]:
        assert url == advisories.OSV
        return [Advisory("numpy", "1.0", ("PYSEC-1",))]

    monkeypatch.setattr(advisories, "ask", ask)
    assert llmos("audit", "security", "--home", home, "--online", "--json") == 1
    assert found(llmos)["library-vulnerable"]["detail"] == "PYSEC-1"
