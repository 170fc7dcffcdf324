"""No answer may be guessed at, and none of the API's may be kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.coordinator_api import HEADERS, Api


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/healthz", None),
        ("/api/v1/runs", "no-store"),
        ("/api/v1/session", "no-store"),
        ("/v1/models", "no-store"),
        ("/api/v1/nothing", "no-store"),
        ("/console/", None),
    ],
)
def test_answers_say_what_may_not_be_done_with_them(
    tmp_path: Path, path: str, kept: str | None
) -> None:
    answer = Api(tmp_path).client.get(path, headers=HEADERS)
    assert answer.headers["x-content-type-options"] == "nosniff"
    if kept is not None:
        assert answer.headers["cache-control"] == kept


def test_a_refusal_and_a_new_key_are_not_kept_either(tmp_path: Path) -> None:
    api = Api(tmp_path)
    assert api.client.get("/api/v1/keys").headers["cache-control"] == "no-store"
    made = api.post("/api/v1/keys", {"name": "till"})
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
