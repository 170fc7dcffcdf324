"""N1 to N3 on both databases."""

from __future__ import annotations

import dataclasses

import pytest

from coordinator.store import alarms as module
from coordinator.store.alarms import QUARANTINED, UNTOUCHED, Alarm
from coordinator.store.store import Store
from tests.support.stores import Place

ONE = Alarm(
    id=0,
    rule="replays",
    severity="warning",
    subject_kind="device",
    subject="kitchen",
    detail="again",
    count=1,
    first_at=5.0,
    last_at=5.0,
    next_try_at=7.0,
)


def test_an_alarm_is_kept_as_it_is(place: Place, store: Store) -> None:
    kept = store.alarms.add(dataclasses.replace(ONE, id=77))
    assert kept == dataclasses.replace(ONE, id=kept.id)
    beside = place.open()
    assert beside.alarms.alarm(kept.id) == kept
    assert beside.alarms.alarm(kept.id + 1) is None
    beside.close()


def test_an_alarm_counts_on_until_it_is_acknowledged(store: Store) -> None:
    kept = store.alarms.add(ONE)
    assert store.alarms.again(kept.id, times=3, detail="and again", at=6.0, action=QUARANTINED)
    found = store.alarms.unacknowledged("replays", "device", "kitchen")
    assert found == dataclasses.replace(
        kept, count=4, last_at=6.0, detail="and again", action=QUARANTINED
    )
    for other in (("replays", "key", "kitchen"), ("undecodable", "device", "kitchen")):
        assert store.alarms.unacknowledged(*other) is None
    store.alarms.acknowledge(kept.id, "anna", now=9.0)
    assert store.alarms.unacknowledged("replays", "device", "kitchen") is None
    assert not store.alarms.again(kept.id, times=1, detail="late", at=10.0, action=UNTOUCHED)
    seen = store.alarms.alarm(kept.id)
    assert seen is not None
    assert (seen.count, seen.detail) == (4, "and again")


def test_who_acknowledges_first_stays(store: Store) -> None:
    kept = store.alarms.add(ONE)
    first = store.alarms.acknowledge(kept.id, "anna", now=9.0)
    assert first is not None
    assert (first.acknowledged_by, first.acknowledged_at) == ("anna", 9.0)
    assert store.alarms.acknowledge(kept.id, "bert", now=10.0) == first
    assert store.alarms.acknowledge(kept.id + 1, "bert", now=10.0) is None


def test_they_are_listed_newest_first_page_by_page(store: Store) -> None:
    numbers = [store.alarms.add(dataclasses.replace(ONE, subject=f"d{n}")).id for n in range(5)]
    store.alarms.acknowledge(numbers[3], "anna", now=9.0)
    newest = numbers[::-1]
    assert [each.id for each in store.alarms.alarms(limit=9)] == newest
    assert [each.id for each in store.alarms.alarms(before=newest[1], limit=2)] == newest[2:4]
    still_open = [each.id for each in store.alarms.alarms(limit=9, only_open=True)]
    assert still_open == [number for number in newest if number != numbers[3]]
    assert store.alarms.count_open() == store.alarms.count_open("replays") == 4
    assert store.alarms.count_open("undecodable") == 0


def test_what_is_to_be_sent_stays_so_until_it_was_or_was_given_up(
    place: Place, store: Store
) -> None:
    late = store.alarms.add(dataclasses.replace(ONE, next_try_at=9.0))
    soon = store.alarms.add(ONE)
    store.alarms.add(dataclasses.replace(ONE, next_try_at=None))
    beside = place.open()
    assert beside.alarms.next_to_send() == soon
    beside.close()
    store.alarms.not_sent(soon.id, next_try_at=20.0)
    assert store.alarms.next_to_send() == late
    store.alarms.sent(late.id, now=10.0)
    waiting = store.alarms.next_to_send()
    assert waiting == dataclasses.replace(soon, next_try_at=20.0, tries=1)
    store.alarms.not_sent(soon.id, next_try_at=None)
    assert store.alarms.next_to_send() is None
    kept = store.alarms.alarm(late.id)
    assert kept == dataclasses.replace(late, next_try_at=None, tries=1, sent_at=10.0)
    assert kept.action == UNTOUCHED


def test_old_ones_go_when_somebody_has_seen_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_KEPT", 3)
    numbers = [store.alarms.add(ONE).id]
    numbers += [store.alarms.add(ONE).id]
    store.alarms.acknowledge(numbers[1], "anna", now=9.0)
    for _ in range(4):
        numbers.append(store.alarms.add(ONE).id)
    left = [each.id for each in store.alarms.alarms(limit=99)]
    assert left == [number for number in numbers[::-1] if number != numbers[1]]
