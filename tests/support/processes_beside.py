"""Python code beside the tests' process."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def in_a_process_of_its_own(code: str, *arguments: str, may_override: bool = True) -> str:
    """Run Python code beside this process, if need be without root's right to write anywhere."""

    def obey_modes() -> None:
        # PR_CAPBSET_DROP of CAP_DAC_OVERRIDE: root then obeys file modes like everybody else.
        ctypes.CDLL(None).prctl(24, 1)

    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=None if may_override else obey_modes,
    ).stdout
