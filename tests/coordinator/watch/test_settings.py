"""``watch.toml``: what it changes, and every mistake in it at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.watch.rules import RULES
from coordinator.watch.settings import Watching, read_watching
from shared.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "watch.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_all_rules_count_and_nothing_is_put_into_quarantine(tmp_path: Path) -> None:
    settings = read_watching(tmp_path, None)
    assert settings == Watching()
    assert settings.effective() == RULES
    assert (settings.webhook, settings.quarantine_devices, settings.quarantine_keys) == (
        "",
        False,
        False,
    )


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    written(
        tmp_path,
        """
        [watch]
        webhook = "https://alarms.example/llmos"
        quarantine_devices = true
        [watch.rules]
        replays = {on = false}
        bad-signatures = {count = 1, window_s = 5.0}
        """,
    )
    settings = read_watching(tmp_path, None)
    assert settings.webhook == "https://alarms.example/llmos"
    assert settings.quarantine_devices
    rules = settings.effective()
    assert "replays" not in rules
    assert (rules["bad-signatures"].count, rules["bad-signatures"].window_s) == (1, 5.0)
    assert rules["undecodable"] == RULES["undecodable"]


def test_a_file_that_is_named_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_watching(tmp_path, tmp_path / "other.toml")


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        [watch]
        webhok = "x"
        webhook = "http://alarms.example"
        [watch.rules]
        repleys = {on = false}
        undecodable = {count = 0}
        """,
    )
    with pytest.raises(ConfigError) as caught:
        read_watching(tmp_path, path)
    told = str(caught.value)
    assert "watch.webhok: unknown, did you mean webhook?" in told
    assert "watch.rules.undecodable.count" in told
    assert "http:// is only for this machine itself" in told
    assert "rules.repleys: there is no such rule" in told


@pytest.mark.parametrize(
    ("url", "fits"),
    [
        ("https://alarms.example/llmos?team=1", True),
        ("http://127.0.0.1:8080/x", True),
        ("http://[::1]:8080/x", True),
        ("http://localhost/x", True),
        ("http://127.0.0.1.example/x", False),
        ("http://10.0.0.1/x", False),
        ("ftp://127.0.0.1/x", False),
        ("https:///x", False),
        ("https://user:secret@alarms.example/", False),
        ("https://alarms.example/#x", False),
        ("https://alarms.example:99999/", False),
        ("https://alarms.example/\tx", False),
        ("alarms.example", False),
    ],
)
def test_an_address_is_https_or_on_this_machine(url: str, fits: bool) -> None:
    assert bool(list(Watching(webhook=url).contradictions())) is not fits
