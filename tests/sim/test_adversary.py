"""Hostile devices are drawn by the seed, poison what was said, and are outvoted where a rule can."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.training.trainer import TrainRequest
from shared.config import read
from shared.data_files import Example
from shared.types import DeviceId
from sim.adversary import ScaledTrainer, draw_hostile, with_flipped_labels
from sim.population import Population
from sim.scenario import AdversaryTable, Scenario
from sim.simulation import Workshop, simulate
from tests.support.plans import a_plan
from tests.support.small_fleet import SEED, small_scenario
from tests.support.stories import model_or_skip
from tests.support.trainers import SeededTrainer, update_of

KINDS = ["label-flip", "scaled-update"]


def table(kind: str, share: float, **values: float) -> AdversaryTable:
    return read(AdversaryTable, {"kind": kind, "share": share} | values, source="test")


def named(count: int) -> list[DeviceId]:
    return [DeviceId(f"device-{number}") for number in range(count)]


# Who


@given(st.sampled_from(KINDS), st.integers(2, 200), st.floats(0, 0.5), st.integers(0, 99))
def test_the_share_is_rounded_to_whole_devices(
    kind: str, count: int, share: float, seed: int
) -> None:
    devices = named(count)
    hostile = draw_hostile(table(kind, share), devices, seed=seed)
    assert abs(len(hostile) - share * count) <= 0.5
    assert hostile == [device for device in devices if device in set(hostile)]


@pytest.mark.parametrize(("count", "share", "drawn"), [(10, 0.05, 1), (10, 0.049, 0), (5, 0.5, 3)])
def test_a_half_is_rounded_upwards(count: int, share: float, drawn: int) -> None:
    assert len(draw_hostile(table("label-flip", share), named(count), seed=1)) == drawn


@given(st.integers(2, 60), st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0, 99))
def test_a_larger_share_adds_to_a_smaller_whatever_the_kind(
    count: int, one: float, other: float, seed: int
) -> None:
    small, large = sorted((one, other))
    few = draw_hostile(table("label-flip", small), named(count), seed=seed)
    many = draw_hostile(table("scaled-update", large), named(count), seed=seed)
    assert set(few) <= set(many)


def test_seeds_draw_different_devices() -> None:
    drawn = {tuple(draw_hostile(table("label-flip", 0.3), named(40), seed=s)) for s in range(5)}
    assert len(drawn) == 5


def test_nobody_means_harm_unless_asked() -> None:
    assert draw_hostile(AdversaryTable(), named(10), seed=1) == []


# What


def test_flipped_labels_are_mirrored_in_the_sorted_list_of_all_labels() -> None:
    labels = ["a", "b", "c", "d", "e"]
    good, bad = named(2)
    # "e" is held out alone: the list is of all labels, not of one device's.
    examples = [Example(f"text {label}", label, "en") for label in labels[:4]]
    before = Population({good: examples, bad: examples}, [Example("text e", "e", "en")])
    after = with_flipped_labels(before, [bad])
    assert after.probe == before.probe
    assert after.devices[good] == examples
    assert [example.label for example in after.devices[bad]] == ["e", "d", "c", "b"]
    assert [(e.text, e.group) for e in after.devices[bad]] == [(e.text, e.group) for e in examples]


def test_flipping_twice_changes_nothing() -> None:
    (device,) = named(1)
    examples = [Example(str(n), f"label {n % 7}") for n in range(20)]
    before = Population({device: examples}, examples)
    flipped = with_flipped_labels(before, [device])
    assert flipped != before
    assert with_flipped_labels(flipped, [device]) == before


@pytest.mark.parametrize("factor", [-10.0, 0.0, 3.0])
def test_a_scaled_update_is_what_was_learnt_times_the_factor(factor: float, tmp_path: Path) -> None:
    honest = SeededTrainer(scores=(1.5, 3))
    trainer = ScaledTrainer(honest, factor)
    request = TrainRequest(
        store_path=tmp_path, cache_folder=tmp_path, base="", adapter=b"", learning_rate=1.0,
        local_steps=2, sample_rate=1.0, clip_norm=None, noise_multiplier=0.0,
        expected_examples=1.0, seed=bytes(32),
    )  # fmt: skip
    trained = trainer.train(request)
    assert trained.update.dtype == np.float32
    assert np.array_equal(trained.update, update_of(bytes(32)) * np.float32(factor))
    assert (trained.steps, trained.score_sum, trained.scored) == (2, 1.5, 3)
    assert honest.requests == [request]
    assert trainer.prepare(a_plan(), tmp_path, tmp_path) == honest.prepared == 1
    trainer.close()
    assert honest.closed == 1


# What comes of it

DEVICES = 10
WIDE = {"bits": 16, "value_range": 100.0}
"""Nothing is saturated: the usual range shortens a hostile update until the mean of ten stands it."""
GROUPS = {"scheme": "public-key", "groups": 5, "min_devices": 2}
CLEAR = {"scheme": "clear", "groups": 1, "min_devices": 5}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    model_or_skip()
    shop = Workshop(2, features=tmp_path_factory.mktemp("features"))
    yield shop
    shop.close()


def attacked(folder: Path, rule: str, protection: dict[str, Any], **adversary: Any) -> Scenario:
    """Ten devices without noise and one of them hostile, by default with a turned, long update."""
    attack = {"kind": "scaled-update", "share": 0.1, "factor": -100.0} | adversary
    return small_scenario(
        folder,
        data={"split": "iid"},
        population={"devices": DEVICES},
        training={"examples_cap": 8, "learning_rate": 1.0},
        privacy={"noise": "none"},
        protection=protection | WIDE,
        server={"rule": rule},
        adversary=attack,
    )


def loss_of(scenario: Scenario, workshop: Workshop) -> float:
    """Loss on held-out texts at the end, by that at the start; of three labels that is log 3."""
    report = simulate(scenario, seed=SEED, watch=lambda *_: None, workshop=workshop)
    (hostile,) = report["adversary"]["devices"]
    assert hostile in report["epsilon"]
    assert [entry["reported"] for entry in report["history"]] == [DEVICES] * 3
    return float(report["loss"]["after"] / report["loss"]["before"])


@pytest.mark.model
@pytest.mark.slow
def test_one_scaled_update_ruins_the_mean(tmp_path: Path, workshop: Workshop) -> None:
    """The control for what follows; and without the attack the mean learns well."""
    assert loss_of(attacked(tmp_path, "fedavg", CLEAR), workshop) > 1
    assert loss_of(attacked(tmp_path, "fedavg", CLEAR, factor=1.0), workshop) < 0.1


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("protection", [CLEAR, GROUPS], ids=["clear", "groups"])
@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "multikrum"])
def test_one_scaled_update_is_outvoted(
    tmp_path: Path, workshop: Workshop, rule: str, protection: dict[str, Any]
) -> None:
    assert loss_of(attacked(tmp_path, rule, protection), workshop) < 0.1


@pytest.mark.model
@pytest.mark.slow
def test_a_workshop_changes_nothing_but_the_time(tmp_path: Path, workshop: Workshop) -> None:
    scenario = attacked(tmp_path, "median", CLEAR, kind="label-flip")
    alone, again, once_more = (
        simulate(scenario, seed=SEED, watch=lambda *_: None, workshop=shop)
        for shop in (None, workshop, workshop)
    )
    assert alone["adapter_hash"] == again["adapter_hash"] == once_more["adapter_hash"]
    assert alone["adversary"] == {
        "kind": "label-flip",
        "share": 0.1,
        "factor": -100.0,
        "devices": again["adversary"]["devices"],
    }
    assert math.isclose(alone["accuracy"]["central"]["all"], again["accuracy"]["central"]["all"])
