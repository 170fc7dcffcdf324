"""The one command: it lists everything at once, loads what is used, and fails in a sentence."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from shared import command_line
from shared.command_line import COMMANDS, GROUPS, main
from shared.errors import ConfigError

ROOT = Path(__file__).parents[2]


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Call the command line in this process; gives its exit code."""
    monkeypatch.setattr(sys, "argv", ["llmos", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("words", [["--help"], ["-h"], []])
def test_help_lists_every_command_with_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    run(monkeypatch, *words)
    out = "".join(capsys.readouterr())
    for name, (_, summary) in COMMANDS.items():
        assert name in out
        assert summary[:40] in out


@pytest.mark.parametrize("words", ["'--help'", "'audit', '--help'"])
def test_help_imports_none_of_the_commands(words: str) -> None:
    """So it answers within the time that an interpreter and click take to start."""
    code = (
        "import sys; sys.argv = ['llmos', '--help']\n"
        "from shared.command_line import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "print('modules:', *sorted({m.partition('.')[0] for m in sys.modules}))"
    ).replace("'--help'", words)
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    loaded = set(out.rpartition("modules:")[2].split())
    heavy = {"coordinator", "edge_agent", "sim", "numpy", "typer", "rich", "pydantic", "torch"}
    assert loaded & heavy == set()
    assert "click" in loaded


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run(monkeypatch, name, "--help") == 0
    assert "Usage" in capsys.readouterr().out


def test_every_command_names_the_extra_it_needs() -> None:
    commands = {name for name in COMMANDS if name not in GROUPS}
    for table in GROUPS.values():
        commands |= table.keys()
    assert command_line._EXTRA.keys() == commands


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, table in GROUPS.items() for name in table]
)
def test_every_command_of_a_group_exists_and_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], group: str, name: str
) -> None:
    assert run(monkeypatch, group, "--help") == 0
    assert GROUPS[group][name][1] in capsys.readouterr().out
    assert run(monkeypatch, group, name, "--help") == 0
    assert f"llmos {group} {name}" in capsys.readouterr().out


def test_the_version_is_the_package_s(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        version = importlib.metadata.version("llmos")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the project is not installed here, only checked out")
    assert run(monkeypatch, "--version") == 0
    assert version in capsys.readouterr().out


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command named ``fail`` that raises what a test puts in."""
    errors: list[BaseException] = []
    application = typer.Typer()

    @application.command()
    def fail() -> None:
        raise errors[0]

    def loaded(_place: str, _name: str) -> click.Command:
        command: Any = typer.main.get_command(application)
        return command  # type: ignore[no-any-return]

    monkeypatch.setitem(COMMANDS, "fail", ("nowhere:fail", "Fail"))
    monkeypatch.setattr(command_line, "_loaded", loaded)
    return errors


def test_an_error_of_ours_is_its_message_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raising: list[BaseException],
) -> None:
    raising.append(ConfigError(["a: wrong", "b: wrong too"], source="job"))
    assert run(monkeypatch, "fail") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "llmos: invalid job:\n  - a: wrong\n  - b: wrong too\n"


def test_an_interruption_is_exit_code_130(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raising: list[BaseException],
) -> None:
    raising.append(KeyboardInterrupt())
    assert run(monkeypatch, "fail") == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_bug_of_ours_is_not_dressed_up(
    monkeypatch: pytest.MonkeyPatch, raising: list[BaseException]
) -> None:
    raising.append(ZeroDivisionError())
    monkeypatch.setattr(sys, "argv", ["llmos", "fail"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_a_missing_extra_is_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "up", ("a_module_that_is_not_there:up", "Start"))
    assert run(monkeypatch, "up") == 1
    assert "pip install '.[coordinator]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dmeo"], "No such command"),
        (["demo", "--device", "5"], "No such option"),
        (["demo", "--devices", "1"], "--devices"),
        (["sim", "run"], "SCENARIO"),
    ],
)
def test_a_wrong_word_is_told_with_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    assert run(monkeypatch, *words) == 2
    assert said in capsys.readouterr().err
