"""A small story that real training tells in seconds: three intents, three devices, three rounds."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Final

from shared.config import read
from sim.population import Population, deal
from sim.scenario import Scenario

SEED: Final = 7

_OPENINGS: Final = (
    "please help me",
    "hello, I need to",
    "could you tell me how to",
    "I would like to",
    "is it possible to",
    "what must I do to",
)
_WISHES: Final = {
    "refund": (
        "get my money back",
        "return these shoes for a refund",
        "be refunded for a broken lamp",
        "cancel the order and be paid back",
        "send the jacket back for the full price",
    ),
    "delivery": (
        "see where my parcel is",
        "know when the package arrives",
        "track the shipment",
        "change the delivery address",
        "find out why the courier is late",
    ),
    "password": (
        "reset my password",
        "log in again after I forgot my password",
        "unlock my account",
        "change the secret I sign in with",
        "get a new sign-in code",
    ),
}


def write_tickets(path: Path) -> Path:
    """Write 3 labels × 30 texts as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for label, wishes in _WISHES.items():
            rows.writerows([f"{start} {wish}", label] for start in _OPENINGS for wish in wishes)
    return path


def small_scenario(folder: Path, **tables: dict[str, Any]) -> Scenario:
    """Three unequal devices with noise, which all have to report; ``tables`` override."""
    chosen: dict[str, dict[str, Any]] = {
        "data": {"path": str(write_tickets(folder / "tickets.csv")), "alpha": 1.0},
        "population": {"devices": 3},
        "training": {"rounds": 3, "learning_rate": 5.0, "examples_cap": 50},
        "protection": {"min_devices": 3},
    }
    merged = {name: chosen.get(name, {}) | tables.get(name, {}) for name in chosen | tables}
    return read(Scenario, {"name": "small"} | merged, source="test")


def small_population(scenario: Scenario) -> Population:
    """How the scenario's texts are dealt under :data:`SEED`."""
    return deal(scenario.data, scenario.population.devices, seed=SEED)
