"""One web socket per page: what it watches, as snapshots and then what changes.

W1  a socket ends within seconds after its credential opens nothing any more
W2  a client that takes nothing for half a minute is hung up on
W3  of sockets there are so many, and of one principal's fewer; a client's message is small, and
    they come no faster than people choose
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coordinator.api.access import Access, Principal
from coordinator.api.alarms import alarm_view
from coordinator.api.listings import device_summary
from coordinator.api.overview import count_devices
from coordinator.api.roles import WEB_SOCKET, allowance
from coordinator.fleet.transport_fleet import TransportFleet
from coordinator.inference.front_desk import FrontDesk
from coordinator.inference.live_serving import LiveServing
from coordinator.live import LiveHub, Watcher, told
from coordinator.live_topics import MOST_DEVICES, LiveTopics
from coordinator.store.alarms import MOST_WATCHED
from coordinator.store.store import Store

CHECK_S: Final = 1.0
"""How often a socket's credential is looked at."""
BEAT_S: Final = 15.0
STALLED_S: Final = 30.0
MOST_OF_ONE: Final = 16
"""Sockets of one principal: a person with many open pages."""
MOST_TOPICS: Final = 16
TOPIC_LENGTH: Final = 64
MESSAGES_A_MINUTE: Final = 240
MESSAGE_BYTES: Final = 16 * 1024
"""Of what a client says at once."""

WEB_SOCKETS: Final[dict[str, Any]] = {
    "ws": "coordinator.api.sockets:BoundedSocket",
    "ws_max_size": MESSAGE_BYTES,
    "ws_ping_interval": 20.0,
    "ws_ping_timeout": 20.0,
}
"""Options for the server."""

NO_CREDENTIAL: Final = 4401
TOO_SLOW: Final = 4408
NO_PLACE: Final = 4503
MALFORMED: Final = 4400


class Watch(BaseModel):
    """What a page says: everything that it watches from now on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    watch: list[str] = Field(max_length=MOST_TOPICS)


def live_topics(
    store: Store, fleet: TransportFleet, desk: FrontDesk, serving: LiveServing
) -> LiveTopics:
    """Reads what this API's lists show too."""

    def devices() -> dict[str, Any]:
        found = store.devices_after("", limit=MOST_DEVICES)
        facts: dict[str, Any] = {
            "counts": count_devices(store, fleet),
            "devices": {each.name: device_summary(fleet, each).model_dump() for each in found},
        }
        if len(found) == MOST_DEVICES:
            facts["more"] = max(0, store.count_devices() - MOST_DEVICES)
        return facts

    def models() -> dict[str, Any]:
        return {"models": serving.view(desk)}

    def alarms() -> dict[str, Any]:
        found = store.alarms.alarms(limit=MOST_WATCHED, only_open=True)
        shown = {str(each.id): alarm_view(each).model_dump() for each in found}
        return {"open": store.alarms.count_open(), "alarms": shown}

    return LiveTopics(store, {"fleet": devices, "serving": models, "alarms": alarms})


def live_routes(hub: LiveHub, access: Access) -> APIRouter:
    """``/live``."""
    router = APIRouter()
    places: Counter[str] = Counter()

    @router.websocket("/live")
    async def live(socket: WebSocket) -> None:
        principal: Principal = socket.state.principal
        name = principal.caller.name

        def may() -> bool:
            shown = access.identify(socket.headers, in_use=False)
            return (
                shown is not None
                and shown.caller.name == name
                and shown.role in allowance(WEB_SOCKET, socket.url.path).roles
            )

        await socket.accept()
        if hub.is_full or places[name] >= MOST_OF_ONE:
            await socket.close(NO_PLACE, "as many follow as can: try again later")
            return
        places[name] += 1
        watcher = hub.enter()
        try:
            await _serve(socket, watcher, hub, may)
        finally:
            hub.leave(watcher)
            places[name] -= 1
            if not places[name]:
                del places[name]

    return router


async def _serve(
    socket: WebSocket, watcher: Watcher, hub: LiveHub, may: Callable[[], bool]
) -> None:
    """Hear and tell until one of both is over."""
    hearing = asyncio.create_task(_hear(socket, watcher))
    telling = asyncio.create_task(_tell(socket, watcher, hub, may))
    try:
        done, _ = await asyncio.wait({hearing, telling}, return_when=asyncio.FIRST_COMPLETED)
        code = next(iter(done)).result()
    except WebSocketDisconnect:
        return
    finally:
        for task in (hearing, telling):
            task.cancel()
        await asyncio.gather(hearing, telling, return_exceptions=True)
    # One that takes nothing takes no farewell either.
    with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
        async with asyncio.timeout(CHECK_S):
            await socket.close(code)


async def _hear(socket: WebSocket, watcher: Watcher) -> int:
    """Take what the client says; gives the code to close with."""
    times: list[float] = []
    while True:
        # Not receive_text: what is no text is the client's fault, and no error of ours.
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        now = time.monotonic()
        times = [each for each in times if each > now - 60.0] + [now]
        if len(times) > MESSAGES_A_MINUTE:
            return TOO_SLOW
        try:
            wanted = Watch.model_validate_json(message.get("text") or "")
        except ValidationError:
            return MALFORMED
        if any(len(topic) > TOPIC_LENGTH for topic in wanted.watch):
            return MALFORMED
        watcher.watch(wanted.watch)


async def _tell(socket: WebSocket, watcher: Watcher, hub: LiveHub, may: Callable[[], bool]) -> int:
    """Tell what changes; gives the code to close with."""
    checked_at = told_at = time.monotonic()
    async for news in told(watcher, beat_s=CHECK_S):
        now = time.monotonic()
        if hub.closed:
            return NO_PLACE
        if now - checked_at >= CHECK_S:
            checked_at = now
            if not await asyncio.to_thread(may):
                return NO_CREDENTIAL
        beat = [{"beat": time.time()}] if not news and now - told_at >= BEAT_S else []
        try:
            async with asyncio.timeout(STALLED_S):
                for message in news or beat:
                    await socket.send_text(json.dumps(message, separators=(",", ":")))
                    told_at = now
        except TimeoutError:
            return TOO_SLOW
    raise AssertionError("what is told has no end")
