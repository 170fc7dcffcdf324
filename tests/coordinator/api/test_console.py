"""``C1`` and ``C2`` of :mod:`coordinator.api.console`."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from coordinator.api.console import POLICY, console_routes


@pytest.fixture
def built(tmp_path: Path) -> Path:
    folder = tmp_path / "dist"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><p>page")
    (folder / "assets" / "index-AbCd1234.js").write_text("'use strict'")
    (tmp_path / "secret").write_text("s3cret")
    return folder


def client_of(folder: Path) -> TestClient:
    app = FastAPI()
    app.include_router(console_routes(folder))
    return TestClient(app, follow_redirects=False)


def test_the_root_leads_to_the_console(built: Path) -> None:
    answer = client_of(built).get("/")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/")


def test_every_file_comes_with_a_policy_that_lets_it_reach_nobody_else(built: Path) -> None:
    for path in ("/console/", "/console/assets/index-AbCd1234.js"):
        answer = client_of(built).get(path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in POLICY
    assert "//" not in POLICY, "no other host"


def test_what_has_its_hash_in_its_name_is_kept_and_the_page_asks_each_time(built: Path) -> None:
    client = client_of(built)
    page, script = client.get("/console/"), client.get("/console/assets/index-AbCd1234.js")
    assert "immutable" in script.headers["cache-control"]
    assert page.headers["cache-control"] == "no-cache"
    assert script.headers["content-type"].startswith("text/javascript")
    again = client.get("/console/", headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    ["../secret", "%2e%2e/secret", "..%2fsecret", "assets/../../secret", "assets", "", "%00"],
)
def test_no_path_leads_out_of_the_folder(built: Path, path: str) -> None:
    answer = client_of(built).get(f"/console/{path}" if path else "/console")
    assert answer.status_code in {303, 307, 404}
    assert b"s3cret" not in answer.content


def test_what_comes_into_the_folder_later_is_not_served(built: Path) -> None:
    client = client_of(built)
    (built / "late.txt").write_text("late")
    assert client.get("/console/late.txt").status_code == 404


def test_a_console_that_was_not_built_says_how_it_is(tmp_path: Path) -> None:
    answer = client_of(tmp_path / "nothing").get("/console/")
    assert answer.status_code == 404
    assert "make console" in answer.text
    assert answer.headers["content-security-policy"] == POLICY
