"""``llmos alarms``: what the coordinator found, and that somebody has looked at it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coordinator.commands import DEFAULT_HOME, DEFAULT_URL, AsJson, Client, Home, Url
from shared.errors import LlmOsError

alarms = typer.Typer(help="What the coordinator's rules found.", no_args_is_help=True)


@alarms.command("ls")
def list_alarms(
    every: Annotated[
        bool, typer.Option("--all", help="Also those that somebody has acknowledged.")
    ] = False,
    home: Home = DEFAULT_HOME,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List alarms, newest first; those that nobody has acknowledged."""
    asked = "/api/v1/alarms" if every else "/api/v1/alarms?open=true"
    found = Client.of_home(home, url).items(asked)
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table("id", "severity", "rule", "about", "times", "last", "done", "detail")
    for alarm in found:
        subject = alarm["subject"]
        about = f"{subject['kind']} {subject['name']}".strip()
        cells = (alarm["id"], alarm["severity"], alarm["rule"], about, alarm["count"])
        more = (_as_time(alarm["last_at"]), _done(alarm), alarm["detail"])
        table.add_row(*(escape(str(cell)) for cell in (*cells, *more)))
    Console().print(table)


def _done(alarm: dict[str, Any]) -> str:
    seen = f"seen by {alarm['acknowledged_by']}" if alarm["acknowledged_by"] else ""
    quarantined = "quarantined" if alarm["action"] == "quarantined" else ""
    return ", ".join(each for each in (quarantined, seen) if each) or "-"


def _as_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


@alarms.command("acknowledge")
def acknowledge(
    numbers: Annotated[list[int], typer.Argument(metavar="ID...", help="As ls shows them.")],
    home: Home = DEFAULT_HOME,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Say that somebody has looked at these; if it is seen again, it is another alarm."""
    client = Client.of_home(home, url)
    done, failed = [], []
    for number in numbers:
        try:
            done.append(client.post(f"/api/v1/alarms/{number}/acknowledge", {}))
        except LlmOsError as err:
            failed.append(err)
            typer.echo(f"{number}: {err}", err=True)
        else:
            if not as_json:
                typer.echo(f"acknowledged {number}")
    if as_json:
        typer.echo(json.dumps(done))
    if failed:
        raise typer.Exit(1)
