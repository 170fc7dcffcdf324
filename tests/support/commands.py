"""The command line, called in this process."""

from __future__ import annotations

import sys

import pytest

from shared.command_line import main


class CommandLine:
    """Runs ``llmos`` with words; keeps what it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.out = ""
        self.err = ""

    def __call__(self, *words: object) -> int:
        """The exit code of ``llmos WORDS``."""
        self._monkeypatch.setattr(sys, "argv", ["llmos", *map(str, words)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        self.out, self.err = self._capsys.readouterr()
        return int(ended.value.code or 0)
