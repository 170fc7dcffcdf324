"""What the API acknowledged is in the audit log, by whom; and the log can be read a page at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from coordinator.api.app import create_app
from coordinator.audit import log as log_module
from coordinator.audit.audited_store import AuditedStore
from coordinator.audit.chain import Action, chained, parse_line
from coordinator.audit.log import AuditLog
from coordinator.audit.verify import LOG, verify_log
from shared.crypto.identity import format_public
from shared.errors import StorageError
from tests.support.audit_logs import AT, IDENTITY, STRANGER, entry
from tests.support.coordination import PROBE, job_tables, make_base
from tests.support.scripted_engine import TOKEN, services_of

HEADERS = {"Authorization": f"Bearer {TOKEN}"}


class Api:
    """The API of a coordinator that writes down what is done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = AuditLog(folder / "audit", IDENTITY)
        self.store = AuditedStore(f"sqlite:///{folder / 'store.db'}", folder, audit=self.log)
        self.base = make_base(folder / "base")
        self.stopped: list[str] = []
        services = dataclasses.replace(
            services_of([]),
            store=self.store,
            coordinator=IDENTITY.public,
            stop_run=lambda run, _: self.stopped.append(run),
            audit=self.log,
            read_audit=self.log,
        )
        self.client = TestClient(create_app(services), raise_server_exceptions=False)

    def close(self) -> None:
        self.store.close()
        self.log.close()

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(path, headers=HEADERS, **options)

    def post(self, path: str, body: object) -> Any:
        return self.client.post(path, json=body, headers=HEADERS)

    def token(self) -> Any:
        return self.post("/api/v1/devices/tokens", {"valid_s": 60})

    def join(self, token: str) -> Any:
        body = {"token": token, "name": "kitchen", "public_key": format_public(STRANGER.public)}
        return self.client.post("/api/v1/devices/join", json=body)

    def add_key(self) -> Any:
        return self.post("/api/v1/keys", {"name": "notes"})

    def revoke_key(self) -> Any:
        return self.client.delete("/api/v1/keys/notes", headers=HEADERS)

    def quarantine_key(self) -> Any:
        return self.post("/api/v1/keys/notes/quarantine", {})

    def release_key(self) -> Any:
        return self.client.delete("/api/v1/keys/notes/quarantine", headers=HEADERS)

    def submit(self) -> Any:
        probe = [[e.text, e.label, e.group] for e in PROBE]
        return self.post("/api/v1/runs", {"job": job_tables(self.base), "probe": probe, "seed": 3})

    def stop(self) -> Any:
        return self.post("/api/v1/runs/trial/stop", {"reason": "a secret reason"})

    def told(self) -> list[tuple[str, str, str]]:
        return [
            (one["actor"], one["action"], one["subject"])
            for one in self.get("/api/v1/audit", params={"limit": 200}).json()["items"]
        ]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    api = Api(tmp_path)
    yield api
    api.close()


def test_every_action_is_told_with_who_asked_for_it_before_it_is_answered(api: Api) -> None:
    told: list[tuple[str, str, str]] = []
    token = api.token().json()["token"].partition(".")[0]
    for answer, expected in [
        (None, ("admin", "token-made", "")),
        (lambda: api.join(token), ("device:kitchen", "device-joined", "kitchen")),
        (api.add_key, ("admin", "key-made", "notes")),
        (api.quarantine_key, ("admin", "key-quarantined", "notes")),
        (api.release_key, ("admin", "key-released", "notes")),
        (api.revoke_key, ("admin", "key-revoked", "notes")),
        (api.submit, ("admin", "run-submitted", "trial")),
        (api.stop, ("admin", "run-stop-asked", "trial")),
    ]:
        if answer is not None:
            assert answer().is_success
        told.append(expected)
        assert api.told() == told
    assert api.stopped == ["trial"]
    text = (api.folder / "audit" / LOG).read_text(encoding="utf-8")
    assert "a secret reason" not in text
    assert token not in text


def test_what_is_refused_is_not_told(api: Api) -> None:
    assert api.join("a guess").status_code == 401
    assert api.revoke_key().status_code == 404
    assert api.stop().status_code == 404
    assert api.post("/api/v1/keys", {"name": "Not a name"}).status_code == 422
    assert api.post("/api/v1/runs", {"job": {}, "probe": [], "seed": 1}).status_code == 422
    assert api.client.post("/api/v1/devices/tokens", json={"valid_s": 9}).status_code == 401
    assert api.told() == []


@pytest.mark.parametrize(
    "deed", ["token", "add_key", "quarantine_key", "revoke_key", "submit", "stop"]
)
def test_what_cannot_be_written_down_is_refused_with_507_and_has_not_happened(
    api: Api, monkeypatch: pytest.MonkeyPatch, deed: str
) -> None:
    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    if deed in ("quarantine_key", "revoke_key"):
        api.add_key()
    if deed == "stop":
        api.submit()
    before = (api.told(), api.get("/api/v1/keys").json(), api.get("/api/v1/runs").json())
    with monkeypatch.context() as patched:
        patched.setattr(log_module, "append_durably", full)
        answer = getattr(api, deed)()
        assert answer.status_code == 507
        assert answer.json()["type"] == "urn:llmos:storage"
    after = (api.told(), api.get("/api/v1/keys").json(), api.get("/api/v1/runs").json())
    assert after == before
    assert api.stopped == []
    assert getattr(api, deed)().is_success
    assert len(api.told()) == len(before[0]) + 1


def test_a_device_is_told_507_until_its_joining_is_written_down(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    token = api.token().json()["token"].partition(".")[0]
    with monkeypatch.context() as patched:
        patched.setattr(log_module, "append_durably", full)
        assert [api.join(token).status_code for _ in range(2)] == [507, 507]
    assert [api.join(token).status_code for _ in range(2)] == [200, 200]
    assert [action for _, action, _ in api.told()] == ["token-made", "device-joined"]


def test_the_log_is_for_auditors_and_actions_carry_the_name_of_their_key(api: Api) -> None:
    def bearer(name: str, role: str) -> dict[str, str]:
        made = api.post("/api/v1/keys", {"name": name, "role": role}).json()
        return {"Authorization": f"Bearer {made['key']}"}

    caller, auditor, operator = (
        bearer(name, role)
        for name, role in (("notes", "caller"), ("watch", "auditor"), ("shift", "operator"))
    )
    statuses = [
        api.client.get("/api/v1/audit", headers=headers).status_code
        for headers in ({}, caller, operator, auditor)
    ]
    assert statuses == [401, 403, 403, 200]
    made = api.client.post("/api/v1/devices/tokens", json={"valid_s": 60}, headers=operator)
    assert made.is_success
    assert api.told()[-1] == ("shift", "token-made", "")


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_pages_one_after_the_other_are_the_log(api: Api, limit: int) -> None:
    for number in range(7):
        api.log.record(entry(number))
    records: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = api.get("/api/v1/audit", params={"cursor": cursor, "limit": limit}).json()
        assert len(page["items"]) <= limit
        records += page["items"]
        cursor = page["next"]
    lines = (api.folder / "audit" / LOG).read_bytes().splitlines(keepends=True)
    assert records == [parse_line(line, number=1).to_json() for line in lines]
    assert [record["number"] for record in records] == list(range(1, 8))


@pytest.mark.parametrize("query", [{"cursor": "x"}, {"limit": 0}, {"limit": 201}])
def test_a_page_that_cannot_be_is_refused(api: Api, query: dict[str, Any]) -> None:
    assert api.get("/api/v1/audit", params=query).status_code == 422


def test_a_coordinator_without_a_log_has_no_such_page() -> None:
    client = TestClient(create_app(services_of([])))
    assert client.get("/api/v1/audit", headers=HEADERS).status_code == 404


def test_a_page_far_back_in_a_long_log_reads_that_page_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "audit"
    folder.mkdir()
    last = None
    with (folder / LOG).open("wb") as file:
        for number in range(3000):
            last = chained(last, entry(number, Action.ROUND_FAILED), AT)
            file.write(last.to_line())
    with AuditLog(folder, IDENTITY) as log:
        read: list[int] = []
        parse = parse_line

        def counted(line: bytes, *, number: int) -> Any:
            read.append(number)
            return parse(line, number=number)

        monkeypatch.setattr(log_module, "parse_line", counted)
        page = log.page(after=2000, limit=100)
        assert [record.number for record in page] == list(range(2001, 2101)) == read
    assert verify_log(folder / LOG, key=IDENTITY.public).whole


def test_pages_from_the_newest_have_every_record_once_whatever_is_added(api: Api) -> None:
    for _ in range(7):
        api.token()
    there = len(api.log)
    found: list[int] = []
    cursor = ""
    while True:
        page = api.get("/api/v1/audit", params={"order": "newest", "limit": 3, "cursor": cursor})
        assert page.status_code == 200, page.text
        found += [record["number"] for record in page.json()["items"]]
        api.token()
        if (cursor := page.json()["next"]) is None:
            break
    assert found == list(range(there, 0, -1))


def test_a_place_in_one_order_is_none_in_the_other(api: Api) -> None:
    for _ in range(3):
        api.token()
    newest = api.get("/api/v1/audit", params={"order": "newest", "limit": 1}).json()["next"]
    refused = api.get("/api/v1/audit", params={"order": "oldest", "cursor": newest})
    assert refused.status_code == 422
    assert api.get("/api/v1/audit", params={"order": "sideways"}).status_code == 422
