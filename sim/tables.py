"""A report as a person reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

SHOWN = 4
"""Answers in the table, besides the last two; all are in the report."""

NAMES = {"en": "English", "zh": "Chinese", "all": "all"}


def show_report(report: Mapping[str, Any], console: Console) -> None:
    """Print a report's tables."""
    console.print()
    console.print(_accuracy(report))
    console.print(_devices(report))
    if "answers" in report:
        console.print(_answers(report["answers"], report.get("language_model", {})))
    console.print(_visibility(report))
    stages = ", ".join(
        f"{name.replace('_', ' ')} {s:.1f} s" for name, s in report["stages"].items()
    )
    protection, privacy = report["protection"], report["privacy"]
    console.print(f"stages: {stages}; together {sum(report['stages'].values()):.1f} s")
    console.print(
        f"sums: {protection['scheme']} ({protection['parameters']}), opened over at least "
        f"{protection['min_devices']} devices, {protection['bytes_per_value']:.2f} bytes per value"
    )
    if privacy["noise"] == "none":
        console.print("privacy: none: this run trained without noise")
    else:
        console.print(
            f"privacy: {privacy['level']} level, {privacy['noise']} noise, "
            f"σ/C = {privacy['noise_multiplier']:.3f}, δ = {privacy['delta']:g}"
        )
    if privacy["noise"] == "distributed":
        alone = max(map(float, report["epsilon_alone"].values()))
        console.print(
            f"ε above holds against who sees sums; ε = {alone:.1f} against the key holder, "
            "or all other devices together"
        )
    hostile = report.get("adversary", {}).get("devices", [])
    if hostile:
        console.print(f"adversary: {report['adversary']['kind']} by {', '.join(hostile)}")
    if privacy["repeatable_noise"]:
        console.print(
            "noise: repeatable from the seed, since this is a demonstration or simulation; "
            "a real device draws it from its operating system"
        )
    console.print(f"adapter: {report['adapter_hash']}")


def _accuracy(report: Mapping[str, Any]) -> Table:
    accuracy = report["accuracy"]
    language = report.get("task") == "causal-lm"  # reports of earlier versions do not say
    what = "tokens foretold in held-out texts" if language else "accuracy on held-out texts"
    table = Table(what, title=_title(report), title_justify="left")
    keys = [key for key in ("before", "after", "central") if key in accuracy]
    for key in keys:
        table.add_column("central, no privacy" if key == "central" else key, justify="right")
    for group in accuracy["after"]:
        cells = (accuracy[key].get(group) for key in keys)
        name = NAMES.get(group, group)
        table.add_row(name, *(f"{c:.3f}" if c is not None else "-" for c in cells))
    if language:
        table.add_row("perplexity", *(f"{math.exp(report['loss'][key]):.2f}" for key in keys))
    return table


def _answers(answers: Mapping[str, Any], model: Mapping[str, Any]) -> Table:
    name = str(model.get("name", "the coordinator"))
    if model.get("stand_in"):
        name += ", a stand-in for a real model"
    title = (
        f"{answers['local']} questions answered on devices, {answers['cloud']} by {name}"
        f" ({answers['redacted']} pieces of personal data taken out)"
    )
    table = Table("question", "answer", "from", "why", title=title, title_justify="left")
    for example in answers["examples"][:SHOWN] + answers["examples"][-2:]:
        cells = (example["question"], example["answer"], example["source"], example["reason"])
        table.add_row(*(escape(_short(str(cell))) for cell in cells))
    return table


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _title(report: Mapping[str, Any]) -> str:
    return (
        f"{report['devices']} devices, {report['rounds']} rounds over {report['transport']}, "
        f"seed {report['seed']}"
    )


def _devices(report: Mapping[str, Any]) -> Table:
    table = Table("device", "examples")
    table.add_column("ε", justify="right")
    table.add_column("bytes out per round", justify="right")
    table.add_column("bytes out", justify="right")
    many = len(report["epsilon"]) > 12
    for number, (device, epsilon) in enumerate(report["epsilon"].items()):
        if many and number == 10:
            table.add_row(f"… and {len(report['epsilon']) - 10} more", "", "", "", "")
            break
        sent = list(report["bytes_out"][device].values())
        table.add_row(
            device,
            str(report["examples"]["by_device"][device]),
            f"{epsilon:.2f}" if isinstance(epsilon, float) else epsilon,
            f"{sum(sent) / len(sent):,.0f}" if sent else "-",
            f"{sum(sent):,}",
        )
    return table


def _visibility(report: Mapping[str, Any]) -> Table:
    table = Table("what", "who could see it")
    for row in report["who_could_see"]:
        table.add_row(row["what"], row["who"])
    return table
