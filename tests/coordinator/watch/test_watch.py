"""V1 to V4 over a real store: what is seen becomes alarms, rows, records and quarantine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.audit.chain import Action
from coordinator.federation.rounds import RoundFailed
from coordinator.inference.engine import Finished
from coordinator.inference.front_desk import Served
from coordinator.store.alarms import QUARANTINED, UNTOUCHED, Alarm, AlarmRows
from coordinator.store.store import Store
from coordinator.watch import watch as module
from coordinator.watch.rules import EVERYBODY, RULES, About, Severity
from coordinator.watch.usual_hours import HOUR_S
from coordinator.watch.watch import MOST_OPEN, Watch
from shared.errors import (
    BadSignature,
    LlmOsError,
    MalformedMessage,
    NotPermitted,
    ReplayedMessage,
    StorageError,
    UndecodableMessage,
    WrongKey,
)
from shared.types import RoundNumber, RunId
from tests.support.brokers import eventually
from tests.support.people import Told
from tests.support.stores import sqlite_place

NOW = 1_000_000.0


class Scene:
    """A watch over rows, told by a test's thread; what it does is looked at when it has ended."""

    def __init__(self, home: Path, rows: AlarmRows) -> None:
        self.home = home
        self.rows = rows
        self.sink = Told()
        self.told: list[Alarm] = []
        self.quarantined: list[tuple[str, str]] = []
        self.now = NOW
        self.watch = self.begun()

    def begun(self) -> Watch:
        watch = Watch(
            self.rows,
            home=self.home,
            audit=self.sink,
            rules=RULES,
            is_device=lambda name: name in ("kitchen", "garage"),
            told=self.told.append,
            deliver=True,
            now=lambda: self.now,
        )
        watch.start()
        return watch

    def restart(self) -> None:
        self.watch.close()
        self.watch = self.begun()

    def may_quarantine(self, *kinds: About) -> None:
        def put(name: str, reason: str) -> bool:
            if name == "gone":
                raise StorageError("the disk is full")
            self.quarantined.append((name, reason))
            return True

        for kind in kinds:
            self.watch.let_quarantine(kind, put)

    def settle(self) -> None:
        """Wait until everything that was told has been counted."""
        counted = threading.Event()
        self.watch._post(counted.set)
        assert counted.wait(60)

    def alarms(self) -> list[Alarm]:
        """All there are, oldest first, after everything that was told has been counted."""
        self.watch.close()
        return self.rows.alarms(limit=1000)[::-1]

    def about(self) -> list[tuple[str, str, str]]:
        return [(alarm.rule, alarm.subject_kind, alarm.subject) for alarm in self.alarms()]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    store = Store(sqlite_place(tmp_path).url, tmp_path)
    found = Scene(tmp_path, store.alarms)
    yield found
    found.watch.close()
    store.close()


def refuse(scene: Scene, err: LlmOsError, *, peer: str | None, by_itself: bool = False) -> None:
    """As often as the strictest of the rules for messages needs."""
    for _ in range(RULES["replays"].count):
        scene.watch.message_refused(peer, err, by_itself=by_itself)


@pytest.mark.parametrize(
    ("err", "rule"),
    [
        (BadSignature("x"), "bad-signatures"),
        (ReplayedMessage("x"), "replays"),
        (UndecodableMessage("x"), "undecodable"),
    ],
)
def test_what_anybody_can_send_is_told_and_no_device_is_blamed_for_it(
    scene: Scene, err: LlmOsError, rule: str
) -> None:
    scene.may_quarantine(*About)
    refuse(scene, err, peer="kitchen")
    assert set(scene.about()) == {(rule, "device", "kitchen")}
    assert scene.quarantined == []
    assert all(alarm.action == UNTOUCHED for alarm in scene.alarms())


def test_names_that_nobody_has_are_one_subject(scene: Scene) -> None:
    for number in range(RULES["undecodable"].count):
        scene.watch.message_refused(f"nobody-{number}", UndecodableMessage("x"), by_itself=False)
    scene.watch.message_refused(None, UndecodableMessage("x"), by_itself=False)
    assert scene.about() == [("undecodable", "coordinator", "")]


def test_a_device_is_put_into_quarantine_for_what_it_signed_itself(scene: Scene) -> None:
    scene.may_quarantine(About.DEVICE)
    scene.watch.message_refused("kitchen", MalformedMessage("a field is missing"), by_itself=True)
    scene.watch.update_refused("kitchen", WrongKey("another key"))
    scene.watch.update_refused("garage", WrongKey("another key"))
    scene.watch.update_refused("kitchen", WrongKey("yet another key"))
    (alarm,) = scene.alarms()
    assert (alarm.rule, alarm.subject, alarm.action) == ("device-refused", "kitchen", QUARANTINED)
    assert alarm.detail == "protocol.wrong_key: yet another key"
    ((name, reason),) = scene.quarantined
    assert name == "kitchen"
    assert reason.startswith("device-refused: ")


def test_without_the_operators_word_nothing_is_put_into_quarantine(scene: Scene) -> None:
    scene.may_quarantine(About.KEY)
    refuse(scene, MalformedMessage("x"), peer="kitchen", by_itself=True)
    assert scene.quarantined == []


def test_a_disk_that_refuses_the_quarantine_does_not_hide_the_alarm(scene: Scene) -> None:
    scene.may_quarantine(About.KEY)
    scene.watch.key_used("gone", "10.0.0.1")
    scene.watch.key_used("gone", "10.0.0.2")
    (alarm,) = scene.alarms()
    assert (alarm.subject, alarm.action) == ("gone", UNTOUCHED)


def test_a_device_that_is_kept_out_may_go_on_speaking(scene: Scene) -> None:
    refuse(scene, NotPermitted("kitchen is quarantined"), peer="kitchen")
    assert scene.alarms() == []


def test_credentials_are_counted_by_who_may_have_the_address(scene: Scene) -> None:
    for number in range(RULES["credentials-refused"].count):
        scene.watch.credential_refused(f"2001:db8::{number + 1:x}")
        scene.watch.credential_refused(f"10.0.0.{number}")
    assert scene.about() == [("credentials-refused", "address", "2001:db8::/64")]


def test_who_asks_for_too_much_is_named_as_key_or_person(scene: Scene) -> None:
    for _ in range(RULES["requests-refused"].count):
        scene.watch.request_refused("shop")
        scene.watch.request_refused("person:anna")
    assert scene.about() == [
        ("requests-refused", "key", "shop"),
        ("requests-refused", "person", "anna"),
    ]


def test_the_first_place_of_a_key_is_learnt_and_the_next_is_told(scene: Scene) -> None:
    for address in ("10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.2"):
        scene.watch.key_used("shop", address)
    (alarm,) = scene.alarms()
    assert (alarm.rule, alarm.subject, alarm.count) == ("key-new-place", "shop", 1)
    assert alarm.detail == "from 10.0.0.2, until now from 10.0.0.1"


def test_places_are_known_after_a_restart(scene: Scene) -> None:
    scene.watch.key_used("shop", "10.0.0.1")
    scene.restart()
    scene.watch.key_used("shop", "10.0.0.1")
    scene.watch.key_used("shop", "10.0.0.3")
    assert [alarm.detail[:14] for alarm in scene.alarms()] == ["from 10.0.0.3,"]


@pytest.mark.parametrize("damage", ["", "[]", '{"places": 7, "hours": {}}', "\ud800"])
def test_what_was_usual_and_cannot_be_read_is_learnt_anew(scene: Scene, damage: str) -> None:
    scene.watch.key_used("shop", "10.0.0.1")
    scene.watch.close()
    path = scene.home / "usual.json"
    assert json.loads(path.read_bytes())["places"] == {"shop": ["10.0.0.1"]}
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(damage.encode("utf-8", "surrogatepass"))
    scene.watch = scene.begun()
    scene.watch.key_used("shop", "10.0.0.2")
    assert scene.alarms() == []


def served(caller: str, tokens: int) -> Served:
    end = Finished("stop", prompt_tokens=tokens - 1, completion_tokens=1)
    return Served("m", caller, "stop", 0.0, 0.0, 0.0, end)


def test_far_more_tokens_than_ever_are_told_of_keys_alone(scene: Scene) -> None:
    for hour in range(30):
        for caller in ("shop", "person:anna", "device:kitchen"):
            scene.now = NOW + hour * HOUR_S
            scene.watch.served(served(caller, 100))
            scene.settle()
    scene.now = NOW + 31 * HOUR_S
    for caller in ("shop", "person:anna", "device:kitchen"):
        scene.watch.served(served(caller, 50_000))
    assert scene.about() == [("key-tokens", "key", "shop")]


def test_a_sum_that_no_cohort_can_reach_is_critical(scene: Scene) -> None:
    for code in ("privacy.sum_range", "round.timeout"):
        failed = RoundFailed(code, "a sum lies outside")
        scene.watch.committed(RunId("trial"), RoundNumber(3), failed)
    (alarm,) = scene.alarms()
    assert (alarm.severity, alarm.subject_kind, alarm.subject) == ("critical", "run", "trial")
    assert alarm.count == 1, "of the other failure nobody is told"
    assert alarm.detail == "round 3: a sum lies outside"


def test_a_finding_of_the_daily_check_has_its_own_severity(scene: Scene) -> None:
    scene.watch.found("home-open", Severity.WARNING, "HOME: mode 755")
    scene.watch.found("admin-token-weak", Severity.CRITICAL, "admin.token: short")
    assert [(alarm.subject, alarm.severity) for alarm in scene.alarms()] == [
        ("home-open", "warning"),
        ("admin-token-weak", "critical"),
    ]


def test_an_alarm_counts_on_until_somebody_has_seen_it(scene: Scene) -> None:
    for _ in range(3):
        refuse(scene, BadSignature("x"), peer="kitchen")
    (alarm,) = scene.alarms()
    assert alarm.count == 3 * RULES["replays"].count // RULES["bad-signatures"].count
    assert len(scene.told) == 1
    assert scene.rows.acknowledge(alarm.id, "anna", now=NOW)
    scene.watch = scene.begun()
    refuse(scene, BadSignature("x"), peer="kitchen")
    first, second = scene.alarms()
    assert (first.acknowledged_by, second.acknowledged_by) == ("anna", "")
    assert [alarm.id for alarm in scene.told] == [first.id, second.id]


def test_every_new_alarm_is_in_the_audit_log_before_its_row(scene: Scene) -> None:
    scene.sink.full = True
    refuse(scene, BadSignature("x"), peer="kitchen")
    assert scene.alarms() == []
    assert scene.told == []
    scene.sink.full = False
    scene.watch = scene.begun()
    refuse(scene, BadSignature("x"), peer="kitchen")
    (alarm,) = scene.alarms()
    (entry,) = scene.sink.entries
    assert (entry.action, entry.actor, entry.subject) == (
        Action.ALARM_RAISED,
        "coordinator",
        alarm.subject,
    )
    assert entry.facts == {"rule": "bad-signatures", "severity": "warning", "about": "device"}
    assert [told.id for told in scene.told] == [alarm.id]


def test_a_key_that_was_in_the_alarm_before_a_crash_is_told_again(scene: Scene) -> None:
    """V2: what is usual is remembered after the alarm, never before."""
    scene.watch.key_used("shop", "10.0.0.1")
    scene.restart()
    scene.sink.full = True
    scene.watch.key_used("shop", "10.0.0.2")
    scene.settle()
    scene.sink.full = False
    scene.watch.key_used("shop", "10.0.0.2")
    assert scene.about() == [("key-new-place", "key", "shop")]


def test_what_the_disk_did_not_take_is_written_when_it_does(scene: Scene) -> None:
    scene.sink.full = True
    scene.watch.found("home-open", Severity.WARNING, "HOME: mode 755")
    scene.settle()
    assert scene.rows.count_open() == 0
    scene.sink.full = False
    assert [alarm.subject for alarm in scene.alarms()] == ["home-open"]


def test_a_flood_is_written_once_a_second_and_counted_whole(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: dict[int, list[int]] = {}
    again = AlarmRows.again

    def counted(rows: AlarmRows, number: int, *, times: int, **more: Any) -> bool:
        writes.setdefault(number, []).append(times)
        return again(rows, number, times=times, **more)

    monkeypatch.setattr(AlarmRows, "again", counted)
    passed = [0.0]
    scene.watch._monotonic = lambda: passed[0]
    for second in range(3):
        passed[0] = float(second)
        for _ in range(50):
            scene.watch.found("home-open", Severity.WARNING, "again")
        scene.settle()
    alarm, everybodys = scene.alarms()
    assert (alarm.count, everybodys.count) == (150, 150 // EVERYBODY)
    assert len(writes[alarm.id]) == 3
    assert sum(writes[alarm.id]) == 149


def test_of_one_rule_there_are_only_so_many_open_alarms(scene: Scene) -> None:
    for number in range(MOST_OPEN + 20):
        for _ in range(RULES["credentials-refused"].count):
            scene.watch.credential_refused(f"10.0.{number}.1")
    found = scene.alarms()
    assert len(scene.told) == len(found) == MOST_OPEN
    (shared,) = [alarm for alarm in found if not alarm.subject]
    # Everybody together twice, and who had no alarm of his own.
    assert shared.count == (MOST_OPEN + 20) // EVERYBODY + 20 + 1


def test_who_has_no_alarm_of_its_own_is_kept_out_all_the_same(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_OPEN", 1)
    scene.may_quarantine(About.KEY)
    for key in ("first", "second"):
        scene.watch.key_used(key, "10.0.0.1")
        scene.watch.key_used(key, "10.0.0.2")
    assert scene.about() == [
        ("key-new-place", "key", "first"),
        ("key-new-place", "coordinator", ""),
    ]
    assert [name for name, _ in scene.quarantined] == ["first", "second"]


def test_what_is_acknowledged_while_it_is_found_again_is_another_alarm(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.watch.found("home-open", Severity.WARNING, "HOME: mode 755")
    scene.settle()
    (first,) = scene.rows.alarms(limit=9)
    unacknowledged = AlarmRows.unacknowledged

    def just_before(rows: AlarmRows, *about: str) -> Alarm | None:
        found = unacknowledged(rows, *about)
        rows.acknowledge(first.id, "anna", now=NOW)
        return found

    monkeypatch.setattr(AlarmRows, "unacknowledged", just_before)
    scene.watch.found("home-open", Severity.WARNING, "HOME: mode 777")
    seen, other = scene.alarms()
    assert (seen.count, seen.acknowledged_by) == (1, "anna")
    assert (other.detail, other.acknowledged_at) == ("HOME: mode 777", None)


def test_a_mistake_while_something_is_written_does_not_end_the_watch(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.sink.full = True
    scene.watch.found("home-open", Severity.WARNING, "HOME: mode 755")
    scene.settle()
    monkeypatch.setattr(Watch, "_raise", lambda *_: 1 / 0)
    monkeypatch.setattr(module, "AGAIN_S", 0.0)
    scene.settle()
    assert scene.watch._thread.is_alive()
    scene.settle()
    assert scene.watch._held == {}, "it was tried"


def assert_set(event: threading.Event) -> None:
    assert event.wait(60)


def test_what_comes_too_fast_is_dropped_and_counted(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 10)
    held = threading.Event()
    scene.watch._post(lambda: assert_set(held))
    assert eventually(scene.watch._waiting.empty)
    for _ in range(25):
        scene.watch.message_refused("kitchen", BadSignature("x"), by_itself=False)
    assert scene.watch.dropped == 15
    held.set()
    assert [alarm.count for alarm in scene.alarms()] == [2]


def test_a_mistake_in_one_sighting_does_not_end_the_watch(scene: Scene) -> None:
    def wrong() -> None:
        raise ZeroDivisionError

    scene.watch._post(wrong)
    refuse(scene, BadSignature("x"), peer="kitchen")
    assert len(scene.alarms()) == 1


def test_what_somebody_else_chose_is_made_plain(scene: Scene) -> None:
    for _ in range(RULES["device-refused"].count):
        text = "x\n\x1b[31m\u202e" + "y" * 5000
        scene.watch.message_refused("kitchen", MalformedMessage(text), by_itself=True)
    (alarm,) = scene.alarms()
    assert alarm.detail.isprintable()
    assert len(alarm.detail) <= 500
