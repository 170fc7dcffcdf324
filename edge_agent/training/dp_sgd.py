"""Differentially private gradient descent on an adapter, repeatable from a release seed.

    D1  each step releases a sum of gradients clipped to ``clip_norm`` over all trained tensors
        together, plus Gaussian noise of ``noise_multiplier`` · ``clip_norm``, divided by
        ``sample_rate`` · ``expected_examples``: what ``SampledGaussian`` accounts for
    D2  every example enters a step independently with ``sample_rate``; a step in which none
        does still adds its noise
    D3  the same request on the same data gives the same bytes, in any process on one
        machine with the same versions
    D4  after every step the adapter is finite, has moved, and no farther than clip and noise
        can carry it; otherwise nothing is returned

A head alone learns from features that are computed once; Opacus clips it in its *ghost* mode,
which knows each example's gradient norm without making its gradient. For a head of 150 labels
on 384 features and 1500 examples one step takes 15 ms on one core; with one gradient of 231 KB
per example (Opacus' hooks) it took 300 ms. Matrices inside the base are small and see many
tokens: there the hooks are the faster way (1.08 times plain training, ghost 1.62).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.training.trainer import TrainRequest
from shared.errors import GateRefused, NonFiniteUpdate
from shared.extras import require
from shared.models.adapter import FEATURE_SCALE, Adapter
from shared.models.task import Task, find_task
from shared.privacy.release import ReleaseStream
from shared.types import FloatMatrix

Rows = NDArray[np.int64]
"""Positions of examples."""

_PHYSICAL_BATCH: Final = 1024
"""Rows per pass of a head: bounds memory to a few MB; the sum over passes is what is noised."""

_NOISE_MARGIN: Final = 9.0
"""The norm of d standard normal numbers exceeds √d + 9 once in 10^17 times."""

_GRADIENT_VALUES: Final = 2**21
"""Values of single examples' gradients at a time: 8 MB, which stay in a processor's cache."""

SAMPLE_STREAM: Final = "sample"
NOISE_STREAM: Final = "noise"
"""Labels of the release seed's streams that training uses up; rounding has its own."""


@dataclass(frozen=True, slots=True)
class Learner:
    """Something that can be trained, and the examples that it learns from."""

    module: Any
    """A torch module; its call on a batch's inputs gives logits."""
    parameters: Sequence[Any]
    """What is trained, in the order of ``AdapterShape.tensors``."""
    of_head: int
    """How many of the first parameters belong to the head."""
    inside: bool
    """Whether the rest lies inside a base model."""
    split: Callable[[Rows], list[Rows]]
    """Divides examples into batches that fit into memory; no examples into none."""
    load: Callable[[Rows], tuple[tuple[Any, ...], Any]]
    """The inputs and the targets of a batch."""


def warm_up() -> None:
    """Import what training needs now; it takes seconds.

    Raises:
        DependencyMissing: torch or Opacus is not installed.
    """
    require("torch", extra="train")
    require("opacus.optimizers", extra="train")
    require("opacus.utils.fast_gradient_clipping_utils", extra="train")


def head_learner(features: FloatMatrix, targets: Rows, adapter: Adapter) -> Learner:
    """Return what trains a head on features that do not change.

    Args:
        features: (n, F), mean-pooled and length-normalised.
        targets: (n,) positions in ``adapter.labels``.
        adapter: Where training starts.

    Raises:
        NonFiniteUpdate: the features are not finite.
        DependencyMissing: torch is not installed.
    """
    torch = require("torch", extra="train")
    if not np.isfinite(features).all():
        raise NonFiniteUpdate("the features hold NaN or infinity, so no clip bounds anything")
    # Copies: torch aligns its own memory, and sums depend on alignment in their last bits.
    inputs = torch.tensor(features, dtype=torch.float32) * FEATURE_SCALE
    classes = torch.tensor(targets, dtype=torch.int64)
    head = torch.nn.Linear(adapter.features, len(adapter.labels))
    with torch.no_grad():
        head.weight.copy_(torch.tensor(adapter.weight))
        head.bias.copy_(torch.tensor(adapter.bias))

    def load(rows: Rows) -> tuple[tuple[Any, ...], Any]:
        picked = torch.from_numpy(rows)
        return (inputs[picked],), classes[picked]

    return Learner(head, [head.weight, head.bias], 2, False, _split_evenly, load)


def inner_learner(adapted: Any, prefix: Any, targets: Rows | None, adapter: Adapter) -> Learner:
    """Return what trains matrices inside a base, and a head if there is one.

    Args:
        adapted: A :class:`~shared.models.pytorch.Adapted`, for as long as it is in place.
        prefix: The examples' :class:`~shared.models.pytorch.Prefix`.
        targets: (n,) positions in ``adapter.labels``; ``None`` without a head, where the
            texts themselves are foretold.
        adapter: Where training starts.
    """
    torch = require("torch", extra="train")

    def split(rows: Rows) -> list[Rows]:
        batches: list[Rows] = prefix.split(rows, parameters=adapter.parameters)
        return batches

    def load(rows: Rows) -> tuple[tuple[Any, ...], Any]:
        asked = prefix.targets(rows) if targets is None else torch.tensor(targets[rows])
        return prefix.inputs(rows), asked

    of_head = len(adapter.shape.head)
    return Learner(adapted.module, adapted.parameters, of_head, True, split, load)


def scores(learner: Learner, rows: Rows, task: str) -> float:
    """Return the sum of the task's scores of what is trained, as it now stands, on ``rows``."""
    torch = require("torch", extra="train")
    torch.set_num_threads(1)  # D3: threads would add in another order
    total = 0.0
    with torch.no_grad():
        for part in learner.split(rows):
            inputs, targets = learner.load(part)
            _, right = find_task(task).outcome(torch, learner.module(*inputs), targets)
            total += float(right.sum())
    return total


def local_update(learner: Learner, rows: Rows, request: TrainRequest) -> FloatMatrix:
    """Run a request's local steps and return how far the parameters moved.

    With ``clip_norm`` ``None`` the gradients are neither clipped nor noised and nothing
    is promised; sample and denominator are the same.

    Args:
        learner: What is trained; it has moved afterwards.
        rows: The examples that may be drawn.
        request: Everything else.

    Returns:
        New minus old parameters divided by each one's step ratio, float32, in the order of
        :meth:`~shared.models.adapter.Adapter.flatten`.

    Raises:
        GateRefused: a step did not pass (D4).
        DependencyMissing: torch or Opacus is not installed.

    Source:
        Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1, with
        Poisson samples; Li et al., "Large Language Models Can Be Strong Differentially
        Private Learners", ICLR 2022, section 4 (ghost clipping, one clip over all layers);
        Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020 (the
        proximal term).
    """
    torch = require("torch", extra="train")
    torch.set_num_threads(1)  # D3: threads would add in another order
    parameters = learner.parameters
    start = [parameter.detach().clone() for parameter in parameters]

    def add_proximal_term(_: object = None) -> None:
        if request.proximal_mu:
            for parameter, origin in zip(parameters, start, strict=True):
                parameter.grad.add_(parameter.detach() - origin, alpha=request.proximal_mu)

    def moved() -> FloatMatrix:
        parts = [
            (parameter.detach() - origin).numpy().ravel()
            for parameter, origin in zip(parameters, start, strict=True)
        ]
        ratios = np.float32(request.step_ratio)
        inner = [part / ratios for part in parts[learner.of_head :]]
        return np.concatenate(parts[: learner.of_head] + inner)

    stream = ReleaseStream(request.seed)
    prepared = _plain_step if request.clip_norm is None else _private_step
    step = prepared(learner, request, stream, add_proximal_term)
    gate = _Gate(learner, request)
    for _ in range(request.local_steps):
        drawn = stream.uniforms(SAMPLE_STREAM, len(rows)) < request.sample_rate
        batches = learner.split(rows[drawn])
        step(batches)
        gate.check(moved(), int(drawn.sum()))
    return moved()


def sample_gradients(learner: Learner, rows: Rows, request: TrainRequest) -> Iterator[FloatMatrix]:
    """Yield every drawn example's own gradient, neither clipped nor noised.

    The sample is the one that :func:`local_update` would draw for its first step.

    Yields:
        Float32, shape (n, parameters), in the order of
        :meth:`~shared.models.adapter.Adapter.flatten`; nothing for an empty sample.

    Raises:
        DependencyMissing: torch or Opacus is not installed.
    """
    torch = require("torch", extra="train")
    torch.set_num_threads(1)  # D3: threads would add in another order
    warm_up()
    from opacus.grad_sample import GradSampleModule

    stream = ReleaseStream(request.seed)
    drawn = stream.uniforms(SAMPLE_STREAM, len(rows)) < request.sample_rate
    model = GradSampleModule(learner.module, loss_reduction="sum", strict=True)
    losses = _Losses(find_task(request.task))
    count = sum(parameter.numel() for parameter in learner.parameters)
    at_once = max(1, _GRADIENT_VALUES // count)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        for batch in learner.split(rows[drawn]):
            for start in range(0, len(batch), at_once):
                part = batch[start : start + at_once]
                inputs, targets = learner.load(part)
                for parameter in learner.parameters:
                    parameter.grad = parameter.grad_sample = None
                losses(model(*inputs), targets).sum().backward()
                parts = [
                    parameter.grad_sample.reshape(len(part), -1) for parameter in learner.parameters
                ]
                yield torch.cat(parts, dim=1).numpy()


class _Gate:
    """What must hold of an update after every local step (D4)."""

    def __init__(self, learner: Learner, request: TrainRequest) -> None:
        self._clip = math.inf if request.clip_norm is None else request.clip_norm
        self._step_size = request.learning_rate / _denominator(request)
        self._noise = 0.0
        if request.noise_multiplier:
            count = sum(parameter.numel() for parameter in learner.parameters)
            reach = math.sqrt(count) + _NOISE_MARGIN
            self._noise = request.noise_multiplier * self._clip * reach
        # Each step rounds every parameter to float32; dividing by the ratio magnifies that.
        largest = max(float(parameter.detach().norm()) for parameter in learner.parameters)
        self._rounding = 2.0**-20 * largest / min(1.0, request.step_ratio)
        self._bound = 0.0
        self._steps = 0

    def check(self, update: FloatMatrix, drawn: int) -> None:
        """Judge the update after one more step over ``drawn`` examples.

        A proximal term only ever pulls back, unless its steps overshoot, which shows here.

        Raises:
            GateRefused: it is not finite, zero, or longer than it can be.
        """
        self._steps += 1
        where = f"local step {self._steps}: the adapter"
        if not np.isfinite(update).all():
            raise GateRefused(f"{where} is no longer finite; lower the learning rate")
        norm = float(np.linalg.norm(update.astype(np.float64)))
        if norm == 0.0 and (drawn or self._noise):
            raise GateRefused(f"{where} did not move")
        if self._clip < math.inf:
            self._bound += self._step_size * (self._clip * drawn + self._noise) + self._rounding
            if norm > self._bound * 1.001:
                raise GateRefused(
                    f"{where} moved by {norm:.3g}, which clip and noise bound to {self._bound:.3g}"
                )


_Step = Callable[[list[Rows]], None]


def _private_step(
    learner: Learner,
    request: TrainRequest,
    stream: ReleaseStream,
    before_moving: Callable[..., None],
) -> _Step:
    """Return a function that makes one DP-SGD step over the physical batches of one sample."""
    torch = require("torch", extra="train")
    warm_up()
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    kind: Any = DPOptimizer if learner.inside else DPOptimizerFastGradientClipping

    class SeededOptimizer(kind):  # type: ignore[misc]  # untyped
        """Opacus' optimiser with the release seed's noise and the noised denominator."""

        def add_noise(self) -> None:
            std = request.noise_multiplier * self.max_grad_norm if request.noise_multiplier else 0.0
            for parameter in self.params:
                noise = std * stream.gaussians(NOISE_STREAM, parameter.numel())
                parameter.grad = parameter.summed_grad + torch.tensor(
                    noise.reshape(parameter.shape), dtype=parameter.dtype
                )

        def scale_grad(self) -> None:
            for parameter in self.params:
                parameter.grad /= self.expected_batch_size

    optimizer = SeededOptimizer(
        _descent(learner, request),
        noise_multiplier=request.noise_multiplier,
        max_grad_norm=request.clip_norm,
        expected_batch_size=_denominator(request),
        loss_reduction="sum",  # what the clipped gradients are; scale_grad divides
    )
    optimizer.attach_step_hook(before_moving)
    losses = _Losses(find_task(request.task))
    if learner.inside:
        # Strict: a trainable layer with buffers, which no clip would bound, is refused.
        model = GradSampleModule(learner.module, loss_reduction="sum", strict=True)

        def differentiate(inputs: tuple[Any, ...], targets: Any) -> None:
            optimizer.zero_grad()
            losses(model(*inputs), targets).sum().backward()
            found = {len(parameter.grad_sample) for parameter in learner.parameters}
            assert found == {len(targets)}, "a gradient for every example, of every tensor"
    else:
        model = GradSampleModuleFastGradientClipping(
            learner.module,
            max_grad_norm=request.clip_norm,
            use_ghost_clipping=True,
            loss_reduction="sum",
        )
        loss = DPLossFastGradientClipping(model, optimizer, losses, loss_reduction="sum")

        def differentiate(inputs: tuple[Any, ...], targets: Any) -> None:
            loss(model(*inputs), targets).backward()

    def step(batches: list[Rows]) -> None:
        with warnings.catch_warnings():
            # torch remarks that the inputs need no gradient; with a frozen base none does.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            for position, rows in enumerate(batches, start=1):
                optimizer.signal_skip_step(position < len(batches))
                differentiate(*learner.load(rows))
                optimizer.step()
            if not batches:  # D2
                optimizer.zero_grad()
                for parameter in learner.parameters:
                    parameter.grad = torch.zeros_like(parameter)
                    parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
                optimizer.step()

    return step


def _plain_step(
    learner: Learner, request: TrainRequest, _: ReleaseStream, before_moving: Callable[..., None]
) -> _Step:
    """Return a function that makes one ordinary gradient step."""
    torch = require("torch", extra="train")
    optimizer = _descent(learner, request)
    losses = _Losses(find_task(request.task))

    def step(batches: list[Rows]) -> None:
        for parameter in learner.parameters:
            parameter.grad = torch.zeros_like(parameter)
        for rows in batches:
            inputs, targets = learner.load(rows)
            losses(learner.module(*inputs), targets).sum().backward()
        for parameter in learner.parameters:
            parameter.grad /= _denominator(request)
        before_moving()
        optimizer.step()

    return step


class _Losses:
    """A task's losses, one for each example, as Opacus calls them."""

    reduction = "sum"
    """What is done with them, as Opacus asks; it does so itself."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._torch = require("torch", extra="train")

    def __call__(self, logits: Any, targets: Any) -> Any:
        losses, _ = self._task.outcome(self._torch, logits, targets)
        return losses


def _descent(learner: Learner, request: TrainRequest) -> Any:
    """Plain descent, with shorter or longer steps inside the base."""
    torch = require("torch", extra="train")
    rate, at = request.learning_rate, learner.of_head
    groups = [
        {"params": list(learner.parameters[:at]), "lr": rate},
        {"params": list(learner.parameters[at:]), "lr": rate * request.step_ratio},
    ]
    return torch.optim.SGD([group for group in groups if group["params"]], lr=rate)


def _split_evenly(rows: Rows) -> list[Rows]:
    return [rows[at : at + _PHYSICAL_BATCH] for at in range(0, len(rows), _PHYSICAL_BATCH)]


def _denominator(request: TrainRequest) -> float:
    """q·ñ. The true sample size is a secret; dividing by it would need noise of its own."""
    return request.sample_rate * request.expected_examples
