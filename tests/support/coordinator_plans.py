"""Small run plans for tests of the coordinator."""

from __future__ import annotations

from typing import Any

from shared.config import read
from shared.job import Job, RunPlan, plan_run
from shared.models.adapter import AdapterShape
from shared.types import RunId


def small_plan(*, features: int = 2, **tables: dict[str, Any]) -> RunPlan:
    """Two labels, two features: six parameters and a weight. Without noise."""
    job: dict[str, Any] = {
        "privacy": {"noise": "none"},
        "protection": {"scheme": "clear", "min_devices": 2},
    }
    for name, table in tables.items():
        job[name] = {**job.get(name, {}), **table}
    return plan_run(
        read(Job, job, source="job"),
        run=RunId("run"),
        shape=AdapterShape(labels=("no", "yes"), features=features),
        seed=1,
        simulation=True,
    )
