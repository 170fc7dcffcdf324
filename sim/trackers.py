"""A finished run for experiment trackers: TensorBoard event files, Weights & Biases offline.

T1  both are made out of the report, after the run: a run that fails leaves neither
T2  a run's folder appears whole, under its final name, or not at all
T3  nothing is sent anywhere, and nothing is left outside the folder that was named
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from shared.errors import ChildDied, DependencyMissing
from shared.extras import require
from shared.files import appearing_folder, disk_errors

TENSORBOARD: Final = "tensorboardX", "sim"
WANDB: Final = "wandb", "wandb"
"""Each library with the extra that brings it."""

_TIME_LIMIT_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Trackers:
    """Where a run is to be written down besides its report; None is nowhere."""

    tensorboard: Path | None = None
    wandb: Path | None = None

    def check(self) -> None:
        """Say what is missing before the work, not after it.

        Raises:
            DependencyMissing: a library is not installed; the error names the extra.
            StorageError: a folder cannot be written.
        """
        for folder, (module, extra) in ((self.tensorboard, TENSORBOARD), (self.wandb, WANDB)):
            if folder is None:
                continue
            if find_spec(module) is None:
                raise DependencyMissing(module, extra)
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass

    def write(self, report: Mapping[str, Any]) -> list[Path]:
        """Write a finished run everywhere it is wanted, and say where.

        Raises:
            DependencyMissing: a library is not installed.
            StorageError: the disk refused.
            ChildDied: a library failed.
        """
        written = []
        if self.tensorboard is not None:
            written.append(write_tensorboard(report, self.tensorboard))
        if self.wandb is not None:
            written.append(write_wandb(report, self.wandb))
        return written


def scalars(report: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """What was measured after each round, by name; round 0 is before the first.

    >>> scalars({"accuracy": {"before": {"all": 0.5}}, "history": [
    ...     {"round": 1, "invited": 5, "reported": 4, "accuracy": {"all": 0.75}, "loss": 0.9}]})
    {0: {'accuracy/all': 0.5}, 1: {'invited': 5.0, 'reported': 4.0, 'loss': 0.9, 'accuracy/all': 0.75}}
    """
    rounds: dict[int, dict[str, float]] = {}

    def note(number: int, name: str, value: float | str) -> None:
        rounds.setdefault(number, {})[name] = math.inf if value == "infinite" else float(value)

    for group, value in report["accuracy"].get("before", {}).items():
        note(0, f"accuracy/{group}", value)
    if "before" in report.get("loss", {}):
        note(0, "loss", report["loss"]["before"])
    for entry in report["history"]:
        for name in ("invited", "reported", "loss"):
            if name in entry:
                note(entry["round"], name, entry[name])
        for group, value in entry.get("accuracy", {}).items():
            note(entry["round"], f"accuracy/{group}", value)
    for name, key in (("epsilon", "epsilon_by_round"), ("bytes_out", "bytes_out")):
        for device, by_round in report.get(key, {}).items():
            for number, value in by_round.items():
                note(int(number), f"{name}/{device}", value)
    return dict(sorted(rounds.items()))


def hparams(report: Mapping[str, Any]) -> dict[str, Any]:
    """What was chosen, as opposed to measured: flat, ``table.key`` by value."""
    chosen: dict[str, Any] = {}

    def note(prefix: str, table: Mapping[str, Any]) -> None:
        for key, value in table.items():
            if isinstance(value, Mapping):
                note(f"{prefix}{key}.", value)
            else:
                chosen[prefix + key] = value

    for name in ("run", "seed", "devices", "rounds", "transport", "task", "adapter_hash"):
        if name in report:
            chosen[name] = report[name]
    for name in ("privacy", "protection", "trainable", "base_model", "versions", "scenario"):
        note(f"{name}.", report.get(name, {}))
    return chosen


def write_tensorboard(report: Mapping[str, Any], folder: Path) -> Path:
    """Write event files into a folder of their own below ``folder``, and return it.

    Raises:
        DependencyMissing: the extra ``sim`` is not installed.
        StorageError: the disk refused.
    """
    module, extra = TENSORBOARD
    tensorboard = require(module, extra=extra)
    with (
        appearing_folder(folder / _name(report)) as new,
        tensorboard.SummaryWriter(logdir=str(new)) as writer,
    ):
        for number, values in scalars(report).items():
            for name, value in values.items():
                writer.add_scalar(name, value, number)
        writer.add_text("hparams", _as_markdown(hparams(report)), 0)
    return folder / _name(report)


def write_wandb(report: Mapping[str, Any], folder: Path) -> Path:
    """Write an offline run into a folder of its own below ``folder``, and return it.

    ``wandb sync`` uploads it, if somebody decides to. The library works in a process of its own,
    since it starts a service, hooks into the interpreter and keeps settings in the home folder;
    its home is a temporary folder.

    Raises:
        DependencyMissing: the extra ``wandb`` is not installed.
        StorageError: the disk refused.
        ChildDied: the library failed; its last words are in the message.
    """
    module, extra = WANDB
    if find_spec(module) is None:
        raise DependencyMissing(module, extra)
    run = {
        "name": _name(report),
        "config": hparams(report),
        "rounds": [[number, values] for number, values in scalars(report).items()],
    }
    # Not below ``folder``: the path of a Unix socket has at most 107 bytes.
    with (
        appearing_folder(folder / _name(report)) as new,
        tempfile.TemporaryDirectory(prefix="llmos-wandb-") as home,
    ):
        done = subprocess.run(
            [sys.executable, "-m", "sim.wandb_child"],
            input=json.dumps(run),
            env=_confined(home),
            capture_output=True,
            text=True,
            timeout=_TIME_LIMIT_S,
            check=False,
        )
        found = sorted(Path(home).glob("wandb/offline-run-*"))
        if done.returncode or len(found) != 1:
            raise ChildDied(f"wandb did not write the run: {done.stderr.strip()[-500:]}")
        shutil.copytree(found[0], new)
    return folder / _name(report)


def _confined(home: str) -> dict[str, str]:
    """An environment in which wandb neither calls anybody nor leaves anything behind."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    folders = ("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")
    own = ("DIR", "CONFIG_DIR", "CACHE_DIR", "DATA_DIR", "ARTIFACT_DIR")
    return (
        kept
        | dict.fromkeys([*folders, *(f"WANDB_{name}" for name in own)], home)
        | {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
        # With another home, packages that this user installed would not be found.
        | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    )


def _name(report: Mapping[str, Any]) -> str:
    """The run's own: the same result has the same name, and another run another."""
    run = re.sub(r"[^A-Za-z0-9_-]+", "-", str(report.get("run", "run"))).strip("-") or "run"
    return f"{run[:60]}-{report['adapter_hash'][:8]}"


def _as_markdown(table: Mapping[str, Any]) -> str:
    """A table as TensorBoard shows it; what people named cannot break out of its cell."""
    rows = [f"| {_code(key)} | {_code(str(value))} |" for key, value in table.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _code(text: str) -> str:
    safe = "".join(
        "\u00b4" if char == "`" else char if char.isprintable() else " " for char in text
    )
    return "`" + safe.replace("|", "\u2223") + "`" if safe else ""
