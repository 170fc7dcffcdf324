"""Which of several nodes answers a request, and which is out. No network and no clock in here.

N1  a request goes to the node with the fewest unanswered ones, of those that can answer it
N2  it goes to another only while nothing of its answer was handed on
N3  it goes to a few at most, so that a request that kills nodes does not kill them all
N4  a node that is out comes back by itself; until then it is asked ever less often
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from coordinator.inference.engine import Finished
from shared.errors import EngineBusy, LlmOsError
from shared.types import Digest

MAX_TRIES: Final = 3
"""Nodes that one request is given to (N3)."""

FAILED_CHECKS: Final = 2
"""So many in a row take a node out: one may be a hiccup, or a long step of its arithmetic."""

_FIRST_PAUSE_S: Final = 0.5

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Offer:
    """What a node said of itself when it was last asked.

    Attributes:
        models: The names that it answers to.
        not_yet: Of the one that is wanted, if it is listed and does not answer.
        context_tokens: Of the one that is wanted, if it was told.
        base: SHA-256 of its weights, if it was told.
        stand_in: Whether it is called a model made for demonstrations.
        salted: Whether the node keeps what it computed apart by a word in the request.
        features: Width of its embeddings, if it was told.
        max_tokens: Of one text, if it was told.
    """

    models: frozenset[str]
    not_yet: str = ""
    context_tokens: int | None = None
    base: Digest | None = None
    stand_in: bool = False
    salted: bool = False
    features: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """What is known of a node. Replaced as a whole, so that any thread may read it.

    Attributes:
        offer: ``None`` while it is out, and before it was first asked.
        failures: Checks that went wrong in a row.
        reason: Why it is out; of a node that was never asked, empty.
    """

    offer: Offer | None = None
    failures: int = 0
    reason: str = ""

    def went_well(self, offer: Offer) -> NodeHealth:
        """It answered: whatever was before is forgotten (N4)."""
        return NodeHealth(offer)

    def went_wrong(self, why: str, *, surely: bool) -> NodeHealth:
        """It did not answer.

        Args:
            why: For whoever asks why it is out.
            surely: Nothing listens there, or it refuses us: no second try can change that.
        """
        failures = self.failures + 1
        out = surely or failures >= FAILED_CHECKS
        return replace(self, offer=None if out else self.offer, failures=failures, reason=why)

    def pause_s(self, interval_s: float, longest_s: float) -> float:
        """Seconds until it is asked again: ``interval_s`` while all is well (N4)."""
        if not self.failures:
            return interval_s
        return min(_FIRST_PAUSE_S * 2.0 ** min(self.failures - 1, 20), longest_s)


class Seats:
    """How many requests each node has not answered yet. Threads may share it."""

    def __init__(self, names: Iterable[str]) -> None:
        """``names`` of the nodes, each once."""
        self._gate = threading.Lock()
        self._taken = dict.fromkeys(names, 0)
        self._last = dict.fromkeys(self._taken, 0)
        self._turns = 0

    def take(self, candidates: Iterable[str]) -> str | None:
        """Choose one (N1); of equally busy ones, the one whose last turn is longest ago.

        Returns ``None`` if there is no candidate. Whoever takes gives back.
        """
        with self._gate:
            name = min(
                candidates, key=lambda each: (self._taken[each], self._last[each]), default=None
            )
            if name is not None:
                self._turns += 1
                self._taken[name] += 1
                self._last[name] = self._turns
            return name

    def give_back(self, name: str) -> None:
        """The request was answered, or is over in another way."""
        with self._gate:
            self._taken[name] -= 1

    @property
    def taken(self) -> dict[str, int]:
        """Unanswered requests by node."""
        with self._gate:
            return dict(self._taken)


async def spread(
    seats: Seats,
    candidates: Callable[[], Sequence[str]],
    ask: Callable[[str], AsyncGenerator[T, None]],
    *,
    goes_elsewhere: Callable[[LlmOsError], bool],
    nobody: Callable[[], LlmOsError],
) -> AsyncGenerator[T, None]:
    """Answer one request from one of several nodes (N1, N2, N3).

    Args:
        seats: Of these nodes.
        candidates: Those that can answer it now.
        ask: Gives the request to one.
        goes_elsewhere: Whether another node may succeed where one failed in this way.
        nobody: The error where there is no candidate to begin with.

    Raises:
        LlmOsError: of the node that answered last; that a node is busy goes before others,
            since such a request may succeed later.
    """
    failed: dict[str, LlmOsError] = {}
    while True:
        left = [name for name in candidates() if name not in failed]
        name = seats.take(left) if len(failed) < MAX_TRIES else None
        if name is None:
            raise _verdict(list(failed.values())) if failed else nobody()
        begun, held = False, True
        try:
            async with aclosing(ask(name)) as stream:
                async for event in stream:
                    begun = True
                    if isinstance(event, Finished):
                        held = False
                        seats.give_back(name)
                    yield event
        except LlmOsError as err:
            if begun or not goes_elsewhere(err):
                raise
            failed[name] = err
        else:
            return
        finally:
            if held:
                seats.give_back(name)


def _verdict(errors: Sequence[LlmOsError]) -> LlmOsError:
    busy = [err for err in errors if isinstance(err, EngineBusy)]
    if not busy:
        return errors[-1]
    return min(busy, key=lambda err: getattr(err, "retry_after_s", None) or float("inf"))
