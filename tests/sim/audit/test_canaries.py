"""Canaries are planted by coins, and found where nothing hides them."""

from __future__ import annotations

import numpy as np
import pytest

from shared.data_files import Example
from shared.errors import DataError
from shared.models.adapter import Adapter, AdapterShape
from shared.types import DeviceId, Digest, FloatMatrix
from sim.audit.canaries import Canaries, canary_scores, draw_canaries, losses, with_canaries
from sim.audit.leak import best_bound, membership_bound
from sim.population import Population

LABELS = ("a", "b", "c", "d")
FEATURES = 24


def a_population() -> Population:
    words = [f"word{number}" for number in range(40)]
    devices = {
        DeviceId(f"device-{d}"): [
            Example(f"{words[(n + d) % 40]} {words[(3 * n) % 40]}", LABELS[n % 4])
            for n in range(30)
        ]
        for d in (1, 2)
    }
    return Population(devices, [Example("probe", "a")])


def test_canaries_are_new_texts_of_known_words_under_known_labels() -> None:
    population = a_population()
    canaries = draw_canaries(population, 200, seed=3)
    known = {each.text for part in population.devices.values() for each in part}
    texts = {example.text for example in canaries.examples}
    assert len(texts) == 200
    assert not texts & known
    assert {word for text in texts for word in text.split()} <= {
        word for text in known for word in text.split()
    }
    assert {example.label for example in canaries.examples} == set(LABELS)


def test_too_few_words_for_so_many_canaries_are_told() -> None:
    population = Population({DeviceId("d"): [Example("yes", "a"), Example("no", "b")]}, [])
    with pytest.raises(DataError, match="2 different words make too few texts for 100 canaries"):
        draw_canaries(population, 100, seed=3)


def test_coins_are_fair_and_follow_the_seed() -> None:
    """Within five standard errors of one half; the seed is fixed."""
    canaries = draw_canaries(a_population(), 1000, seed=3)
    assert float(canaries.planted.mean()) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(1000))
    again, other = (draw_canaries(a_population(), 1000, seed=seed) for seed in (3, 4))
    assert np.array_equal(canaries.planted, again.planted)
    assert canaries.examples == again.examples
    assert not np.array_equal(canaries.planted, other.planted)


def test_only_planted_canaries_are_dealt_and_nothing_else_changes() -> None:
    population = a_population()
    canaries = draw_canaries(population, 50, seed=3)
    planted = with_canaries(population, canaries, seed=3)
    added = []
    for device, part in planted.devices.items():
        before = population.devices[device]
        assert part[: len(before)] == before
        added += part[len(before) :]
    expected = [e for e, was in zip(canaries.examples, canaries.planted, strict=True) if was]
    assert sorted(example.text for example in added) == sorted(e.text for e in expected)
    assert planted.probe == population.probe
    assert all(planted.devices[device] != population.devices[device] for device in planted.devices)


def some_features(count: int, seed: int) -> FloatMatrix:
    rows = np.random.default_rng(seed).normal(size=(count, FEATURES)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def trained(
    canaries: FloatMatrix,
    labels: list[str],
    planted: np.ndarray,
    others: list[tuple[FloatMatrix, list[str]]],
    *,
    rounds: int,
    noise: float,
) -> list[Adapter]:
    """Full-batch clipped descent, written anew; devices weigh 1 and 0.6."""
    rng = np.random.default_rng(11)
    shape = AdapterShape(labels=LABELS, features=FEATURES)
    adapters = [Adapter.initial(shape, Digest("ab" * 32))]

    def total(features: FloatMatrix, names: list[str], adapter: Adapter) -> np.ndarray:
        rows = np.hstack([10 * features.astype(float), np.ones((len(features), 1))])
        logits = adapter.logits(features).astype(float)
        logits -= logits.max(axis=1, keepdims=True)
        chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        summed = np.zeros((len(LABELS), FEATURES + 1))
        for row, chance, name in zip(rows, chances, names, strict=True):
            gradient = np.outer(chance - (np.array(LABELS) == name), row)
            summed += gradient * min(1.0, 1.0 / max(float(np.linalg.norm(gradient)), 1e-12))
        return summed

    for _ in range(rounds):
        adapter = adapters[-1]
        step = sum(
            weight * total(features, names, adapter)
            for weight, (features, names) in zip((1.0, 0.6), others, strict=True)
        )
        names = [name for name, was in zip(labels, planted, strict=True) if was]
        step = step + total(canaries[planted], names, adapter)
        step = step + noise * rng.normal(size=step.shape)
        change = -0.02 * step
        adapters.append(adapter.moved(np.concatenate([change[:, :-1].ravel(), change[:, -1]])))
    return adapters


def found(noise: float) -> tuple[float, Canaries]:
    canaries = some_features(60, 1)
    rng = np.random.default_rng(2)
    labels = [LABELS[int(number)] for number in rng.integers(0, 4, 60)]
    planted = rng.random(60) < 0.5
    others: list[tuple[FloatMatrix, list[str]]] = [
        (some_features(80, 10 + d), [LABELS[n % 4] for n in range(80)]) for d in (0, 1)
    ]
    adapters = trained(canaries, labels, planted, others, rounds=6, noise=noise)
    scores = canary_scores(adapters, canaries, labels, others, clip_norm=1.0)
    coins = Canaries([Example("x", "a")] * 60, planted)
    right = float(np.mean((scores > np.median(scores)) == planted))
    assert best_bound(scores, coins, 1e-5)[0] >= 0
    return right, coins


def test_without_noise_nearly_every_canary_is_told_right() -> None:
    assert found(noise=0.0)[0] > 0.85


def test_with_much_noise_guesses_are_chance() -> None:
    """Of 60 guesses within five standard errors of one half; the seed is fixed."""
    assert found(noise=300.0)[0] == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(60))


def test_the_losses_are_those_of_the_labels() -> None:
    shape = AdapterShape(labels=LABELS, features=FEATURES)
    start = Adapter.initial(shape, Digest("ab" * 32))
    lost = losses(start, some_features(3, 1), ["a", "b", "unknown"])
    assert lost[:2] == pytest.approx(np.log(4))
    assert lost[2] == np.inf


def test_the_number_of_guesses_is_paid_for_in_confidence() -> None:
    """Perfect scores of 1,000 canaries: five numbers of guesses were tried, so 99 % for each."""
    planted = np.arange(1000) % 2 == 0
    coins = Canaries([Example("x", "a")] * 1000, planted)
    bound, guesses, right = best_bound(np.where(planted, 1.0, 0.0), coins, 0.0)
    assert (guesses, right) == (800, 800)
    chance = 0.01 ** (1 / 800)
    assert bound == pytest.approx(np.log(chance / (1 - chance)), rel=1e-6)


@pytest.mark.parametrize("planted", [True, False])
def test_coins_that_all_fell_alike_prove_nothing(planted: bool) -> None:
    canaries = Canaries([Example(str(n), "a") for n in range(20)], np.full(20, planted))
    bound, _ = membership_bound(np.arange(20.0), canaries, 1e-5, seed=3)
    assert bound == 0.0
