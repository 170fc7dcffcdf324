"""Whoever listens is told everything that is committed, once; whoever is too slow is cut off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from coordinator.federation import rounds
from coordinator.feed import Feed, Place, Told, _Listener, _told
from coordinator.store.store import Store
from shared.types import Digest, RoundNumber, RunId
from tests.support.coordinator_plans import small_plan

RUN, ADAPTER = RunId("run"), Digest("0" * 64)
PATIENCE_S = 60


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path / 'store.db'}", tmp_path)
    store.add_run(RUN, small_plan().model_dump_json(), ADAPTER, now=1.0)
    yield store
    store.close()


def commit(store: Store, number: int) -> None:
    row = rounds.DeviceDeclined("kitchen", "busy", str(number))
    store.commit(RUN, RoundNumber(1), row, now=float(number))


def numbers(told: list[Told]) -> list[int]:
    facts = [json.loads(each.text) for each in told if each.kind == "run"]
    return [int(fact["reason"]) for fact in facts if "reason" in fact]


async def heard(feed: Feed, last: int, after: Place | None = None, upto: int = 10**6) -> list[Told]:
    """What a listener is told until the row ``last``, or until it has had ``upto`` rows."""
    told: list[Told] = []
    async with asyncio.timeout(PATIENCE_S):
        async with aclosing(feed.listen(after, beat_s=0.02)) as events:
            async for event in events:
                if event.kind in ("begin", "run"):
                    told.append(event)
                if last in numbers(told[-1:]) or len(numbers(told)) >= upto:
                    break
    return told


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_a_listener_that_comes_back_again_and_again_misses_nothing(store: Store, cut: int) -> None:
    """F1: rows are committed on another thread while it listens, leaves and returns."""
    last = 24
    for number in range(1, 5):
        commit(store, number)

    def write(numbers: Iterable[int]) -> None:
        for number in numbers:
            commit(store, number)

    async def story() -> list[Told]:
        feed = Feed(store, dict)
        writing = asyncio.create_task(asyncio.to_thread(write, range(5, last + 1)))
        told: list[Told] = []
        place: Place = (0, 0)
        while last not in numbers(told):
            part = await heard(feed, last, place, upto=cut)
            told += part
            place = part[-1].place or place
        await writing
        return told

    assert numbers(asyncio.run(story())) == list(range(1, last + 1))


def test_whoever_names_no_event_is_told_what_is_committed_from_now_on(store: Store) -> None:
    commit(store, 1)

    async def story() -> list[Told]:
        feed = Feed(store, dict)
        told: list[Told] = []
        async with aclosing(feed.listen(beat_s=0.02)) as events:
            told.append(await anext(events))
            await asyncio.to_thread(commit, store, 2)
            await asyncio.to_thread(store.add_milestone, RUN, "finished", {"reason": "3"}, now=3.0)
            async with asyncio.timeout(PATIENCE_S):
                async for event in events:
                    told += [event] if event.kind == "run" else []
                    if numbers(told) == [2, 3]:
                        break
        return told

    told = asyncio.run(story())
    assert [each.place for each in told] == [(1, 0), (2, 0), (2, 1)]


def test_an_id_that_was_never_reached_is_taken_for_the_last(store: Store) -> None:
    commit(store, 1)

    async def story() -> list[Told]:
        feed = Feed(store, dict)
        async with aclosing(feed.listen((10**17, 10**17), beat_s=0.02)) as events:
            first = await anext(events)
            await asyncio.to_thread(commit, store, 2)
            async with asyncio.timeout(PATIENCE_S):
                async for event in events:
                    if event.kind == "run":
                        return [first, event]
        raise AssertionError

    assert numbers(asyncio.run(story())) == [2]


def test_a_listener_that_falls_behind_is_told_so_and_the_others_go_on(store: Store) -> None:
    """F2: the slow one has room for three events and reads nothing while ten happen."""

    async def story() -> tuple[list[Told], list[Told]]:
        feed = Feed(store, dict, room=3)
        async with aclosing(feed.listen(beat_s=0.02)) as slow:
            assert (await anext(slow)).kind == "begin"
            brisk = asyncio.create_task(heard(feed, 10, (0, 0)))
            for number in range(1, 11):
                await asyncio.to_thread(commit, store, number)
                await asyncio.sleep(0)
            whole = await brisk
            return whole, [event async for event in slow]

    whole, rest = asyncio.run(story())
    assert numbers(whole) == list(range(1, 11))
    assert [event.kind for event in rest] == ["end"]
    assert "too slow" in rest[0].text


def test_changes_of_what_no_row_has_are_told_without_a_place(store: Store) -> None:
    states: dict[str, tuple[str, dict[str, Any]]] = {"device a": ("device", {"state": "away"})}

    async def story() -> Told:
        feed = Feed(store, lambda: dict(states), look_s=0.01)
        async with aclosing(feed.listen(beat_s=0.02)) as events:
            assert (await anext(events)).kind == "begin"
            states["device a"] = ("device", {"state": "idle"})
            async with asyncio.timeout(PATIENCE_S):
                async for event in events:
                    if event.kind == "device":
                        return event
        raise AssertionError

    assert asyncio.run(story()) == Told("device", '{"state":"idle"}')


def test_there_are_so_many_places_and_a_closed_feed_has_none(store: Store) -> None:
    """F3; and what is under way when it is closed ends with a word."""

    async def story() -> list[Told]:
        feed = Feed(store, dict, most=2)
        async with aclosing(feed.listen()) as first:
            await anext(first)
            full = [feed.is_full]
            async with aclosing(feed.listen()) as second:
                await anext(second)
                full.append(feed.is_full)
                third = [event async for event in feed.listen()]
            full.append(feed.is_full)
            await asyncio.to_thread(feed.close)
            full.append(feed.is_full)
            assert full == [False, True, False, True]
            assert [event.kind for event in third] == ["begin", "end"]
            async with asyncio.timeout(PATIENCE_S):
                return [event async for event in first]

    assert [event.kind for event in asyncio.run(story())] == ["end"]


def test_a_store_that_fails_ends_every_stream_and_the_next_listener_is_served(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> tuple[list[Told], list[Told]]:
        feed = Feed(store, dict, look_s=0.01)
        async with aclosing(feed.listen()) as events:
            await anext(events)
            with monkeypatch.context() as broken:
                broken.setattr(store, "committed_after", None)
                async with asyncio.timeout(PATIENCE_S):
                    ended = [event async for event in events]
        commit(store, 1)
        return ended, await heard(feed, 1, (0, 0))

    ended, told = asyncio.run(story())
    assert "ask again" in ended[-1].text
    assert numbers(told) == [1]


@pytest.mark.parametrize("steps", range(5))
def test_who_leaves_at_the_moment_of_an_event_has_left(steps: int) -> None:
    async def leave() -> bool:
        listener = _Listener(room=10)

        async def follow() -> None:
            async for _ in _told(listener, (0, 0), 60.0):
                pass

        following = asyncio.create_task(follow())
        await asyncio.sleep(0.01)
        listener.woken.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        following.cancel()
        await asyncio.wait({following}, timeout=5.0)
        return following.cancelled()

    assert asyncio.run(leave())
