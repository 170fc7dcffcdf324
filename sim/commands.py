"""Commands that need both sides: ``llmos demo`` and ``llmos sim``."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from shared.files import disk_errors
from sim.interrupts import ended_by_signals

if TYPE_CHECKING:
    from sim.fleet_processes import FleetProcesses
    from sim.trackers import Trackers

demo = typer.Typer(add_completion=False)
sim = typer.Typer(help="Simulate a fleet of virtual devices.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print the report, for machines.")]
TensorBoard = Annotated[
    Path | None, typer.Option("--tensorboard", help="Also write TensorBoard event files here.")
]
WeightsAndBiases = Annotated[
    Path | None, typer.Option("--wandb", help="Also write an offline run for W&B here.")
]


class Noise(StrEnum):
    """Who adds the demo's noise."""

    LOCAL = "local"
    DISTRIBUTED = "distributed"


@demo.command()
def run_demo(
    devices: Annotated[int, typer.Option(min=2, max=50, help="Device processes.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Federated rounds.")] = 8,
    epsilon: Annotated[float, typer.Option(min=0.5, help="Privacy loss of the whole run.")] = 8.0,
    noise: Annotated[
        Noise, typer.Option(help="Added by every device for itself, or shared among all.")
    ] = Noise.LOCAL,
    data: Annotated[
        Path | None, typer.Option(help="Your own .csv or .jsonl instead of the support tickets.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column with the label.")] = "label",
    group_column: Annotated[
        str, typer.Option(help="Show accuracy apart by it; 'language' if there is one.")
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Split, cohorts and noise follow from it.")] = 1,
    out: Annotated[Path, typer.Option(help="Where report.html and report.json go.")] = Path(
        "runs/demo"
    ),
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")
    ] = False,
    tensorboard: TensorBoard = None,
    wandb: WeightsAndBiases = None,
    as_json: AsJson = False,
) -> None:
    """Start a coordinator, a key holder and devices as real processes: they learn, then answer."""
    from shared.logs import silence_logs
    from sim.demo import DemoOptions, tell
    from sim.trackers import Trackers

    silence_logs()
    trackers = Trackers(tensorboard, wandb)
    trackers.check()
    options = DemoOptions(
        devices=devices,
        rounds=rounds,
        epsilon=epsilon,
        noise=noise.value,
        data=data,
        text_column=text_column,
        label_column=label_column,
        group_column=group_column,
        seed=seed,
        out=out,
    )
    console = Console(stderr=as_json)

    def told(report: dict[str, Any], fleet: FleetProcesses | None = None) -> None:
        _tell(report, out / "report.json", trackers, console, as_json=as_json)
        if fleet is not None:
            _wait_with(fleet, console)

    with _ended_by_signals(), _progress(console) as progress:

        def kept(report: dict[str, Any], fleet: FleetProcesses) -> None:
            progress.stop()
            told(report, fleet)

        report = tell(options, progress, keep=kept if keep else None)
    if not keep:
        told(report)


@sim.command("run")
def run_simulation(
    scenario: Annotated[Path, typer.Argument(help="A scenario, a TOML file.")],
    out: Annotated[Path, typer.Option(help="Where report.html and report.json go.")] = Path(
        "runs/sim"
    ),
    data: Annotated[Path | None, typer.Option(help="Training examples.")] = None,
    test: Annotated[Path | None, typer.Option(help="Held-out examples.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column with the text.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with the label.")] = None,
    group_column: Annotated[str | None, typer.Option(help="Show accuracy apart by it.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Everything random follows it.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another value for a key: --set privacy.noise=none"),
    ] = None,
    tensorboard: TensorBoard = None,
    wandb: WeightsAndBiases = None,
    as_json: AsJson = False,
) -> None:
    """Run a scenario on virtual time with the very code that runs on devices."""
    from shared.logs import silence_logs
    from sim.report import write_report
    from sim.scenario import read_scenario
    from sim.simulation import simulate
    from sim.trackers import Trackers

    silence_logs()
    trackers = Trackers(tensorboard, wandb)
    trackers.check()
    named = {
        "path": str(data) if data else None,
        "test": str(test) if test else None,
        "text_column": text_column,
        "label_column": label_column,
        "group_column": group_column,
    }
    chosen: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if data is not None:
        # The scenario's format and test set belong to the scenario's own file.
        chosen = {"format": "auto", "test": ""} | chosen
    read = read_scenario(scenario, settings or [], data=chosen)
    console = Console(stderr=as_json)
    with _writable(out), _ended_by_signals(), _progress(console) as progress:
        tasks: dict[str, Any] = {}

        def watch(stage: str, done: int, of: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    progress.update(task, completed=progress.tasks[task].total)
                tasks[stage] = progress.add_task(stage, total=of)
            progress.update(tasks[stage], completed=done, total=of)

        report = simulate(read, seed=read.seed if seed is None else seed, watch=watch)
    path = write_report(report, out)
    _tell(report, path, trackers, console, as_json=as_json)


@sim.command("report")
def show(
    folder: Annotated[Path, typer.Argument(help="A folder with report.json.")] = Path("runs/sim"),
    html: Annotated[bool, typer.Option("--html", help="Make report.html anew.")] = False,
) -> None:
    """Show the report of an earlier simulation or demonstration."""
    from shared.errors import DataError
    from sim.html_report import write_html
    from sim.tables import show_report

    path = folder / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is no {path}: run 'llmos sim run' or 'llmos demo' first") from None
    except ValueError as err:
        raise DataError(f"{path} is not a report: {err}") from err
    console = Console()
    show_report(report, console)
    page = write_html(report, folder) if html else folder / "report.html"
    if page.exists():
        console.print(f"\nThe same with plots: [bold]{escape(str(page))}[/bold]")
    else:
        console.print("\nThe same with plots: add --html")


def _tell(
    report: dict[str, Any], path: Path, trackers: Trackers, console: Console, *, as_json: bool
) -> None:
    """Print a finished run's report, and write it in every form that is wanted."""
    from sim.html_report import write_html
    from sim.tables import show_report

    page = write_html(report, path.parent)
    tracked = trackers.write(report)
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False))
        return
    show_report(report, console)
    console.print(f"\nThe same with plots: [bold]{escape(str(page))}[/bold]")
    for folder in tracked:
        console.print(f"For a tracker: [bold]{escape(str(folder))}[/bold]")
    console.print(f"The same numbers for machines: [bold]{escape(str(path))}[/bold]")


def _wait_with(fleet: FleetProcesses, console: Console) -> None:
    """Say how to talk to what runs, and wait for Ctrl-C.

    Raises:
        ChildDied: a process ended by itself.
    """
    coordinator = fleet.home("coordinator")
    device = next(iter(fleet.devices))
    url = json.loads((fleet.home(device) / "ready.json").read_text())["url"]
    console.print(f"\nEverything keeps running. Ask {device}:")
    console.print(
        f"  llmos edge ask 'Where is my parcel?' --home {fleet.home(device)}", style="bold"
    )
    console.print(f"its API: {url}/v1, token in {fleet.home(device) / 'api.token'}")
    console.print(
        f"the coordinator's API: {fleet.ready['url']}/v1, token in {coordinator / 'admin.token'}"
    )
    console.print("Ctrl-C ends it.")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            fleet.check()
            time.sleep(0.5)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


@contextlib.contextmanager
def _writable(out: Path) -> Iterator[None]:
    """Make sure *before* the work that its result can be written; leave nothing if it fails."""
    made = not out.exists()
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    try:
        yield
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                out.rmdir()
        raise


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end this and everything that it started, and say so."""
    with ended_by_signals():
        try:
            yield
        except KeyboardInterrupt:
            sys.stderr.write("\ninterrupted: every process was ended, no report was written\n")
            raise
