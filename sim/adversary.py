"""Simulated devices that mean harm: which ones, and what they do differently.

They run the device's own code. What they poison is what it learns from or what
it learnt, so their updates stay inside the form that everybody's have: clipped
to the run's norm, saturated at the ends of its value range, encrypted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_agent.training.trainer import Trained, Trainer, TrainRequest
from shared.job import RunPlan
from shared.types import DeviceId
from sim.population import Population
from sim.scenario import AdversaryTable


def draw_hostile(
    table: AdversaryTable, devices: Sequence[DeviceId], *, seed: int
) -> list[DeviceId]:
    """The devices that mean harm, in the order of ``devices``.

    The share is rounded to whole devices, a half upwards. The same seed draws
    the same devices for every kind, and a larger share adds to a smaller.
    """
    if table.kind == "none":
        return []
    count = math.floor(table.share * len(devices) + 0.5)
    order = np.random.default_rng([seed, 0xBAD]).permutation(len(devices))
    return [devices[place] for place in sorted(order[:count])]


def with_flipped_labels(population: Population, hostile: Collection[DeviceId]) -> Population:
    """The population with the labels of hostile devices' examples mirrored.

    Label l of L becomes label L - 1 - l, counted in the sorted list of all
    labels: no two become the same, and of an odd number the middle one stays.

    Source:
        Fang et al., "Local Model Poisoning Attacks to Byzantine-Robust Federated
        Learning", USENIX Security 2020, section 5.1.2 (label flipping).
    """
    parts = [*population.devices.values(), population.probe]
    labels = sorted({example.label for part in parts for example in part})
    mirrored = dict(zip(labels, reversed(labels), strict=True))
    devices = {
        device: [replace(each, label=mirrored[each.label]) for each in examples]
        if device in hostile
        else examples
        for device, examples in population.devices.items()
    }
    return replace(population, devices=devices)


class ScaledTrainer:
    """A trainer whose updates are multiplied by a factor before they leave it."""

    def __init__(self, honest: Trainer, factor: float) -> None:
        """Train with ``honest``."""
        self._honest = honest
        self._factor = factor

    def prepare(self, plan: RunPlan, store_path: Path, cache_folder: Path) -> int:
        """See :meth:`~edge_agent.training.trainer.Trainer.prepare`."""
        return self._honest.prepare(plan, store_path, cache_folder)

    def train(self, request: TrainRequest) -> Trained:
        """See :meth:`~edge_agent.training.trainer.Trainer.train`."""
        trained = self._honest.train(request)
        return replace(trained, update=trained.update * np.float32(self._factor))

    def close(self) -> None:
        """See :meth:`~edge_agent.training.trainer.Trainer.close`."""
        self._honest.close()
