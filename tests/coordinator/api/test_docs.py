"""The page about the API loads nothing from elsewhere, and shows nothing without a credential."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.coordinator_api import Api

PAGE = "/api/v1/docs"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    api = Api(tmp_path)
    yield api
    api.store.close()


def test_all_that_the_page_loads_is_here_and_is_what_it_says(api: Api) -> None:
    page = api.client.get(PAGE)
    assert page.headers["content-type"].startswith("text/html")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 3
    for path in loaded:
        answer = api.client.get(path)
        assert answer.status_code == 200
        kind = "text/css" if path.endswith(".css") else "text/javascript"
        assert answer.headers["content-type"].startswith(kind)
        assert len(answer.content) > 500
    assert "SwaggerUIBundle" in api.client.get(loaded[1]).text


def test_the_page_may_speak_to_nobody_else(api: Api) -> None:
    for path in (PAGE, f"{PAGE}/page.js", f"{PAGE}/swagger-ui.css"):
        policy = api.client.get(path).headers["content-security-policy"]
        allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
        assert allowed["default-src"] == "'none'"
        sources = {source for value in allowed.values() for source in value.split()}
        assert sources == {"'none'", "'self'", "data:"}
        assert allowed["script-src"] == allowed["connect-src"] == "'self'"
    assert "<script>" not in api.client.get(PAGE).text, "the policy would not run it"


def test_what_it_shows_is_read_with_a_credential_alone(api: Api) -> None:
    assert "/api/v1/openapi.json" in api.client.get(f"{PAGE}/page.js").text
    assert api.client.get("/api/v1/openapi.json").status_code == 401
    assert "paths" in api.get("/api/v1/openapi.json").json()
