"""A plan follows from its job: noise from ε, ranges from noise, facts from what will be released."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config import read, read_json
from shared.crypto.sum_cipher import Scheme
from shared.errors import ConfigError
from shared.job import COUNT_NOISE, REFUSED_METHODS, Job, RunPlan, plan_run
from shared.models.adapter import AdapterShape, Slot
from shared.privacy.accountant import (
    NonPrivate,
    SampledGaussian,
    SharedDiscreteGaussian,
    alone,
    epsilon,
)
from shared.types import RunId
from shared.wire import topics
from tests.support.plans import a_plan

LABELS = ("refund", "delivery", "password")


LORA = AdapterShape(
    labels=LABELS,
    features=4,
    method="lora",
    rank=2,
    alpha=4.0,
    slots=(Slot(name="layer.0.query", inputs=4, outputs=4),),
)


def plan_of(job: Job, *, features: int = 8, shape: AdapterShape | None = None) -> RunPlan:
    shape = shape or AdapterShape(labels=LABELS, features=features)
    return plan_run(job, run=RunId(job.name), shape=shape, seed=7, simulation=False)


def job_of(**tables: dict[str, Any] | str) -> Job:
    return read(Job, tables, source="test")


@pytest.mark.parametrize("wanted", [0.5, 1.0, 8.0])
@pytest.mark.parametrize(("rounds", "local_steps", "sample_rate"), [(1, 1, 1.0), (20, 3, 0.1)])
def test_a_device_in_every_round_spends_no_more_than_the_jobs_epsilon(
    wanted: float, rounds: int, local_steps: int, sample_rate: float
) -> None:
    plan = plan_of(
        job_of(
            privacy={"epsilon": wanted, "delta": 1e-5},
            training={"rounds": rounds, "local_steps": local_steps, "sample_rate": sample_rate},
        )
    )
    spent = epsilon(plan.run_facts(), delta=1e-5)
    assert 0.98 * wanted < spent <= wanted
    (count,) = plan.count_facts()
    assert count == SampledGaussian(COUNT_NOISE, 1.0, 1)
    assert plan.round_facts() == (SampledGaussian(plan.noise_multiplier, sample_rate, local_steps),)
    assert len(plan.run_facts()) == rounds + 1


def test_without_noise_every_round_says_so_and_costs_everything() -> None:
    plan = plan_of(job_of(privacy={"noise": "none"}))
    assert plan.noise_multiplier == 0
    assert plan.count_facts() == ()
    assert all(isinstance(fact, NonPrivate) for fact in plan.run_facts())
    assert math.isinf(epsilon(plan.run_facts(), delta=1e-5))


def test_an_epsilon_that_no_noise_reaches_is_refused() -> None:
    job = Job().model_copy(
        update={"privacy": Job().privacy.model_copy(update={"epsilon": 1e-3, "delta": 1e-12})}
    )
    with pytest.raises(ConfigError, match="cannot be met by any noise"):
        plan_of(job)


@settings(max_examples=25, deadline=None)
@given(
    wanted=st.floats(0.6, 20),
    rate=st.floats(0.01, 1),
    clip=st.floats(0.1, 10),
    speed=st.floats(0.01, 100),
    steps=st.integers(1, 20),
)
def test_the_noise_fits_its_range_by_six_deviations(
    wanted: float, rate: float, clip: float, speed: float, steps: int
) -> None:
    """Of the noise on a weighted update, worked out here step by step."""
    job = job_of(
        privacy={"epsilon": wanted},
        training={
            "sample_rate": rate,
            "clip_norm": clip,
            "learning_rate": speed,
            "local_steps": steps,
            "rounds": 2,
        },
    )
    plan = plan_of(job)
    one_step = speed * plan.noise_multiplier * clip / (rate * job.training.examples_cap)
    deviation = math.sqrt(sum(one_step**2 for _ in range(steps)))
    assert plan.value_range >= 6 * deviation
    assert plan.value_range == pytest.approx(6 * deviation + speed * clip * steps / 8)
    whole_noise = deviation * math.sqrt(plan.parameters)
    assert plan.update_norm == pytest.approx(2 * (whole_noise + speed * clip * steps))


def test_the_packed_vector_is_weights_bias_and_two_shares_more() -> None:
    plan = plan_of(job_of(protection={"bits": 16, "max_devices": 20}), features=11)
    assert plan.parameters == 3 * 11 + 3
    assert (plan.layout.count, plan.layout.bits, plan.layout.max_devices) == (38, 16, 20)
    assert plan.update_quantiser.value_range == plan.value_range
    assert plan.share_quantiser.value_range == 1.0
    assert plan.update_quantiser.bits == plan.share_quantiser.bits == 16
    assert plan.scheme is Scheme.PUBLIC_KEY


@settings(max_examples=15, deadline=None)
@given(
    wanted=st.floats(4.0, 20),
    noise=st.floats(10.0, 100),
    rounds=st.integers(1, 10),
    rate=st.floats(0.05, 1),
)
def test_a_run_that_evaluates_still_spends_no_more_than_the_jobs_epsilon(
    wanted: float, noise: float, rounds: int, rate: float
) -> None:
    tables: dict[str, Any] = {
        "privacy": {"epsilon": wanted},
        "training": {"rounds": rounds, "sample_rate": rate},
    }
    plain = plan_of(job_of(**tables))
    plan = plan_of(job_of(**tables, evaluation={"share": 0.1, "noise": noise}))
    assert plan.round_facts() == (
        SampledGaussian(plan.noise_multiplier, rate, 1),
        SampledGaussian(noise, 1.0, 1),
    )
    assert 0.98 * wanted < epsilon(plan.run_facts(), delta=1e-5) <= wanted
    assert plan.noise_multiplier >= plain.noise_multiplier, "the update pays for the scores"


def test_the_update_gets_more_noise_where_the_scores_get_less() -> None:
    noises = [
        plan_of(job_of(evaluation=table)).noise_multiplier
        for table in ({}, {"share": 0.1, "noise": 20.0}, {"share": 0.1, "noise": 8.0})
    ]
    assert noises == sorted(set(noises))


def test_scores_that_alone_cost_more_than_the_jobs_epsilon_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be met by any noise"):
        plan_of(job_of(evaluation={"share": 0.1, "noise": 1.0}))


def test_scores_add_two_values_and_without_them_a_plan_is_as_before() -> None:
    plain = plan_of(Job())
    without = plan_of(job_of(evaluation={"share": 0.0, "noise": 3.0}))
    with_scores = plan_of(job_of(evaluation={"share": 0.01}))
    assert not without.evaluates
    assert without.layout == plain.layout
    assert without.layout.count == plain.parameters + 2
    assert without.round_facts() == plain.round_facts()
    assert without.noise_multiplier == plain.noise_multiplier
    assert with_scores.evaluates
    assert with_scores.layout.count == plain.parameters + 4


def test_scores_of_a_run_without_noise_promise_nothing_more_than_the_run() -> None:
    plan = plan_of(job_of(privacy={"noise": "none"}, evaluation={"share": 0.2}))
    assert all(isinstance(fact, NonPrivate) for fact in plan.run_facts())
    assert plan.evaluation_quantiser.value_range == plan.job.training.examples_cap


def test_the_range_of_the_scores_holds_every_example_and_six_deviations_of_noise() -> None:
    plan = plan_of(
        job_of(
            evaluation={"share": 0.2, "noise": 7.0},
            training={"examples_cap": 300},
            protection={"bits": 16},
        )
    )
    assert plan.evaluation_quantiser.value_range == pytest.approx(300 + 6 * math.sqrt(2) * 7)
    assert plan.evaluation_quantiser.bits == 16


def test_the_head_steps_at_the_learning_rate_and_the_inner_matrices_at_their_share_of_it() -> None:
    job = job_of(adapter={"step_ratio": 0.03}, model={"trainable": "lora"})
    ratios = plan_of(job, shape=LORA).step_ratios
    assert ratios.tolist() == [1.0] * LORA.head_parameters + [0.03] * (2 * 4 + 4 * 2)
    assert set(plan_of(job).step_ratios.tolist()) == {1.0}


def test_without_a_head_every_step_is_at_the_learning_rate() -> None:
    shape = LORA.model_copy(update={"labels": ()})
    job = job_of(task="causal-lm", model={"trainable": "lora"})
    assert plan_of(job, shape=shape).step_ratios.tolist() == [1.0] * shape.parameters


@pytest.mark.parametrize(
    ("noise", "shape", "clips"),
    [("local", None, True), ("local", LORA, True), ("none", None, False), ("none", LORA, True)],
)
def test_gradients_are_bounded_with_noise_and_inside_the_base(
    noise: str, shape: AdapterShape | None, clips: bool
) -> None:
    job = job_of(privacy={"noise": noise}, training={"clip_norm": 0.5})
    assert plan_of(job, shape=shape).clip_norm == (0.5 if clips else None)


def test_a_clipped_run_without_noise_cannot_leave_its_ranges() -> None:
    """Steps of at most η C: an update's norm is at most η C L, with room for twice that."""
    job = job_of(
        privacy={"noise": "none"},
        training={"clip_norm": 0.5, "learning_rate": 2.0, "local_steps": 3},
    )
    plan = plan_of(job, shape=LORA)
    assert plan.update_norm == pytest.approx(2 * 2.0 * 0.5 * 3)
    assert 0 < plan.value_range < plan.update_norm


@pytest.mark.parametrize("method", ["lora", "rslora", "bottleneck"])
def test_methods_with_right_gradients_are_allowed(method: str) -> None:
    assert job_of(adapter={"method": method}).adapter.method == method


@pytest.mark.parametrize("method", sorted(REFUSED_METHODS))
@pytest.mark.parametrize("spelt", [str.lower, str.upper, str.title])
def test_a_method_whose_gradients_are_not_right_is_refused_by_name_and_with_the_reason(
    method: str, spelt: Any
) -> None:
    with pytest.raises(ConfigError) as caught:
        job_of(adapter={"method": spelt(method)})
    (problem,) = caught.value.problems
    assert problem.startswith(f"adapter.method: {spelt(method)!r} cannot be trained privately: ")
    assert REFUSED_METHODS[method] in problem
    assert len(REFUSED_METHODS[method]) > 30


@pytest.mark.parametrize("method", ["", "LoRA", "prefix-tuning", "none", "lora "])
def test_a_method_that_nobody_knows_is_refused_with_those_that_are(method: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job_of(adapter={"method": method})
    (problem,) = caught.value.problems
    assert problem == (f"adapter.method: must be one of lora, rslora, bottleneck, not {method!r}")


@pytest.mark.parametrize("task", ["", "text_classification", "Causal-LM", "translation", "../x"])
def test_a_task_that_does_not_exist_is_refused_with_those_that_do(task: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job_of(task=task)
    assert caught.value.problems == [
        f"task: must be one of causal-lm, text-classification, not {task!r}"
    ]


def test_a_task_without_a_head_trains_none() -> None:
    with pytest.raises(ConfigError) as caught:
        job_of(task="causal-lm")
    assert caught.value.problems == ["model.trainable: causal-lm has no head to train; use 'lora'"]
    job_of(task="causal-lm", model={"trainable": "lora"})
    job_of(task="text-classification", model={"trainable": "head"})


def test_a_plan_survives_the_wire() -> None:
    plan = plan_of(Job())
    assert read_json(RunPlan, plan.model_dump_json(), source="wire") == plan


@pytest.mark.parametrize("name", ["a", "my-run-2", "0", "a" * 41, "a--b"])
def test_a_runs_name_is_one_for_topics_and_folders(name: str) -> None:
    assert read(Job, {"name": name}, source="test").name == name
    assert topics.is_name(name)


@pytest.mark.parametrize("name", ["", "a" * 42, "-a", "run-", "A", "a/b", "a.b", "..", "a\n", "ä"])
def test_another_name_is_refused_before_a_round_of_it_is_lost(name: str) -> None:
    """The key holder would refuse 'run-' when the first key is asked for."""
    with pytest.raises(ConfigError, match="name"):
        read(Job, {"name": name}, source="test")


@given(st.text(alphabet="ab0-_/.", max_size=60))
def test_the_grammar_of_plans_is_the_grammar_of_topics(name: str) -> None:
    values = plan_of(JOB).model_dump() | {"run": name, "job": JOB}
    try:
        read(RunPlan, values, source="test")
    except ConfigError:
        assert not topics.is_name(name)
    else:
        assert topics.is_name(name)


JOB = job_of(privacy={"noise": "none"})


def robust(
    rule: str, *, malicious: int = 1, groups: int = 1, least: int = 0
) -> dict[str, dict[str, Any]]:
    """Tables of a robust rule: over encrypted groups, or with ``least`` in clear."""
    protection = {"scheme": "clear", "min_devices": least} if least else {}
    return {
        "server": {"rule": rule, "malicious": malicious},
        "protection": protection | {"groups": groups},
    }


def test_a_stated_range_is_the_plans_range_and_nothing_else_changes() -> None:
    derived = plan_of(Job())
    stated = plan_of(job_of(protection={"value_range": 0.125}))
    assert stated.value_range == 0.125
    assert stated.update_norm == derived.update_norm
    assert stated.round_facts() == derived.round_facts()


def test_sums_that_no_worker_has_room_for_are_refused_when_the_run_is_planned() -> None:
    """Side by side: every device's in clear, every group's encrypted."""
    plan_of(job_of(**robust("median", least=3)), features=1000)
    with pytest.raises(ConfigError, match=r"protection\.max_devices: 240 sums"):
        plan_of(job_of(**robust("median", least=3)), features=100_000)
    with pytest.raises(ConfigError, match=r"protection\.groups: 128 sums"):
        plan_of(job_of(**robust("median", groups=128)), features=100_000)
    plan_of(Job(), features=20_000_000)


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"protection": {"min_devices": 9, "max_devices": 8}}, "protection.min_devices: 9"),
        ({"cohort": {"devices": 15}}, "cohort.devices: 15 is fewer"),
        ({"cohort": {"devices": 241}}, "cohort.devices: 241 is more"),
        (robust("median", groups=3) | {"cohort": {"devices": 47}}, "cohort.devices: 47 is fewer"),
        (robust("median", groups=3) | {"cohort": {"devices": 721}}, "cohort.devices: 721 is more"),
        (robust("median", groups=2), "server.rule: 'median' compares updates"),
        (robust("trimmed-mean", malicious=2, groups=4), "server.rule: 'trimmed-mean' compares"),
        (robust("multikrum", malicious=2, groups=6), "server.rule: 'multikrum' compares"),
        (robust("multikrum", malicious=2, least=6), "server.rule: 'multikrum' with malicious = 2"),
        (robust("trimmed-mean", malicious=3, least=6), "server.rule: 'trimmed-mean' with"),
        (robust("median", least=2), "server.rule: 'median' with malicious = 1 needs 3"),
        (robust("median", least=3, groups=2), "protection.groups: in clear"),
        ({"protection": {"groups": 2}}, "protection.groups: 2 sums would be opened"),
        ({"protection": {"groups": 129}}, "protection.groups: must be"),
        ({"protection": {"groups": 0}}, "protection.groups: must be"),
        ({"protection": {"value_range": -1.0}}, "protection.value_range: must be"),
        ({"protection": {"value_range": 1.1e15}}, "protection.value_range: must be"),
        ({"server": {"malicious": 1001}}, "server.malicious: must be"),
        ({"server": {"malicious": 0}}, "server.malicious: must be"),
        ({"privacy": {"epsilon": 0.49}}, "privacy.epsilon: 0.49"),
        ({"protection": {"min_devices": 1}}, "protection.min_devices: must be"),
        ({"protection": {"max_devices": 241}}, "protection.max_devices: must be"),
        ({"protection": {"scheme": "ckks"}}, "protection.scheme: must be"),
        ({"privacy": {"delta": 1.0}}, "privacy.delta: must be"),
        ({"training": {"sample_rate": 0.0}}, "training.sample_rate: must be"),
        ({"evaluation": {"share": 1.0}}, "evaluation.share: must be"),
        ({"evaluation": {"share": -0.1}}, "evaluation.share: must be"),
        ({"evaluation": {"noise": 0.09}}, "evaluation.noise: must be"),
        ({"adapter": {"rank": 0}}, "adapter.rank: must be"),
        ({"adapter": {"step_ratio": 0.0}}, "adapter.step_ratio: must be"),
    ],
)
def test_one_past_the_bound_is_refused_with_its_reason(
    tables: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        job_of(**tables)
    assert any(found.startswith(problem) for found in caught.value.problems)


@pytest.mark.parametrize(
    "tables",
    [
        {"protection": {"min_devices": 8, "max_devices": 8}},
        {"cohort": {"devices": 16}},
        {"cohort": {"devices": 240}},
        robust("median", groups=3),
        robust("median", groups=3) | {"cohort": {"devices": 48}},
        robust("median", groups=3) | {"cohort": {"devices": 720}},
        robust("trimmed-mean", malicious=2, groups=5),
        robust("multikrum", malicious=2, groups=7),
        robust("multikrum", malicious=2, least=7),
        robust("trimmed-mean", malicious=3, least=7),
        robust("median", least=3),
        robust("median", groups=128),
        {"protection": {"value_range": 1e15}},
        {"cohort": {"devices": 0}},
        {"privacy": {"epsilon": 0.5}},
        {"privacy": {"epsilon": 0.1, "noise": "none"}},
        {"protection": {"min_devices": 2}},
    ],
)
def test_on_the_bound_is_allowed(tables: dict[str, Any]) -> None:
    job_of(**tables)


# Noise that devices share


def a_shared_plan(**tables: dict[str, Any]) -> RunPlan:
    chosen: dict[str, dict[str, Any]] = {
        "privacy": {"noise": "distributed"},
        "protection": {"bits": 16, "min_devices": 5},
        "training": {"rounds": 20, "sample_rate": 0.3},
    }
    merged: dict[str, Any] = {
        name: chosen.get(name, {}) | tables.get(name, {}) for name in chosen | tables
    }
    job = read(Job, {"name": "run"} | merged, source="test")
    return plan_of(job)


@pytest.mark.parametrize("epsilon_asked", [0.5, 1.0, 3.0, 8.0, 20.0])
@pytest.mark.parametrize("min_devices", [2, 9, 200])
def test_devices_that_share_noise_spend_no_more_than_the_jobs_epsilon_and_hardly_less(
    epsilon_asked: float, min_devices: int
) -> None:
    plan = a_shared_plan(
        privacy={"epsilon": epsilon_asked},
        protection={"min_devices": min_devices},
        evaluation={"share": 0.2, "noise": 100.0},
    )
    spent = epsilon(plan.run_facts(), delta=1e-5)
    assert 0.99 * epsilon_asked <= spent <= epsilon_asked
    assert epsilon(alone(plan.run_facts()), delta=1e-5) > spent


def test_clip_and_noise_of_a_shared_round_fit_into_a_value() -> None:
    plan = a_shared_plan()
    deviation = math.sqrt(plan.share_variance)
    assert plan.coordinate_clamp + plan.noise_reach == plan.layout.magnitude
    assert plan.noise_reach >= 11 * deviation
    assert plan.coordinate_clamp >= 16 * plan.integer_clip - 1


def test_a_step_of_the_integers_is_a_step_of_the_learning_rate() -> None:
    """One example's gradient of the whole clip moves the mean by η C / (q · cap · devices)."""
    plan = a_shared_plan()
    training = plan.job.training
    moved = plan.update_quantiser.dequantise(np.array([plan.integer_clip]))[0]
    expected = training.learning_rate * training.clip_norm
    assert moved == pytest.approx(expected / (training.sample_rate * training.examples_cap))


def test_a_shared_plan_survives_the_wire() -> None:
    plan = a_shared_plan()
    assert read_json(RunPlan, plan.model_dump_json().encode(), source="wire") == plan


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"training": {"local_steps": 2}}, "training.local_steps: must be 1"),
        ({"training": {"proximal_mu": 0.1}}, "training.proximal_mu: must be 0"),
        ({"protection": {"bits": 12}}, "protection.bits: must be 16"),
        ({"protection": {"scheme": "clear"}}, "protection.scheme: must not be 'clear'"),
        ({"protection": {"value_range": 1.0}}, "protection.value_range: must be left at 0"),
    ],
)
def test_what_noise_cannot_be_shared_over_is_refused_with_the_reason(
    tables: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        a_shared_plan(**tables)


def test_an_epsilon_for_which_sixteen_bits_have_no_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be met"):
        a_shared_plan(privacy={"epsilon": 1e-4})
    with pytest.raises(ConfigError, match="held-out examples' scores alone"):
        a_shared_plan(privacy={"epsilon": 0.5}, evaluation={"share": 0.2, "noise": 1.0})


def test_gradients_too_long_to_be_rounded_are_refused() -> None:
    job = a_shared_plan(privacy={"epsilon": 0.5}).job
    shape = AdapterShape(labels=("a", "b"), features=2_000_000)
    with pytest.raises(ConfigError, match="train fewer parameters"):
        plan_run(job, run=RunId("run"), shape=shape, seed=1, simulation=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"integer_clip": 0},
        {"share_variance": 0},
        {"share_variance": 10**8},
        {"integer_clip": 30_000},
    ],
)
def test_a_plan_whose_shared_noise_has_no_room_is_refused(changes: dict[str, int]) -> None:
    altered = a_shared_plan().model_dump(mode="json") | changes
    with pytest.raises(ConfigError):
        read_json(RunPlan, json.dumps(altered).encode(), source="wire")


def test_a_plan_with_local_noise_has_no_shares() -> None:
    altered = a_plan().model_dump(mode="json") | {"integer_clip": 10, "share_variance": 10}
    with pytest.raises(ConfigError, match="only distributed noise"):
        read_json(RunPlan, json.dumps(altered).encode(), source="wire")


# Devices hidden as a whole


def a_device_plan(**tables: dict[str, Any]) -> RunPlan:
    privacy = {"level": "device", "update_clip": 0.5} | tables.pop("privacy", {})
    return a_shared_plan(privacy={"noise": "distributed"} | privacy, **tables)


@pytest.mark.parametrize("participation", [0.3, 1.0])
def test_a_run_that_hides_devices_spends_its_epsilon_on_them_and_more_on_records(
    participation: float,
) -> None:
    plan = a_device_plan(privacy={"participation": participation}, training={"local_steps": 4})
    spent = epsilon(plan.run_facts(), delta=1e-5, unit="device")
    assert 0.99 * 8 <= spent <= 8
    assert epsilon(plan.run_facts(), delta=1e-5) > spent
    fact = plan.round_facts()[0]
    assert isinstance(fact, SharedDiscreteGaussian)
    assert (fact.unit, fact.sample_rate) == ("device", participation)


def test_a_whole_update_at_its_clip_fits_into_a_value_and_is_worth_the_clip() -> None:
    plan = a_device_plan()
    assert plan.integer_clip <= plan.coordinate_clamp
    assert plan.update_quantiser.dequantise(np.array([plan.integer_clip]))[0] == pytest.approx(0.5)
    assert plan.clip_norm is None, "examples need no clip where the whole update has one"


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"privacy": {"noise": "local"}}, "privacy.level: 'device' needs"),
        ({"privacy": {"noise": "none"}}, "privacy.level: 'device' needs"),
        ({"evaluation": {"share": 0.1}}, "evaluation.share: must be 0"),
    ],
)
def test_what_hides_no_device_is_refused_with_the_reason(
    tables: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        a_device_plan(**tables)
