"""What a run came to, out of what the processes wrote down: the same for demo and simulation."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.federation.rounds import (
    AdapterApplied,
    DeviceDeclined,
    Invited,
    RoundFailed,
    UpdateStored,
)
from coordinator.probe import Probe
from coordinator.store.store import Store, by_round
from edge_agent.participate import Home
from edge_agent.training.child import stored_features
from shared.config import read_json
from shared.crypto.sum_cipher import Scheme, cipher_for
from shared.errors import RoundError
from shared.files import write_durably
from shared.job import PrivacyTable, RunPlan
from shared.models.adapter import Adapter, AdapterShape
from shared.privacy.accountant import (
    Fact,
    NonPrivate,
    SampledGaussian,
    SharedDiscreteGaussian,
    epsilon,
)
from shared.privacy.ledger import Ledger
from shared.types import DeviceId, Digest, RunId
from sim.central import train_centrally

SHARED_WITH = {
    Scheme.PUBLIC_KEY: (
        ("training texts", "the device alone"),
        ("one device's update", "nobody alone: it leaves noised and encrypted"),
        (
            "the sum, over {devices} devices",
            "key holder, coordinator, whoever listens at the broker",
        ),
        ("the secret key of a round", "the key holder, until it has opened that round's sum"),
        ("who takes part, when, how many bytes", "coordinator and broker"),
    ),
    Scheme.CLEAR: (
        ("training texts", "the device alone"),
        ("one device's update", "coordinator and broker: it travels in clear"),
        ("the sum of the updates", "the coordinator"),
        ("who takes part, when, how many bytes", "coordinator and broker"),
    ),
}
"""Who could see what, by scheme; docs/threat-model.md says why."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Where the parts of a finished run left their files."""

    store: Store
    homes: Mapping[DeviceId, Home]
    probe: Probe | None
    """Where a head stands on features; None for a language model."""
    transport: str


def build_report(fleet: Fleet, run: RunId, *, stages: Mapping[str, float]) -> dict[str, Any]:
    """The report as JSON values.

    Everything but ``stages`` is a function of the scenario and its seed.

    Raises:
        RoundError: the run did not finish; the message says why.
    """
    store = fleet.store
    plan = read_json(RunPlan, store.run(run).plan, source="plan")
    milestones = store.milestones(run)
    for outcome in ("failed", "stopped"):
        if outcome in milestones:
            facts = milestones[outcome].facts
            raise RoundError(f"run {run} {outcome}: {facts.get('reason', 'no reason given')}")
    if "finished" not in milestones:
        raise RoundError(f"run {run} has not finished")
    final = Digest(milestones["finished"].facts["adapter"])
    adapter = Adapter.from_bytes(store.blob(final).read_bytes())
    history, started = _history(store, run), milestones["started"].facts
    judged = [entry for entry in history if "accuracy" in entry]
    accuracy = {
        "before": _named(started["accuracy"]),
        "after": judged[-1]["accuracy"] if judged else _named(started["accuracy"]),
    }
    if fleet.probe is not None:
        accuracy["central"] = _central(fleet, fleet.probe, plan)
    ledgers = {device: Ledger(home.ledger, repair=False) for device, home in fleet.homes.items()}
    protection = plan.job.protection
    cipher = cipher_for(plan.scheme, plan.layout)
    return {
        "run": run,
        "seed": plan.seed,
        "devices": len(fleet.homes),
        "rounds": plan.job.training.rounds,
        "transport": fleet.transport,
        "task": plan.job.task,
        "trainable": {"method": plan.shape.method, "parameters": plan.parameters},
        "accuracy": accuracy,
        "loss": {
            "before": round(started["loss"], 4),
            "after": judged[-1]["loss"] if judged else round(started["loss"], 4),
        },
        "epsilon": {
            device: _finite(ledger.epsilon(plan.job.privacy.delta, plan.job.privacy.level))
            for device, ledger in ledgers.items()
        },
        "epsilon_alone": {
            device: _finite(ledger.epsilon_alone(plan.job.privacy.delta, plan.job.privacy.level))
            for device, ledger in ledgers.items()
        },
        "epsilon_by_round": {
            device: _epsilon_by_round(ledger, run, plan.job.privacy)
            for device, ledger in ledgers.items()
        },
        "privacy": {
            "noise": plan.job.privacy.noise,
            "epsilon_asked": plan.job.privacy.epsilon,
            "delta": plan.job.privacy.delta,
            "noise_multiplier": plan.noise_multiplier,
            "level": plan.job.privacy.level,
            "repeatable_noise": plan.simulation,
        },
        "bytes_out": {device: _bytes_out(home, run) for device, home in fleet.homes.items()},
        "protection": {
            "scheme": protection.scheme,
            "parameters": cipher.parameter_set,
            "bits": protection.bits,
            "min_devices": protection.min_devices,
            "values": plan.layout.count,
            "update_bytes": cipher.frame_bytes(),
            "bytes_per_value": round(cipher.frame_bytes() / plan.layout.count, 3),
        },
        "history": history,
        "who_could_see": [
            {"what": what.format(devices=f"at least {protection.min_devices}"), "who": who}
            for what, who in SHARED_WITH[plan.scheme]
        ],
        "base_model": {"name": plan.job.model.base, "sha256": adapter.base},
        "adapter_hash": final,
        "versions": _versions(),
        "stages": {name: round(seconds, 2) for name, seconds in stages.items()},
    }


def write_report(report: Mapping[str, Any], folder: Path) -> Path:
    """Write ``report.json`` into ``folder``, whole or not at all."""
    path = folder / "report.json"
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    write_durably(path, text.encode())
    return path


def _versions() -> dict[str, str]:
    """What computed this: another version may round differently."""
    versions = {"python": platform.python_version()}
    for package in ("llmos", "numpy", "torch", "opacus", "transformers", "onnxruntime"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _central(fleet: Fleet, probe: Probe, plan: RunPlan) -> dict[str, float]:
    """A head trained on everybody's pooled features, judged as the run's adapters are."""
    model = plan.job.model
    pooled = [
        stored_features(model.base, home.examples, home.features, model.layers)
        for home in fleet.homes.values()
    ]
    head = plan.model_copy(
        update={"shape": AdapterShape(labels=plan.labels, features=plan.features)}
    )
    features = np.concatenate([features for features, _ in pooled])
    labels = [label for _, labels in pooled for label in labels]
    judged = probe.judge(train_centrally(probe.initial(head), features, labels))
    return _named(judged.by_group | {"": judged.overall})


def _named(accuracy: Mapping[str, float]) -> dict[str, float]:
    return {group or "all": round(value, 4) for group, value in sorted(accuracy.items())}


def _finite(epsilon: float) -> float | str:
    """JSON knows no infinity; "infinite" is what it means."""
    return round(epsilon, 4) if np.isfinite(epsilon) else "infinite"


def _epsilon_by_round(ledger: Ledger, run: RunId, privacy: PrivacyTable) -> dict[str, float | str]:
    """What had been spent after each round of ``run``, earlier runs included.

    Equal releases are counted, not listed, so that a thousand rounds take no million sums.
    """
    spent: dict[str, float | str] = {}
    released: dict[Fact, int] = {}
    for charge in ledger.charges():
        for fact in charge.facts:
            match fact:
                case SampledGaussian(steps=steps) | SharedDiscreteGaussian(steps=steps):
                    alike: Fact = replace(fact, steps=1)
                    released[alike] = released.get(alike, 0) + steps
                case NonPrivate():
                    released[fact] = 1
        if charge.run == run:
            facts = [
                replace(fact, steps=count) if isinstance(fact, SampledGaussian) else fact
                for fact, count in released.items()
            ]
            spent[str(charge.round)] = _finite(
                epsilon(facts, delta=privacy.delta, unit=privacy.level)
            )
    return spent


def _bytes_out(home: Home, run: RunId) -> dict[str, int]:
    journal = home.folder / "journal.jsonl"
    if not journal.exists():
        return {}
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    return {str(r["round"]): r["bytes_out"] for r in records if r["run"] == run}


def _history(store: Store, run: RunId) -> list[dict[str, Any]]:
    history = []
    for number, rows in by_round(store.transitions(run)):
        entry: dict[str, Any] = {"round": number, "invited": 0, "reported": 0}
        for row in rows:
            match row.transition:
                case Invited(cohort=cohort):
                    entry["invited"] = len(cohort)
                case DeviceDeclined(code=code):
                    declined = entry.setdefault("declined", {})
                    declined[code] = declined.get(code, 0) + 1
                case UpdateStored():
                    entry["reported"] += 1
                case AdapterApplied() as result:
                    entry["accuracy"] = _named(result.accuracy)
                    entry["loss"] = round(result.loss, 4)
                    entry["accepted"] = result.accepted
                    entry["saturated"] = round(result.saturated, 6)
                    if result.reason:
                        entry["reason"] = result.reason
                case RoundFailed() as failure:
                    entry["failed"] = failure.reason
                case _:
                    pass
        history.append(entry)
    return history
