"""Commands that measure: ``llmos bench``."""

from __future__ import annotations

import importlib.resources
import json
import os
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from shared.errors import ConfigError
from sim.interrupts import ended_by_signals

bench = typer.Typer(help="Measurements, as a table or JSON.", no_args_is_help=True)


@bench.callback()
def about(context: typer.Context) -> None:
    """Measurements: ratios taken in one run on this machine."""
    context.with_resource(ended_by_signals())


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


@bench.command("robustness")
def measure_robustness(
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled texts; else the English support tickets."),
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="auto, csv, jsonl or splits, as in a scenario.")
    ] = "auto",
    text_column: Annotated[str, typer.Option()] = "text",
    label_column: Annotated[str, typer.Option()] = "label",
    base: Annotated[
        str, typer.Option(help="Encoder: a folder or hub id.")
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    devices: Annotated[int, typer.Option(min=15, max=200, help="Of every simulation.")] = 36,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Of every simulation.")] = 10,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Simulations per figure.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Hostile devices against every server rule: accuracy, and the share at which each rule fails.

    Ends with exit code 1 when the mean, the control, withstood scaled updates: no attack then.
    """
    from shared.config import read
    from shared.logs import silence_logs
    from sim.bench.robustness import bench_robustness
    from sim.scenario import DataTable

    silence_logs()
    columns = {"text_column": text_column, "label_column": label_column}
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as folder:
        path = str(data or _english_tickets(Path(folder)))
        table = read(DataTable, {"path": path, "format": format_} | columns, source="options")
        with console.status("reading") as status:
            result = bench_robustness(
                table,
                base=base,
                devices=devices,
                rounds=rounds,
                seeds=seeds,
                progress=status.update,
            )
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _show_robustness(result)
    if not all(bar["holds"] for bar in result["bars"]):
        raise typer.Exit(1)


class Device(StrEnum):
    """Where a language model is computed."""

    CPU = "cpu"
    CUDA = "cuda"


class Shape(StrEnum):
    """Builds with random weights."""

    SMALL = "qwen2-53m"
    MIDDLE = "qwen2-1.5b"
    LARGE = "llama-8b"


@bench.command("serving")
def measure_serving(
    shape: Annotated[Shape, typer.Option(help="Build of the model; weights are random.")] = (
        Shape.SMALL
    ),
    concurrency: Annotated[str, typer.Option(help="Requests at once, with commas.")] = "1,4,16",
    precision: Annotated[
        str, typer.Option(help="Of our engine's weights on the processor, with commas.")
    ] = "fp32,int4",
    device: Annotated[Device, typer.Option(help="Where it is computed.")] = Device.CPU,
    threads: Annotated[int, typer.Option(min=0, help="Arithmetic threads; 0: every core.")] = 0,
    turns: Annotated[int, typer.Option(min=1, help="How often each way is measured.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and requests.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Our engine against generate, a static batch, and transformers' continuous batching.

    Ends with exit code 1 when a promised figure was not reached.
    """
    from shared.logs import silence_logs
    from sim.bench.serving import bench_serving

    silence_logs()
    console = Console(stderr=True)
    with console.status("starting") as status:
        result = bench_serving(
            shape.value,
            concurrency=_numbers("--concurrency", concurrency),
            precisions=[part.strip() for part in precision.split(",")],
            device=device.value,
            threads=threads or os.cpu_count() or 1,
            turns=turns,
            seed=seed,
            progress=status.update,
        )
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _show_serving(result)
    if not all(bar["holds"] for bar in result["bars"]):
        raise typer.Exit(1)


def _numbers(option: str, text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ConfigError([f"{option}: {text!r} is not a list of numbers"], source="options")
    return found


def _show_serving(result: dict[str, Any]) -> None:
    table = Table("way", "at once", "tokens/s", "first token, p50 / p99 in s")
    for row in result["rows"]:
        first = row.get("first_token_s")
        told = f"{first['p50']:.3f} / {first['p99']:.3f}" if first else "-"
        table.add_row(row["way"], str(row["concurrency"]), f"{row['tokens_per_s']:.1f}", told)
    Console().print(table)
    _show_bars(result)


def _english_tickets(folder: Path) -> Path:
    """The shipped support tickets in the language that the default base reads."""
    from shared.data_files import read_examples

    with importlib.resources.as_file(importlib.resources.files("sim") / "tickets") as shipped:
        tickets = read_examples(shipped / "tickets.csv", group_column="language")
    path = folder / "tickets.jsonl"
    rows = ({"text": e.text, "label": e.label} for e in tickets if e.group == "en")
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def _show_robustness(result: dict[str, Any]) -> None:
    console = Console()
    shares = ("0", *(f"{share:g}" for share in result["shown"]))
    for adversary in sorted({row["adversary"] for row in result["rows"]}):
        table = Table("rule", "compares", "f", title=adversary, title_justify="left")
        for heading in (*(f"{float(share):.0%}" for share in shares), "fails from"):
            table.add_column(heading, justify="right")
        for row in (row for row in result["rows"] if row["adversary"] == adversary):
            fails = row["fails_from"]
            table.add_row(
                row["rule"],
                f"{row['compared']} {row['over']}",
                "-" if row["malicious"] is None else str(row["malicious"]),
                *(f"{row['accuracy'][share]:.3f}" for share in shares),
                f"{fails:.0%}" if fails is not None else f"above {row['holds_to']:.0%}",
            )
        console.print(table)
    console.print(
        f"accuracy after {result['rounds']} rounds of {result['devices']} devices, mean over the "
        f"seeds 1 to {result['seeds']}; central, all honest: {result['accuracy_central']:.3f}"
    )
    _show_bars(result)


@bench.command("accountant")
def measure_accountant(
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Our ε against Opacus' and Google's accountants (extra 'bench'), over a grid of settings.

    Ends with exit code 1 when a promised figure was not reached.
    """
    from shared.logs import silence_logs
    from sim.bench.accountant import bench_accountant

    silence_logs()
    with Console(stderr=True).status("starting") as status:
        result = bench_accountant(progress=status.update)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _show_accountant(result)
    if not all(bar["holds"] for bar in result["bars"]):
        raise typer.Exit(1)


def _show_accountant(result: dict[str, Any]) -> None:
    table = Table("noise", "sampling", "steps", "δ")
    accountants = {
        "ours": "ours",
        "opacus_rdp": "Opacus RDP",
        "dp_accounting_rdp": "Google RDP",
        "opacus_prv": "Opacus PRV",
        "dp_accounting_pld": "Google PLD",
    }
    for heading in accountants.values():
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        table.add_row(
            *(f"{row[name]:g}" for name in ("noise_multiplier", "sample_rate", "steps", "delta")),
            *("-" if row[name] is None else f"{row[name]:.4g}" for name in accountants),
        )
    Console().print(table)
    _show_bars(result)


class Shapes(StrEnum):
    """What an update consists of."""

    ONE = "one"
    RESNET20 = "resnet20"


@bench.command("secure-sum")
def measure_secure_sum(
    values: Annotated[int, typer.Option(min=1, help="Values of an update.")] = 1_000_000,
    clients: Annotated[int, typer.Option(min=2, max=240, help="Updates in the sum.")] = 4,
    shapes: Annotated[
        Shapes, typer.Option(help="One array of --values, or the tensors of a model.")
    ] = Shapes.ONE,
    bits: Annotated[
        list[int] | None, typer.Option(help="Width of ours: 8, 12 or 16; may be repeated.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are told.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Encrypted sums against NVFlare's (extra 'bench'): bytes, processor time, error.

    Ends with exit code 1 when a promised figure was not reached or not measured.
    """
    from shared.logs import silence_logs
    from shared.privacy.quantiser import WIDTHS
    from sim.bench.secure_sum import bench_secure_sum

    silence_logs()
    odd = [width for width in bits or () if width not in WIDTHS]
    if odd:
        raise ConfigError(
            [f"--bits {width}: must be 8, 12 or 16" for width in odd], source="options"
        )
    console = Console(stderr=True)
    with console.status("starting") as status:
        result = bench_secure_sum(
            values=values,
            clients=clients,
            shapes=shapes,
            bits=sorted(set(bits or WIDTHS)),
            repeats=repeats,
            progress=status.update,
        )
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _show_secure_sum(result)
    if result["nvflare"] is None:
        typer.echo("NVFlare is not here: 'llmos[bench]' brings what is compared with", err=True)
    if not all(bar["holds"] for bar in result["bars"]):
        raise typer.Exit(1)


def _show_secure_sum(result: dict[str, Any]) -> None:
    table = Table("scheme", "bytes a value", "encrypt", "digest", "aggregate", "open", "max error")
    for name, scheme in result["schemes"].items():
        seconds = scheme["cpu_s_per_million"]
        table.add_row(
            name,
            f"{scheme['bytes_per_value']:.2f}",
            *(
                f"{seconds[s]:.3f}" if s in seconds else "-"
                for s in ("encrypt", "digest", "aggregate", "open")
            ),
            f"{scheme['max_error_of_mean']:.1e}",
        )
    console = Console()
    console.print(table)
    console.print("processor seconds per million values; aggregating per client")
    for name, ratios in result["ratios"].items():
        told = ", ".join(f"{what} {ratio:g}x" for what, ratio in ratios.items())
        console.print(f"{name} against NVFlare: {told}")
    _show_bars(result)


@bench.command("overload")
def measure_overload(
    seconds: Annotated[
        float, typer.Option(min=1, max=3600, help="How long more is offered.")
    ] = 60.0,
    factor: Annotated[
        float, typer.Option(min=1.5, max=100, help="How much more than it can answer.")
    ] = 5.0,
    concurrency: Annotated[
        int, typer.Option(min=1, max=10_000, help="Requests under way at once, at most.")
    ] = 400,
    max_tokens: Annotated[int, typer.Option(min=1, max=4096, help="Of every answer.")] = 16,
    model: Annotated[
        str, typer.Option(help="What is served: a folder or hub id; else a stand-in is trained.")
    ] = "",
    url: Annotated[str, typer.Option(help="A server that runs already, without /v1.")] = "",
    key: Annotated[str, typer.Option(help="An API key or token for it.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Several times as many requests as a server can answer: it must live, and refuse well.

    Ends with exit code 1 when something was not as promised.
    """
    from shared.logs import silence_logs
    from sim.bench.overload import bench_overload

    silence_logs()
    with Console(stderr=True).status("starting") as status:
        result = bench_overload(
            seconds=seconds,
            factor=factor,
            concurrency=concurrency,
            max_tokens=max_tokens,
            model=model,
            url=url.rstrip("/").removesuffix("/v1"),
            key=key,
            progress=status.update,
        )
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _show(result)
    if not all(bar["holds"] for bar in result["bars"]):
        raise typer.Exit(1)


def _show(result: dict[str, Any]) -> None:
    _show_bars(result)
    for name, value in result["figures"].items():
        Console().print(f"{name}: {value}")


def _show_bars(result: dict[str, Any]) -> None:
    table = Table("figure", "measured", "wanted", "")
    for bar in result["bars"]:
        sign = "≥" if bar["at_least"] else "≤"
        verdict = "yes" if bar["holds"] else "NO"
        measured = "not measured" if bar["measured"] is None else f"{bar['measured']:g}"
        table.add_row(bar["name"], measured, f"{sign} {bar['wanted']:g}", verdict)
    Console().print(table)


@bench.command("management")
def measure_management(
    devices: Annotated[int, typer.Option(min=1, help="That joined.")] = 1000,
    keys: Annotated[int, typer.Option(min=1, help="For the API.")] = 1000,
    rows: Annotated[int, typer.Option(min=100, help="Of one run's rounds, in hundreds.")] = 10_000,
    records: Annotated[int, typer.Option(min=2, help="Of a log that is verified.")] = 10_000,
    repeats: Annotated[int, typer.Option(min=2, help="Requests to each route.")] = 50,
    clients: Annotated[int, typer.Option(min=1, max=64, help="That make the load.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """The management API with much in it: every route that lists, alone and under load."""
    from shared.logs import silence_logs
    from sim.bench.management import bench_management

    silence_logs()
    console = Console(stderr=True)
    with console.status("starting") as status:
        result = bench_management(
            devices=devices,
            keys=keys,
            rows=rows,
            records=records,
            repeats=repeats,
            clients=clients,
            progress=status.update,
        )
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    table = Table("route", title=f"{devices} devices, {keys} keys, {rows} rows")
    for heading in ("p50 ms", "p99 ms", "p50 under load", "p99 under load"):
        table.add_column(heading, justify="right")
    for row in result["routes"]:
        times = (row[when][share] for when in ("alone", "loaded") for share in ("p50", "p99"))
        table.add_row(row["route"], *map(str, times))
    Console().print(table)
    typer.echo(f"{records} audit records are verified in {result['audit_verify_s']} s")


@bench.command("answer")
def measure_answer(
    data: Annotated[Path, typer.Option(help="Questions in SQuAD's format, English or Chinese.")],
    reader: Annotated[
        str,
        typer.Option(help="Model that finds answers: a folder or hub id; else the baseline alone."),
    ] = "",
    quantise: Annotated[
        Literal["int8", "none"], typer.Option(help="How its weights are stored.")
    ] = "int8",
    held_out: Annotated[
        bool,
        typer.Option("--held-out", help="Only what a reader from 'make-reader' has not seen."),
    ] = False,
    limit: Annotated[int, typer.Option(min=0, help="The first N questions; 0: all.")] = 0,
    threshold: Annotated[
        float | None,
        typer.Option(help="Least score of an answer; else 0 if some questions have none."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Answers out of passages: exact match and F1 as SQuAD and CMRC 2018 count them."""
    from shared.logs import silence_logs
    from sim.bench.answer import bench_answer

    if held_out and not reader:
        raise ConfigError(["--held-out: name the reader with --reader"], source="options")
    silence_logs()
    console = Console(stderr=True)
    with console.status("reading") as status:
        result = bench_answer(
            data.expanduser(),
            reader=reader,
            quantise=quantise,
            held_out=held_out,
            limit=limit,
            threshold=threshold,
            progress=status.update,
        )
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    table = Table("who", title=f"{result['questions']} questions of {result['data']}")
    for heading in ("exact match", "F1", "said none", "ms"):
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        shares = (f"{row[name]:.1%}" for name in ("exact", "f1", "said_none"))
        table.add_row(row["who"], *shares, f"{row['ms']:.1f}")
    Console().print(table)
