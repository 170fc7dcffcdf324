"""A fleet of real processes whose members are killed at random moments while it learns.

Each of them may be the next: a device, the coordinator (its broker ends with it), the broker
alone, the key holder; sometimes two at once. Whoever was killed is started again at once, and
so is whoever gave up because the broker was not there when it started: a service manager does
the same.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from coordinator.store.store import ENDINGS
from shared.errors import ChildDied
from shared.job import CohortTable
from shared.privacy.ledger import Ledger
from sim.fleet_processes import COORDINATOR, KEY_HOLDER, FleetProcesses
from sim.scenario import Scenario
from tests.support.proc import child_running
from tests.support.stories import Story, wait_for

BROKER: Final = "broker"

NO_BROKER: Final = "no MQTT broker at"
"""What a device or key holder says that ends because it cannot begin."""

DELAY_S: Final = 1.0
"""The longest wait between two kills; a round takes a third of a second, a start some seconds."""

QUIET_ROUNDS: Final = 4
"""The last kill comes so many rounds before the end, or the run could be over before it."""

TWO_AT_ONCE: Final = 0.25
"""How likely a blow takes two processes."""


def patient(scenario: Scenario) -> Scenario:
    """The scenario with rounds that wait for everybody, however long a restart takes."""
    cohort = CohortTable(
        devices=scenario.population.devices, patience_s=600, lease_s=600, round_timeout_s=1200
    )
    return scenario.model_copy(update={"cohort": cohort})


class Killer:
    """Kills processes of a story's fleet at moments and in an order that follow from a seed."""

    def __init__(self, story: Story, *, seed: int, rounds: int) -> None:
        self._story = story
        self._rng = random.Random(seed)
        self._rounds = rounds
        self.kills: Counter[str] = Counter()
        """How often each process was killed."""

    def kill_in_rounds(self, kills: int) -> None:
        """Kill so often, spread over the run's rounds."""
        last = self._rounds - QUIET_ROUNDS
        while (done := self.kills.total()) < kills:
            self._wait_for_round(1 + done * last // kills)
            time.sleep(self._rng.uniform(0.0, DELAY_S))
            assert self._round() < self._rounds, "the run was over before everybody was killed"
            names = [COORDINATOR, BROKER, KEY_HOLDER, *self._story.devices]
            count = 2 if self._rng.random() < TWO_AT_ONCE and kills - done > 1 else 1
            self._strike(self._rng.sample(names, count))

    def wait_for_end(self) -> None:
        """Wait until the run is over and every device has the receipt of its last update."""

        def over() -> bool | None:
            self._revive()
            with self._story.store() as store:
                if store.milestones(self._story.run).keys().isdisjoint(ENDINGS):
                    return None
            homes = [self._story.fleet.device_home(device) for device in self._story.devices]
            return not any(any(home.outbox.glob("*")) for home in homes) or None

        wait_for(over, "the end of the run")

    def _strike(self, victims: Sequence[str]) -> None:
        fleet = self._story.fleet
        self._revive()
        if BROKER in victims and COORDINATOR not in victims:
            _kill_broker(fleet)
        started = [name for name in victims if name != BROKER]
        for name in started:
            fleet.kill(name)
        # The coordinator last: it is waited for, and the others begin without it.
        for name in sorted(started, key=lambda name: name == COORDINATOR):
            with suppress(ChildDied):  # of another that found no broker
                fleet.restart(name)
        wait_for(self._coordinator_is_ready, "the coordinator")
        self.kills.update(victims)

    def _coordinator_is_ready(self) -> bool | None:
        self._revive()
        return (self._story.fleet.home(COORDINATOR) / "ready.json").exists() or None

    def _revive(self) -> None:
        """Start again who found no broker; whoever ended for another reason fails the test."""
        fleet = self._story.fleet
        for name in fleet.ended():
            assert NO_BROKER in fleet.last_words(name).splitlines()[-1], fleet.last_words(name)
            fleet.kill(name)
            fleet.restart(name)

    def _round(self) -> int:
        return max((at for at, _ in self._story.rows()), default=0)

    def _wait_for_round(self, number: int) -> None:
        def reached() -> bool | None:
            self._revive()
            return self._round() >= number or None

        wait_for(reached, f"round {number}")


def _kill_broker(fleet: FleetProcesses) -> None:
    """Kill the broker; the coordinator that watches it starts the next."""
    broker = wait_for(lambda: child_running(fleet.pid(COORDINATOR), "mosquitto"), "the broker")
    with suppress(ProcessLookupError):
        os.kill(broker.pid, signal.SIGKILL)


def what_is_lost_or_doubled(story: Story, rounds: int) -> list[str]:
    """What rows, the key holder's openings, ledgers and outboxes say that they should not.

    Every device belongs once into each round: as one row, as one charge, and in one opened sum.
    A crash may have an opening written down again; then it must be the same opening.
    """
    everybody = sorted(map(str, story.devices))
    expected = list(range(1, rounds + 1))
    problems = [
        f"round {number}: rows of {counted}"
        for number in expected
        if (counted := sorted(story.reported(number))) != everybody
    ]
    openings = _openings(story)
    if sorted(openings) != expected:
        problems.append(f"openings of rounds {sorted(openings)}")
    for number, records in openings.items():
        if len(records) != 1:
            problems.append(f"round {number}: {len(records)} different openings")
        if any(members != everybody for members in map(_members, records)):
            problems.append(f"round {number}: opened over {records}")
    for device in story.devices:
        home = story.fleet.device_home(device)
        charges = [charge.round for charge in Ledger(home.ledger, repair=False).charges()]
        if sorted(charges) != expected:
            problems.append(f"{device}: charged for rounds {charges}")
        if left := [path.name for path in home.outbox.glob("*")]:
            problems.append(f"{device}: {left} left in the outbox")
    return problems


def _openings(story: Story) -> dict[int, set[str]]:
    """What was opened in each round, by the key holder's log, without the time of day."""
    found: dict[int, set[str]] = {}
    for line in (story.fleet.home(KEY_HOLDER) / "openings.jsonl").read_text().splitlines():
        record: dict[str, Any] = json.loads(line)
        if record["run"] == story.run:
            groups = json.dumps(record["groups"], sort_keys=True)
            found.setdefault(int(record["round"]), set()).add(groups)
    return found


def _members(groups: str) -> list[str]:
    return sorted(device for group in json.loads(groups) for device in group["devices"])
