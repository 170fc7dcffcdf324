"""Makes a release in a process of its own: import, answer the probe set, calibrate.

The graph tools take hundreds of megabytes, which the coordinator has no other use for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from coordinator.releases import MakeRelease, Releasable
from shared.processes import Child, serve

EXAMPLES: Final = 2000
"""Most probe examples that are answered for the calibration; 5 ms each."""

SLOTTED_LAYERS: Final = 2
"""Top layers whose places for matrices every imported graph has."""


def release_maker(models: Path) -> MakeRelease:
    """Return a function that makes releases, with imported models kept in ``models``."""

    def make(releasable: Releasable) -> dict[str, Any]:
        plan = releasable.plan
        child = Child("coordinator.registry.release_worker", threads=1, nice=5)
        try:
            facts = child.call(
                "release",
                base=plan.job.model.base,
                keep_layers=plan.job.model.layers,
                adapter_layers=max(SLOTTED_LAYERS, plan.job.adapter.layers),
                models=str(models),
                adapter=releasable.adapter.read_bytes(),
                examples=[[e.text, e.label] for e in _some(releasable)],
                target_error=plan.job.answers.target_error,
            )
        finally:
            child.close()
        return dict(facts)

    return make


def _some(releasable: Releasable) -> list[Any]:
    examples = releasable.examples
    if len(examples) <= EXAMPLES:
        return examples
    rng = np.random.default_rng(releasable.plan.seed)
    return [examples[index] for index in sorted(rng.permutation(len(examples))[:EXAMPLES])]


def _release(
    *,
    base: str,
    keep_layers: int,
    adapter_layers: int,
    models: str,
    adapter: bytes,
    examples: list[list[str]],
    target_error: float,
) -> dict[str, Any]:
    from coordinator.registry.model_import import import_model
    from shared.models.adapter import Adapter
    from shared.models.calibration import calibrate
    from shared.models.classification import positions
    from shared.models.graph_session import GraphSession

    imported = import_model(
        base, Path(models), keep_layers=keep_layers, adapter_layers=adapter_layers, passes="quick"
    )
    session = GraphSession(imported.folder)
    loaded = session.load_adapter(Adapter.from_bytes(adapter))
    targets = positions([label for _, label in examples], loaded.labels)
    logits = np.stack([session.answer(text, loaded)[1].ravel() for text, _ in examples])
    calibration = calibrate(logits, targets, target_error=target_error)
    return {
        "folder": str(imported.folder),
        "manifest": str(session.digest),
        "calibration": calibration.model_dump_json(),
        "accuracy": round(float((logits.argmax(axis=1) == targets).mean()), 4),
    }


if __name__ == "__main__":
    serve({"release": _release})
