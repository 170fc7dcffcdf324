"""What each language model does now, for consoles: totals, and the last half minute."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from coordinator.inference.front_desk import FrontDesk, Served

WINDOW_S: Final = 30.0
"""Over which tokens a second are counted."""
SAMPLES: Final = 256
"""Of times to the first token, the last so many."""


@dataclass(slots=True)
class _Tally:
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cache_hits: int = 0
    cache_lookups: int = 0
    answered: deque[tuple[float, int]] = field(default_factory=deque)
    first_s: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))

    def tokens_per_s(self, now: float) -> float:
        while self.answered and self.answered[0][0] <= now - WINDOW_S:
            self.answered.popleft()
        return sum(tokens for _, tokens in self.answered) / WINDOW_S


class LiveServing:
    """A :class:`~coordinator.inference.front_desk.Meter` that can be read. Safe on any thread."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Count by this clock."""
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._tallies: defaultdict[str, _Tally] = defaultdict(_Tally)

    def served(self, what: Served) -> None:
        """A request is over, however it ended."""
        with self._lock:
            tally = self._tallies[what.model]
            tally.requests += 1
            if what.first_s is not None:
                tally.first_s.append(what.first_s)
            if what.finished is not None:
                tally.prompt_tokens += what.finished.prompt_tokens
                tally.completion_tokens += what.finished.completion_tokens
                tally.answered.append((self._monotonic(), what.finished.completion_tokens))

    def looked_up(self, model: str, *, hit: bool) -> None:
        """An answer was looked for in the cache."""
        with self._lock:
            self._tallies[model].cache_lookups += 1
            self._tallies[model].cache_hits += hit

    def view(self, desk: FrontDesk) -> dict[str, dict[str, Any]]:
        """By model that is served: its state, what waits, and what was counted."""
        found = {}
        for name, engine in desk.engines.items():
            card, load = engine.card, engine.load
            found[name] = {
                "state": str(card.state),
                "reason": card.reason,
                "slots": load.slots,
                "active": load.active,
                "queue": desk.waiting(name) + load.waiting,
                **self._counted(name),
            }
        return found

    def _counted(self, model: str) -> dict[str, Any]:
        with self._lock:
            tally = self._tallies[model]
            times = list(tally.first_s)
            facts: dict[str, Any] = {
                "requests": tally.requests,
                "prompt_tokens": tally.prompt_tokens,
                "completion_tokens": tally.completion_tokens,
                "tokens_per_s": round(tally.tokens_per_s(self._monotonic()), 2),
                "cache_hits": tally.cache_hits,
                "cache_lookups": tally.cache_lookups,
            }
        facts["first_token_s"] = (
            {"p50": _quantile(times, 0.5), "p95": _quantile(times, 0.95)} if times else {}
        )
        return facts


def _quantile(times: list[float], share: float) -> float:
    return round(float(np.quantile(times, share)), 4)
