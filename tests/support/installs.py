"""Building what a device gets, and calling what was installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.brokers import eventually, mosquitto_or_skip

ROOT = Path(__file__).parents[2]
OURS = ("coordinator", "edge_agent", "shared", "sim")
BUILT_OF = ("pyproject.toml", "README.md", "LICENSE", "hatch_build.py", ".gitignore")
"""What a wheel is built of, beside the packages and ``deploy/wheel.sh``."""

LLMOS = (sys.executable, "-m", "shared.command_line")


def run(
    *command: str | Path,
    cwd: Path | None = None,
    check: bool = True,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program; a failure shows what it said."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean_environment(environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def clean_environment(more: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would let an installation see the checkout or this Python."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {k: v for k, v in os.environ.items() if k not in hidden} | dict(more)


def index_or_skip(scratch: Path) -> None:
    """Skip where pip can fetch nothing: wheels cannot be built nor installed there."""
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch)
    if run(*pip, "hatchling>=1.27,<2", check=False).returncode != 0:
        pytest.skip("pip reaches no package index here")


def copy_of_the_project(folder: Path, *, packages: bool = True) -> Path:
    """What a wheel is built of, without a console that was built; or with empty packages."""
    folder.mkdir()
    (folder / "deploy").mkdir()
    for name in (*BUILT_OF, "deploy/wheel.sh"):
        shutil.copy(ROOT / name, folder / name)
    left_out = shutil.ignore_patterns("__pycache__", "dist", "node_modules")
    for name in OURS if packages else ():
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for name in () if packages else OURS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    return folder


def build_wheel(folder: Path, *, root: Path, **variables: str) -> Path:
    """What ``deploy/wheel.sh`` of ``root`` makes of it."""
    script = root / "deploy" / "wheel.sh"
    variables["PYTHON"] = sys.executable
    return Path(run("sh", script, folder, environment=variables).stdout.strip())


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def program(self) -> Path:
        """Its command ``llmos``."""
        return self.folder / "bin" / "llmos"

    def llmos(self, *words: str | Path, check: bool = True) -> str:
        """Standard output of a command, called outside the checkout."""
        return run(self.program, *words, cwd=self.folder, check=check).stdout

    def tells(self, code: str, *arguments: str | Path) -> Any:
        """What Python code, run in there, prints as JSON."""
        return json.loads(run(self.python, "-c", code, *arguments, cwd=self.folder).stdout)


def fetch(wheel: Path, folder: Path) -> dict[str, str]:
    """Everything that ``wheel`` needs with its extra ``edge``; what tells pip to take it from there."""
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", folder)
    run(*pip, f"{wheel}[edge]")
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}


def install_wheel(wheel: Path, folder: Path, offline: Mapping[str, str]) -> Installed:
    """A fresh environment with the wheel and its extra ``edge``."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    run(*pip, "install", "--quiet", "--no-compile", f"{wheel}[edge]", environment=offline)
    return Installed(folder)


@contextmanager
def running(
    home: Path, *command: str | Path, cwd: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process from the moment that its home says that it is ready."""
    with log.open("ab") as file:
        child = subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            env=clean_environment({}),
            stdout=file,
            stderr=file,
        )
    try:
        there = eventually(
            lambda: (home / "ready.json").exists() or child.poll() is not None, within_s=120
        )
        assert there, "it was not ready in time"
        assert child.poll() is None, log.read_text()
        yield child
    finally:
        child.kill()
        child.wait()


@dataclass(frozen=True)
class Coordinator:
    """A coordinator of this checkout, on loopback."""

    home: Path
    url: str

    def llmos(self, *words: str) -> Any:
        """What a command of its operator says in JSON."""
        of = ("--home", self.home, "--url", self.url, "--json")
        return json.loads(run(*LLMOS, *words, *of, cwd=ROOT).stdout)


@contextmanager
def running_coordinator(folder: Path) -> Iterator[Coordinator]:
    """``llmos up`` in ``folder``; skips where Mosquitto is absent."""
    mosquitto_or_skip()
    home = folder / "coordinator"
    words = (*LLMOS, "up", "--home", home, "--port", "0", "--broker-port", "0")
    with running(home, *words, cwd=ROOT, log=folder / "coordinator.log"):
        yield Coordinator(home, json.loads((home / "ready.json").read_text())["url"])
