"""Streams are read side by side, and none is left open."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from coordinator.api.answering import together
from coordinator.inference.engine import Finished, GenerationRequest, Piece, Stream
from shared.errors import EngineBusy
from tests.support.scripted_engine import ScriptedEngine

REQUEST = GenerationRequest("Once", 8)


def test_events_of_all_streams_come_in_their_order() -> None:
    async def read() -> list[list[str]]:
        engines = [ScriptedEngine(pieces=("a", "b")), ScriptedEngine(pieces=("c",))]
        found: list[list[str]] = [[], []]
        async for index, event in together([engine.stream(REQUEST) for engine in engines]):
            found[index].append(event.text if isinstance(event, Piece) else "end")
        return found

    assert asyncio.run(read()) == [["a", "b", "end"], ["c", "end"]]


def test_one_error_closes_the_others_before_it_is_told() -> None:
    async def read() -> ScriptedEngine:
        held, broken = ScriptedEngine(holds_after=1), ScriptedEngine(fails=EngineBusy("later"))
        with pytest.raises(EngineBusy, match="later"):
            async for _ in together([held.stream(REQUEST), broken.stream(REQUEST)]):
                pass
        return held

    engine = asyncio.run(read())
    assert (engine.active, engine.cancelled) == (0, 1)


@pytest.mark.parametrize("streams", [1, 5])
def test_whoever_stops_reading_has_closed_all_streams(streams: int) -> None:
    async def read() -> ScriptedEngine:
        engine = ScriptedEngine(holds_after=2)
        async with aclosing(together([engine.stream(REQUEST) for _ in range(streams)])) as events:
            await anext(events)
            assert engine.active == streams
        assert engine.active == 0
        return engine

    assert asyncio.run(read()).cancelled == streams


def test_a_reader_that_is_slow_slows_the_streams_down() -> None:
    async def read() -> int:
        said = 0

        async def endless() -> Stream:
            nonlocal said
            while True:
                said += 1
                yield Piece("x")

        async with aclosing(together([endless(), endless()])) as events:
            await anext(events)
            for _ in range(100):
                await asyncio.sleep(0)
        return said

    # Two may wait, each of the two readers holds one more, and one was taken.
    assert asyncio.run(read()) <= 5


def test_a_stream_without_an_end_is_noticed() -> None:
    async def cut() -> Stream:
        yield Piece("x")

    async def read() -> None:
        async for _, event in together([cut()]):
            assert not isinstance(event, Finished)

    with pytest.raises(AssertionError, match="without an end"):
        asyncio.run(read())
