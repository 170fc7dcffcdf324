"""``llmos backup`` and ``llmos restore``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.commands import DEFAULT_HOME, AsJson, Home

if TYPE_CHECKING:
    from coordinator.store.backup import Summary, Watch

backup = typer.Typer(add_completion=False)
restore = typer.Typer(add_completion=False)

StoreAt = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="LLMOS_STORE",
        help="postgresql://… with the rows; else the home has them.",
    ),
]


@backup.command()
def make(
    file: Annotated[Path, typer.Argument(help="The backup; it must not exist yet.")],
    home: Home = DEFAULT_HOME,
    store: StoreAt = "",
    as_json: AsJson = False,
) -> None:
    """Back a coordinator up, while it runs or not, into one file that holds its secrets."""
    from coordinator.store.backup import make_backup, note_backup

    with _progress() as watch:
        summary = make_backup(
            home.expanduser(), store_at=store, target=file, now=time.time(), watch=watch
        )
    note_backup(home.expanduser(), summary.made_at)
    _show(summary, f"backed up into {file}", as_json=as_json)


@restore.command()
def put_back(
    file: Annotated[Path, typer.Argument(help="What 'llmos backup' wrote.")],
    home: Home = DEFAULT_HOME,
    store: StoreAt = "",
    as_json: AsJson = False,
) -> None:
    """Make a coordinator out of a backup, in an empty folder and an empty database."""
    from coordinator.store.backup import restore_backup

    with _progress() as watch:
        summary = restore_backup(
            home.expanduser(), store_at=store, source=file, now=time.time(), watch=watch
        )
    _show(summary, f"restored into {home}", as_json=as_json)


def _show(summary: Summary, what: str, *, as_json: bool) -> None:
    from shared.crypto.identity import fingerprint

    made_at = datetime.fromtimestamp(summary.made_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    facts = {
        "coordinator": fingerprint(summary.coordinator),
        "made_at": made_at,
        "rows": summary.rows,
        "files": summary.files,
        "bytes": summary.bytes,
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(
        f"{what}: coordinator {facts['coordinator']} as of {made_at}, "
        f"{sum(summary.rows.values())} rows, {summary.files} files, {summary.bytes:,} bytes"
    )


@contextmanager
def _progress() -> Iterator[Watch]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total
        )
