"""A key is put into quarantine by whoever works, and let out by an admin alone."""

from __future__ import annotations

from pathlib import Path

from tests.support.coordinator_api import HEADERS, Api

PATH = "/api/v1/keys/notes/quarantine"


def test_a_key_in_quarantine_asks_nothing_until_it_is_let_out(tmp_path: Path) -> None:
    api = Api(tmp_path)
    secret = api.make_key("notes")["key"]
    assert api.ask(secret).status_code == 200
    assert api.items("/api/v1/keys")[0]["quarantined_at"] is None
    assert api.post(PATH, {"reason": "odd"}).json() == {"name": "notes"}
    assert api.items("/api/v1/keys")[0]["quarantined_at"] == api.clock.now()
    assert api.ask(secret).status_code == 401
    assert api.client.delete(PATH, headers=HEADERS).json() == {"name": "notes"}
    assert api.ask(secret).status_code == 200
    api.usage.close()
    api.store.close()


def test_what_cannot_be_kept_out_is_told(tmp_path: Path) -> None:
    api = Api(tmp_path)
    api.make_key("notes")
    for answer in (
        api.post("/api/v1/keys/nobody/quarantine", {}),
        api.client.delete("/api/v1/keys/nobody/quarantine", headers=HEADERS),
    ):
        assert answer.status_code == 404
        assert "no key called 'nobody'" in answer.json()["detail"]
    for reason in ("x" * 501, "two\nlines", "\0", 1):
        assert api.post(PATH, {"reason": reason}).status_code == 422
    assert api.items("/api/v1/keys")[0]["quarantined_at"] is None
    assert api.post(PATH, {"reasons": "x"}).status_code == 422
    api.client.delete("/api/v1/keys/notes", headers=HEADERS)
    assert api.post(PATH, {}).status_code == 404
    api.usage.close()
    api.store.close()


def test_an_operator_keeps_out_and_an_admin_lets_out(tmp_path: Path) -> None:
    api = Api(tmp_path)
    api.make_key("notes")
    shown = {"Authorization": f"Bearer {api.make_key('worker', role='operator')['key']}"}
    assert api.client.post(PATH, json={}, headers=shown).status_code == 200
    assert api.client.delete(PATH, headers=shown).status_code == 403
    assert api.client.delete(PATH, headers=HEADERS).status_code == 200
    api.usage.close()
    api.store.close()
