"""How events look: to a machine, and to systemd's journal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SAY = """
import sys, structlog
from shared.logs import set_up_logs
set_up_logs(verbose=True, as_json=True)
log = structlog.get_logger()
for level in ("debug", "info", "warning", "error", "critical"):
    getattr(log, level)("it.happened", text="one\\ntwo")
try:
    raise ValueError("why")
except ValueError:
    log.exception("it.failed")
"""


def said(folder: Path, *, journal: str) -> list[str]:
    """Lines of standard error, a file, of a process that is told of a ``journal``."""
    path = folder / "stderr"
    with path.open("wb") as file:
        here = os.fstat(file.fileno())
        environment = os.environ | {
            "JOURNAL_STREAM": journal.format(device=here.st_dev, inode=here.st_ino)
        }
        subprocess.run([sys.executable, "-c", SAY], env=environment, stderr=file, check=True)
    return path.read_text(encoding="utf-8").splitlines()


def test_l2_a_line_for_the_journal_begins_with_its_level_and_tells_no_time(tmp_path: Path) -> None:
    lines = said(tmp_path, journal="{device}:{inode}")
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>", "<2>", "<3>"]
    events = [json.loads(line[3:]) for line in lines]
    assert [event["event"] for event in events] == [*["it.happened"] * 5, "it.failed"]
    assert events[0]["text"] == "one\ntwo"
    assert "ValueError: why" in events[-1]["exception"]
    assert not [event for event in events if "timestamp" in event]


@pytest.mark.parametrize("journal", ["", "{device}:1", "8:{inode}", "nonsense", "{device}"])
def test_l1_elsewhere_a_line_is_an_event_with_its_time(tmp_path: Path, journal: str) -> None:
    """A program that a service starts inherits the variable, and may write somewhere else."""
    events = [json.loads(line) for line in said(tmp_path, journal=journal)]
    assert len(events) == 6
    assert all(event["timestamp"].endswith("Z") for event in events)
