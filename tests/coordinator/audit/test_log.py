"""What was recorded is on disk, in order, and a log that broke otherwise than at its end is not opened."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.audit import log as log_module
from coordinator.audit.chain import Action, Checkpoint, Entry, chained
from coordinator.audit.log import AuditLog
from coordinator.audit.verify import LOG, NEWEST, records_of, verify_log
from shared import files
from shared.crypto.identity import Identity
from shared.errors import AuditDamaged, StorageError
from tests.support.audit_logs import AT, ENTRIES, IDENTITY, STRANGER, chain, entry, write
from tests.support.brokers import eventually

ROOT = Path(__file__).parents[3]
KEY = IDENTITY.public


class Clock:
    """Shows what it was set to."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def opened(folder: Path, **options: float) -> AuditLog:
    return AuditLog(folder, IDENTITY, now=Clock(), **options)  # type: ignore[arg-type]


def actions(folder: Path) -> list[str]:
    return [str(record.entry.action) for record in records_of(folder / LOG)]


def subjects(folder: Path) -> list[str]:
    return [r.entry.subject for r in records_of(folder / LOG) if r.entry.subject]


@settings(max_examples=20)
@given(lives=st.lists(st.lists(ENTRIES, max_size=5), min_size=1, max_size=3))
def test_what_was_recorded_is_read_back_after_restarts(
    lives: list[list[Entry]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("audit")
    for entries in lives:
        with opened(folder, every_records=3) as log:
            before = len(log)
            numbers = [log.record(one) for one in entries]
            assert numbers == sorted(set(numbers))
            assert all(number > before for number in numbers)
            whole = log.page(after=0, limit=1000)
            for after in range(len(whole) + 1):
                assert log.page(after=after, limit=2) == whole[after : after + 2]
    read = list(records_of(folder / LOG)) if (folder / LOG).exists() else []
    kept = [record.entry for record in read if record.entry.action is not Action.CHECKPOINT]
    assert kept == [one for entries in lives for one in entries]
    assert not read or verify_log(folder / LOG, key=KEY).uncovered == 0


def test_a_record_is_on_disk_when_record_returns(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(folder) as log:
        synced: list[int] = []
        fsync = os.fsync

        def seen(descriptor: int) -> None:
            fsync(descriptor)
            synced.append((folder / LOG).stat().st_size)

        monkeypatch.setattr(os, "fsync", seen)
        log.record(entry(1))
        assert synced
        assert synced[-1] == (folder / LOG).stat().st_size > 0


def test_threads_that_record_at_once_share_an_fsync(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(folder) as log:
        entered, go_on = threading.Event(), threading.Event()
        appends: list[int] = []
        append = files.append_durably

        def slow(path: Path, data: bytes) -> None:
            appends.append(data.count(b"\n"))
            entered.set()
            assert go_on.wait(60)
            append(path, data)

        monkeypatch.setattr(log_module, "append_durably", slow)
        numbers: list[int] = []

        def one(number: int) -> None:
            numbers.append(log.record(entry(number)))

        threads = [threading.Thread(target=one, args=(number,)) for number in range(9)]
        threads[0].start()
        assert entered.wait(60)
        for thread in threads[1:]:
            thread.start()
        assert eventually(lambda: len(log._waiting) == 8)
        assert numbers == [], "nothing is acknowledged before it is on disk"
        go_on.set()
        for thread in threads:
            thread.join()
        assert appends == [1, 8]
        assert sorted(numbers) == list(range(1, 10))
    assert len(set(subjects(folder))) == 9


def test_a_torn_last_record_is_cut_off_wherever_it_tore_and_that_is_recorded(
    tmp_path: Path,
) -> None:
    with opened(tmp_path / "whole", every_records=99) as log:
        for number in (1, 2, 3):
            log.record(entry(number))
        lines = (tmp_path / "whole" / LOG).read_bytes().splitlines(keepends=True)
    last = lines.pop()
    for kept in range(1, len(last) - 1):
        folder = tmp_path / "torn"
        path = write(folder, [*lines, last[:kept]], None)
        with opened(folder) as log:
            assert len(log) == 3
            (repaired,) = log.page(after=2, limit=9)
        assert repaired.entry.action is Action.REPAIRED
        assert repaired.entry.facts == {"bytes": kept, "completed": False}
        assert path.read_bytes().startswith(b"".join(lines))
        assert verify_log(path, key=KEY).whole


def test_a_record_that_lacks_only_its_line_end_counts(folder: Path) -> None:
    with opened(folder) as log:
        log.record(entry(1))
        log.record(entry(2))
        lines = (folder / LOG).read_bytes()
    write(folder, [lines[:-1]], None)
    with opened(folder) as log:
        assert [one.entry for one in log.page(after=0, limit=2)] == [entry(1), entry(2)]
        assert log.page(after=2, limit=1)[0].entry.facts == {"bytes": 348, "completed": True}
    assert verify_log(folder / LOG, key=KEY).whole


def test_a_torn_end_is_not_repaired_when_something_else_is_wrong_too(folder: Path) -> None:
    records, newest = chain([entry(n) for n in range(4)], every=2)
    lines = [record.to_line() for record in records]
    later = chained(records[-1], entry(9), AT).to_line()
    for broken in (
        [*lines, later[:-1] + b"x"],  # no crash makes that of a line end
        [lines[0], lines[2], lines[3], lines[4][:50]],
        [*lines[:3], lines[3][:50]],  # cut below the checkpoint beside it
        [*lines[:-1], lines[-1][:-1] + b"x"],
    ):
        path = write(folder, broken, newest)
        before = path.read_bytes()
        with pytest.raises(AuditDamaged):
            opened(folder)
        assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["edit", "delete", "swap", "cut", "checkpoint", "none", "key"])
def test_other_damage_is_refused_left_as_it_is_and_told_what_to_do_with(
    folder: Path, damage: str
) -> None:
    records, newest = chain([entry(n) for n in range(6)], every=2)
    lines = [record.to_line() for record in records]
    beside: Checkpoint | None = newest
    match damage:
        case "edit":
            lines[1] = lines[1].replace(b"run/1", b"run/7")
        case "delete":
            del lines[0]
        case "swap":
            lines[3], lines[4] = lines[4], lines[3]
        case "cut":
            lines = lines[:-1]
        case "none":
            beside = None
        case "key":
            other, beside = chain([entry(n) for n in range(6)], every=2, signed_by=STRANGER)
            lines = [record.to_line() for record in other]
    path = write(folder, lines, beside)
    if damage == "checkpoint":
        (folder / NEWEST).write_text("llmos-audit-checkpoint:1:\n")
    before = path.read_bytes()
    with pytest.raises(AuditDamaged, match=r"move .* to another place"):
        opened(folder)
    assert path.read_bytes() == before
    if damage != "checkpoint":
        assert not verify_log(path, key=KEY).whole or damage == "none"


def test_a_checkpoint_without_its_log_is_damage(folder: Path) -> None:
    with opened(folder) as log:
        log.record(entry(1))
    (folder / LOG).unlink()
    with pytest.raises(AuditDamaged, match="no log"):
        opened(folder)


def test_a_crash_between_the_checkpoint_and_the_file_beside_it_is_none(folder: Path) -> None:
    records, newest = chain([entry(n) for n in range(4)], every=2)
    older = Checkpoint.of(records[2])
    lines = [record.to_line() for record in records]
    write(folder, lines, older)
    with opened(folder):
        assert (folder / NEWEST).read_text().strip() == newest.to_line()
    write(folder, lines[:3], None)
    with opened(folder):
        assert (folder / NEWEST).read_text().strip() == older.to_line()


def test_checkpoints_come_every_so_many_records_and_at_the_end(folder: Path) -> None:
    with opened(folder, every_records=3) as log:
        for number in range(7):
            log.record(entry(number))
            assert verify_log(folder / LOG, key=KEY).uncovered < 3
        assert verify_log(folder / LOG, key=KEY).checkpoints == 2
    verdict = verify_log(folder / LOG, key=KEY)
    assert (verdict.checkpoints, verdict.uncovered, verdict.records) == (3, 0, 10)
    with opened(folder):
        pass
    assert verify_log(folder / LOG, key=KEY).records == 10, "nothing new, nothing to sign"


def test_a_checkpoint_comes_in_time_where_nothing_more_happens(folder: Path) -> None:
    clock = Clock()
    with AuditLog(folder, IDENTITY, now=clock, every_s=0.01) as log:
        log.record(entry(1))
        clock.at -= 1000  # set back, which must not put it off
        assert eventually(lambda: len(log) == 2)
        assert eventually((folder / NEWEST).exists)
        newest = Checkpoint.from_line((folder / NEWEST).read_text())
        assert newest.number == 1


def test_a_second_writer_is_refused(folder: Path) -> None:
    with opened(folder), pytest.raises(StorageError, match="another process"):
        opened(folder)
    with opened(folder):
        pass


def fill_disk(monkeypatch: pytest.MonkeyPatch, *, room: int) -> None:
    """Let the next write of the log put ``room`` bytes on the disk and then fail."""

    def full(path: Path, data: bytes) -> None:
        with files.disk_errors(path), path.open("ab", buffering=0) as file:
            file.write(data[:room])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(log_module, "append_durably", full)


@pytest.mark.parametrize("room", [0, 20])
def test_a_full_disk_leaves_the_log_as_it_was_and_later_it_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Even if what had been written could not be taken back at once."""
    with opened(folder, every_records=2) as log:
        log.record(entry(1))
        with monkeypatch.context() as patched:
            fill_disk(patched, room=room)
            for _ in range(2):
                with pytest.raises(StorageError, match="disk is full"):
                    log.record(entry(2))
            with pytest.raises(StorageError):
                log.checkpoint()
        assert len(log) == 1
        assert log.record(entry(3)) == 2
    assert subjects(folder) == ["run/1", "run/3"]
    assert verify_log(folder / LOG, key=KEY).whole


def test_a_record_is_kept_though_the_checkpoint_after_it_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    with opened(folder, every_records=2) as log:
        log.record(entry(1))
        with monkeypatch.context() as patched:
            patched.setattr(log_module, "write_durably", full)
            assert log.record(entry(2)) == 2
        assert not (folder / NEWEST).exists()
    assert verify_log(folder / LOG, key=KEY).compared == 1
    assert subjects(folder) == ["run/1", "run/2"]


def test_an_unforeseen_refusal_of_the_disk_acknowledges_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strange(*_: object) -> None:
        raise OSError(errno.EBADF, "strange")

    with opened(folder) as log:
        with monkeypatch.context() as patched:
            patched.setattr(log_module, "append_durably", strange)
            with pytest.raises(StorageError, match="strange"):
                log.record(entry(1))
        assert log.record(entry(2)) == 1


def test_a_log_that_somebody_else_changes_takes_no_more(folder: Path) -> None:
    log = opened(folder)
    log.record(entry(1))
    with (folder / LOG).open("ab") as file:
        file.write(b"something")
    with pytest.raises(AuditDamaged, match="somebody else"):
        log.record(entry(2))
    with pytest.raises(AuditDamaged):
        log.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    Identity.create(tmp_path / "identity.key")
    return tmp_path


def live_until_killed(home: Path, told: Path, *, life: int, more: int) -> None:
    """Let a process record until it was told that ``more`` records are on disk, and kill it."""
    with told.open("ab") as out:
        wanted = told.read_bytes().count(b"\n") + more
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.support.killed_audit", str(home), str(life)],
            cwd=ROOT,
            stdout=out,
        )
    try:
        there = eventually(
            lambda: told.read_bytes().count(b"\n") >= wanted or child.poll() is not None
        )
        assert there, "it records too slowly"
        assert child.poll() is None, "it ended by itself"
    finally:
        child.kill()
        child.wait()


@pytest.mark.processes
def test_whatever_was_acknowledged_is_there_after_kill_9(home: Path) -> None:
    """From several threads, over several lives; the log opens every time, and tears are mended."""
    told = home / "acknowledged"
    for life in range(5):
        live_until_killed(home, told, life=life, more=3 + 41 * life)
    acknowledged = dict(line.split() for line in told.read_text().splitlines())
    assert len(acknowledged) >= 3 + 41 * 4
    public = Identity.load(home / "identity.key")
    with AuditLog(home / "audit", public):
        pass
    path = home / "audit" / LOG
    assert verify_log(path, key=public.public).whole
    there = {str(record.number): record.entry.subject for record in records_of(path)}
    assert {number: there.get(number) for number in acknowledged} == acknowledged
