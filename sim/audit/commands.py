"""The command that looks for what should not be there: ``llmos audit leak``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sim.interrupts import ended_by_signals

leak = typer.Typer(add_completion=False)


@leak.command()
def audit_for_leaks(
    context: typer.Context,
    scenario: Annotated[Path, typer.Argument(help="A scenario file.")],
    canaries: Annotated[int, typer.Option(min=20, max=100_000, help="Made-up records.")] = 1000,
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="The same without noise, too.")
    ] = True,
    data: Annotated[Path | None, typer.Option(help="Training examples.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Everything random follows it.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Another value for a key of the scenario.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Plant made-up records in a run, look for them, and say which ε that proves.

    Ends with exit code 1 when more was proved than the ledgers claim, or when the control
    without noise proves too little for the audit to mean anything.
    """
    from shared.logs import silence_logs
    from sim.audit.leak import audit_leak
    from sim.scenario import read_scenario
    from sim.simulation import Watch

    context.with_resource(ended_by_signals())
    silence_logs()
    chosen = {"path": str(data), "format": "auto", "test": ""} if data is not None else {}
    read = read_scenario(scenario, settings or [], data=chosen)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as progress:

        def watch(run: str) -> Watch:
            tasks: dict[str, Any] = {}

            def told(stage: str, done: int, of: int) -> None:
                if stage not in tasks:
                    tasks[stage] = progress.add_task(f"{run}: {stage}", total=of)
                progress.update(tasks[stage], completed=done, total=of)

            return told

        result = audit_leak(
            read,
            canaries=canaries,
            seed=read.seed if seed is None else seed,
            control=control,
            watch=watch,
        )
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _show(result, Console())
    if not result["passed"]:
        raise typer.Exit(1)


def _show(result: dict[str, Any], console: Console) -> None:
    table = Table(
        title=f"{result['scenario']}: {result['canaries']} canaries, δ = {result['delta']:g}"
    )
    for column in (
        "run",
        "ε claimed",
        "ε proved by canaries",
        "guessed right",
        "ε proved by loss threshold",
        "advantage",
        "accuracy",
    ):
        table.add_column(column)
    for name, key in ((f"{result['noise']} noise", "audited"), ("control: no noise", "control")):
        if key in result:
            found = result[key]
            table.add_row(
                name,
                str(found["epsilon_claimed"]),
                f"{found['epsilon_proved']:.2f}",
                f"{found['right']} of {found['guesses']}",
                f"{found['membership_epsilon_proved']:.2f}",
                f"{found['membership_advantage']:.3f}",
                f"{found['accuracy']:.3f}",
            )
    console.print(table)
    console.print("Bounds hold with 95 % confidence; one below the claim does not prove the claim.")
    if not result["within_claim"]:
        console.print("[bold]More was found than the ledgers claim: do not release this.[/bold]")
    elif not result["passed"]:
        console.print(
            "[bold]The control without noise hid nearly as well: this audit has no teeth.[/bold]"
        )
