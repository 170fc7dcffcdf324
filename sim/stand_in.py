"""A small language model for the demonstration, trained beside it while the fleet learns.

It stands in for a real one: with the model hub out of reach there is no other, and it says so
wherever it answers.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final, Self

from shared.errors import ChildDied
from shared.files import disk_errors
from sim.fleet_processes import start_llmos

WAIT_S: Final = 180.0
NAME: Final = "tickets-stand-in"
STEPS: Final = 400
"""Enough for recognisable answers; some 20 s of one core."""


class StandIn:
    """Trains in a process of its own at low priority; what it made is kept for the next time."""

    def __init__(self, home: Path) -> None:
        """``home`` is where models are kept."""
        self._home = home
        self._log = home / "stand-in.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start training, unless an earlier demonstration left the model."""
        with disk_errors(self._log):
            self._log.parent.mkdir(parents=True, exist_ok=True)
            log = self._log.open("wb")
        with log:
            self._process = start_llmos(
                [
                    *["model", "make-tiny", "--out", str(self._home / "models" / NAME)],
                    *["--size", "smaller", "--steps", str(STEPS), "--leave-out", ""],
                    *["--threads", "1"],
                ],
                log,
                nice=10,
            )
        return self

    def wait(self) -> Path:
        """Return the model's folder when it is trained.

        Raises:
            ChildDied: training failed, with the end of its log, or took too long.
        """
        assert self._process is not None
        try:
            status = self._process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            raise ChildDied(f"the stand-in model was not trained after {WAIT_S:.0f} s") from None
        if status != 0:
            last = self._log.read_text(errors="replace").splitlines()[-8:]
            raise ChildDied("the stand-in model could not be trained:\n" + "\n".join(last))
        return self._home / "models" / NAME

    def __exit__(self, *_: object) -> None:
        """End training if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
