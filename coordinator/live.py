"""Topics as whoever watches them is told: a snapshot first, then what changes.

V1  a watcher that applies every patch to what it was told before has the topic as it was read last
V2  a topic is read once for all who watch it, and only while somebody does
V3  a watcher that is slow keeps nobody waiting and takes no room: it is told less often, and
    each time everything that has changed since

Watchers are on one event loop; topics are read on worker threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from coordinator.merge_patch import make_patch
from shared.errors import LlmOsError

log = structlog.get_logger()

LOOK_S: Final = 0.5
MOST_WATCHERS: Final = 64

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Seen:
    """A topic as it was read; ``problem`` says why it could not be."""

    state: JsonObject = field(default_factory=dict)
    problem: str = ""


class Watcher:
    """One who watches. Its event loop alone touches it."""

    def __init__(self, hub: LiveHub) -> None:
        self._hub = hub
        self._told: dict[str, _Seen] = {}
        self.topics: frozenset[str] = frozenset()
        self.woken = asyncio.Event()

    def watch(self, topics: Iterable[str]) -> None:
        """Watch these from now on, and nothing else. What is new comes with a snapshot."""
        self.topics = frozenset(topics)
        self._told = {name: seen for name, seen in self._told.items() if name in self.topics}
        self.woken.set()  # others may watch it already, and then no look finds a change
        self._hub.look_soon()

    def news(self) -> list[JsonObject]:
        """What has to be told now (V1, V3)."""
        found = []
        for topic in sorted(self.topics):
            seen, told = self._hub.seen(topic), self._told.get(topic)
            if seen is None or seen is told:
                continue
            self._told[topic] = seen
            if seen.problem:
                if told is None or told.problem != seen.problem:
                    found.append({"topic": topic, "problem": {"detail": seen.problem}})
            elif told is None or told.problem:
                found.append({"topic": topic, "snapshot": seen.state})
            elif patch := self._hub.patch(told, seen):
                found.append({"topic": topic, "patch": patch})
        return found


class LiveHub:
    """Reads what is watched, and wakes who watches."""

    def __init__(
        self,
        read: Callable[[str], JsonObject],
        *,
        look_s: float = LOOK_S,
        most: int = MOST_WATCHERS,
    ) -> None:
        """Read topics by ``read``, which raises an LlmOsError for one that cannot be watched."""
        self._read = read
        self._look_s = look_s
        self._most = most
        self._watchers: set[Watcher] = set()
        self._seen: dict[str, _Seen] = {}
        self._patches: dict[tuple[int, int], tuple[_Seen, _Seen, JsonObject]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._soon = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closed = False

    @property
    def is_full(self) -> bool:
        """Whether there is no place for another watcher."""
        return self.closed or len(self._watchers) >= self._most

    def close(self) -> None:
        """End what everybody watches. Callable from any thread."""
        self.closed = True
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake)

    def enter(self) -> Watcher:
        """Another watcher, which has to :meth:`leave`."""
        watcher = Watcher(self)
        self._watchers.add(watcher)
        if self._looking is None:
            self._loop = asyncio.get_running_loop()
            self._soon = asyncio.Event()
            self._looking = asyncio.create_task(self._look())
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """One who watches no more."""
        self._watchers.discard(watcher)
        if not self._watchers and self._looking is not None:
            self._looking.cancel()
            self._looking = self._loop = None
            self._seen.clear()
            self._patches.clear()

    def look_soon(self) -> None:
        """Look without waiting for the next time: somebody watches something else."""
        self._soon.set()

    def seen(self, topic: str) -> _Seen | None:
        """A topic as it was read last; ``None``: it was not yet."""
        return self._seen.get(topic)

    def patch(self, before: _Seen, after: _Seen) -> JsonObject:
        """What has changed between two looks; made once for all who ask for the same."""
        known = self._patches.get((id(before), id(after)))
        if known is None or known[0] is not before or known[1] is not after:
            known = (before, after, make_patch(before.state, after.state))
            self._patches[id(before), id(after)] = known
        return known[2]

    async def _look(self) -> None:
        while True:
            self._soon.clear()
            topics = frozenset[str]().union(*(each.topics for each in self._watchers))
            found = await asyncio.to_thread(self._read_all, topics)
            self._patches.clear()
            changed = found.keys() != self._seen.keys()
            for topic, seen in found.items():
                if self._seen.get(topic) != seen:
                    self._seen[topic] = seen
                    changed = True
            for topic in self._seen.keys() - topics:
                del self._seen[topic]
            if changed:
                self._wake()
            try:
                # Not wait_for, which before Python 3.12 drops a cancellation that comes together
                # with what it waits for.
                async with asyncio.timeout(self._look_s):
                    await self._soon.wait()
            except TimeoutError:
                continue

    def _read_all(self, topics: Iterable[str]) -> dict[str, _Seen]:
        found = {}
        for topic in topics:
            try:
                found[topic] = _Seen(self._read(topic))
            except LlmOsError as err:
                found[topic] = _Seen(problem=str(err))
            except Exception:
                log.exception("live.failed", topic=topic[:64])
                found[topic] = _Seen(problem="this cannot be read now; the log says why")
        return found

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.woken.set()


async def told(watcher: Watcher, *, beat_s: float) -> AsyncGenerator[list[JsonObject], None]:
    """What a watcher is told, a few messages at a time; an empty list after ``beat_s`` of nothing."""
    while True:
        watcher.woken.clear()
        if news := watcher.news():
            yield news
            continue
        try:
            async with asyncio.timeout(beat_s):
                await watcher.woken.wait()
        except TimeoutError:
            yield []
