"""A coordinator restored from a backup is an older state of itself, and goes on with its run.

What happened after the backup is lost to it, and to nobody else: devices have released their
updates of those rounds, the key holder has fixed sets and opened sums, and both have seen higher
sequence numbers. A round that went on the same way is opened again, with the same sum; one that
cannot fails with its reason; and the next one is conducted.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coordinator.federation.rounds import (
    AdapterApplied,
    Closed,
    Committed,
    Invited,
    Planned,
    RoundFailed,
    SetFixed,
    UpdateStored,
)
from coordinator.store.backup import make_backup, restore_backup
from shared.crypto.sum_worker import SumWorker
from shared.errors import AlreadyOpened, CohortTooSmall, ReplayedMessage
from shared.job import RunPlan
from tests.support.coordination import RUN, World

ROUNDS = 6
BEFORE, LOST = 1, 4
"""So many rounds are over when the backup is made, and so many more when the rest is lost."""

MOMENTS = (Planned, Committed, SetFixed, UpdateStored, Closed)


def begin(world: World, holder: SumWorker, rounds: int = ROUNDS) -> RunPlan:
    plan = world.submit(
        training={"rounds": rounds}, protection={"scheme": "public-key", "min_devices": 3}
    )
    for device in world.add_devices("abc"):
        device.releases_once = True
    world.add_key_holder(holder)
    world.start()
    return plan


def back_up(world: World) -> Path:
    target = world.folder / "backup.tar"
    make_backup(world.home, store_at="", target=target, now=world.time.now())
    return target


def lose_and_restore(world: World, backup: Path) -> None:
    """The coordinator's machine is lost; another one takes its place."""
    world.kill()
    shutil.rmtree(world.home)
    world.committed.clear()
    restore_backup(world.home, store_at="", source=backup, now=world.time.now())
    world.store = world._open_store()
    world.committed += [row.transition for row in world.store.transitions(RUN)]
    world.start()


def applied(world: World) -> list[int]:
    """The rounds whose result was taken, in the order they were conducted."""
    rows = world.store.transitions(RUN)
    return [row.round for row in rows if isinstance(row.transition, AdapterApplied)]


def failed(world: World) -> dict[int, str]:
    rows = world.store.transitions(RUN)
    return {
        row.round: row.transition.code for row in rows if isinstance(row.transition, RoundFailed)
    }


def assert_learnt(world: World, plan: RunPlan) -> None:
    """Exactly from the rounds that were applied, each with all devices."""
    adapter = world.first_adapter()
    for number in applied(world):
        mean = np.array(world.expected_mean(plan, number, list(world.devices)))
        adapter = adapter.moved(mean * plan.step_ratios)
    learnt = world.adapter()
    for name, tensor in adapter.tensors.items():
        np.testing.assert_allclose(learnt.tensors[name], tensor, rtol=1e-5, atol=1e-6)


def in_round(number: int, kind: type) -> Callable[[World], bool]:
    def reached(world: World) -> bool:
        begun = 0
        for row in world.rows:
            begun += isinstance(row, Planned)
            if begun == number and isinstance(row, kind):
                return True
        return False

    return reached


@pytest.mark.parametrize("kind", MOMENTS, ids=lambda kind: kind.__name__)
def test_a_backup_in_the_middle_of_a_run_finishes_it(
    world: World, adders: tuple[SumWorker, SumWorker], kind: type
) -> None:
    plan = begin(world, adders[1], rounds=2)
    reached = in_round(1, kind)
    assert world.run(lambda: reached(world))
    lose_and_restore(world, back_up(world))
    assert world.run()
    assert "finished" in world.store.milestones(RUN)
    assert applied(world) == [1, 2], "nothing had happened since"
    assert_learnt(world, plan)


@pytest.mark.parametrize("kind", MOMENTS, ids=lambda kind: kind.__name__)
def test_rounds_that_were_lost_fail_and_the_run_goes_on_after_them(
    world: World, adders: tuple[SumWorker, SumWorker], kind: type
) -> None:
    """More of them than may fail in a row: they say nothing of the next."""
    plan = begin(world, adders[1])
    here = BEFORE + 1
    reached, gone = in_round(here, kind), in_round(BEFORE + LOST, AdapterApplied)
    assert world.run(lambda: reached(world))
    backup = back_up(world)
    assert world.run(lambda: gone(world))
    lose_and_restore(world, backup)
    assert world.run()
    assert "finished" in world.store.milestones(RUN)
    assert {1, ROUNDS} <= set(applied(world))
    assert applied(world) == [n for n in range(1, ROUNDS + 1) if n not in failed(world)]
    assert (
        set(range(here + 1, BEFORE + LOST + 1))
        <= set(failed(world))
        <= {*range(here, BEFORE + LOST + 1)}
    )
    assert set(failed(world).values()) <= {CohortTooSmall.code, AlreadyOpened.code}
    # A round whose updates were all there is opened again, with the same sum.
    assert (here in applied(world)) == (kind is Closed)
    assert_learnt(world, plan)


def test_a_run_of_which_nothing_is_left_to_learn_has_failed(
    world: World, adders: tuple[SumWorker, SumWorker]
) -> None:
    begin(world, adders[1], rounds=4)
    assert world.run(lambda: in_round(1, Planned)(world))
    backup = back_up(world)
    assert world.run()
    lose_and_restore(world, backup)
    assert world.run()
    assert list(failed(world)) == [1, 2, 3, 4]
    assert "failed" in world.store.milestones(RUN)


def test_the_same_backup_may_be_restored_again(
    world: World, adders: tuple[SumWorker, SumWorker]
) -> None:
    """Each time under sequence numbers that nobody has seen."""
    plan = begin(world, adders[1])
    assert world.run(lambda: in_round(1, Closed)(world))
    backup = back_up(world)
    for last in (2, 4):
        assert world.run(lambda last=last: in_round(last, AdapterApplied)(world))  # type: ignore[misc]
        lose_and_restore(world, backup)
    assert world.run()
    assert {1, 5, 6} <= set(applied(world))
    assert_learnt(world, plan)


def test_nobody_is_heard_by_a_coordinator_whose_numbers_fell_back(
    world: World, adders: tuple[SumWorker, SumWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control: what restoring the numbers as they were would do."""
    monkeypatch.setattr("coordinator.store.backup.sequence_after", lambda kept, *, now: 1)
    begin(world, adders[1])
    assert world.run(lambda: in_round(1, Invited)(world))
    backup = back_up(world)
    assert world.run(lambda: in_round(3, AdapterApplied)(world))
    lose_and_restore(world, backup)
    with pytest.raises(ReplayedMessage):
        world.run(for_s=120)
