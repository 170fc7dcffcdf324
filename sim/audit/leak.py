"""Audits what a scenario's run gives away: canaries in one run, and a membership test.

Both print lower bounds on ε that hold with 95 % confidence. A bound above what was
claimed is proof of a defect; one below is none of its absence. So the same audit runs once
more without noise: if it found nothing there either, it has no teeth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from coordinator.federation.rounds import AdapterApplied
from edge_agent.examples import ExampleStore
from edge_agent.participate import Home
from edge_agent.training.child import stored_features
from shared.errors import ConfigError
from shared.job import PrivacyTable, RunPlan
from shared.models.adapter import Adapter
from shared.models.model_worker import ModelWorker
from shared.privacy.ledger import Ledger
from shared.types import Digest, FloatMatrix, FloatVector
from sim.audit.bounds import lower_bound, threshold_bound
from sim.audit.canaries import (
    Canaries,
    canary_scores,
    draw_canaries,
    losses,
    with_canaries,
)
from sim.population import deal
from sim.report import Fleet
from sim.scenario import Scenario
from sim.simulation import Watch, simulate

CONFIDENCE: Final = 0.95

CONTROL_FINDS: Final = 4.0
"""ε that the audit must prove of the same run without noise, or it says nothing."""

_SHARES_GUESSED: Final = (0.1, 0.2, 0.4, 0.6, 0.8)
"""Numbers of guesses that are tried, of all canaries; the confidence is divided among them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one audited run gave away."""

    claimed: float
    """ε of the dearest device's ledger; infinite without noise."""
    proved: float
    """ε that the canaries prove, at 95 %."""
    guesses: int
    right: int
    membership: float
    """ε that a threshold on the loss proves, at 95 %."""
    advantage: float
    """Its true-positive rate less its false-positive rate."""
    accuracy: float

    def as_json(self) -> dict[str, Any]:
        """The finding for machines; infinity has a word."""
        claimed = round(self.claimed, 4) if math.isfinite(self.claimed) else "infinite"
        return {
            "epsilon_claimed": claimed,
            "epsilon_proved": round(self.proved, 4),
            "guesses": self.guesses,
            "right": self.right,
            "membership_epsilon_proved": round(self.membership, 4),
            "membership_advantage": round(self.advantage, 4),
            "accuracy": self.accuracy,
        }


def audit_leak(
    scenario: Scenario, *, canaries: int, seed: int, control: bool, watch: Callable[[str], Watch]
) -> dict[str, Any]:
    """Audit a scenario, and the same without noise as a control.

    Args:
        scenario: What to run, with a head on frozen features.
        canaries: m, how many are drawn; half are planted.
        seed: Everything random follows from it.
        control: Whether to run the control.
        watch: Makes what is told of a run's progress, out of the run's name.

    Returns:
        What was found, and ``passed``: nothing beyond the claim, and the control found enough.

    Raises:
        ConfigError: the scenario trains more than a head, or the run has no noise to audit.
        LlmOsError: a run failed.
    """
    if scenario.model.trainable != "head":
        raise ConfigError(
            ["model.trainable: only heads are audited so far, whose canaries' gradients are known"],
            source="scenario",
        )
    if scenario.privacy.level == "device":
        raise ConfigError(
            ["privacy.level: canaries are records, and this run hides devices"], source="scenario"
        )
    if scenario.privacy.noise == "none":
        raise ConfigError(["privacy.noise: without noise nothing is claimed"], source="scenario")
    found = _audited(scenario, canaries, seed, watch("audited run"))
    result: dict[str, Any] = {
        "scenario": scenario.name,
        "noise": scenario.privacy.noise,
        "delta": scenario.privacy.delta,
        "canaries": canaries,
        "confidence": CONFIDENCE,
        "audited": found.as_json(),
    }
    within = max(found.proved, found.membership) <= found.claimed
    result["within_claim"] = within
    result["passed"] = within
    if control:
        bare = scenario.privacy.model_dump() | {"noise": "none"}
        without = scenario.model_copy(update={"privacy": PrivacyTable(**bare)})
        teeth = _audited(without, canaries, seed, watch("control without noise"))
        result["control"] = teeth.as_json()
        result["control_finds_enough"] = teeth.proved >= CONTROL_FINDS
        result["passed"] = within and teeth.proved >= CONTROL_FINDS
    return result


def _audited(scenario: Scenario, count: int, seed: int, watch: Watch) -> Finding:
    population = deal(scenario.data, scenario.population.devices, seed=seed)
    canaries = draw_canaries(population, count, seed=seed)
    findings: list[Finding] = []

    def inspect(fleet: Fleet, plan: RunPlan, report: Mapping[str, Any]) -> None:
        findings.append(_examined(fleet, plan, canaries, report, seed))

    simulate(
        scenario,
        seed=seed,
        watch=watch,
        population=with_canaries(population, canaries, seed=seed),
        inspect=inspect,
    )
    return findings[0]


def _examined(
    fleet: Fleet, plan: RunPlan, canaries: Canaries, report: Mapping[str, Any], seed: int
) -> Finding:
    adapters = _adapters(fleet, plan)
    model = plan.job.model
    made_up = {example.text for example in canaries.examples}
    others = [_true_records(home, plan, made_up) for home in fleet.homes.values()]
    worker = ModelWorker(model.base, model.layers)
    try:
        of_canaries = worker.encode([example.text for example in canaries.examples])
    finally:
        worker.close()
    scores = canary_scores(
        adapters,
        of_canaries,
        [example.label for example in canaries.examples],
        others,
        clip_norm=plan.clip_norm,
    )
    proved, guesses, right = best_bound(scores, canaries, plan.job.privacy.delta)
    membership, advantage = membership_bound(
        losses(adapters[-1], of_canaries, [example.label for example in canaries.examples]),
        canaries,
        plan.job.privacy.delta,
        seed,
    )
    ledgers = [Ledger(home.ledger, repair=False) for home in fleet.homes.values()]
    return Finding(
        claimed=max(ledger.epsilon(plan.job.privacy.delta) for ledger in ledgers),
        proved=proved,
        guesses=guesses,
        right=right,
        membership=membership,
        advantage=advantage,
        accuracy=report["accuracy"]["after"]["all"],
    )


def _true_records(
    home: Home, plan: RunPlan, made_up: Collection[str]
) -> tuple[FloatMatrix, list[str]]:
    """Features and labels of what a device has besides canaries."""
    model = plan.job.model
    features, labels = stored_features(model.base, home.examples, home.features, model.layers)
    texts = [example.text for example in ExampleStore(home.examples).examples()]
    true = [row for row, text in enumerate(texts) if text not in made_up]
    return features[true], [labels[row] for row in true]


def best_bound(scores: FloatVector, canaries: Canaries, delta: float) -> tuple[float, int, int]:
    """The best bound over several numbers of guesses, with the confidence divided among them.

    The highest scores are guessed to be planted, as many of the lowest not to be.

    Returns:
        The ε that is proved, and how many guesses there were and how many right.
    """
    order = np.argsort(scores, kind="stable")
    miss = (1 - CONFIDENCE) / len(_SHARES_GUESSED)
    best = (0.0, 0, 0)
    for share in _SHARES_GUESSED:
        half = int(share * len(scores) / 2)
        if half == 0:
            continue
        right = int((~canaries.planted[order[:half]]).sum() + canaries.planted[order[-half:]].sum())
        bound = lower_bound(
            canaries=len(scores),
            guesses=2 * half,
            right=right,
            delta=delta,
            confidence=1 - miss,
        )
        best = max(best, (bound, 2 * half, right))
    return best


def membership_bound(
    lost: FloatVector, canaries: Canaries, delta: float, seed: int
) -> tuple[float, float]:
    """ε and advantage of a threshold on the loss, chosen on one half and tried on the other."""
    order = np.random.default_rng([seed, 0x7E57]).permutation(len(lost))
    chosen, tried = order[: len(order) // 2], order[len(order) // 2 :]

    def rates(threshold: float, rows: np.ndarray) -> tuple[float, float]:
        below = lost[rows] <= threshold
        planted = canaries.planted[rows]
        # Of a handful of canaries all coins may have fallen alike: then nothing is found.
        found, accused = (
            float(part.mean()) if part.size else 0.0 for part in (below[planted], below[~planted])
        )
        return found, accused

    threshold = max(
        (float(lost[row]) for row in chosen),
        key=lambda each: rates(each, chosen)[0] - rates(each, chosen)[1],
    )
    tpr, fpr = rates(threshold, tried)
    planted = canaries.planted[tried]
    bound = threshold_bound(
        members=int(planted.sum()),
        found=round(tpr * int(planted.sum())),
        strangers=int((~planted).sum()),
        accused=round(fpr * int((~planted).sum())),
        delta=delta,
        confidence=CONFIDENCE,
    )
    return bound, tpr - fpr


def _adapters(fleet: Fleet, plan: RunPlan) -> list[Adapter]:
    """The heads before the first round and after each: what everybody may see."""
    started = fleet.store.milestones(plan.run_id)["started"].facts["adapter"]
    digests = [Digest(started)]
    digests += [
        row.transition.adapter
        for row in fleet.store.transitions(plan.run_id)
        if isinstance(row.transition, AdapterApplied)
    ]
    return [Adapter.from_bytes(fleet.store.blob(digest).read_bytes()) for digest in digests]
