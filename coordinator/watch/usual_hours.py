"""How many tokens a key uses in an hour, and when that is far from usual.

An hour is unusual if there were at least ``LEAST_HOURS`` hours in which the key was used before,
and its tokens are

    more than ``TIMES`` times those of every such hour,
    more than ``DEVIATIONS`` robust standard deviations above their median, both of log2 tokens
    (1.4826 times the median absolute deviation is the standard deviation of normal data; 3.5 is
    the bound of Iglewicz and Hoaglin 1993, How to detect and handle outliers, for such scores), and
    ``LEAST_TOKENS`` or more.

If hours are exchangeable, the first condition alone is false at most once in 25 hours (1 / (hours +
1)), whatever their distribution. All together are false far more seldom: for log-normal loads of
spreads from 0.3 to 1.5, steady, with quiet nights, and growing by half each week, fewer than one hour in
2,000, while nearly every hour with ten times the most so far is found
(``tests/coordinator/watch/test_usual_hours.py``). Somebody who grows slowly is not found.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final

HOUR_S: Final = 3600
KEPT_HOURS: Final = 336
"""Of each key, the last so many hours in which it was used."""
LEAST_HOURS: Final = 24
LEAST_TOKENS: Final = 10_000
TIMES: Final = 4
DEVIATIONS: Final = 3.5
LEAST_DEVIATION: Final = 0.25
"""Of log2 tokens: who always uses the same amount may use a fifth more."""
MOST_KEYS: Final = 2000

_TO_STANDARD: Final = 1.4826


def is_unusual(tokens: int, before: Sequence[int]) -> bool:
    """Whether so many tokens in an hour are far from those of the hours before."""
    if tokens < LEAST_TOKENS or len(before) < LEAST_HOURS or tokens <= TIMES * max(before):
        return False
    logs = [math.log2(max(each, 1)) for each in before]
    middle = statistics.median(logs)
    spread = statistics.median(abs(each - middle) for each in logs)
    deviation = max(_TO_STANDARD * spread, LEAST_DEVIATION)
    return math.log2(tokens) - middle > DEVIATIONS * deviation


class UsualHours:
    """What keys used in the hours in which they were used. Driven by one thread."""

    def __init__(self, kept: dict[str, dict[int, int]] | None = None) -> None:
        """``kept``: what :meth:`kept` gave earlier."""
        self._hours: dict[str, dict[int, int]] = kept or {}
        self._told: dict[str, int] = {}
        """Of keys, the hour that was already found to be unusual."""

    def add(self, key: str, tokens: int, at: float) -> str:
        """Count what a key used; says what is unusual about this hour, once, else nothing."""
        hour = int(at) // HOUR_S
        hours = self._hours.pop(key, {})
        self._hours[key] = hours  # the last that was used comes last
        if len(self._hours) > MOST_KEYS:
            del self._hours[next(iter(self._hours))]
        hours[hour] = hours.get(hour, 0) + tokens
        while len(hours) > KEPT_HOURS:
            del hours[min(hours)]
        if self._told.get(key) == hour:
            return ""
        before = [count for when, count in hours.items() if when < hour]
        if not is_unusual(hours[hour], before):
            return ""
        self._told[key] = hour
        middle = statistics.median(before)
        return f"{hours[hour]} tokens within this hour; in {len(before)} hours before, {middle:.0f} in the middle"

    def kept(self) -> dict[str, dict[int, int]]:
        """All of it, to be kept."""
        return self._hours
