"""What a federated run is asked to do, and the numbers that follow from it.

A :class:`Job` is what a person writes (TOML). A :class:`RunPlan` is what the
coordinator makes of it once, when the run is submitted, and signs into every
invitation: the same job plus the derived noise multiplier, value range and
labels. A device recomputes its privacy loss from the plan's *facts*; it never
takes anybody's word for an ε.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, Literal

from shared.config import Field, Table
from shared.crypto.sum_cipher import Scheme, SumLayout
from shared.privacy.accountant import Fact, NonPrivate, SampledGaussian, noise_multiplier_for
from shared.privacy.quantiser import Quantiser
from shared.types import RunId

COUNT_NOISE: Final = 10.0
"""Standard deviation, in examples, of the noise on a device's example count.

One record changes the count by 1, so this is a Gaussian mechanism with noise
multiplier 10, charged once per run: it costs a hundredth of a run at ε = 8.
"""

_WEIGHT: Final = 1
"""Values that ride behind the parameters in the packed vector: the weight."""

_STEEPEST_GRADIENT: Final = 14.3
"""L2 bound on one example's gradient of the head: |p - y| ≤ √2 times
|(10 x, 1)| = √101 for features x of length one."""


class ModelTable(Table):
    """Which base model, and which part of it learns.

    Attributes:
        base: A folder, or a hub id.
        trainable: ``head``: a linear classifier on frozen features.
        initial: ``labels``: the head starts as the embeddings of the label
            names, which are public; ``zeros``: it starts knowing nothing.
    """

    base: str = "sentence-transformers/all-MiniLM-L6-v2"
    trainable: Literal["head"] = "head"
    initial: Literal["labels", "zeros"] = "zeros"


class TrainingTable(Table):
    """How devices train in every round.

    Attributes:
        rounds: Rounds of the run.
        local_steps: Gradient steps a device takes per round.
        sample_rate: Chance q of each example to be in a step (Poisson sampling).
        learning_rate: Step size of the local gradient descent.
        clip_norm: L2 bound C on one example's gradient, used when noise is on.
        proximal_mu: FedProx pull towards the round's adapter; 0 is FedAvg.
        examples_cap: A device with this many examples or more has weight one;
            with fewer, proportionally less. Public, so that no true count is.
    """

    rounds: int = Field(10, ge=1, le=10_000)
    local_steps: int = Field(1, ge=1, le=10_000)
    sample_rate: float = Field(1.0, ge=1e-9, le=1)
    learning_rate: float = Field(10.0, ge=1e-9, le=1e6)
    clip_norm: float = Field(1.0, ge=1e-9, le=1e6)
    proximal_mu: float = Field(0.0, ge=0, le=1e6)
    examples_cap: int = Field(2000, ge=1, le=1_000_000_000)


class PrivacyTable(Table):
    """The promise made to every record.

    Attributes:
        noise: ``local``: every device adds all of its noise, safe against
            everybody. ``none``: no promise; owners must have allowed it.
        epsilon: Total ε of the whole run for one record. Dimensionless.
        delta: Failure probability; keep it below 1 / records of a device.
    """

    noise: Literal["local", "none"] = "local"
    epsilon: float = Field(8.0, gt=0, le=1e6)
    delta: float = Field(1e-5, gt=0, lt=1)


class ProtectionTable(Table):
    """How updates are kept from everybody's eyes.

    Attributes:
        scheme: ``public-key``: BFV ciphertexts, opened as a sum by a key
            holder; ``clear``: integers in clear, for trusted silos.
        bits: Bits of one quantised value.
        min_devices: Fewest devices whose sum may be opened.
        max_devices: Most devices in one sum; sizes the fields.
    """

    scheme: Literal["public-key", "clear"] = "public-key"
    bits: Literal[8, 12, 16] = 12
    min_devices: int = Field(16, ge=2)
    max_devices: int = Field(256, ge=2, le=256)

    def contradictions(self) -> Iterator[str]:
        """``min_devices`` must be reachable."""
        if self.min_devices > self.max_devices:
            yield f"min_devices: {self.min_devices} is more than max_devices ({self.max_devices})"


class ServerTable(Table):
    """How the coordinator turns a mean update into a new adapter."""

    rule: Literal["fedavg", "fedadam"] = "fedavg"
    learning_rate: float = Field(1.0, ge=1e-9, le=1e6)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    tau: float = Field(1e-3, gt=0)


class CohortTable(Table):
    """Who is asked, and for how long a round waits.

    Attributes:
        devices: Devices wanted per round; 0 takes everyone present.
        patience_s: Seconds to wait for that many before starting with fewer.
        lease_s: Seconds without any progress after which a round closes.
        round_timeout_s: Seconds after which a round closes in any case.
    """

    devices: int = Field(0, ge=0)
    patience_s: float = Field(60.0, gt=0)
    lease_s: float = Field(120.0, gt=0)
    round_timeout_s: float = Field(3600.0, gt=0)


class Job(Table):
    """One federated run, as a person writes it."""

    # A run is called after its job, and topics and folders after the run: ``topics.is_name``.
    name: str = Field("run", pattern=r"^[a-z0-9]([a-z0-9-]{0,39}[a-z0-9])?$")
    task: Literal["text-classification"] = "text-classification"
    model: ModelTable = ModelTable()
    training: TrainingTable = TrainingTable()
    privacy: PrivacyTable = PrivacyTable()
    protection: ProtectionTable = ProtectionTable()
    server: ServerTable = ServerTable()
    cohort: CohortTable = CohortTable()

    def contradictions(self) -> Iterator[str]:
        """The cohort must be able to satisfy the protection, and ε the count's noise."""
        wanted = self.cohort.devices
        if wanted and wanted < self.protection.min_devices:
            yield (
                f"cohort.devices: {wanted} is fewer than protection.min_devices "
                f"({self.protection.min_devices}), so no sum could ever be opened"
            )
        if wanted > self.protection.max_devices:
            yield (
                f"cohort.devices: {wanted} is more than protection.max_devices "
                f"({self.protection.max_devices})"
            )
        if self.privacy.noise == "local" and self.privacy.epsilon < 0.5:
            yield (
                f"privacy.epsilon: {self.privacy.epsilon} is below 0.5, which the noise on the "
                "example count alone would nearly use up"
            )


class RunPlan(Table):
    """A job with everything that follows from it; signed into every invitation.

    Attributes:
        run: The run's identifier.
        job: What was asked.
        labels: The classes, in the adapter's order. Public.
        features: Length of one feature vector.
        seed: Draws cohorts and, in a simulation, derives release seeds. Public.
        simulation: Noise may be repeatable; a device refuses it unless its owner
            set it up as a simulated device.
        noise_multiplier: σ / C; 0 without noise.
        value_range: Values of the weighted update beyond ± this are saturated.
        update_norm: L2 bound on the whole weighted update.
    """

    run: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$")
    job: Job
    labels: tuple[str, ...] = Field(min_length=2, max_length=10_000)
    features: int = Field(ge=1, le=65_536)
    seed: int = Field(ge=0)
    simulation: bool
    noise_multiplier: float = Field(ge=0, le=1e6)
    value_range: float = Field(ge=1e-12, le=1e15)
    update_norm: float = Field(ge=1e-12, le=1e15)

    @property
    def run_id(self) -> RunId:
        """The run's identifier, typed."""
        return RunId(self.run)

    @property
    def scheme(self) -> Scheme:
        """How sums are protected."""
        return Scheme(self.job.protection.scheme)

    @property
    def parameters(self) -> int:
        """Trainable numbers: a weight matrix and a bias."""
        return len(self.labels) * (self.features + 1)

    @property
    def layout(self) -> SumLayout:
        """The packed vector of one round: the weighted update, then the weight."""
        protection = self.job.protection
        return SumLayout(
            count=self.parameters + _WEIGHT,
            bits=protection.bits,
            max_devices=protection.max_devices,
        )

    @property
    def update_quantiser(self) -> Quantiser:
        """Turns values of the weighted update into integers and back."""
        return Quantiser(bits=self.job.protection.bits, value_range=self.value_range)

    @property
    def weight_quantiser(self) -> Quantiser:
        """Turns a weight in [0, 1] into an integer and back."""
        return Quantiser(bits=self.job.protection.bits, value_range=1.0)

    def count_facts(self) -> tuple[Fact, ...]:
        """What the noised example count, released once per run, costs."""
        if self.noise_multiplier == 0:
            return ()
        return (SampledGaussian(noise_multiplier=COUNT_NOISE, sample_rate=1.0, steps=1),)

    def round_facts(self) -> tuple[Fact, ...]:
        """What one round's update costs."""
        if self.noise_multiplier == 0:
            return (NonPrivate(reason=f"run {self.run} trains without noise"),)
        training = self.job.training
        return (
            SampledGaussian(
                noise_multiplier=self.noise_multiplier,
                sample_rate=training.sample_rate,
                steps=training.local_steps,
            ),
        )

    def run_facts(self) -> tuple[Fact, ...]:
        """The run's worst case for a device that takes part in every round."""
        return self.count_facts() + self.round_facts() * self.job.training.rounds


def plan_run(
    job: Job,
    *,
    run: RunId,
    labels: tuple[str, ...],
    features: int,
    seed: int,
    simulation: bool,
) -> RunPlan:
    """Derive noise, range and bounds from a job.

    The weighted update of a device with n examples is
    -η (Σ clip(g) + σ C ξ) / (q · cap) per step, so its noise does not depend on
    n: standard deviation η σ C √L / (q · cap) after L steps. The value range
    leaves six of them plus an eighth of the largest signal η C L; without noise
    half of η L, which no coordinate of our runs came near (saturation is harmless
    to privacy and costs accuracy only).

    Raises:
        ConfigError: no noise multiplier reaches ``job.privacy.epsilon``.
    """
    training, privacy = job.training, job.privacy
    steps = training.local_steps
    parameters = len(labels) * (features + 1)
    if privacy.noise == "none":
        multiplier = 0.0
        value_range = 0.5 * training.learning_rate * steps
        update_norm = training.learning_rate * steps * _STEEPEST_GRADIENT
    else:
        multiplier = noise_multiplier_for(
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            sample_rate=training.sample_rate,
            steps=steps * training.rounds,
            also=(SampledGaussian(noise_multiplier=COUNT_NOISE, sample_rate=1.0, steps=1),),
        )
        reach = training.learning_rate * training.clip_norm
        spread = multiplier * math.sqrt(steps) / (training.sample_rate * training.examples_cap)
        value_range = reach * (6 * spread + steps / 8)
        update_norm = 2 * reach * (spread * math.sqrt(parameters) + steps)
    return RunPlan(
        run=run,
        job=job,
        labels=labels,
        features=features,
        seed=seed,
        simulation=simulation,
        noise_multiplier=multiplier,
        value_range=value_range,
        update_norm=update_norm,
    )
