"""A job becomes a run: everything that could be wrong with it is found here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from coordinator.store.store import Store
from shared.data_files import Example
from shared.errors import ConfigError, ShapeMismatch
from shared.job import Job, RunPlan, plan_run
from shared.models.adapter import Adapter
from shared.models.encoder import find_base_model
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
            the run's labels are theirs.
        seed: Draws cohorts.
        simulation: Whether release seeds may be derived from ``seed``.
        now: Seconds since the epoch.

    Raises:
        ConfigError: the probe set or one of its labels is unusable, or no noise reaches the asked ε.
        ModelError: the base model is not to be had.
        DataError: a run of this name exists.
    """
    labels = tuple(sorted({example.label for example in probe}))
    problems = []
    if len(labels) < 2:
        problems.append(
            f"evaluation: the probe set has {len(labels)} label(s), at least 2 are needed"
        )
    if len(probe) > MAX_PROBE_EXAMPLES:
        problems.append(
            f"evaluation: the probe set has {len(probe)} examples, at most {MAX_PROBE_EXAMPLES}"
        )
    if problems:
        raise ConfigError(problems, source="job")
    base = find_base_model(job.model.base)
    features = int(json.loads((base.folder / "config.json").read_text())["hidden_size"])
    try:
        plan = plan_run(
            job,
            run=RunId(job.name),
            labels=labels,
            features=features,
            seed=seed,
            simulation=simulation,
        )
    except ValueError as err:
        raise ConfigError([f"privacy: {err}"], source="job") from err
    try:
        Adapter.zeros(labels, features, base.digest)
        kept = _keep_probe(store, probe)
    except (ShapeMismatch, UnicodeEncodeError) as err:
        raise ConfigError([f"evaluation: {err}"], source="job") from err
    store.add_run(plan.run_id, plan.model_dump_json(), kept, now=now)
    return plan


def _keep_probe(store: Store, probe: Sequence[Example]) -> Digest:
    return store.keep(codec.encode([[e.text, e.label, e.group] for e in probe]))


def read_probe(store: Store, digest: Digest) -> list[Example]:
    """The probe set of a run."""
    data = store.blob(digest).read_bytes()
    return [Example(*row) for row in codec.decode(data, limit=len(data))]
