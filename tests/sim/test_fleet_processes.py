"""Whatever dies in the middle of a round, and wherever: everybody is counted once, as ever.

One fleet of real processes learns one run, held in the middle of its rounds while
something is killed (see ``tests.support.stories``). After each round the adapter must
be that of the undisturbed run, byte for byte: an update that is lost, or counted twice,
changes it. (That a device repeats its noise is shown where noise is not a function of a
seed that the simulation gave it: in ``tests/edge_agent``.)
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from edge_agent.outbox import Outbox
from shared.privacy.ledger import Ledger
from shared.types import DeviceId, RoundNumber
from sim.fleet_processes import COORDINATOR, KEY_HOLDER
from tests.support.proc import child_running, freeze, thaw
from tests.support.small_fleet import small_scenario
from tests.support.stories import ROUNDS, Story, Watched, told, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.model, pytest.mark.processes, pytest.mark.slow]

ADDING = "shared.crypto.sum_worker"


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("disturbed")
    with told(folder, small_scenario(folder, training={"rounds": ROUNDS})) as story:
        yield story


def is_as_if_nothing_happened(story: Story, watched: Watched, number: int) -> None:
    assert set(story.reported(number)) == set(story.devices)
    assert story.adapters()[number] == watched.adapters[number]
    assert story.adapters() == {at: watched.adapters[at] for at in range(1, number + 1)}


def test_the_key_holder_while_devices_train(story: Story, watched: Watched) -> None:
    """The key that it has to open the round with is on its disk."""
    number, _ = story.held()
    story.fleet.kill(KEY_HOLDER)
    story.fleet.restart(KEY_HOLDER)
    story.move_on()
    is_as_if_nothing_happened(story, watched, number)


def test_the_coordinator_while_devices_train_and_its_broker_with_it(
    story: Story, watched: Watched
) -> None:
    """Commitments that it has not answered are repeated, and written down once."""
    number, _ = story.held()
    broker = child_running(story.fleet.pid(COORDINATOR), "mosquitto")
    assert broker is not None
    story.fleet.kill(COORDINATOR)
    wait_for(lambda: None if broker.alive else True, "the broker to end")
    story.fleet.restart(COORDINATOR)
    story.move_on()
    is_as_if_nothing_happened(story, watched, number)


def test_the_coordinator_while_it_gathers_updates(story: Story, watched: Watched) -> None:
    """Updates that it gave a receipt for exist nowhere else."""
    number, late = story.held_in_gathering()
    early = next(device for device in story.devices if device != late)
    outbox = Outbox(story.fleet.device_home(early).outbox)
    wait_for(
        lambda: outbox.find(story.run, RoundNumber(number)) is None or None,
        f"the receipt to reach {early}",
    )
    story.fleet.kill(COORDINATOR)
    story.fleet.restart(COORDINATOR)
    thaw(story.fleet.pid(late))
    story.held()
    is_as_if_nothing_happened(story, watched, number)


def test_the_key_holder_after_it_has_fixed_the_set(story: Story, watched: Watched) -> None:
    number, late = story.held_in_gathering()
    story.fleet.kill(KEY_HOLDER)
    story.fleet.restart(KEY_HOLDER)
    thaw(story.fleet.pid(late))
    story.held()
    is_as_if_nothing_happened(story, watched, number)


def test_a_device_that_is_bound_to_an_update_and_has_not_handed_it_over(
    story: Story, watched: Watched
) -> None:
    number, late = story.held_in_gathering()
    (waiting,) = Outbox(story.fleet.device_home(late).outbox).waiting()
    story.fleet.kill(late)
    story.fleet.restart(late)
    story.held()
    is_as_if_nothing_happened(story, watched, number)
    assert story.reported(number)[late] == waiting.digest


@pytest.fixture
def closing(story: Story) -> Callable[[], int]:
    """Brings the run to where a round is closed, and the key holder stuck in adding."""

    def brought() -> int:
        number, _ = story.held()
        adder = wait_for(lambda: child_running(story.fleet.pid(KEY_HOLDER), ADDING), "the adder")
        freeze(adder.pid)
        story.hold_next_from_now()
        wait_for(
            lambda: story.view()["rounds"][-1]["state"] == "closing" or None, "the round to close"
        )
        vault = story.fleet.home(KEY_HOLDER) / "rounds" / story.run / str(number)
        wait_for(lambda: (vault / "chosen.json").exists() or None, "the opening to begin")
        assert not (vault / "opened.sum").exists()
        return number

    return brought


def test_the_coordinator_while_a_sum_is_opened(
    story: Story, watched: Watched, closing: Callable[[], int]
) -> None:
    number = closing()
    story.fleet.kill(COORDINATOR)
    story.fleet.restart(COORDINATOR)
    adder = child_running(story.fleet.pid(KEY_HOLDER), ADDING)
    assert adder is not None
    thaw(adder.pid)
    story.held()
    is_as_if_nothing_happened(story, watched, number)


def test_the_key_holder_while_it_opens_a_sum(
    story: Story, watched: Watched, closing: Callable[[], int]
) -> None:
    number = closing()
    story.fleet.kill(KEY_HOLDER)
    story.fleet.restart(KEY_HOLDER)
    story.held()
    is_as_if_nothing_happened(story, watched, number)
    log = (story.fleet.home(KEY_HOLDER) / "openings.jsonl").read_text()
    assert log.count(f'"round": {number},') == 1


def test_a_device_before_it_has_charged_its_ledger(story: Story, watched: Watched) -> None:
    number, device = story.held()
    charged = Ledger(story.fleet.device_home(device).ledger).charges()
    assert charged[-1].round == number - 1
    story.fleet.kill(device)
    story.fleet.restart(device)
    story.move_on()
    is_as_if_nothing_happened(story, watched, number)


def test_a_device_as_soon_as_it_has_charged_its_ledger(story: Story, watched: Watched) -> None:
    """Before, in or after training: wherever that finds it, it repeats the one release."""
    number, device = story.held()
    ledger = story.fleet.device_home(device).ledger
    before = ledger.stat().st_size
    story.hold_next_from_now()
    wait_for(lambda: ledger.stat().st_size > before or None, "the charge", pause_s=0)
    story.fleet.kill(device)
    story.fleet.restart(device)
    story.held()
    is_as_if_nothing_happened(story, watched, number)
    rounds = [charge.round for charge in Ledger(ledger).charges()]
    assert rounds.count(RoundNumber(number)) == 1


def test_a_device_whose_update_has_no_receipt_yet(story: Story, watched: Watched) -> None:
    number, device = story.held()
    outbox = Outbox(story.fleet.device_home(device).outbox)
    freeze(story.fleet.pid(COORDINATOR))
    try:
        story.hold_next_from_now()
        waiting = wait_for(lambda: next(iter(outbox.waiting()), None), "the update")
        story.fleet.kill(device)
        story.fleet.restart(device)
    finally:
        thaw(story.fleet.pid(COORDINATOR))
    story.held()
    is_as_if_nothing_happened(story, watched, number)
    assert story.reported(number)[device] == waiting.digest
    assert outbox.find(story.run, RoundNumber(number)) is None


def test_the_broker(story: Story, watched: Watched) -> None:
    number, _ = story.held()
    broker = child_running(story.fleet.pid(COORDINATOR), "mosquitto")
    assert broker is not None
    os.kill(broker.pid, signal.SIGKILL)
    story.move_on()
    is_as_if_nothing_happened(story, watched, number)
    again = child_running(story.fleet.pid(COORDINATOR), "mosquitto")
    assert again is not None
    assert again.pid != broker.pid


def test_everything_at_once_as_in_a_power_cut(story: Story, watched: Watched) -> None:
    """And this is the end of the run, so it ends with the same hash."""
    story.held()
    everybody: list[DeviceId | str] = [COORDINATOR, KEY_HOLDER, *story.devices]
    for name in everybody:
        story.fleet.kill(name)
    for name in everybody:
        story.fleet.restart(name)
    assert story.finished()["adapter"] == watched.view["adapter"]
    is_as_if_nothing_happened(story, watched, ROUNDS)


def test_the_undisturbed_run_counted_every_device_in_every_round(watched: Watched) -> None:
    assert [report["reported"] for report in watched.view["rounds"]] == [3] * ROUNDS
    assert all(report["accepted"] for report in watched.view["rounds"])
    assert len(set(watched.adapters.values())) == ROUNDS
