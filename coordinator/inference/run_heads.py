"""What a finished run has learnt to tell apart, for answering on the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from coordinator.inference.engine import ServedAdapter
from coordinator.releases import RELEASED
from coordinator.store.store import RunRow, Store
from shared.config import read_json
from shared.errors import RoundError, RunNotFound
from shared.job import RunPlan
from shared.models.calibration import Calibration
from shared.models.task import find_task
from shared.types import Digest, RunId


@dataclass(frozen=True, slots=True)
class Head:
    """An adapter with labels.

    Attributes:
        run: That learnt it.
        digest: SHA-256 of the adapter.
        adapter: Its bytes.
        temperature: Logits are divided by it; 1 where nothing was calibrated.
        calibrated: Whether the run's release fitted that temperature.
    """

    run: RunId
    digest: Digest
    adapter: ServedAdapter
    temperature: float = 1.0
    calibrated: bool = False


class FindHead(Protocol):
    """Finds the head of a run, of an adapter's digest, or the one that was finished last."""

    def __call__(self, *, run: str | None = None, adapter: str | None = None) -> Head:
        """Find it.

        Raises:
            RunNotFound: there is no such run, or none finished with this adapter.
            RoundError: the run has not finished, or its task has no labels.
        """
        ...


def run_heads(store: Store) -> FindHead:
    """Return a function that looks heads up among the finished runs."""

    def find(*, run: str | None = None, adapter: str | None = None) -> Head:
        if run is not None:
            row = store.run(RunId(run))
            task = read_json(RunPlan, row.plan, source=f"plan of {run}").job.task
            if not find_task(task).has_head:
                raise RoundError(f"{run} is a run of {task}, which has no labels to classify into")
            if "finished" not in store.milestones(row.run):
                raise RoundError(f"{run} has not finished, so it has no adapter yet")
            return _head(store, row)
        finished = []
        for row in store.runs():
            milestone = store.milestones(row.run).get("finished")
            if milestone is None or adapter not in (None, milestone.facts["adapter"]):
                continue
            task = read_json(RunPlan, row.plan, source=f"plan of {row.run}").job.task
            if find_task(task).has_head:
                finished.append((milestone.at, row))
        if not finished:
            which = f"with the adapter {adapter[:12]}" if adapter else "of a task with labels"
            raise RunNotFound(f"no run {which} has finished")
        return _head(store, max(finished, key=lambda entry: entry[0])[1])

    return find


def _head(store: Store, row: RunRow) -> Head:
    milestones = store.milestones(row.run)
    digest = Digest(milestones["finished"].facts["adapter"])
    served = ServedAdapter(row.run, store.blob(digest).read_bytes())
    released = milestones.get(RELEASED)
    if released is None:
        return Head(row.run, digest, served)
    calibration = read_json(
        Calibration, released.facts["calibration"], source=f"calibration of {row.run}"
    )
    return Head(row.run, digest, served, calibration.temperature, calibrated=True)
