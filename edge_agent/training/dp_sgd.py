"""Differentially private gradient descent on a linear head, repeatable from a release seed.

    D1  each step releases a sum of gradients clipped to ``clip_norm`` over weight and bias
        together, plus Gaussian noise of ``noise_multiplier`` · ``clip_norm``, divided by
        ``sample_rate`` · ``expected_examples``: what ``SampledGaussian`` accounts for
    D2  every example enters a step independently with ``sample_rate``; a step in which none
        does still adds its noise
    D3  the same request on the same features gives the same bytes, in any process on one
        machine with the same versions

Opacus clips by its *ghost* mode, which knows each example's gradient norm without making
its gradient. For a head of 150 labels on 384 features and 1500 examples one step takes
15 ms on one core; with one gradient of 231 KB per example (Opacus' hooks) it took 300 ms.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.training.trainer import TrainRequest
from shared.errors import NonFiniteUpdate
from shared.extras import require
from shared.models.adapter import FEATURE_SCALE, Adapter
from shared.privacy.release import ReleaseStream
from shared.types import FloatMatrix

_PHYSICAL_BATCH: Final = 1024
"""Rows per pass: bounds memory to a few MB; the sum over passes is what is noised."""

SAMPLE_STREAM: Final = "sample"
NOISE_STREAM: Final = "noise"
"""Labels of the release seed's streams that training uses up; rounding has its own."""


def warm_up() -> None:
    """Import what training needs now; it takes seconds.

    Raises:
        DependencyMissing: torch or Opacus is not installed.
    """
    require("torch", extra="train")
    require("opacus.optimizers", extra="train")
    require("opacus.utils.fast_gradient_clipping_utils", extra="train")


def local_update(
    features: FloatMatrix, targets: NDArray[np.int64], adapter: Adapter, request: TrainRequest
) -> FloatMatrix:
    """Run a request's local steps and return how far the parameters moved.

    With ``clip_norm`` ``None`` the gradients are neither clipped nor noised and nothing
    is promised; sample and denominator are the same.

    Args:
        features: (n, F), mean-pooled and length-normalised.
        targets: (n,) positions in ``adapter.labels``.
        adapter: Where the steps start.
        request: Everything else.

    Returns:
        float32, in the order of :meth:`~shared.models.adapter.Adapter.flatten`.

    Raises:
        NonFiniteUpdate: training diverged, or the features are not finite.
        DependencyMissing: torch or Opacus is not installed.

    Source:
        Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1, with
        Poisson samples; Li et al., "Large Language Models Can Be Strong Differentially
        Private Learners", ICLR 2022, section 4 (ghost clipping); Li et al., "Federated
        Optimization in Heterogeneous Networks", MLSys 2020 (the proximal term).
    """
    torch = require("torch", extra="train")
    torch.set_num_threads(1)  # D3: threads would add in another order
    if not np.isfinite(features).all():
        raise NonFiniteUpdate("the features hold NaN or infinity, so no clip bounds anything")
    # Copies: torch aligns its own memory, and sums depend on alignment in their last bits.
    inputs = torch.tensor(features, dtype=torch.float32) * FEATURE_SCALE
    classes = torch.tensor(targets, dtype=torch.int64)
    head = torch.nn.Linear(adapter.features, len(adapter.labels))
    with torch.no_grad():
        head.weight.copy_(torch.tensor(adapter.weight))
        head.bias.copy_(torch.tensor(adapter.bias))
    start = [parameter.detach().clone() for parameter in head.parameters()]

    def add_proximal_term(_: object = None) -> None:
        if request.proximal_mu:
            for parameter, origin in zip(head.parameters(), start, strict=True):
                parameter.grad.add_(parameter.detach() - origin, alpha=request.proximal_mu)

    stream = ReleaseStream(request.seed)
    prepared = _plain_step if request.clip_norm is None else _private_step
    step = prepared(head, request, stream, add_proximal_term)
    for _ in range(request.local_steps):
        drawn = stream.uniforms(SAMPLE_STREAM, len(features)) < request.sample_rate
        rows = torch.from_numpy(np.flatnonzero(drawn))
        step((inputs[part], classes[part]) for part in torch.split(rows, _PHYSICAL_BATCH))

    moved = [
        (parameter.detach() - origin).numpy().ravel()
        for parameter, origin in zip(head.parameters(), start, strict=True)
    ]
    update = np.concatenate(moved)
    if not np.isfinite(update).all():
        raise NonFiniteUpdate("training diverged: lower the learning rate")
    return update


_Step = Callable[[Iterator[tuple[Any, Any]]], None]


def _private_step(
    head: Any, request: TrainRequest, stream: ReleaseStream, before_moving: Callable[..., None]
) -> _Step:
    """Return a function that makes one DP-SGD step over the physical batches of one sample."""
    torch = require("torch", extra="train")
    warm_up()
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    class SeededOptimizer(DPOptimizerFastGradientClipping):  # type: ignore[misc]  # untyped
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

    model = GradSampleModuleFastGradientClipping(
        head, max_grad_norm=request.clip_norm, use_ghost_clipping=True, loss_reduction="sum"
    )
    optimizer = SeededOptimizer(
        torch.optim.SGD(head.parameters(), lr=request.learning_rate),
        noise_multiplier=request.noise_multiplier,
        max_grad_norm=request.clip_norm,
        expected_batch_size=_denominator(request),
        loss_reduction="sum",  # what ghost clipping sums over; scale_grad divides
    )
    optimizer.attach_step_hook(before_moving)
    loss = DPLossFastGradientClipping(
        model, optimizer, torch.nn.CrossEntropyLoss(reduction="sum"), loss_reduction="sum"
    )

    def step(batches: Iterator[tuple[Any, Any]]) -> None:
        parts = list(batches)
        with warnings.catch_warnings():
            # torch remarks that the inputs need no gradient; with frozen features none does.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            for position, (inputs, classes) in enumerate(parts, start=1):
                optimizer.signal_skip_step(position < len(parts))
                loss(model(inputs), classes).backward()
                optimizer.step()

    return step


def _plain_step(
    head: Any, request: TrainRequest, _: ReleaseStream, before_moving: Callable[..., None]
) -> _Step:
    """Return a function that makes one ordinary gradient step."""
    torch = require("torch", extra="train")
    optimizer = torch.optim.SGD(head.parameters(), lr=request.learning_rate)

    def step(batches: Iterator[tuple[Any, Any]]) -> None:
        optimizer.zero_grad(set_to_none=False)
        for inputs, classes in batches:
            torch.nn.functional.cross_entropy(head(inputs), classes, reduction="sum").backward()
        for parameter in head.parameters():
            parameter.grad /= _denominator(request)
        before_moving()
        optimizer.step()

    return step


def _denominator(request: TrainRequest) -> float:
    """q·ñ. The true sample size is a secret; dividing by it would need noise of its own."""
    return request.sample_rate * request.expected_examples
