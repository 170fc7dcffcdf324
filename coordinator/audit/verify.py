"""Reading an audit log from its beginning, and saying whether it is whole.

    V1  every record is checked against the one before it, and every checkpoint against the
        coordinator's key; the first that is not right is named, and why
    V2  a log that ends before a checkpoint which somebody has kept is found to be cut
    V3  one record is in memory at a time, however long the log is

Nothing here writes. What a chain cannot show by itself: that records after the last
checkpoint were cut off, and that whoever holds the coordinator's key wrote the log anew
behind the last checkpoint that somebody else has kept.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from coordinator.audit.chain import MAX_LINE_BYTES, Action, Checkpoint, Record, read_record
from shared.crypto.identity import fingerprint
from shared.errors import AuditDamaged, ConfigError
from shared.types import PublicKey

LOG: Final = "log.jsonl"
NEWEST: Final = "checkpoint"
"""Beside the log: its newest checkpoint, as a line."""

LOCK: Final = "lock"


class Reading:
    """Reads a log once, record by record. Raises AuditDamaged at the first that is not right."""

    def __init__(
        self, file: BinaryIO, *, key: PublicKey | None, kept: Sequence[Checkpoint] = ()
    ) -> None:
        """Read ``file``.

        Args:
            file: The log, at its beginning.
            key: The coordinator's; without it, all checkpoints must be by the first one's.
            kept: Checkpoints that the log must contain (V2).
        """
        self._file = file
        self._kept = list(kept)
        self.key = key
        self.end = 0
        """Bytes of whole records."""
        self.last: Record | None = None
        self.newest: Checkpoint | None = None
        self.checkpoints = 0
        self.torn = b""
        """What stands behind the last line end: a record that is, or was, being written."""

    def __iter__(self) -> Iterator[Record]:
        """Every record, oldest first."""
        while line := self._file.readline(MAX_LINE_BYTES + 1):
            number = self.last.number + 1 if self.last is not None else 1
            if len(line) > MAX_LINE_BYTES:
                raise AuditDamaged("it is longer than a record can be", record=number)
            if not line.endswith(b"\n"):
                self.torn = line
                return
            yield self.take(line)

    def take(self, line: bytes) -> Record:
        """Check one more record (V1)."""
        record = read_record(line, after=self.last)
        if record.entry.action is Action.CHECKPOINT:
            self._check(record)
        self.last = record
        self.end += len(line)
        return record

    def check_kept(self) -> None:
        """At the end: whether the log holds every checkpoint that was kept (V2).

        Raises:
            AuditDamaged: one is missing.
        """
        for one in self._kept:
            last = self.last.number if self.last is not None else 0
            raise AuditDamaged(
                f"the log ends with record {last}, but a checkpoint says that record {one.number} "
                "and itself were there: records were cut off at the end",
                record=last + 1,
            )

    @property
    def after_newest(self) -> int:
        """How many records no checkpoint covers yet."""
        last = self.last.number if self.last is not None else 0
        return last - (self.newest.number + 1 if self.newest is not None else 0)

    def _check(self, record: Record) -> None:
        found = Checkpoint.of(record)
        if self.key is not None and found.key != self.key:
            raise AuditDamaged(
                f"the checkpoint is signed by {fingerprint(found.key)}, and not by "
                f"{fingerprint(self.key)}",
                record=record.number,
            )
        self.key = found.key
        for one in [kept for kept in self._kept if kept.number == found.number]:
            if one != found:
                raise AuditDamaged(
                    "it is another checkpoint than the one that was kept: the log was written anew",
                    record=record.number,
                )
            self._kept.remove(one)
        self.newest = found
        self.checkpoints += 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What reading a log has shown.

    Attributes:
        problem: The first that is not right; ``None``: the log is whole.
        bad_record: Its number, or where it should be.
        records: Whole records before that.
        last_hash: Hash of the last of them.
        checkpoints: How many of them are checkpoints.
        uncovered: How many no checkpoint covers: these could be missing or changed by whoever
            can write the file.
        newest: The newest checkpoint.
        pinned: Whether the key was given; else it is the log's own word, to be compared.
        compared: With how many checkpoints from elsewhere than the log it was compared.
    """

    problem: str | None
    bad_record: int | None
    records: int
    last_hash: str
    checkpoints: int
    uncovered: int
    newest: Checkpoint | None
    pinned: bool
    compared: int

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return self.problem is None


def verify_log(
    path: Path,
    *,
    key: PublicKey | None = None,
    against: Checkpoint | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Verdict:
    """Read the log in ``path`` from end to end and say whether it is whole (V1, V2, V3).

    Args:
        path: The log. A file ``checkpoint`` beside it is compared too, if there is one.
        key: The coordinator's public key; without it that of ``against`` is taken.
        against: A checkpoint that somebody kept.
        progress: Told the bytes that were read, now and then.

    Raises:
        ConfigError: there is no such file, or ``against`` is by another key than ``key``.
    """
    if against is not None and key is not None and against.key != key:
        mistake = f"it is signed by {fingerprint(against.key)}, and not by {fingerprint(key)}"
        raise ConfigError([mistake], source="checkpoint")
    pinned = key or (against.key if against is not None else None)
    # Read before the log, which only grows: what it promises is there by then.
    beside, unreadable = _beside(path)
    kept = [one for one in (beside, against) if one is not None]
    written = _is_being_written(path.parent)
    try:
        file = path.open("rb")
    except OSError as err:
        raise ConfigError([f"{path}: {err.strerror}"], source="audit log") from err
    with file:
        reading = Reading(file, key=pinned, kept=kept)
        problem: str | None = None
        bad: int | None = None
        try:
            for record in reading:
                if record.number % 1000 == 0:
                    progress(reading.end)
            reading.check_kept()
            if reading.torn and not written:
                _refuse_torn(reading)
            if unreadable:
                raise AuditDamaged(unreadable, record=0)
        except AuditDamaged as err:
            problem, bad = err.why, err.record
    last = reading.last
    return Verdict(
        problem=problem,
        bad_record=bad,
        records=last.number if last is not None else 0,
        last_hash=last.hash if last is not None else "",
        checkpoints=reading.checkpoints,
        uncovered=reading.after_newest,
        newest=reading.newest,
        pinned=pinned is not None,
        compared=len(kept),
    )


def read_newest(folder: Path) -> Checkpoint | None:
    """The checkpoint that is kept beside the log; ``None`` if there is none.

    Raises:
        ConfigError: the file was altered.
        OSError: it cannot be read.
    """
    try:
        return Checkpoint.from_line((folder / NEWEST).read_bytes().decode("ascii", "replace"))
    except FileNotFoundError:
        return None


def records_of(path: Path) -> Iterator[Record]:
    """The records in a file, oldest first, each checked before it is given.

    Raises:
        AuditDamaged: one is not right; those before it were.
        ConfigError: there is no such file.
    """
    try:
        file = path.open("rb")
    except OSError as err:
        raise ConfigError([f"{path}: {err.strerror}"], source="audit log") from err
    with file:
        yield from Reading(file, key=None)


def is_whole_but_its_end(reading: Reading) -> bool:
    """Whether what stands behind the last line end is a record and lacks its line end only."""
    return _follows(reading, reading.torn + b"\n")


def is_altered_end(reading: Reading) -> bool:
    """Whether it is a record whose line end became something else: no crash does that."""
    return _follows(reading, reading.torn[:-1] + b"\n")


def _follows(reading: Reading, line: bytes) -> bool:
    try:
        read_record(line, after=reading.last)
    except AuditDamaged:
        return False
    return True


def _refuse_torn(reading: Reading) -> None:
    number = reading.last.number + 1 if reading.last is not None else 1
    if is_altered_end(reading):
        raise AuditDamaged("its line end was altered", record=number)
    raise AuditDamaged(
        f"the log ends in the middle of it ({len(reading.torn)} bytes): a coordinator that was "
        "killed repairs that when it starts, and writes it down",
        record=number,
    )


def _beside(path: Path) -> tuple[Checkpoint | None, str]:
    try:
        return read_newest(path.parent), ""
    except (ConfigError, OSError) as err:
        return None, f"the checkpoint beside it was altered: {err}"


def _is_being_written(folder: Path) -> bool:
    """Whether a coordinator has the log open, so that its end may be in the making."""
    try:
        lock = (folder / LOCK).open("rb")
    except OSError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False
