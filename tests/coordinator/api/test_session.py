"""People log in, out and administer each other over HTTP, as the contract with the console says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from coordinator.api.access import Access, Principal, shown_session
from coordinator.api.roles import Role
from coordinator.inference.front_desk import Caller
from coordinator.people.people import FREE_TRIES, FREE_TRIES_HERE, SECRET_LENGTH
from tests.support.coordinator_api import HEADERS, TOKEN, Api, problem

SESSION, PEOPLE = "/api/v1/session", "/api/v1/people"
PASSWORD = "a sentence of my own"  # noqa: S105  a test's own
OWN = {"Origin": "http://testserver"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    api = Api(tmp_path)
    yield api
    api.people.close()
    api.store.close()


def browser(api: Api, base_url: str = "http://testserver") -> TestClient:
    """One with cookies of its own, that shows a page of ours."""
    headers = {"Origin": base_url}
    return TestClient(api.app, base_url, headers=headers, raise_server_exceptions=False)


def enter(api: Api, name: str, role: str, client: TestClient | None = None) -> TestClient:
    """A browser in which somebody new is logged in."""
    client = client or browser(api)
    link = api.post(PEOPLE, {"name": name, "role": role}).json()["link"]
    body = {"link": link, "name": name, "password": PASSWORD}
    assert client.post(SESSION, json=body).status_code == 200
    return client


def log_in(client: TestClient, name: str, password: str = PASSWORD) -> Any:
    return client.post(SESSION, json={"name": name, "password": password})


def test_the_first_account_is_made_in_a_browser(api: Api) -> None:
    client = browser(api)
    nobody = {"name": None, "role": None, "kind": None, "first": True, "oidc": False}
    assert client.get(SESSION).json() == nobody
    made = api.post(f"{SESSION}/first", {})
    assert made.status_code == 201
    link = made.json().pop("link")
    looked = client.post(f"{SESSION}/link", json={"link": link})
    offer = {"purpose": "first", "name": None, "role": "admin", "expires_at": 4600.0}
    assert (looked.status_code, looked.json()) == (200, offer)
    body = {"link": link, "name": "anna", "password": "short"}
    answer = client.post(SESSION, json=body)
    assert answer.status_code == 422
    assert "12 to 1024" in problem(answer)["detail"]
    answer = client.post(SESSION, json=body | {"password": PASSWORD})
    anna = {"name": "anna", "role": "admin", "kind": "person", "first": False, "oidc": False}
    assert (answer.status_code, answer.json()) == (200, anna)
    assert client.get(SESSION).json() == anna
    assert client.get("/api/v1/keys").status_code == 200
    for path, spent in ((f"{SESSION}/link", {"link": link}), (SESSION, body)):
        assert problem(client.post(path, json=spent))["status"] == 401
    assert problem(api.post(f"{SESSION}/first", {}))["status"] == 409


@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
def test_the_cookie_is_one_that_no_script_and_no_other_site_can_use(
    api: Api, scheme: str, secure: bool
) -> None:
    client = browser(api, f"{scheme}://testserver")
    enter(api, "anna", "viewer")
    for answer in (log_in(client, "anna"), client.delete(SESSION)):
        cookie = answer.headers["set-cookie"]
        parts = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert {"httponly", "path=/", "samesite=strict"} <= parts
        assert ("secure" in parts) is secure
        assert "domain" not in cookie.lower()
        assert cookie.startswith("llmos_session=")
    assert answer.status_code == 204
    assert answer.content == b""
    assert 'llmos_session="";' in cookie
    assert "Max-Age=0" in cookie


def test_who_asks_is_said_of_people_keys_and_tokens(api: Api) -> None:
    key = api.make_key("notes", role="viewer")["key"]
    for headers, name, role, kind in [
        ({}, None, None, None),
        ({"Authorization": "Bearer wrong"}, None, None, None),
        (HEADERS, "admin", "admin", "token"),
        ({"Authorization": f"Bearer {key}"}, "notes", "viewer", "key"),
    ]:
        got = api.client.get(SESSION, headers=headers).json()
        assert (got["name"], got["role"], got["kind"]) == (name, role, kind)
    client = enter(api, "admin", "viewer")  # a name that a token has
    got = client.get(SESSION).json()
    assert (got["name"], got["role"], got["kind"]) == ("admin", "viewer", "person")


def test_logging_in_and_out(api: Api) -> None:
    enter(api, "anna", "operator")
    client, other = browser(api), browser(api)
    for wrong in (log_in(client, "anna", "wrong"), log_in(client, "nobody")):
        assert problem(wrong)["type"] == "urn:llmos:access_denied"
        assert problem(wrong)["detail"] == "name or password is wrong"
        assert wrong.status_code == 401
        assert "set-cookie" not in wrong.headers
    assert log_in(client, "anna").status_code == log_in(other, "anna").status_code == 200
    secret = client.cookies["llmos_session"]
    assert len(secret) == SECRET_LENGTH
    assert client.delete(SESSION).status_code == 204
    assert "llmos_session" not in client.cookies
    stolen = {"Cookie": f"llmos_session={secret}"}
    assert client.get("/api/v1/runs", headers=stolen).status_code == 401
    assert other.get("/api/v1/runs").status_code == 200


def test_too_many_tries_are_told_when_to_come_again(api: Api) -> None:
    enter(api, "anna", "viewer")
    client = browser(api)
    for _ in range(FREE_TRIES):
        assert log_in(client, "anna", "wrong").status_code == 401
    answer = log_in(client, "anna")
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert problem(answer)["type"] == "urn:llmos:access_denied.too_many_tries"
    assert problem(answer)["retryable"]
    api.clock.run(until_s=api.clock.now() + 1)
    assert log_in(client, "anna").status_code == 200
    for number in range(FREE_TRIES_HERE - FREE_TRIES):
        assert log_in(client, f"name-{number}").status_code == 401
    assert log_in(client, "anna").status_code == 429


def test_another_password_logs_the_other_browsers_out(api: Api) -> None:
    client, other = enter(api, "anna", "caller"), browser(api)
    log_in(other, "anna")
    path, new = f"{SESSION}/password", "another sentence of mine"
    wrong = client.put(path, json={"old": "wrong", "new": new})
    assert wrong.status_code == 403
    assert client.put(path, json={"old": PASSWORD, "new": "short"}).status_code == 422
    answer = client.put(path, json={"old": PASSWORD, "new": new})
    assert (answer.status_code, answer.content) == (204, b"")
    assert client.get(SESSION).json()["name"] == "anna"
    assert other.get(SESSION).json()["name"] is None
    assert log_in(other, "anna").status_code == 401
    assert log_in(other, "anna", new).status_code == 200
    assert problem(api.client.put(path, json={"old": "a", "new": new}, headers=HEADERS))
    shown = api.client.put(path, json={"old": "a", "new": new}, headers=HEADERS)
    assert shown.status_code == 409


def test_an_admin_invites_changes_and_disables(api: Api) -> None:
    anna = enter(api, "anna", "admin")
    made = anna.post(PEOPLE, json={"name": "bert@firm.example", "role": "viewer"})
    assert made.status_code == 201
    assert {**made.json(), "link": ""} == {
        "name": "bert@firm.example",
        "role": "viewer",
        "link": "",
        "expires_at": 1000.0 + 72 * 3600,
    }
    path = f"{PEOPLE}/bert@firm.example"
    again = anna.post(f"{path}/link")
    assert again.status_code == 201
    client = browser(api)
    body = {"name": "bert@firm.example", "password": PASSWORD}
    assert client.post(SESSION, json=body | {"link": made.json()["link"]}).status_code == 401
    assert client.post(SESSION, json=body | {"link": again.json()["link"]}).status_code == 200
    assert client.get("/api/v1/keys").status_code == 403
    changed = anna.put(f"{path}/role", json={"role": "auditor"})
    assert changed.json()["role"] == "auditor"
    assert client.get("/api/v1/keys").status_code == 200
    assert client.get(PEOPLE).json() == anna.get(PEOPLE).json()
    assert client.post(PEOPLE, json={"name": "eve", "role": "admin"}).status_code == 403
    assert anna.delete(path).json() == {"name": "bert@firm.example"}
    assert client.get("/api/v1/keys").status_code == 401
    listed = api.items(PEOPLE)
    assert listed == [
        {
            "name": "anna",
            "role": "admin",
            "state": "active",
            "created_at": 1000.0,
            "last_login_at": 1000.0,
        },
        {
            "name": "bert@firm.example",
            "role": "auditor",
            "state": "disabled",
            "created_at": 1000.0,
            "last_login_at": 1000.0,
        },
    ]
    for refused in (
        anna.delete(f"{PEOPLE}/anna"),
        anna.put(f"{PEOPLE}/anna/role", json={"role": "viewer"}),
        anna.post(PEOPLE, json={"name": "anna", "role": "viewer"}),
    ):
        assert problem(refused)["status"] == 409
    for answer in (
        anna.delete(f"{PEOPLE}/nobody"),
        anna.put(f"{PEOPLE}/nobody/role", json={"role": "viewer"}),
        anna.post(f"{PEOPLE}/nobody/link"),
    ):
        assert problem(answer)["status"] == 404
    bad = anna.post(PEOPLE, json={"name": "Not A Name", "role": "device"})
    assert problem(bad)["status"] == 422
    assert all(part in problem(bad)["detail"] for part in ("name:", "role:"))


def test_people_come_in_pages(api: Api) -> None:
    names = [f"p{number}" for number in range(5)]
    for name in names:
        api.people.invite(name, "viewer")
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = api.get(f"{PEOPLE}?limit=2&cursor={cursor}").json()
        found += [person["name"] for person in page["items"]]
        cursor = page["next"]
    assert found == names


def test_what_somebody_makes_belongs_to_the_person_and_no_key(api: Api) -> None:
    client = enter(api, "notes", "caller")
    key = api.make_key("notes")["key"]
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    asked = body | {"model": api.engine.card.name}
    assert client.post("/v1/chat/completions", json=asked).status_code == 200
    assert api.ask(key).status_code == 200
    used = {entry["name"]: entry["requests"] for entry in api.items("/api/v1/usage?by=key")}
    assert used == {"person:notes": 1, "notes": 1}
    own = client.get("/api/v1/usage?by=key").json()["items"]
    assert [entry["name"] for entry in own] == ["person:notes"]


def test_an_account_that_was_changed_holds_at_once_and_for_streams(api: Api) -> None:
    client = enter(api, "anna", "viewer")
    cookie = f"llmos_session={client.cookies['llmos_session']}"
    headers = {"cookie": cookie}
    access = Access(api.store, admin_token=TOKEN, sessions=api.people, now=api.clock.now)
    anna = Principal(Caller("person:anna"), Role.VIEWER)
    assert access.identify(headers) == access.identify(headers, in_use=False) == anna
    assert access.identify(headers | {"authorization": ""}) is None
    assert access.identify({}) is None
    assert Access(api.store, admin_token=TOKEN).identify(headers) is None
    api.people.disable("anna")
    assert access.identify(headers) is None


@pytest.mark.parametrize(
    ("cookie", "shown"),
    [
        ("llmos_session=a", "a"),
        ("b=c; llmos_session=a;d", "a"),
        ("llmos_session=a; llmos_session=b", ""),
        ("llmos_session=a; llmos_session=a", ""),
        ("xllmos_session=a", ""),
        ("llmos_session", ""),
        ("", ""),
    ],
)
def test_one_cookie_of_this_name_is_shown_or_none(cookie: str, shown: str) -> None:
    assert shown_session({"cookie": cookie}) == shown
    assert shown_session({"cookie": cookie, "authorization": ""}) == ""


@pytest.mark.parametrize("body", ["text/plain", "application/x-www-form-urlencoded"])
def test_a_form_of_another_site_logs_nobody_in(api: Api, body: str) -> None:
    enter(api, "anna", "viewer")
    content = '{"name": "anna", "password": "a sentence of my own"}'
    headers = {"Content-Type": body, "Origin": "http://elsewhere"}
    answer = api.client.post(SESSION, content=content, headers=headers)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_passwords_links_and_sessions_are_in_no_answer_and_no_log(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    client = enter(api, "anna", "viewer")
    link = api.people.invite("bert", "viewer").secret
    told = [client.get(SESSION).text, client.get("/api/v1/runs").text]
    told += [log_in(client, "anna", "a wrong sentence of mine").text]
    told += [client.post(SESSION, json={"link": link, "name": "eve", "password": PASSWORD}).text]
    told += [client.post(f"{SESSION}/link", json={"link": link}).text, api.get(PEOPLE).text]
    told += [client.post(SESSION, json={"name": 1, "password": [PASSWORD], "link": link}).text]
    captured = capsys.readouterr()
    secrets = [PASSWORD, "a wrong sentence", link, client.cookies["llmos_session"], "$argon2"]
    for text in (*told, captured.out, captured.err):
        assert not any(secret in text for secret in secrets)
    assert "request.refused" in captured.out + captured.err, "the control"
