"""An audited store in a folder, opened and left as a coordinator's process does or is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

from coordinator.audit.audited_store import AuditedStore, Written, catch_up
from coordinator.audit.chain import Action, Entry
from coordinator.audit.log import AuditLog
from coordinator.audit.sink import ADMIN, AuditSink, acting
from coordinator.audit.verify import LOG, records_of, verify_log
from coordinator.store.store import ApiKey
from shared.errors import StorageError
from shared.types import DeviceId, Digest, PublicKey, RunId
from tests.support.audit_logs import IDENTITY
from tests.support.coordinator_plans import small_plan

KEY = ApiKey("notes", "llmos_abcdef", "0" * 64, created_at=1.0, expires_at=99.5)
DEVICE = DeviceId("kitchen")
DEVICE_KEY = PublicKey(bytes(32))
PLAN = small_plan()
RUN = PLAN.run_id


# A clean process is forked for each: it starts in milliseconds and inherits no thread.
_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])


class Trail:
    """The log of all lives of one coordinator, of which each finds what the last one left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log: AuditLog | None = None
        self.caught_up: list[int] = []

    def open(self, url: str, folder: Path) -> AuditedStore:
        """Begin a life; the one before has been killed, and wrote no last checkpoint."""
        self.kill()
        written = Written()
        self.log = AuditLog(self.folder / "audit", IDENTITY, told=written.take)
        store = AuditedStore(url, folder, audit=self.log)
        self.caught_up.append(catch_up(store, written, self.log))
        self.log.record(Entry(Action.COORDINATOR_STARTED, "coordinator"))
        return store

    def kill(self) -> None:
        """Let the log go as the end of a process does."""
        if self.log is not None:
            self.log._closed.set()
            self.log._timer.join()
            self.log._held.close()
            self.log = None

    def told(self) -> list[tuple[str, str, str]]:
        """Actor, action and subject of every record but those about the coordinator itself."""
        path = self.folder / "audit" / LOG
        assert verify_log(path, key=IDENTITY.public).whole
        return [
            (record.entry.actor, str(record.entry.action), record.entry.subject)
            for record in records_of(path)
            if not record.entry.action.startswith(("coordinator-", "audit-"))
        ]


class Refuses:
    """A log on a full disk, whenever ``full`` is set; else another one's."""

    def __init__(self, sink: AuditSink) -> None:
        self.sink = sink
        self.full = False

    def record(self, entry: Entry) -> int:
        """Write down, or refuse."""
        if self.full:
            raise StorageError("the disk is full")
        return self.sink.record(entry)


DEEDS: dict[str, Callable[[AuditedStore], object]] = {
    "token": lambda store: store.new_token(expires_at=9.0),
    "join": lambda store: store.join(
        super(AuditedStore, store).new_token(expires_at=9.0), DEVICE, DEVICE_KEY, now=1.0
    ),
    "add key": lambda store: store.add_key(KEY),
    "rotate": lambda store: store.rotate_key(
        KEY.name, prefix="llmos_ghijkl", secret_sha256="1" * 64, former_ends_at=9.0
    ),
    "quarantine": lambda store: store.quarantine_key(KEY.name, "odd", now=4.0),
    "release": lambda store: store.release_key(KEY.name),
    "revoke": lambda store: store.revoke_key(KEY.name, now=5.0),
    "add run": lambda store: store.add_run(RUN, PLAN.model_dump_json(), Digest("a" * 64), now=2.0),
    "stop": lambda store: store.add_milestone(RunId(RUN), "stopped", {"reason": "so"}, now=3.0),
}
"""Everything that is written down by the store itself, and can be done in this order."""


class _Dies:
    """Kills its process before or after it wrote down the one action it waits for."""

    def __init__(self, sink: AuditSink, *, written: bool) -> None:
        self.sink = sink
        self.written = written

    def record(self, entry: Entry) -> int:
        if self.written:
            self.sink.record(entry)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0


def die_in(folder: Path, deed: str, *, written: bool) -> int | None:
    """Let a process do all deeds before one and die in the middle of that; its exit code."""
    process = _FORKS.Process(target=_die, args=(folder, deed, written))
    process.start()
    process.join(120)
    return process.exitcode


def _die(folder: Path, deed: str, written: bool) -> None:
    trail = Trail(folder)
    acting.set(ADMIN)
    store = trail.open(f"sqlite:///{folder / 'store.db'}", folder)
    assert trail.log is not None
    for name, do in DEEDS.items():
        if name == deed:
            store._audit = _Dies(trail.log, written=written)
        do(store)
