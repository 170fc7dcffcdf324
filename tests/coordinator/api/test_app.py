"""What is asked is done, or refused with a reason; answers are silent about devices' updates.

Who may ask is in ``test_every_route.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.api.roles import QUESTION_BYTES
from coordinator.federation import rounds
from coordinator.fleet.transport_fleet import PRESENT_S
from shared.crypto.identity import fingerprint, format_public, parse_public
from shared.types import DeviceId, Digest, RoundNumber, RunId
from tests.support.coordination import job_tables
from tests.support.coordinator_api import HEADERS, Api, problem


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    api = Api(tmp_path)
    yield api
    api.store.close()


# Keys


def test_a_key_asks_the_model_on_its_own_behalf_until_it_is_revoked(api: Api) -> None:
    made = api.make_key("notes", priority=2, tokens_per_minute=1000, public_cache=True)
    assert api.ask(made["key"]).status_code == 200
    (listed,) = api.items("/api/v1/keys")
    assert listed == {k: v for k, v in made.items() if k != "key"}
    assert made["key"].startswith(listed["prefix"])
    text = api.get("/metrics").text
    assert 'llmos_requests_total{key="notes",model="scripted",outcome="length"} 1.0' in text
    assert api.client.delete("/api/v1/keys/notes", headers=HEADERS).status_code == 200
    assert api.ask(made["key"]).status_code == 401
    assert api.items("/api/v1/keys")[0]["revoked_at"] == api.clock.now()
    assert len(api.engine.served) == 1


def test_a_rotated_key_goes_on_with_both_secrets_and_is_listed_without_either(api: Api) -> None:
    old = api.make_key("notes", role="caller", models=["scripted"])
    answer = api.post("/api/v1/keys/notes/rotate", {"overlap_hours": 2})
    assert answer.status_code == 200
    new = answer.json()
    assert new["former_ends_at"] == api.clock.now() + 7200
    assert (new["name"], new["models"]) == ("notes", ["scripted"])
    assert [api.ask(each["key"]).status_code for each in (old, new)] == [200, 200]
    (listed,) = api.items("/api/v1/keys")
    assert listed == {k: v for k, v in new.items() if k != "key"}
    api.clock.run(until_s=new["former_ends_at"])
    assert [api.ask(each["key"]).status_code for each in (old, new)] == [401, 200]
    missing = api.post("/api/v1/keys/nobody/rotate", {})
    assert (missing.status_code, "nobody" in problem(missing)["detail"]) == (404, True)
    assert api.post("/api/v1/keys/notes/rotate", {"overlap_hours": 721}).status_code == 422
    api.client.delete("/api/v1/keys/notes", headers=HEADERS)
    assert api.post("/api/v1/keys/notes/rotate", {}).status_code == 409
    assert [api.ask(each["key"]).status_code for each in (old, new)] == [401, 401]


def test_a_role_that_does_not_reach_is_told_which_role_it_takes(api: Api) -> None:
    viewer = {"Authorization": f"Bearer {api.make_key('eyes', role='viewer')['key']}"}
    assert api.client.get("/api/v1/runs", headers=viewer).status_code == 200
    refused = api.client.post("/api/v1/runs", json={}, headers=viewer)
    assert refused.status_code == 403
    assert problem(refused)["type"] == "urn:llmos:access_denied.not_permitted"
    assert refused.json()["roles"] == ["operator", "admin"]
    assert "the role viewer may not" in refused.json()["detail"]
    assert "www-authenticate" not in refused.headers
    asked = api.client.post("/v1/chat/completions", json={}, headers=viewer)
    assert asked.status_code == 403
    assert asked.json()["error"]["code"] == "access_denied.not_permitted"
    assert "operator" in asked.json()["error"]["message"]


def test_a_key_expires(api: Api) -> None:
    made = api.make_key("short", days=1)
    assert made["expires_at"] == api.clock.now() + 86_400
    api.clock.run(until_s=made["expires_at"] - 1)
    assert api.ask(made["key"]).status_code == 200
    api.clock.run(until_s=made["expires_at"])
    assert api.ask(made["key"]).status_code == 401


def test_a_name_is_given_once_even_if_it_was_revoked(api: Api) -> None:
    api.make_key("notes")
    api.client.delete("/api/v1/keys/notes", headers=HEADERS)
    answer = api.post("/api/v1/keys", {"name": "notes"})
    assert answer.status_code == 409
    assert "choose another name" in problem(answer)["detail"]
    missing = api.client.delete("/api/v1/keys/nobody", headers=HEADERS)
    assert missing.status_code == 404
    assert "nobody" in problem(missing)["detail"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": "admin"}, "name"),
        ({"name": "device:kitchen"}, "name"),
        ({"name": "A"}, "name"),
        ({"days": -1}, "days"),
        ({"priority": 11}, "priority"),
        ({"role": "root"}, "role"),
        ({"name": "metrics"}, "name"),
        ({"models": ["a*b"]}, "models"),
        ({"tasks": ["talk"]}, "tasks"),
        ({"collections": "all"}, "collections"),
        ({"tokens_per_minute": -1}, "tokens_per_minute"),
    ],
)
def test_a_key_that_cannot_be_is_refused_by_the_field(
    api: Api, change: dict[str, object], named: str
) -> None:
    answer = api.post("/api/v1/keys", {"name": "notes"} | change)
    assert answer.status_code == 422
    assert named in problem(answer)["detail"]
    assert api.items("/api/v1/keys") == []


def test_a_quota_is_a_429_that_says_when_to_return(api: Api) -> None:
    key = api.make_key("small", tokens_per_minute=40)["key"]
    assert api.ask(key, tokens=30).status_code == 200
    refused = api.ask(key, tokens=30)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "engine.quota"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert 'llmos_quota_refusals_total{key="small"} 1.0' in api.get("/metrics").text


def test_a_key_may_send_a_conversation_and_no_more(api: Api) -> None:
    headers = {"Authorization": f"Bearer {api.make_key('notes')['key']}"}
    long, too_long = b" " * 200_000, b" " * (QUESTION_BYTES + 1)
    for path, body, status in (
        ("/v1/chat/completions", long, 400),
        ("/v1/chat/completions", too_long, 413),
        ("/api/v1/runs", long, 403),
    ):
        answer = api.client.post(path, content=body, headers=headers)
        assert answer.status_code == status, (path, len(body))


def test_everything_under_the_prefix_is_denied_also_where_there_is_nothing(api: Api) -> None:
    for path in ("/api/v1/nothing", "/api/v2/runs", "/api"):
        assert problem(api.client.get(path))["status"] == 401
        assert problem(api.get(path))["status"] == 404


def test_health_needs_no_token_and_readiness_is_the_brokers(api: Api) -> None:
    assert api.client.get("/healthz").json() == {"status": "ok"}
    assert api.client.get("/readyz").json() == {"ready": False}
    api.ready = True
    assert api.client.get("/readyz").json() == {"ready": True}


# Joining


def test_a_device_learns_whom_to_trust_and_where_to_connect(api: Api) -> None:
    answer = api.join()
    assert answer.status_code == 200
    assert answer.json() == {
        "coordinator": format_public(api.identity.public),
        "key_holder": "",
        "broker_host": "127.0.0.1",
        "broker_port": 1883,
        "certificate": "",
    }
    assert api.store.devices()[0].public_key == api.device_key.public


def test_the_token_of_the_api_pins_the_coordinator(api: Api) -> None:
    answer = api.post("/api/v1/devices/tokens", {"valid_s": 60})
    secret, _, pinned = answer.json()["token"].partition(".")
    assert answer.status_code == 201
    assert pinned == fingerprint(api.identity.public)
    assert answer.json()["expires_at"] == 1060
    assert api.join(token=secret).status_code == 200


@pytest.mark.parametrize("valid_s", [0, -1, 7 * 24 * 3600 + 1, "soon"])
def test_a_token_is_valid_for_a_time_in_bounds(api: Api, valid_s: object) -> None:
    answer = api.post("/api/v1/devices/tokens", {"valid_s": valid_s})
    assert answer.status_code == 422
    assert "valid_s" in problem(answer)["detail"]


def test_a_used_an_expired_and_an_unknown_token_are_refused_alike(api: Api) -> None:
    used = api.store.new_token(expires_at=2000)
    other = format_public(api.identity.public)
    assert api.join(token=used).status_code == 200
    refusals = [
        api.join(token=used, name="other", public_key=other),
        api.join(token=api.store.new_token(expires_at=999.9), name="other", public_key=other),
        api.join(token="unknown", name="other", public_key=other),  # noqa: S106  a test's own
    ]
    assert [answer.status_code for answer in refusals] == [401, 401, 401]
    assert len({problem(answer)["detail"] for answer in refusals}) == 1
    assert len(api.store.devices()) == 1


def test_a_device_that_lost_the_answer_may_ask_again(api: Api) -> None:
    token = api.store.new_token(expires_at=2000)
    assert api.join(token=token).json() == api.join(token=token).json()


@pytest.mark.parametrize(
    "name", ["", "key-holder", "a/b", "a+b", "#", "A", "-a", "a-", "a" * 49, "a" * 65, "a\nb", "é"]
)
def test_a_name_that_is_none_is_refused_and_costs_no_token(api: Api, name: str) -> None:
    token = api.store.new_token(expires_at=2000)
    answer = api.join(token=token, name=name)
    assert answer.status_code in {409, 422}
    problem(answer)
    assert api.store.devices() == []
    assert api.join(token=token, name="a" * 48).status_code == 200


@pytest.mark.parametrize("key", ["", "junk", "llmos-ed25519:" + "A" * 42, "x" * 201])
def test_a_key_that_is_none_is_refused(api: Api, key: str) -> None:
    answer = api.join(public_key=key)
    assert answer.status_code == 422
    problem(answer)
    assert api.store.devices() == []


def test_a_name_or_key_is_taken_once(api: Api) -> None:
    assert api.join().status_code == 200
    taken = api.join(public_key=format_public(api.identity.public))
    assert (taken.status_code, problem(taken)["type"]) == (409, "urn:llmos:data")
    taken = api.join(name="other")
    assert (taken.status_code, problem(taken)["type"]) == (409, "urn:llmos:data")


def test_devices_are_listed_with_what_they_do_until_they_fall_silent(api: Api) -> None:
    api.join()
    (device,) = api.items("/api/v1/devices")
    assert device["state"] == "away"
    assert parse_public(device["public_key"]) == api.device_key.public
    api.fleet._refresh()
    api.fleet._stations[DeviceId("kitchen")].heard_at = api.clock.now()
    api.fleet.set_state(DeviceId("kitchen"), "training")
    assert api.items("/api/v1/devices")[0]["state"] == "training"
    api.clock.run(until_s=1000 + PRESENT_S)
    assert api.items("/api/v1/devices")[0]["state"] == "training"
    api.clock.run(until_s=1000 + PRESENT_S + 0.1)
    assert api.items("/api/v1/devices")[0]["state"] == "away"


# Runs


def test_a_job_becomes_a_run(api: Api) -> None:
    answer = api.submit()
    assert answer.status_code == 201
    assert answer.json()["state"] == "preparing"
    assert api.get("/api/v1/runs/trial").json() == answer.json()
    (listed,) = api.items("/api/v1/runs")
    assert (listed["run"], listed["state"], listed["round"]) == ("trial", "preparing", 0)
    assert (listed["rounds"], listed["accuracy"], listed["epsilon"]) == (2, {}, None)


def test_a_job_with_three_mistakes_names_all_three(api: Api) -> None:
    answer = api.submit(training={"rouns": 3, "learning_rate": -1.0}, protection={"min_devices": 9})
    assert answer.status_code == 422
    detail = problem(answer)["detail"]
    assert "training.rouns: unknown, did you mean rounds?" in detail
    assert "training.learning_rate: must be greater than" in detail
    assert "9 is more than max_devices (8)" in detail
    assert api.store.runs() == []


def test_an_unknown_base_model_is_refused_with_a_sentence(api: Api) -> None:
    answer = api.submit(model={"base": "no such model"})
    assert (answer.status_code, problem(answer)["type"]) == (422, "urn:llmos:model")
    assert "there is no folder no such model" in problem(answer)["detail"]
    assert api.store.runs() == []


def test_a_name_is_taken_once(api: Api) -> None:
    assert api.submit().status_code == 201
    answer = api.submit()
    assert answer.status_code == 409
    assert "give the job another name" in problem(answer)["detail"]


@pytest.mark.parametrize("name", ["a/b", "../x", "-a", "a-", "A", "", "a" * 42, "a\n", 3])
def test_a_run_cannot_be_called_anything(api: Api, name: object) -> None:
    tables = job_tables(api.base)
    answer = api.post("/api/v1/runs", {"job": {**tables, "name": name}, "probe": [], "seed": 1})
    assert answer.status_code == 422
    assert "name" in problem(answer)["detail"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, ("job", "probe", "seed")),
        ({"job": {}, "probe": [["only text"]], "seed": -1}, ("probe.0", "seed")),
        ([], ("body",)),
    ],
)
def test_a_malformed_request_names_every_field(
    api: Api, body: object, named: tuple[str, ...]
) -> None:
    answer = api.post("/api/v1/runs", body)
    assert answer.status_code == 422
    detail = problem(answer)["detail"]
    assert all(name in detail for name in named), detail


def test_a_request_that_is_not_json_is_a_problem_too(api: Api) -> None:
    answer = api.client.post("/api/v1/runs", content=b"{", headers=HEADERS)
    assert problem(answer)["status"] == 422


@pytest.mark.parametrize("depth", [50, 400, 900, 5000, 200_000])
def test_json_of_any_depth_is_refused_and_not_a_crash(api: Api, depth: int) -> None:
    deep = b'{"a": ' * depth + b"1" + b"}" * depth
    body = b'{"job": ' + deep + b', "probe": [], "seed": 0}'
    answer = api.client.post("/api/v1/runs", content=body, headers=HEADERS)
    assert answer.status_code in (400, 422)


def test_a_long_body_is_read_from_whoever_may_send_it_alone(api: Api) -> None:
    long = b" " * 200_000
    for path, headers, status in (
        ("/api/v1/devices/join", {}, 413),
        ("/api/v1/devices/join", HEADERS, 413),
        ("/api/v1/runs", {}, 401),
        ("/api/v1/runs", HEADERS, 422),
    ):
        answer = api.client.post(path, content=long, headers=headers)
        assert (answer.status_code, problem(answer)["status"]) == (status, status)


@pytest.mark.parametrize("text", ['{"job": {"\\ud800": 1}, "probe": [], "seed": 1}'])
def test_text_that_is_none_is_refused_and_not_a_crash(api: Api, text: str) -> None:
    """JSON can spell lone surrogates, which no file and no answer can hold."""
    headers = {**HEADERS, "Content-Type": "application/json"}
    answer = api.client.post("/api/v1/runs", content=text, headers=headers)
    assert problem(answer)["status"] == 422


@pytest.mark.parametrize("field", [0, 1, 2])
def test_examples_that_are_no_text_are_refused(api: Api, field: int) -> None:
    row = ["text", "label", "group"]
    row[field] = "\ud800"
    body = {"job": job_tables(api.base), "probe": [row, ["b", "c", "d"]], "seed": 1}
    headers = {**HEADERS, "Content-Type": "application/json"}
    answer = api.client.post("/api/v1/runs", content=json.dumps(body), headers=headers)
    assert problem(answer)["status"] == 422
    assert api.store.runs() == []


def test_an_unknown_run_is_not_found(api: Api) -> None:
    for answer in (api.get("/api/v1/runs/none"), api.post("/api/v1/runs/none/stop", {})):
        assert (answer.status_code, problem(answer)["type"]) == (
            404,
            "urn:llmos:round.run_not_found",
        )
    assert api.stopped == []


def test_what_happened_in_a_run_is_told_in_its_order(api: Api) -> None:
    run = RunId(api.submit().json()["run"])
    adapter = Digest("0" * 64)
    api.store.add_milestone(run, "started", {"adapter": adapter, "loss": 1.0}, now=1001.0)
    api.store.commit(run, RoundNumber(1), rounds.Planned(adapter), now=1002.0)
    api.store.commit(
        run, RoundNumber(1), rounds.RoundFailed("privacy.cohort", "2 of 3"), now=1003.0
    )
    assert api.items(f"/api/v1/runs/{run}/events") == [
        {"at": 1000.0, "round": 0, "event": "submitted"},
        {"at": 1001.0, "round": 0, "event": "started", "loss": 1.0},
        {"at": 1002.0, "round": 1, "event": "planned"},
        {
            "at": 1003.0,
            "round": 1,
            "event": "round-failed",
            "code": "privacy.cohort",
            "reason": "2 of 3",
        },
    ]


def test_an_unknown_run_has_no_events(api: Api) -> None:
    answer = api.get("/api/v1/runs/nowhere/events")
    assert answer.status_code == 404
    assert "nowhere" in problem(answer)["detail"]


def test_a_run_is_stopped_by_the_coordinators_own_thread(api: Api) -> None:
    api.submit()
    answer = api.post("/api/v1/runs/trial/stop", {"reason": "enough"})
    assert (answer.status_code, answer.json()) == (202, {"run": "trial"})
    assert api.stopped == [("trial", "enough")]
    assert api.post("/api/v1/runs/trial/stop", {"reason": "x" * 501}).status_code == 422


def test_answers_hold_no_update_and_nothing_that_names_one(api: Api) -> None:
    api.submit()
    digest, record = Digest("d" * 64), b"a signed record"
    history: list[rounds.Transition] = [
        rounds.Planned(Digest("0" * 64)),
        rounds.KeyAnnounced(b"announcement"),
        rounds.Invited(("kitchen", "cellar"), 1.0),
        rounds.DeviceDeclined("cellar", "busy", "not now"),
        rounds.Committed("kitchen", digest, record),
        rounds.Proposed(("kitchen",)),
        rounds.SetFixed(("kitchen",), (0,), record, 2.0),
        rounds.UpdateStored("kitchen", digest),
    ]
    for row in history:
        api.store.commit(RunId("trial"), RoundNumber(1), row, now=1.0)
    for path in ("/api/v1/runs", "/api/v1/runs/trial"):
        text = api.get(path).text
        assert digest not in text
        assert record.decode() not in text
        assert "kitchen" not in text, "who contributed is nobody's business"
    assert '"reported":1' in text


def test_what_went_wrong_inside_is_not_told(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from shared.errors import LlmOsError

    def fail(*_: object, **__: object) -> list[Any]:
        raise LlmOsError("the secret detail")

    monkeypatch.setattr(api.store, "runs_after", fail)
    answer = api.get("/api/v1/runs")
    assert answer.status_code == 500
    assert "secret" not in json.dumps(problem(answer))
