"""The management API of a coordinator with much in it, over real connections on loopback.

Every route that lists something is asked one request after the other, and once more while other
clients ask for everything without a pause. Beside it: how long an audit log takes to verify.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from coordinator.audit.chain import Action, Checkpoint, Entry, Facts, Record, chained
from coordinator.audit.verify import LOG, NEWEST, verify_log
from coordinator.federation.rounds import (
    DeviceDeclined,
    Invited,
    KeyAnnounced,
    Planned,
    RoundFailed,
    Transition,
)
from coordinator.store import tables
from coordinator.store.store import Store
from coordinator.submission import submit
from shared.config import read
from shared.crypto.identity import Identity
from shared.data_files import Example
from shared.errors import ChildDied, ConfigError, CoordinatorUnavailable
from shared.job import Job
from shared.types import DeviceId, Digest, RunId
from shared.wire import codec
from sim.bench.bars import told
from sim.fleet_processes import start_llmos

if TYPE_CHECKING:
    import httpx

RUN: Final = RunId("bench")
ROWS_A_ROUND: Final = 100
PAGE: Final = 200
"""Items, the most that a page has."""
START_S: Final = 180.0
EVERY_RECORDS: Final = 256
"""Between two checkpoints, as in a coordinator."""

ROUTES: Final = (
    "/api/v1/overview",
    f"/api/v1/devices?limit={PAGE}",
    f"/api/v1/keys?limit={PAGE}",
    f"/api/v1/runs?limit={PAGE}",
    f"/api/v1/runs/{RUN}/events?limit={PAGE}",
    f"/api/v1/audit?limit={PAGE}",
    "/api/v1/releases",
    "/api/v1/models",
    "/api/v1/usage",
    "/v1/models",
)

Progress = Callable[[str], None]


def bench_management(
    *,
    devices: int,
    keys: int,
    rows: int,
    records: int,
    repeats: int,
    clients: int,
    progress: Progress,
) -> dict[str, Any]:
    """Fill a coordinator, start it, and ask it.

    Args:
        devices: That joined.
        keys: For the API.
        rows: Of rounds, all of one run that is over; a multiple of ``ROWS_A_ROUND``.
        records: Of the audit log that is verified.
        repeats: Requests to each route, alone and under load.
        clients: That make the load, each with one request at a time.
        progress: Told what is being done.

    Raises:
        ConfigError: ``rows`` is no such multiple.
        ChildDied: the coordinator did not start.
        CoordinatorUnavailable: it answered with an error.
    """
    if rows % ROWS_A_ROUND:
        problem = f"--rows: a multiple of {ROWS_A_ROUND}, not {rows}"
        raise ConfigError([problem], source="options")
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as folder:
        home = Path(folder) / "coordinator"
        progress("filling a coordinator")
        fill(home, devices=devices, keys=keys, rows=rows)
        alone, loaded = _asked(home, Path(folder) / "log", repeats, clients, progress)
        progress("verifying an audit log")
        verify_s = seconds_to_verify(Path(folder) / "audit", records)
    return told(
        "management",
        [],
        devices=devices,
        keys=keys,
        rows=rows,
        repeats=repeats,
        clients=clients,
        routes=[
            {"route": route, "alone": alone[route], "loaded": loaded[route]} for route in ROUTES
        ],
        audit_records=records,
        audit_verify_s=round(verify_s, 3),
    )


def fill(home: Path, *, devices: int, keys: int, rows: int) -> None:
    """Make a coordinator's home with so much in its store."""
    home.mkdir(mode=0o700)
    Identity.create(home / "identity.key")
    store = Store(f"sqlite:///{home / 'store.db'}", home)
    now = time.time()
    names = [f"device-{number}" for number in range(devices)]
    callers = [f"key-{number}" for number in range(keys)]
    _submit(store, home.with_name("base"), now=now)
    # All at once: a commit for each would take a minute of synchronised writes.
    with store.database.writing() as connection:
        connection.execute(
            tables.devices.insert(),
            [{"name": name, "public_key": _digest(name), "joined_at": now} for name in names],
        )
        connection.execute(
            tables.keys.insert(),
            [
                {
                    "name": name,
                    "prefix": "llmos_abcdef",
                    "secret_sha256": _digest(name).hex(),
                    "created_at": now,
                    "priority": 0,
                    "tokens_per_minute": 0,
                    "public_cache": False,
                }
                for name in callers
            ],
        )
        connection.execute(
            tables.key_roles.insert(),
            [{"name": name, "role": "caller", "scopes": {}} for name in callers],
        )
        connection.execute(
            tables.transitions.insert(),
            [
                {
                    "run": RUN,
                    "round": number,
                    "kind": type(row).__name__,
                    "body": codec.encode(
                        {each.name: getattr(row, each.name) for each in dataclasses.fields(row)}
                    ),
                    "at": now,
                }
                for number in range(1, rows // ROWS_A_ROUND + 1)
                for row in _round()
            ],
        )
    store.add_milestone(RUN, "started", {"adapter": "0" * 64}, now=now)
    store.add_milestone(RUN, "failed", {"code": "round", "reason": "it is a bench"}, now=now)
    store.close()


def _submit(store: Store, base: Path, *, now: float) -> None:
    """A run of the smallest job there is; of its base model there is what a plan needs."""
    base.mkdir()
    config = {
        "model_type": "bert",
        "hidden_size": 4,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
    }
    (base / "config.json").write_text(json.dumps(config))
    (base / "tokenizer.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"weights")
    job = {
        "name": RUN,
        "model": {"base": str(base)},
        "privacy": {"noise": "none"},
        "protection": {"scheme": "clear"},
    }
    probe = [Example(f"text {label}", label, "") for label in ("a", "b", "c")]
    submit(store, read(Job, job, source="job"), probe, seed=1, simulation=False, now=now)


def _round() -> list[Transition]:
    """A round that nobody took part in, in ``ROWS_A_ROUND`` rows."""
    cohort = tuple(f"device-{number}" for number in range(ROWS_A_ROUND - 4))
    declined = [DeviceDeclined(DeviceId(name), "device.busy", "it trains") for name in cohort]
    return [
        Planned(Digest("0" * 64)),
        KeyAnnounced(b""),
        Invited(cohort, 0.0),
        *declined,
        RoundFailed("privacy.cohort", "too few devices"),
    ]


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _asked(
    home: Path, log: Path, repeats: int, clients: int, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Milliseconds by route, alone and while others ask."""
    import httpx

    with log.open("wb") as output:
        ports = ["--port", "0", "--broker-port", "0", "--encoder", "none"]
        process = start_llmos(["up", "--home", str(home), *ports], output)
        try:
            progress("starting the coordinator")
            ready = home / "ready.json"
            deadline = time.monotonic() + START_S
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    words = log.read_text(errors="replace")[-2000:]
                    raise ChildDied(f"no coordinator:\n{words}")
                time.sleep(0.05)
            url = json.loads(ready.read_bytes())["url"]
            token = (home / "admin.token").read_text(encoding="ascii").strip()

            def client() -> httpx.Client:
                headers = {"Authorization": f"Bearer {token}"}
                return httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)

            progress("asking alone")
            with client() as api:
                alone = {route: _times(api, route, repeats) for route in ROUTES}
            progress("asking under load")
            return alone, _under_load(client, repeats, clients)
        finally:
            process.terminate()
            process.wait()


def _under_load(client: Callable[[], httpx.Client], repeats: int, clients: int) -> dict[str, Any]:
    over = threading.Event()

    def ask_on() -> None:
        with client() as api:
            while not over.is_set():
                for route in ROUTES:
                    _ask(api, route)

    threads = [threading.Thread(target=ask_on, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        with client() as api:
            return {route: _times(api, route, repeats) for route in ROUTES}
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _times(api: httpx.Client, route: str, repeats: int) -> dict[str, float]:
    _ask(api, route)
    took_ms = []
    for _ in range(repeats):
        begun = time.perf_counter()
        _ask(api, route)
        took_ms.append((time.perf_counter() - begun) * 1000)
    return {f"p{share}": round(float(np.percentile(took_ms, share)), 1) for share in (50, 99)}


def _ask(api: httpx.Client, route: str) -> None:
    answer = api.get(route)
    if not answer.is_success:
        raise CoordinatorUnavailable(f"{route} was answered with {answer.status_code}")


def seconds_to_verify(folder: Path, records: int) -> float:
    """How long a log of so many records takes to read and check, signatures included."""
    folder.mkdir()
    identity = Identity.create(folder / "identity.key")
    last: Record | None = None
    newest: Checkpoint | None = None
    with (folder / LOG).open("wb") as file:
        for number in range(1, records + 1):
            if number == records or number % EVERY_RECORDS == 0:
                assert last is not None
                newest = Checkpoint.sign(identity, last, number)
                entry = newest.entry()
            else:
                facts: Facts = {"devices": 16, "epsilon": "1.25"}
                entry = Entry(Action.ROUND_OPENED, "coordinator", f"bench/{number}", facts)
            last = chained(last, entry, number)
            file.write(last.to_line())
    assert newest is not None
    (folder / NEWEST).write_text(newest.to_line() + "\n")
    begun = time.perf_counter()
    verdict = verify_log(folder / LOG, key=identity.public)
    took_s = time.perf_counter() - begun
    assert (verdict.whole, verdict.records) == (True, records), verdict.problem
    return took_s
