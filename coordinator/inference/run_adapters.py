"""The adapter that a federated run has learnt for the coordinator's language model."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.store.store import Store
from shared.config import read_json
from shared.errors import RoundError
from shared.job import RunPlan
from shared.models.task import find_task
from shared.types import Digest, RunId


def run_adapters(store: Store) -> Callable[[RunId], bytes]:
    """Return a function that looks a run's adapter up, as bytes.

    It raises RunNotFound for a run that there is not, and RoundError for one that has not
    finished or whose task is no language model's.
    """

    def adapter_of(run: RunId) -> bytes:
        row = store.run(run)
        task = read_json(RunPlan, row.plan, source=f"plan of {run}").job.task
        if find_task(task).base != "causal":
            raise RoundError(f"{run} is a run of {task}, which a language model cannot answer with")
        finished = store.milestones(run).get("finished")
        if finished is None:
            raise RoundError(f"{run} has not finished, so it has no adapter yet")
        return store.blob(Digest(finished.facts["adapter"])).read_bytes()

    return adapter_of


def adapters_by_name(run: RunId) -> bytes:
    """Stand for the adapter of a run that other machines have, and are asked for by its name.

    Two runs' bytes differ, so that nothing kept under their digest is taken for the other's.
    """
    return f"adapter of {run}, by name".encode(errors="backslashreplace")
