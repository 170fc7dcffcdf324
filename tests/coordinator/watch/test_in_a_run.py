"""In a run with real ciphers: who signs what is refused is kept out, and nobody else is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from coordinator.audit.sink import NoAudit
from coordinator.federation.rounds import DeviceDeclined, Invited
from coordinator.fleet.standings import quarantine_trusted
from coordinator.store.alarms import QUARANTINED, UNTOUCHED
from coordinator.store.store import TRUSTED
from coordinator.watch.rules import About
from coordinator.watch.settings import RuleTable, Watching
from coordinator.watch.watch import Watch
from shared.crypto.identity import Identity
from shared.crypto.sum_worker import SumWorker
from shared.types import DeviceId, RoundNumber
from shared.wire import topics
from shared.wire.envelope import Post
from shared.wire.messages import Presence
from tests.support.coordination import RUN, World

SECURE = {"scheme": "public-key", "max_devices": 4}
BAD, HONEST = DeviceId("device-d"), DeviceId("device-a")
ONCE = Watching(rules={code: RuleTable(count=1) for code in ("device-refused", "bad-signatures")})


@pytest.fixture
def world(world: World, adders: tuple[SumWorker, SumWorker]) -> Iterator[World]:
    """Three honest devices and one that will not be, watched; the rules take one sighting."""

    def put(name: str, reason: str) -> bool:
        fleet, now = world.coordinator.fleet, world.time.now()
        return quarantine_trusted(world.store, fleet, DeviceId(name), reason, now=now)

    world.add_devices("abcd")
    world.add_key_holder(adders[1])
    watch = Watch(
        world.store.alarms,
        home=world.home,
        audit=NoAudit(),
        rules=ONCE.effective(),
        is_device=lambda name: world.store.device(name) is not None,
        now=world.time.now,
    )
    watch.let_quarantine(About.DEVICE, put)
    watch.start()
    world.watch = watch
    yield world
    watch.close()


def settle(world: World) -> None:
    """Wait until everything that was seen has been counted."""
    assert isinstance(world.watch, Watch)
    world.watch.close()


def cohorts(world: World) -> list[set[str]]:
    return [set(row.cohort) for row in world.rows if isinstance(row, Invited)]


def test_whose_update_is_refused_is_kept_out_and_the_others_sum_stays_theirs(world: World) -> None:
    plan = world.submit(protection=SECURE)
    world.devices[BAD].tamper = lambda frame: b"\xff" * len(frame)
    world.start()
    world.run(lambda: any(isinstance(row, DeviceDeclined) for row in world.rows))
    settle(world)
    world.run()
    (alarm,) = world.store.alarms.alarms(limit=9)
    assert (alarm.rule, alarm.subject, alarm.action) == ("device-refused", BAD, QUARANTINED)
    assert [BAD in cohort for cohort in cohorts(world)] == [True, False]
    honest = [f"device-{letter}" for letter in "abc"]
    expected = world.expected_adapter(plan, [honest, honest])
    assert world.adapter().to_bytes() == expected.to_bytes()


def altered(message: bytes) -> bytes:
    return message[:-1] + bytes([message[-1] ^ 1])


@pytest.mark.parametrize(
    ("change", "rule"),
    [(altered, "bad-signatures"), (lambda message: message, None), (bytes, "undecodable")],
    ids=["another signature", "a replay", "another key"],
)
def test_a_stranger_cannot_have_an_honest_device_kept_out(
    world: World, change: Callable[[bytes], bytes], rule: str | None
) -> None:
    world.submit(protection=SECURE)
    world.start()
    heard: list[bytes] = []
    ear = world.network.attach("stranger")
    ear.open(lambda _topic, payload: heard.append(payload), [topics.up(HONEST)])
    world.run(lambda: len(heard) > 2)
    if rule == "undecodable":
        folder = world.folder / "stranger"
        folder.mkdir()
        post = Post(Identity.create(folder / "identity.key"), folder)
        heard.insert(0, post.seal(Presence("idle"), run=RUN, round_=RoundNumber(1)))
    for message in heard[:1] * 40:
        ear.publish(topics.up(HONEST), change(message))
    world.run()
    settle(world)
    assert world.store.device(HONEST).standing == TRUSTED  # type: ignore[union-attr]
    found = world.store.alarms.alarms(limit=9)
    assert found, "it is told"
    assert HONEST in {alarm.subject for alarm in found}
    assert {alarm.action for alarm in found} == {UNTOUCHED}
    assert {alarm.rule for alarm in found} == {rule or "replays"}
    assert all(HONEST in cohort for cohort in cohorts(world))
