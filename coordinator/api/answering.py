"""Answers on their way to a client, whole or in pieces.

A1  the status waits for the first piece: what fails before it is an error, not a broken stream
A2  a client that leaves closes all its streams, and so frees their slots
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from coordinator.api.openai_answers import Dialect, Usage, frame
from coordinator.api.openai_errors import broken_off, refusal
from coordinator.inference.engine import (
    Finished,
    Generation,
    ModelCard,
    Piece,
    Stream,
    TokenLogprob,
)
from shared.errors import LlmOsError

_CLIENT_CLOSED: Final = 499
"""nginx's word for a client that left. Nobody reads it but logs."""

_DONE: Final = b"data: [DONE]\n\n"

ResultT = TypeVar("ResultT")
Event = Piece | Finished


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's answer before anything of it is there.

    Attributes:
        streams: One per choice; they begin when they are read.
        per_prompt: Choices of each prompt, which come one after the other.
        dialect: How it is written.
        card: The engine's, asked when its first piece is there.
        model: What the client called it.
    """

    streams: Sequence[Stream]
    per_prompt: int
    dialect: Dialect
    card: Callable[[], ModelCard]
    model: str


async def answered_whole(request: Request, answer: Answer) -> Response:
    """The answer in one piece.

    Raises:
        LlmOsError: as :meth:`~coordinator.inference.engine.Engine.stream`.
    """
    try:
        return JSONResponse(await while_there(request.receive, _collected(answer)))
    except ClientGone:
        return Response(status_code=_CLIENT_CLOSED)


class StreamedAnswer(Response):
    """The answer as server-sent events (A1, A2)."""

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, *, with_usage: bool) -> None:
        """``with_usage``: the last event says what it cost."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = _written(answer, with_usage=with_usage)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what comes, for as long as the client is there."""
        try:
            await while_there(receive, self._send(scope, receive, send))
        except ClientGone:
            return

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events) as events:
            try:
                first = await anext(events)
            except LlmOsError as err:
                await refusal(err, path=scope["path"])(scope, receive, send)
                return
            await send(
                {
                    "type": "http.response.start",
                    "status": HTTPStatus.OK.value,
                    "headers": self.raw_headers,
                }
            )
            await send(_part(first))
            try:
                async for event in events:
                    await send(_part(event))
            except LlmOsError as err:
                await send(_part(_event(broken_off(err))))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def together(streams: Sequence[Stream]) -> AsyncGenerator[tuple[int, Event], None]:
    """Read several streams side by side, each event with its stream's index.

    The first error ends them all. All are closed when this is, before it returns.

    Raises:
        LlmOsError: as :meth:`~coordinator.inference.engine.Engine.stream`.
    """
    # As many may wait as there are streams: a client that reads slowly slows the readers down.
    events: asyncio.Queue[tuple[int, Event] | Exception | None] = asyncio.Queue(len(streams))

    async def read(index: int, stream: Stream) -> None:
        event: Event | None = None
        try:
            async with aclosing(stream):
                async for event in stream:
                    await events.put((index, event))
            assert isinstance(event, Finished), "a stream without an end"
        except Exception as err:  # noqa: BLE001  it belongs to whoever reads them together
            await events.put(err)
        else:
            await events.put(None)

    readers = [asyncio.create_task(read(*each)) for each in enumerate(streams)]
    try:
        going = len(readers)
        while going:
            event = await events.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                going -= 1
            else:
                yield event
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _collected(answer: Answer) -> dict[str, Any]:
    texts: list[list[str]] = [[] for _ in answer.streams]
    logprobs: list[list[TokenLogprob]] = [[] for _ in answer.streams]
    ends: dict[int, Finished] = {}
    usage = Usage(answer.per_prompt)
    async with aclosing(together(answer.streams)) as events:
        async for index, event in events:
            if isinstance(event, Finished):
                ends[index] = event
                usage.add(index, event)
            else:
                texts[index].append(event.text)
                logprobs[index] += event.logprobs
    choices = [
        Generation(
            text="".join(texts[index]),
            prompt_tokens=ends[index].prompt_tokens,
            completion_tokens=ends[index].completion_tokens,
            finish_reason=ends[index].finish_reason,
            logprobs=tuple(logprobs[index]),
        )
        for index in range(len(answer.streams))
    ]
    return frame(answer.dialect, answer.card(), answer.model, chunk=False) | {
        "choices": [answer.dialect.whole(*each) for each in enumerate(choices)],
        "usage": usage.table(),
    }


async def _written(answer: Answer, *, with_usage: bool) -> AsyncGenerator[bytes, None]:
    """The answer as events, one or two at a time."""
    dialect, usage = answer.dialect, Usage(answer.per_prompt)
    around: dict[str, Any] = {}
    begun: set[int] = set()

    def written(choice: dict[str, Any] | None) -> bytes:
        return b"" if choice is None else _event(around | {"choices": [choice]})

    async with aclosing(together(answer.streams)) as events:
        async for index, event in events:
            if not around:
                around = frame(dialect, answer.card(), answer.model, chunk=True)
                around |= {"usage": None} if with_usage else {}
            opening = b"" if index in begun else written(dialect.opening(index))
            begun.add(index)
            if isinstance(event, Finished):
                usage.add(index, event)
                yield opening + written(dialect.ending(index, event))
            elif event.text or event.logprobs:
                yield opening + written(dialect.piece(index, event))
            elif opening:
                yield opening
    if with_usage:
        yield _event(around | {"choices": [], "usage": usage.table()})
    yield _DONE


def _event(value: dict[str, Any]) -> bytes:
    # In ASCII: some clients take U+2028 and its like, which JSON leaves as they are, for line ends.
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


def _part(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}


class ClientGone(Exception):
    """Nobody is there any more to hear the answer."""


async def while_there(receive: Receive, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Do something for a client, and cancel it as soon as the client is gone (A2).

    ``receive`` is the request's, whose body has been read.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
