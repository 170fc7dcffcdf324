"""``V1`` to ``V3`` of :mod:`coordinator.live`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.live import LiveHub, Watcher, told
from coordinator.merge_patch import apply_patch
from shared.errors import DataError


class World:
    """Topics that a test changes, and how often each was read."""

    def __init__(self) -> None:
        self.topics: dict[str, dict[str, Any]] = {"a": {"n": 0}, "b": {"n": 0}}
        self.read = Counter[str]()

    def look(self, topic: str) -> dict[str, Any]:
        self.read[topic] += 1
        if topic not in self.topics:
            raise DataError(f"no {topic}")
        return dict(self.topics[topic])


class Page:
    """A page that applies what it is told."""

    def __init__(self, hub: LiveHub) -> None:
        self.watcher: Watcher = hub.enter()
        self.state: dict[str, Any] = {}
        self.problems: dict[str, str] = {}
        self.messages = 0
        self._told = told(self.watcher, beat_s=60)

    async def hear(self) -> None:
        """Take what is told next."""
        for message in await anext(self._told):
            self.messages += 1
            topic = message["topic"]
            if "problem" in message:
                self.problems[topic] = message["problem"]["detail"]
            elif "snapshot" in message:
                self.state[topic] = message["snapshot"]
            else:
                self.state[topic] = apply_patch(self.state[topic], message["patch"])

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not holds():
                await self.hear()


def played(scene: Callable[[World, LiveHub], Awaitable[None]]) -> World:
    world = World()

    async def play() -> None:
        hub = LiveHub(world.look, look_s=0.005)
        await scene(world, hub)

    asyncio.run(play())
    return world


def test_a_watcher_gets_a_snapshot_and_then_what_changes() -> None:
    async def scene(world: World, hub: LiveHub) -> None:
        page = Page(hub)
        page.watcher.watch(["a"])
        await page.until(lambda: page.state == {"a": {"n": 0}})
        world.topics["a"] = {"n": 1, "more": [1]}
        await page.until(lambda: page.state == {"a": {"n": 1, "more": [1]}})
        assert page.messages == 2
        hub.leave(page.watcher)

    assert played(scene).read["b"] == 0, "nobody watched it"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3)), max_size=12), st.data())
def test_every_page_ends_with_what_there_is_however_slowly_it_hears(
    changes: list[tuple[str, int]], data: st.DataObject
) -> None:
    """V1 and V3: one hears everything, the other now and then."""

    async def scene(world: World, hub: LiveHub) -> None:
        eager, lazy = Page(hub), Page(hub)
        for page in (eager, lazy):
            page.watcher.watch(["a", "b"])
        await eager.until(lambda: len(eager.state) == 2)
        await lazy.until(lambda: len(lazy.state) == 2)
        for topic, number in changes:
            world.topics[topic] = {"n": number} | ({"odd": True} if number % 2 else {})
            await eager.until(lambda: eager.state == world.topics)
            if data.draw(st.booleans()):
                await lazy.until(lambda: lazy.state == world.topics)
        await lazy.until(lambda: lazy.state == world.topics)
        assert lazy.messages <= eager.messages + 2
        for page in (eager, lazy):
            hub.leave(page.watcher)

    played(scene)


def test_who_watches_what_others_watch_already_gets_it_at_once() -> None:
    async def scene(world: World, hub: LiveHub) -> None:
        first, second = Page(hub), Page(hub)
        first.watcher.watch(["a"])
        await first.until(lambda: "a" in first.state)
        second.watcher.watch(["a"])
        await second.until(lambda: second.state == {"a": {"n": 0}})
        # And again after it did not for a while.
        second.watcher.watch([])
        second.state.clear()
        second.watcher.watch(["a"])
        await second.until(lambda: second.state == {"a": {"n": 0}})
        for page in (first, second):
            hub.leave(page.watcher)

    played(scene)


def test_a_topic_that_cannot_be_read_says_why_and_comes_when_it_can() -> None:
    async def scene(world: World, hub: LiveHub) -> None:
        page = Page(hub)
        page.watcher.watch(["c", "a"])
        await page.until(lambda: page.problems == {"c": "no c"} and "a" in page.state)
        world.topics["c"] = {"n": 5}
        await page.until(lambda: page.state.get("c") == {"n": 5})
        hub.leave(page.watcher)

    played(scene)


def test_a_fault_of_ours_is_told_without_its_words() -> None:
    async def scene(world: World, hub: LiveHub) -> None:
        world.topics["a"] = None  # type: ignore[assignment]
        page = Page(hub)
        page.watcher.watch(["a"])
        await page.until(lambda: "a" in page.problems)
        assert page.problems["a"] == "this cannot be read now; the log says why"
        hub.leave(page.watcher)

    played(scene)


def test_nothing_is_read_when_nobody_watches_any_more() -> None:
    async def scene(world: World, hub: LiveHub) -> None:
        page = Page(hub)
        page.watcher.watch(["a"])
        await page.until(lambda: "a" in page.state)
        hub.leave(page.watcher)
        await asyncio.sleep(0.05)  # a look that was under way
        read = world.read["a"]
        await asyncio.sleep(0.1)
        assert world.read["a"] == read

    played(scene)


def test_there_are_no_more_watchers_than_places_and_none_after_the_end() -> None:
    async def scene(world: World, _: LiveHub) -> None:
        small = LiveHub(world.look, most=1)
        full = [small.is_full]
        watcher = small.enter()
        full.append(small.is_full)
        small.leave(watcher)
        full.append(small.is_full)
        small.close()
        full.append(small.is_full)
        assert full == [False, True, False, True]

    played(scene)
