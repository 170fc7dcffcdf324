"""What is counted of each model, on a clock of the test's own."""

from __future__ import annotations

import pytest

from coordinator.inference.engine import Finished
from coordinator.inference.front_desk import FrontDesk, Served
from coordinator.inference.live_serving import SAMPLES, WINDOW_S, LiveServing
from tests.support.clocks import VirtualClock
from tests.support.scripted_engines import ScriptedEngine


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(start_s=0.0)


def answer(model: str, tokens: int, *, first_s: float | None = 0.1) -> Served:
    finished = Finished("stop", prompt_tokens=3, completion_tokens=tokens)
    return Served(
        model, "app", "stop", total_s=1.0, first_s=first_s, waited_s=0.0, finished=finished
    )


def test_totals_grow_and_the_rate_is_of_the_last_half_minute(clock: VirtualClock) -> None:
    engine = ScriptedEngine(slots=2)
    desk, serving = FrontDesk({engine.card.name: engine}), LiveServing(monotonic=clock.now)
    name = engine.card.name
    assert serving.view(desk)[name]["first_token_s"] == {}
    for _ in range(3):
        serving.served(answer(name, 30))
    serving.looked_up(name, hit=True)
    serving.looked_up(name, hit=False)
    now = serving.view(desk)[name]
    assert (now["requests"], now["prompt_tokens"], now["completion_tokens"]) == (3, 9, 90)
    assert now["tokens_per_s"] == round(90 / WINDOW_S, 2)
    assert (now["cache_hits"], now["cache_lookups"]) == (1, 2)
    assert (now["slots"], now["active"], now["queue"]) == (2, 0, 0)
    clock.run(until_s=WINDOW_S + 1)
    later = serving.view(desk)[name]
    assert later["tokens_per_s"] == 0.0
    assert later["completion_tokens"] == 90


def test_times_to_the_first_token_are_of_the_last_requests(clock: VirtualClock) -> None:
    engine = ScriptedEngine(slots=2)
    desk, serving = FrontDesk({engine.card.name: engine}), LiveServing(monotonic=clock.now)
    name = engine.card.name
    serving.served(answer(name, 1, first_s=100.0))
    serving.served(answer(name, 1, first_s=None))
    for _ in range(SAMPLES):
        serving.served(answer(name, 1, first_s=0.5))
    assert serving.view(desk)[name]["first_token_s"] == {"p50": 0.5, "p95": 0.5}


def test_a_model_that_is_not_served_here_is_not_shown(clock: VirtualClock) -> None:
    serving = LiveServing(monotonic=clock.now)
    serving.served(answer("gone", 5))
    assert serving.view(FrontDesk({})) == {}
