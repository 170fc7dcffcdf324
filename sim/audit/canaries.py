"""Made-up records, half of them planted by coins, and who looks like having been learnt from.

The auditor is the strongest whom the promise covers: it sees every adapter, knows all
other records and every setting, and lacks only the coins, the samples and the noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.data_files import Example
from shared.errors import DataError
from shared.models.adapter import FEATURE_SCALE, Adapter
from shared.models.classification import positions
from shared.types import FloatMatrix, FloatVector
from sim.population import Population

FloatArray = NDArray[np.float64]

_WORDS: Final = 5
_ATTEMPTS: Final = 10
"""Draws for each canary before there is nothing new to be found."""
_RIDGE: Final = 0.3
"""Share of the mean canary's strength that is added to the diagonal: unlike texts' gradients
still overlap, and what cannot be told apart is not guessed apart."""


@dataclass(frozen=True, slots=True)
class Canaries:
    """Made-up examples and the coins that planted them."""

    examples: list[Example]
    planted: NDArray[np.bool_]
    """(m,): whether a canary is in the training data."""


def draw_canaries(population: Population, count: int, *, seed: int) -> Canaries:
    """Make canaries out of words of the population, under labels that have nothing to do with them.

    Args:
        population: Whose words and labels are used.
        count: m, how many.
        seed: Draws texts, labels and coins.

    Raises:
        DataError: there are too few words for so many different texts.
    """
    rng = np.random.default_rng([seed, 0xCA9A])
    examples = [example for part in population.devices.values() for example in part]
    words = sorted({word for example in examples for word in example.text.split()})
    labels = sorted({example.label for example in examples})
    known = {example.text for example in examples}
    made: list[Example] = []
    for _ in range(_ATTEMPTS * count):
        if len(made) == count:
            break
        text = " ".join(words[index] for index in rng.integers(0, len(words), _WORDS))
        label = labels[int(rng.integers(0, len(labels)))]
        if text not in known:
            known.add(text)
            made.append(Example(text, label, examples[0].group))
    if len(made) < count:
        raise DataError(f"{len(words)} different words make too few texts for {count} canaries")
    return Canaries(made, rng.random(count) < 0.5)


def with_canaries(population: Population, canaries: Canaries, *, seed: int) -> Population:
    """The population with its planted canaries dealt to the devices at random."""
    rng = np.random.default_rng([seed, 0xDEA1])
    devices = {device: list(part) for device, part in population.devices.items()}
    names = list(devices)
    for example, planted in zip(canaries.examples, canaries.planted, strict=True):
        home = names[int(rng.integers(0, len(names)))]
        if planted:
            devices[home].append(example)
    return replace(population, devices=devices)


def canary_scores(
    adapters: Sequence[Adapter],
    features: FloatMatrix,
    labels: Sequence[str],
    others: Sequence[tuple[FloatMatrix, Sequence[str]]],
    *,
    clip_norm: float | None,
) -> FloatVector:
    """How much each canary seems to have been learnt from, over all rounds.

    What a round moved is -Σₖ cₖ Σ clip(g) over the devices k, and noise, with device weights cₖ
    that nobody states. They are fitted together with one strength for every canary, by ridge
    regression over all rounds, so that canaries that resemble each other, or the other
    records, do not answer for each other.

    Args:
        adapters: The run's heads, before the first round and after each.
        features: (m, F) of the canaries.
        labels: m labels.
        others: Of each device the features (n, F) and labels of its other records.
        clip_norm: Bound on one example's gradient; None if there was none.

    Returns:
        (m,), larger for those that look planted.
    """
    rows, targets = _rows(features), positions(labels, adapters[0].labels)
    known = [(_rows(part), positions(names, adapters[0].labels)) for part, names in others]
    gram = np.zeros((len(rows), len(rows)))
    seen = np.zeros(len(rows))
    similar = rows @ rows.T
    for before, after in itertools.pairwise(adapters):
        weights = np.concatenate([before.weight, before.bias[:, None]], axis=1).astype(np.float64)
        moved = np.concatenate([after.weight, after.bias[:, None]], axis=1) - weights
        if not moved.any():
            continue  # a rejected round tells nothing
        expected = np.stack(
            [(_errors(part, of, weights, clip_norm).T @ part).ravel() for part, of in known]
        )
        down = -moved.ravel()
        errors = _errors(rows, targets, weights, clip_norm)
        alike = np.stack(
            [np.einsum("ij,ij->i", errors @ of.reshape(moved.shape), rows) for of in expected]
        )
        # What lies along a device's other records may be theirs: it speaks for no canary.
        theirs = np.linalg.pinv(expected @ expected.T)
        explained = theirs @ (expected @ down)
        seen += np.einsum("ij,ij->i", errors @ down.reshape(moved.shape), rows)
        seen -= explained @ alike
        gram += (errors @ errors.T) * similar - alike.T @ theirs @ alike
    strength = float(np.trace(gram)) / max(len(rows), 1)
    ridge = gram + _RIDGE * max(strength, 1e-12) * np.eye(len(rows))
    return np.asarray(np.linalg.solve(ridge, seen))


def losses(adapter: Adapter, features: FloatMatrix, labels: Sequence[str]) -> FloatVector:
    """Cross-entropy of each example, (n,); infinite for a label that the adapter lacks."""
    logits = adapter.logits(features).astype(np.float64)
    truth = positions(labels, adapter.labels)
    shifted = logits - logits.max(axis=1, keepdims=True)
    lost = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(truth)), truth]
    return np.where(truth >= 0, lost, np.inf)


def _rows(features: FloatMatrix) -> FloatArray:
    """What a head is multiplied with: scaled features and a one for the bias, (n, F + 1)."""
    ones = np.ones((len(features), 1))
    return np.concatenate([FEATURE_SCALE * features.astype(np.float64), ones], axis=1)


def _errors(
    rows: FloatArray, targets: NDArray[np.int64], weights: FloatArray, clip_norm: float | None
) -> FloatArray:
    """P - y of each example, (n, C), shortened so that its outer product with the row is clipped."""
    logits = rows @ weights.T
    logits -= logits.max(axis=1, keepdims=True)
    errors = np.exp(logits)
    errors /= errors.sum(axis=1, keepdims=True)
    errors[np.arange(len(rows)), targets] -= 1
    if clip_norm is not None:
        norms = np.linalg.norm(errors, axis=1) * np.linalg.norm(rows, axis=1)
        errors *= np.minimum(1.0, clip_norm / np.maximum(norms, 1e-30))[:, None]
    return np.asarray(errors)
