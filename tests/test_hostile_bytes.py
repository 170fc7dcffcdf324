"""Whatever bytes arrive, wherever: nobody ends, nobody grows, and the run learns what it would have.

One fleet of real processes learns a small run in encrypted sums while somebody with access to
the broker, somebody at the HTTP API and six devices that joined, were approved and are invited
do their worst. The devices hold each round open for as long as the attack takes: they answer
last. What is learnt must be what the same devices learn undisturbed, to the byte.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from coordinator.federation.rounds import Committed
from shared.files import digest_of
from shared.job import CohortTable
from shared.types import RoundNumber
from shared.wire import codec, topics
from shared.wire.messages import BlobChunk, Declined, from_body
from sim.fleet_processes import COORDINATOR, KEY_HOLDER, FleetProcesses
from sim.scenario import Scenario
from tests.support.attackers import AT_ONCE, Eavesdropper, HostileDevice, Log, status_of
from tests.support.brokers import mosquitto_or_skip
from tests.support.hostile import PATHS, hostile_request, routes_of
from tests.support.proc import resident_bytes
from tests.support.small_fleet import SEED, small_population, small_scenario
from tests.support.stories import ROUNDS, Story, model_or_skip, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.model, pytest.mark.processes, pytest.mark.slow]

FEW: Final = 500
MANY: Final = 10_000
"""Hostile messages and requests, all inboxes together."""

WARM_UP: Final = 600
"""Before memory is measured: libraries load what they need at the first error of a kind."""

MAX_GROWTH_BYTES: Final = 5_000_000
LOG_LINE_BYTES: Final = 400
"""Most that a refused message may cost of a log, on average."""

ANSWERED_ALREADY: Final = "h11._util.LocalProtocolError: can't handle event type Response"

HOSTILE: Final = 6
ATTACKED: Final = 3
"""Rounds in which there is an attack; in the others the hostile devices only decline."""

HOLDER: Final = topics.down(topics.KEY_HOLDER)


REST_S: Final = 1.0
"""After so long without anything to do, what was freed has been given back."""


@dataclass(frozen=True)
class Measured:
    """What a process takes up."""

    resident_bytes: int
    log_bytes: int


class Siege:
    """The fleet, everybody who means harm to it, and what they have sent."""

    def __init__(self, story: Story, folder: Path, stack: ExitStack) -> None:
        self.story = story
        fleet = story.fleet
        self.device = story.devices[0]
        self.down = topics.down(self.device)
        self.ups = [topics.up(name) for name in (*story.devices, topics.KEY_HOLDER)]
        self.logs = {name: Log(fleet.home(name) / "log") for name in self.attacked}
        logs = {self.ups[0]: COORDINATOR, HOLDER: KEY_HOLDER, self.down: self.device}
        self.ear = Eavesdropper(
            fleet.ready["broker_port"],
            folder / "eavesdropper",
            {topic: self.logs[name] for topic, name in logs.items()},
            SEED,
        )
        stack.callback(self.ear.close)
        self.devices = [HostileDevice(fleet, f"hostile-{n}") for n in range(1, HOSTILE + 1)]
        for device in self.devices:
            stack.callback(device.close)
        told = routes_of(fleet.client.get("/api/v1/openapi.json"))
        # To log out or to ask for the first link, the token is enough: whatever the body, it is done.
        self.routes = [route for route in told if route.can_refuse]
        self.port = int(fleet.ready["url"].rpartition(":")[2])
        self.token = (fleet.home(COORDINATOR) / "admin.token").read_text()
        self.statuses: Counter[int | None] = Counter()
        self.unacceptable: Counter[str] = Counter()
        """Messages sent that no process may accept, by process."""

    @property
    def attacked(self) -> list[str]:
        """The processes that must neither end nor grow."""
        return [COORDINATOR, KEY_HOLDER, self.device]

    @property
    def sent(self) -> int:
        """Hostile messages and requests so far."""
        return self.ear.sent.total() + self.statuses.total()

    def measured(self) -> dict[str, Measured]:
        """Each process that is attacked, when it has come to rest."""
        time.sleep(REST_S)
        return {
            name: Measured(
                resident_bytes(self.story.fleet.pid(name)), self.logs[name].path.stat().st_size
            )
            for name in self.attacked
        }

    def manifests(self) -> set[str]:
        """Digests of the manifests that the key holder was asked to fix."""
        found: set[str] = set()
        for number in range(1, ROUNDS + 1):
            records = {
                row.device: row.record
                for at, row in self.story.rows()
                if at == number and isinstance(row, Committed)
            }
            ordered = [records[device] for device in sorted(records)]
            found.add(digest_of(codec.encode(ordered)))
        return found

    def burst(self, count: int, number: int) -> None:
        """Send exactly so many in a round, to all inboxes."""
        end = self.sent + count
        while self.sent < end:
            self._wave(min(AT_ONCE, end - self.sent), number)
        self.show()

    def show(self) -> None:
        """Let nobody forget that the hostile devices are there."""
        for device in self.devices:
            device.show()

    def _wave(self, count: int, number: int) -> None:
        """Send so many, and wait until they were read."""
        rng, ear, end = self.ear.rng, self.ear, self.sent + count
        inboxes = [self.ups[0], HOLDER, self.down]
        while self.sent < end - len(inboxes):
            draw = rng.random()
            if draw < 0.35:
                topic = rng.choice([*self.ups, topics.up("nobody")])
                source = topic if ear.heard(topic) else self.ups[0]
                others = [up for up in self.ups if up != topic] + [HOLDER, self.down]
                self._publish(COORDINATOR, topic, ear.mutation(source, others))
            elif draw < 0.55:
                self._signed(rng, number)
            elif draw < 0.57:
                # The coordinator's own words to somebody else: whole, signed, and often new.
                theirs = ear.heard(topics.down(self.story.devices[1]))
                ear.publish(rng.choice([HOLDER, self.down]), rng.choice(theirs))
            elif draw < 0.70:
                self._publish(KEY_HOLDER, HOLDER, ear.mutation(HOLDER, self.ups))
            elif draw < 0.80:
                self._publish(self.device, self.down, ear.mutation(self.down, self.ups))
            else:
                route = rng.choice(self.routes)
                self.statuses[status_of(self.port, hostile_request(rng, route, self.token))] += 1
        for inbox in inboxes[: end - self.sent]:
            ear.mark(inbox)

    def _signed(self, rng: Random, number: int) -> None:
        device, run = rng.choice(self.devices), self.story.run
        topic = topics.up(device.name)
        if rng.random() < 0.5:
            self._publish(COORDINATOR, topic, device.liar.malformed(rng, run, number))
        else:
            # Some of these are only useless, and not refused.
            self.ear.publish(topic, device.liar.silly(rng, run, number, self._digests()))

    def _publish(self, name: str, topic: str, message: bytes) -> None:
        """Send a process what it must refuse."""
        self.ear.publish(topic, message)
        self.unacceptable[name] += 1

    def _digests(self) -> list[str]:
        """What the coordinator has, for whoever asks."""
        blobs = self.story.fleet.home(COORDINATOR) / "blobs"
        return sorted(path.name for path in blobs.iterdir())

    # A round

    def invited(self, number: int) -> None:
        """Wait until every hostile device is invited."""
        self.show()
        wait_for(
            lambda: all(number in device.invitations for device in self.devices) or None,
            f"invitations to round {number}",
        )

    def complete(self, number: int) -> None:
        """Wait until every honest device has committed."""
        honest = set(self.story.devices)
        wait_for(lambda: self.story.committed(number) >= honest or None, "the honest devices")

    def decline(self, number: int) -> None:
        """Let the round go on without the hostile devices, who talk too much."""
        for device in self.devices:
            device.send(Declined("c" * 100_000, "r" * 100_000), self.story.run, number)

    def retire(self, number: int) -> None:
        """Decline this and every later round."""
        for device in self.devices:
            device.retired = True
            device.send(Declined("retired", ""), self.story.run, number)

    def commit_wrongly(self, number: int) -> None:
        """Offer what must not even be written down."""
        story, device = self.story, self.devices[0]
        poisoner = device.poisoner(number, b"")
        frame, context = next(poisoner.frames())[2], poisoner.context
        theirs = next(
            row.digest for at, row in story.rows() if at == number and isinstance(row, Committed)
        )
        lies: list[tuple[str, dict[str, Any]]] = [
            ("protocol", {"size": 2**62}),
            ("protocol", {"size": len(frame) - 1}),
            *(("protocol", {"digest": path}) for path in PATHS),
            ("protocol", {"device": story.devices[0]}),
            ("protocol.wrong_key", {"key_id": "0" * 16}),
            ("protocol.wrong_key", {"scheme": "clear"}),
            ("round.duplicate", {"digest": theirs}),
        ]
        device.forget_refusals()
        for code, lie in lies:
            digest = device.commit(frame, context, **lie)
            assert device.code_for(digest) == code, lie
            del device.refusals[digest]
        for number_ in (number - 1, number + 1, 2**40):
            other = replace(context, round=RoundNumber(number_))
            digest = device.commit(frame, other)
            assert device.code_for(digest) == "round.closed"
            del device.refusals[digest]
        assert story.committed(number) == set(story.devices)

    def commit_poison(self, number: int, which: int) -> dict[str, tuple[HostileDevice, str, str]]:
        """Bind every hostile device to an update that is wrong; gives device, fault and code."""
        chunk = self.ear.heard(topics.up(self.story.devices[1]), BlobChunk.kind)[0]
        earlier = from_body(BlobChunk.kind, codec.decode(chunk)[6])
        assert isinstance(earlier, BlobChunk)
        bound = {}
        for device, place in zip(self.devices, range(which, which + HOSTILE), strict=True):
            poisoner = device.poisoner(number, earlier.data)
            fault, code, frame = list(poisoner.frames())[place]
            bound[device.commit(frame, poisoner.context)] = (device, fault, code)
        wait_for(
            lambda: all(number in device.handed_over for device in self.devices) or None,
            "the set to be fixed with all of them in it",
        )
        return bound

    def hand_over(self, bound: dict[str, tuple[HostileDevice, str, str]]) -> None:
        """Hand over what the devices are bound to; each is refused by its name."""
        for device in self.devices:
            device.withholds = False
        for digest, (device, fault, code) in bound.items():
            assert device.code_for(digest) == code, fault
        for device in self.devices:
            device.withholds = True


@contextmanager
def besieged(folder: Path, scenario: Scenario) -> Iterator[Siege]:
    """A fleet under attack in which everybody has started, and a run is under way."""
    mosquitto_or_skip()
    model_or_skip()
    population = small_population(scenario)
    with ExitStack() as stack:
        least = scenario.protection.min_devices
        fleet = stack.enter_context(FleetProcesses(folder / "fleet", seed=SEED, min_devices=least))
        fleet.start_coordinator()
        for device, examples in population.devices.items():
            fleet.add_device(device, examples)
            fleet.start_device(device)
        story = Story(fleet, scenario, population)
        siege = Siege(story, folder, stack)
        story.submit(scenario)
        yield siege


def siege_scenario(folder: Path) -> Scenario:
    """The small story, whose rounds wait for the hostile devices too."""
    cohort = CohortTable(
        devices=3 + HOSTILE, patience_s=600.0, lease_s=600.0, round_timeout_s=1200.0
    )
    # The population are the honest devices, so a scenario as such would call this a contradiction.
    return small_scenario(folder, training={"rounds": ROUNDS}).model_copy(update={"cohort": cohort})


@pytest.fixture
def undisturbed(simulated_twice: tuple[dict[str, Any], Any]) -> str:
    """What the honest devices learn by themselves, over the memory transport."""
    return str(simulated_twice[0]["adapter_hash"])


def is_unharmed_by(count: int, folder: Path, undisturbed: str) -> None:
    """Let a run be attacked with so many messages and requests; nothing may come of it."""
    with besieged(folder, siege_scenario(folder)) as siege:
        story = siege.story
        pids = [story.fleet.pid(name) for name in siege.attacked]
        for number in range(1, ATTACKED):
            siege.invited(number)
            siege.burst(WARM_UP // 2, number)
            siege.complete(number)
            if number == 1:
                siege.decline(number)
                continue
            siege.commit_wrongly(number)
            bound = siege.commit_poison(number, 0)
            siege.burst(WARM_UP // 2, number)
            siege.hand_over(bound)

        siege.invited(ATTACKED)
        siege.complete(ATTACKED)
        before, began = siege.measured(), siege.sent
        siege.burst(count // 2, ATTACKED)
        bound = siege.commit_poison(ATTACKED, HOSTILE)
        siege.burst(count // 2, ATTACKED)
        siege.hand_over(bound)
        siege.invited(ATTACKED + 1)
        siege.complete(ATTACKED + 1)
        after = siege.measured()
        assert siege.sent - began == count
        siege.retire(ATTACKED + 1)

        assert story.finished()["adapter"] == undisturbed
        assert [story.fleet.pid(name) for name in siege.attacked] == pids
        story.fleet.check()
        for name in siege.attacked:
            grown = after[name].resident_bytes - before[name].resident_bytes
            logged = after[name].log_bytes - before[name].log_bytes
            assert grown <= MAX_GROWTH_BYTES, f"{name} grew by {grown} bytes"
            assert logged <= LOG_LINE_BYTES * count, f"{name} logged {logged} bytes"
            log = siege.logs[name].path.read_text()
            # The HTTP server logs one of its own where a body breaks off in the middle and it has
            # answered for itself already.
            assert log.count("Traceback") == log.count("\n" + ANSWERED_ALREADY), name
        everything_was_refused_by_name(siege)
        nothing_is_left_of_it(siege)


def everything_was_refused_by_name(siege: Siege) -> None:
    for name, sent in siege.unacceptable.items():
        refused = siege.logs[name].refused()
        assert refused.total() >= sent, (name, refused)
        assert {"protocol.undecodable", "protocol.signature", "protocol.replay"} <= refused.keys()
    assert set(siege.statuses) <= {200, 400, 401, 404, 408, 409, 413, 414, 422, 431, None}
    # No 413: a long body is read from those alone who may send one, and few of these are.
    assert siege.statuses.keys() >= {200, 400, 401, 404, 422}


def nothing_is_left_of_it(siege: Siege) -> None:
    """There is no run, device, row or file but those of the honest run."""
    story, fleet = siege.story, siege.story.fleet
    with story.store() as store:
        assert [row.run for row in store.runs()] == [story.run]
        names = {device.name for device in store.devices()}
    assert names == {*story.devices, *(device.name for device in siege.devices)}
    for number in range(1, ROUNDS + 1):
        assert set(story.reported(number)) == set(story.devices)
    with story.store() as store:
        told = repr([store.runs(), store.milestones(story.run), story.rows()])
    home = fleet.home(COORDINATOR)
    assert not list((home / "updates").rglob("*.*"))
    manifests = siege.manifests()
    strange = {path.name for path in (home / "blobs").iterdir()} - manifests
    assert {name for name in strange if name not in told} == set()
    vault = {
        *("announced.json", "chosen.json", "fixed.json", "groups.seed", "opened.sum"),
        "public.key",
    }
    rounds = fleet.home(KEY_HOLDER) / "rounds"
    for path in rounds.rglob("*.*"):
        assert path.name in vault, path
    assert {path.name for path in rounds.iterdir()} == {story.run}
    device = fleet.device_home(siege.device)
    assert not list(device.outbox.iterdir())
    assert not list(device.blobs.iterdir())


def test_a_few_hostile_bytes_change_nothing(tmp_path: Path, undisturbed: str) -> None:
    is_unharmed_by(FEW, tmp_path, undisturbed)


@pytest.mark.hostile
def test_ten_thousand_hostile_bytes_change_nothing(tmp_path: Path, undisturbed: str) -> None:
    is_unharmed_by(MANY, tmp_path, undisturbed)
