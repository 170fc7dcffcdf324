"""Replicas share the work, and one that dies costs what it was answering and nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing
from dataclasses import replace

import pytest

from coordinator.inference.engine import (
    EngineLoad,
    EngineState,
    Finished,
    GenerationRequest,
    ModelCard,
    Piece,
    Stream,
    answered,
)
from coordinator.inference.engines import EngineSettings, make_engine
from coordinator.inference.local_engine import LocalEngine
from coordinator.inference.replicated_engine import ReplicatedEngine
from shared.errors import ChildDied, EngineBusy, EngineError, LlmOsError, PromptRefused
from tests.support.brokers import eventually
from tests.support.language_models import make_model

ASKED = GenerationRequest("Once", max_tokens=4)
CARD = ModelCard("m", stand_in=False, state=EngineState.READY)


class Fake:
    """A replica that answers with its name, or fails before or after its first piece."""

    def __init__(self, name: str, card: ModelCard = CARD) -> None:
        self.name = name
        self.card = card
        self.load = EngineLoad(slots=2, active=1, completion_tokens=10)
        self.asked = 0
        self.before: LlmOsError | None = None
        self.within: LlmOsError | None = None
        self.running = False

    def start(self) -> None:
        self.running = True

    def close(self) -> None:
        self.running = False

    async def stream(self, request: GenerationRequest) -> Stream:
        self.asked += 1
        if self.before is not None:
            raise self.before
        yield Piece(self.name)
        if self.within is not None:
            raise self.within
        yield Finished("stop", 1, 1)


def pair() -> tuple[Fake, Fake, ReplicatedEngine]:
    one, two = Fake("one"), Fake("two")
    return one, two, ReplicatedEngine([one, two])


def test_replicas_take_turns_and_are_started_and_closed_together() -> None:
    one, two, engine = pair()
    engine.start()
    assert [one.running, two.running] == [True, True]
    assert [answered(engine, ASKED).text for _ in range(4)] == ["one", "two", "one", "two"]
    engine.close()
    assert [one.running, two.running] == [False, False]
    assert engine.load == EngineLoad(slots=4, active=2, completion_tokens=20)


@pytest.mark.parametrize("failure", [ChildDied("gone"), EngineBusy("full")])
def test_what_fails_before_its_first_piece_goes_to_the_other(failure: LlmOsError) -> None:
    one, two, engine = pair()
    one.before = failure
    assert [answered(engine, ASKED).text for _ in range(3)] == ["two"] * 3
    two.before = EngineBusy("full too")
    with pytest.raises(EngineBusy):
        answered(engine, ASKED)
    assert set(engine.outstanding.values()) == {0}


def test_what_fails_within_its_answer_and_what_is_refused_goes_nowhere_else() -> None:
    one, two, engine = pair()
    one.within = ChildDied("gone")
    with pytest.raises(ChildDied, match="gone"):
        answered(engine, ASKED)
    assert two.asked == 0
    two.before = PromptRefused("too long")
    with pytest.raises(PromptRefused):
        answered(engine, ASKED)
    assert one.asked == 1


def test_the_card_is_the_readiest_replicas_and_lacks_what_any_lacks() -> None:
    one, two, engine = pair()
    one.card = replace(CARD, state=EngineState.FAILED, reason="no memory")
    two.card = replace(CARD, context_tokens=9, lacks=frozenset({"schema"}))
    assert engine.card == two.card
    assert answered(engine, ASKED).text == answered(engine, ASKED).text == "two"
    two.card = replace(CARD, state=EngineState.LOADING)
    assert engine.card.state is EngineState.LOADING
    with pytest.raises(EngineBusy, match="still being loaded"):
        answered(engine, ASKED)
    two.card = replace(CARD, state=EngineState.FAILED, reason="no disk")
    assert engine.card.reason == "replica 1: no memory; replica 2: no disk"
    with pytest.raises(EngineError, match="no disk"):
        answered(engine, ASKED)


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> list[LocalEngine]:
    folder = make_model(tmp_path_factory.mktemp("model") / "few-steps").folder
    settings = EngineSettings(tmp_path_factory.mktemp("graphs"), device="cpu", threads=1)
    made = [make_engine(str(folder), settings) for _ in range(2)]
    return [engine for engine in made if isinstance(engine, LocalEngine)]


@pytest.mark.slow
@pytest.mark.processes
def test_a_model_process_that_is_killed_costs_only_answers_that_it_had_begun(
    replicas: list[LocalEngine],
) -> None:
    asked = GenerationRequest("Where is my parcel?", max_tokens=40)

    async def many(engine: ReplicatedEngine, victim: int) -> list[tuple[str, bool]]:
        """What each of six had read, and whether its process was lost within its answer."""

        async def one() -> tuple[str, bool]:
            text = ""
            try:
                async with aclosing(engine.stream(asked)) as stream:
                    async for event in stream:
                        text += event.text if isinstance(event, Piece) else ""
            except ChildDied:
                return text, True
            return text, False

        tasks = [asyncio.create_task(one()) for _ in range(6)]
        await asyncio.to_thread(
            eventually, lambda: sum(engine.outstanding.values()) == 6, within_s=60
        )
        os.kill(victim, signal.SIGKILL)
        return await asyncio.gather(*tasks)

    engine = ReplicatedEngine(replicas)
    engine.start()
    try:
        assert eventually(
            lambda: all(each.card.state is EngineState.READY for each in replicas), within_s=240
        )
        right = answered(engine, asked).text
        victim = replicas[0].pid
        assert victim is not None
        results = asyncio.run(many(engine, victim))
        lost = [text for text, was_lost in results if was_lost]
        assert all(text and right.startswith(text) for text in lost)
        assert len(lost) <= 3
        assert [text for text, was_lost in results if not was_lost] == [right] * (6 - len(lost))
        assert [answered(engine, asked).text for _ in range(2)] == [right] * 2
    finally:
        engine.close()


def test_whoever_stops_reading_frees_the_seat() -> None:
    _, _, engine = pair()

    async def some() -> None:
        async with aclosing(engine.stream(ASKED)) as stream:
            async for _ in stream:
                assert sum(engine.outstanding.values()) == 1
                break
        assert sum(engine.outstanding.values()) == 0

    asyncio.run(some())
