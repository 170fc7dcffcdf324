"""From an opened sum to the next adapter: FedAvg and FedAdam, in numpy.

A rule is a pure function of the mean update and its own state. The state rides
in the run's blobs, so a restarted coordinator goes on with the same moments.

Source:
    McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017, Algorithm 1.
    Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from shared.errors import GateRefused, ShapeMismatch
from shared.job import RunPlan, ServerTable
from shared.types import FloatVector, IntVector


@dataclass(frozen=True, slots=True)
class ServerState:
    """Moments of an adaptive rule; both empty before the first step and for FedAvg."""

    momentum: FloatVector
    variance: FloatVector

    @classmethod
    def initial(cls) -> ServerState:
        """The state before the first round."""
        return cls(np.zeros(0), np.zeros(0))

    def to_bytes(self) -> bytes:
        """Both moments behind each other, little-endian float64."""
        return np.concatenate([self.momentum, self.variance]).astype("<f8").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> ServerState:
        """Read what :meth:`to_bytes` wrote."""
        halves = np.frombuffer(data, "<f8").astype(np.float64)
        middle = len(halves) // 2
        return cls(halves[:middle], halves[middle:])


def weighted_mean(total: IntVector, plan: RunPlan) -> FloatVector:
    """The devices' mean update out of their opened sum.

    The sum holds Σ wₖ Δₖ and, behind it, Σ wₖ, all as exact integers; the mean
    is their quotient, so neither a single weight nor a single update is needed.

    Args:
        total: int64, as the plan's layout has it.
        plan: The run, whose quantisers turn integers back.

    Raises:
        ShapeMismatch: ``total`` has another length.
        GateRefused: the weights sum to nothing; there is no mean.
    """
    if total.shape != (plan.layout.count,):
        raise ShapeMismatch(f"a sum of {total.shape}, the run has {plan.layout.count} values")
    size = plan.parameters
    weight = float(plan.share_quantiser.dequantise(total[size : size + 1])[0])
    if weight <= 0:
        raise GateRefused("the weights of all devices together are zero")
    return np.asarray(plan.update_quantiser.dequantise(total[:size]) / weight, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How the devices' own held-out examples were answered, as noised sums say."""

    accuracy: float
    """Mean score, in [0, 1]."""
    examples: float
    """How many there were; not whole, since noise is in it."""


def federated_evaluation(total: IntVector, plan: RunPlan) -> Evaluation | None:
    """What an opened sum says about the adapter that the round began with.

    Returns:
        None when the run does not evaluate, or noise leaves fewer than one example.

    Raises:
        ShapeMismatch: ``total`` has another length.
    """
    if not plan.evaluates:
        return None
    if total.shape != (plan.layout.count,):
        raise ShapeMismatch(f"a sum of {total.shape}, the run has {plan.layout.count} values")
    score, count = plan.evaluation_quantiser.dequantise(total[-2:])
    if count < 1:
        return None
    return Evaluation(float(min(max(score / count, 0.0), 1.0)), float(count))


def share_saturated(total: IntVector, devices: int, plan: RunPlan) -> float:
    """Share of the devices' values that lay outside the run's range, mean over ``devices``.

    Saturation costs accuracy and no privacy. Each device's share rides in its
    update, rounded without bias; it follows from what noise was added to before.
    """
    position = plan.parameters + 1
    share = float(plan.share_quantiser.dequantise(total[position : position + 1])[0]) / devices
    return min(max(share, 0.0), 1.0)


def server_step(
    rule: ServerTable, state: ServerState, mean: FloatVector
) -> tuple[FloatVector, ServerState]:
    """The change to the adapter that a rule makes of the devices' mean update.

    FedAvg and the robust rules: η Δ. FedAdam: m ← β₁ m + (1 - β₁) Δ,
    v ← β₂ v + (1 - β₂) Δ², and η m / (√v + τ), without bias correction as in the paper.

    Args:
        rule: Which rule, with its hyperparameters.
        state: Moments after the previous round.
        mean: Mean update Δ or the robust middle, float64, shape (parameters,).

    Returns:
        The change, same shape, and the state for the next round.
    """
    if rule.rule != "fedadam":
        return rule.learning_rate * mean, state
    momentum = state.momentum if state.momentum.size else np.zeros_like(mean)
    # Algorithm 2 starts v at τ²: the first step is then bounded by η as well.
    variance = state.variance if state.variance.size else np.full_like(mean, rule.tau**2)
    momentum = rule.beta1 * momentum + (1 - rule.beta1) * mean
    variance = rule.beta2 * variance + (1 - rule.beta2) * mean**2
    change = rule.learning_rate * momentum / (np.sqrt(variance) + rule.tau)
    return change, ServerState(momentum, variance)


def gate(change: FloatVector, plan: RunPlan) -> None:
    """Refuse a change that cannot come from honest training.

    Raises:
        GateRefused: it is not finite, exactly zero, or longer than the mean of
            any number of updates within the run's bound can be (FedAvg).
    """
    with np.errstate(over="ignore"):
        norm = float(np.linalg.norm(change))
    if not math.isfinite(norm):
        raise GateRefused("the new adapter is not finite")
    if norm == 0.0:
        raise GateRefused("the round changed nothing: every update was zero")
    server = plan.job.server
    # A mean Σ wΔ / Σ w can exceed the bound on one wΔ by 1 / w; the smallest weight
    # that a device can have is one quantisation step.
    bound = plan.update_norm * plan.share_quantiser.magnitude * server.learning_rate
    if server.rule == "fedavg" and norm > bound:
        raise GateRefused(f"the change has norm {norm:.3g}, the run's bound is {bound:.3g}")
