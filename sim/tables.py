"""A report as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

NAMES = {"en": "English", "zh": "Chinese", "all": "all"}


def show_report(report: Mapping[str, Any], console: Console) -> None:
    """Print a report's tables."""
    console.print()
    console.print(_accuracy(report))
    console.print(_devices(report))
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
            f"privacy: record level, local noise, σ/C = {privacy['noise_multiplier']:.3f}, "
            f"δ = {privacy['delta']:g}"
        )
    if privacy["repeatable_noise"]:
        console.print(
            "noise: repeatable from the seed, since this is a demonstration or simulation; "
            "a real device draws it from its operating system"
        )
    console.print(f"adapter: {report['adapter_hash']}")


def _accuracy(report: Mapping[str, Any]) -> Table:
    accuracy = report["accuracy"]
    table = Table("accuracy on held-out texts", title=_title(report), title_justify="left")
    for column in ("before", "after", "central, no privacy"):
        table.add_column(column, justify="right")
    for group in accuracy["after"]:
        cells = (accuracy[key].get(group) for key in ("before", "after", "central"))
        name = NAMES.get(group, group)
        table.add_row(name, *(f"{c:.3f}" if c is not None else "-" for c in cells))
    return table


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
