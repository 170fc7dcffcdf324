"""What could keep a device from working, looked at one by one."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from edge_agent.examples import ExampleStore
from edge_agent.inference.answering import Policy, Templates
from edge_agent.inference.installed import ANSWERS, POLICY, Serving, model_folder, open_model
from edge_agent.membership import FILE, read_membership
from edge_agent.participate import Home, check_charged
from shared.config import read_toml
from shared.crypto.identity import Identity
from shared.errors import LlmOsError, ModelError
from shared.models.manifest import read_manifest, verify_files
from shared.privacy.ledger import Ledger

FREE_BYTES: Final = 200 * 2**20
"""Room for one more model, an update on its way and the logs."""

_BROKER_TIMEOUT_S: Final = 3.0
_CLOCK_SLACK_S: Final = 300.0
_EXTRAS: Final = {
    "edge": ("paho", "httpx", "onnxruntime", "tokenizers", "starlette", "uvicorn"),
    "train": ("torch", "opacus", "transformers", "tenseal"),
}


class Outcome(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    """The device works, but not in every way."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check and what it found."""

    check: str
    outcome: Outcome
    detail: str


def examine(home: Path, *, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Check everything that can be checked without changing anything."""
    checks: dict[str, Callable[[], tuple[Outcome, str]]] = {
        "home": lambda: _home(home),
        "membership": lambda: _membership(home),
        "broker": lambda: _broker(home),
        "model": lambda: _model(home),
        "policy": lambda: _settings(home),
        "ledger": lambda: _ledger(home),
        "clock": lambda: _clock(home, now()),
        "disk": lambda: _disk(home),
        "software": _software,
    }
    for name, check in checks.items():
        try:
            outcome, detail = check()
        except LlmOsError as err:
            outcome, detail = Outcome.FAILED, str(err)
        except OSError as err:
            outcome, detail = Outcome.FAILED, f"{err.filename or home}: {err.strerror}"
        yield Finding(name, outcome, detail)


def _home(home: Path) -> tuple[Outcome, str]:
    if not home.is_dir():
        return Outcome.FAILED, f"there is no folder {home}: run 'llmos edge join' first"
    open_to_others = [
        name
        for name in ("identity.key", FILE, "examples.db", "api.token")
        if (home / name).exists()
        and stat.S_IMODE((home / name).stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO)
    ]
    if open_to_others:
        listed = ", ".join(open_to_others)
        return Outcome.FAILED, f"others can read {listed} in {home}: run 'chmod 600' on them"
    return Outcome.OK, str(home)


def _membership(home: Path) -> tuple[Outcome, str]:
    membership = read_membership(home)
    Identity.load(home / "identity.key")
    holder = "with" if membership.key_holder else "without"
    return Outcome.OK, f"joined as {membership.device}, {holder} a key holder"


def _broker(home: Path) -> tuple[Outcome, str]:
    membership = read_membership(home)
    place = (membership.broker_host, membership.broker_port)
    try:
        socket.create_connection(place, timeout=_BROKER_TIMEOUT_S).close()
    except OSError as err:
        reason = err.strerror or "no answer in time"
        return Outcome.FAILED, f"{place[0]}:{place[1]} does not answer ({reason})"
    return Outcome.OK, f"{place[0]}:{place[1]} accepts connections"


def _model(home: Path) -> tuple[Outcome, str]:
    serving = Serving.load(home)
    if serving is None:
        return Outcome.WARNING, "no model was released to this device yet"
    folder = model_folder(home, serving.manifest)
    manifest, digest = read_manifest(folder)
    if digest != serving.manifest:
        raise ModelError(f"the model in {folder} is another one than was released")
    verify_files(folder, manifest)
    model = open_model(home)
    if model.calibration is None or model.calibration.threshold is None:
        return (
            Outcome.WARNING,
            f"{model.name}; not calibrated, so every question is asked elsewhere",
        )
    share = f"{model.calibration.local_share:.0%} of the calibration questions stay here"
    return Outcome.OK, f"{model.name}, adapter {model.adapter.digest[:12]}; {share}"


def _settings(home: Path) -> tuple[Outcome, str]:
    path = home / POLICY
    policy = read_toml(Policy, path) if path.exists() else Policy()
    if (home / ANSWERS).exists():
        Templates.read(home / ANSWERS)
    return Outcome.OK, f"escalate = {policy.escalate}"


def _ledger(home: Path) -> tuple[Outcome, str]:
    membership = read_membership(home)
    ledger = Ledger(Home(home).ledger, repair=False)
    if Home(home).examples.exists():
        check_charged(ExampleStore(Home(home).examples), ledger)
    spent = ledger.epsilon(membership.delta)
    return Outcome.OK, f"{len(ledger.charges())} charges, ε = {spent:.3f}"


def _clock(home: Path, now: float) -> tuple[Outcome, str]:
    """A clock that was set back makes what this device wrote lie in the future."""
    times = [file.stat().st_mtime for file in home.iterdir() if file.is_file()]
    serving = Serving.load(home)
    if serving is not None:
        times.append(serving.released_at)
    ahead = max(times, default=now) - now
    shown = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
    if ahead > _CLOCK_SLACK_S:
        return Outcome.FAILED, f"{shown} is {ahead:.0f} s before something that happened: set it"
    return Outcome.OK, shown


def _disk(home: Path) -> tuple[Outcome, str]:
    free = shutil.disk_usage(home).free
    detail = f"{free / 2**20:.0f} MiB free"
    return (Outcome.OK if free >= FREE_BYTES else Outcome.FAILED), detail


def _software() -> tuple[Outcome, str]:
    absent = {
        extra: [name for name in names if importlib.util.find_spec(name) is None]
        for extra, names in _EXTRAS.items()
    }
    advice = [
        f"{', '.join(names)} missing: pip install '.[{extra}]'"
        for extra, names in absent.items()
        if names
    ]
    if absent["edge"]:
        return Outcome.FAILED, "; ".join(advice)
    if absent["train"]:
        return Outcome.WARNING, "; ".join(advice) + " to take part in training"
    return Outcome.OK, "everything for answering and training is installed"
