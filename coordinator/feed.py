"""What happens, told as it happens to whoever listens.

F1  a listener is told every transition and milestone that is committed, once; if it names the last
    that it was told before, also those in between
F2  a listener that falls behind is cut off; it keeps nobody waiting and its events take no room
F3  no more listen than there are places

Rows are read from the store, which has them in their order; that something was committed only
wakes whoever reads. Devices and models are looked at once a second, and changes are told that
no row has: they are missed by whoever was not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from coordinator.fleet.transport_fleet import TransportFleet
from coordinator.inference.front_desk import FrontDesk
from coordinator.inference.text_services import TextServices
from coordinator.store.alarms import MOST_WATCHED, AlarmRows
from coordinator.store.store import Store, StoredRow, TransitionRow
from coordinator.views import milestone_event, transition_event

log = structlog.get_logger()

MOST_LISTENERS: Final = 64
ROOM: Final = 1000
"""Events that a listener may be behind."""
LOOK_S: Final = 1.0
"""Between two looks at devices and models."""
_BATCH: Final = 200

Place = tuple[int, int]
"""The ids of the last transition and the last milestone that a listener was told."""
LiveStates = Mapping[str, tuple[str, Mapping[str, Any]]]
"""By a name for each thing that changes: the kind of event, and what it tells."""


@dataclass(frozen=True, slots=True)
class Told:
    """One event.

    Attributes:
        kind: ``begin``, ``run``, ``device``, ``engine``, ``alarm``, ``beat`` or ``end``.
        text: What it tells, as JSON.
        place: Behind it, for ``begin`` and what is in rows; ``None`` for what is not.
    """

    kind: str
    text: str
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class _News:
    """An event before it is a listener's; ``of_milestone`` and ``id`` say which row it is."""

    kind: str
    text: str
    of_milestone: bool = False
    id: int | None = None

    def behind(self, place: Place) -> Place | None:
        """Where a listener stands after it; ``None``: it was told before."""
        assert self.id is not None
        if self.id <= place[self.of_milestone]:
            return None
        return (place[0], self.id) if self.of_milestone else (self.id, place[1])


class _Listener:
    """What one of them has still to be told. Its event loop alone touches it."""

    def __init__(self, room: int) -> None:
        self.news: deque[_News] = deque()
        self.woken = asyncio.Event()
        self.ended = ""
        self._room = room

    def put(self, news: _News) -> None:
        if len(self.news) >= self._room:
            self.end("this listener was too slow: ask again from the last id that it was told")
        elif not self.ended:
            self.news.append(news)
            self.woken.set()

    def end(self, reason: str) -> None:
        self.news.clear()
        self.ended = self.ended or reason
        self.woken.set()


class Feed:
    """Tells listeners what happens. All of them are on one event loop."""

    def __init__(
        self,
        store: Store,
        live: Callable[[], LiveStates],
        *,
        most: int = MOST_LISTENERS,
        room: int = ROOM,
        look_s: float = LOOK_S,
    ) -> None:
        """Tell of what is committed to ``store``, and of changes in ``live``."""
        self._store = store
        self._live = live
        self._most = most
        self._room = room
        self._look_s = look_s
        self._listeners: set[_Listener] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reading: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()
        self._woken = asyncio.Event()
        self._closed = False
        store.subscribe(lambda _: self._on_loop(self._woken.set))

    @property
    def is_full(self) -> bool:
        """Whether there is no place for another listener (F3)."""
        return self._closed or len(self._listeners) >= self._most

    def close(self) -> None:
        """End what everybody listens to. Callable from any thread."""
        self._closed = True
        self._on_loop(lambda: self._end_all("the coordinator stops"))

    async def listen(
        self, after: Place | None = None, *, beat_s: float = 15.0
    ) -> AsyncGenerator[Told, None]:
        """Events, beginning with those behind ``after`` (F1); ends only when it is ended.

        After ``beat_s`` seconds without an event comes a ``beat``. The last event is ``end``.
        """
        listener = self._enter()
        try:
            # Whoever reads has begun at a row that is not behind ``here``: so what it does not
            # tell was there, and what was there is not told twice.
            await self._begun.wait()
            here = await asyncio.to_thread(self._store.last_ids)
            # A store that was put back from a copy may not have come so far yet.
            place = here if after is None else (min(after[0], here[0]), min(after[1], here[1]))
            yield Told("begin", json.dumps({"resumed": after is not None}), place)
            while place != here and not listener.ended:
                rows = await asyncio.to_thread(self._store.committed_after, place, limit=_BATCH)
                if not rows:
                    break
                for row in rows:
                    news = _news_of(row)
                    place = news.behind(place) or place
                    yield Told(news.kind, news.text, place)
            async for told in _told(listener, place, beat_s):
                yield told
        finally:
            self._leave(listener)

    def _enter(self) -> _Listener:
        listener = _Listener(self._room)
        self._listeners.add(listener)
        if self._closed:
            listener.end("the coordinator stops")
        elif len(self._listeners) > self._most:
            # Between a look at :attr:`is_full` and this, others may have come (F3).
            listener.end("as many follow as can: try again later")
        if self._reading is None or self._reading.done():
            self._loop = asyncio.get_running_loop()
            self._begun, self._woken = asyncio.Event(), asyncio.Event()
            self._reading = asyncio.create_task(self._read())
        return listener

    def _leave(self, listener: _Listener) -> None:
        self._listeners.discard(listener)
        if not self._listeners and self._reading is not None:
            self._reading.cancel()
            self._reading = self._loop = None

    async def _read(self) -> None:
        begun, woken = self._begun, self._woken
        try:
            place: Place = await asyncio.to_thread(self._store.last_ids)
            seen, looked_at = await asyncio.to_thread(self._live), time.monotonic()
            begun.set()
            while True:
                with contextlib.suppress(TimeoutError):
                    # Not wait_for, which before Python 3.12 drops a cancellation that comes
                    # together with what it waits for: a stream would go on for ever.
                    async with asyncio.timeout(self._look_s):
                        await woken.wait()
                woken.clear()
                place = await self._read_rows(place)
                if time.monotonic() - looked_at >= self._look_s:
                    now, looked_at = await asyncio.to_thread(self._live), time.monotonic()
                    for name, (kind, facts) in now.items():
                        if seen.get(name) != (kind, facts):
                            self._put(_News(kind, _json(facts)))
                    seen = now
        except Exception:
            log.exception("feed.failed")
            self._end_all("reading failed: ask again")
        finally:
            begun.set()

    async def _read_rows(self, place: Place) -> Place:
        while rows := await asyncio.to_thread(self._store.committed_after, place, limit=_BATCH):
            for row in rows:
                news = _news_of(row)
                place = news.behind(place) or place
                self._put(news)
        return place

    def _put(self, news: _News) -> None:
        for listener in self._listeners:
            listener.put(news)

    def _end_all(self, reason: str) -> None:
        for listener in self._listeners:
            listener.end(reason)

    def _on_loop(self, step: Callable[[], None]) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed, and nobody listens
                loop.call_soon_threadsafe(step)


def live_states(
    fleet: TransportFleet, desk: FrontDesk, texts: TextServices, alarms: AlarmRows
) -> LiveStates:
    """What devices and models do now, and what alarms there are that nobody acknowledged."""
    states: dict[str, tuple[str, Mapping[str, Any]]] = {
        f"device {name}": ("device", {"device": name, "state": fleet.state(name)})
        for name in fleet.known()
    }
    cards = [
        *((card.name, card.state, card.reason) for card in (e.card for e in desk.engines.values())),
        *((card.name, card.state, card.reason) for card in (m.card for m in texts.served)),
    ]
    for name, state, reason in cards:
        facts = {"model": name, "state": state, "reason": reason}
        states[f"engine {name}"] = ("engine", facts)
    for alarm in alarms.alarms(limit=MOST_WATCHED, only_open=True):
        about = f"{alarm.subject_kind} {alarm.subject}".strip()
        told = {"alarm": alarm.id, "rule": alarm.rule, "about": about, "count": alarm.count}
        states[f"alarm {alarm.id}"] = ("alarm", told | {"severity": alarm.severity})
    return states


async def _told(listener: _Listener, place: Place, beat_s: float) -> AsyncGenerator[Told, None]:
    while True:
        while listener.news:
            news = listener.news.popleft()
            if news.id is None:
                yield Told(news.kind, news.text)
            elif (behind := news.behind(place)) is not None:
                place = behind
                yield Told(news.kind, news.text, place)
        listener.woken.clear()
        if listener.ended:
            yield Told("end", _json({"reason": listener.ended}))
            return
        try:
            async with asyncio.timeout(beat_s):
                await listener.woken.wait()
        except TimeoutError:
            yield Told("beat", "")


def _news_of(row: StoredRow) -> _News:
    of_milestone = not isinstance(row.what, TransitionRow)
    event = (
        transition_event(row.what)
        if isinstance(row.what, TransitionRow)
        else milestone_event(row.what)
    )
    return _News("run", _json({"run": row.run, **event}), of_milestone, row.id)


def _json(facts: Mapping[str, Any]) -> str:
    # In ASCII: some clients take U+2028 and its like, which JSON leaves as they are, for line ends.
    return json.dumps(facts, separators=(",", ":"))
