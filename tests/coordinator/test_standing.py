"""A device that is kept out in the middle of a run: the run goes on without it, and its sum is right."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coordinator.coordinator import KEPT_OUT_S
from coordinator.federation.rounds import Committed, Invited, SetFixed
from coordinator.fleet import standings
from coordinator.store.store import QUARANTINED, REVOKED, TRUSTED
from shared.crypto.sum_worker import SumWorker
from shared.errors import AccessDenied, NotPermitted
from shared.job import RunPlan
from shared.types import DeviceId, RoundNumber
from shared.wire import topics
from shared.wire.messages import Contribution
from tests.support.coordination import RUN, World

SECURE = {"scheme": "public-key", "max_devices": 4}
LATE = DeviceId("device-d")


def judge(world: World, standing: str) -> None:
    fleet, now = world.coordinator.fleet, world.time.now()
    assert standings.judge(world.store, fleet, LATE, standing, "odd updates", now=now)


@pytest.fixture
def secure(world: World, adders: tuple[SumWorker, SumWorker]) -> World:
    world.add_devices("abcd")
    world.add_key_holder(adders[1])
    return world


def invited(world: World) -> list[set[str]]:
    return [set(row.cohort) for row in world.rows if isinstance(row, Invited)]


def is_what_these_learnt(world: World, plan: RunPlan, rounds: list[str]) -> None:
    names = [[f"device-{letter}" for letter in round_] for round_ in rounds]
    for number, each in enumerate(names, start=1):
        assert set(world.counted(number)) == set(each), number
    expected = world.expected_adapter(plan, names)
    assert world.adapter().to_bytes() == expected.to_bytes()


def test_who_is_quarantined_before_a_run_is_not_invited(secure: World) -> None:
    plan = secure.submit(protection=SECURE)
    secure.start()
    judge(secure, QUARANTINED)
    secure.run()
    assert all(LATE not in cohort for cohort in invited(secure))
    assert secure.devices[LATE].invitations == []
    is_what_these_learnt(secure, plan, ["abc", "abc"])


def test_who_is_let_out_takes_part_again(secure: World) -> None:
    secure.submit(protection=SECURE)
    secure.start()
    judge(secure, QUARANTINED)
    secure.run(lambda: secure.store.progress([RUN])[RUN].round == 2)
    judge(secure, TRUSTED)
    secure.run()
    assert LATE not in invited(secure)[0]
    assert secure.over
    assert len(secure.counted(1)) == 3


@pytest.mark.parametrize("standing", [QUARANTINED, REVOKED])
def test_who_is_kept_out_when_it_was_invited_is_a_drop_out(secure: World, standing: str) -> None:
    plan = secure.submit(protection=SECURE)
    secure.start()
    secure.run(lambda: any(isinstance(row, Invited) for row in secure.rows))
    judge(secure, standing)
    secure.run()
    assert LATE in invited(secure)[0]
    assert all(LATE not in cohort for cohort in invited(secure)[1:])
    is_what_these_learnt(secure, plan, ["abc", "abc"])


def test_who_is_kept_out_after_the_set_was_fixed_is_a_drop_out_too(secure: World) -> None:
    """It is bound to an update, but does not come to hand it over."""
    plan = secure.submit(protection=SECURE)
    secure.devices[LATE].withholds = True
    secure.start()
    secure.run(lambda: any(isinstance(row, SetFixed) for row in secure.rows))
    assert LATE in {row.device for row in secure.rows if isinstance(row, Committed)}
    judge(secure, QUARANTINED)
    secure.devices[LATE].withholds = False
    secure.run()
    is_what_these_learnt(secure, plan, ["abc", "abc"])


def test_it_stays_out_when_the_coordinator_starts_again(secure: World) -> None:
    plan = secure.submit(protection=SECURE)
    secure.start()
    judge(secure, REVOKED)
    secure.restart()
    secure.run()
    is_what_these_learnt(secure, plan, ["abc", "abc"])


def test_who_was_revoked_joins_no_more_under_any_name(
    world: World, make_world: Callable[[], World]
) -> None:
    device = world.add_device(LATE)
    world.start()
    judge(world, REVOKED)
    key, now = device.post.public, world.time.now()
    for name in (LATE, "another"):
        token = world.store.new_token(expires_at=now + 10)
        with pytest.raises(AccessDenied, match="revoked"):
            world.store.join(token, DeviceId(name), key, now=now)
    for standing in (TRUSTED, QUARANTINED):
        assert not world.store.set_standing(LATE, standing, "", now=now), "it is for good"
    other = make_world()
    other.add_device(LATE)  # elsewhere it is another device's name


def test_it_is_told_now_and_then_and_nobody_else_can_have_it_told(secure: World) -> None:
    secure.start()
    secure.run_for(30.0)
    late = secure.devices[LATE]
    assert late.refusals == []
    judge(secure, QUARANTINED)
    secure.run_for(3 * KEPT_OUT_S)
    assert set(late.refusals) == {("", NotPermitted.code)}
    assert 2 <= len(late.refusals) <= 4
    late.hides = True
    secure.run_for(KEPT_OUT_S)
    before = len(late.refusals)
    stranger = secure.network.attach("stranger")
    stranger.open(lambda _topic, _payload: None, [])
    for _ in range(100):
        stranger.publish(topics.up(LATE), b"rubbish")
    secure.run_for(KEPT_OUT_S)
    assert len(late.refusals) == before


def test_what_it_says_is_dropped_and_harms_nobody(secure: World) -> None:
    plan = secure.submit(protection=SECURE)
    secure.start()
    judge(secure, QUARANTINED)
    late = secure.devices[LATE]
    late.insists = True
    for number in (1, 2):
        late.send(
            Contribution(LATE, "a" * 64, 100, "public-key", "0" * 16), RUN, RoundNumber(number)
        )
    secure.run()
    assert secure.failures == []
    is_what_these_learnt(secure, plan, ["abc", "abc"])
