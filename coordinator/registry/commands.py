"""Commands around the registry: ``llmos model``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from coordinator.commands import DEFAULT_HOME, AsJson, Home
from shared.errors import ConfigError, ModelError
from shared.models.manifest import Manifest, read_manifest
from shared.types import Digest

model = typer.Typer(help="The registry of models.", no_args_is_help=True)

MODELS = "models"
"""Folder of the imported models in the coordinator's."""

DEFAULT_MINUTES = 5.0


@model.command("import")
def import_one(
    source: Annotated[str, typer.Argument(help="A folder or a hub id.")],
    prune: Annotated[int, typer.Option(help="Keep the first N layers only; 0 keeps all.")] = 0,
    quantise: Annotated[
        Literal["int8", "int4", "none"], typer.Option(help="How weights are stored.")
    ] = "int8",
    adapter_layers: Annotated[
        int, typer.Option(help="Layers, from the top, that adapters may reach into.")
    ] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Measure briefly.")] = False,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Turn an encoder into a small graph that devices answer with."""
    from coordinator.registry.model_import import import_model

    def progress(step: str) -> None:
        if not as_json:
            typer.echo(f"{step} …", err=True)

    imported = import_model(
        source,
        home.expanduser() / MODELS,
        keep_layers=prune,
        quantise=quantise,
        adapter_layers=adapter_layers,
        passes="quick" if quick else "full",
        progress=progress,
    )
    _show(imported.folder, imported.manifest, imported.digest, as_json=as_json)


@model.command("make-tiny")
def make_tiny(
    size: Annotated[Literal["small", "smaller"], typer.Option(help="Of the model.")] = "small",
    pairs: Annotated[
        Path | None, typer.Option(help="Your own .csv or .jsonl with question and answer.")
    ] = None,
    leave_out: Annotated[
        str | None,
        typer.Option(help="Intents that it shall not know, with commas; else the last six."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="Of training. [default: 55, smaller: 22]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of training; alone, the outcome can be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Arithmetic threads.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Its folder. [default: models/stand-in-SIZE in the home]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Train a small language model on questions and answers, to stand in for a real one."""
    from coordinator.registry.pairs import last_intents, read_pairs, shipped_pairs
    from coordinator.registry.tiny import Recipe, make_once

    known = shipped_pairs() if pairs is None else read_pairs(pairs)
    if leave_out is None:
        left_out = last_intents(known)
    else:
        left_out = tuple(part.strip() for part in leave_out.split(",") if part.strip())
    folder = out or home.expanduser() / MODELS / f"stand-in-{size}"
    with _training_bar(as_json=as_json) as (bar, task):
        made = make_once(
            folder.expanduser(),
            known,
            Recipe(size, left_out, seconds, steps, seed),
            threads=threads,
            force=force,
            progress=lambda done, loss: bar.update(task, completed=done, loss=loss),
        )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(made)))
        return
    console = Console(highlight=False, soft_wrap=True)
    how = "made before" if made.reused else f"{made.steps} steps in {made.trained_s:.0f} s"
    lines = [
        f"{made.folder}: a stand-in for a language model, {how}, base {made.base[:12]}",
        f"{made.parameters:,} parameters, loss per answer {made.loss:.2f}",
        (
            f"{made.answered} unseen questions: {made.exact:.0%} answered to the letter, "
            f"likeness {made.similarity:.2f}"
        ),
        f"perplexity of the right answers: {made.perplexity_unseen:.2f}"
        + (
            f", of intents left out ({', '.join(made.left_out)}) {made.perplexity_left_out:.0f}"
            if made.perplexity_left_out is not None
            else ""
        ),
        f"serve it with: llmos up --model {made.folder}",
    ]
    for line in lines:
        console.print(line, markup=False)


@model.command("make-reader")
def make_reader_model(
    data: Annotated[Path, typer.Option(help="Questions in SQuAD's format, English or Chinese.")],
    out: Annotated[Path, typer.Option(help="Its folder.")],
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Of training. [default: 5, without --steps]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of training; alone, the outcome can be repeated.")
    ] = None,
    held_out: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Share of the articles that is kept back.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Arithmetic threads.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a small model that finds answers in passages, to stand in for a real one."""
    from coordinator.reading.squad import read_squad
    from coordinator.reading.training import make_reader

    folder = out.expanduser()
    if folder.exists() and not force:
        raise ConfigError([f"{folder} is there: give --force to replace it"], source="options")
    questions = read_squad(data.expanduser())
    with _training_bar(as_json=as_json) as (bar, task):
        made = make_reader(
            folder,
            questions,
            seconds=minutes * 60 if minutes else None if steps else DEFAULT_MINUTES * 60,
            steps=steps,
            held_out=held_out,
            seed=seed,
            threads=threads,
            progress=lambda done, loss: bar.update(task, completed=done, loss=loss),
        )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(made), ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    unseen, trivial = made.held_out, made.baseline
    for line in (
        (
            f"{made.folder}: a stand-in for a reader, {made.steps} steps in {made.trained_s:.0f} s, "
            f"{made.parameters:,} parameters, {made.trained_on} questions"
        ),
        f"{unseen.questions} held-out questions: exact match {unseen.exact:.1%}, F1 {unseen.f1:.1%}",
        f"the best sentence instead: exact match {trivial.exact:.1%}, F1 {trivial.f1:.1%}",
        f"serve it with: llmos up --reader {made.folder}",
    ):
        console.print(line, markup=False)


@contextmanager
def _training_bar(*, as_json: bool) -> Iterator[tuple[Progress, Any]]:
    with Progress(
        TextColumn("training, loss {task.fields[loss]:.2f}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=as_json or not sys.stderr.isatty(),
    ) as bar:
        yield bar, bar.add_task("training", total=1.0, loss=0.0)


@model.command("ls")
def list_models(home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """List the imported models."""
    from coordinator.registry.model_import import imported_models

    found = [
        (folder, *read_manifest(folder)) for folder in imported_models(home.expanduser() / MODELS)
    ]
    if as_json:
        typer.echo(json.dumps([_view(*each) for each in found]))
        return
    names = [Column(name, overflow="fold") for name in ("model", "from")]
    table = Table(*names, "layers", "weights", "MB")
    for folder, manifest, _ in found:
        megabytes = f"{sum(file.bytes for file in manifest.files.values()) / 1e6:.1f}"
        cells = (folder.name, manifest.name, manifest.layers, manifest.quantise, megabytes)
        table.add_row(*(escape(str(cell)) for cell in cells))
    Console().print(table)


@model.command("show")
def show_model(
    name: Annotated[str, typer.Argument(help="As 'ls' prints it, or its beginning.")],
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Show one model and what each pass did to it, after a look at its hashes."""
    from coordinator.registry.model_import import imported_models, open_model

    folders = imported_models(home.expanduser() / MODELS)
    fitting = [folder for folder in folders if folder.name.startswith(name)]
    fitting = [folder for folder in fitting if folder.name == name] or fitting
    if len(fitting) != 1:
        known = ", ".join(folder.name for folder in fitting or folders) or "none"
        problem = "there is no model" if not fitting else "several models begin with"
        raise ModelError(f"{problem} {name!r}: 'llmos model ls' lists them ({known})")
    imported = open_model(fitting[0])
    _show(imported.folder, imported.manifest, imported.digest, as_json=as_json)


def _view(folder: Path, manifest: Manifest, digest: Digest) -> dict[str, Any]:
    return {"model": folder.name, "folder": str(folder), "digest": digest} | manifest.model_dump()


def _show(folder: Path, manifest: Manifest, digest: Digest, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_view(folder, manifest, digest)))
        return
    console = Console()
    console.print(folder.name, markup=False, highlight=False)
    console.print(
        f"{manifest.architecture}, {manifest.layers} layers, {manifest.features} features, "
        f"{manifest.quantise}, digest {digest[:12]}",
        highlight=False,
    )
    table = Table("pass", "nodes", "MB", "ms (32 tokens)", "ms (128)", "agreement")
    for row in manifest.passes:
        table.add_row(
            row.name,
            str(row.nodes),
            f"{row.bytes / 1e6:.1f}",
            f"{row.p50_ms_32:.1f}",
            f"{row.p50_ms_128:.1f}",
            f"{row.agreement:.1%}",
        )
    console.print(table)
