"""Commands that measure: ``llmos bench``."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

bench = typer.Typer(help="Measurements, as a table or JSON.", no_args_is_help=True)


@bench.callback()
def about() -> None:
    """Measurements: ratios taken in one run on this machine."""


@bench.command("edge")
def measure_edge(
    base: Annotated[
        str, typer.Option(help="Encoder: a folder or hub id.")
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled texts (.csv, .jsonl); else the English support tickets."),
    ] = None,
    text_column: Annotated[str, typer.Option()] = "text",
    label_column: Annotated[str, typer.Option()] = "label",
    repeats: Annotated[int, typer.Option(min=10, help="Timed requests per length.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Answering on a device against torch: speed, agreement, cold start, adapter swaps.

    Ends with exit code 1 when a promised figure was not reached.
    """
    from shared.data_files import read_examples
    from shared.logs import silence_logs
    from sim.bench.edge import bench_edge

    silence_logs()
    shipped = importlib.resources.files("sim") / "tickets"
    with importlib.resources.as_file(shipped) as folder:
        if data is not None:
            examples = read_examples(data, text_column=text_column, label_column=label_column)
        else:
            # The default base reads English; on other texts its answers are a toss-up anyway.
            tickets = read_examples(folder / "tickets.csv", group_column="language")
            examples = [example for example in tickets if example.group == "en"]
    console = Console(stderr=True)
    with console.status("starting") as status:
        result = bench_edge(base, examples, repeats=repeats, progress=status.update)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _show(result)
    if not all(bar["holds"] for bar in result["bars"]):
        raise typer.Exit(1)


def _show(result: dict[str, Any]) -> None:
    table = Table("figure", "measured", "wanted", "")
    for bar in result["bars"]:
        sign = "≥" if bar["at_least"] else "≤"
        verdict = "yes" if bar["holds"] else "NO"
        table.add_row(bar["name"], f"{bar['measured']:g}", f"{sign} {bar['wanted']:g}", verdict)
    console = Console()
    console.print(table)
    for name, value in result["figures"].items():
        console.print(f"{name}: {value}")
