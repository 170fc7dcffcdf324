"""Run plans small enough to encrypt in milliseconds."""

from __future__ import annotations

from typing import Any, Final

from shared.config import read
from shared.job import Job, RunPlan, plan_run
from shared.models.adapter import AdapterShape
from shared.types import RunId

LABELS: Final = ("delivery", "password", "refund")
FEATURES: Final = 4
SHAPE: Final = AdapterShape(labels=LABELS, features=FEATURES)


def a_plan(run: str = "run", *, simulation: bool = False, **tables: dict[str, Any]) -> RunPlan:
    """Three labels over four features, three rounds with noise; ``tables`` are the job's."""
    chosen: dict[str, dict[str, Any]] = {
        "training": {"rounds": 3, "examples_cap": 50},
        "protection": {"min_devices": 2},
    }
    merged = {name: chosen.get(name, {}) | tables.get(name, {}) for name in chosen | tables}
    job = read(Job, {"name": run} | merged, source="test")
    return plan_run(job, run=RunId(run), shape=SHAPE, seed=1, simulation=simulation)
