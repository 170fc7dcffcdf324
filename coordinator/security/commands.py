"""``llmos audit security``: is this installation safe as it stands, and what is to be done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coordinator.commands import DEFAULT_HOME, AsJson, Home
from coordinator.security.findings import Finding
from shared.errors import ProtocolError

security = typer.Typer(add_completion=False)


@security.command()
def check_security(
    home: Home = DEFAULT_HOME,
    store: Annotated[
        str,
        typer.Option(envvar="LLMOS_STORE", help="postgresql://… with the rows; else the home."),
    ] = "",
    certificate: Annotated[
        list[Path] | None,
        typer.Option(help="A PEM file with TLS certificates to look at; may be repeated."),
    ] = None,
    online: Annotated[
        bool,
        typer.Option("--online", help="Ask osv.dev for advisories: names and versions are sent."),
    ] = False,
    osv: Annotated[
        str, typer.Option(envvar="LLMOS_OSV", help="Another address with OSV's API.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Check a coordinator's installation. Ends with exit code 1 if something is to be done."""
    from coordinator.security import advisories
    from coordinator.security.checks import check
    from coordinator.security.gather import gather

    facts = gather(home.expanduser(), store_at=store, certificates=certificate or ())
    if online:
        try:
            found = advisories.ask(facts.libraries, url=osv or advisories.OSV)
            facts = replace(facts, advisories=tuple(found))
        except ProtocolError as err:
            facts = replace(facts, unread=(*facts.unread, ("advisories", str(err))))
    findings = check(facts)
    to_be_done = [finding for finding in findings if finding.is_to_be_acted_on]
    if as_json:
        typer.echo(json.dumps({"findings": [finding.to_json() for finding in findings]}))
    else:
        _show(findings)
        typer.echo(f"{len(to_be_done)} to be acted on, {len(findings) - len(to_be_done)} notes")
    if to_be_done:
        raise typer.Exit(1)


def _show(findings: Sequence[Finding]) -> None:
    if not findings:
        return
    table = Table("severity", "code", "about", "what was seen", "what to do")
    for one in findings:
        cells = (one.severity, one.code, one.subject, one.detail, one.advice)
        table.add_row(*(escape(str(cell)) for cell in cells))
    Console().print(table)
