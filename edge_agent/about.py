"""What a device tells of itself, so that a fleet can be looked after.

W1  the version of the agent is told always, and whether there are examples: a decline tells as much
W2  what is left of the budget, and that nothing is, are told only if the owner said so
W3  nothing of the examples is told but whether there are any
W4  of the owner's conditions the name of one that does not hold is told, and no reading
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import structlog

from edge_agent.examples import ExampleStore
from edge_agent.participate import Home, Owner
from shared.errors import LlmOsError
from shared.privacy.ledger import Ledger
from shared.wire.messages import About

log = structlog.get_logger()

READY: Final = ""
NO_EXAMPLES: Final = "no-examples"
BUDGET_SPENT: Final = "budget-spent"
STORAGE: Final = "storage"
"""Conditions: why a device would decline. Of the last, its own log says more."""


class SelfDescription:
    """Says what this device is like now. Files that did not change are not read again."""

    def __init__(self, home: Home, owner: Owner, unmet: Callable[[], str] = lambda: "") -> None:
        """Describe the device that lives in ``home``.

        ``unmet`` names a condition of the owner's that does not hold now; empty: all do.
        """
        self._home = home
        self._unmet = unmet
        self._owner = owner
        self._version = _version()
        self._seen: tuple[object, ...] = ()
        self._told = About(self._version, READY, "")

    def now(self) -> About:
        """What to tell."""
        seen = tuple(_change_of(path) for path in (self._home.examples, self._home.ledger))
        if seen != self._seen:
            try:
                self._told = self._looked()
            except LlmOsError as err:
                log.warning("about.unreadable", code=err.code, error=str(err))
                self._told = About(self._version, STORAGE, "")
            self._seen = seen
        told = self._told
        # What does not pass by itself is said first: it keeps the device from all rounds.
        return told if told.condition else replace(told, condition=self._unmet())

    def _looked(self) -> About:
        # Not made by being looked at: examples may be put there as a whole file.
        there = self._home.examples.exists()
        if not there or ExampleStore(self._home.examples).count == 0:
            condition = NO_EXAMPLES
        else:
            condition = READY
        budget = self._owner.epsilon_budget
        if not self._owner.tells_budget or math.isinf(budget):
            return About(self._version, condition, "")
        spent = Ledger(self._home.ledger, repair=False).epsilon(self._owner.delta)
        left = max(0.0, budget - spent)
        return About(self._version, condition or (READY if left else BUDGET_SPENT), f"{left:.2f}")


def _version() -> str:
    try:
        return version("llmos")[:32]
    except PackageNotFoundError:
        return "unknown"


def _change_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
