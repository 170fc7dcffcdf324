"""How often a usual hour is called unusual, and which hours are."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.watch.usual_hours import (
    HOUR_S,
    KEPT_HOURS,
    LEAST_HOURS,
    LEAST_TOKENS,
    MOST_KEYS,
    TIMES,
    UsualHours,
    is_unusual,
)

TOLERATED = 5e-4
"""False alarms per hour with use that the module promises."""


def load(kind: str, spread: float, hours: int, rng: np.random.Generator) -> list[int]:
    """Tokens per hour of a key that nobody abuses."""
    steady = 10.5 + spread * rng.standard_normal(hours)
    if kind == "nights":  # 16 quiet hours a day, 8 with fifty times as much
        steady += np.where(np.arange(hours) % 24 < 16, 0.0, np.log(50.0))
    if kind == "growing":  # by half each week
        steady += np.arange(hours) * np.log(1.5) / 168
    return [int(tokens) for tokens in np.exp(steady)]


@pytest.mark.parametrize("spread", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("kind", ["steady", "nights", "growing"])
def test_few_usual_hours_are_called_unusual(kind: str, spread: float) -> None:
    """False-alarm rate over 40 keys of 300 hours: at most what the module promises.

    Seeds are fixed, so this fails only when the rule changes.
    """
    alarms = looked_at = 0
    for seed in range(40):
        tokens = load(kind, spread, 300, np.random.default_rng(seed))
        for hour in range(LEAST_HOURS, len(tokens)):
            alarms += is_unusual(tokens[hour], tokens[max(0, hour - KEPT_HOURS) : hour])
            looked_at += 1
    assert alarms <= TOLERATED * looked_at, f"{alarms} of {looked_at}"


@pytest.mark.parametrize("kind", ["steady", "nights"])
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_ten_times_the_most_so_far_is_found(kind: str, spread: float) -> None:
    found = 0
    for seed in range(50):
        tokens = load(kind, spread, 200, np.random.default_rng(seed))
        found += is_unusual(10 * max(tokens), tokens)
    assert found >= 48


def test_somebody_who_is_new_or_uses_little_is_not_unusual() -> None:
    usual = [20] * LEAST_HOURS
    assert not is_unusual(LEAST_TOKENS - 1, usual)
    assert is_unusual(LEAST_TOKENS, usual)
    assert not is_unusual(10**9, usual[1:])


@given(st.lists(st.integers(0, 10**7), min_size=LEAST_HOURS, max_size=60), st.integers(0, 10**9))
def test_nothing_near_the_most_so_far_is_unusual(before: list[int], tokens: int) -> None:
    if is_unusual(tokens, before):
        assert tokens > TIMES * max(before)
        assert tokens > statistics.median(before)


def used(hours: UsualHours, key: str, count: int, tokens: int = 1000) -> None:
    for hour in range(count):
        assert hours.add(key, tokens, hour * HOUR_S + 7.0) == ""


def test_an_hour_adds_up_and_is_told_once() -> None:
    hours = UsualHours()
    used(hours, "shop", 30)
    now = 30 * HOUR_S + 1.0
    told = [hours.add("shop", 5000, now + second) for second in range(10)]
    first = next(index for index, text in enumerate(told) if text)
    assert told[first].startswith(f"{5000 * (first + 1)} tokens within this hour; in 30 hours")
    assert told[first].endswith("1000 in the middle")
    assert [text for text in told if text] == [told[first]]


def test_keys_are_compared_with_themselves() -> None:
    hours = UsualHours()
    used(hours, "large", 30, 10**6)
    used(hours, "small", 30, 100)
    assert hours.add("large", 1_500_000, 30 * HOUR_S) == ""
    assert hours.add("small", 1_500_000, 30 * HOUR_S)


def test_what_was_kept_goes_on_where_it_was() -> None:
    hours = UsualHours()
    used(hours, "shop", 30)
    again = UsualHours(hours.kept())
    assert again.add("shop", 50_000, 30 * HOUR_S)


def test_hours_and_keys_have_a_bound() -> None:
    hours = UsualHours()
    used(hours, "first", KEPT_HOURS + 50)
    assert len(hours.kept()["first"]) == KEPT_HOURS
    for number in range(MOST_KEYS + 5):
        hours.add(f"key-{number}", 1, 0.0)
    assert len(hours.kept()) == MOST_KEYS
    assert "first" not in hours.kept()
