"""The running totals are a function of the stored updates, whatever happens to their process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from coordinator.federation.secure_sum import SecureSum
from shared.crypto.sum_cipher import (
    KeyPair,
    Scheme,
    SumContext,
    SumLayout,
    cipher_for,
    opener_for,
)
from shared.crypto.sum_worker import SumWorker
from shared.errors import ChildDied, CohortTooSmall, ProtocolError, UndecodableMessage
from shared.types import IntVector, RoundNumber, RunId

LAYOUT = SumLayout(count=50, bits=12, max_devices=8)


class Bench:
    """Stored updates of one round, and who adds and opens them."""

    def __init__(self, folder: Path, scheme: Scheme, worker: SumWorker) -> None:
        self.folder = folder
        self.scheme = scheme
        self.worker = worker
        self.opener = opener_for(scheme, LAYOUT)
        self.keys: KeyPair = self.opener.new_key_pair()
        self.context = SumContext(RunId("run"), RoundNumber(1), self.keys.key_id)

    def sum(self) -> SecureSum:
        return SecureSum(self.worker, LAYOUT, self.scheme, self.context)

    def stored(self, seed: int) -> tuple[Path, IntVector]:
        values = np.random.default_rng(seed).integers(-2000, 2001, LAYOUT.count)
        frame = cipher_for(self.scheme, LAYOUT).encrypt(
            values, public_key=self.keys.public, context=self.context
        )
        path = self.folder / f"{seed}.frame"
        path.write_bytes(frame)
        return path, values

    def open(self, secure_sum: SecureSum, *, devices: int, group: int = 0) -> list[int]:
        """What a total opens to, which fails unless so many devices are in it."""
        values = self.opener.open(
            secure_sum.total(group),
            secret_key=self.keys.secret,
            context=self.context,
            devices=devices,
        )
        return [int(value) for value in values]

    def kill_worker(self) -> None:
        assert self.worker.pid is not None
        os.kill(self.worker.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def worker() -> Iterator[SumWorker]:
    worker = SumWorker()
    yield worker
    worker.close()


@pytest.fixture(params=list(Scheme))
def bench(request: pytest.FixtureRequest, tmp_path: Path, worker: SumWorker) -> Bench:
    return Bench(tmp_path, Scheme(request.param), worker)


def test_the_total_is_the_plain_sum_in_any_order(bench: Bench) -> None:
    stored = [bench.stored(seed) for seed in range(3)]
    forwards, backwards = bench.sum(), bench.sum()
    for path, _ in stored:
        forwards.fold(path)
    total = forwards.total()
    assert bench.open(forwards, devices=3) == sum(values for _, values in stored).tolist()  # type: ignore[union-attr]
    for path, _ in reversed(stored):
        backwards.fold(path)
    assert backwards.total() == total


def test_groups_are_summed_apart_and_come_back_after_their_worker_died(bench: Bench) -> None:
    stored = [bench.stored(seed) for seed in range(5)]
    secure_sum = bench.sum()
    for number, (path, _) in enumerate(stored):
        secure_sum.fold(path, number % 2)
    before = [secure_sum.total(group) for group in (0, 1)]
    bench.kill_worker()
    assert [secure_sum.total(group) for group in (1, 0)] == before[::-1]
    for group, devices in ((0, 3), (1, 2)):
        expected = np.sum([values for _, values in stored[group::2]], axis=0)
        assert bench.open(secure_sum, devices=devices, group=group) == expected.tolist()


def test_discarding_frees_every_group_and_the_files_bring_them_back(bench: Bench) -> None:
    (first, a), (second, b) = bench.stored(1), bench.stored(2)
    secure_sum = bench.sum()
    secure_sum.fold(first, 0)
    secure_sum.fold(second, 1)
    secure_sum.discard()
    with pytest.raises(ChildDied):
        bench.worker.dump(bench.context)
    assert bench.open(secure_sum, devices=1, group=0) == a.tolist()
    assert bench.open(secure_sum, devices=1, group=1) == b.tolist()


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_a_worker_that_dies_costs_nothing(bench: Bench, moment: str) -> None:
    (first, a), (second, b) = bench.stored(1), bench.stored(2)
    secure_sum = bench.sum()
    if moment == "before":
        secure_sum.fold(first)
        secure_sum.discard()
        bench.kill_worker()
        secure_sum.fold(second)
    elif moment == "between":
        secure_sum.fold(first)
        bench.kill_worker()
        secure_sum.fold(second)
    else:
        secure_sum.fold(first)
        secure_sum.fold(second)
        bench.kill_worker()
    assert bench.open(secure_sum, devices=2) == (a + b).tolist()


def test_a_refused_update_leaves_the_total_as_it_was(bench: Bench) -> None:
    good, values = bench.stored(1)
    bad = bench.folder / "bad"
    secure_sum = bench.sum()
    secure_sum.fold(good)
    before = secure_sum.total()
    for junk in (b"", b"junk", good.read_bytes()[:-1], good.read_bytes() + b"x"):
        bad.write_bytes(junk)
        with pytest.raises(UndecodableMessage):
            secure_sum.fold(bad)
    assert secure_sum.total() == before
    # And once more when the total has to be built again: the bad one is not among its files.
    bench.kill_worker()
    assert secure_sum.total() == before
    assert bench.open(secure_sum, devices=1) == values.tolist()


def test_an_update_of_another_round_is_refused(bench: Bench) -> None:
    path, _ = bench.stored(1)
    other = SumContext(RunId("run"), RoundNumber(2), bench.keys.key_id)
    secure_sum = SecureSum(bench.worker, LAYOUT, bench.scheme, other)
    with pytest.raises(ProtocolError, match="another round"):
        secure_sum.fold(path)
    with pytest.raises(CohortTooSmall):
        secure_sum.total()


class Fragile:
    """A real worker whose process ends after certain calls, as one that lacks memory does."""

    def __init__(self, worker: SumWorker, dies: Callable[[Path], bool]) -> None:
        self._worker = worker
        self._dies = dies
        self.deaths = 0
        self.begin = worker.begin
        self.dump = worker.dump
        self.discard = worker.discard

    def add(self, context: SumContext, path: Path) -> int:
        if self._dies(path):
            self.deaths += 1
            self._worker.close()
            raise ChildDied("out of memory")
        return self._worker.add(context, path)


def test_an_update_that_kills_the_worker_twice_is_not_counted(bench: Bench) -> None:
    (good, a), (poison, _), (later, b) = (bench.stored(seed) for seed in range(3))
    fragile = Fragile(bench.worker, lambda path: path == poison)
    secure_sum = SecureSum(fragile, LAYOUT, bench.scheme, bench.context)
    secure_sum.fold(good)
    with pytest.raises(ChildDied):
        secure_sum.fold(poison)
    assert fragile.deaths == 2
    secure_sum.fold(later)
    assert bench.open(secure_sum, devices=2) == (a + b).tolist()
