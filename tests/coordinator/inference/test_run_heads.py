"""Heads are found by run, by adapter, or because they were finished last."""

from __future__ import annotations

import pytest

from coordinator.inference.run_heads import run_heads
from coordinator.releases import RELEASED
from shared.errors import RoundError, RunNotFound
from shared.models.adapter import Adapter
from shared.types import RunId
from tests.support import tiny_graph as tiny
from tests.support.coordination import World
from tests.support.releasing import CALIBRATION, finish_run

FIRST: Adapter = tiny.tiny_adapter("lora", seed=1)
SECOND: Adapter = tiny.tiny_adapter("lora", seed=2)


def test_a_head_is_found_by_run_by_adapter_and_as_the_last(world: World) -> None:
    finish_run(world, "first", FIRST, at=1.0)
    finish_run(world, "second", SECOND, at=2.0)
    find = run_heads(world.store)
    assert find(run="first").digest == FIRST.digest
    assert find(adapter=SECOND.digest).run == "second"
    last = find()
    assert (last.run, last.adapter.data) == ("second", SECOND.to_bytes())
    assert (last.temperature, last.calibrated) == (1.0, False)


def test_a_release_brings_its_temperature(world: World) -> None:
    finish_run(world, "first", FIRST)
    fitted = CALIBRATION.model_copy(update={"temperature": 1.75})
    facts = {"calibration": fitted.model_dump_json()}
    world.store.add_milestone(RunId("first"), RELEASED, facts, now=2.0)
    head = run_heads(world.store)(run="first")
    assert (head.temperature, head.calibrated) == (1.75, True)


def test_what_there_is_not_is_said(world: World) -> None:
    find = run_heads(world.store)
    with pytest.raises(RunNotFound, match="no run of a task with labels has finished"):
        find()
    with pytest.raises(RunNotFound, match="r9"):
        find(run="r9")
    finish_run(world, "first", FIRST)
    with pytest.raises(RunNotFound, match="0000"):
        find(adapter="0" * 64)
    plan = world.submit(training={"rounds": 1})
    with pytest.raises(RoundError, match="has not finished"):
        find(run=plan.run)
