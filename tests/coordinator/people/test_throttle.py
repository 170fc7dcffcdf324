"""L1 to L3: whoever fails waits twice as long each time, and nothing grows without a bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.people.throttle import FORGOTTEN_S, LONGEST_S, Throttle, place_of
from shared.errors import TooManyTries

FREE = 3


class Now:
    """A clock that is set."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def may(throttle: Throttle, key: str = "k") -> bool:
    try:
        throttle.enter({key: FREE})
    except TooManyTries:
        return False
    return True


def waits(failures: list[float], now: float) -> float:
    """How long to wait at ``now`` after failures at these times, the slow way."""
    row = 0
    for before, at in zip([None, *failures], failures, strict=False):
        row = 1 if before is None or at - before >= FORGOTTEN_S else row + 1
    if not failures or now - failures[-1] >= FORGOTTEN_S or row < FREE:
        return 0.0
    wait = 1.0
    for _ in range(row - FREE):
        wait = min(LONGEST_S, 2 * wait)
    return failures[-1] + wait - now


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0, 300.0, 3599.0, 3600.0]), max_size=60))
def test_who_may_try_is_as_the_slow_way_says(pauses: list[float]) -> None:
    now, failures = Now(), list[float]()
    throttle = Throttle(monotonic=now)
    for pause in pauses:
        now.s += pause
        expected = waits(failures, now.s)
        if expected > 0:
            with pytest.raises(TooManyTries) as caught:
                throttle.enter({"k": FREE})
            assert caught.value.retry_after_s == pytest.approx(expected)
            assert expected <= LONGEST_S
        else:
            throttle.enter({"k": FREE})
            failures.append(now.s)


def test_what_is_refused_for_one_key_costs_nothing_for_another() -> None:
    throttle = Throttle(monotonic=Now())
    for _ in range(FREE):
        assert may(throttle, "name")
    for _ in range(10):
        with pytest.raises(TooManyTries):
            throttle.enter({"name": FREE, "address": 1})
    assert may(throttle, "address")


def test_a_try_that_went_well_is_taken_back_or_all_are_forgotten() -> None:
    throttle = Throttle(monotonic=Now())
    for _ in range(50):
        assert may(throttle)
        throttle.take_back("k")
    for _ in range(FREE):
        assert may(throttle)
    assert not may(throttle)
    throttle.forget("k")
    assert may(throttle)
    throttle.take_back("never seen")


def test_what_is_known_has_a_bound_and_the_oldest_goes_first() -> None:
    throttle = Throttle(monotonic=Now(), most=10)
    for number in range(100):
        for _ in range(FREE):
            assert may(throttle, str(number))
        assert len(throttle._known) <= 10
    assert not may(throttle, "99")
    assert not may(throttle, "90")
    assert may(throttle, "89")


def test_whoever_has_just_failed_is_not_the_oldest() -> None:
    throttle = Throttle(monotonic=Now(), most=2)
    for key in ("old", "other", "old", "old", "new"):
        assert may(throttle, key)
    assert not may(throttle, "old")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("testclient", "testclient", True),
    ],
)
def test_addresses_are_of_the_same_place_or_not(one: str, other: str, same: bool) -> None:
    assert (place_of(one) == place_of(other)) is same
