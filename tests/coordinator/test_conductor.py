"""A run learns from exactly the updates that were counted, whatever devices do or fail to do.

The coordinator is the real one, over the real wire on virtual time. Devices follow
scripts; what a test lets one of them do wrong, any device that joined could do.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from coordinator import conductor
from coordinator.federation.rounds import (
    AdapterApplied,
    Closed,
    Committed,
    DeviceDeclined,
    Invited,
    KeyAnnounced,
    Planned,
    RoundFailed,
    SetFixed,
    SumOpened,
    Transition,
    UpdateStored,
)
from coordinator.fleet.transport_fleet import AboutDevice
from coordinator.store.store import Store
from coordinator.views import view_run
from shared.crypto.sum_cipher import SumContext, key_id_of, opener_for
from shared.crypto.sum_groups import commitment_to, drawn_groups, joined
from shared.crypto.sum_worker import SumWorker
from shared.errors import ChildDied, ConfigError, StorageError
from shared.files import digest_of
from shared.job import RunPlan
from shared.key_holder.approvals import Approvals
from shared.models.adapter import Adapter
from shared.types import DeviceId, Digest, FloatMatrix, FloatVector, RoundNumber, RunId
from shared.wire import topics
from shared.wire.envelope import Post, open_sealed
from shared.wire.messages import (
    BlobRequest,
    Contribution,
    Declined,
    KeyAnnouncement,
    Message,
    Opened,
    OpeningRefused,
    Receipt,
    SumSet,
)
from sim.virtual_time import drive
from tests.support.coordination import RUN, Crash, FixedFeatures, Offer, ScriptedDevice, World

ABC = ["device-a", "device-b", "device-c"]
ROUND = RoundNumber(1)
PUBLIC_KEY = {"scheme": "public-key"}


def of_kind(world: World, kind: type[Any]) -> list[Any]:
    return [row for row in world.rows if isinstance(row, kind)]


def assert_learnt_from(world: World, plan: RunPlan, *rounds: list[str]) -> None:
    """The run has finished with the mean of exactly these devices' updates."""
    assert world.over
    assert world.rows == [row.transition for row in world.store.transitions(RUN)]
    assert of_kind(world, RoundFailed) == []
    assert "finished" in world.store.milestones(RUN)
    assert world.adapter().digest == world.expected_adapter(plan, rounds).digest
    for number, names in enumerate(rounds, start=1):
        assert sorted(world.counted(number)) == sorted(names)


# A run in which nothing goes wrong


@pytest.mark.parametrize("scheme", ["clear", "public-key"])
def test_a_run_learns_the_exact_mean_of_its_devices(
    world: World, adders: tuple[SumWorker, SumWorker], scheme: str
) -> None:
    plan = world.submit(protection={"scheme": scheme})
    world.add_devices("abc")
    world.add_key_holder(adders[1])
    world.start()
    assert world.run()
    assert_learnt_from(world, plan, ABC, ABC)
    for number, opened in enumerate(of_kind(world, SumOpened), start=1):
        data = world.store.blob(opened.digest).read_bytes()
        vectors = [world.devices[name].values(plan, number) for name in ABC]
        assert np.frombuffer(data, "<i8").tolist() == np.sum(vectors, axis=0).tolist()
        assert opened.devices == 3


def test_every_device_gets_its_receipt_and_nothing_stays_spooled(world: World) -> None:
    world.submit()
    world.add_devices("abc")
    world.start()
    world.run()
    world.run_for(10)
    for name in ABC:
        counted = [world.counted(number)[name] for number in (1, 2)]
        assert world.devices[name].receipts == counted
        assert world.devices[name].refusals == []
    assert [path for path in (world.home / "updates").rglob("*") if path.is_file()] == []


# Who is asked, and who answers


def test_a_device_that_sends_again_counts_once_and_gets_its_receipt_again(world: World) -> None:
    plan = world.submit(cohort={"lease_s": 30.0})
    first, _, last = world.add_devices("abc")
    first.insists, last.withholds = True, True
    world.start()
    world.run(lambda: len(first.receipts) >= 3)
    assert first.receipts == [first.receipts[0]] * 3
    assert sorted(world.counted(1)) == ["device-a", "device-b"]
    last.withholds = False
    world.run()
    assert_learnt_from(world, plan, ABC, ABC)


def test_a_second_and_different_update_is_refused_and_changes_nothing(world: World) -> None:
    plan = world.submit()
    first, _, last = world.add_devices("abc")
    last.withholds = True
    world.start()
    world.run(lambda: bool(first.receipts))
    second = first.prepare(plan, ROUND, np.ones(plan.layout.count, np.int64))
    first.announce(second)
    world.run(lambda: bool(first.refusals))
    assert first.refusals == [(second.contribution.digest, "round.duplicate")]
    assert first.receipts == [world.counted(1)["device-a"]]
    last.withholds = False
    world.run()
    assert_learnt_from(world, plan, ABC, ABC)


WRONG: dict[str, tuple[Callable[[ScriptedDevice], None], str]] = {}


def wrong(code: str) -> Callable[[Callable[[ScriptedDevice], None]], None]:
    def register(script: Callable[[ScriptedDevice], None]) -> None:
        WRONG[script.__name__] = (script, code)

    return register


@wrong("protocol")
def one_byte_too_long(device: ScriptedDevice) -> None:
    device.tamper = lambda frame: frame + b"x"


@wrong("protocol")
def one_byte_too_short(device: ScriptedDevice) -> None:
    device.tamper = lambda frame: frame[:-1]


@wrong("protocol.undecodable")
def junk_of_the_right_length(device: ScriptedDevice) -> None:
    device.tamper = lambda frame: b"\xff" * len(frame)


@wrong("protocol.digest")
def a_flipped_bit_in_the_payload(device: ScriptedDevice) -> None:
    device.tamper = lambda frame: frame[:-1] + bytes([frame[-1] ^ 1])


@wrong("protocol.wrong_key")
def another_key(device: ScriptedDevice) -> None:
    device.alter = lambda offer: dataclasses.replace(offer, key_id="0" * 16)


@wrong("protocol.wrong_key")
def another_scheme(device: ScriptedDevice) -> None:
    device.alter = lambda offer: dataclasses.replace(offer, scheme="public-key")


@wrong("protocol")
def another_devices_name(device: ScriptedDevice) -> None:
    device.alter = lambda offer: dataclasses.replace(offer, device="device-a")


@wrong("protocol.wrong_key")
def a_frame_of_another_round(device: ScriptedDevice) -> None:
    # The round stands behind magic, version, kind, scheme, parameters, key and run.
    device.tamper = lambda frame: frame[:84] + (9).to_bytes(8, "little") + frame[92:]


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_wrong_update_is_refused_with_its_reason_and_changes_nothing(
    world: World, name: str
) -> None:
    script, code = WRONG[name]
    plan = world.submit(training={"rounds": 1})
    *_, bad = world.add_devices("abcd")
    script(bad)
    world.start()
    assert world.run()
    digests = {digest for digest, _ in bad.refusals}
    assert {code for _, code in bad.refusals} == {code}
    assert digests == {offer.contribution.digest for offer in bad.offers.values()}
    assert bad.receipts == []
    assert_learnt_from(world, plan, ABC)


def test_what_is_not_the_announced_update_is_never_counted(world: World) -> None:
    """The announced digest is right, what is handed out is not: it is fetched again, for ever."""
    plan = world.submit(training={"rounds": 1})
    *_, bad = world.add_devices("abcd")
    bad.alter = lambda offer: dataclasses.replace(offer, digest=digest_of(b"something else"))
    bad.withholds = True
    world.start()
    world.run()
    assert_learnt_from(world, plan, ABC)


@pytest.mark.parametrize("digest", ["../../../../../x", "", "A" * 64, "0" * 63])
def test_a_digest_that_is_none_touches_no_file_and_does_not_stop_the_device(
    world: World, digest: str
) -> None:
    plan = world.submit(training={"rounds": 1})
    *_, bad = world.add_devices("abcd")
    world.start()
    world.run(lambda: ROUND in bad.invitations)
    before = sorted(path.name for path in world.folder.rglob("*"))
    offer = Contribution("device-d", digest, 1, plan.scheme, "0" * 16)
    honest = bad.offers[RUN, ROUND].contribution
    bad.send(dataclasses.replace(honest, digest=digest), RUN, ROUND)
    bad.send(offer, RUN, ROUND)
    world.run()
    assert sorted(path.name for path in world.folder.rglob("*") if "x" in path.name) == [
        name for name in before if "x" in name
    ]
    assert_learnt_from(world, plan, [*ABC, "device-d"])


def test_a_device_that_was_not_invited_is_refused(world: World) -> None:
    plan = world.submit(cohort={"devices": 3}, training={"rounds": 1})
    _, _, last, stranger = world.add_devices("abcd")
    stranger.hides = True
    last.withholds = True
    world.start()
    world.run(lambda: len(world.counted(1)) == 2)
    offer = stranger.prepare(plan, ROUND, stranger.values(plan, 1))
    stranger.announce(offer)
    world.run(lambda: bool(stranger.refusals))
    assert stranger.refusals == [(offer.contribution.digest, "round.closed")]
    last.withholds = False
    world.run()
    assert_learnt_from(world, plan, ABC)


def test_a_device_that_never_joined_is_not_even_answered(world: World) -> None:
    plan = world.submit(training={"rounds": 1})
    world.add_devices("abc")
    stranger = world.add_device("stranger", joins=False)
    stranger.hides = True
    world.start()
    world.run(lambda: bool(world.rows))
    stranger.announce(stranger.prepare(plan, ROUND, stranger.values(plan, 1)))
    world.run()
    assert (stranger.receipts, stranger.refusals, stranger.invitations) == ([], [], [])
    assert_learnt_from(world, plan, ABC)


def test_nobody_speaks_for_another_device(world: World) -> None:
    """A device that joined signs with its own key; the branch of another is closed to it."""
    plan = world.submit(training={"rounds": 1})
    victim, _, _, bad = world.add_devices("abcd")
    victim.silent = True
    world.start()
    world.run(lambda: len(world.counted(1)) == 3)
    offer = bad.prepare(plan, ROUND, np.ones(plan.layout.count, np.int64))
    forged = dataclasses.replace(offer.contribution, device="device-a")
    sealed = bad.post.seal(forged, run=RUN, round_=ROUND)
    bad.transport.publish(topics.up(DeviceId("device-a")), sealed)
    world.run()
    assert_learnt_from(world, plan, ["device-b", "device-c", "device-d"])


def test_two_devices_may_send_the_same_bytes_in_clear(world: World) -> None:
    """Equal data give equal updates; each device's own copy is counted, once each."""
    plan = world.submit(training={"rounds": 1})
    first, second, _ = world.add_devices("abc")
    second.values = first.values  # type: ignore[method-assign]
    world.start()
    world.run()
    assert_learnt_from(world, plan, ABC)
    assert world.counted(1)["device-a"] == world.counted(1)["device-b"]


def test_a_copied_ciphertext_is_refused_and_costs_nobody_the_round(
    world: World, adders: tuple[SumWorker, SumWorker]
) -> None:
    plan = world.submit(protection=PUBLIC_KEY, training={"rounds": 1})
    victim, _, last, thief = world.add_devices("abcd")
    world.add_key_holder(adders[1])
    thief.withholds = last.withholds = True
    world.start()
    world.run(lambda: bool(victim.receipts))
    stolen = dataclasses.replace(victim.offers[RUN, ROUND])
    stolen.contribution = dataclasses.replace(stolen.contribution, device="device-d")
    stolen.answered = False
    thief.offers[RUN, ROUND] = stolen
    thief.withholds = False
    thief.announce(stolen)
    world.run(lambda: bool(thief.refusals))
    assert thief.refusals == [(stolen.contribution.digest, "round.duplicate")]
    last.withholds = False
    world.run()
    assert_learnt_from(world, plan, ABC)


def test_a_copy_that_arrives_at_the_same_time_is_counted_once(
    world: World, adders: tuple[SumWorker, SumWorker]
) -> None:
    """Nothing of the update has arrived when both bind themselves to it; only one can be first."""
    world.submit(protection=PUBLIC_KEY, training={"rounds": 1})
    victim, _, last, thief = world.add_devices("abcd")
    world.add_key_holder(adders[1])
    victim.withholds = last.withholds = True

    def invited(what: object) -> bool:
        if isinstance(what, Invited):
            thief.silent = True  # it offers nothing of its own
        return False

    world.crash_at = invited
    world.start()
    world.run(lambda: bool(victim.offers))
    copied = dataclasses.replace(victim.offers[RUN, ROUND])
    copied.contribution = dataclasses.replace(copied.contribution, device="device-d")
    thief.offers[RUN, ROUND] = copied
    thief.announce(copied)
    world.run(lambda: bool(thief.refusals or victim.refusals))
    victim.withholds = last.withholds = False
    world.run()
    assert len(world.counted(1)) == len(set(world.counted(1).values())) == 3
    assert "finished" in world.store.milestones(RUN)


# Late updates


def test_a_late_update_of_a_past_round_is_answered_by_what_became_of_it(world: World) -> None:
    plan = world.submit(training={"rounds": 3}, cohort={"lease_s": 10.0})
    *_, last, idle = world.add_devices("abcd")
    last.insists = True
    idle.withholds = True
    world.start()
    world.run(lambda: len(of_kind(world, AdapterApplied)) == 1)
    world.run(lambda: len(world.counted(2)) == 3)
    receipts = list(last.receipts)
    last.announce(last.offers[RUN, ROUND])
    idle.announce(idle.offers[RUN, ROUND])
    world.run_for(1)
    assert last.receipts[len(receipts) :].count(world.counted(1)["device-c"]) >= 1
    assert idle.refusals[-1] == (idle.offers[RUN, ROUND].contribution.digest, "round.closed")
    world.run()
    assert_learnt_from(world, plan, ABC, ABC, ABC)


@pytest.mark.parametrize("restarted", [False, True])
def test_after_the_run_a_late_update_is_still_answered(world: World, restarted: bool) -> None:
    world.submit(training={"rounds": 1}, cohort={"lease_s": 10.0})
    first, _, _, idle = world.add_devices("abcd")
    idle.withholds = True
    world.start()
    world.run()
    if restarted:
        world.restart()
    told = len(first.receipts)
    world.run_for(1)
    first.announce(first.offers[RUN, ROUND])
    idle.announce(idle.offers[RUN, ROUND])
    world.run_for(1)
    assert first.receipts[told:].count(world.counted(1)["device-a"]) >= 1
    assert idle.refusals[-1] == (idle.offers[RUN, ROUND].contribution.digest, "round.closed")


def test_an_upload_whose_round_ends_meanwhile_harms_nobody(world: World) -> None:
    plan = world.submit(training={"rounds": 2}, cohort={"lease_s": 10.0})
    *_, slow = world.add_devices("abcd")
    slow.withholds = True
    world.start()
    world.run(lambda: len(of_kind(world, AdapterApplied)) == 1)
    # The answer to the first question comes now, and again and again.
    slow.withholds = False
    slow._serve(slow.asked[0])
    world.run_for(1)
    slow._serve(slow.asked[0])
    world.run()
    assert_learnt_from(world, plan, ABC, [*ABC, "device-d"])
    world.run_for(10)
    assert slow.offers[RUN, ROUND].answered


# When a round closes


def test_a_round_closes_at_once_when_everyone_left_has_declined(world: World) -> None:
    plan = world.submit(training={"rounds": 1})
    *_, unwilling = world.add_devices("abcd")
    unwilling.declines = ("privacy.budget", "ε is spent")
    world.start()
    world.run()
    assert world.time.now() < 10, "the lease of 30 s was not waited for"
    assert of_kind(world, DeviceDeclined) == [
        DeviceDeclined("device-d", "privacy.budget", "ε is spent")
    ]
    assert_learnt_from(world, plan, ABC)


def test_a_device_that_declines_at_length_is_written_down_in_short(world: World) -> None:
    plan = world.submit(training={"rounds": 1})
    *_, talker = world.add_devices("abcd")
    talker.declines = ("c" * 100_000, "r" * 100_000)
    world.start()
    world.run()
    (declined,) = of_kind(world, DeviceDeclined)
    assert (declined.code, declined.reason) == ("c" * 64, "r" * 500)
    assert_learnt_from(world, plan, ABC)


def test_declining_after_reporting_or_twice_changes_nothing(world: World) -> None:
    plan = world.submit(training={"rounds": 1})
    first, *_, last, unwilling = world.add_devices("abcd")
    last.withholds = True
    unwilling.declines = ("busy", "x" * 5000)
    world.start()
    world.run(lambda: bool(first.receipts) and bool(of_kind(world, DeviceDeclined)))
    first.send(Declined("busy", "changed my mind"), RUN, ROUND)
    unwilling.send(Declined("busy", "once more"), RUN, ROUND)
    world.run_for(2)
    (declined,) = of_kind(world, DeviceDeclined)
    assert declined == DeviceDeclined("device-d", "busy", "x" * 500)
    last.withholds = False
    world.run()
    assert_learnt_from(world, plan, ABC)


def test_just_enough_devices_are_not_kept_waiting(world: World) -> None:
    plan = world.submit(training={"rounds": 1})
    world.add_devices("abc")
    world.start()
    world.run()
    (invited,) = of_kind(world, Invited)
    assert conductor.SETTLE_S <= invited.at < conductor.SETTLE_S + 1 < plan.job.cohort.patience_s


@pytest.mark.parametrize(("present", "devices"), [("abcd", 4), ("abc", 3)])
def test_fewer_than_are_wanted_begin_when_patience_ends(
    world: World, present: str, devices: int
) -> None:
    plan = world.submit(training={"rounds": 1}, cohort={"devices": 4})
    world.add_devices(present)
    world.start()
    world.run()
    (invited,) = of_kind(world, Invited)
    assert len(invited.cohort) == devices
    assert (invited.at >= plan.job.cohort.patience_s) == (devices < 4)
    assert invited.at < plan.job.cohort.patience_s + 1


def told_of(world: World, name: str, condition: str) -> None:
    world.coordinator.fleet.set_about(DeviceId(name), AboutDevice("0.1.0", condition, None))


@pytest.mark.parametrize(("condition", "drawn"), [("battery", "abc"), ("no-examples", "abcd")])
def test_who_takes_no_part_for_now_is_not_asked(world: World, condition: str, drawn: str) -> None:
    world.submit(training={"rounds": 1})
    world.add_devices("abcd")
    world.start()
    world.run(lambda: len(world.coordinator.fleet.present()) == 4)
    told_of(world, "device-d", condition)
    world.run()
    (invited,) = of_kind(world, Invited)
    assert invited.cohort == tuple(DeviceId(f"device-{letter}") for letter in drawn)


def test_whoever_waits_for_devices_is_told_what_keeps_those_that_are_there(world: World) -> None:
    world.submit(training={"rounds": 1})
    world.add_devices("abcd")
    world.start()
    world.run(lambda: len(world.coordinator.fleet.present()) == 4)
    told_of(world, "device-c", "battery")
    told_of(world, "device-d", "hot")
    world.run(lambda: bool(of_kind(world, RoundFailed)))
    failed = of_kind(world, RoundFailed)[0]
    assert failed.code == "privacy.cohort"
    assert "2 of the required 3" in failed.reason
    assert "1 battery, 1 hot" in failed.reason
    assert of_kind(world, Invited) == []


def test_the_lease_closes_a_round_with_just_enough_devices(world: World) -> None:
    plan = world.submit(training={"rounds": 1})
    *_, silent = world.add_devices("abcd")
    silent.withholds = True
    world.start()
    world.run()
    (invited,) = of_kind(world, Invited)
    # Repeating that it takes part, as the silent device does every few seconds, is no progress.
    assert 0 <= world.time.now() - invited.at - plan.job.cohort.lease_s < 2
    assert_learnt_from(world, plan, ABC)


def test_one_update_short_of_the_minimum_nothing_is_summed_or_opened(world: World) -> None:
    world.submit(training={"rounds": 1})
    *_, silent = world.add_devices("abc")
    silent.withholds = True
    world.start()
    world.run()
    assert of_kind(world, Closed) == of_kind(world, SumOpened) == []
    (failed,) = of_kind(world, RoundFailed)
    assert failed.code == "privacy.cohort"
    assert "2 of the required 3" in failed.reason


def test_progress_renews_the_lease(world: World) -> None:
    plan = world.submit(training={"rounds": 1})
    *_, slow = world.add_devices("abcd")
    slow.withholds = True
    world.start()
    world.run(lambda: len(world.counted(1)) == 3)
    for _ in range(8):
        world.run_for(15)
        slow.show("training")
    assert of_kind(world, Closed) == []
    slow.show("idle")
    slow.withholds = False
    world.run()
    assert_learnt_from(world, plan, [*ABC, "device-d"])


def test_nobody_holds_a_round_open_for_longer_than_its_timeout(world: World) -> None:
    plan = world.submit(training={"rounds": 1})
    *_, slow = world.add_devices("abcd")
    slow.withholds = True
    world.start()
    while not world.over and world.time.now() < 1000:
        world.run_for(15)
        slow.show("training")
    assert plan.job.cohort.round_timeout_s <= world.time.now() < 330
    assert_learnt_from(world, plan, ABC)


def test_a_wanted_number_closes_the_round_without_waiting_for_the_rest(world: World) -> None:
    world.submit(training={"rounds": 2}, cohort={"devices": 3})
    world.add_devices("abcdef")
    world.start()
    world.run()
    assert world.time.now() < 10
    first, _ = of_kind(world, Invited)
    assert len(first.cohort) == 3
    assert all(len(row.devices) >= 3 for row in of_kind(world, Closed))


def test_after_drop_outs_more_are_invited_than_are_wanted(world: World) -> None:
    """One of four is lost in the first round: 4 / (3/4) rounds up to 6 in the second."""
    world.submit(training={"rounds": 2}, cohort={"devices": 4})
    devices = world.add_devices("abcdefgh")
    world.start()
    world.run(lambda: len(of_kind(world, Invited)) == 1)
    lost = of_kind(world, Invited)[0].cohort[0]
    world.devices[lost].withholds = True
    world.run()
    assert [len(row.cohort) for row in of_kind(world, Invited)] == [4, 6]
    assert len(devices) == 8
    assert [len(row.devices) for row in of_kind(world, Closed)] == [3, 4]


def test_without_enough_devices_nobody_is_invited_and_the_wait_is_limited(world: World) -> None:
    world.submit(training={"rounds": 1})
    world.add_devices("ab")
    world.start()
    world.run()
    assert of_kind(world, Invited) == []
    (failed,) = of_kind(world, RoundFailed)
    assert failed.code == "privacy.cohort"


def test_three_failed_rounds_in_a_row_end_the_run(world: World) -> None:
    world.submit(training={"rounds": 9})
    for device in world.add_devices("abc"):
        device.declines = ("busy", "not today")
    world.start()
    world.run()
    assert len(of_kind(world, RoundFailed)) == conductor.MAX_FAILED_ROUNDS == 3
    facts = world.store.milestones(RUN)["failed"].facts
    assert facts["code"] == "privacy.cohort"


def test_two_failed_rounds_do_not_end_the_run_and_a_good_one_starts_the_count_again(
    world: World,
) -> None:
    world.submit(training={"rounds": 6})
    devices = world.add_devices("abc")
    failing = {1, 2, 4, 5}

    def script(what: object) -> bool:
        number = len(of_kind(world, Invited))
        for device in devices:
            device.declines = ("busy", "") if number in failing else None
        return False

    world.crash_at = script
    world.start()
    world.run()
    assert "finished" in world.store.milestones(RUN)
    assert len(of_kind(world, RoundFailed)) == 4
    assert len(of_kind(world, AdapterApplied)) == 2


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_run_of_which_every_round_failed_has_not_finished(world: World, rounds: int) -> None:
    world.submit(training={"rounds": rounds})
    for device in world.add_devices("abc"):
        device.declines = ("busy", "not today")
    world.start()
    world.run()
    assert "failed" in world.store.milestones(RUN)


# Groups and robust rules


GROUPS: dict[str, dict[str, Any]] = {
    "protection": {"scheme": "public-key", "min_devices": 2, "groups": 3},
    "server": {"rule": "median"},
}


def robust_world(world: World, holder: SumWorker, names: str, **tables: dict[str, Any]) -> RunPlan:
    plan = world.submit(**{"training": {"rounds": 1}} | GROUPS | tables)
    world.add_devices(names)
    world.add_key_holder(holder, min_devices=2)
    world.start()
    return plan


def flat(adapter: Adapter) -> FloatVector:
    """All parameters behind each other."""
    return np.concatenate([adapter.tensors[name].ravel() for name in adapter.shape.tensors])


def middle_of_groups(world: World, plan: RunPlan, fixed: SetFixed) -> list[float]:
    """The oracle: the median of the groups' means, value by value."""
    means = [
        world.expected_mean(
            plan,
            1,
            [d for d, number in zip(fixed.devices, fixed.groups, strict=True) if number == g],
        )
        for g in sorted(set(fixed.groups))
    ]
    return [float(np.median(column)) for column in zip(*means, strict=True)]


def test_groups_sums_are_opened_apart_and_their_median_is_learnt(
    world: World, adders: tuple[SumWorker, SumWorker]
) -> None:
    plan = robust_world(world, adders[1], "abcdefg")
    world.run()
    (fixed,) = of_kind(world, SetFixed)
    assert sorted(fixed.groups) == [0, 0, 0, 1, 1, 2, 2]
    change = np.array(middle_of_groups(world, plan, fixed))
    assert world.adapter().digest == world.first_adapter().moved(change * plan.step_ratios).digest
    (opened,) = of_kind(world, SumOpened)
    sums = np.frombuffer(world.store.blob(opened.digest).read_bytes(), "<i8").reshape(3, -1)
    for number, total in enumerate(sums):
        members = [d for d, g in zip(fixed.devices, fixed.groups, strict=True) if g == number]
        values = [world.devices[name].values(plan, 1) for name in members]
        assert total.tolist() == np.sum(values, axis=0).tolist()


def test_the_groups_are_the_ones_that_the_key_holder_drew(
    world: World, adders: tuple[SumWorker, SumWorker]
) -> None:
    robust_world(world, adders[1], "abcdefg")
    world.run()
    (fixed,), committed = of_kind(world, SetFixed), of_kind(world, Committed)
    sum_set = open_sealed(fixed.signed, expected=world.holder_identity.public).message
    assert isinstance(sum_set, SumSet)
    device_of = {row.digest: row.device for row in committed}
    drawn = drawn_groups(sum_set.seed, device_of.keys(), 3)
    for number, digests in enumerate(drawn):
        members = [d for d, g in zip(fixed.devices, fixed.groups, strict=True) if g == number]
        assert sorted(members) == sorted(device_of[digest] for digest in digests)


def test_a_group_that_loses_too_many_devices_is_left_out(
    world: World, adders: tuple[SumWorker, SumWorker]
) -> None:
    """Four groups of two: one that never hands its update over costs its group, not the round."""
    plan = robust_world(
        world, adders[1], "abcdefgh", protection=GROUPS["protection"] | {"groups": 4}
    )
    world.devices["device-c"].withholds = True
    world.run()
    (fixed,), (closed,) = of_kind(world, SetFixed), of_kind(world, Closed)
    groups = dict(zip(fixed.devices, fixed.groups, strict=True))
    lost = [name for name in groups if groups[name] == groups["device-c"]]
    assert sorted(closed.devices) == sorted(set(groups) - set(lost))
    assert len(closed.devices) == 6
    kept = [(d, g) for d, g in groups.items() if d in closed.devices]
    left = SetFixed(tuple(d for d, _ in kept), tuple(g for _, g in kept), b"", 0.0)
    change = np.array(middle_of_groups(world, plan, left))
    assert world.adapter().digest == world.first_adapter().moved(change * plan.step_ratios).digest


def test_with_too_few_groups_left_nothing_is_opened(
    world: World, adders: tuple[SumWorker, SumWorker]
) -> None:
    robust_world(world, adders[1], "abcdef")
    world.devices["device-c"].withholds = True
    world.run()
    assert of_kind(world, Closed) == of_kind(world, SumOpened) == []
    (failed,) = of_kind(world, RoundFailed)
    assert failed.code == "privacy.cohort"


def test_one_hostile_group_does_not_decide(
    world: World, adders: tuple[SumWorker, SumWorker]
) -> None:
    """Its values are the largest that the form allows; each value stays among the honest ones."""
    plan = robust_world(world, adders[1], "abcdef")
    bad = world.devices["device-b"]
    honest = bad.values
    most = plan.layout.magnitude

    def hostile(plan: RunPlan, number: int) -> Any:
        return np.where(np.arange(plan.layout.count) < plan.parameters, most, honest(plan, number))

    bad.values = hostile  # type: ignore[method-assign]
    world.run()
    (fixed,) = of_kind(world, SetFixed)
    groups = dict(zip(fixed.devices, fixed.groups, strict=True))
    means = np.array(
        [
            world.expected_mean(plan, 1, [name for name in groups if groups[name] == number])
            for number in range(3)
            if number != groups["device-b"]
        ]
    )
    change = (flat(world.adapter()) - flat(world.first_adapter())) / plan.step_ratios
    assert np.all(change <= means.max(axis=0) + 1e-6)
    assert np.all(change >= means.min(axis=0) - 1e-6)


def test_a_group_beyond_reach_is_left_out_of_the_median(
    world: World, adders: tuple[SumWorker, SumWorker]
) -> None:
    """A ciphertext that no honest device makes: the key holder hands out zeros for its group."""
    plan = robust_world(
        world, adders[1], "abcdefgh", protection=GROUPS["protection"] | {"groups": 4}
    )
    bad = world.devices["device-b"]
    bad.tamper = crafted
    world.run()
    (fixed,), (opened,) = of_kind(world, SetFixed), of_kind(world, SumOpened)
    groups = dict(zip(fixed.devices, fixed.groups, strict=True))
    sums = np.frombuffer(world.store.blob(opened.digest).read_bytes(), "<i8").reshape(4, -1)
    assert [bool(total.any()) for total in sums] == [n != groups["device-b"] for n in range(4)]
    kept = [(d, g) for d, g in groups.items() if g != groups["device-b"]]
    left = SetFixed(tuple(d for d, _ in kept), tuple(g for _, g in kept), b"", 0.0)
    change = np.array(middle_of_groups(world, plan, left))
    assert world.adapter().digest == world.first_adapter().moved(change * plan.step_ratios).digest


def crafted(frame: bytes) -> bytes:
    """The same head with residues drawn at random: valid in form, and no encryption."""
    payload = bytearray(frame[136:])
    rng = np.random.default_rng(3)
    # 57-bit residues lie packed; clearing every eighth byte's top keeps each below the prime.
    noise = rng.integers(0, 256, len(payload) // 2, dtype=np.uint8).tobytes()
    payload[: len(noise)] = bytes(a ^ (b & 0x0F) for a, b in zip(payload, noise, strict=False))
    digest = hashlib.sha256(payload).digest()
    return frame[:104] + digest + bytes(payload)


def test_in_clear_a_robust_rule_sees_every_device(world: World) -> None:
    plan = world.submit(training={"rounds": 1}, server={"rule": "trimmed-mean", "malicious": 1})
    world.add_devices("abc")
    world.start()
    world.run()
    means = [world.expected_mean(plan, 1, [name]) for name in ABC]
    change = np.median(means, axis=0)  # of three, one at either end is dropped
    assert world.adapter().digest == world.first_adapter().moved(change * plan.step_ratios).digest
    (opened,) = of_kind(world, SumOpened)
    assert not world.store.blob(opened.digest).exists(), "single updates are not kept"


def test_restarts_all_the_time_draw_no_other_groups(
    make_world: Callable[[], World], adders: tuple[SumWorker, SumWorker]
) -> None:
    world = make_world()
    world.crash_at = lambda _: True
    plan = robust_world(world, adders[1], "abcdefg")
    assert world.run()
    assert world.restarts > len(world.rows)
    (fixed,) = of_kind(world, SetFixed)
    change = np.array(middle_of_groups(world, plan, fixed))
    assert world.adapter().digest == world.first_adapter().moved(change * plan.step_ratios).digest


def test_a_device_that_nobody_approved_is_left_out_and_told(
    world: World, adders: tuple[SumWorker, SumWorker]
) -> None:
    plan = world.submit(protection=PUBLIC_KEY, training={"rounds": 1})
    *_, stranger = world.add_devices("abcd")
    Approvals(world.folder / "holder" / "approvals.json").withdraw("device-d")
    world.add_key_holder(adders[1])
    world.start()
    world.run()
    world.run_for(10)
    assert_learnt_from(world, plan, ABC)
    assert {code for _, code in stranger.refusals} == {"privacy.not_approved"}
    assert stranger.asked == []


def test_an_update_that_is_refused_when_it_arrives_is_not_waited_for(world: World) -> None:
    plan = world.submit(training={"rounds": 1})
    *_, bad = world.add_devices("abcd")
    bad.tamper = lambda frame: frame[:-1] + bytes([frame[-1] ^ 1])
    world.start()
    world.run()
    (declined,) = of_kind(world, DeviceDeclined)
    assert (declined.device, declined.code) == ("device-d", "protocol.digest")
    assert world.time.now() < 30, "well before the lease ends"
    assert_learnt_from(world, plan, ABC)


# The disk, the workers and the process itself


def crashes(world: World, number: int) -> None:
    """End the coordinator's process right after its ``number``-th commit (from 1)."""
    world.crash_at = lambda _: len(world.committed) == number


class CrashesBefore(Store):
    """Ends the process just before a commit: files are there, the row is not."""

    number = 0
    seen = 0

    def commit(
        self, run: RunId, number: RoundNumber, transition: Transition, *, now: float
    ) -> None:
        type(self).seen += 1
        if type(self).seen == type(self).number:
            raise Crash("before a commit")
        super().commit(run, number, transition, now=now)


def finished_world(make_world: Callable[[], World], *, holder: SumWorker | None) -> World:
    world = make_world()
    world.submit(protection=PUBLIC_KEY if holder else {})
    world.add_devices("abc")
    if holder is not None:
        world.add_key_holder(holder)
    return world


COMMITS = 30
"""Two rounds of fourteen transitions with three devices, and two milestones."""


def test_the_number_of_commits_is_known(make_world: Callable[[], World]) -> None:
    world = finished_world(make_world, holder=None)
    world.start()
    world.run()
    assert len(world.committed) == COMMITS


@pytest.mark.parametrize("number", range(1, COMMITS + 1))
@pytest.mark.parametrize("scheme", ["clear", "public-key"])
def test_a_restart_after_any_commit_ends_with_the_same_adapter(
    make_world: Callable[[], World],
    adders: tuple[SumWorker, SumWorker],
    scheme: str,
    number: int,
) -> None:
    world = finished_world(make_world, holder=adders[1] if scheme == "public-key" else None)
    crashes(world, number)
    world.start()
    assert world.run()
    if number == COMMITS:
        world.run_for(1)  # the last commit ends the run, and with it the process
    assert world.restarts == 1
    plan = RunPlan.model_validate_json(world.store.run(RUN).plan)
    assert_learnt_from(world, plan, ABC, ABC)
    assert len(world.rows) == COMMITS - 2, "nothing happened twice"


@pytest.mark.parametrize("number", range(1, COMMITS - 1))
def test_a_restart_before_any_transition_ends_with_the_same_adapter(
    make_world: Callable[[], World], number: int
) -> None:
    world = make_world()

    class Once(CrashesBefore):
        pass

    Once.number = number
    world.make_store = Once
    world.store = world._open_store()
    plan = world.submit()
    world.add_devices("abc")
    world.start()
    assert world.run()
    assert world.restarts == 1
    assert_learnt_from(world, plan, ABC, ABC)
    assert len(world.rows) == COMMITS - 2


def test_restarts_all_the_time_cost_nothing_but_time(make_world: Callable[[], World]) -> None:
    world = finished_world(make_world, holder=None)
    world.crash_at = lambda _: True
    world.start()
    assert world.run()
    assert world.restarts >= COMMITS - 1
    plan = RunPlan.model_validate_json(world.store.run(RUN).plan)
    assert_learnt_from(world, plan, ABC, ABC)


def test_a_receipt_is_sent_only_after_file_and_row_are_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.submit(training={"rounds": 1})
    world.add_devices("abc")
    world.start()
    seal, seen = Post.seal, []

    def spy(post: Post, message: Message, **where: Any) -> bytes:
        if isinstance(message, Receipt):
            rows = {row.digest: row.device for row in of_kind(world, UpdateStored)}
            device = rows[message.digest]
            path = world.store.update_file(RUN, ROUND, DeviceId(device), Digest(message.digest))
            assert digest_of(path.read_bytes()) == message.digest
            seen.append(device)
        return seal(post, message, **where)

    monkeypatch.setattr(Post, "seal", spy)
    world.run(lambda: len(seen) == 3)
    assert sorted(seen) == ABC


class Refusing(Store):
    """A store whose disk is full for a while."""

    refuses: Callable[[object], bool] = staticmethod(lambda _: False)
    refused = 0

    def commit(
        self, run: RunId, number: RoundNumber, transition: Transition, *, now: float
    ) -> None:
        self._check(transition)
        super().commit(run, number, transition, now=now)

    def add_milestone(self, run: RunId, kind: str, facts: dict[str, Any], *, now: float) -> None:
        self._check(kind)
        super().add_milestone(run, kind, facts, now=now)

    def _check(self, what: object) -> None:
        if type(self).refuses(what):
            type(self).refused += 1
            raise StorageError("the disk is full")


KINDS = [
    *("Planned", "KeyAnnounced", "Invited", "Committed", "Proposed", "SetFixed"),
    *("UpdateStored", "Closed", "SumOpened", "AdapterApplied", "started", "finished"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_waited_out_and_nothing_is_lost_or_counted_twice(
    world: World, kind: str
) -> None:
    class Full(Refusing):
        pass

    left = 3

    def refuses(what: object) -> bool:
        nonlocal left
        if left and kind in (what, type(what).__name__):
            left -= 1
            return True
        return False

    Full.refuses = staticmethod(refuses)
    world.make_store = Full
    world.store = world._open_store()
    plan = world.submit(training={"rounds": 1})
    devices = world.add_devices("abc")
    world.start()
    assert world.run()
    assert Full.refused == 3
    assert_learnt_from(world, plan, ABC)
    assert all(device.refusals == [] for device in devices)


def test_a_full_disk_does_not_count_a_failed_round_twice(world: World) -> None:
    """Going on to the next round is tried again and again; the failed one stays one."""

    class Full(Refusing):
        pass

    def refuses(what: object) -> bool:
        return isinstance(what, Planned) and bool(of_kind(world, RoundFailed)) and Full.refused < 5

    Full.refuses = staticmethod(refuses)
    world.make_store = Full
    world.store = world._open_store()
    world.submit(training={"rounds": 4})
    devices = world.add_devices("abc")

    def script(what: object) -> bool:
        for device in devices:
            device.declines = None if of_kind(world, RoundFailed) else ("busy", "")
        return False

    world.crash_at = script
    world.start()
    world.run()
    assert Full.refused == 5
    assert len(of_kind(world, AdapterApplied)) == 3
    assert "finished" in world.store.milestones(RUN)


def test_a_sum_worker_that_dies_costs_nothing(
    make_world: Callable[[], World], adders: tuple[SumWorker, SumWorker]
) -> None:
    world = finished_world(make_world, holder=adders[1])
    deaths = 0

    def kill(what: object) -> bool:
        nonlocal deaths
        pid = adders[0].pid
        if isinstance(what, (UpdateStored, Closed)) and pid is not None:
            deaths += 1
            os.kill(pid, signal.SIGKILL)
        return False

    world.crash_at = kill
    world.start()
    assert world.run()
    assert deaths == 8
    plan = RunPlan.model_validate_json(world.store.run(RUN).plan)
    assert_learnt_from(world, plan, ABC, ABC)


class Deadly:
    """A real worker that is killed while it reads the updates of one device."""

    def __init__(self, worker: SumWorker, device: str) -> None:
        self._worker = worker
        self._device = device
        self.deaths = 0
        self.begin = worker.begin
        self.dump = worker.dump
        self.discard = worker.discard

    def add(self, context: SumContext, path: Path) -> int:
        if not path.name.startswith(self._device):
            return self._worker.add(context, path)
        endless = path.with_suffix(".endless")
        os.mkfifo(endless)  # nobody writes: whoever opens it waits, until it is killed
        pid = self._worker.pid
        assert pid is not None
        threading.Timer(0.05, os.kill, (pid, signal.SIGKILL)).start()
        self.deaths += 1
        try:
            return self._worker.add(context, endless)
        finally:
            endless.unlink()


@pytest.mark.parametrize("scheme", ["clear", "public-key"])
def test_an_update_on_which_the_sum_worker_dies_twice_is_refused_and_the_others_are_counted(
    world: World, adders: tuple[SumWorker, SumWorker], scheme: str
) -> None:
    world.adder = deadly = Deadly(adders[0], "device-b")
    plan = world.submit(protection={"scheme": scheme}, training={"rounds": 1})
    _, bad, *_ = world.add_devices("abcd")
    world.add_key_holder(adders[1])
    world.start()
    world.run()
    assert deadly.deaths == 2
    assert [code for _, code in bad.refusals] == ["child_died"]
    (declined,) = of_kind(world, DeviceDeclined)
    assert (declined.device, declined.code) == ("device-b", "child_died")
    assert not list((world.home / "updates").rglob("device-b*"))
    assert_learnt_from(world, plan, ["device-a", "device-c", "device-d"])


class Unreadable:
    """A real worker whose disk does not give an update back at certain calls, from 1."""

    def __init__(self, worker: SumWorker, *fails: int) -> None:
        self._worker = worker
        self._fails = fails
        self.calls = 0
        self.begin = worker.begin
        self.dump = worker.dump
        self.discard = worker.discard

    def add(self, context: SumContext, path: Path) -> int:
        self.calls += 1
        if self.calls in self._fails:
            raise StorageError("cannot read the update")
        return self._worker.add(context, path)


def test_an_update_that_the_disk_does_not_give_back_is_not_refused(
    world: World, adders: tuple[SumWorker, SumWorker]
) -> None:
    """A refusal would make the device delete its only copy, for a fault that is not its own."""
    world.adder = Unreadable(adders[0], 1, 2, 3)
    plan = world.submit(training={"rounds": 1})
    devices = world.add_devices("abc")
    world.start()
    world.run()
    assert [device.refusals for device in devices] == [[], [], []]
    assert_learnt_from(world, plan, ABC)


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_half_a_sum_is_never_taken_for_one(
    make_world: Callable[[], World], adders: tuple[SumWorker, SumWorker], fails: int
) -> None:
    """After a restart the stored updates are added again, and one of them cannot be read."""
    world = finished_world(make_world, holder=adders[1])

    def crash(_: object) -> bool:
        everything_is_stored = len(of_kind(world, UpdateStored)) == 3 and world.restarts == 0
        if everything_is_stored:
            world.adder = Unreadable(adders[0], fails)
        return everything_is_stored

    world.crash_at = crash
    world.start()
    world.run()
    assert (world.restarts, len(world.failures)) == (1, 1)
    plan = RunPlan.model_validate_json(world.store.run(RUN).plan)
    assert_learnt_from(world, plan, ABC, ABC)


# Who may have which blob


def gets(world: World, device: ScriptedDevice, digest: str) -> bool:
    """Whether a device, or the key holder, that asks for a blob is given it."""
    device.blobs.pop(digest, None)
    device.send(BlobRequest(digest, 0, 2_000_000))
    world.run_for(0.5)
    return digest in device.blobs


def test_a_device_gets_the_adapter_and_nobody_elses_update(world: World) -> None:
    world.submit(training={"rounds": 1})
    first, second, last = world.add_devices("abc")
    last.withholds = True
    world.start()
    world.run(lambda: len(world.counted(1)) == 2)
    adapter = world.store.milestones(RUN)["started"].facts["adapter"]
    assert gets(world, second, adapter)
    assert not gets(world, second, world.counted(1)["device-a"])
    assert not gets(world, first, world.counted(1)["device-a"]), "not even its own"
    assert not gets(world, second, world.store.run(RUN).probe)
    assert not gets(world, second, digest_of(b"nothing"))
    assert not gets(world, second, "../identity.key")


def false_holder(world: World) -> ScriptedDevice:
    """Whoever has the key holder's key, without its good will."""
    folder = world.folder / "false-holder"
    folder.mkdir()
    device = ScriptedDevice(
        DeviceId(topics.KEY_HOLDER),
        world.network.attach(topics.KEY_HOLDER),
        Post(world.holder_identity, folder),
        world.time.now,
        world.identity.public,
        world.holder_identity.public,
        folder,
        hides=True,
    )
    drive(device, device.transport, world.time)
    return device


SEED = bytes(range(32))
"""What the false holder draws groups from."""


def fix_set(holder: ScriptedDevice, world: World, **changes: Any) -> None:
    """Fix everything that was committed to as the first round's set."""
    committed = of_kind(world, Committed)
    (announced,) = of_kind(world, KeyAnnounced)
    announcement = open_sealed(announced.announcement, expected=holder.post.public).message
    assert isinstance(announcement, KeyAnnouncement)
    fields: dict[str, Any] = {
        "key_id": announcement.key_id,
        "digests": joined(sorted(row.digest for row in committed)),
        "groups": 1,
        "seed": SEED,
    }
    holder.send(SumSet(**fields | changes), RUN, ROUND)


def announce_key(holder: ScriptedDevice, plan: RunPlan, **changes: Any) -> bytes:
    """Announce a fresh key pair for the first round; returns its secret half."""
    pair = opener_for(plan.scheme, plan.layout).new_key_pair()
    layout = plan.layout
    fields: dict[str, Any] = {
        "scheme": plan.scheme,
        "count": layout.count,
        "bits": layout.bits,
        "max_devices": layout.max_devices,
        "groups": 1,
        "min_devices": 3,
        "draw": commitment_to(SEED),
        "key_id": key_id_of(pair.public),
        "digest": digest_of(pair.public),
        "size": len(pair.public),
    }
    message = KeyAnnouncement(**fields | changes)
    blob = Contribution("", digest_of(pair.public), len(pair.public), plan.scheme, "")
    holder.offers[RunId("blobs"), ROUND] = Offer(blob, pair.public, RUN, ROUND, answered=True)
    holder.send(message, RUN, ROUND)
    return pair.secret


def test_the_key_holder_gets_updates_only_after_the_round_was_closed(world: World) -> None:
    plan = world.submit(protection=PUBLIC_KEY, training={"rounds": 1})
    first, _, last = world.add_devices("abc")
    last.withholds = True
    holder = false_holder(world)
    world.start()
    world.run(lambda: bool(world.rows))
    announce_key(holder, plan)
    world.run(lambda: len(of_kind(world, Committed)) == 3)
    world.run_for(1)
    fix_set(holder, world)
    world.run(lambda: len(world.counted(1)) == 2)
    updates = world.counted(1)
    assert not gets(world, holder, updates["device-a"])
    last.withholds = False
    world.run(lambda: bool(of_kind(world, Closed)))
    assert gets(world, holder, updates["device-a"])
    assert not gets(world, first, updates["device-b"])
    holder.send(OpeningRefused("privacy", "no"), RUN, ROUND)
    world.run()
    assert not gets(world, holder, updates["device-a"])


def test_no_update_is_asked_for_before_the_key_holder_has_fixed_the_set(world: World) -> None:
    """Or a device that hears the others' could still choose its own."""
    plan = world.submit(protection=PUBLIC_KEY, training={"rounds": 1})
    devices = world.add_devices("abc")
    holder = false_holder(world)
    world.start()
    world.run(lambda: bool(world.rows))
    announce_key(holder, plan)
    world.run(lambda: len(of_kind(world, Committed)) == 3)
    world.run_for(60)
    assert [device.asked for device in devices] == [[], [], []]
    assert [device.handed_over for device in devices] == [[], [], []]
    fix_set(holder, world)
    world.run(lambda: len(world.counted(1)) == 3)
    (fixed,) = of_kind(world, SetFixed)
    for device in devices:
        assert device.handed_over[0] == (ROUND, fixed.signed)
        assert open_sealed(fixed.signed, expected=holder.post.public).message.seed == SEED  # type: ignore[attr-defined]


def test_an_update_that_arrives_after_the_round_was_closed_changes_nothing(world: World) -> None:
    plan = world.submit(
        protection=PUBLIC_KEY, training={"rounds": 2}, cohort={"devices": 4, "lease_s": 10.0}
    )
    *_, slow = world.add_devices("abcd")
    slow.withholds = True
    holder = false_holder(world)
    world.start()
    world.run(lambda: bool(world.rows))
    announce_key(holder, plan)
    world.run(lambda: len(of_kind(world, Committed)) == 4)
    world.run_for(1)
    fix_set(holder, world)
    world.run(lambda: bool(of_kind(world, Closed)))
    before = world.rows
    slow.withholds = False
    slow._serve(slow.asked[0])
    world.run_for(5)
    assert world.rows == before
    assert world.failures == []
    late = slow.offers[RUN, ROUND].contribution.digest
    assert not list((world.home / "updates").rglob(f"device-d.{late[:16]}*"))
    assert {(digest, code) for digest, code in slow.refusals} <= {(late, "round.closed")}


def test_a_key_holder_that_takes_its_time_costs_nobody_the_lease(world: World) -> None:
    """Devices have all of it to hand over, however long the set took to be fixed."""
    plan = world.submit(protection=PUBLIC_KEY, training={"rounds": 1}, cohort={"lease_s": 10.0})
    world.add_devices("abc")
    holder = false_holder(world)
    world.start()
    world.run(lambda: bool(world.rows))
    announce_key(holder, plan)
    world.run(lambda: len(of_kind(world, Committed)) == 3)
    world.run_for(100)
    fix_set(holder, world)
    world.run(lambda: bool(of_kind(world, Closed)))
    assert sorted(world.counted(1)) == ABC


FALSE_SETS: dict[str, dict[str, Any]] = {
    "an update that nobody committed to": {"digests": joined([digest_of(b"another")])},
    "no update": {"digests": b""},
    "half a digest": {"digests": bytes(33)},
    "another key": {"key_id": "0" * 16},
    "another seed than was committed to": {"seed": bytes(32)},
    "more groups than were announced": {"groups": 2},
    "no group": {"groups": 0},
}


@pytest.mark.parametrize("name", sorted(FALSE_SETS))
def test_a_set_that_cannot_be_one_fails_the_round(world: World, name: str) -> None:
    plan = world.submit(protection=PUBLIC_KEY, training={"rounds": 1})
    devices = world.add_devices("abc")
    holder = false_holder(world)
    world.start()
    world.run(lambda: bool(world.rows))
    announce_key(holder, plan)
    world.run(lambda: len(of_kind(world, Committed)) == 3)
    world.run_for(1)
    fix_set(holder, world, **FALSE_SETS[name])
    world.run()
    (failed,) = of_kind(world, RoundFailed)
    assert failed.code.startswith("protocol")
    assert [device.asked for device in devices] == [[], [], []]


def test_a_key_for_another_layout_fails_the_round_before_anyone_is_asked(world: World) -> None:
    plan = world.submit(protection=PUBLIC_KEY, training={"rounds": 1})
    world.add_devices("abc")
    holder = false_holder(world)
    world.start()
    world.run(lambda: bool(world.rows))
    announce_key(holder, plan, max_devices=plan.layout.max_devices + 1)
    world.run()
    assert of_kind(world, Invited) == []
    assert [failed.code for failed in of_kind(world, RoundFailed)] == ["protocol.wrong_key"]


@pytest.mark.parametrize(
    ("size", "devices"), [(136, 2), (136, 4), (0, 3), (7, 3), (8, 3), (144, 3), (272, 3)]
)
def test_an_opened_sum_that_cannot_be_one_fails_the_round(
    world: World, size: int, devices: int
) -> None:
    plan = world.submit(protection=PUBLIC_KEY, training={"rounds": 1})
    assert plan.layout.count * 8 == 136, "so that 136 bytes over 3 devices would be right"
    world.add_devices("abc")
    holder = false_holder(world)
    world.start()
    world.run(lambda: bool(world.rows))
    announce_key(holder, plan)
    world.run(lambda: len(of_kind(world, Committed)) == 3)
    world.run_for(1)
    fix_set(holder, world)
    world.run(lambda: bool(of_kind(world, Closed)))
    data = bytes(size)
    blob = Contribution("", digest_of(data), size, plan.scheme, "")
    holder.offers[RunId("sum"), ROUND] = Offer(blob, data, RUN, ROUND, answered=True)
    holder.send(Opened(digest_of(data), size, devices), RUN, ROUND)
    world.run()
    (failed,) = of_kind(world, RoundFailed)
    assert failed.code.startswith("protocol")
    assert of_kind(world, SumOpened) == []


@pytest.mark.parametrize("answers", [0, 1, 2])
def test_a_key_holder_that_falls_silent_fails_the_round(world: World, answers: int) -> None:
    """Before it has made a key, before it has fixed the set, and before it has opened the sum."""
    plan = world.submit(protection=PUBLIC_KEY, training={"rounds": 1})
    world.add_devices("abc")
    holder = false_holder(world)
    world.start()
    world.run(lambda: bool(world.rows))
    if answers:
        announce_key(holder, plan)
        world.run(lambda: len(of_kind(world, Committed)) == 3)
    if answers == 2:
        world.run_for(1)
        fix_set(holder, world)
    world.run()
    (failed,) = of_kind(world, RoundFailed)
    assert "did not answer for 300 s" in failed.reason
    assert len(of_kind(world, SetFixed)) == len(of_kind(world, Closed)) == (answers == 2)
    assert 300 <= world.time.now() < 310


def test_under_another_key_holder_a_round_waits_for_its_own(
    world: World, adders: tuple[SumWorker, SumWorker]
) -> None:
    """Started with a wrong option, the coordinator refuses to go on, and refuses no update."""
    plan = world.submit(protection=PUBLIC_KEY, training={"rounds": 1})
    *_, last = world.add_devices("abc")
    world.add_key_holder(adders[1])
    last.withholds = True
    world.start()
    world.run(lambda: len(world.counted(1)) == 2)
    right, world.holder_identity = world.holder_identity, world.identity
    world.restart()
    world.run_for(20)
    assert {type(err) for err in world.failures} == {ConfigError}
    assert last.refusals == []
    world.holder_identity = right
    last.withholds = False
    world.restart()
    world.run()
    assert_learnt_from(world, plan, ABC)


def test_a_device_cannot_speak_as_the_key_holder(world: World) -> None:
    plan = world.submit(training={"rounds": 1})
    bad, *_ = world.add_devices("abc")
    world.start()
    world.run(lambda: bool(bad.invitations))
    bad.send(OpeningRefused("privacy", "no"), RUN, ROUND)
    bad.send(Opened(digest_of(b""), 0, 3), RUN, ROUND)
    world.run()
    assert_learnt_from(world, plan, ABC)


# An adapter that is not good enough


def test_an_adapter_that_makes_things_worse_is_not_taken(world: World) -> None:
    world.submit(training={"rounds": 1}, server={"learning_rate": 400.0})
    world.add_devices("abc")
    world.start()
    world.run()
    (applied,) = of_kind(world, AdapterApplied)
    assert not applied.accepted
    assert "probe loss would rise" in applied.reason
    assert applied.adapter == world.store.milestones(RUN)["started"].facts["adapter"]


def test_fedadam_goes_on_with_its_moments_after_a_restart(
    make_world: Callable[[], World],
) -> None:
    digests = []
    for crash_after in (None, AdapterApplied):
        world = make_world()
        plan = world.submit(
            training={"rounds": 3}, server={"rule": "fedadam", "learning_rate": 0.01}
        )
        world.add_devices("abc")
        if crash_after is not None:
            world.crash_at = lambda what: isinstance(what, AdapterApplied)
        world.start()
        world.run()
        rule, adapter = plan.job.server, world.first_adapter()
        m, v = np.zeros(plan.parameters), np.full(plan.parameters, rule.tau**2)
        for number in (1, 2, 3):
            mean = np.array(world.expected_mean(plan, number, ABC))
            m = rule.beta1 * m + (1 - rule.beta1) * mean
            v = rule.beta2 * v + (1 - rule.beta2) * mean**2
            adapter = adapter.moved(0.01 * m / (np.sqrt(v) + rule.tau))
        assert np.allclose(world.adapter().flatten(), adapter.flatten(), rtol=1e-5)
        digests.append(world.adapter().digest)
        assert world.restarts == (3 if crash_after else 0)
    assert digests[0] == digests[1]


# Judging, which happens beside the coordinator's thread

INNER: dict[str, dict[str, Any]] = {
    "model": {"trainable": "lora"},
    "adapter": {"rank": 2, "step_ratio": 0.05},
}
"""A job whose adapters are put through the base model to be judged."""


def is_judging(world: World) -> bool:
    """A sum is open, and nothing was made of it yet: the new adapter is before its judge."""
    return len(of_kind(world, SumOpened)) > len(of_kind(world, AdapterApplied))


def run_until_opened(world: World, number: int) -> None:
    """Let time pass until the sum of a round is open, and no longer."""
    world.run(lambda: len(of_kind(world, SumOpened)) == number)


class Judges(FixedFeatures):
    """A base model that does as it is told whenever an adapter is judged, from the first on."""

    verdicts: ClassVar[list[Any]] = []

    def encode(self, texts: Sequence[str], *, adapter: bytes = b"") -> FloatMatrix:
        features = super().encode(texts)
        verdict = type(self).verdicts.pop(0) if adapter and type(self).verdicts else None
        if isinstance(verdict, Exception):
            raise verdict
        return features if verdict is None else np.full_like(features, verdict)


def judging(*verdicts: Any) -> type[Judges]:
    """None judges as ever, an error is raised, a number takes the place of every feature."""
    return type("Judges", (Judges,), {"verdicts": list(verdicts)})


def test_inner_matrices_move_by_their_own_step_size(world: World) -> None:
    plan = world.submit(**INNER)
    world.add_devices("abc")
    world.start()
    assert world.run()
    assert_learnt_from(world, plan, ABC, ABC)
    started = world.first_adapter().flatten().astype(np.float64)
    ratios = plan.step_ratios
    assert set(ratios.tolist()) == {1.0, 0.05}
    means = np.array([world.expected_mean(plan, number, ABC) for number in (1, 2)]).sum(axis=0)
    moved = world.adapter().flatten() - started
    assert np.allclose(moved, means * ratios, rtol=1e-4, atol=1e-6)
    assert not np.allclose(moved, means, rtol=1e-2), "without the ratios it would be elsewhere"


@pytest.mark.parametrize("rule", ["fedavg", "fedadam"])
@pytest.mark.parametrize("inner", [False, True])
def test_a_restart_while_an_adapter_is_judged_ends_with_the_same(
    make_world: Callable[[], World], rule: str, inner: bool
) -> None:
    digests = []
    for restarts in (False, True):
        world = make_world()
        world.submit(server={"rule": rule, "learning_rate": 0.01}, **(INNER if inner else {}))
        world.add_devices("abc")
        world.start()
        for number in (1, 2):
            run_until_opened(world, number)
            assert is_judging(world)
            if restarts:
                world.restart()
        assert world.run()
        assert len(of_kind(world, AdapterApplied)) == 2
        assert all(applied.accepted for applied in of_kind(world, AdapterApplied))
        digests.append(world.adapter().digest)
    assert digests[0] == digests[1]


def test_while_an_adapter_is_judged_devices_are_answered(world: World) -> None:
    world.submit(training={"rounds": 1})
    world.work_s = 60.0
    first, *_ = world.add_devices("abc")
    world.start()
    world.run(lambda: is_judging(world))
    receipts, began = len(first.receipts), world.time.now()
    first.announce(first.offers[RUN, ROUND])
    world.run(lambda: len(first.receipts) > receipts)
    assert is_judging(world)
    assert world.time.now() - began < 1.0
    assert world.run()
    assert world.time.now() - began >= 60.0
    assert "finished" in world.store.milestones(RUN)


def test_an_adapter_is_judged_once_however_long_that_takes(world: World) -> None:
    model = judging()
    seen: list[bytes] = []

    class Counting(model):  # type: ignore[valid-type, misc]
        def encode(self, texts: Sequence[str], *, adapter: bytes = b"") -> FloatMatrix:
            seen.append(adapter)
            return FixedFeatures.encode(self, texts)

    world.make_model = Counting
    world.work_s = 60.0
    world.submit(training={"rounds": 1}, **INNER)
    world.add_devices("abc")
    world.start()
    assert world.run()
    judged = [digest_of(adapter) for adapter in seen if adapter]
    assert judged == [world.first_adapter().digest, world.adapter().digest]


def test_a_judge_that_dies_fails_the_round_and_the_next_goes_on_from_the_same(
    world: World,
) -> None:
    plan = world.submit(**INNER)
    world.make_model = judging(None, ChildDied("out of memory"), None)
    world.add_devices("abc")
    world.start()
    assert world.run()
    (failed,) = of_kind(world, RoundFailed)
    assert (failed.code, failed.reason) == ("child_died", "out of memory")
    (applied,) = of_kind(world, AdapterApplied)
    mean = np.array(world.expected_mean(plan, 2, ABC))
    expected = world.first_adapter().moved(mean * plan.step_ratios)
    assert applied.adapter == expected.digest == world.adapter().digest
    assert "finished" in world.store.milestones(RUN)


def test_a_judge_that_always_dies_ends_the_run_with_its_reason(world: World) -> None:
    world.submit(**INNER)
    world.make_model = judging(None, *[ChildDied("out of memory")] * 2)
    world.add_devices("abc")
    world.start()
    assert world.run()
    facts = world.store.milestones(RUN)["failed"].facts
    assert facts["code"] == "child_died"
    assert facts["adapter"] == world.first_adapter().digest


def test_a_loss_that_is_no_number_rejects_the_adapter(world: World) -> None:
    world.submit(training={"rounds": 1}, **INNER)
    world.make_model = judging(None, np.nan)
    world.add_devices("abc")
    world.start()
    assert world.run()
    (applied,) = of_kind(world, AdapterApplied)
    started = world.store.milestones(RUN)["started"].facts
    assert not applied.accepted
    assert "nan" in applied.reason
    assert (applied.adapter, applied.loss) == (started["adapter"], started["loss"])


def test_a_run_that_is_stopped_while_its_adapter_is_judged_keeps_the_old_one(world: World) -> None:
    world.submit(training={"rounds": 2})
    world.add_devices("abc")
    world.start()
    world.run(lambda: is_judging(world))
    world.coordinator.stop_run(RUN, "enough")
    world.run_for(30)
    assert of_kind(world, AdapterApplied) == []
    facts = world.store.milestones(RUN)["stopped"].facts
    assert facts["adapter"] == world.first_adapter().digest
    assert world.rows[-1] == RoundFailed("stopped", "enough")


# What devices say about their own examples


def evaluated(world: World, *scores: tuple[int, int], **tables: dict[str, Any]) -> RunPlan:
    """A run of one round whose devices have scored so much on so many."""
    plan = world.submit(training={"rounds": 1}, evaluation={"share": 0.2}, **tables)
    for device, told in zip(world.add_devices("abc"[: len(scores)]), scores, strict=True):
        device.scores = told
    return plan


@pytest.mark.parametrize("scheme", ["clear", "public-key"])
def test_the_devices_own_examples_are_counted_in_the_sum_and_nowhere_else(
    world: World, adders: tuple[SumWorker, SumWorker], scheme: str
) -> None:
    plan = evaluated(world, (10, 20), (5, 10), (30, 30), protection={"scheme": scheme})
    world.add_key_holder(adders[1])
    world.start()
    assert world.run()
    assert_learnt_from(world, plan, ABC)
    (applied,) = of_kind(world, AdapterApplied)
    assert applied.evaluated == {
        "accuracy": pytest.approx(45 / 60),
        "examples": pytest.approx(60 * plan.evaluation_quantiser.step),
    }
    (view,) = view_run(world.store, world.store.run(RUN)).rounds
    assert view.evaluated == applied.evaluated


def test_a_rejected_adapter_does_not_hide_how_the_one_before_it_did(world: World) -> None:
    evaluated(world, (10, 20), (5, 10), (30, 30), server={"learning_rate": 400.0})
    world.start()
    assert world.run()
    (applied,) = of_kind(world, AdapterApplied)
    assert not applied.accepted
    assert applied.evaluated["accuracy"] == pytest.approx(45 / 60)


def test_noise_that_leaves_no_example_leaves_no_evaluation(world: World) -> None:
    plan = evaluated(world, (3, -5), (1, 2), (0, 3))
    world.start()
    assert world.run()
    assert_learnt_from(world, plan, ABC)
    (applied,) = of_kind(world, AdapterApplied)
    assert applied.evaluated == {}


def test_without_evaluation_nothing_is_said_about_it(world: World) -> None:
    world.submit(training={"rounds": 1})
    world.add_devices("abc")
    world.start()
    world.run()
    (applied,) = of_kind(world, AdapterApplied)
    assert applied.evaluated == {}
