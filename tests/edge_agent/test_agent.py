"""The agent takes part only in what its owner allowed, and sends each update until it has landed.

The agent is real and lives on virtual time; the coordinator it talks to is scripted.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from edge_agent.agent import ABOUT_AGAIN_S, ABOUT_S, PRESENCE_S, REPEAT_AT_MOST_S, REPEAT_S, WARM_S
from shared.crypto.identity import Identity
from shared.crypto.sum_cipher import SumContext, cipher_for, opener_for
from shared.crypto.sum_groups import joined
from shared.errors import AlreadyReleased, ChildDied, DataError, NotPermitted
from shared.files import digest_of
from shared.job import RunPlan
from shared.privacy.release import ReleaseSeeds
from shared.transport.memory import Link
from shared.types import RoundNumber
from shared.wire.envelope import NO_ROUND, NO_RUN, seal
from shared.wire.messages import (
    About,
    Accepted,
    BlobChunk,
    BlobRequest,
    Call,
    Contribution,
    Declined,
    HandOver,
    Invitation,
    Message,
    Presence,
    Receipt,
    Refusal,
    RunOver,
)
from tests.support.brokers import eventually
from tests.support.devices import TRAINS_S, DeviceWorld, ScriptedCoordinator, new_keys
from tests.support.plans import a_plan
from tests.support.trainers import ADAPTER, SeededTrainer, update_of

PLAN = a_plan()
ROUND = RoundNumber(1)
KEYS = new_keys(PLAN)
CLEAR = a_plan(protection={"scheme": "clear", "min_devices": 2})
LONG_ENOUGH_S = TRAINS_S + 2.0
"""For fetching, training and announcing, with a fast link and before anything is repeated."""

Start = Callable[..., DeviceWorld]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the device, again with a second call; every world on the same files."""
    worlds: list[DeviceWorld] = []

    def started(**options: Any) -> DeviceWorld:
        worlds.append(DeviceWorld(tmp_path, **options))
        return worlds[-1]

    yield started
    for world in worlds:
        world.close()


def invite(world: DeviceWorld, plan: RunPlan = PLAN, round_: int = 1, **changes: Any) -> bytes:
    """An invitation with nothing wrong in it but ``changes`` to the announcement."""
    announcement = world.coordinator.announcement(plan, KEYS, round_, **changes)
    return world.coordinator.invite(plan, round_, announcement=announcement)


def contribute(world: DeviceWorld, round_: int = 1) -> Contribution:
    """Let the device take part in a round up to its announcement."""
    before = len(world.coordinator.heard)
    invite(world, round_=round_)
    world.run_for(LONG_ENOUGH_S)
    # Of an earlier round there may be a repetition in between.
    return next(
        envelope.message
        for envelope in world.coordinator.heard[before:]
        if isinstance(envelope.message, Contribution) and envelope.round == round_
    )


def receive(world: DeviceWorld, contribution: Contribution) -> bytes:
    """Fetch an announced update."""
    world.coordinator.fetch(contribution)
    world.run_for(0.1)
    return world.coordinator.frames[contribution.digest]


def nothing_left_the_device(world: DeviceWorld) -> None:
    assert world.charges == []
    assert world.waiting == []
    assert world.seeds == 0
    assert world.coordinator.said(Contribution) == []
    assert world.coordinator.said(Accepted) == []


# Presence


def test_it_shows_itself_at_the_start_when_called_and_every_few_seconds(start: Start) -> None:
    world = start()
    world.run_for(0.5)
    assert world.coordinator.said(Presence) == [Presence("idle")]
    world.coordinator.send(Call())
    world.run_for(0.5)
    assert len(world.coordinator.said(Presence)) == 2
    world.run_for(2 * PRESENCE_S + 1)
    assert len(world.coordinator.said(Presence)) == 4


def test_it_answers_while_it_trains_and_says_that_it_does(start: Start) -> None:
    world = start()
    invite(world)
    world.run_for(1.0)
    world.coordinator.send(Call())
    world.run_for(1.0)
    assert world.coordinator.said(Presence)[-1] == Presence("training")
    world.run_for(TRAINS_S)
    assert world.coordinator.said(Presence)[-1] == Presence("idle")


def test_it_tells_of_itself_at_the_start_when_called_when_changed_and_now_and_then(
    start: Start,
) -> None:
    world = start()
    world.run_for(0.5)
    (about,) = world.coordinator.said(About)
    assert (about.condition, about.budget_left) == ("", "")
    world.coordinator.send(Call())
    world.run_for(0.5)
    assert world.coordinator.said(About) == [about] * 2
    world.run_for(ABOUT_S * 3)
    assert len(world.coordinator.said(About)) == 2, "nothing new"
    world.home.examples.unlink()
    world.run_for(ABOUT_S + PRESENCE_S)
    assert [each.condition for each in world.coordinator.said(About)[2:]] == ["no-examples"]
    world.run_for(ABOUT_AGAIN_S + ABOUT_S + PRESENCE_S)
    assert [each.condition for each in world.coordinator.said(About)[3:]] == ["no-examples"]


def test_it_declines_while_a_condition_does_not_hold_and_tells_no_reading(start: Start) -> None:
    world = start()
    world.run_for(0.5)
    world.unmet = {"battery": "on battery (41 %), and mains is asked for", "hot": "93 °C"}
    with capture_logs() as lines:
        invite(world)
        world.run_for(LONG_ENOUGH_S)
    (declined,) = world.coordinator.said(Declined)
    assert declined.code == "privacy.conditions"
    assert "battery, hot" in declined.reason
    assert "41" not in declined.reason
    assert [each.condition for each in world.coordinator.said(About)][-1] == "battery"
    assert any(line.get("battery") == world.unmet["battery"] for line in lines)
    nothing_left_the_device(world)
    world.unmet = {}
    world.run_for(ABOUT_S + PRESENCE_S)
    assert [each.condition for each in world.coordinator.said(About)][-1] == ""
    contribute(world)


def test_what_came_up_while_it_was_fetching_stops_it_before_it_is_charged(start: Start) -> None:
    world = start()
    held: Iterator[dict[str, str]] = iter([{}])  # when it was invited, and no more
    world.agent._unmet = lambda: next(held, {"busy": "other programs use 99 %"})
    invite(world)
    world.run_for(LONG_ENOUGH_S)
    assert world.coordinator.said(Accepted)
    (declined,) = world.coordinator.said(Declined)
    assert "busy" in declined.reason
    assert world.charges == []
    assert world.waiting == []


def test_what_comes_up_while_it_trains_does_not_stop_it(start: Start) -> None:
    world = start()
    invite(world)
    world.run_for(1.0)
    assert world.coordinator.said(Presence)[-1] == Presence("training")
    world.unmet = {"busy": "other programs use 99 %"}
    world.run_for(LONG_ENOUGH_S)
    assert world.coordinator.said(Contribution)


def test_a_round_that_was_begun_before_a_crash_is_finished_whatever_came_up(start: Start) -> None:
    world = start()
    ReleaseSeeds(world.home.seeds).obtain(PLAN.run_id, ROUND, lambda: b"s" * 32)
    world.unmet = {"busy": "other programs use 99 %"}
    contribute(world)
    assert world.coordinator.said(Declined) == []


def test_it_says_once_that_it_is_kept_out_and_again_after_it_was_let_in(start: Start) -> None:
    world = start()
    refusal = Refusal("", NotPermitted.code, "kitchen is quarantined")
    with capture_logs() as lines:
        for _ in range(3):
            world.coordinator.send(refusal)
            world.run_for(0.5)
        contribute(world)
        world.coordinator.send(refusal)
        world.run_for(0.5)
    said = [line["reason"] for line in lines if line["event"] == "device.kept_out"]
    assert said == ["kitchen is quarantined"] * 2
    assert len(world.waiting) == 1, "no update was given up for it"


# A round, from invitation to receipt


def test_an_invited_device_accepts_trains_announces_sends_and_forgets(start: Start) -> None:
    world = start()
    contribution = contribute(world)
    accepted = [e for e in world.coordinator.heard if isinstance(e.message, Accepted)]
    assert [(e.run, e.round) for e in accepted] == [(PLAN.run, 1)]
    assert (contribution.device, contribution.key_id) == ("kitchen", KEYS.key_id)
    assert contribution.size == cipher_for(PLAN.scheme, PLAN.layout).frame_bytes()
    frame = receive(world, contribution)
    assert digest_of(frame) == contribution.digest
    assert (world.waiting, world.seeds) == ([(PLAN.run, 1)], 1)
    world.coordinator.settle(contribution)
    world.run_for(0.1)
    assert (world.waiting, world.seeds, len(world.charges)) == ([], 0, 1)
    assert list(world.home.blobs.iterdir()) == []


def test_what_was_sent_decrypts_to_the_update_of_the_round_s_seed(start: Start) -> None:
    world = start()
    frame = receive(world, contribute(world))
    context = SumContext(PLAN.run_id, world.charges[0].round, KEYS.key_id)
    total = cipher_for(PLAN.scheme, PLAN.layout).begin(context)
    total.add(frame)
    integers = opener_for(PLAN.scheme, PLAN.layout).open(
        total.dump(), secret_key=KEYS.secret, context=context, devices=1
    )
    assert isinstance(world.trainer, SeededTrainer)
    (request,) = world.trainer.requests
    weight = PLAN.share_quantiser.dequantise(integers[-2:-1])[0]
    sent = PLAN.update_quantiser.dequantise(integers[:-2])
    step = PLAN.update_quantiser.step
    assert np.max(np.abs(sent - weight * update_of(request.seed))) < 2 * step


def test_a_journal_line_says_what_the_round_took(start: Start) -> None:
    world = start()
    began = world.transport.bytes_out
    contribution = contribute(world)
    receive(world, contribution)
    world.coordinator.settle(contribution)
    world.run_for(0.1)
    (line,) = (world.home.folder / "journal.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["run"], record["round"], record["outcome"]) == (PLAN.run, 1, "receipt")
    assert record["update_bytes"] == contribution.size
    assert contribution.size < record["bytes_out"] <= world.transport.bytes_out - began
    assert TRAINS_S <= record["seconds"] <= LONG_ENOUGH_S + 1


def test_a_clear_run_needs_no_key_holder_where_the_owner_allowed_it(start: Start) -> None:
    world = start(clear_runs=True, key_holder=False)
    world.coordinator.invite(CLEAR, announcement=b"")
    world.run_for(LONG_ENOUGH_S)
    assert len(world.coordinator.said(Contribution)) == 1


def test_an_invitation_that_is_repeated_is_accepted_again_and_trained_once(start: Start) -> None:
    world = start()
    for _ in range(3):
        invite(world)
        world.run_for(1.0)
    world.run_for(LONG_ENOUGH_S)
    invite(world)  # the update waits by now
    world.run_for(1.0)
    assert isinstance(world.trainer, SeededTrainer)
    assert (len(world.trainer.requests), len(world.charges)) == (1, 1)
    assert len(world.coordinator.said(Accepted)) == 4
    assert len({c.digest for c in world.coordinator.said(Contribution)}) == 1


def test_a_device_that_trains_declines_another_round(start: Start) -> None:
    world = start()
    invite(world)
    world.run_for(1.0)
    invite(world, round_=2)
    world.run_for(1.0)
    (declined,) = world.coordinator.said(Declined)
    assert declined.code == "device.busy"
    world.run_for(LONG_ENOUGH_S)
    assert [charge.round for charge in world.charges] == [1]


def test_a_round_that_was_still_being_fetched_gives_way_to_the_next(start: Start) -> None:
    world = start()
    world.coordinator.serves = False
    invite(world)
    world.run_for(1.0)
    world.coordinator.serves = True
    assert contribute(world, round_=2).key_id == KEYS.key_id
    assert [charge.round for charge in world.charges] == [2]


def test_blobs_that_do_not_come_are_asked_for_until_they_do(start: Start) -> None:
    world = start()
    world.coordinator.serves = False
    invite(world)
    world.run_for(30.0)
    assert world.charges == []
    assert len(world.coordinator.said(BlobRequest)) > 10
    world.coordinator.serves = True
    world.run_for(LONG_ENOUGH_S + 3)
    assert len(world.charges) == 1


def test_over_a_link_that_loses_a_third_of_everything_the_update_still_lands(start: Start) -> None:
    world = start(link=Link(latency_s=0.05, loss=0.33))
    for _ in range(60):
        if not (said := world.coordinator.said(Contribution)):
            invite(world)
        elif len(world.coordinator.frames.get(said[0].digest, b"")) < said[0].size:
            world.coordinator.fetch(said[0])
        else:
            world.coordinator.settle(said[0])
        world.run_for(5.0)
    assert (world.waiting, len(world.charges)) == ([], 1)
    assert digest_of(world.coordinator.frames[said[0].digest]) == said[0].digest


# What is declined, and costs nothing


def declined_with(world: DeviceWorld, code: str) -> str:
    world.run_for(LONG_ENOUGH_S)
    (declined,) = world.coordinator.said(Declined)
    assert declined.code == code
    nothing_left_the_device(world)
    return declined.reason


def test_a_key_of_somebody_else_than_the_pinned_key_holder(start: Start) -> None:
    world = start()
    invite(world, signer=world.coordinator.identity)
    declined_with(world, "protocol.undecodable")


def test_an_announcement_whose_signature_was_tampered_with(start: Start) -> None:
    world = start()
    announced = world.coordinator.announcement(PLAN, KEYS)
    tampered = bytes([*announced[:-1], announced[-1] ^ 1])
    world.coordinator.invite(PLAN, announcement=tampered)
    declined_with(world, "protocol.signature")


@pytest.mark.parametrize("announcement", [b"", b"\x00" * 80, b"not cbor"])
def test_no_announcement_at_all(start: Start, announcement: bytes) -> None:
    world = start()
    world.coordinator.invite(PLAN, announcement=announcement)
    declined_with(world, "protocol.undecodable")


def test_a_signed_message_of_the_key_holder_that_is_no_announcement(start: Start) -> None:
    world = start()
    sealed = seal(world.coordinator.holder, 2, Receipt("ab"), run=PLAN.run_id, round_=ROUND)
    world.coordinator.invite(PLAN, announcement=sealed)
    declined_with(world, "protocol.wrong_key")


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "another"},
        {"round_": 2},
        {"count": PLAN.layout.count + 1},
        {"count": PLAN.layout.count - 1},
        {"bits": 16},
        {"max_devices": 255},
        {"scheme": "clear"},
        {"groups": 2},
    ],
)
def test_a_key_for_another_run_round_or_layout(start: Start, changes: dict[str, Any]) -> None:
    world = start()
    round_ = changes.pop("round_", 1)
    announcement = world.coordinator.announcement(PLAN, KEYS, round_, **changes)
    world.coordinator.invite(PLAN, announcement=announcement)
    assert "another round or layout" in declined_with(world, "protocol.wrong_key")


def test_a_sum_over_one_device_less_than_the_owner_asks_for(start: Start) -> None:
    world = start(min_devices=5)
    invite(world, min_devices=4)
    reason = declined_with(world, "privacy.owner")
    assert "4" in reason
    assert "5" in reason


def test_a_sum_over_exactly_as_many_devices_as_the_owner_asks_for_is_joined(start: Start) -> None:
    world = start(min_devices=5)
    invite(world, min_devices=5)
    world.run_for(LONG_ENOUGH_S)
    assert len(world.coordinator.said(Contribution)) == 1


def test_a_run_in_clear_where_the_owner_did_not_allow_it(start: Start) -> None:
    world = start()
    world.coordinator.invite(CLEAR, announcement=b"")
    assert "clear" in declined_with(world, "privacy.owner")


def test_an_encrypted_run_where_no_key_holder_was_pinned(start: Start) -> None:
    world = start(key_holder=False, clear_runs=True)
    invite(world)
    assert "llmos edge join" in declined_with(world, "protocol.wrong_key")


def test_a_run_beyond_the_budget(start: Start) -> None:
    world = start(epsilon_budget=1.0)
    invite(world)
    reason = declined_with(world, "privacy.budget")
    assert "1.00" in reason


def test_a_simulated_run_on_a_real_device(start: Start) -> None:
    world = start()
    invite(world, a_plan(simulation=True))
    declined_with(world, "privacy.seed")


@pytest.mark.parametrize("changes", [{"run": "another"}, {"round_": 0}, {"round_": 4}])
def test_a_plan_of_another_run_or_a_round_beyond_it(start: Start, changes: dict[str, Any]) -> None:
    world = start()
    announcement = world.coordinator.announcement(PLAN, KEYS)
    world.coordinator.invite(PLAN, announcement=announcement, **changes)
    declined_with(world, "config")


def test_a_plan_that_is_none(start: Start) -> None:
    world = start()
    plan = PLAN.model_copy(update={"value_range": -1.0})
    invite(world, plan)
    assert "value_range" in declined_with(world, "config")


def test_a_damaged_ledger(start: Start) -> None:
    world = start()
    world.home.ledger.write_text("{}\n")
    invite(world)
    world.run_for(LONG_ENOUGH_S)
    (declined,) = world.coordinator.said(Declined)
    assert declined.code == "privacy.ledger"
    assert world.coordinator.said(Contribution) == []


def test_a_round_whose_update_has_its_receipt_already(start: Start) -> None:
    """However freshly the invitation is signed: it would be a second view for one charge."""
    world = start()
    world.coordinator.settle(contribute(world))
    world.run_for(0.1)
    invite(world)
    world.run_for(LONG_ENOUGH_S)
    (declined,) = world.coordinator.said(Declined)
    assert declined.code == AlreadyReleased.code
    assert len({c.digest for c in world.coordinator.said(Contribution)}) == 1
    assert len(world.charges) == 1


class BrokenTrainer(SeededTrainer):
    """Fails a number of times, in one way."""

    def __init__(self, error: Exception, times: int) -> None:
        super().__init__(before=self._fail)
        self._error = error
        self.left = times

    def _fail(self) -> None:
        if self.left > 0:
            self.left -= 1
            raise self._error


def test_training_that_cannot_work_is_declined_without_the_words_of_the_device(
    start: Start,
) -> None:
    world = start(trainer=BrokenTrainer(DataError("/home/ann/diary.db: no label 'cancer'"), 1))
    invite(world)
    world.run_for(LONG_ENOUGH_S)
    (declined,) = world.coordinator.said(Declined)
    assert declined == Declined("data", "A data file or example store cannot be used as it is.")
    assert world.waiting == []


def test_a_training_process_that_died_is_tried_again_at_the_next_invitation(start: Start) -> None:
    trainer = BrokenTrainer(ChildDied("killed for memory"), 1)
    world = start(trainer=trainer)
    invite(world)
    world.run_for(LONG_ENOUGH_S)
    assert world.coordinator.said(Declined) == []
    assert world.coordinator.said(Presence)[-1] == Presence("idle")
    assert contribute(world).size > 0
    assert len(world.charges) == 1


# Who may speak to it


def refused(world: DeviceWorld) -> None:
    world.run_for(LONG_ENOUGH_S)
    assert world.coordinator.said(Declined) == []
    nothing_left_the_device(world)


def test_a_replayed_invitation_is_not_heard_in_the_same_life_nor_in_the_next(start: Start) -> None:
    world = start()
    recorded = invite(world)
    world.run_for(LONG_ENOUGH_S)
    world.coordinator.settle(world.coordinator.said(Contribution)[0])
    world.run_for(0.1)
    accepted = len(world.coordinator.said(Accepted))
    world.coordinator.send_raw(recorded)
    world.run_for(LONG_ENOUGH_S)
    assert len(world.coordinator.said(Accepted)) == accepted
    world.close()
    again = start()
    again.coordinator.send_raw(recorded)
    again.run_for(LONG_ENOUGH_S)
    assert (again.coordinator.said(Accepted), again.coordinator.said(Declined)) == ([], [])
    assert len(again.charges) == 1


def test_nobody_but_the_pinned_coordinator_is_heard(start: Start, tmp_path: Path) -> None:
    world = start()
    message = Invitation(
        plan=PLAN.model_dump_json(),
        adapter=world.coordinator.blob(ADAPTER.to_bytes()),
        adapter_bytes=len(ADAPTER.to_bytes()),
        announcement=world.coordinator.announcement(PLAN, KEYS),
    )
    stranger = Identity.create(tmp_path / "stranger.key")
    for sender in (stranger, world.coordinator.holder):
        world.coordinator.send_raw(seal(sender, 10**6, message, run=PLAN.run_id, round_=ROUND))
    refused(world)
    # The control: it was who sent it, and nothing else.
    coordinator = world.coordinator.identity
    world.coordinator.send_raw(seal(coordinator, 10**6, message, run=PLAN.run_id, round_=ROUND))
    world.run_for(1.0)
    assert len(world.coordinator.said(Accepted)) == 1


@pytest.mark.parametrize("noise", [b"", b"\xff" * 40, b"{}"])
def test_noise_on_its_topic_is_survived(start: Start, noise: bytes) -> None:
    world = start()
    world.coordinator.send_raw(noise)
    refused(world)
    assert contribute(world).size > 0


def test_a_message_that_only_devices_send_is_refused(start: Start) -> None:
    world = start()
    message: Message = Presence("idle")
    world.coordinator.send(message)
    refused(world)


# Until it has landed


def test_without_a_receipt_the_update_is_announced_again_and_more_and_more_rarely(
    start: Start,
) -> None:
    """While others still train there is no answer; twenty announcements a minute would not help."""
    world = start()
    contribute(world)
    world.run_for(10 * REPEAT_AT_MOST_S)
    heard = [e.message for e in world.coordinator.heard if isinstance(e.message, Contribution)]
    assert len(set(heard)) == 1
    # After 3, 6, 12, 24 and 48 seconds, and then every minute.
    assert 12 <= len(heard) <= 16


# Nothing leaves before the set is fixed


def asked_in_vain(world: DeviceWorld, contribution: Contribution) -> bool:
    """Whether not one byte of the update comes when it is asked for."""
    before = len(world.coordinator.said(BlobChunk))
    world.coordinator.ask_for(contribution)
    world.run_for(1.0)
    return len(world.coordinator.said(BlobChunk)) == before


def test_an_update_does_not_leave_before_the_set_is_fixed(start: Start) -> None:
    world = start()
    contribution = contribute(world)
    assert asked_in_vain(world, contribution)
    world.coordinator.hand_over(contribution)
    world.run_for(0.1)
    assert not asked_in_vain(world, contribution), "the control: now it does"


def drawn_apart(contribution: Contribution, coordinator: ScriptedCoordinator) -> bytes:
    """Four updates in four groups: every sum would be one device's update."""
    return coordinator.fixed_set(contribution, groups=4)


FALSE_SETS: dict[str, Callable[[Contribution, ScriptedCoordinator], bytes]] = {
    "none at all": lambda c, k: b"",
    "junk": lambda c, k: b"junk",
    "signed by the coordinator": lambda c, k: k.fixed_set(c, signer=k.identity),
    "of another run": lambda c, k: k.fixed_set(c, run="another"),
    "of another round": lambda c, k: k.fixed_set(c, round_=2),
    "under another key": lambda c, k: k.fixed_set(c, key_id="0" * 16),
    "without this update": lambda c, k: k.fixed_set(c, digests=joined([digest_of(b"other")])),
    "of this update alone": lambda c, k: k.fixed_set(c, digests=bytes.fromhex(c.digest)),
    "of this update twice": lambda c, k: k.fixed_set(c, digests=2 * bytes.fromhex(c.digest)),
    "of half a digest": lambda c, k: k.fixed_set(c, digests=bytes(33)),
    "drawn from another seed": lambda c, k: k.fixed_set(c, seed=bytes(32)),
    "in no group": lambda c, k: k.fixed_set(c, groups=0),
    "in more groups than updates": lambda c, k: k.fixed_set(c, groups=2**62),
    "in groups of one": drawn_apart,
}


@pytest.mark.parametrize("name", sorted(FALSE_SETS))
def test_an_update_is_withheld_from_a_false_set_and_not_lost_by_it(start: Start, name: str) -> None:
    world = start()
    contribution = contribute(world)
    world.coordinator.hand_over(contribution, FALSE_SETS[name](contribution, world.coordinator))
    world.run_for(0.1)
    assert asked_in_vain(world, contribution)
    assert world.waiting == [(PLAN.run, 1)]
    assert digest_of(receive(world, contribution)) == contribution.digest


def test_another_message_of_the_key_holders_is_no_set(start: Start) -> None:
    world = start()
    contribution = contribute(world)
    world.coordinator.hand_over(contribution, world.coordinator.announcement(PLAN, KEYS))
    world.run_for(0.1)
    assert asked_in_vain(world, contribution)


@pytest.mark.parametrize(
    ("least", "groups", "leaves"), [(4, 1, True), (5, 1, False), (2, 2, True), (3, 2, False)]
)
def test_the_owners_minimum_is_about_the_group_that_is_summed(
    start: Start, least: int, groups: int, leaves: bool
) -> None:
    """The set holds four; the key holder may promise what it likes."""
    world = start(min_devices=least)
    invite(world, min_devices=least)
    world.run_for(LONG_ENOUGH_S)
    (contribution,) = world.coordinator.said(Contribution)
    fixed = world.coordinator.fixed_set(contribution, groups=groups)
    world.coordinator.hand_over(contribution, fixed)
    world.run_for(0.1)
    assert asked_in_vain(world, contribution) is not leaves


def test_a_set_lets_its_own_rounds_update_leave_and_no_other(start: Start) -> None:
    world = start()
    first, second = contribute(world), contribute(world, round_=2)
    fixed = world.coordinator.fixed_set(first)
    for round_ in (2, 3):
        world.coordinator.send(HandOver(fixed), PLAN.run, round_)
    world.coordinator.send(HandOver(fixed), "another", 1)
    world.run_for(0.1)
    assert asked_in_vain(world, first)
    assert asked_in_vain(world, second)
    world.coordinator.hand_over(first, fixed)
    world.run_for(0.1)
    assert asked_in_vain(world, second)
    assert not asked_in_vain(world, first)


def test_after_a_restart_nothing_leaves_until_the_set_is_shown_again(start: Start) -> None:
    world = start()
    contribution = contribute(world)
    frame = receive(world, contribution)
    world.close()
    again = start()
    again.run_for(1.0)
    assert again.coordinator.said(Contribution) == [contribution]
    assert asked_in_vain(again, contribution)
    assert receive(again, contribution) == frame


def test_an_update_in_clear_leaves_only_where_the_owner_allows_that(start: Start) -> None:
    world = start(clear_runs=True)
    world.coordinator.invite(CLEAR, announcement=b"")
    world.run_for(LONG_ENOUGH_S)
    (contribution,) = world.coordinator.said(Contribution)
    assert asked_in_vain(world, contribution)
    world.close()
    strict = start(clear_runs=False)
    strict.run_for(1.0)
    strict.coordinator.hand_over(strict.coordinator.said(Contribution)[0], b"")
    strict.run_for(0.1)
    assert asked_in_vain(strict, contribution)
    strict.close()
    again = start(clear_runs=True)
    again.run_for(1.0)
    again.coordinator.hand_over(again.coordinator.said(Contribution)[0], b"")
    again.run_for(0.1)
    assert not asked_in_vain(again, contribution)


def test_after_a_restart_the_same_bytes_are_sent(start: Start) -> None:
    world = start()
    contribution = contribute(world)
    frame = receive(world, contribution)
    world.close()
    again = start()
    again.run_for(1.0)
    assert again.coordinator.said(Contribution) == [contribution]
    assert receive(again, contribution) == frame
    again.coordinator.settle(contribution)
    again.run_for(10 * REPEAT_S)
    assert again.coordinator.said(Contribution)[1:] == []
    assert (again.waiting, again.seeds, len(again.charges)) == ([], 0, 1)


def test_a_device_that_died_in_training_repeats_the_same_update_when_invited_anew(
    start: Start,
) -> None:
    in_training, dead = threading.Event(), threading.Event()

    def train_for_ever() -> None:
        in_training.set()
        dead.wait(120)

    trainer = SeededTrainer(before=train_for_ever)
    world = start(trainer=trainer)
    invite(world)
    world.run_for(1.0)
    assert in_training.wait(120)
    world.close()
    assert (len(world.charges), world.waiting) == (1, [])
    dead.set()
    assert eventually(lambda: len(trainer.requests) == 1)
    again = start()
    contribute(again)
    assert isinstance(again.trainer, SeededTrainer)
    assert [r.seed for r in again.trainer.requests] == [r.seed for r in trainer.requests]
    assert len(again.charges) == 1


@pytest.mark.parametrize("refusal", ["", "round.closed"])
def test_a_receipt_and_a_refusal_both_delete_the_update_and_its_seed(
    start: Start, refusal: str
) -> None:
    world = start()
    contribution = contribute(world)
    world.coordinator.settle(contribution, refusal)
    world.run_for(10 * REPEAT_S)
    assert (world.waiting, world.seeds) == ([], 0)
    assert world.coordinator.said(Contribution) == [contribution]
    record = json.loads((world.home.folder / "journal.jsonl").read_text())
    assert record["outcome"] == ("refused" if refusal else "receipt")


def test_a_receipt_for_another_digest_deletes_nothing(start: Start) -> None:
    world = start()
    contribution = contribute(world)
    world.coordinator.settle(replace(contribution, digest="ab" * 32))
    world.run_for(0.1)
    assert world.waiting == [(PLAN.run, 1)]


def test_a_receipt_deletes_its_own_update_only(start: Start) -> None:
    world = start()
    first = contribute(world)
    contribute(world, round_=2)
    assert world.waiting == [(PLAN.run, 1), (PLAN.run, 2)]
    world.coordinator.settle(first)
    world.run_for(0.1)
    assert world.waiting == [(PLAN.run, 2)]


def test_only_what_waits_in_the_outbox_is_served(start: Start) -> None:
    world = start()
    contribution = contribute(world)
    secrets = [world.home.examples, world.home.ledger, *world.home.seeds.iterdir()]
    for path in secrets:
        digest = digest_of(path.read_bytes())
        world.coordinator.frames[digest] = b""
        world.coordinator.send(BlobRequest(digest, 0, 10**6))
    world.run_for(1.0)
    assert set(world.coordinator.frames.values()) == {b""}
    receive(world, contribution)
    world.coordinator.settle(contribution)
    world.coordinator.fetch(contribution)
    world.run_for(1.0)
    assert world.coordinator.frames[contribution.digest] == b""


# The warm training process


def test_the_training_process_ends_with_the_run(start: Start) -> None:
    trainer = SeededTrainer()
    world = start(trainer=trainer)
    world.coordinator.settle(contribute(world))
    world.run_for(60.0)
    assert trainer.closed == 0
    world.coordinator.send(RunOver(), run=PLAN.run)
    world.run_for(0.1)
    assert trainer.closed == 1


def test_without_a_word_that_the_run_is_over_it_ends_after_a_while(start: Start) -> None:
    trainer = SeededTrainer()
    world = start(trainer=trainer)
    world.coordinator.settle(contribute(world))
    world.run_for(WARM_S - 20)
    assert trainer.closed == 0
    world.run_for(30.0)
    assert trainer.closed == 1


def test_the_end_of_a_run_does_not_end_the_training_of_another(start: Start) -> None:
    trainer = SeededTrainer()
    world = start(trainer=trainer)
    invite(world)
    world.run_for(1.0)
    world.coordinator.send(RunOver(), run="another")
    world.run_for(LONG_ENOUGH_S)
    assert trainer.closed == 0
    assert world.waiting == [(PLAN.run, 1)]


def test_the_end_of_the_run_that_is_being_fetched_ends_its_task(start: Start) -> None:
    world = start()
    world.coordinator.serves = False
    invite(world)
    world.run_for(1.0)
    world.coordinator.send(RunOver(), run=PLAN.run)
    world.run_for(0.1)
    world.coordinator.serves = True
    world.run_for(LONG_ENOUGH_S)
    assert world.charges == []


def test_no_message_carries_a_run_that_it_does_not_belong_to(start: Start) -> None:
    world = start()
    receive(world, contribute(world))
    for envelope in world.coordinator.heard:
        in_a_round = isinstance(envelope.message, Accepted | Contribution)
        expected = (PLAN.run, 1) if in_a_round else (NO_RUN, NO_ROUND)
        assert (envelope.run, envelope.round) == expected
