"""Matrices inside a base get the gradient of one example at a time, joined by one clip."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.training import dp_sgd
from edge_agent.training.trainer import TrainRequest
from shared.errors import GateRefused
from shared.models.adapter import Adapter
from shared.models.encoder import BaseModel
from shared.models.pytorch import CausalModel, Prefix, TextEncoder, lowest_layer
from shared.models.task import find_task
from shared.privacy.release import ReleaseStream
from shared.types import FloatMatrix, FloatVector
from tests.support.tiny_models import ENCODERS, LANGUAGE_MODELS, make_tiny_base, tiny_adapter

torch: Any = pytest.importorskip("torch")
pytest.importorskip("opacus")
pytest.importorskip("peft")

TEXTS = (
    "where is my parcel",
    "hello",
    "refund it now please the order the order the order",
    "yes no yes",
    "cancel the order",
    "is it my order",
)
TARGETS = np.array([0, 1, 2, 0, 1, 2])
PAIRS = (
    ("where is my parcel", "yes hello"),
    ("hello", "no"),
    ("refund it now please", "the order the order is my parcel"),
    ("yes no yes", "it is"),
    ("cancel the order", "now please"),
)


def a_request(**changes: Any) -> TrainRequest:
    fields: dict[str, Any] = {
        "store_path": Path("store"),
        "cache_folder": Path("cache"),
        "base": "base",
        "adapter": b"",
        "learning_rate": 0.1,
        "local_steps": 1,
        "sample_rate": 1.0,
        "clip_norm": 1.0,
        "noise_multiplier": 0.0,
        "expected_examples": 6.0,
        "seed": bytes(32),
        "step_ratio": 0.5,
    }
    return TrainRequest(**(fields | changes))


@dataclasses.dataclass
class Case:
    """A base, an adapter in it, and examples."""

    model: TextEncoder | CausalModel
    adapter: Adapter
    cached: bool = True

    @property
    def causal(self) -> bool:
        return isinstance(self.model, CausalModel)

    @property
    def task(self) -> str:
        return "causal-lm" if self.causal else "text-classification"

    @property
    def prefix(self) -> Prefix:
        model = self.model
        tokens = model.tokens(PAIRS) if isinstance(model, CausalModel) else model.tokens(TEXTS)
        depth = lowest_layer(self.adapter.shape)
        states = model.states(tokens, depth) if self.cached else None
        return Prefix(model, tokens, depth, states)

    @contextlib.contextmanager
    def learner(self) -> Iterator[dp_sgd.Learner]:
        with self.model.adapted(self.adapter) as adapted:
            targets = None if self.causal else TARGETS
            yield dp_sgd.inner_learner(adapted, self.prefix, targets, self.adapter)

    def update(self, request: TrainRequest, rows: dp_sgd.Rows | None = None) -> FloatMatrix:
        with self.learner() as learner:
            return dp_sgd.local_update(learner, self.rows if rows is None else rows, request)

    @property
    def rows(self) -> dp_sgd.Rows:
        return np.arange(len(PAIRS) if self.causal else len(TEXTS))

    def losses(self) -> FloatVector:
        with self.learner() as learner, torch.no_grad():
            parts = []
            for row in self.rows:
                inputs, targets = learner.load(np.array([row]))
                lost, _ = find_task(self.task).outcome(torch, learner.module(*inputs), targets)
                parts.append(float(lost[0]))
        return np.array(parts)

    def gradients(self) -> dict[int, FloatVector]:
        """One ordinary backward pass for each example alone, without Opacus and padding."""
        found = {}
        with self.learner() as learner:
            for row in self.rows:
                inputs, targets = learner.load(np.array([row]))
                losses, _ = find_task(self.task).outcome(torch, learner.module(*inputs), targets)
                grads = torch.autograd.grad(losses.sum(), learner.parameters)
                found[int(row)] = np.concatenate([g.numpy().ravel() for g in grads]).astype(float)
        return found

    def ratios(self, request: TrainRequest) -> FloatVector:
        ratios = np.full(self.adapter.parameters, request.step_ratio)
        ratios[: self.adapter.shape.head_parameters] = 1.0
        return ratios


CASES = {
    **{f"{kind} lora": (kind, "lora", 2) for kind in ENCODERS},
    "bert lora on all layers": ("bert", "lora", 3),
    "bert rslora": ("bert", "rslora", 1),
    "bert bottleneck": ("bert", "bottleneck", 2),
    "distilbert bottleneck": ("distilbert", "bottleneck", 1),
    **{f"{kind} lora on all layers": (kind, "lora", 3) for kind in LANGUAGE_MODELS},
    "qwen2 rslora on top": ("qwen2", "rslora", 1),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseModel]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        kind: make_tiny_base(folder / kind, kind, chat=kind == "qwen2")
        for kind in (*ENCODERS, *LANGUAGE_MODELS)
    }


FEW = ("bert lora", "distilbert bottleneck", "llama lora on all layers", "qwen2 rslora on top")


@pytest.fixture(params=CASES)
def each(request: pytest.FixtureRequest, bases: dict[str, BaseModel]) -> Case:
    return a_case(bases, *CASES[request.param])


@pytest.fixture(params=FEW)
def case(request: pytest.FixtureRequest, bases: dict[str, BaseModel]) -> Case:
    return a_case(bases, *CASES[request.param])


@pytest.fixture
def bert(bases: dict[str, BaseModel]) -> Case:
    return a_case(bases, "bert", "lora", 2)


def a_case(bases: dict[str, BaseModel], kind: str, method: Any, top: int) -> Case:
    base, causal = bases[kind], kind in LANGUAGE_MODELS
    model = CausalModel(base) if causal else TextEncoder(base)
    labels = () if causal else ("a", "b", "c")
    return Case(model, tiny_adapter(base, method, top=top, labels=labels))


@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_a_step_adds_the_clipped_gradients_of_examples_alone(each: Case, clip_norm: float) -> None:
    """The loop takes one example at a time, so that no padding and no hook has a part in it."""
    request = a_request(clip_norm=clip_norm, task=each.task)
    gradients = each.gradients()
    total = np.zeros(each.adapter.parameters)
    for gradient in gradients.values():
        assert np.linalg.norm(gradient) > 1e-3, "or the comparison would say nothing"
        total += gradient * min(1.0, clip_norm / float(np.linalg.norm(gradient)))
    expected = -request.learning_rate * total / 6.0
    update = each.update(request)
    assert update.dtype == np.float32
    assert np.linalg.norm(update - expected) <= 2e-5 * np.linalg.norm(expected)
    if clip_norm == 0.5:
        assert any(np.linalg.norm(gradient) > clip_norm for gradient in gradients.values())


def test_each_example_s_gradient_is_that_of_the_example_alone(each: Case) -> None:
    """What distributed noise clips and rounds; its sum over examples hides no swap of two."""
    with each.learner() as learner:
        batches = dp_sgd.sample_gradients(learner, each.rows, a_request(task=each.task))
        found = np.concatenate(list(batches))
    alone = np.stack(list(each.gradients().values()))
    assert found.shape == alone.shape
    order = [int(np.argmin(np.linalg.norm(found - one, axis=1))) for one in alone]
    assert sorted(order) == list(range(len(alone))), "batches are by length, none is there twice"
    assert np.linalg.norm(found[order] - alone) <= 2e-5 * np.linalg.norm(alone)


def test_every_tensor_learns(each: Case) -> None:
    moved = Adapter(each.adapter.shape, each.adapter.base, dict(each.adapter.tensors)).moved(
        each.update(a_request(task=each.task))
    )
    still = [
        name
        for name, tensor in moved.tensors.items()
        if (tensor == each.adapter.tensors[name]).all()
    ]
    assert still == []


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
def test_several_steps_are_those_of_a_slow_loop(bases: dict[str, BaseModel], kind: str) -> None:
    """Sample, clip, noise, denominators, proximal pull and step ratio in float64."""
    case = a_case(bases, kind, "lora", 2)
    request = a_request(
        task=case.task,
        local_steps=3,
        sample_rate=0.6,
        noise_multiplier=0.3,
        clip_norm=0.7,
        proximal_mu=0.4,
        seed=bytes([5]) * 32,
    )
    stream, ratios = ReleaseStream(request.seed), case.ratios(request)
    start = case.adapter.flatten().astype(np.float64)
    here = case.adapter
    for _ in range(request.local_steps):
        drawn = stream.uniforms("sample", len(case.rows)) < request.sample_rate
        gradients = Case(case.model, here).gradients()
        total = np.zeros(len(start))
        for row in case.rows[drawn]:
            norm = float(np.linalg.norm(gradients[row]))
            total += gradients[row] * min(1.0, 0.7 / norm)
        total += 0.3 * 0.7 * stream.gaussians("noise", len(start))
        total /= request.sample_rate * request.expected_examples
        total += request.proximal_mu * (here.flatten() - start)
        here = here.moved(-request.learning_rate * ratios * total)
    expected = (here.flatten() - start) / ratios
    update = case.update(request)
    assert np.linalg.norm(update - expected) <= 1e-4 * np.linalg.norm(expected)


def test_physical_batches_do_not_show(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    request = a_request(task=case.task, noise_multiplier=0.5, local_steps=2)
    whole = case.update(request)
    monkeypatch.setattr("shared.models.pytorch._BATCH_ROWS", 2)
    parts = case.update(request)
    assert np.linalg.norm(parts - whole) <= 1e-4 * np.linalg.norm(whole)


def test_what_is_cached_of_the_frozen_layers_does_not_show(case: Case) -> None:
    request = a_request(task=case.task, local_steps=2)
    fresh = dataclasses.replace(case, cached=False).update(request)
    cached = case.update(request)
    assert np.linalg.norm(fresh - cached) <= 1e-4 * np.linalg.norm(cached)


def test_one_example_of_any_size_moves_the_sum_by_at_most_the_clip(
    bases: dict[str, BaseModel],
) -> None:
    """A head of huge weights makes gradients that unclipped would drown everything."""
    case = a_case(bases, "bert", "lora", 2)
    tensors = dict(case.adapter.tensors)
    tensors["head.weight"] = tensors["head.weight"] * 1000
    case = dataclasses.replace(case, adapter=dataclasses.replace(case.adapter, tensors=tensors))
    norms = [np.linalg.norm(gradient) for gradient in case.gradients().values()]
    assert max(norms) > 1000
    request = a_request(clip_norm=0.2, noise_multiplier=1.0)
    whole = case.update(request)
    for removed in case.rows:
        rest = case.update(request, rows=np.delete(case.rows, removed))
        moved = (whole - rest).astype(np.float64) * 6.0 / request.learning_rate
        assert np.linalg.norm(moved) <= 0.2 * (1 + 1e-4)


def test_head_and_matrices_share_one_clip(bert: Case) -> None:
    request = a_request(clip_norm=0.01, expected_examples=1.0, learning_rate=1.0)
    update = bert.update(request, rows=np.array([2])).astype(np.float64)
    assert np.linalg.norm(update) == pytest.approx(0.01, rel=1e-3)
    head = bert.adapter.shape.head_parameters
    assert np.linalg.norm(update[:head]) > 1e-4
    assert np.linalg.norm(update[head:]) > 1e-4


def test_an_empty_sample_still_steps_with_noise_in_the_parameters_order(case: Case) -> None:
    request = a_request(
        task=case.task, sample_rate=1e-9, expected_examples=1e9, noise_multiplier=1.0, local_steps=2
    )
    stream, count = ReleaseStream(request.seed), case.adapter.parameters
    noise = stream.gaussians("noise", count) + stream.gaussians("noise", count)
    assert case.update(request) == pytest.approx(-0.1 * noise, abs=1e-5)


def test_an_empty_sample_after_a_full_one_adds_noise_alone(bert: Case) -> None:
    """Gradients that a step left behind must not be counted again."""
    request = a_request(sample_rate=0.35, noise_multiplier=1e-6, local_steps=2)
    for number in range(200):
        request = dataclasses.replace(request, seed=bytes([number]) * 32)
        stream = ReleaseStream(request.seed)
        first, second = (stream.uniforms("sample", 6) < 0.35 for _ in range(2))
        if first.any() and not second.any():
            break
    else:
        pytest.fail("no such seed")
    both = bert.update(request)
    alone = bert.update(dataclasses.replace(request, local_steps=1))
    assert np.linalg.norm(both - alone) <= 1e-4 * np.linalg.norm(alone)


def test_the_noise_has_the_promised_scale(bases: dict[str, BaseModel]) -> None:
    """False alarms: five standard errors of a variance, one seed in 1.7 million."""
    base = bases["bert"]
    wide = tiny_adapter(base, "lora", labels=tuple(f"l{index}" for index in range(400)))
    case = Case(TextEncoder(base), wide)
    request = a_request(
        sample_rate=1e-9,  # nobody is drawn: what is left is noise
        expected_examples=1e9 * 7.0,
        noise_multiplier=2.85,
        clip_norm=0.5,
        learning_rate=3.0,
        local_steps=4,
        step_ratio=0.01,
    )
    update = case.update(request)
    std = 3.0 * 2.85 * 0.5 / 7.0 * 2
    for part in np.split(update, [wide.shape.head_parameters]):
        assert len(part) >= 256
        assert np.var(part) == pytest.approx(std**2, rel=5 * math.sqrt(2 / len(part)))


def test_without_noise_and_with_a_wide_clip_it_is_plain_training(case: Case) -> None:
    request = a_request(task=case.task, clip_norm=1e6, local_steps=3)
    plain = case.update(dataclasses.replace(request, clip_norm=None))
    assert np.linalg.norm(case.update(request) - plain) <= 1e-4 * np.linalg.norm(plain)


def test_the_step_ratio_shortens_steps_inside_and_not_the_update(bert: Case) -> None:
    """Updates travel divided by it, so that one value range fits head and matrices."""
    first, second = (bert.update(a_request(step_ratio=ratio)) for ratio in (1.0, 0.01))
    # What moves a hundredth as far is rounded a hundred times as much.
    assert np.linalg.norm(first - second) <= 2e-3 * np.linalg.norm(first)


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
def test_private_training_inside_a_base_learns(bases: dict[str, BaseModel], kind: str) -> None:
    """DP with LoRA has trained garbage for others without a word (opacus #820, #732)."""
    start = a_case(bases, kind, "lora", 2)
    request = a_request(
        task=start.task, learning_rate=1.0, local_steps=60, noise_multiplier=0.05, step_ratio=1.0
    )
    trained = start.adapter.moved(start.update(request))
    after = dataclasses.replace(start, adapter=trained).losses()
    assert after.mean() < 0.6 * start.losses().mean()
    # The same steps with each gradient thrown away would be noise alone.
    nothing = start.adapter.moved(start.update(dataclasses.replace(request, sample_rate=1e-9)))
    assert nothing.digest != trained.digest


def test_the_same_request_gives_the_same_bytes(case: Case) -> None:
    request = a_request(task=case.task, noise_multiplier=1.0, sample_rate=0.7, local_steps=3)
    assert case.update(request).tobytes() == case.update(request).tobytes()


def test_the_base_is_as_before_after_training(bert: Case) -> None:
    assert isinstance(bert.model, TextEncoder)
    before = bert.model.encode(TEXTS)
    bert.update(a_request(local_steps=2))
    assert bert.model.encode(TEXTS).tobytes() == before.tobytes()


def test_a_gate_stands_behind_every_step(bert: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices that overflow what lies above them."""
    huge = {name: np.full(t.shape, 1e30, np.float32) for name, t in bert.adapter.tensors.items()}
    case = dataclasses.replace(bert, adapter=dataclasses.replace(bert.adapter, tensors=huge))
    with pytest.raises(GateRefused, match="local step 1"):
        case.update(a_request())
    calls: list[int] = []
    check = dp_sgd._Gate.check

    def counted(gate: Any, update: NDArray[np.float32], drawn: int) -> None:
        calls.append(drawn)
        check(gate, update, drawn)

    monkeypatch.setattr(dp_sgd._Gate, "check", counted)
    bert.update(a_request(local_steps=3))
    assert calls == [6, 6, 6]


def test_scores_are_of_the_adapter_as_it_stands(case: Case) -> None:
    with case.learner() as learner:
        scored = dp_sgd.scores(learner, case.rows, case.task)
        alone = sum(dp_sgd.scores(learner, np.array([row]), case.task) for row in case.rows)
    assert scored == pytest.approx(alone, abs=1e-5)
    if isinstance(case.model, TextEncoder):
        features = case.model.encode(TEXTS, adapter=case.adapter)
        assert scored == (case.adapter.logits(features).argmax(axis=1) == TARGETS).sum()
