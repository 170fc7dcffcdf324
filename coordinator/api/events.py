"""What happens, as server-sent events.

E1  an event that is in rows has an id; whoever shows the last it got misses none
E2  a stream ends within seconds after its credential opens nothing any more
E3  a client that takes nothing for half a minute is hung up on
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.types import Receive, Scope, Send

from coordinator.api import problems
from coordinator.api.access import Access
from coordinator.api.answering import ClientGone, while_there
from coordinator.api.roles import allowance
from coordinator.feed import Feed, Place, Told

BEAT_S: Final = 15.0
CHECK_S: Final = 1.0
"""How often a stream's credential is looked at, and what waits is sent."""
STALLED_S: Final = 30.0
RETRY_S: Final = 5
"""When to try again where all places are taken."""

_ID: Final = re.compile(r"(\d{1,18})-(\d{1,18})")

_EXAMPLE: Final = (
    'id: 12-3\nevent: begin\ndata: {"resumed":false}\n\n'
    "id: 13-3\nevent: run\n"
    'data: {"run":"tickets","at":1764288000.0,"round":1,"event":"planned"}\n\n'
    'event: device\ndata: {"device":"kitchen","state":"training"}\n\n'
    'event: engine\ndata: {"model":"qwen","state":"ready","reason":""}\n\n'
    ": still here\n\n"
    'event: end\ndata: {"reason":"the coordinator stops"}\n\n'
)

LastEventId = Annotated[
    str, Header(description="`id` of the last event that was got", max_length=60)
]


def event_routes(feed: Feed, access: Access) -> APIRouter:
    """``/events``."""
    router = APIRouter(tags=["events"])

    @router.get(
        "/events",
        summary="Follow what happens",
        response_class=Response,
        responses={200: {"content": {"text/event-stream": {"example": _EXAMPLE}}}},
    )
    async def follow(request: Request, last_event_id: LastEventId = "") -> Response:
        """Server-sent events: `begin`, `run`, `device`, `engine`, `end`.

        What is committed of runs (`run`) is told from `Last-Event-ID` on. Devices' and models'
        states are told when they change; after a `begin`, read the overview.
        """
        after = _place(last_event_id)
        if feed.is_full:
            return problems.problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "request",
                "as many follow as can: try again later",
                retryable=True,
                headers={"Retry-After": str(RETRY_S)},
            )
        path = request.url.path

        def may() -> bool:
            principal = access.identify(request.headers, in_use=False)
            return principal is not None and principal.role in allowance("GET", path).roles

        return EventStream(feed.listen(after, beat_s=CHECK_S), may)

    return router


class EventStream(Response):
    """A listener's events on their way to a client (E1 to E3)."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[Told, None],
        may: Callable[[], bool],
        *,
        beat_s: float = BEAT_S,
        stalled_s: float = STALLED_S,
    ) -> None:
        """``may``: whether the client may still listen."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._may = may
        self._beat_s = beat_s
        self._stalled_s = stalled_s

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send what comes, for as long as the client is there."""
        try:
            await while_there(receive, self._send(send))
        except (ClientGone, TimeoutError):
            return

    async def _send(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            status = HTTPStatus.OK.value
            headers = self.raw_headers
            await send({"type": "http.response.start", "status": status, "headers": headers})
            sent_at = time.monotonic()
            async for event in events:
                told = event if self._may() else _NO_MORE
                if told.kind == "beat" and time.monotonic() - sent_at < self._beat_s:
                    continue
                part = {"type": "http.response.body", "body": _written(told), "more_body": True}
                async with asyncio.timeout(self._stalled_s):
                    await send(part)
                sent_at = time.monotonic()
                if told.kind == "end":
                    break
        await send({"type": "http.response.body", "body": b"", "more_body": False})


_NO_MORE: Final = Told("end", '{"reason":"the credential opens this no more"}')


def _written(told: Told) -> bytes:
    if told.kind == "beat":
        return b": still here\n\n"
    name = f"id: {told.place[0]}-{told.place[1]}\n" if told.place is not None else ""
    return f"{name}event: {told.kind}\ndata: {told.text}\n\n".encode()


def _place(last_event_id: str) -> Place | None:
    if not last_event_id:
        return None
    found = _ID.fullmatch(last_event_id)
    if found is None:
        what: dict[str, Any] = {
            "type": "value_error",
            "loc": ("header", "Last-Event-ID"),
            "msg": "is the id of no event here",
        }
        raise RequestValidationError([what])
    return int(found[1]), int(found[2])
