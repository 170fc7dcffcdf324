"""The token is made once, and only the device's owner can read it."""

from __future__ import annotations

import stat
from pathlib import Path

from edge_agent.api.token import TOKEN, api_token


def test_the_token_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    token = api_token(tmp_path)
    assert len(token) >= 32
    assert api_token(tmp_path) == token
    assert stat.S_IMODE((tmp_path / TOKEN).stat().st_mode) == 0o600


def test_an_empty_file_is_no_token(tmp_path: Path) -> None:
    (tmp_path / TOKEN).write_text("\n")
    assert len(api_token(tmp_path)) >= 32
