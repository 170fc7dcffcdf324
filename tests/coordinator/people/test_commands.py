"""``llmos people`` against the coordinator's own application."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from coordinator.people.commands import people
from shared.errors import AccessDenied, ConfigError, RoundError
from shared.loopback import served
from tests.support.coordinator_api import TOKEN, Api


class Line:
    """The command line of who can read the admin token."""

    def __init__(self, url: str, home: Path) -> None:
        self.url = url
        self.home = home

    def run(self, *arguments: str) -> Any:
        environment = {"LLMOS_URL": self.url, "LLMOS_HOME": str(self.home), "COLUMNS": "200"}
        return CliRunner().invoke(people, list(arguments), env=environment)

    def text(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return str(result.stdout)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.text(*arguments, "--json"))


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    api = Api(tmp_path)
    yield api
    api.people.close()
    api.store.close()


@pytest.fixture
def line(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    monkeypatch.delenv("LLMOS_TOKEN", raising=False)
    (tmp_path / "admin.token").write_text(TOKEN)
    with served(api.app, 0, extra="coordinator") as port:
        yield Line(f"http://127.0.0.1:{port}", tmp_path)


def link_in(address: str, url: str) -> str:
    before, _, link = address.strip().partition("/console/#/login/")
    assert before == url
    return link


def test_from_the_first_link_to_the_last_account(api: Api, line: Line) -> None:
    link = link_in(line.text("link", "--first"), line.url)
    api.people.enter(link, "anna", "a sentence of mine", address="x").result(60)
    refused = line.run("link", "--first")
    assert isinstance(refused.exception, RoundError)
    assert "has an account already" in str(refused.exception)
    invited = line.run("invite", "bert@firm.example", "--role", "operator")
    assert invited.stdout.count("\n") == 1, "the link is alone on standard output"
    assert "it is good once, until 1970-01-04 00:16Z" in invited.stderr
    old = link_in(invited.stdout, line.url)
    made = line.json("link", "bert@firm.example")
    assert link_in(made["url"], line.url) == made["link"] != old
    with pytest.raises(AccessDenied):
        api.people.look_at(old)
    assert api.people.look_at(made["link"]).role == "operator"
    assert line.text("role", "bert@firm.example", "viewer") == "bert@firm.example is viewer\n"
    assert line.json("role", "bert@firm.example", "auditor")["role"] == "auditor"
    assert line.text("disable", "bert@firm.example") == "disabled bert@firm.example\n"
    listed = line.json("ls")
    assert [(each["name"], each["state"]) for each in listed] == [
        ("anna", "active"),
        ("bert@firm.example", "disabled"),
    ]
    shown = line.text("ls")
    for word in ("anna", "admin", "active", "1970-01-01 00:16Z", "auditor", "disabled", "-"):
        assert word in shown


def test_what_is_refused_is_one_sentence(api: Api, line: Line) -> None:
    for arguments in (["link"], ["link", "anna", "--first"]):
        refused = line.run(*arguments)
        assert isinstance(refused.exception, ConfigError)
        assert "one of the two" in str(refused.exception)
    for arguments in (["link", "no/body"], ["role", "no/body", "viewer"], ["disable", "no/body"]):
        refused = line.run(*arguments)
        assert isinstance(refused.exception, RoundError), arguments
    refused = line.run("invite", "Not A Name", "--role", "root")
    assert "name:" in str(refused.exception)
    assert "role:" in str(refused.exception)
    assert api.people.people() == []


def test_without_the_admin_token_there_is_no_link(line: Line) -> None:
    (line.home / "admin.token").write_text("something else")
    refused = line.run("link", "--first")
    assert isinstance(refused.exception, AccessDenied)
