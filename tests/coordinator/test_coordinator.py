"""Runs are conducted one after the other, and end when they are told to or cannot go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from coordinator.federation.rounds import AdapterApplied, RoundFailed, UpdateStored
from coordinator.fleet.transport_fleet import AboutDevice
from shared.errors import LlmOsError, ModelError, StorageError
from shared.types import DeviceId, FloatMatrix, RoundNumber, RunId
from shared.wire import topics
from shared.wire.messages import About, Invitation, Opened, Presence
from tests.support.coordination import RUN, FixedFeatures, World

OTHER = RunId("other")


def spooled(world: World) -> list[Path]:
    return [path for path in (world.home / "updates").rglob("*") if path.is_file()]


def over(world: World, run: RunId) -> bool:
    return bool(world.store.milestones(run).keys() & {"finished", "failed", "stopped"})


def submit_second(world: World) -> None:
    """The same job once more, under another name."""
    first = world.store.run(RUN)
    plan = first.plan.replace('"run":"trial"', '"run":"other"')
    assert plan != first.plan
    world.store.add_run(OTHER, plan, first.probe, now=world.time.now() + 1)


def test_runs_follow_one_another_in_the_order_they_were_submitted(world: World) -> None:
    world.submit(training={"rounds": 1})
    submit_second(world)
    world.add_devices("abc")
    world.start()
    assert world.run(lambda: over(world, OTHER))
    ends = {run: world.store.milestones(run)["finished"] for run in (RUN, OTHER)}
    assert ends[RUN].at <= world.store.milestones(OTHER)["started"].at
    # Updates differ by device and round alone, so two equal jobs learn the same.
    assert ends[RUN].facts == ends[OTHER].facts


def test_a_run_that_was_submitted_later_is_found(world: World) -> None:
    world.add_devices("abc")
    world.start()
    world.run_for(10)
    world.submit(training={"rounds": 1})
    assert world.run()


def test_stopping_a_run_keeps_what_it_has_learnt_and_forgets_what_was_under_way(
    world: World,
) -> None:
    world.submit(training={"rounds": 5})
    *_, last = world.add_devices("abc")
    world.start()
    world.run(lambda: any(isinstance(row, AdapterApplied) for row in world.rows))
    last.withholds = True
    world.run(lambda: len(world.counted(2)) == 2)
    assert spooled(world)
    world.coordinator.stop_run(RUN, "enough")
    facts = world.store.milestones(RUN)["stopped"].facts
    (applied,) = [row for row in world.rows if isinstance(row, AdapterApplied)]
    assert facts == {"adapter": applied.adapter, "reason": "enough"}
    assert world.rows[-1] == RoundFailed("stopped", "enough")
    assert spooled(world) == []
    rows = len(world.rows)
    world.run_for(60)
    assert len(world.rows) == rows
    assert last.offers[RUN, RoundNumber(2)].answered, "it is told that nobody waits for it"


def test_a_run_may_be_stopped_before_it_begins_and_after_it_has_ended(world: World) -> None:
    world.submit(training={"rounds": 1})
    submit_second(world)
    world.add_devices("abc")
    world.start()
    world.run(lambda: bool(world.rows))
    world.coordinator.stop_run(OTHER, "not needed")
    world.run(lambda: over(world, RUN))
    world.coordinator.stop_run(RUN, "too late")
    world.run_for(30)
    assert set(world.store.milestones(OTHER)) == {"stopped"}
    assert set(world.store.milestones(RUN)) == {"started", "finished"}


class Failing(FixedFeatures):
    """An encoder that fails a few times."""

    failures: list[LlmOsError]

    def encode(self, texts: Sequence[str], *, adapter: bytes = b"") -> FloatMatrix:
        if type(self).failures:
            raise type(self).failures.pop()
        return super().encode(texts, adapter=adapter)


def failing(*failures: LlmOsError) -> Callable[[str, int], Failing]:
    return type("Failing", (Failing,), {"failures": list(failures)})


def test_a_base_model_that_cannot_be_used_fails_the_run_with_its_reason(world: World) -> None:
    world.submit()
    world.make_model = failing(ModelError("the weights are damaged"))
    world.start()
    world.run()
    facts = world.store.milestones(RUN)["failed"].facts
    assert facts == {"code": "model", "reason": "the weights are damaged"}


def test_a_full_disk_while_embedding_fails_nothing(world: World) -> None:
    world.submit(training={"rounds": 1})
    world.make_model = failing(StorageError("full"), StorageError("full"))
    world.add_devices("abc")
    world.start()
    world.run()
    assert "finished" in world.store.milestones(RUN)


@pytest.mark.parametrize("topic", ["llmos/v1/up/device-a", "llmos/v1/up/nobody", "x", ""])
@pytest.mark.parametrize("payload", [b"", b"junk", b"\x80", b"\xff" * 100_000])
def test_whatever_arrives_the_coordinator_goes_on(world: World, topic: str, payload: bytes) -> None:
    world.add_devices("a")
    world.start()
    world.coordinator.receive(topic, payload)


def test_peers_may_not_send_what_is_others_to_send(world: World) -> None:
    """Such a message is refused, and what it says does not happen."""
    world.submit(training={"rounds": 1})
    bad, *_ = world.add_devices("abc")
    world.start()
    world.run(lambda: bool(bad.invitations))
    for message in (Invitation("{}", "0" * 64, 1, b""), Opened("0" * 64, 1, 3)):
        bad.send(message, RUN, RoundNumber(1))
    impostor = bad.post.seal(Presence("idle"))
    bad.transport.publish(topics.up(DeviceId(topics.KEY_HOLDER)), impostor)
    world.run()
    assert "finished" in world.store.milestones(RUN)
    assert len([row for row in world.rows if isinstance(row, UpdateStored)]) == 3


@pytest.mark.parametrize("state", ["", "IDLE", "x" * 300_000])
def test_a_device_is_idle_or_training_and_nothing_else(world: World, state: str) -> None:
    """What it said is kept for as long as the coordinator runs, and shown."""
    (device,) = world.add_devices("a")
    world.start()
    world.run_for(1)
    device.send(Presence(state))
    world.run_for(1)
    assert world.coordinator.fleet.heard(device.name)[1] == "idle"
    device.send(Presence("training"))
    world.run_for(1)
    assert world.coordinator.fleet.heard(device.name)[1] == "training"


def test_what_a_device_tells_of_itself_is_remembered_and_nonsense_is_not(world: World) -> None:
    world.add_devices("ab")
    world.start()
    world.devices["device-a"].send(About("0.1.0", "budget-spent", "0.00"))
    world.devices["device-b"].send(About("0.1.0", "<script>", ""))
    world.run_for(1.0)
    fleet = world.coordinator.fleet
    assert fleet.about(DeviceId("device-a")) == AboutDevice("0.1.0", "budget-spent", 0.0)
    assert fleet.about(DeviceId("device-b")) is None
    assert world.failures == []
