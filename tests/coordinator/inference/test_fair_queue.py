"""The line is fair over cost: against a slow oracle that is written as the rules are told."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.inference.fair_queue import AGING_S, LATELY_S, FairQueue, Turn


@dataclass(eq=False)
class Slow:
    """The rules of the module, with lists that are gone through every time."""

    waiting: list[Turn[int]] = field(default_factory=list)
    serving: list[Turn[int]] = field(default_factory=list)
    used: dict[tuple[int, str], float] = field(default_factory=dict)
    level: dict[int, float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    since: dict[int, float] = field(default_factory=dict)

    def _active(self, priority: int) -> set[str]:
        return {t.caller for t in self.waiting + self.serving if t.priority == priority}

    def _level(self, priority: int) -> None:
        active = self._active(priority)
        if not active:
            self.level[priority] = 0.0
            self.used = {k: v for k, v in self.used.items() if k[0] != priority}
            return
        least = min(self.used[priority, name] for name in active)
        self.level[priority] = max(self.level.get(priority, 0.0), least)

    def push(self, turn: Turn[int], now: float) -> None:
        priority, name = turn.priority, turn.caller
        self._level(priority)
        if not any(t.priority == priority for t in self.waiting):
            self.since[priority] = now
        if name not in self._active(priority):
            self.used[priority, name] = max(
                self.used.get((priority, name), 0.0), self.level[priority]
            )
        self.waiting.append(turn)
        self.seen[name] = now

    def remove(self, turn: Turn[int]) -> None:
        self.waiting.remove(turn)
        self._level(turn.priority)

    def pop(self, slots: int, now: float) -> Turn[int] | None:
        if len(self.serving) >= slots:
            return None
        lately = {n for n, at in self.seen.items() if now - at <= LATELY_S}
        lately |= {t.caller for t in self.waiting + self.serving}
        lately |= {name for (_, name), used in self.used.items() if used > self.level[_]}
        share = slots if len(lately) < 2 else -(-slots // 2)

        def rank(turn: Turn[int]) -> tuple[float, ...]:
            priority, unserved = turn.priority, now - self.since[turn.priority]
            promised = sum(
                t.cost for t in self.serving if (t.priority, t.caller) == (priority, turn.caller)
            )
            return (
                -(priority + unserved // AGING_S),
                -unserved,
                self.used[priority, turn.caller] + promised,
                turn.number,
            )

        may = [
            turn
            for turn in self.waiting
            if sum((t.priority, t.caller) == (turn.priority, turn.caller) for t in self.serving)
            < share
        ]
        if not may:
            return None
        turn = min(may, key=rank)
        self.waiting.remove(turn)
        self.serving.append(turn)
        self.since[turn.priority] = now
        return turn

    def settle(self, turn: Turn[int], cost: float, now: float) -> None:
        self.serving.remove(turn)
        self.used[turn.priority, turn.caller] += cost
        self.seen[turn.caller] = now
        # Who has just ended is no longer active, unless something else of it is there.
        self._level(turn.priority)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from("abcd"), st.integers(0, 2), st.integers(0, 50)),
        st.tuples(st.just("pop"), st.integers(1, 5), st.just(0), st.just(0)),
        st.tuples(st.just("settle"), st.integers(0, 9), st.integers(0, 60), st.just(0)),
        st.tuples(st.just("remove"), st.integers(0, 9), st.just(0), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from([0, 1, 4, 11, 400]), st.just(0), st.just(0)),
    ),
    max_size=120,
)


@settings(max_examples=300, deadline=None)
@given(OPERATIONS)
def test_the_queue_does_what_the_slow_oracle_does(operations: list[tuple[str, ...]]) -> None:
    quick: FairQueue[int] = FairQueue()
    slow = Slow()
    now = 0.0
    for kind, a, b, c in operations:
        if kind == "push":
            # A caller has one priority, as a key has.
            priority = "abcd".index(a) % (int(b) + 1)
            name = f"{a}{priority}"
            turn = quick.push(0, name, priority=priority, cost=int(c), now=now)
            slow.push(turn, now)
        elif kind == "pop":
            assert quick.pop(slots=int(a), now=now) is slow.pop(int(a), now)
        elif kind == "settle" and slow.serving:
            turn = slow.serving[int(a) % len(slow.serving)]
            quick.settle(turn, cost=int(b), now=now)
            slow.settle(turn, int(b), now)
        elif kind == "remove" and slow.waiting:
            turn = slow.waiting[int(a) % len(slow.waiting)]
            quick.remove(turn)
            slow.remove(turn)
        elif kind == "wait":
            now += int(a)
        assert (quick.waiting, quick.serving) == (len(slow.waiting), len(slow.serving))


def drain(queue: FairQueue[int], *, slots: int = 1, answers: int) -> list[str]:
    """Who is served, when every answer costs what was estimated."""
    served = []
    for number in range(answers):
        turn = queue.pop(slots=slots, now=number * 0.01)
        assert turn is not None
        queue.settle(turn, cost=turn.cost, now=number * 0.01)
        served.append(turn.caller)
    return served


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 100), min_size=40, max_size=40),
    st.lists(st.integers(1, 100), min_size=40, max_size=40),
)
def test_two_who_always_want_something_are_served_alike_to_within_two_answers(
    first: list[int], second: list[int]
) -> None:
    queue: FairQueue[int] = FairQueue()
    for cost in first:
        queue.push(0, "first", priority=0, cost=cost, now=0)
    for cost in second:
        queue.push(0, "second", priority=0, cost=cost, now=0)
    cost_of = {"first": 0.0, "second": 0.0}
    while min(queue.waiting_of("first"), queue.waiting_of("second")) > 0:
        turn = queue.pop(slots=1, now=0)
        assert turn is not None
        queue.settle(turn, cost=turn.cost, now=0)
        cost_of[turn.caller] += turn.cost
        assert abs(cost_of["first"] - cost_of["second"]) <= 2 * 100


def test_one_caller_keeps_the_order_of_its_requests() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(20):
        queue.push(number, "a", priority=0, cost=20 - number, now=0)
    order = []
    while (turn := queue.pop(slots=100, now=0)) is not None:
        order.append(turn.item)
    assert order == list(range(20))


def test_who_asks_for_a_hundred_at_once_does_not_come_before_who_asks_for_one() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(100):
        queue.push(number, "greedy", priority=0, cost=10, now=0)
    drain(queue, answers=50)
    queue.push(0, "polite", priority=0, cost=10, now=1)
    assert "polite" in drain(queue, answers=2)


def test_a_newcomer_is_not_set_behind_what_was_estimated_and_never_used() -> None:
    """Whoever allows 4096 tokens and uses 10 must not lift the level that others start from."""
    queue: FairQueue[int] = FairQueue()
    for number in range(100):
        queue.push(number, "greedy", priority=0, cost=4096, now=0)
    inside = [queue.pop(slots=4, now=0) for _ in range(4)]
    queue.push(0, "polite", priority=0, cost=4096, now=0)
    first = inside.pop()
    assert first is not None
    queue.settle(first, cost=10, now=0)
    turn = queue.pop(slots=4, now=0)
    assert turn is not None
    assert turn.caller == "polite"


def test_a_pause_is_no_credit_and_no_way_out_of_what_was_used() -> None:
    queue: FairQueue[int] = FairQueue()
    for name in ("steady", "early", "steady"):
        queue.push(0, name, priority=0, cost=100, now=0)
    assert drain(queue, answers=2) == ["steady", "early"]
    for _ in range(20):
        queue.push(0, "steady", priority=0, cost=100, now=0)
    drain(queue, answers=10)
    for _ in range(10):
        queue.push(0, "early", priority=0, cost=100, now=1)
    assert Counter(drain(queue, answers=10)) == {"early": 5, "steady": 5}


@pytest.mark.parametrize(("slots", "share"), [(1, 1), (2, 1), (3, 2), (4, 2), (16, 8)])
def test_while_others_asked_lately_half_of_the_slots_stay_free_of_one_caller(
    slots: int, share: int
) -> None:
    queue: FairQueue[int] = FairQueue()

    def inside(now: float) -> int:
        turns = []
        while (turn := queue.pop(slots=slots, now=now)) is not None:
            turns.append(turn)
        for turn in turns:
            queue.settle(turn, cost=1, now=now)
        return len(turns)

    for number in range(100):
        queue.push(number, "greedy", priority=0, cost=1, now=0)
    assert inside(0) == slots, "nobody else is there"
    polite = queue.push(0, "polite", priority=0, cost=1, now=1)
    queue.remove(polite)
    assert inside(1) == share
    assert inside(1 + LATELY_S) == share
    assert inside(1 + LATELY_S + 0.1) == slots, "gone for long enough"


def test_higher_priorities_go_first_and_lower_ones_rise_while_they_are_passed_over() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(100):
        queue.push(number, "high", priority=1, cost=1, now=0)
        queue.push(number, "low", priority=0, cost=1, now=0)
        queue.push(number, "lowest", priority=-1, cost=1, now=0)
    served: list[tuple[float, str]] = []
    for step in range(100):
        now = float(step)
        turn = queue.pop(slots=1, now=now)
        assert turn is not None
        queue.settle(turn, cost=1, now=now)
        served.append((now, turn.caller))
    assert {name for now, name in served if now < AGING_S} == {"high"}
    counts = Counter(name for _, name in served)
    assert counts["high"] >= 80
    assert counts["low"] >= 100 // AGING_S - 2
    assert counts["lowest"] >= 3


def test_what_was_forgotten_takes_no_memory() -> None:
    queue: FairQueue[int] = FairQueue()
    chance = random.Random(1)
    now = 0.0
    for number in range(5000):
        now += 1
        queue.push(0, f"caller {number}", priority=chance.randrange(3), cost=1, now=now)
        turn = queue.pop(slots=1, now=now)
        assert turn is not None
        queue.settle(turn, cost=1, now=now)
    assert queue._classes == {}
    assert len(queue._seen) <= LATELY_S + 2
