"""Whose request is next: fair over what answers cost, between callers and classes of priority.

F1  of one priority, the caller that has cost least is next; one that comes back after a pause
    starts level with those who stayed, never ahead of what it has itself used
F2  a higher priority goes first; a class of which nothing was let in for ``aging_s`` counts as
    one higher, after twice that as two, so that none waits for ever
F3  while others asked lately, one caller has at most half of the slots, so that whoever comes
    finds one free however long the answers of a greedy caller are
F4  of one caller, requests keep their order

Start-time fair queueing (Goyal, Vin, Cheng 1996) in the form of virtual token counters (Sheng et
al. 2024). What is in service counts by its estimate when the next is chosen, but a newcomer is
set level with what others have *really* used: level with estimates, it would stand behind all that
a greedy caller had asked for and would get back. Pure: no clock, no thread, no lock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

ItemT = TypeVar("ItemT")

AGING_S: Final = 10.0
LATELY_S: Final = 300.0
"""Who asked within this time is about to ask again (F3)."""


@dataclass(slots=True, eq=False)
class Turn(Generic[ItemT]):
    """A request in the line, or in service."""

    item: ItemT
    caller: str
    priority: int
    cost: float
    """Estimated, at least 0."""
    number: int
    """In the order of arrival."""


@dataclass(slots=True)
class _Flow(Generic[ItemT]):
    """What one caller of one priority has used and wants."""

    used: float
    """Really, on the scale of its class."""
    promised: float = 0.0
    """Estimates of what is in service."""
    serving: int = 0
    waiting: deque[Turn[ItemT]] = field(default_factory=deque)

    @property
    def active(self) -> bool:
        return self.serving > 0 or bool(self.waiting)


@dataclass(slots=True)
class _Class(Generic[ItemT]):
    """All callers of one priority."""

    flows: dict[str, _Flow[ItemT]] = field(default_factory=dict)
    level: float = 0.0
    """Where a newcomer starts; it never falls."""
    passed_over_since: float = 0.0
    """When one was last let in, or began to wait where none did."""

    def raise_level(self) -> None:
        """Follow the least that anybody active has used, and forget who lies below it."""
        used = [flow.used for flow in self.flows.values() if flow.active]
        if not used:  # nobody competes, so nobody owes anybody anything
            self.flows.clear()
            self.level = 0.0
            return
        self.level = max(self.level, min(used))
        for name in [
            name for name, flow in self.flows.items() if not flow.active and flow.used <= self.level
        ]:
            del self.flows[name]


class FairQueue(Generic[ItemT]):
    """The line before one engine, and what is in service."""

    def __init__(self, *, aging_s: float = AGING_S, lately_s: float = LATELY_S) -> None:
        """``aging_s`` as in F2, ``lately_s`` as in F3, both in seconds of the caller's clock."""
        self._aging_s = aging_s
        self._lately_s = lately_s
        self._classes: dict[int, _Class[ItemT]] = {}
        self._seen: dict[str, float] = {}
        self._number = 0
        self.serving = 0
        self.waiting = 0

    def waiting_of(self, caller: str) -> int:
        """Requests of one caller that wait."""
        return sum(
            len(group.flows[caller].waiting)
            for group in self._classes.values()
            if caller in group.flows
        )

    @property
    def callers_waiting(self) -> int:
        """Callers of whom something waits."""
        flows = [f for group in self._classes.values() for f in group.flows.values()]
        return sum(bool(flow.waiting) for flow in flows)

    def push(
        self, item: ItemT, caller: str, *, priority: int, cost: float, now: float
    ) -> Turn[ItemT]:
        """Put a request at the end of its caller's line."""
        assert cost >= 0
        group = self._classes.setdefault(priority, _Class())
        group.raise_level()
        if not any(flow.waiting for flow in group.flows.values()):
            group.passed_over_since = now
        flow = group.flows.setdefault(caller, _Flow(used=group.level))
        if not flow.active:
            flow.used = max(flow.used, group.level)
        self._number += 1
        turn = Turn(item, caller, priority, cost, self._number)
        flow.waiting.append(turn)
        self.waiting += 1
        self._seen[caller] = now
        return turn

    def remove(self, turn: Turn[ItemT]) -> None:
        """Take back a request that waits; it has cost nothing."""
        group = self._classes[turn.priority]
        group.flows[turn.caller].waiting.remove(turn)
        self.waiting -= 1
        self._tidy(turn.priority)

    def pop(self, *, slots: int, now: float) -> Turn[ItemT] | None:
        """Let the next request in, or nobody: none waits, or no slot is free for those who do."""
        if self.serving >= slots or not self.waiting:
            return None
        share = self._share(slots, now)
        best: tuple[tuple[float, ...], _Class[ItemT], _Flow[ItemT]] | None = None
        for priority, group in self._classes.items():
            unserved_s = now - group.passed_over_since
            risen = priority + max(0.0, unserved_s) // self._aging_s
            for flow in group.flows.values():
                if not flow.waiting or flow.serving >= share:
                    continue
                rank = (-risen, -unserved_s, flow.used + flow.promised, flow.waiting[0].number)
                if best is None or rank < best[0]:
                    best = (rank, group, flow)
        if best is None:
            return None
        _, group, flow = best
        turn = flow.waiting.popleft()
        group.passed_over_since = now
        flow.promised += turn.cost
        flow.serving += 1
        self.serving += 1
        self.waiting -= 1
        return turn

    def settle(self, turn: Turn[ItemT], *, cost: float, now: float) -> None:
        """A request that was let in is over, and has really cost ``cost``."""
        assert cost >= 0
        flow = self._classes[turn.priority].flows[turn.caller]
        flow.serving -= 1
        # Sums of floats leave dust behind, and dust would count.
        flow.promised = flow.promised - turn.cost if flow.serving else 0.0
        flow.used += cost
        self.serving -= 1
        self._seen[turn.caller] = now
        self._tidy(turn.priority)

    def _tidy(self, priority: int) -> None:
        group = self._classes[priority]
        group.raise_level()
        if not group.flows:
            del self._classes[priority]

    def _share(self, slots: int, now: float) -> int:
        """Slots that one caller may have (F3)."""
        gone = [name for name, at in self._seen.items() if now - at > self._lately_s]
        for name in gone:
            if not any(name in group.flows for group in self._classes.values()):
                del self._seen[name]
        return slots if len(self._seen) < 2 else (slots + 1) // 2
