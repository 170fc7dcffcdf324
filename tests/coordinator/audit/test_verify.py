"""Whatever is done to a log that was closed, it is found, and the first wrong record is named."""

from __future__ import annotations

import fcntl
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.audit.chain import Action, Checkpoint, Entry, Record, chained
from coordinator.audit.verify import LOCK, LOG, NEWEST, records_of, verify_log
from shared.errors import AuditDamaged, ConfigError
from tests.support.audit_logs import (
    AT,
    ENTRIES,
    IDENTITY,
    STRANGER,
    chain,
    entry,
    what_the_program_says,
    write,
)

KEY = IDENTITY.public


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples of a property; each writes its own log into it."""
    return tmp_path_factory.mktemp("audit")


SHORT = Entry(Action.KEY_MADE, "admin", "k")
logs = st.tuples(st.lists(ENTRIES, min_size=2, max_size=8), st.integers(1, 5))


def lines_of(records: list[Record]) -> list[bytes]:
    return [record.to_line() for record in records]


@settings(max_examples=60)
@given(log=logs)
def test_a_log_that_nobody_touched_is_whole(log: tuple[list[Entry], int], folder: Path) -> None:
    records, newest = chain(log[0], every=log[1])
    path = write(folder, lines_of(records), newest)
    verdict = verify_log(path, key=KEY)
    assert verdict.whole
    assert (verdict.records, verdict.last_hash) == (len(records), records[-1].hash)
    assert (verdict.uncovered, verdict.newest, verdict.pinned) == (0, newest, True)
    assert list(records_of(path)) == records
    checkpoints = [Checkpoint.of(r) for r in records if r.entry.action is Action.CHECKPOINT]
    assert verdict.checkpoints == len(checkpoints)
    for kept in checkpoints:
        assert verify_log(path, key=KEY, against=kept).whole


@settings(max_examples=60)
@given(log=logs, data=st.data())
def test_every_changed_line_is_found_where_it_is(
    log: tuple[list[Entry], int], data: st.DataObject, folder: Path
) -> None:
    """Deleted, repeated, swapped or inserted lines, and lines that were made anew."""
    records, newest = chain(log[0], every=log[1])
    lines = lines_of(records)
    at = data.draw(st.integers(0, len(lines) - 1), label="at")
    kind = data.draw(st.sampled_from(["delete", "repeat", "swap", "insert", "edit"]), label="kind")
    changed, first_bad = list(lines), at + 1
    if kind == "delete":
        del changed[at]
    elif kind == "repeat":
        changed.insert(at, changed[at])
        first_bad = at + 2
    elif kind == "swap":
        other = data.draw(st.integers(0, len(lines) - 1).filter(lambda n: n != at), label="other")
        changed[at], changed[other] = changed[other], changed[at]
        first_bad = min(at, other) + 1
    else:
        made = data.draw(ENTRIES.filter(lambda one: one != records[at].entry), label="made")
        before = records[at - 1] if at else None
        new = chained(before, made, AT)
        changed[at : at + 1] = [new.to_line(), *([lines[at]] if kind == "insert" else [])]
        first_bad = at + 2
    path = write(folder, changed, newest)
    verdict = verify_log(path, key=KEY)
    assert not verdict.whole
    assert verdict.bad_record == first_bad
    # The program in the docs looks at the chain alone: an end that is missing it cannot see.
    at_the_end = at == len(lines) - 1 and kind in ("delete", "edit")
    assert bool(what_the_program_says(path)) != at_the_end


@settings(max_examples=25)
@given(log=logs, data=st.data())
def test_a_log_that_is_hashed_anew_from_somewhere_on_lacks_the_signature(
    log: tuple[list[Entry], int], data: st.DataObject, folder: Path
) -> None:
    """What somebody can do who may write the file, but has not the coordinator's key."""
    records, newest = chain(log[0], every=log[1])
    at = data.draw(st.integers(0, len(records) - 2), label="at")
    forged = list(records[:at])
    entries = [record.entry for record in records[at:]]
    entries[0] = data.draw(ENTRIES.filter(lambda one: one != entries[0]), label="made")
    for one in entries:
        forged.append(chained(forged[-1] if forged else None, one, AT))
    path = write(folder, lines_of(forged), newest)
    assert what_the_program_says(path) == "", "the chain itself is right"
    assert not verify_log(path, key=KEY).whole
    signed_anew, other = chain([record.entry for record in forged], every=3, signed_by=STRANGER)
    path = write(folder, lines_of(signed_anew), other)
    assert not verify_log(path, key=KEY).whole
    assert not verify_log(path, against=newest).whole


def test_every_flipped_bit_is_found(folder: Path) -> None:
    """In every byte of the log and of the checkpoint beside it, up to the last line end."""
    records, newest = chain([Entry(Action.KEY_MADE, "admin", "é"), SHORT], every=1)
    lines = lines_of(records)
    path = write(folder, lines, newest)
    whole = path.read_bytes()
    for position in range(len(whole)):
        bit = 1 << position % 8
        path.write_bytes(whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :])
        verdict = verify_log(path, key=KEY)
        assert not verdict.whole, (position, bit)
        assert verdict.bad_record == whole[:position].count(b"\n") + 1
    path.write_bytes(whole)
    line = (folder / NEWEST).read_bytes()
    for position in range(len(line) - 1):
        (folder / NEWEST).write_bytes(
            line[:position] + bytes([line[position] ^ 1]) + line[position + 1 :]
        )
        assert not verify_log(path, key=KEY).whole, position


def test_every_cut_is_found_down_to_the_newest_checkpoint(folder: Path) -> None:
    records, newest = chain([SHORT] * 4, every=2)
    lines = lines_of(records)
    whole = b"".join(lines)
    path = write(folder, lines, newest)
    borders = [end for end in range(len(whole)) if whole[end - 1 : end + 1].count(b"\n")]
    for end in sorted({*range(0, len(whole), 9), *borders}):
        path.write_bytes(whole[:end])
        assert not verify_log(path, key=KEY).whole, end
    path.write_bytes(whole)
    assert verify_log(path, key=KEY).whole


def test_what_no_checkpoint_covers_can_be_cut_and_that_is_said(folder: Path) -> None:
    records, newest = chain([entry(n) for n in range(4)], every=4)
    tail = chained(records[-1], entry(9), AT)
    path = write(folder, [*lines_of(records), tail.to_line()], newest)
    assert verify_log(path, key=KEY).uncovered == 1
    path = write(folder, lines_of(records), newest)
    verdict = verify_log(path, key=KEY)
    assert verdict.whole
    assert verdict.uncovered == 0


def test_a_checkpoint_that_somebody_kept_finds_a_rewritten_and_a_cut_log(folder: Path) -> None:
    """Even by the holder of the key, who also puts an older checkpoint beside the log."""
    records, newest = chain([entry(n) for n in range(6)], every=2)
    older = Checkpoint.of(records[2])
    path = write(folder, lines_of(records[:3]), older)
    assert verify_log(path, key=KEY).whole, "by itself it looks whole"
    verdict = verify_log(path, key=KEY, against=newest)
    assert verdict.problem is not None
    assert "cut off" in verdict.problem
    anew, other = chain([entry(n + 1) for n in range(6)], every=2)
    path = write(folder, lines_of(anew), other)
    assert verify_log(path, key=KEY).whole, "by itself it looks whole"
    verdict = verify_log(path, key=KEY, against=newest)
    assert verdict.problem is not None
    assert "written anew" in verdict.problem
    assert verdict.bad_record == newest.number + 1


def test_a_log_by_another_key_is_found_with_the_right_one_only(folder: Path) -> None:
    records, newest = chain([entry(1), entry(2)], every=2, signed_by=STRANGER)
    path = write(folder, lines_of(records), newest)
    verdict = verify_log(path, key=KEY)
    assert verdict.problem is not None
    assert "signed by" in verdict.problem
    unpinned = verify_log(path)
    assert unpinned.whole
    assert not unpinned.pinned


def test_a_change_of_key_in_the_middle_is_found_without_any_key(folder: Path) -> None:
    records, _ = chain([entry(1), entry(2)], every=2)
    stranger = Checkpoint.sign(STRANGER, records[-1], AT)
    records.append(chained(records[-1], stranger.entry(), AT))
    assert not verify_log(write(folder, lines_of(records), stranger)).whole


def test_a_kept_checkpoint_by_another_key_is_a_mistake_of_the_caller(folder: Path) -> None:
    records, newest = chain([entry(1)], every=1)
    path = write(folder, lines_of(records), newest)
    with pytest.raises(ConfigError, match="signed by"):
        verify_log(path, key=STRANGER.public, against=newest)
    with pytest.raises(ConfigError, match="No such file"):
        verify_log(folder / "nothing")


def test_an_end_in_the_making_is_no_damage_while_a_coordinator_writes(folder: Path) -> None:
    records, newest = chain([entry(1)], every=1)
    tail = chained(records[-1], entry(2), AT).to_line()
    path = write(folder, [*lines_of(records), tail[:20]], newest)
    problem = verify_log(path, key=KEY).problem
    assert problem is not None
    assert "in the middle" in problem
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        verdict = verify_log(path, key=KEY)
    assert verdict.whole
    assert verdict.records == 2


def test_records_are_given_up_to_the_first_that_is_not_right(folder: Path) -> None:
    records, newest = chain([entry(n) for n in range(4)], every=9)
    path = write(folder, lines_of([*records[:2], records[3]]), newest)
    read = records_of(path)
    assert [next(read), next(read)] == records[:2]
    with pytest.raises(AuditDamaged) as refused:
        next(read)
    assert refused.value.record == 3


def test_a_long_log_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    def peak_of(count: int) -> int:
        tracemalloc.start()
        try:
            assert verify_log(write_long(tmp_path / str(count), count), key=KEY).whole
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def long(count: int) -> Iterator[Record]:
        last: Record | None = None
        for number in range(count):
            last = chained(last, entry(number), AT)
            yield last

    def write_long(folder: Path, count: int) -> Path:
        folder.mkdir()
        with (folder / LOG).open("wb") as file:
            for record in long(count):
                file.write(record.to_line())
        return folder / LOG

    peak_of(10)  # what is imported and cached the first time
    assert peak_of(1000) < peak_of(100) + 100_000


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path: Path) -> None:
    (tmp_path / LOG).write_bytes(b"x" * 1_000_000)
    verdict = verify_log(tmp_path / LOG, key=KEY)
    assert verdict.problem is not None
    assert "longer than a record" in verdict.problem


def test_progress_is_told_on_the_way(tmp_path: Path) -> None:
    records, newest = chain([entry(n) for n in range(2100)], every=5000)
    path = write(tmp_path, lines_of(records), newest)
    told: list[int] = []
    verify_log(path, key=KEY, progress=told.append)
    assert len(told) == 2
    assert told == sorted(told)
