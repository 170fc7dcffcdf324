"""From the threads of the local API to the agent's own, and on to the coordinator's model."""

from __future__ import annotations

import contextlib
import uuid
from concurrent.futures import Future

from edge_agent.agent import Agent
from edge_agent.inference.answering import CoordinatorAnswer
from shared.actors import ActorLoop


class CoordinatorLink:
    """Asks through a running agent; an ``edge_agent.inference.answering.AskCoordinator``."""

    def __init__(self, agent: Agent, loop: ActorLoop) -> None:
        """``loop`` is the one that drives ``agent``."""
        self._agent = agent
        self._loop = loop

    def __call__(self, text: str, timeout_s: float) -> CoordinatorAnswer:
        """Ask, from any thread but the agent's own.

        Raises:
            TimeoutError: no reply came in time.
            CoordinatorUnavailable: the coordinator refused, with its reason.
        """
        question = uuid.uuid4().hex
        answer: Future[CoordinatorAnswer] = Future()
        self._loop.post(lambda: self._agent.ask(question, text, answer))
        try:
            return answer.result(timeout_s)
        finally:
            with contextlib.suppress(RuntimeError):  # the loop may be gone at shutdown
                self._loop.post(lambda: self._agent.forget_question(question))
