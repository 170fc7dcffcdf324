"""What consoles show: one glance, releases, a device, models, and what was served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.federation import rounds
from coordinator.fleet.transport_fleet import AnswersWith
from shared.crypto.identity import format_public
from shared.types import DeviceId, Digest, RoundNumber, RunId
from tests.support.coordinator_api import Api, problem
from tests.support.coordinator_plans import small_plan
from tests.support.tiny_graph import make_tiny_model

ADAPTER, MANIFEST = Digest("a" * 64), "b" * 64
PLAN = small_plan().model_dump_json()
KITCHEN = DeviceId("kitchen")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    api = Api(tmp_path)
    yield api
    api.usage.close()
    api.store.close()


def is_present(api: Api, state: str) -> None:
    """Have the kitchen's device there."""
    assert api.join().status_code == 200
    api.fleet._refresh()
    api.fleet._stations[KITCHEN].heard_at = api.clock.now()
    api.fleet.set_state(KITCHEN, state)


def release(api: Api, name: str, at: float) -> None:
    """Have a run that was released."""
    run = RunId(name)
    api.store.add_run(run, PLAN, ADAPTER, now=at)
    api.store.add_milestone(run, "finished", {"adapter": ADAPTER}, now=at)
    facts = {"manifest": MANIFEST, "accuracy": 0.9, "folder": "/a/secret/path", "calibration": "{}"}
    api.store.add_milestone(run, "released", facts, now=at + 1)


ROUND: list[rounds.Transition] = [
    rounds.Planned(ADAPTER),
    rounds.Invited(("cellar", "kitchen"), 1.0),
    rounds.DeviceDeclined("cellar", "busy", "not now"),
    rounds.Committed("kitchen", ADAPTER, b"record"),
    rounds.SetFixed(("kitchen",), (0,), b"signed", 2.0),
    rounds.UpdateStored("kitchen", ADAPTER),
]


def under_way(api: Api) -> None:
    """Have a run in its first round."""
    api.store.add_run(RunId("run"), PLAN, ADAPTER, now=5.0)
    api.store.add_milestone(RunId("run"), "started", {"accuracy": {}, "loss": 1.0}, now=6.0)
    for row in ROUND:
        api.store.commit(RunId("run"), RoundNumber(1), row, now=7.0)
    spool = api.store.update_file(RunId("run"), RoundNumber(1), KITCHEN, ADAPTER)
    spool.parent.mkdir(parents=True)
    spool.write_bytes(b"x" * 123)


def test_a_glance_shows_devices_the_round_engines_and_releases(api: Api) -> None:
    is_present(api, "training")
    api.store.join(
        api.store.new_token(expires_at=2000.0), DeviceId("mute"), api.identity.public, now=1.0
    )
    release(api, "tickets", 1.0)
    under_way(api)
    shown = api.get("/api/v1/overview").json()
    assert shown["devices"] == {"away": 1, "training": 1}
    (run,) = shown["runs"]
    assert (run["summary"]["run"], run["summary"]["round"]) == ("run", 1)
    assert run["now"] == {
        "round": 1,
        "state": "gathering",
        "cohort": 2,
        "committed": 1,
        "declined": 1,
        "updates": 1,
        "bytes": 123,
        "changed_at": 7.0,
    }
    (engine,) = shown["engines"]
    assert (engine["model"], engine["slots"], engine["queue"]) == ("scripted", 2, 0)
    assert [each["run"] for each in shown["releases"]] == ["tickets"]


def test_a_release_says_how_many_answer_with_it_and_not_where_it_lies(api: Api) -> None:
    is_present(api, "idle")
    for number in range(3):
        release(api, f"run-{number}", float(number))
    api.store.add_run(RunId("other"), PLAN, ADAPTER, now=9.0)
    listed = api.get("/api/v1/releases?limit=2").json()
    more = api.get(f"/api/v1/releases?limit=2&cursor={listed['next']}").json()
    runs = [each["run"] for each in listed["items"] + more["items"]]
    assert (runs, more["next"]) == (["run-2", "run-1", "run-0"], None)
    assert listed["items"][0]["devices"] == 0
    api.fleet.set_answering(KITCHEN, AnswersWith(ADAPTER, MANIFEST))
    one = api.get("/api/v1/releases/run-1")
    assert one.json() == {
        "run": "run-1",
        "at": 2.0,
        "manifest": MANIFEST,
        "adapter": ADAPTER,
        "accuracy": 0.9,
        "devices": 1,
    }
    assert "secret" not in one.text + json.dumps(listed)
    for path, what in (("none", "no run named"), ("other", "was not released")):
        missing = api.get(f"/api/v1/releases/{path}")
        assert (missing.status_code, what in problem(missing)["detail"]) == (404, True)


def test_a_device_shows_what_the_broker_sees_of_it(api: Api) -> None:
    is_present(api, "idle")
    under_way(api)
    api.store.commit(RunId("run"), RoundNumber(1), rounds.Closed(("kitchen",)), now=8.0)
    second: list[rounds.Transition] = [
        rounds.Invited(("kitchen",), 9.0),
        rounds.DeviceDeclined("kitchen", "data", "none"),
    ]
    for row in second:
        api.store.commit(RunId("run"), RoundNumber(2), row, now=9.0)
    shown = api.get("/api/v1/devices/kitchen").json()
    (listed,) = api.items("/api/v1/devices")
    assert {name: shown[name] for name in listed} == listed
    assert shown["public_key"] == format_public(api.device_key.public)
    assert (shown["heard_at"], shown["answers_with"]) == (api.clock.now(), None)
    assert shown["runs"] == [
        {"run": "run", "invited": 2, "took_part": 1, "declined": [[2, "data", "none"]]}
    ]
    api.fleet.set_answering(KITCHEN, AnswersWith("", ""))
    answers = api.get("/api/v1/devices/kitchen").json()["answers_with"]
    assert answers == {"adapter": "", "manifest": ""}
    assert "record" not in json.dumps(shown)


def test_a_device_that_was_not_heard_is_shown_too(api: Api) -> None:
    api.join()
    shown = api.get("/api/v1/devices/kitchen").json()
    assert (shown["heard_at"], shown["state"], shown["runs"]) == (None, "away", [])
    for name in ("cellar", "%00", "%ED%A0%80", "a" * 300):
        missing = api.get(f"/api/v1/devices/{name}")
        assert (missing.status_code, problem(missing)["status"]) == (404, 404)


# Models


def test_models_are_listed_whether_served_or_imported(api: Api, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "models" / "tiny-int8")
    (tmp_path / "models" / "broken").mkdir()
    (tmp_path / "models" / "broken" / "manifest.json").write_text("{}")
    listed = api.items("/api/v1/models")
    assert [each["name"] for each in listed] == ["broken", "scripted", "tiny-int8"]
    assert listed[0]["imported"] is None
    assert "import the model again" in listed[0]["damaged"]
    assert [each["kind"] for each in listed[1]["served"]] == ["language model"]
    shown = api.get("/api/v1/models/tiny-int8").json()
    manifest: dict[str, Any] = json.loads((tmp_path / "models/tiny-int8/manifest.json").read_text())
    assert shown["passes"] == manifest["passes"]
    assert shown["imported"]["bytes"] == sum(f["bytes"] for f in manifest["files"].values())
    assert shown["imported"]["source"] == manifest["name"]
    assert "passes" not in listed[2]


@pytest.mark.parametrize("name", ["none", "../store.db", "..", "tiny-int8/..", "%00"])
def test_what_is_no_model_is_not_found(api: Api, tmp_path: Path, name: str) -> None:
    make_tiny_model(tmp_path / "models" / "tiny-int8")
    missing = api.get(f"/api/v1/models/{name.replace('/', '%2F').replace('..', '%2e%2e')}")
    assert missing.status_code == 404
    assert "model" in problem(missing)["detail"] or "nothing here" in problem(missing)["detail"]


# Usage


def test_usage_is_told_by_key_by_model_and_by_day(api: Api) -> None:
    for name, count in (("notes", 2), ("mail", 1)):
        key = api.make_key(name)["key"]
        for _ in range(count):
            assert api.ask(key).status_code == 200
    by_key = api.items("/api/v1/usage?by=key")
    assert [(each["name"], each["requests"]) for each in by_key] == [("mail", 1), ("notes", 2)]
    (by_model,) = api.items("/api/v1/usage?by=model")
    (by_day,) = api.items("/api/v1/usage")
    assert (by_model.pop("name"), by_day.pop("name")) == ("scripted", "1970-01-01")
    assert by_model == by_day
    assert by_day["completion_tokens"] == sum(each["completion_tokens"] for each in by_key) == 6
    assert api.items("/api/v1/usage?until=1969-12-31") == []
    assert api.items("/api/v1/usage?since=1969-12-31&by=model")[0]["requests"] == 3
    first = api.get("/api/v1/usage?by=key&limit=1").json()
    rest = api.get(f"/api/v1/usage?by=key&limit=1&cursor={first['next']}").json()
    assert [*first["items"], *rest["items"]] == by_key


def test_a_caller_sees_its_own_usage_alone(api: Api) -> None:
    keys = {name: api.make_key(name)["key"] for name in ("notes", "mail")}
    for key in keys.values():
        api.ask(key)
    for by in ("key", "model", "day"):
        headers = {"Authorization": f"Bearer {keys['mail']}"}
        answer = api.client.get(f"/api/v1/usage?by={by}", headers=headers)
        assert [each["requests"] for each in answer.json()["items"]] == [1]
        assert "notes" not in answer.text


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("since=yesterday", "since"),
        ("until=2026-13-01", "until"),
        ("by=caller", "by"),
        ("since=2026-01-02&until=2026-01-01", "since"),
    ],
)
def test_days_that_are_none_are_refused_by_name(api: Api, query: str, named: str) -> None:
    answer = api.get(f"/api/v1/usage?{query}")
    assert answer.status_code == 422
    assert problem(answer)["detail"].startswith(f"{named}: ")
