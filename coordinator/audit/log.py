"""The audit log on disk: one file that only grows, and its newest checkpoint beside it.

    U1  when :meth:`AuditLog.record` returns, the record survives power loss
    U2  what is not written in full is not written at all, and the next record follows the last
    U3  only the record that was being written when the power failed may lack its end; it was
        never acknowledged, is cut off, and that is written down
    U4  any other damage is refused and left as it is
    U5  a checkpoint is written every ``EVERY_RECORDS`` records, ``EVERY_S`` after the first
        record that none covers, and when the log is closed

Threads that record at the same time share one write and one fsync: while one of them is on the
disk the others line up, and the next of them writes for all.
"""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from coordinator.audit.chain import (
    MAX_LINE_BYTES,
    Action,
    Checkpoint,
    Entry,
    Record,
    chained,
    parse_line,
)
from coordinator.audit.sink import COORDINATOR
from coordinator.audit.verify import (
    LOG,
    NEWEST,
    Reading,
    is_altered_end,
    is_whole_but_its_end,
    read_newest,
)
from shared.crypto.identity import Identity
from shared.errors import AuditDamaged, ConfigError, StorageError
from shared.files import append_durably, disk_errors, sync_folder, write_durably
from shared.service import home_lock

EVERY_RECORDS: Final = 256
EVERY_S: Final = 600.0
_LOOK_S: Final = 5.0
"""How often it is looked whether a checkpoint is due."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Waiting:
    """A record on its way to the disk."""

    entry: Entry
    number: int = 0
    error: StorageError | None = None


class AuditLog:
    """The log in one folder. Any number of threads of one process may use it."""

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        *,
        told: Callable[[Record], None] = lambda _: None,
        now: Callable[[], float] = time.time,
        every_records: int = EVERY_RECORDS,
        every_s: float = EVERY_S,
    ) -> None:
        """Open the log, or begin one, and repair a torn end (U3).

        Args:
            folder: Of its own; the log and its checkpoint lie in it.
            identity: The coordinator's, which signs checkpoints.
            told: Called with every record that is there already, oldest first.
            now: Seconds since the epoch.
            every_records: At most so many records without a checkpoint.
            every_s: At most so many seconds a record waits for one.

        Raises:
            AuditDamaged: the log was altered or cut (U4). Nothing was changed.
            StorageError: another process has it open, or the disk refused.
        """
        self.folder = folder
        self._path = folder / LOG
        self._identity = identity
        self._now = now
        self._every_records = every_records
        self._every_s = every_s
        self._lining_up = threading.Lock()
        self._writing = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._offsets = array("Q")
        """Where each record begins; so a page is a seek and not a scan."""
        self._size = 0
        self._last: Record | None = None
        self._covered = 0
        """The last record that is, or is covered by, a checkpoint."""
        self._uncovered_since: float | None = None
        self._newest: Checkpoint | None = None
        self._is_kept = True
        """Whether the newest checkpoint lies beside the log."""
        self._failed = False
        """Whether bytes of a write that failed may still be there."""
        self._closed = threading.Event()
        with ExitStack() as stack:
            stack.enter_context(home_lock(folder))
            torn = self._open(told)
            self._held = stack.pop_all()
        if torn is not None:
            self.record(Entry(Action.REPAIRED, COORDINATOR, "", torn))
        self._timer = threading.Thread(target=self._look, daemon=True, name="audit-checkpoints")
        self._timer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """How many records are on disk."""
        return len(self._offsets)

    def close(self) -> None:
        """Write a last checkpoint and let the log go."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._timer.join()
        try:
            self.checkpoint()
        finally:
            self._held.close()

    def record(self, entry: Entry) -> int:
        """Write ``entry`` down; on disk when this returns (U1). Gives the record's number.

        Raises:
            StorageError: the disk refused; the log is as it was (U2).
        """
        waiting = _Waiting(entry)
        with self._lining_up:
            self._waiting.append(waiting)
        with self._writing:
            if not waiting.number and waiting.error is None:  # nobody has written it yet
                self._write_waiting()
        if waiting.error is not None:
            raise waiting.error
        return waiting.number

    def checkpoint(self) -> None:
        """Sign what no checkpoint covers, if there is any, and keep the newest beside the log.

        Raises:
            StorageError: the disk refused; it will be tried again.
        """
        with self._writing:
            self._checkpoint()

    def page(self, *, after: int, limit: int) -> list[Record]:
        """Up to ``limit`` records that follow number ``after``."""
        # Without a lock: a page need not wait for the disk that a record waits for, and an
        # offset is there only when its record is.
        count = len(self._offsets)
        if after >= count:
            return []
        start = self._offsets[after]
        with self._path.open("rb") as file:
            file.seek(start)
            return [
                parse_line(file.readline(MAX_LINE_BYTES), number=number)
                for number in range(after + 1, min(after + limit, count) + 1)
            ]

    def _open(self, told: Callable[[Record], None]) -> dict[str, int | bool] | None:
        """Read what is there; gives what was repaired, if anything was."""
        try:
            kept = self._beside()
            if kept is not None and kept.key != self._identity.public:
                raise AuditDamaged(
                    "the checkpoint beside the log is signed with another key than this "
                    "coordinator's",
                    record=kept.number + 1,
                )
            return self._read(kept, told)
        except AuditDamaged as err:
            raise AuditDamaged(
                f"{err.why}. Nothing was changed. Keep the evidence: move {self.folder} to another "
                "place, and look at it with 'llmos audit verify'; a coordinator that finds no log "
                "begins a new one",
                record=err.record,
            ) from err

    def _beside(self) -> Checkpoint | None:
        try:
            return read_newest(self.folder)
        except ConfigError as err:
            raise AuditDamaged(f"the checkpoint beside it was altered: {err}", record=0) from err

    def _read(
        self, kept: Checkpoint | None, told: Callable[[Record], None]
    ) -> dict[str, int | bool] | None:
        if not self._path.exists():
            if kept is not None:
                raise AuditDamaged("there is a checkpoint and no log", record=1)
            return None
        with self._path.open("rb") as file:
            kept_ones = [kept] if kept is not None else []
            reading = Reading(file, key=self._identity.public, kept=kept_ones)
            start = 0
            for record in reading:
                self._offsets.append(start)
                start = reading.end
                told(record)
        completed = bool(reading.torn) and is_whole_but_its_end(reading)
        if completed:
            self._offsets.append(start)
            told(reading.take(reading.torn + b"\n"))
        elif reading.torn and is_altered_end(reading):
            raise AuditDamaged("its line end was altered", record=len(self._offsets) + 1)
        reading.check_kept()
        if kept is None and reading.checkpoints > 1:
            raise AuditDamaged("its newest checkpoint is missing beside it", record=len(self))
        # Only now, when nothing else is wrong, is anything changed.
        repaired = self._repair(reading, completed=completed) if reading.torn else None
        self._size, self._last, self._newest = reading.end, reading.last, reading.newest
        self._covered = len(self) - reading.after_newest
        if reading.after_newest:
            self._uncovered_since = self._now()
        self._is_kept = kept == self._newest
        self._keep_newest()
        return repaired

    def _repair(self, reading: Reading, *, completed: bool) -> dict[str, int | bool]:
        """Complete a record that lacks its line end only; cut a shorter one off (U3)."""
        if completed:
            append_durably(self._path, b"\n")
        else:
            with disk_errors(self._path):
                os.truncate(self._path, reading.end)
                sync_folder(self._path)
        log.warning("audit.repaired", bytes=len(reading.torn), completed=completed)
        return {"bytes": len(reading.torn), "completed": completed}

    def _write_waiting(self) -> None:
        """Write for everybody who waits, and tell each. Only while ``_writing`` is held."""
        with self._lining_up:
            batch, self._waiting = self._waiting, []
        at, last, records = int(self._now()), self._last, []
        for waiting in batch:
            last = chained(last, waiting.entry, at)
            records.append(last)
        try:
            self._put(records)
        except StorageError as err:
            for waiting in batch:
                waiting.error = err
            return
        for waiting, record in zip(batch, records, strict=True):
            waiting.number = record.number
        if len(self) - self._covered >= self._every_records:
            self._try_checkpoint()

    def _put(self, records: list[Record]) -> None:
        """Append records, all or none, on disk when this returns (U1, U2)."""
        lines = [record.to_line() for record in records]
        with _no_other_errors(self._path), disk_errors(self._path):
            self._check_end()
            self._failed = True
            append_durably(self._path, b"".join(lines))
            self._failed = False
        for line in lines:
            self._offsets.append(self._size)
            self._size += len(line)
        self._last = records[-1]
        if self._last.entry.action is Action.CHECKPOINT:
            self._newest, self._covered = Checkpoint.of(self._last), self._last.number
            self._is_kept, self._uncovered_since = False, None
        elif self._uncovered_since is None:
            self._uncovered_since = self._now()

    def _check_end(self) -> None:
        """Whether the file ends where the last record did; after a failed write, make it so."""
        size = self._path.stat().st_size if self._path.exists() else 0
        if size > self._size and self._failed:
            os.truncate(self._path, self._size)
            sync_folder(self._path)
        elif size != self._size:
            raise AuditDamaged(
                f"somebody else has changed {self._path} while it was open", record=len(self)
            )

    def _checkpoint(self) -> None:
        """As :meth:`checkpoint`, while ``_writing`` is held."""
        last = self._last
        if last is not None and last.number > self._covered:
            entry = Checkpoint.sign(self._identity, last, at := int(self._now())).entry()
            self._put([chained(last, entry, at)])
        self._keep_newest()

    def _try_checkpoint(self) -> None:
        try:
            self._checkpoint()
        except StorageError as err:
            log.error("audit.no_checkpoint", error=str(err))

    def _keep_newest(self) -> None:
        """Write the newest checkpoint beside the log, after the record that it is."""
        if not self._is_kept and self._newest is not None:
            write_durably(self.folder / NEWEST, self._newest.to_line().encode() + b"\n")
            self._is_kept = True

    def _look(self) -> None:
        """Write a checkpoint whenever one is due (U5)."""
        while not self._closed.wait(min(_LOOK_S, self._every_s)):
            with self._writing:
                since = self._uncovered_since
                # A clock that is set back must not put it off.
                if since is not None and abs(self._now() - since) >= self._every_s:
                    self._try_checkpoint()


@contextmanager
def _no_other_errors(path: Path) -> Iterator[None]:
    """Nobody who waits for a record may be left without an answer: every refusal is ours."""
    try:
        yield
    except OSError as err:
        raise StorageError(f"cannot write {path}: {err.strerror}") from err
