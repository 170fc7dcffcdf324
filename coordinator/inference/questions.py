"""Devices' questions to the coordinator's model: one at a time, each device in its turn."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from typing import Final

import structlog

from coordinator.fleet.fleet import Fleet
from coordinator.inference.engine import (
    ChatMessage,
    Generation,
    GenerationRequest,
    collect,
)
from coordinator.inference.front_desk import Caller, FrontDesk
from shared.actors import Workbench
from shared.errors import CoordinatorUnavailable, DataError, LlmOsError
from shared.types import DeviceId
from shared.wire.envelope import NO_ROUND, NO_RUN
from shared.wire.messages import Question, Reply

ANSWER_TOKENS: Final = 256
CHARACTERS_LIMIT: Final = 8_000
WAITING_LIMIT: Final = 64
"""Questions of all devices together that wait; one more is refused at once."""

WAITING_OF_ONE: Final = 4
"""Questions of one device that wait, so that none can fill the line."""

log = structlog.get_logger()


class Questions:
    """The line before the model. Driven by the coordinator's thread.

    What was asked is in nobody's log and on no disk: the device keeps its own record.
    """

    def __init__(self, desk: FrontDesk | None, fleet: Fleet, bench: Workbench) -> None:
        """Ask the first model that ``desk`` leads to; without one every question is refused."""
        self._desk = desk
        self._model = next(iter(desk.engines), "") if desk is not None else ""
        self._fleet = fleet
        self._bench = bench
        self._waiting: deque[tuple[DeviceId, Question]] = deque()
        self._busy = False

    def asked(self, device: DeviceId, question: Question) -> None:
        """Take a question, or refuse it with the reason."""
        try:
            self._check(device, question)
        except LlmOsError as err:
            self._refuse(device, question, err)
            return
        self._waiting.append((device, question))
        self._next()

    def _check(self, device: DeviceId, question: Question) -> None:
        if not self._model:
            raise CoordinatorUnavailable(
                "this coordinator has no language model: it was started without --model"
            )
        if not 0 < len(question.text) <= CHARACTERS_LIMIT or len(question.question) > 64:
            raise DataError(f"a question has 1 to {CHARACTERS_LIMIT} characters")
        of_one = sum(asker == device for asker, _ in self._waiting)
        if len(self._waiting) >= WAITING_LIMIT or of_one >= WAITING_OF_ONE:
            raise CoordinatorUnavailable("too many questions are waiting: ask again later")

    def _next(self) -> None:
        if self._busy or not self._waiting:
            return
        self._busy = True
        device, question = self._waiting.popleft()
        desk, model = self._desk, self._model
        assert desk is not None
        # Among themselves devices take turns here; at the desk each is a caller like any other.
        caller = Caller(f"device:{device}")
        request = GenerationRequest(
            prompt=(ChatMessage("user", question.text),),
            max_tokens=ANSWER_TOKENS,
            temperature=0.0,
        )
        self._bench.work(
            lambda: asyncio.run(collect(desk.stream(caller, model, request))),
            lambda result: self._answered(device, question, result),
        )

    def _answered(self, device: DeviceId, question: Question, result: Future[Generation]) -> None:
        self._busy = False
        try:
            said = result.result()
        except LlmOsError as err:
            log.warning("question.failed", device=device, code=err.code, error=str(err))
            self._refuse(device, question, err)
        else:
            assert self._desk is not None
            card = self._desk.engines[self._model].card
            reply = Reply(question.question, said.text, card.name, int(card.stand_in), "", "")
            self._fleet.send(device, reply, run=NO_RUN, round_=NO_ROUND)
        self._next()

    def _refuse(self, device: DeviceId, question: Question, err: LlmOsError) -> None:
        reply = Reply(question.question[:64], "", "", 0, err.code, str(err)[:500])
        self._fleet.send(device, reply, run=NO_RUN, round_=NO_ROUND)
