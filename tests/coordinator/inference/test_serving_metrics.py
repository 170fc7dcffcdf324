"""What happens at the desk is counted, by few labels, and no prompt is among them."""

from __future__ import annotations

import asyncio
import contextlib
import re
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import yaml

from coordinator.exposition import Exposition
from coordinator.inference.answer_cache import AnswerCache, MemoryStore
from coordinator.inference.engine import EngineLoad, GenerationRequest, collect
from coordinator.inference.front_desk import Caller, FrontDesk
from coordinator.inference.serving_metrics import ServingMetrics
from shared.errors import ChildDied, LlmOsError
from tests.support.prometheus import value
from tests.support.scripted_engines import ScriptedEngine

MODEL = "scripted"
DEPLOY = Path(__file__).parents[3] / "deploy" / "autoscaling"
SECRET = "a-prompt-that-nobody-may-see"  # noqa: S105  no password


class Busy(ScriptedEngine):
    """Says that it has much to do."""

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(4, 3, 2, kv_tokens=1000, kv_tokens_used=250, restarts=5)


def busy_metrics() -> Exposition:
    """Of a desk where everything has happened once."""
    exposition = Exposition()
    metrics = ServingMetrics(exposition)
    engine = Busy(slots=4)
    desk = FrontDesk({MODEL: engine}, cache=AnswerCache(MemoryStore()), meter=metrics)
    metrics.watch(desk)
    exact = GenerationRequest(prompt=SECRET, max_tokens=3)
    drawn = GenerationRequest(prompt=SECRET, max_tokens=3, temperature=1.0)

    def ask(caller: Caller, request: GenerationRequest) -> None:
        with contextlib.suppress(LlmOsError):
            asyncio.run(collect(desk.stream(caller, MODEL, request)))

    async def hang_up() -> None:
        async with aclosing(desk.stream(Caller("b"), MODEL, drawn)) as stream:
            await anext(stream)

    ask(Caller("a"), exact)
    ask(Caller("a"), exact)
    ask(Caller("device:kitchen"), drawn)
    ask(Caller("device:attic"), drawn)
    ask(Caller("small", tokens_per_minute=15), drawn)
    ask(Caller("small", tokens_per_minute=15), drawn)
    asyncio.run(hang_up())
    engine.failure = ChildDied("gone")
    ask(Caller("b"), drawn)
    return exposition


@pytest.fixture(scope="module")
def metrics() -> Exposition:
    return busy_metrics()


@pytest.mark.parametrize(
    ("key", "outcome", "count"),
    [
        ("a", "length", 1),
        ("a", "cached", 1),
        ("device", "length", 2),
        ("small", "length", 1),
        ("small", "quota", 1),
        ("b", "cancelled", 1),
        ("b", "failed", 1),
    ],
)
def test_requests_are_counted_by_how_they_ended(
    metrics: Exposition, key: str, outcome: str, count: int
) -> None:
    assert value(metrics, "llmos_requests_total", model=MODEL, key=key, outcome=outcome) == count


def test_tokens_lookups_and_times_are_counted(metrics: Exposition) -> None:
    def tokens(kind: str) -> float:
        return value(metrics, "llmos_tokens_total", model=MODEL, key="a", kind=kind)

    assert (tokens("prompt"), tokens("cached"), tokens("completion")) == (20, 10, 6)
    lookups = "llmos_answer_cache_lookups_total"
    assert value(metrics, lookups, model=MODEL, result="hit") == 1
    assert value(metrics, lookups, model=MODEL, result="miss") == 1
    assert value(metrics, "llmos_quota_refusals_total", key="small") == 1
    assert value(metrics, "llmos_time_to_first_token_seconds_count", model=MODEL) == 6
    assert value(metrics, "llmos_request_duration_seconds_count", model=MODEL) == 5
    assert value(metrics, "llmos_queue_wait_seconds_count", model=MODEL) == 6


def test_gauges_are_what_desk_and_engine_say_now(metrics: Exposition) -> None:
    for name, expected in {
        "llmos_slots": 4,
        "llmos_slots_active": 3,
        "llmos_engine_waiting": 2,
        "llmos_kv_tokens_limit": 1000,
        "llmos_kv_tokens_used": 250,
        "llmos_engine_restarts_total": 5,
        "llmos_queue_depth": 0,
        "llmos_slot_demand": 1.25,
        "llmos_engine_ready": 1,
    }.items():
        assert value(metrics, name, model=MODEL) == expected, name


def test_no_prompt_and_no_device_is_told(metrics: Exposition) -> None:
    text = metrics.text().decode()
    assert SECRET not in text
    assert "kitchen" not in text


def test_two_of_them_in_one_process_count_apart() -> None:
    first, second = Exposition(), Exposition()
    ServingMetrics(first).looked_up(MODEL, hit=True)
    ServingMetrics(second)
    assert b'result="hit"' in first.text()
    assert b'result="hit"' not in second.text()


# What autoscalers are told to look at


def documents(path: Path) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d]


def test_the_examples_for_autoscalers_name_metrics_that_there_are(
    metrics: Exposition,
) -> None:
    there = set(re.findall(r"^(llmos_\w+)", metrics.text().decode(), flags=re.MULTILINE))
    for path in sorted(DEPLOY.glob("*.yaml")):
        named = set(re.findall(r"\bllmos_\w+", path.read_text(encoding="utf-8")))
        assert named, path
        assert named <= there, path


def test_the_examples_for_autoscalers_are_whole() -> None:
    (scaled,) = documents(DEPLOY / "keda.yaml")
    assert scaled["kind"] == "ScaledObject"
    assert {trigger["type"] for trigger in scaled["spec"]["triggers"]} == {"prometheus"}
    adapter, scaler = documents(DEPLOY / "hpa.yaml")
    rules = yaml.safe_load(adapter["data"]["config.yaml"])["rules"]
    served = {rule["name"]["as"] for rule in rules}
    assert scaler["kind"] == "HorizontalPodAutoscaler"
    wanted = {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]}
    assert wanted <= served
