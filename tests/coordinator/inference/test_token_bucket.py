"""A quota is an average that holds over every stretch of time, and refusals say when to return."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.inference.token_bucket import Quotas, TokenBucket
from shared.errors import QuotaExceeded

STEPS = st.lists(st.tuples(st.floats(0, 30), st.integers(0, 150), st.integers(0, 150)), max_size=60)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 200), STEPS)
def test_no_more_is_used_than_flowed_in_and_one_request_beyond(
    per_minute: int, steps: list[tuple[float, int, int]]
) -> None:
    """The oracle: over any stretch of time the sum is at most bucket, inflow and one debt."""
    bucket = TokenBucket(per_minute, now=0.0)
    now = 0.0
    used: list[tuple[float, int]] = []
    for pause_s, wanted, really in steps:
        now += pause_s
        if bucket.take(wanted, now=now) == 0:
            spent = min(wanted, really)
            bucket.settle(taken=wanted, used=spent, now=now)
            used.append((now, spent))
    for start, (begin, _) in enumerate(used):
        for end, _ in used[start:]:
            spent = sum(tokens for at, tokens in used if begin <= at <= end)
            last = max(tokens for at, tokens in used if begin <= at <= end)
            assert spent <= per_minute + (end - begin) * per_minute / 60 + last + 1e-3


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 1000), st.lists(st.integers(1, 3000), min_size=1, max_size=20))
def test_whoever_comes_back_when_told_is_let_in_and_not_a_moment_too_late(
    per_minute: int, wanted: list[int]
) -> None:
    bucket = TokenBucket(per_minute, now=0.0)
    now = 0.0
    for tokens in wanted:
        wait_s = bucket.take(tokens, now=now)
        if wait_s:
            assert bucket.take(tokens, now=now + wait_s * 0.99 - 1e-5) > 0
            now += wait_s
            assert bucket.take(tokens, now=now) == 0


def test_what_was_reserved_and_not_used_comes_back() -> None:
    bucket = TokenBucket(100, now=0)
    assert bucket.take(100, now=0) == 0
    assert bucket.take(1, now=0) > 0
    bucket.settle(taken=100, used=40, now=0)
    assert bucket.level(0) == 60
    assert bucket.take(60, now=0) == 0


def test_more_than_a_minute_s_tokens_are_let_in_by_a_full_bucket_and_paid_back() -> None:
    bucket = TokenBucket(60, now=0)
    assert bucket.take(180, now=0) == 0
    assert bucket.level(0) == -120
    assert bucket.take(10, now=0) == pytest.approx(130)
    assert bucket.take(10, now=130) == 0


def test_a_clock_that_went_back_gives_nothing_and_takes_nothing() -> None:
    bucket = TokenBucket(60, now=100)
    bucket.take(60, now=100)
    assert bucket.level(50) == 0
    assert bucket.level(101) == pytest.approx(1)


def test_a_quota_is_each_caller_s_own_and_a_changed_one_counts_at_once() -> None:
    quotas = Quotas(lambda: 0.0)
    quotas.reserve("a", 10, 10)
    quotas.reserve("b", 10, 10)
    with pytest.raises(QuotaExceeded, match="quota of 10 a minute") as refused:
        quotas.reserve("a", 10, 5)
    assert refused.value.retry_after_s == pytest.approx(30)
    quotas.reserve("a", 20, 5)
    quotas.reserve("none", 0, 10**9)
    quotas.settle("none", reserved=10**9, used=1)
