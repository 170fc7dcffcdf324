"""So many tokens a minute for one caller: taken by estimate, settled by what was really used."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Final

from shared.errors import QuotaExceeded

_DUST: Final = 1e-6
"""Tokens that rounding may hide: whoever waited as long as was said is let in."""


class TokenBucket:
    """Fills steadily, and holds no more than one minute's tokens. Pure: the clock is the caller's.

    A request that may need more than a whole minute's tokens is let in by a full bucket, which
    then is in debt: so none is refused for ever, and the average still holds.
    """

    def __init__(self, per_minute: int, *, now: float) -> None:
        """A full bucket of ``per_minute`` tokens, at least 1; ``now`` in seconds."""
        assert per_minute >= 1
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def level(self, now: float) -> float:
        """Tokens there are; below zero in debt."""
        # A clock that went back, or another thread's older reading, takes nothing away.
        passed_s = max(0.0, now - self._at)
        self._at = max(self._at, now)
        self._level = min(float(self.per_minute), self._level + passed_s * self.per_minute / 60.0)
        return self._level

    def take(self, tokens: float, *, now: float) -> float:
        """Take tokens for a request; returns 0, or after how many seconds to ask again."""
        assert tokens >= 0
        lacking = min(tokens, float(self.per_minute)) - self.level(now)
        if lacking > _DUST:
            return lacking * 60.0 / self.per_minute
        self._level -= tokens
        return 0.0

    def settle(self, *, taken: float, used: float, now: float) -> None:
        """A request that had taken ``taken`` has really used ``used``."""
        self._level = min(float(self.per_minute), self.level(now) + taken - used)


class Quotas:
    """The buckets of all callers. Safe on any thread."""

    def __init__(self, now: Callable[[], float]) -> None:
        """``now``: seconds on a clock that does not go back."""
        self._now = now
        self._lock = threading.Lock()
        self._buckets: dict[str, TokenBucket] = {}

    def reserve(self, caller: str, per_minute: int, tokens: int) -> None:
        """Take tokens for a request; ``per_minute`` 0 is no quota.

        Raises:
            QuotaExceeded: there are not enough now.
        """
        if not per_minute:
            return
        with self._lock:
            bucket = self._buckets.get(caller)
            if bucket is None or bucket.per_minute != per_minute:
                bucket = self._buckets[caller] = TokenBucket(per_minute, now=self._now())
            wait_s = bucket.take(tokens, now=self._now())
        if wait_s:
            raise QuotaExceeded(
                f"this needs up to {tokens} tokens, and the quota of {per_minute} a minute is used "
                f"up for now: ask again in {math.ceil(wait_s)} s, or for fewer",
                retry_after_s=wait_s,
            )

    def settle(self, caller: str, *, reserved: int, used: int) -> None:
        """A request is over: give back what it did not use."""
        with self._lock:
            bucket = self._buckets.get(caller)
            if bucket is not None:
                bucket.settle(taken=reserved, used=used, now=self._now())
