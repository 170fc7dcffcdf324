"""Alarms are listed for whoever reads, and acknowledged by whoever works, once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from coordinator.api.app import create_app
from coordinator.api.live import live_topics
from coordinator.audit.chain import Action, Entry, Facts
from coordinator.feed import live_states
from coordinator.inference.live_serving import LiveServing
from coordinator.inference.text_services import TextServices
from coordinator.store.alarms import Alarm
from tests.support.coordinator_api import HEADERS, Api
from tests.support.people import Told

PATH = "/api/v1/alarms"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    found = Api(tmp_path)
    yield found
    found.usage.close()
    found.store.close()


def raised(api: Api, subject: str = "kitchen") -> int:
    alarm = Alarm(0, "bad-signatures", "warning", "device", subject, "protocol.signature", 4, 5, 6)
    return api.store.alarms.add(alarm).id


def test_an_alarm_is_shown_with_everything_that_a_person_needs(api: Api) -> None:
    number = raised(api)
    assert api.items(PATH) == [
        {
            "id": number,
            "rule": "bad-signatures",
            "severity": "warning",
            "subject": {"kind": "device", "name": "kitchen"},
            "detail": "protocol.signature",
            "count": 4,
            "first_at": 5.0,
            "last_at": 6.0,
            "action": "none",
            "acknowledged_at": None,
            "acknowledged_by": "",
        }
    ]


def test_they_come_in_pages_newest_first(api: Api) -> None:
    numbers = [raised(api, f"d{number}") for number in range(5)]
    found: list[int] = []
    cursor = ""
    while True:
        page = api.get(f"{PATH}?limit=2&open=true&cursor={cursor}").json()
        found += [each["id"] for each in page["items"]]
        if page["next"] is None:
            break
        cursor = page["next"]
        raised(api, "meanwhile")
    assert found == numbers[::-1]
    assert api.get(f"{PATH}?cursor={cursor}").status_code == 422, "of another listing"


def test_one_that_somebody_acknowledged_is_no_longer_open(api: Api) -> None:
    first, second = raised(api), raised(api, "garage")
    answer = api.post(f"{PATH}/{first}/acknowledge", {})
    assert (answer.status_code, answer.json()["acknowledged_by"]) == (200, "admin")
    assert answer.json()["acknowledged_at"] == 1000.0
    assert [each["id"] for each in api.items(f"{PATH}?open=true")] == [second]
    assert [each["id"] for each in api.items(PATH)] == [second, first]
    assert api.post(f"{PATH}/{first}/acknowledge", {}).json() == answer.json()


def test_it_is_written_down_who_acknowledged_and_before_it_is_done(api: Api) -> None:
    sink, number = Told(), raised(api)
    app = create_app(dataclasses.replace(api.services, audit=sink))
    client = TestClient(app, raise_server_exceptions=False, headers=HEADERS)
    sink.full = True
    assert client.post(f"{PATH}/{number}/acknowledge").status_code == 507
    assert [each["id"] for each in api.items(f"{PATH}?open=true")] == [number]
    sink.full = False
    for _ in range(2):
        assert client.post(f"{PATH}/{number}/acknowledge").status_code == 200
    facts: Facts = {"number": number, "rule": "bad-signatures"}
    assert sink.entries == [Entry(Action.ALARM_ACKNOWLEDGED, "admin", "kitchen", facts)]


@pytest.mark.parametrize(
    ("number", "status"), [("7", 404), ("0", 422), ("-1", 422), ("x", 422), (str(2**31), 422)]
)
def test_a_number_that_no_alarm_has_is_refused(api: Api, number: str, status: int) -> None:
    assert api.post(f"{PATH}/{number}/acknowledge", {}).status_code == status


@pytest.mark.parametrize(
    ("role", "reads", "acknowledges"),
    [
        ("viewer", True, False),
        ("auditor", True, False),
        ("operator", True, True),
        ("caller", False, False),
        ("device", False, False),
    ],
)
def test_who_may_read_and_who_may_acknowledge(
    api: Api, role: str, reads: bool, acknowledges: bool
) -> None:
    number = raised(api)
    shown = {"Authorization": f"Bearer {api.make_key('somebody', role=role)['key']}"}
    assert api.client.get(PATH, headers=shown).is_success is reads
    done = api.client.post(f"{PATH}/{number}/acknowledge", headers=shown)
    assert done.is_success is acknowledges


def test_open_ones_are_watched_live(api: Api) -> None:
    topics = live_topics(api.store, api.fleet, api.desk, LiveServing())
    assert topics.read("alarms") == {"open": 0, "alarms": {}}
    first, second = raised(api), raised(api, "garage")
    found = topics.read("alarms")
    assert (found["open"], set(found["alarms"])) == (2, {str(first), str(second)})
    assert found["alarms"][str(first)]["subject"] == {"kind": "device", "name": "kitchen"}
    assert "acknowledged_at" not in found["alarms"][str(first)], "a patch's null takes away"
    api.store.alarms.acknowledge(first, "anna", now=9.0)
    assert set(topics.read("alarms")["alarms"]) == {str(second)}


def test_listeners_are_told_of_what_is_new_or_was_found_again(api: Api) -> None:
    number = raised(api)
    states = live_states(api.fleet, api.desk, TextServices(), api.store.alarms)
    told = {"alarm": number, "rule": "bad-signatures", "about": "device kitchen", "count": 4}
    assert states[f"alarm {number}"] == ("alarm", told | {"severity": "warning"})
    api.store.alarms.acknowledge(number, "anna", now=9.0)
    assert (
        live_states(api.fleet, api.desk, TextServices(), api.store.alarms)
        .keys()
        .isdisjoint({f"alarm {number}"})
    )
