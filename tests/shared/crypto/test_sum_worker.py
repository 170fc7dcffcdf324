"""SumWorker keeps W1 to W4: hostile bytes, a death and a memory limit cost no more than a call."""

from __future__ import annotations

import inspect
import os
import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from shared.crypto.sum_cipher import (
    KeyPair,
    Scheme,
    SumContext,
    SumLayout,
    cipher_for,
    opener_for,
)
from shared.crypto.sum_worker import OPERATIONS, SumWorker
from shared.errors import ChildDied, LlmOsError, StorageError, UndecodableMessage, WrongKey
from shared.types import RoundNumber, RunId

LAYOUT = SumLayout(count=500, bits=12, max_devices=8)


@dataclass(frozen=True)
class Round:
    """One round's frames on disk."""

    scheme: Scheme
    keys: KeyPair
    context: SumContext
    folder: Path

    def frame(self, value: int) -> Path:
        path = self.folder / f"{value}.frame"
        cipher = cipher_for(self.scheme, LAYOUT)
        path.write_bytes(
            cipher.encrypt(
                np.full(LAYOUT.count, value), public_key=self.keys.public, context=self.context
            )
        )
        return path

    def opened(self, dump: bytes, devices: int) -> set[int]:
        values = opener_for(self.scheme, LAYOUT).open(
            dump, secret_key=self.keys.secret, context=self.context, devices=devices
        )
        return set(values.tolist())


@pytest.fixture(params=list(Scheme))
def round_(request: pytest.FixtureRequest, tmp_path: Path) -> Round:
    scheme = Scheme(request.param)
    keys = opener_for(scheme, LAYOUT).new_key_pair()
    return Round(scheme, keys, SumContext(RunId("run"), RoundNumber(1), keys.key_id), tmp_path)


@pytest.fixture
def worker() -> Iterator[SumWorker]:
    worker = SumWorker()
    yield worker
    worker.close()


def test_a_total_is_folded_from_files(worker: SumWorker, round_: Round) -> None:
    worker.begin(LAYOUT, round_.scheme, round_.context)
    assert worker.add(round_.context, round_.frame(5)) == 1
    assert worker.add(round_.context, round_.frame(-7)) == 2
    assert round_.opened(worker.dump(round_.context), 2) == {-2}


def test_totals_of_several_rounds_live_side_by_side(worker: SumWorker, round_: Round) -> None:
    later = replace(round_, context=replace(round_.context, round=RoundNumber(2)))
    for one in (round_, later):
        worker.begin(LAYOUT, one.scheme, one.context)
    worker.add(round_.context, round_.frame(1))
    with pytest.raises(WrongKey):
        worker.add(later.context, round_.frame(1))
    worker.add(later.context, later.frame(2))
    assert round_.opened(worker.dump(round_.context), 1) == {1}
    assert later.opened(worker.dump(later.context), 1) == {2}
    worker.discard(round_.context)
    worker.discard(round_.context)
    with pytest.raises(ChildDied):
        worker.dump(round_.context)
    assert later.opened(worker.dump(later.context), 1) == {2}


def test_beginning_again_starts_from_nothing(worker: SumWorker, round_: Round) -> None:
    for value in (1, 2):
        worker.begin(LAYOUT, round_.scheme, round_.context)
        assert worker.add(round_.context, round_.frame(value)) == 1
    assert round_.opened(worker.dump(round_.context), 1) == {2}


def test_refusals_keep_their_names_and_the_total(worker: SumWorker, round_: Round) -> None:
    worker.begin(LAYOUT, round_.scheme, round_.context)
    good = round_.frame(3)
    worker.add(round_.context, good)
    before = worker.dump(round_.context)
    bad = round_.folder / "bad"
    for data in (b"", good.read_bytes()[:-1], good.read_bytes() + b"\0" * 10_000_000):
        bad.write_bytes(data)
        with pytest.raises(UndecodableMessage):
            worker.add(round_.context, bad)
    with pytest.raises(StorageError, match="absent"):
        worker.add(round_.context, round_.folder / "absent")
    assert worker.dump(round_.context) == before


def test_hundreds_of_mutated_frames_neither_pass_nor_kill(worker: SumWorker, round_: Round) -> None:
    worker.begin(LAYOUT, round_.scheme, round_.context)
    good = round_.frame(3)
    worker.add(round_.context, good)
    before, pid = worker.dump(round_.context), worker.pid
    rng = random.Random(20_261_123)
    mutant = round_.folder / "mutant"
    for _ in range(300):
        data = bytearray(good.read_bytes())
        for _ in range(rng.randint(1, 4)):
            match rng.randrange(5):
                case 0:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                case 1:
                    start = rng.randrange(min(200, len(data)))
                    data[start : start + 8] = rng.randbytes(8)
                case 2:
                    del data[rng.randrange(1, len(data)) :]
                case 3:
                    start = rng.randrange(len(data))
                    data[start:start] = rng.randbytes(rng.randint(1, 64))
                case 4:
                    start = rng.randrange(len(data))
                    length = min(rng.randint(1, 4096), len(data) - start)
                    data[start : start + length] = b"\xff" * length
        mutant.write_bytes(data)
        with pytest.raises(LlmOsError) as caught:
            worker.add(round_.context, mutant)
        assert not isinstance(caught.value, ChildDied)
    assert worker.pid == pid
    assert worker.dump(round_.context) == before


def test_a_dead_worker_is_said_to_be_dead_until_its_total_is_begun_again(
    worker: SumWorker, round_: Round
) -> None:
    frames = [round_.frame(value) for value in (4, 5)]
    worker.begin(LAYOUT, round_.scheme, round_.context)
    worker.add(round_.context, frames[0])
    undisturbed = worker.dump(round_.context)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    for _ in range(2):  # the call that finds it dead, and the one that meets a fresh process
        with pytest.raises(ChildDied):
            worker.add(round_.context, frames[1])
    with pytest.raises(ChildDied):
        worker.dump(round_.context)
    worker.begin(LAYOUT, round_.scheme, round_.context)
    worker.add(round_.context, frames[0])
    assert worker.dump(round_.context) == undisturbed
    assert worker.add(round_.context, frames[1]) == 2


def fold(worker: SumWorker, layout: SumLayout, round_: Round, frame: Path) -> None:
    worker.begin(layout, round_.scheme, round_.context)
    worker.add(round_.context, frame)


def test_a_total_beyond_the_memory_limit_does_not_take_the_parent_along(round_: Round) -> None:
    worker = SumWorker(memory_limit_bytes=150 << 20)
    huge = replace(LAYOUT, count=40_000_000)
    try:
        fold(worker, LAYOUT, round_, round_.frame(1))  # the control: a small one fits
        frame = round_.folder / "huge"
        with frame.open("wb") as file:
            file.truncate(cipher_for(round_.scheme, huge).frame_bytes())
        with pytest.raises(ChildDied):
            fold(worker, huge, round_, frame)
    finally:
        worker.close()


def test_no_operation_takes_a_key() -> None:
    taken = {
        name
        for operation in OPERATIONS.values()
        for name in inspect.signature(operation).parameters
    }
    assert taken == {
        *("total_id", "path", "scheme", "count", "bits", "max_devices"),
        *("run", "round", "key_id", "group"),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_folding_process_never_loads_what_could_decrypt(
    worker: SumWorker, round_: Round
) -> None:
    worker.begin(LAYOUT, round_.scheme, round_.context)
    worker.add(round_.context, round_.frame(1))
    worker.dump(round_.context)
    assert "sealapi" not in Path(f"/proc/{worker.pid}/maps").read_text()
    if round_.scheme is Scheme.PUBLIC_KEY:  # the control: this process made the keys
        assert "sealapi" in Path("/proc/self/maps").read_text()
