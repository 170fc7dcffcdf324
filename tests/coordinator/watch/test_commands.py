"""``llmos alarms`` over HTTP, as a person and a machine read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typer.testing import CliRunner

from coordinator.store.alarms import QUARANTINED, Alarm
from coordinator.watch.commands import alarms
from shared.loopback import served
from tests.support.coordinator_api import TOKEN, Api


def hanging_up(app: ASGIApp) -> ASGIApp:
    """Ends every connection: a command's own end does that otherwise."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def close(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await app(scope, receive, close)

    return wrapped


@pytest.fixture
def where(tmp_path: Path) -> Iterator[tuple[Api, list[str]]]:
    api = Api(tmp_path)
    (tmp_path / "admin.token").write_text(TOKEN)
    with served(hanging_up(api.app), 0, extra="coordinator") as port:
        yield api, ["--home", str(tmp_path), "--url", f"http://127.0.0.1:{port}"]
    api.usage.close()
    api.store.close()


def raised(api: Api, rule: str = "device-refused", action: str = QUARANTINED) -> int:
    alarm = Alarm(0, rule, "warning", "device", "kitchen", "[red]odd", 4, 5, 6, action)
    return api.store.alarms.add(alarm).id


def test_what_nobody_acknowledged_is_listed(where: tuple[Api, list[str]]) -> None:
    api, options = where
    first, second = raised(api), raised(api)
    api.store.alarms.acknowledge(first, "anna", now=9.0)
    listed = CliRunner(env={"COLUMNS": "200"}).invoke(alarms, ["ls", *options])
    assert listed.exit_code == 0, listed.output
    (line,) = [line for line in listed.output.splitlines() if "device-refused" in line]
    for text in (str(second), "device kitchen", "quarantined", "[red]odd", "1970-01-01 00:00:06Z"):
        assert text in line
    whole = CliRunner().invoke(alarms, ["ls", "--all", "--json", *options])
    assert [each["id"] for each in json.loads(whole.output)] == [second, first]


def test_several_are_acknowledged_and_what_is_wrong_is_named(
    where: tuple[Api, list[str]],
) -> None:
    api, options = where
    numbers = [str(raised(api)) for _ in range(2)]
    done = CliRunner().invoke(alarms, ["acknowledge", numbers[0], "999", numbers[1], *options])
    assert done.exit_code == 1
    assert "999: there is no alarm 999" in done.output
    assert api.store.alarms.count_open() == 0
    again = CliRunner().invoke(alarms, ["acknowledge", numbers[0], "--json", *options])
    assert again.exit_code == 0
    assert json.loads(again.output)[0]["acknowledged_by"] == "admin"
