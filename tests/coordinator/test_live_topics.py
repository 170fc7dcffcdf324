"""Topics against the views that lists show, and the privacy card against what a run really did."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.federation.rounds import Committed, SumOpened
from coordinator.live_topics import LiveTopics
from coordinator.merge_patch import without_nulls
from coordinator.privacy_card import read_card
from coordinator.store.store import Store
from coordinator.views import count_round, summarise_runs, view_run
from shared.crypto.sum_worker import SumWorker
from shared.errors import DataError, RunNotFound
from shared.types import RunId
from tests.support.coordination import RUN, World

SECURE = {"scheme": "public-key", "max_devices": 4}


def seen_slowly(store: Store, run: RunId) -> dict[str, Any]:
    """A run's topic, out of all rows at once."""
    row = store.run(run)
    (summary,) = summarise_runs(store, [row])
    rounds = {str(each.round): dataclasses.asdict(each) for each in view_run(store, row).rounds}
    found: dict[str, Any] = without_nulls(
        {"summary": dataclasses.asdict(summary), "rounds": rounds}
    )
    return found


def test_a_run_that_is_read_as_it_grows_is_the_run_that_was_read_whole(
    world: World, adders: tuple[SumWorker, SumWorker]
) -> None:
    world.add_devices("abcd")
    world.devices["device-d"].declines = ("privacy.budget", "over the budget")
    world.add_key_holder(adders[1])
    plan = world.submit(protection=SECURE, training={"rounds": 3})
    topics = LiveTopics(world.store, {})
    world.start()
    looks = 0
    states: set[str] = set()

    def look() -> bool:
        nonlocal looks
        looks += 1
        topic, slow = topics.read(f"run/{RUN}"), seen_slowly(world.store, RUN)
        assert {name: topic[name] for name in slow} == slow
        if now := topic.get("now"):
            counts = count_round(world.store, RUN, now["round"])
            assert (now["state"], now["cohort"]) == (counts.state, counts.invited)
            assert (now["committed"], now["updates"]) == (counts.committed, counts.reported)
            states.add(now["state"])
        return world.over

    assert world.run(look)
    world.run_for(30)
    look()
    assert looks > 10
    assert {"open", "gathering"} <= states
    end = topics.read(f"run/{RUN}")
    assert "now" not in end, "it is over"
    sizes = [len(offer.frame) for offer in world.devices["device-a"].offers.values()]
    assert len(sizes) == plan.job.training.rounds
    by_round = {str(number): 3 * size for number, size in enumerate(sizes, start=1)}
    assert end["privacy"]["bytes"] == {"received": 3 * sum(sizes), "by_round": by_round}
    assert end["privacy"] == without_nulls(read_card(world.store, RUN, plan))


@pytest.mark.parametrize("noise", ["local", "none"])
def test_a_run_spends_with_its_rounds_and_at_its_end_what_was_planned(
    world: World, noise: str
) -> None:
    world.add_devices("abc")
    plan = world.submit(privacy={"noise": noise, "epsilon": 4.0}, training={"rounds": 2})
    before = read_card(world.store, RUN, plan)["epsilon"]
    assert before["spent"] == 0.0
    world.start()
    world.run(lambda: sum(isinstance(row, SumOpened) for row in world.rows) == 1)
    middle = read_card(world.store, RUN, plan)["epsilon"]
    world.run()
    end = read_card(world.store, RUN, plan)["epsilon"]
    if noise == "none":
        assert middle["spent"] is end["spent"] is before["planned"] is None, "nothing bounds it"
    else:
        assert 0 < middle["spent"] < end["spent"] <= end["planned"] == 4.0
        assert end["spent"] > 3.9
        assert not gate(read_card(world.store, RUN, plan), "noise"), "a simulation's repeats"


def gate(card: dict[str, Any], name: str) -> bool:
    (found,) = [each for each in card["gates"] if each["gate"] == name]
    return bool(found["passed"])


def party(card: dict[str, Any], name: str) -> dict[str, list[str]]:
    (found,) = [each for each in card["parties"] if each["party"] == name]
    return {"sees": found["sees"], "never": found["never"]}


def test_in_clear_the_coordinator_sees_each_update_and_encrypted_it_does_not(
    make_world: Callable[[], World],
) -> None:
    cards = {}
    for scheme in ("clear", "public-key"):
        world = make_world()
        plan = world.submit(protection={"scheme": scheme, "max_devices": 4})
        cards[scheme] = read_card(world.store, RUN, plan)
    assert "single_update" in party(cards["clear"], "coordinator")["sees"]
    assert "single_update" in party(cards["public-key"], "coordinator")["never"]
    assert gate(cards["public-key"], "separate_key_holder")
    assert not gate(cards["clear"], "separate_key_holder")
    for card in cards.values():
        for each in card["parties"]:
            assert not set(each["sees"]) & set(each["never"])
            assert each["party"] == "device" or "records" in each["never"]
    assert {each["party"] for each in cards["clear"]["parties"]} == {
        *("device", "coordinator", "broker", "other_devices"),
    }, "there is no key holder"


def test_topics_are_those_that_there_are(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'store.db'}", tmp_path)
    topics = LiveTopics(store, {"fleet": lambda: {"a": 1, "b": None}})
    assert topics.read("fleet") == {"a": 1}
    assert topics.read("runs") == {"runs": {}}
    with pytest.raises(DataError, match="no topic"):
        topics.read("nothing")
    with pytest.raises(RunNotFound):
        topics.read("run/none")
    store.close()


def test_the_runs_topic_has_all_that_are_open_and_the_newest(world: World) -> None:
    world.add_devices("abc")
    world.submit()
    topics = LiveTopics(world.store, {})
    assert topics.read("runs")["runs"][RUN]["state"] == "preparing"
    world.start()
    world.run()
    assert topics.read("runs")["runs"][RUN]["state"] == "finished"
    assert any(isinstance(row, Committed) for row in world.rows)
