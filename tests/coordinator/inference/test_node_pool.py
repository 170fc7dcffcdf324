"""The least busy node is chosen, failures move a request on, and a node that is out comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from coordinator.inference.engine import Finished, Piece, Stream, collect
from coordinator.inference.node_pool import MAX_TRIES, NodeHealth, Offer, Seats, spread
from shared.errors import ChildDied, EngineBusy, EngineError, LlmOsError, PromptRefused

OFFER = Offer(frozenset({"m"}))


def test_the_node_with_the_fewest_unanswered_requests_is_chosen() -> None:
    seats = Seats("abc")
    assert [seats.take("abc") for _ in range(3)] == ["a", "b", "c"]
    seats.give_back("b")
    assert seats.take("abc") == "b"
    assert seats.take("ac") in ("a", "c")
    assert seats.take("") is None
    assert sum(seats.taken.values()) == 4


def test_equally_busy_nodes_take_turns() -> None:
    seats = Seats("ab")
    turns = []
    for _ in range(4):
        name = seats.take("ab")
        assert name is not None
        turns.append(name)
        seats.give_back(name)
    assert turns == ["a", "b", "a", "b"]


def test_one_failed_check_is_a_hiccup_two_take_it_out_and_one_good_one_brings_it_back() -> None:
    well = NodeHealth().went_well(OFFER)
    once = well.went_wrong("slow", surely=False)
    assert once.offer is OFFER
    twice = once.went_wrong("slow", surely=False)
    assert (twice.offer, twice.reason) == (None, "slow")
    assert twice.went_well(OFFER) == well
    assert well.went_wrong("refused", surely=True).offer is None


def test_a_node_that_is_out_is_asked_ever_less_often_but_always_again() -> None:
    health, pauses = NodeHealth().went_well(OFFER), []
    assert health.pause_s(3.0, 30.0) == 3.0
    for _ in range(2000):
        health = health.went_wrong("gone", surely=True)
        pauses.append(health.pause_s(3.0, 30.0))
    assert pauses[:7] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert pauses[-1] == 30.0


class Nodes:
    """Nodes that fail with what is said, or answer with their name."""

    def __init__(self, **failures: LlmOsError | None) -> None:
        self.failures = failures
        self.seats = Seats(failures)
        self.asked: list[str] = []

    async def ask(self, name: str) -> Stream:
        self.asked.append(name)
        failure = self.failures[name]
        if failure is not None:
            raise failure
        yield Piece(name)
        yield Finished("stop", 1, 1)

    def answer(self, ask: Callable[[str], Stream] | None = None) -> str:
        def candidates() -> Sequence[str]:
            return list(self.failures)

        stream = spread(
            self.seats,
            candidates,
            ask or self.ask,
            goes_elsewhere=lambda err: not isinstance(err, PromptRefused),
            nobody=lambda: EngineBusy("nobody"),
        )
        return asyncio.run(collect(stream)).text


def test_a_request_goes_on_to_a_node_that_answers_and_leaves_no_seat_taken() -> None:
    nodes = Nodes(a=ChildDied("a"), b=EngineBusy("b"), c=None)
    assert nodes.answer() == "c"
    assert nodes.asked == ["a", "b", "c"]
    assert set(nodes.seats.taken.values()) == {0}


def test_a_refused_prompt_is_refused_once() -> None:
    nodes = Nodes(a=PromptRefused("too long"), b=None)
    with pytest.raises(PromptRefused):
        nodes.answer()
    assert nodes.asked == ["a"]


def test_after_the_first_piece_an_error_is_the_end() -> None:
    nodes = Nodes(a=None, b=None)

    async def half(name: str) -> Stream:
        nodes.asked.append(name)
        yield Piece("half")
        raise ChildDied(name)

    with pytest.raises(ChildDied, match="a"):
        nodes.answer(half)
    assert nodes.asked == ["a"]
    assert set(nodes.seats.taken.values()) == {0}


def test_a_request_that_kills_nodes_does_not_get_to_all_of_them() -> None:
    nodes = Nodes(**{name: ChildDied(name) for name in "abcdef"})
    with pytest.raises(ChildDied):
        nodes.answer()
    assert len(nodes.asked) == MAX_TRIES


def test_that_one_was_busy_is_said_before_other_errors_with_the_shortest_wait() -> None:
    later, soon = EngineBusy("later"), EngineBusy("soon")
    vars(later)["retry_after_s"], vars(soon)["retry_after_s"] = 9.0, 2.0
    with pytest.raises(EngineBusy, match="soon"):
        Nodes(a=later, b=soon, c=EngineError("broken")).answer()


def test_without_any_node_the_reason_is_the_callers() -> None:
    with pytest.raises(EngineBusy, match="nobody"):
        Nodes().answer()
