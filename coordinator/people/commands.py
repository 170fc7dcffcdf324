"""``llmos people``: who can log in."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coordinator.commands import DEFAULT_HOME, DEFAULT_URL, AsJson, Client, Home, Url
from shared.errors import ConfigError

people = typer.Typer(help="Who can log in.", no_args_is_help=True)

Role = Annotated[str, typer.Option(help="caller (asks models), viewer, auditor, operator, admin.")]


@people.command("ls")
def list_people(home: Home = DEFAULT_HOME, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List everybody who was ever invited."""
    with closing(Client.of_home(home, url)) as client:
        found = client.items("/api/v1/people")
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table("name", "role", "state", "since", "last login")
    for person in found:
        last = _as_time(person["last_login_at"]) if person["last_login_at"] is not None else "-"
        cells = (person["name"], person["role"], person["state"], _as_time(person["created_at"]))
        table.add_row(*(escape(cell) for cell in (*cells, last)))
    Console().print(table)


@people.command("invite")
def invite(
    name: str,
    role: Role = "viewer",
    home: Home = DEFAULT_HOME,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Invite somebody, and print the one-time link to send."""
    with closing(Client.of_home(home, url)) as client:
        made = client.post("/api/v1/people", {"name": name, "role": role})
    _print_link(made, url, as_json=as_json)


@people.command("link")
def make_link(
    name: Annotated[str, typer.Argument(help="Whose password is to be set.")] = "",
    first: Annotated[
        bool, typer.Option("--first", help="For the first account, while there is none.")
    ] = False,
    home: Home = DEFAULT_HOME,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Print another one-time link; earlier ones of the same person open nothing any more."""
    if bool(name) is first:
        raise ConfigError(["name somebody, or use --first: one of the two"], source="options")
    path = "session/first" if first else f"people/{quote(name, safe='')}/link"
    with closing(Client.of_home(home, url)) as client:
        made = client.post(f"/api/v1/{path}", {})
    _print_link(made, url, as_json=as_json)


@people.command("role")
def set_role(
    name: str, role: str, home: Home = DEFAULT_HOME, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Give somebody another role, from the next request on."""
    path = f"/api/v1/people/{quote(name, safe='')}/role"
    with closing(Client.of_home(home, url)) as client:
        person = client.put(path, {"role": role})
    typer.echo(json.dumps(person) if as_json else f"{person['name']} is {person['role']}")


@people.command("disable")
def disable(
    name: str, home: Home = DEFAULT_HOME, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Let somebody in no more; all sessions end. A new link lets in again."""
    with closing(Client.of_home(home, url)) as client:
        gone = client.delete(f"/api/v1/people/{quote(name, safe='')}")
    typer.echo(json.dumps(gone) if as_json else f"disabled {name}")


def _print_link(made: dict[str, Any], url: str, *, as_json: bool) -> None:
    address = f"{url.rstrip('/')}/console/#/login/{made['link']}"
    if as_json:
        typer.echo(json.dumps(made | {"url": address}))
        return
    typer.echo(address)
    typer.echo(f"it is good once, until {_as_time(made['expires_at'])}", err=True)


def _as_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%MZ")
