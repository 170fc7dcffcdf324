"""Whoever is killed, and when: the run ends with the same adapter, nothing lost, nothing twice.

Real processes learn the small story over loopback, and are killed by SIGKILL at random moments
that follow from a seed. What one process forgets or repeats changes the sum of a round, and with
it the hash of the last adapter, which must be that of the same story told undisturbed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sim.fleet_processes import COORDINATOR, KEY_HOLDER
from sim.simulation import simulate
from tests.support.killed_chain import (
    BROKER,
    Killer,
    patient,
    what_is_lost_or_doubled,
)
from tests.support.small_fleet import SEED, small_scenario
from tests.support.stories import ROUNDS, told

KILLS = 30
MANY_KILLS = 200
MANY_ROUNDS = 60

pytestmark = [pytest.mark.broker, pytest.mark.model, pytest.mark.processes, pytest.mark.slow]


def ends_as_undisturbed(folder: Path, undisturbed: str, *, kills: int, rounds: int) -> None:
    scenario = patient(small_scenario(folder, training={"rounds": rounds}))
    with told(folder, scenario) as story:
        killer = Killer(story, seed=SEED, rounds=rounds)
        killer.kill_in_rounds(kills)
        killer.wait_for_end()
        view = story.finished()
        assert what_is_lost_or_doubled(story, rounds) == []
        assert view["adapter"] == undisturbed
        assert killer.kills.total() >= kills
        assert killer.kills.keys() == {COORDINATOR, BROKER, KEY_HOLDER, *story.devices}


@pytest.mark.timeout(900)  # a minute where nothing else runs
def test_a_chain_killed_at_thirty_random_points(
    tmp_path: Path, simulated_twice: tuple[dict[str, Any], Any]
) -> None:
    undisturbed = str(simulated_twice[0]["adapter_hash"])
    ends_as_undisturbed(tmp_path, undisturbed, kills=KILLS, rounds=ROUNDS)


@pytest.mark.killed
@pytest.mark.timeout(3600)
def test_a_chain_killed_at_two_hundred_random_points(tmp_path: Path) -> None:
    scenario = small_scenario(tmp_path, training={"rounds": MANY_ROUNDS})
    report = simulate(scenario, seed=SEED, watch=lambda *_: None)
    undisturbed = str(report["adapter_hash"])
    ends_as_undisturbed(tmp_path, undisturbed, kills=MANY_KILLS, rounds=MANY_ROUNDS)
