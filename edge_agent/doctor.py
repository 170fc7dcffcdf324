"""What could keep a device from working, looked at one by one.

Nothing is changed by looking, with one exception: over TLS the coordinator is asked for a
certificate, as the agent does, to see whether it still gives this device one.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from edge_agent.conditions import Sensors, read_conditions
from edge_agent.examples import ExampleStore
from edge_agent.inference.answering import Policy, Templates
from edge_agent.inference.installed import ANSWERS, POLICY, Serving, model_folder, open_model
from edge_agent.membership import FILE, read_membership
from edge_agent.outbox import Outbox
from edge_agent.participate import Home, check_charged
from shared.config import read_toml
from shared.crypto.identity import Identity
from shared.enrolment import ask, fetch_authorities, time_at
from shared.errors import AccessDenied, LlmOsError, ModelError, StorageError
from shared.models.manifest import read_manifest, verify_files
from shared.privacy.ledger import Ledger
from shared.tls import client_context

FREE_BYTES: Final = 200 * 2**20
"""Room for one more model, an update on its way and the logs."""

MEMORY_BYTES: Final = 500 * 2**20
"""What a training child with MiniLM takes."""

_BROKER_TIMEOUT_S: Final = 3.0
_REFUSAL_S: Final = 1.0
"""In which a broker says that it does not take a certificate; it is asked nothing."""

_IMPORT_S: Final = 60.0
_LONG_S: Final = 3 * 86_400.0
"""An update may wait as long as a device is offline, and should not for longer than this."""

_IMPORT: Final = """\
import importlib, importlib.util, sys
for name in sys.argv[1:]:
    print(name, flush=True)
    if importlib.util.find_spec(name):
        importlib.import_module(name)
"""
"""What is not there at all is found by another check."""

_NATIVE: Final = ("numpy", "cryptography", "onnxruntime", "tokenizers")
_TRIED: Final = ("x86_64", "aarch64", "arm64")
_CLOCK_SLACK_S: Final = 300.0
_EXTRAS: Final = {
    "edge": ("paho", "httpx", "onnxruntime", "psutil", "tokenizers", "starlette", "uvicorn"),
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


def examine(
    home: Path, *, port: int = 0, now: Callable[[], float] = time.time
) -> Iterator[Finding]:
    """Check everything that can be checked; ``port`` of the local API too, if it is given."""
    checks: dict[str, Callable[[], tuple[Outcome, str]]] = {
        "home": lambda: _home(home),
        "membership": lambda: _membership(home),
        "certificate": lambda: _certificate(home, now()),
        "coordinator": lambda: _coordinator(home, now()),
        "broker": lambda: _broker(home),
        "port": lambda: _port(home, port),
        "examples": lambda: _examples(home),
        "outbox": lambda: _outbox(home, now()),
        "conditions": lambda: _conditions(home),
        "model": lambda: _model(home),
        "policy": lambda: _settings(home),
        "ledger": lambda: _ledger(home),
        "clock": lambda: _clock(home, now()),
        "disk": lambda: _disk(home),
        "memory": _memory,
        "machine": _machine,
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


def _certificate(home: Path, now: float) -> tuple[Outcome, str]:
    enrolled = read_membership(home).enrolled(home)
    if enrolled is None:
        return Outcome.OK, "none is needed: the coordinator is on this machine, without TLS"
    try:
        certified = enrolled.certified()
        enrolled.credentials()
    except StorageError as err:
        return Outcome.FAILED, f"{err}: start the agent, which asks for another one"
    ends = datetime.fromtimestamp(certified.expires_at, UTC).isoformat(timespec="minutes")
    if now < certified.issued_at:
        return Outcome.FAILED, "it does not hold yet by this clock: set the clock"
    if now >= certified.expires_at:
        advice = "start the agent where it reaches the coordinator, or set the clock"
        return Outcome.FAILED, f"it ended at {ends}: {advice}"
    if enrolled.is_due(now):
        return Outcome.WARNING, f"it ends at {ends} and was not renewed: see 'coordinator' below"
    return Outcome.OK, f"holds until {ends}"


def _coordinator(home: Path, now: float) -> tuple[Outcome, str]:
    """Whether it answers, gives this device a certificate, and has the same time."""
    membership = read_membership(home)
    if not membership.url:
        return Outcome.OK, "its address was not kept when this device joined"
    enrolled, context = membership.enrolled(home), None
    if enrolled is not None:
        _, authorities = fetch_authorities(membership.url, coordinator=enrolled.coordinator)
        context = client_context(authorities)
        identity = Identity.load(home / "identity.key")
        body = {"request": identity.certificate_request(membership.device)}
        try:
            ask(membership.url, "POST", "/api/v1/certificates", body=body, context=context)
        except AccessDenied as err:
            advice = "ask its operator; if the device was revoked, 'llmos edge leave' and join anew"
            return Outcome.FAILED, f"{err}: {advice}"
    there = time_at(membership.url, context=context)
    ahead = now - there
    if abs(ahead) > _CLOCK_SLACK_S:
        way = "ahead of" if ahead > 0 else "behind"
        return Outcome.FAILED, f"this clock is {abs(ahead):.0f} s {way} the coordinator's: set it"
    return Outcome.OK, f"{membership.url} answers, and the clocks agree"


def _broker(home: Path) -> tuple[Outcome, str]:
    membership = read_membership(home)
    enrolled = membership.enrolled(home)
    place = (membership.broker_host, membership.broker_port)
    shown = f"{place[0]}:{place[1]}"
    try:
        with socket.create_connection(place, timeout=_BROKER_TIMEOUT_S) as plain:
            if enrolled is None:
                return Outcome.OK, f"{shown} accepts connections"
            context = enrolled.credentials().context
            with context.wrap_socket(plain, server_hostname=place[0]) as secured:
                return _listened(secured, shown)
    except ssl.SSLCertVerificationError as err:
        return Outcome.FAILED, f"{shown} is not who it should be: {err.verify_message}"
    except ssl.SSLError as err:
        return Outcome.FAILED, f"{shown} does not speak TLS 1.3: {err.reason}"
    except OSError as err:
        reason = err.strerror or "no answer in time"
        advice = "check that 'llmos up' runs there and that no firewall is between"
        return Outcome.FAILED, f"{shown} does not answer ({reason}): {advice}"


def _listened(secured: ssl.SSLSocket, shown: str) -> tuple[Outcome, str]:
    """With TLS 1.3 a server looks at a certificate after the client thinks that all is well."""
    secured.settimeout(_REFUSAL_S)
    try:
        secured.recv(1)
    except TimeoutError:
        return Outcome.OK, f"{shown} takes this device's certificate"
    except OSError:
        pass
    return Outcome.FAILED, f"{shown} refuses this device's certificate: it ended or was revoked"


def _port(home: Path, port: int) -> tuple[Outcome, str]:
    if not port:
        return Outcome.OK, "the local API finds a free one; '--port N' looks at one"
    try:
        own = json.loads((home / "ready.json").read_bytes())["url"]
    except (OSError, ValueError, KeyError, TypeError):
        own = ""
    if str(own).endswith(f":{port}"):
        return Outcome.OK, f"{port} is this device's own"
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as err:
            advice = "end what uses it, or choose another with 'llmos edge run --port'"
            return Outcome.FAILED, f"{port} is not free ({err.strerror}): {advice}"
    return Outcome.OK, f"{port} is free"


def _examples(home: Path) -> tuple[Outcome, str]:
    path = Home(home).examples
    count = ExampleStore(path).count if path.exists() else 0  # opening it would make it
    if not count:
        return Outcome.WARNING, "there are none, so it does not train: 'llmos edge data add FILE'"
    return Outcome.OK, f"{count} examples"


def _conditions(home: Path) -> tuple[Outcome, str]:
    unmet = Sensors(home, read_conditions(home)).unmet()
    if unmet:
        advice = "it takes no part until that is over, or 'conditions.toml' says otherwise"
        return Outcome.WARNING, f"{'; '.join(unmet.values())}: {advice}"
    return Outcome.OK, "those of 'conditions.toml' hold"


def _outbox(home: Path, now: float) -> tuple[Outcome, str]:
    waiting = Outbox(Home(home).outbox).waiting()
    oldest = min((path.stat().st_mtime for path in Home(home).outbox.glob("*.frame")), default=now)
    if now - oldest > _LONG_S:
        days = (now - oldest) / 86_400
        return (
            Outcome.WARNING,
            f"{len(waiting)} updates wait, one for {days:.0f} days: see 'broker' and 'coordinator'",
        )
    return Outcome.OK, f"{len(waiting)} updates wait for their receipt"


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
    detail = f"{len(ledger.charges())} charges, ε = {spent:.3f}"
    if spent >= membership.budget:
        advice = "it takes part no more, unless its owner allows more: 'llmos edge budget set'"
        return Outcome.WARNING, f"{detail} of {membership.budget:g}: the budget is spent; {advice}"
    return Outcome.OK, detail


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
    if free < FREE_BYTES:
        return Outcome.FAILED, f"{detail}, of {FREE_BYTES // 2**20} that it needs: make room"
    return Outcome.OK, detail


def _memory() -> tuple[Outcome, str]:
    """Of Linux's own estimate; where there is none, nothing is said."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return Outcome.OK, "this system does not say"
    detail = f"{free // 1024} MiB available"
    if free * 1024 < MEMORY_BYTES:
        return Outcome.WARNING, f"{detail}: training needs {MEMORY_BYTES // 2**20}; end something"
    return Outcome.OK, detail


def _machine() -> tuple[Outcome, str]:
    """Whether what was compiled was compiled for this machine."""
    kind = platform.machine()
    # In a child: what was compiled for another machine may end whoever loads it.
    found = subprocess.run(  # noqa: S603  our own interpreter
        [sys.executable, "-c", _IMPORT, *_NATIVE],
        capture_output=True,
        text=True,
        check=False,
        timeout=_IMPORT_S,
    )
    if found.returncode:
        last = (found.stderr.strip().splitlines() or [f"status {found.returncode}"])[-1]
        advice = "install LLM OS anew on this machine, not copied from another"
        at = found.stdout.strip().rpartition("\n")[2]
        return Outcome.FAILED, f"{at} does not run on this {kind}: {last[:200]}; {advice}"
    if kind not in _TRIED:
        return Outcome.WARNING, f"{kind}: nobody has tried it; {' and '.join(_TRIED)} are meant"
    return Outcome.OK, kind


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
