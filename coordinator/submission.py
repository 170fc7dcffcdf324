"""A job becomes a run: everything that could be wrong with it is found here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from coordinator.store.store import Store
from shared.config import read
from shared.data_files import Example
from shared.errors import ConfigError
from shared.job import Job, RunPlan, plan_run
from shared.models.adapter import AdapterShape
from shared.models.architecture import Architecture, read_architecture
from shared.models.encoder import find_base_model
from shared.models.task import find_task
from shared.types import Digest, RunId
from shared.wire import codec

MAX_PROBE_EXAMPLES: Final = 100_000


def submit(
    store: Store,
    job: Job,
    probe: Sequence[Example],
    *,
    seed: int,
    simulation: bool,
    now: float,
) -> RunPlan:
    """Check a job against the world it will run in, derive its plan and register it.

    Args:
        store: Where the run is registered, under the job's name.
        job: What is asked.
        probe: Public labelled examples on which every new adapter is judged;
            the labels of a run that has any are theirs.
        seed: Draws cohorts.
        simulation: Whether release seeds may be derived from ``seed``.
        now: Seconds since the epoch.

    Raises:
        ConfigError: the probe set or one of its labels is unusable, the base model does not fit
            the task, or no noise reaches the asked ε.
        ModelError: the base model is not to be had.
        DataError: a run of this name exists.
    """
    task = find_task(job.task)
    problems = [f"evaluation: {problem}" for problem in task.problems(probe)]
    if len(probe) > MAX_PROBE_EXAMPLES:
        problems.append(
            f"evaluation: the probe set has {len(probe)} examples, at most {MAX_PROBE_EXAMPLES}"
        )
    if problems:
        raise ConfigError(problems, source="job")
    base = find_base_model(job.model.base, keep_layers=job.model.layers)
    shape = adapter_shape(job, read_architecture(base), task.labels(probe))
    problems = [f"evaluation: {problem}" for problem in shape.contradictions()]
    if problems:
        raise ConfigError(problems, source="job")
    try:
        plan = plan_run(job, run=RunId(job.name), shape=shape, seed=seed, simulation=simulation)
    except ValueError as err:
        raise ConfigError([f"privacy: {err}"], source="job") from err
    try:
        kept = _keep_probe(store, probe)
    except UnicodeEncodeError as err:
        raise ConfigError([f"evaluation: {err}"], source="job") from err
    store.add_run(plan.run_id, plan.model_dump_json(), kept, now=now)
    return plan


def adapter_shape(job: Job, built: Architecture, labels: tuple[str, ...]) -> AdapterShape:
    """What the adapter of a job consists of.

    Raises:
        ConfigError: the base model is not of the task's kind, or has no such layers.
    """
    if built.is_causal != (find_task(job.task).base == "causal"):
        problem = (
            f"model.base: {job.model.base} is a {built.kind}, which {job.task} cannot stand on"
        )
        raise ConfigError([problem], source="job")
    if job.model.trainable == "head":
        return AdapterShape(labels=labels, features=built.features)
    wanted = job.adapter
    return read(
        AdapterShape,
        {
            "labels": labels,
            "features": built.features,
            "method": wanted.method,
            "rank": wanted.rank,
            "alpha": wanted.alpha,
            "slots": built.slots(wanted.method, wanted.layers),
        },
        source="job",
    )


def _keep_probe(store: Store, probe: Sequence[Example]) -> Digest:
    return store.keep(codec.encode([[e.text, e.label, e.group] for e in probe]))


def read_probe(store: Store, digest: Digest) -> list[Example]:
    """The probe set of a run."""
    data = store.blob(digest).read_bytes()
    return [Example(*row) for row in codec.decode(data, limit=len(data))]
