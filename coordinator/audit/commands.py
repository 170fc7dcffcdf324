"""Commands for auditors: ``llmos audit verify``, ``show``, ``export``, ``checkpoint``.

They read files only: a copy of the log is as good as the log, and no coordinator is needed.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from coordinator.audit.chain import Action, Checkpoint, Record
from coordinator.audit.verify import LOG, Verdict, read_newest, records_of, verify_log
from shared.crypto.identity import Identity, fingerprint, format_public, parse_public
from shared.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from shared.types import PublicKey

verify = typer.Typer(add_completion=False)
show = typer.Typer(add_completion=False)
export = typer.Typer(add_completion=False)
checkpoint = typer.Typer(add_completion=False)

Where = Annotated[
    Path | None, typer.Argument(help="The log or its folder; else the one in --home.")
]
Home = Annotated[Path, typer.Option(envvar="LLMOS_HOME", help="The coordinator's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]

DEFAULT_HOME = Path("~/.llmos/coordinator")


@verify.command()
def verify_the_log(
    where: Where = None,
    home: Home = DEFAULT_HOME,
    against: Annotated[
        str, typer.Option(help="A line of 'llmos audit checkpoint' that was kept.")
    ] = "",
    public_key: Annotated[
        str, typer.Option(help="The coordinator's; for the log in --home it is known.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Check every record and signature. Ends with exit code 1 when the log is not whole."""
    path = _log(where, home)
    kept = Checkpoint.from_line(against) if against else None
    key = parse_public(public_key) if public_key else None
    if key is None and where is None:
        key = _key_of(home)
    with Progress(
        TextColumn("reading"), BarColumn(), TaskProgressColumn(), console=Console(stderr=True)
    ) as progress:
        task = progress.add_task("", total=path.stat().st_size if path.exists() else None)
        verdict = verify_log(
            path, key=key, against=kept, progress=lambda at: progress.update(task, completed=at)
        )
        progress.update(task, visible=False)
    if as_json:
        typer.echo(json.dumps(_verdict(verdict)))
    else:
        _tell(path, verdict, against=kept)
    if not verdict.whole:
        raise typer.Exit(1)


@show.command()
def show_the_log(
    where: Where = None,
    home: Home = DEFAULT_HOME,
    since: Annotated[
        str, typer.Option(help="Only from then on: 2026-01-31 or 2026-01-31T13:00, UTC.")
    ] = "",
    actor: Annotated[str, typer.Option(help="Only what this one did.")] = "",
    action: Annotated[str, typer.Option(help="Only this.")] = "",
    run: Annotated[str, typer.Option(help="Only about this run and its rounds.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="The newest so many; 0: all.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show who did what, oldest first. Ends with an error where the log is damaged."""
    if action and action not in list(Action):
        problem = f"--action: {action!r} is none; there are {', '.join(Action)}"
        raise ConfigError([problem], source="options")
    begin = _seconds(since)

    def is_wanted(record: Record) -> bool:
        entry = record.entry
        return (
            record.at >= begin
            and actor in ("", entry.actor)
            and action in ("", entry.action)
            and (not run or _is_about(record, run))
        )

    records: Iterable[Record] = filter(is_wanted, records_of(_log(where, home)))
    if limit:
        records = deque(records, maxlen=limit)
    if as_json:
        for record in records:
            typer.echo(json.dumps(record.to_json()))
        return
    table = Table("number", "at", "actor", "action", "subject", "facts")
    for record in records:
        entry = record.entry
        facts = " ".join(f"{name}={_short(value)}" for name, value in entry.facts.items())
        cells = (record.number, _time(record.at), entry.actor, entry.action, entry.subject, facts)
        table.add_row(*(escape(str(cell)) for cell in cells))
    Console().print(table)


@export.command()
def export_the_log(
    where: Where = None,
    home: Home = DEFAULT_HOME,
    out: Annotated[Path | None, typer.Option(help="Into this file, which must be new.")] = None,
) -> None:
    """Print the log as JSON lines, each record checked before it is printed."""
    lines = (record.to_line() for record in records_of(_log(where, home)))
    if out is None:
        for line in lines:
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        return
    try:
        with out.open("xb") as file:
            _write_all(file.write, lines, out)
    except OSError as err:
        raise StorageError(f"cannot write {out}: {err.strerror}") from err


@checkpoint.command()
def newest_checkpoint(
    where: Where = None, home: Home = DEFAULT_HOME, as_json: AsJson = False
) -> None:
    """Print the newest checkpoint as a line to keep, for 'llmos audit verify --against'."""
    folder = _log(where, home).parent
    try:
        newest = read_newest(folder)
    except OSError as err:
        raise ConfigError([f"{folder}: {err.strerror}"], source="audit log") from err
    if newest is None:
        raise ConfigError([f"{folder}: there is no checkpoint"], source="audit log")
    typer.echo(json.dumps(_checkpoint(newest)) if as_json else newest.to_line())


def _log(where: Path | None, home: Path) -> Path:
    path = where if where is not None else home.expanduser() / "audit"
    return path / LOG if path.is_dir() or where is None else path


def _key_of(home: Path) -> PublicKey | None:
    """The public key of the coordinator in ``home``, for whoever may read its identity."""
    path = home.expanduser() / "identity.key"
    try:
        return Identity.load(path).public if path.exists() else None
    except StorageError:
        return None


def _write_all(write: Any, lines: Iterator[bytes], out: Path) -> None:
    """Write every line; a file that would end early is removed."""
    try:
        for line in lines:
            write(line)
    except BaseException:
        out.unlink(missing_ok=True)
        raise


def _tell(path: Path, verdict: Verdict, *, against: Checkpoint | None) -> None:
    typer.echo(f"{path}: {verdict.records} records, {verdict.checkpoints} checkpoints")
    if verdict.newest is not None:
        whose = "the key that was given" if verdict.pinned else "a key that you should compare"
        typer.echo(f"signed by {fingerprint(verdict.newest.key)}, {whose}")
    if not verdict.whole:
        place = f"record {verdict.bad_record}: " if verdict.bad_record else ""
        typer.echo(f"NOT WHOLE: {place}{verdict.problem}")
        return
    if against is not None:
        typer.echo(f"it still contains the checkpoint after record {against.number}")
    typer.echo("whole")
    if verdict.uncovered:
        typer.echo(
            f"the last {verdict.uncovered} records are not signed yet: whoever can write the file "
            "could have changed or removed records after the newest checkpoint"
        )
    if verdict.compared == 0:
        typer.echo(
            "no checkpoint was compared, neither beside the log nor --against: that nothing was "
            "cut off at the end is not shown"
        )


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "whole": verdict.whole,
        "problem": verdict.problem,
        "bad_record": verdict.bad_record,
        "records": verdict.records,
        "last_hash": verdict.last_hash,
        "checkpoints": verdict.checkpoints,
        "uncovered": verdict.uncovered,
        "newest": _checkpoint(verdict.newest) if verdict.newest is not None else None,
        "pinned": verdict.pinned,
        "compared": verdict.compared,
    }


def _checkpoint(newest: Checkpoint) -> dict[str, Any]:
    return {
        "number": newest.number,
        "at": newest.at,
        "hash": newest.hash,
        "key": format_public(newest.key),
        "fingerprint": fingerprint(newest.key),
        "line": newest.to_line(),
    }


def _is_about(record: Record, run: str) -> bool:
    """Whether this is about a run or a round of it, and not about a key of the same name."""
    action, subject = record.entry.action, record.entry.subject
    if action is Action.NOT_DONE:
        return subject == run
    about_runs = action.startswith(("run-", "round-", "sum-", "release-"))
    return about_runs and (subject == run or subject.startswith(f"{run}/"))


def _seconds(since: str) -> float:
    if not since:
        return 0.0
    try:
        at = datetime.fromisoformat(since)
    except ValueError as err:
        problem = f"--since: {since!r} is no time, such as 2026-01-31 or 2026-01-31T13:00"
        raise ConfigError([problem], source="options") from err
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


def _time(at: int) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(at)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:12]}…"
