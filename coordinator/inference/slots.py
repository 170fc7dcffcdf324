"""Continuous batching over rows of keys and values: requests come and go between two steps.

L1  rows 0 to B - 1 generate, at most one more reads its prompt, and no row lies idle between them
L2  a prompt is read in parts that take a fraction of a second, so that who generates goes on
L3  requests are taken in the order they came; one that waits for room lets none pass, so that a
    long one is not overtaken for ever
L4  rows times the tokens of the longest stays within what may be kept

Implements :class:`~coordinator.inference.token_runtime.TokenRuntime` over any
:class:`~coordinator.inference.step_model.StepModel`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from coordinator.inference.engine import EngineLoad, FinishReason
from coordinator.inference.prefix_cache import PrefixCache
from coordinator.inference.sampling import Sampler, log_probabilities
from coordinator.inference.schema import Follower
from coordinator.inference.step_model import Logits, StepModel
from coordinator.inference.token_runtime import Emitted, TokenRequest
from shared.errors import PromptRefused
from shared.models.adapter import Adapter

READ_S: Final = 0.25
"""About so long prompts are read in one step (L2)."""

_LEAST_READ: Final = 16
_MOST_READ: Final = 512
_LEAST_ROOM: Final = 256
"""Tokens in the shortest row; rooms are powers of two from there, so that rows are rarely moved."""


@dataclass(slots=True, eq=False)
class _Work:
    """A request under way."""

    request: TokenRequest
    sampler: Sampler
    follower: Follower | None
    past: int = 0
    """Tokens whose keys and values the row holds."""
    cached: int = 0
    given: list[int] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Tokens that the row must be able to hold."""
        return _room(len(self.request.tokens) + self.request.max_tokens)


def _room(tokens: int) -> int:
    return max(_LEAST_ROOM, 1 << (tokens - 1).bit_length())


class SlotRuntime:
    """Slots over a step model; see :class:`~coordinator.inference.token_runtime.TokenRuntime`."""

    def __init__(
        self,
        model: StepModel,
        *,
        slots: int,
        kv_tokens: int,
        follow: Callable[[str], Follower] | None = None,
        prefixes: PrefixCache | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Describe the slots; rows are made when they are needed.

        Args:
            model: Computes the steps.
            slots: Most requests at once.
            kv_tokens: Most tokens that rows may hold together (L4).
            follow: Begins to follow a JSON schema; without it schemas are not served.
            prefixes: Beginnings of prompts that were computed before.
            clock: Seconds, for the pace of reading.
        """
        self._model = model
        self._slots = slots
        self._kv_tokens = kv_tokens
        self._follow = follow
        self._prefixes = prefixes
        self._clock = clock
        self._waiting: deque[_Work] = deque()
        self._rows: list[_Work] = []
        self._reading: _Work | None = None
        self._have = (0, 0)
        self._pace = 0.0
        self._counts = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}
        self.context_tokens = model.context_tokens
        self.ends = model.ends
        self.lacks: frozenset[str] = frozenset() if follow is not None else frozenset({"schema"})

    @property
    def load(self) -> EngineLoad:
        """See :class:`~coordinator.inference.token_runtime.TokenRuntime`."""
        active = list(self._active())
        return EngineLoad(
            slots=self._slots,
            active=len(active),
            waiting=len(self._waiting),
            kv_tokens=self._kv_tokens,
            kv_tokens_used=len(active) * max((each.room for each in active), default=0),
            **self._counts,
        )

    def submit(self, request: TokenRequest) -> None:
        """See :class:`~coordinator.inference.token_runtime.TokenRuntime`."""
        needed = len(request.tokens) + request.max_tokens
        if _room(needed) > self._kv_tokens:
            raise PromptRefused(
                f"prompt and answer have up to {needed} tokens; this server has memory for "
                f"{self._kv_tokens} at once"
            )
        if max(request.tokens) >= self._model.vocabulary:
            raise PromptRefused(
                f"the model's tokens are the numbers below {self._model.vocabulary}"
            )
        if request.adapter is not None:
            self._model.check(request.adapter)
        follower = None
        if request.schema is not None:
            if self._follow is None:
                raise PromptRefused("response_format: this engine cannot follow a JSON schema")
            follower = self._follow(request.schema)
        sampler = Sampler(temperature=request.temperature, top_p=request.top_p, seed=request.seed)
        self._waiting.append(_Work(request, sampler, follower))

    def cancel(self, number: int) -> None:
        """See :class:`~coordinator.inference.token_runtime.TokenRuntime`."""
        for work in self._waiting:
            if work.request.number == number:
                self._waiting.remove(work)
                return
        for work in self._active():
            if work.request.number == number:
                self._free(work)
                return

    def step(self) -> Sequence[Emitted]:
        """See :class:`~coordinator.inference.token_runtime.TokenRuntime`."""
        emitted = list(self._generate())
        emitted += self._read()
        return emitted

    def close(self) -> None:
        """See :class:`~coordinator.inference.token_runtime.TokenRuntime`."""
        self._waiting.clear()
        self._rows.clear()
        self._reading = None

    def _active(self) -> Iterator[_Work]:
        yield from self._rows
        if self._reading is not None:
            yield self._reading

    def _generate(self) -> Iterator[Emitted]:
        """One token for every row that generates."""
        working = list(self._rows)
        if not working:
            return
        logits = self._model.decode(
            [work.given[-1] for work in working], [work.past for work in working]
        )
        for work in working:
            work.past += 1
        for work, row in zip(working, logits, strict=True):
            yield self._choose(work, row)

    def _read(self) -> Iterator[Emitted]:
        """Read prompts for about :data:`READ_S`, one behind the other (L2)."""
        began, read = self._clock(), 0
        most = min(_MOST_READ, max(_LEAST_READ, int(self._pace * READ_S)))
        while read < most:
            if self._reading is None and not self._admit():
                break
            work = self._reading
            assert work is not None
            tokens = work.request.tokens
            part = tokens[work.past : work.past + most - read]
            logits = self._model.read(len(self._rows), part, work.past)
            work.past += len(part)
            read += len(part)
            if work.past < len(tokens):
                break
            self._reading = None
            self._rows.append(work)
            self._keep(work)
            self._counts["prompt_tokens"] += len(tokens)
            self._counts["cached_tokens"] += work.cached
            yield self._choose(work, logits)
        if read:
            pace = read / max(self._clock() - began, 1e-6)
            self._pace = pace if not self._pace else 0.7 * self._pace + 0.3 * pace

    def _admit(self) -> bool:
        """Give the first that waits a row, if there is one and room for it (L3, L4)."""
        if not self._waiting or len(self._rows) >= self._slots:
            return False
        work = self._waiting[0]
        rows = len(self._rows) + 1
        room = max(work.room, *(each.room for each in self._rows), _LEAST_ROOM)
        if rows * room > self._kv_tokens:
            return False
        self._waiting.popleft()
        have_rows, have_room = self._have
        if rows > have_rows or room > have_room:
            self._have = (min(self._slots, self._kv_tokens // room), room)
            self._model.reserve(*self._have)
        row = len(self._rows)
        self._model.place(row, work.request.adapter)
        if self._prefixes is not None:
            blocks = self._prefixes.find(
                work.request.tokens, adapter=_digest(work), share=work.request.share
            )
            for block in blocks:
                self._model.put(row, work.past, block)
                work.past += block.shape[2]
            work.cached = work.past
        self._reading = work
        return True

    def _choose(self, work: _Work, logits: Logits) -> Emitted:
        """Choose a row's next token, and free the row if it is the last."""
        request, follower = work.request, work.follower
        chosen = logits
        if follower is not None:
            chosen = np.where(follower.allowed(), logits, -np.inf)
        token = work.sampler.choose(chosen)
        work.given.append(token)
        self._counts["completion_tokens"] += 1
        if follower is not None:
            follower.accept(token)
        logprob, likeliest = 0.0, tuple[tuple[int, float], ...]()
        if request.logprobs is not None:
            logprob, likeliest = log_probabilities(logits, token, request.logprobs)
        ended = token in self._model.ends or (follower is not None and follower.is_over)
        finish: FinishReason | None = "stop" if ended else None
        if finish is None and len(work.given) >= request.max_tokens:
            finish = "length"
        cached = work.cached if len(work.given) == 1 else 0
        if finish is not None:
            self._free(work)
        return Emitted(request.number, token, logprob, likeliest, finish, cached)

    def _free(self, work: _Work) -> None:
        """Give a row back and close the gap (L1)."""
        if work is not self._reading:
            self._keep(work)
            row, last = self._rows.index(work), len(self._rows) - 1
            if row != last:
                self._model.move(last, row, self._rows[last].past)
                self._rows[row] = self._rows[last]
            self._rows.pop()
            if self._reading is not None:
                self._model.move(last + 1, last, self._reading.past)
        else:
            self._reading = None
        freed = sum(1 for _ in self._active())
        self._model.place(freed, None)

    def _keep(self, work: _Work) -> None:
        """Let later prompts begin with what this row holds: a conversation's next turn will."""
        if self._prefixes is None or not work.request.share:
            return
        row = self._rows.index(work)
        self._prefixes.keep(
            [*work.request.tokens, *work.given][: work.past],
            adapter=_digest(work),
            share=work.request.share,
            take=lambda start, end: self._model.take(row, start, end),
        )


def _digest(work: _Work) -> str:
    adapter: Adapter | None = work.request.adapter
    return adapter.digest if adapter is not None else ""
