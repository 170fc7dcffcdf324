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

import numpy as np

from shared.config import Field, Table
from shared.crypto.sum_cipher import MAX_DEVICES, Scheme, SumLayout
from shared.errors import ConfigError
from shared.models.adapter import AdapterShape
from shared.models.task import find_task, task_names
from shared.privacy.accountant import (
    Fact,
    NonPrivate,
    SampledGaussian,
    SharedDiscreteGaussian,
    epsilon,
    noise_multiplier_for,
)
from shared.privacy.discrete_gaussian import MAX_VARIANCE
from shared.privacy.quantiser import Quantiser
from shared.types import FloatVector, RunId

COUNT_NOISE: Final = 10.0
"""Standard deviation, in examples, of the noise on a device's example count.

One record changes the count by 1, so this is a Gaussian mechanism with noise
multiplier 10, charged once per run: it costs a hundredth of a run at ε = 8.
"""

_WEIGHT: Final = 1
"""Values that ride behind the parameters in the packed vector: the weight."""

_SATURATED: Final = 1
"""And the share of the update's values that were saturated."""

_EVALUATION: Final = 2
"""With a federated evaluation two more: the sum of the scores and their number."""

SENSITIVITY_OF_EVALUATION: Final = math.sqrt(2)
"""One record changes the sum of scores by at most 1 and their number by 1."""

TOTALS_BYTES: Final = 512 * 1024 * 1024
"""Room for the running totals of one round, half of what a sum worker may use."""

BYTES_PER_VALUE_ADDED: Final = 16
"""A value of a running total takes so many bytes at most, whatever its width and scheme."""

REFUSED_METHODS: Final = {
    "adalora": "it shares singular values between examples, and Opacus has no rule for them",
    "dora": "its magnitudes divide by a norm of the whole matrix, which has no per-sample gradient",
    "ia3": "its scaling vectors are bare parameters that Opacus does not hook",
    "loha": "its Hadamard products are bare parameters that Opacus does not hook",
    "lokr": "its Kronecker products are bare parameters that Opacus does not hook",
    "oft": "its rotations are solved from a whole matrix, which has no per-sample gradient",
    "vera": "its scaling vectors are bare parameters that Opacus does not hook",
}
"""Adapters known from peft that fail with per-sample gradients (tried with Opacus 1.6)."""

_NOISE_REACH: Final = 11
"""Deviations of discrete noise that have room in a value: more come once in 10^26 numbers."""

_CLIPS_IN_RANGE: Final = 16
"""Clips that a device's summed gradient may have in one value before it is held there."""

_MOST_NOISE: Final = 1e4
"""Multiplier beyond which 16-bit values leave a clip of nothing."""

_STEEPEST_GRADIENT: Final = 14.3
"""L2 bound on one example's gradient of the head: |p - y| ≤ √2 times
|(10 x, 1)| = √101 for features x of length one."""


class ModelTable(Table):
    """Which base model, and which part of it learns.

    Attributes:
        base: A folder, or a hub id.
        layers: Keep the first so many layers of the base; 0 keeps all.
        trainable: ``head``: a linear classifier on frozen features. ``lora``:
            also matrices inside the base, as the table ``adapter`` says; for a
            language model these alone.
        initial: ``labels``: the head starts as the embeddings of the label
            names, which are public; ``zeros``: it starts knowing nothing.
    """

    base: str = "sentence-transformers/all-MiniLM-L6-v2"
    layers: int = Field(0, ge=0, le=1000)
    trainable: Literal["head", "lora"] = "head"
    initial: Literal["labels", "zeros"] = "zeros"


class AdapterTable(Table):
    """The matrices inside the base, with ``model.trainable = "lora"``.

    Attributes:
        method: ``lora``, ``rslora`` or ``bottleneck``.
        rank: Width of the matrices.
        alpha: Strength of a low-rank pair: alpha / rank, or alpha / √rank (rsLoRA).
        layers: So many of the base's top layers get matrices. What lies below is
            computed once per text.
        step_ratio: Step size of these matrices as a multiple of
            ``training.learning_rate``; a head on scaled features takes far
            longer steps than they do.
    """

    method: str = "lora"
    rank: int = Field(8, ge=1, le=1024)
    alpha: float = Field(16.0, gt=0, le=1e6)
    layers: int = Field(2, ge=1, le=1000)
    step_ratio: float = Field(0.1, ge=1e-9, le=1e3)

    def contradictions(self) -> Iterator[str]:
        """Only methods whose per-sample gradients are known to be right."""
        known = ("lora", "rslora", "bottleneck")
        name = self.method.lower()
        if name in REFUSED_METHODS:
            yield f"method: {self.method!r} cannot be trained privately: {REFUSED_METHODS[name]}"
        elif self.method not in known:
            yield f"method: must be one of {', '.join(known)}, not {self.method!r}"


class TrainingTable(Table):
    """How devices train in every round.

    Attributes:
        rounds: Rounds of the run.
        local_steps: Gradient steps a device takes per round.
        sample_rate: Chance q of each example to be in a step (Poisson sampling).
        learning_rate: Step size of the local gradient descent.
        clip_norm: L2 bound C on one example's gradient, used when noise is on or
            matrices inside the base are trained.
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
            everybody. ``distributed``: ``protection.min_devices`` devices' noise
            is enough together, safe against whoever sees sums alone; so many
            fewer than that may drop out as the cohort is larger. ``none``: no
            promise; owners must have allowed it.
        level: Whom ε is about: one ``record``, or one ``device`` with all its
            records. The latter takes distributed noise: the whole update is clipped.
        update_clip: With level ``device`` the L2 bound on a device's whole update,
            over all tensors together.
        participation: With level ``device`` the chance that a device's update is in
            its round's sum, by a coin that nobody else sees; else it adds noise alone.
        epsilon: Total ε of the whole run for one record or device. Dimensionless.
        delta: Failure probability; keep it below 1 / records of a device.
    """

    noise: Literal["local", "distributed", "none"] = "local"
    level: Literal["record", "device"] = "record"
    epsilon: float = Field(8.0, gt=0, le=1e6)
    delta: float = Field(1e-5, gt=0, lt=1)
    update_clip: float = Field(1.0, ge=1e-9, le=1e6)
    participation: float = Field(1.0, ge=1e-9, le=1)


class ProtectionTable(Table):
    """How updates are kept from everybody's eyes.

    Attributes:
        scheme: ``public-key``: BFV ciphertexts, opened as a sum by a key
            holder; ``clear``: integers in clear, for trusted silos.
        bits: Bits of one quantised value.
        value_range: Values of the weighted update beyond ± this are saturated; 0
            derives it from the other settings, see :func:`plan_run`.
        min_devices: Fewest devices whose sum may be opened.
        max_devices: Most devices in one sum; sizes the fields.
        groups: Disjoint random groups whose sums are opened apart, for a rule
            that compares them; each holds ``min_devices`` at least.
    """

    scheme: Literal["public-key", "clear"] = "public-key"
    bits: Literal[8, 12, 16] = 12
    value_range: float = Field(0.0, ge=0, le=1e15)
    min_devices: int = Field(16, ge=2)
    max_devices: int = Field(MAX_DEVICES, ge=2, le=MAX_DEVICES)
    groups: int = Field(1, ge=1, le=128)

    @property
    def fewest(self) -> int:
        """Devices without which no round can end well."""
        return self.groups * self.min_devices

    @property
    def most(self) -> int:
        """Devices that a round has room for."""
        return self.groups * self.max_devices

    def contradictions(self) -> Iterator[str]:
        """``min_devices`` must be reachable."""
        if self.min_devices > self.max_devices:
            yield f"min_devices: {self.min_devices} is more than max_devices ({self.max_devices})"


ROBUST_RULES: Final = ("median", "trimmed-mean", "multikrum")
"""Rules that compare several updates, or sums of groups, and outvote the odd ones."""


class ServerTable(Table):
    """How the coordinator turns the devices' updates into a new adapter.

    Attributes:
        rule: ``fedavg`` and ``fedadam`` take the mean of all devices. The others
            take a robust middle: in clear of single updates, encrypted of the
            means of ``protection.groups``.
        malicious: How many of those may be hostile, f. Trimmed mean drops so
            many values at either end; multi-Krum measures against all but so many.
    """

    rule: Literal["fedavg", "fedadam", "median", "trimmed-mean", "multikrum"] = "fedavg"
    malicious: int = Field(1, ge=1, le=1000)
    learning_rate: float = Field(1.0, ge=1e-9, le=1e6)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    tau: float = Field(1e-3, gt=0)

    @property
    def is_robust(self) -> bool:
        """Whether the rule compares updates with each other."""
        return self.rule in ROBUST_RULES

    @property
    def fewest_updates(self) -> int:
        """Updates, or groups' means, without which the rule decides nothing.

        A majority of honest values for the middle of a line; for multi-Krum
        n ≥ 2 f + 3 (Blanchard et al., NeurIPS 2017, section 4).
        """
        match self.rule:
            case "median":
                return 3
            case "trimmed-mean":
                return 2 * self.malicious + 1
            case "multikrum":
                return 2 * self.malicious + 3
            case _:
                return 1


class EvaluationTable(Table):
    """How well the devices' own examples are answered, learnt without seeing one of them.

    Attributes:
        share: Share of every device's examples that is never trained on; each
            round their scores are summed, noised and ride in the encrypted
            update. 0 does without.
        noise: Noise multiplier of such a sum, charged each round.
    """

    share: float = Field(0.0, ge=0, lt=1)
    noise: float = Field(10.0, ge=0.1, le=1e6)


class AnswersTable(Table):
    """What devices do with the adapter when the run is over.

    Attributes:
        target_error: Most errors, as a share, among the answers that a device gives by itself;
            certified on the probe set with 95 % confidence.
    """

    target_error: float = Field(0.05, gt=0, lt=1)


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
    task: str = "text-classification"
    model: ModelTable = ModelTable()
    adapter: AdapterTable = AdapterTable()
    training: TrainingTable = TrainingTable()
    privacy: PrivacyTable = PrivacyTable()
    protection: ProtectionTable = ProtectionTable()
    evaluation: EvaluationTable = EvaluationTable()
    answers: AnswersTable = AnswersTable()
    server: ServerTable = ServerTable()
    cohort: CohortTable = CohortTable()

    def contradictions(self) -> Iterator[str]:
        """The task must exist and fit what is trained, the cohort the protection, ε the count's noise."""
        if self.task not in task_names():
            yield f"task: must be one of {', '.join(task_names())}, not {self.task!r}"
        elif self.model.trainable == "head" and not find_task(self.task).has_head:
            yield f"model.trainable: {self.task} has no head to train; use 'lora'"
        yield from self._contradictions_of_groups()
        yield from self._contradictions_of_distributed_noise()
        wanted, protection = self.cohort.devices, self.protection
        if wanted and wanted < protection.fewest:
            yield (
                f"cohort.devices: {wanted} is fewer than protection.min_devices"
                f"{_times(protection.groups)} ({protection.fewest}), so no sum could ever be opened"
            )
        if wanted > protection.most:
            yield (
                f"cohort.devices: {wanted} is more than protection.max_devices"
                f"{_times(protection.groups)} ({protection.most})"
            )
        if self.privacy.noise == "local" and self.privacy.epsilon < 0.5:
            yield (
                f"privacy.epsilon: {self.privacy.epsilon} is below 0.5, which the noise on the "
                "example count alone would nearly use up"
            )

    def _contradictions_of_distributed_noise(self) -> Iterator[str]:
        """Noise is shared over one step's exact integers, in sums that nobody takes apart."""
        of_devices = self.privacy.level == "device"
        if self.privacy.noise != "distributed":
            if of_devices:
                yield "privacy.level: 'device' needs privacy.noise = 'distributed'"
            return
        if of_devices and self.evaluation.share:
            yield "evaluation.share: must be 0 with privacy.level = 'device': scores hide records"
        why = "with privacy.noise = 'distributed'"
        if self.training.local_steps != 1 and not of_devices:
            yield f"training.local_steps: must be 1 {why}, which noises one gradient per round"
        if self.protection.bits != 16:
            yield f"protection.bits: must be 16 {why}; fewer leave no room for clip and noise"
        if self.protection.scheme == "clear":
            yield f"protection.scheme: must not be 'clear' {why}: one device's share hides little"
        if self.protection.value_range:
            yield f"protection.value_range: must be left at 0 {why}, where it follows from the clip"
        if self.training.proximal_mu and not of_devices:
            yield f"training.proximal_mu: must be 0 {why}; a single step has nowhere to be pulled"

    def _contradictions_of_groups(self) -> Iterator[str]:
        """A robust rule needs enough to compare, and groups need a rule that compares them."""
        server, protection = self.server, self.protection
        if not server.is_robust:
            if protection.groups > 1:
                yield (
                    f"protection.groups: {protection.groups} sums would be opened where "
                    f"server.rule = {server.rule!r} needs one, and smaller groups protect less"
                )
            return
        needed = server.fewest_updates
        if protection.scheme == "public-key" and protection.groups < max(needed, 3):
            yield (
                f"server.rule: {server.rule!r} compares updates, and an encrypted sum shows none; "
                f"set protection.groups to at least {max(needed, 3)} to compare sums of groups, "
                "or protection.scheme to 'clear'"
            )
        if protection.scheme == "clear" and protection.groups > 1:
            yield "protection.groups: in clear the rule sees single updates; leave it at 1"
        if protection.scheme == "clear" and protection.min_devices < needed:
            yield (
                f"server.rule: {server.rule!r} with malicious = {server.malicious} needs "
                f"{needed} updates; raise protection.min_devices ({protection.min_devices})"
            )


def _times(groups: int) -> str:
    return f" times {groups} groups" if groups > 1 else ""


class RunPlan(Table):
    """A job with everything that follows from it; signed into every invitation.

    Attributes:
        run: The run's identifier.
        job: What was asked.
        shape: What the adapter consists of; its labels are public.
        seed: Draws cohorts and, in a simulation, derives release seeds. Public.
        simulation: Noise may be repeatable; a device refuses it unless its owner
            set it up as a simulated device.
        noise_multiplier: σ / C; 0 without noise.
        value_range: Values of the weighted update beyond ± this are saturated.
        update_norm: L2 bound on the whole weighted update.
        integer_clip: With distributed noise the L2 bound on one example's rounded
            gradient, in steps of the quantiser; 0 otherwise.
        share_variance: With distributed noise the variance of one device's share,
            in the same steps squared; 0 otherwise.
    """

    run: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$")
    job: Job
    shape: AdapterShape
    seed: int = Field(ge=0)
    simulation: bool
    noise_multiplier: float = Field(ge=0, le=1e6)
    value_range: float = Field(ge=1e-12, le=1e15)
    update_norm: float = Field(ge=1e-12, le=1e15)
    integer_clip: int = Field(0, ge=0, le=2**15)
    share_variance: int = Field(0, ge=0, le=MAX_VARIANCE)

    def contradictions(self) -> Iterator[str]:
        """A distributed plan has a clip, noise and room for both, others have none."""
        if not self.distributed:
            if self.integer_clip or self.share_variance:
                yield "integer_clip, share_variance: only distributed noise has them"
        elif not (self.integer_clip and self.share_variance):
            yield "integer_clip, share_variance: distributed noise needs both"
        elif self.coordinate_clamp < self.integer_clip:
            yield "share_variance: leaves less room than one example needs"

    @property
    def distributed(self) -> bool:
        """Whether devices share one round's noise."""
        return self.job.privacy.noise == "distributed"

    @property
    def hides_devices(self) -> bool:
        """Whether ε is about whole devices."""
        return self.job.privacy.level == "device"

    @property
    def noise_reach(self) -> int:
        """Noise of more than ± this would wrap: eleven deviations, which none of 10^26 exceeds."""
        return math.ceil(_NOISE_REACH * math.sqrt(self.share_variance))

    @property
    def coordinate_clamp(self) -> int:
        """Each value of a device's summed gradient is held within ± this before noise."""
        return self.layout.magnitude - self.noise_reach

    @property
    def run_id(self) -> RunId:
        """The run's identifier, typed."""
        return RunId(self.run)

    @property
    def scheme(self) -> Scheme:
        """How sums are protected."""
        return Scheme(self.job.protection.scheme)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the adapter's order; none for a language model."""
        return self.shape.labels

    @property
    def features(self) -> int:
        """Width of the base."""
        return self.shape.features

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        return self.shape.parameters

    @property
    def clip_norm(self) -> float | None:
        """L2 bound on one example's gradient; None leaves gradients as they are."""
        noised = self.noise_multiplier > 0 and not self.hides_devices
        bounded = noised or self.shape.method != "none"
        return self.job.training.clip_norm if bounded else None

    @property
    def step_ratios(self) -> FloatVector:
        """Step size of every parameter as a multiple of the learning rate, (parameters,).

        Updates travel divided by it, so that one value range fits them all.
        """
        ratios = np.ones(self.parameters)
        if self.shape.labels:
            ratios[self.shape.head_parameters :] = self.job.adapter.step_ratio
        return ratios

    @property
    def evaluates(self) -> bool:
        """Whether devices score their held-out examples."""
        return self.job.evaluation.share > 0

    @property
    def compares_devices(self) -> bool:
        """Whether the server's rule sees single updates, which only a run in clear shows."""
        return self.job.server.is_robust and self.scheme is Scheme.CLEAR

    @property
    def layout(self) -> SumLayout:
        """The packed vector: weighted update, weight, share saturated, evaluation if there is one."""
        protection = self.job.protection
        return SumLayout(
            count=self.parameters + _WEIGHT + _SATURATED + (_EVALUATION if self.evaluates else 0),
            bits=protection.bits,
            max_devices=protection.max_devices,
        )

    @property
    def update_quantiser(self) -> Quantiser:
        """Turns values of the weighted update into integers and back."""
        return Quantiser(bits=self.job.protection.bits, value_range=self.value_range)

    @property
    def share_quantiser(self) -> Quantiser:
        """Turns the weight, or the share saturated, both in [0, 1], into an integer and back."""
        return Quantiser(bits=self.job.protection.bits, value_range=1.0)

    @property
    def evaluation_quantiser(self) -> Quantiser:
        """Turns a sum of scores, or their number, into an integer and back."""
        reach = float(self.job.training.examples_cap)
        if self.noise_multiplier:
            reach += 6 * SENSITIVITY_OF_EVALUATION * self.job.evaluation.noise
        return Quantiser(bits=self.job.protection.bits, value_range=reach)

    def count_facts(self) -> tuple[Fact, ...]:
        """What the noised example count, released once per run, costs."""
        if self.noise_multiplier == 0 or self.distributed:
            return ()  # with distributed noise every device weighs the same
        return (SampledGaussian(noise_multiplier=COUNT_NOISE, sample_rate=1.0, steps=1),)

    def round_facts(self) -> tuple[Fact, ...]:
        """What one round's update costs."""
        if self.noise_multiplier == 0:
            return (NonPrivate(reason=f"run {self.run} trains without noise"),)
        training = self.job.training
        trained: Fact = SampledGaussian(
            noise_multiplier=self.noise_multiplier,
            sample_rate=training.sample_rate,
            steps=training.local_steps,
        )
        if self.distributed:
            trained = _shared(self.job, self.shape, self.integer_clip, self.share_variance)
        # An example is trained on or scored, never both; charging it for both errs on its side.
        return (trained, *_evaluation_facts(self.job))

    def run_facts(self) -> tuple[Fact, ...]:
        """The run's worst case for a device that takes part in every round."""
        return self.count_facts() + self.round_facts() * self.job.training.rounds


def _shared(
    job: Job, shape: AdapterShape, integer_clip: int, share_variance: int
) -> SharedDiscreteGaussian:
    """One round of distributed noise as a fact."""
    protection = job.protection
    return SharedDiscreteGaussian(
        variance=share_variance,
        shares=protection.min_devices,
        sensitivity=integer_clip,
        dimension=shape.parameters,
        reach=math.ceil(_NOISE_REACH * math.sqrt(share_variance)),
        most=protection.max_devices,
        sample_rate=(
            job.training.sample_rate if job.privacy.level == "record" else job.privacy.participation
        ),
        steps=1,
        unit=job.privacy.level,
    )


def _evaluation_facts(job: Job) -> tuple[Fact, ...]:
    """What one round's scores cost, with noise on."""
    if job.evaluation.share == 0:
        return ()
    return (SampledGaussian(noise_multiplier=job.evaluation.noise, sample_rate=1.0, steps=1),)


def plan_run(
    job: Job,
    *,
    run: RunId,
    shape: AdapterShape,
    seed: int,
    simulation: bool,
) -> RunPlan:
    """Derive noise, range and bounds from a job.

    The weighted update of a device with n examples is
    -η (Σ clip(g) + σ C ξ) / (q · cap) per step, so its noise does not depend on
    n: standard deviation η σ C √L / (q · cap) after L steps. The value range
    leaves six of them plus an eighth of the largest signal η C L; without noise
    half of η L for a head, which no coordinate of our runs came near (saturation
    is harmless to privacy and costs accuracy only).

    Raises:
        ConfigError: no noise multiplier reaches ``job.privacy.epsilon``.
    """
    if job.privacy.noise == "distributed":
        return _plan_distributed(job, run=run, shape=shape, seed=seed, simulation=simulation)
    training, privacy = job.training, job.privacy
    steps = training.local_steps
    reach = training.learning_rate * training.clip_norm
    if privacy.noise == "none" and shape.method != "none":
        multiplier = 0.0
        value_range = reach * steps / 8
        update_norm = 2 * reach * steps
    elif privacy.noise == "none":
        multiplier = 0.0
        value_range = 0.5 * training.learning_rate * steps
        update_norm = training.learning_rate * steps * _STEEPEST_GRADIENT
    else:
        multiplier = noise_multiplier_for(
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            sample_rate=training.sample_rate,
            steps=steps * training.rounds,
            also=(
                SampledGaussian(noise_multiplier=COUNT_NOISE, sample_rate=1.0, steps=1),
                *_evaluation_facts(job) * training.rounds,
            ),
        )
        spread = multiplier * math.sqrt(steps) / (training.sample_rate * training.examples_cap)
        value_range = reach * (6 * spread + steps / 8)
        update_norm = 2 * reach * (spread * math.sqrt(shape.parameters) + steps)
    plan = RunPlan(
        run=run,
        job=job,
        shape=shape,
        seed=seed,
        simulation=simulation,
        noise_multiplier=multiplier,
        value_range=job.protection.value_range or value_range,
        update_norm=update_norm,
    )
    _check_totals(plan)
    return plan


def _plan_distributed(
    job: Job, *, run: RunId, shape: AdapterShape, seed: int, simulation: bool
) -> RunPlan:
    """Find the finest integers in which clip and noise of a run have room.

    A value of M = 2^15 - 1 holds sixteen clips of gradient and eleven deviations of one
    device's noise, σ = z C / √m for m devices: C = M / (16 + 11 z / √m). Among n
    examples of a batch a coordinate rarely gets a sixteenth of a clip from each. Where
    whole updates are clipped, one clip is all that a value can have.

    Raises:
        ConfigError: no noise reaches ``job.privacy.epsilon``, or gradients have so many
            values that rounding them would take up more than a quarter of the clip.
    """
    training, privacy, protection = job.training, job.privacy, job.protection
    magnitude = 2 ** (protection.bits - 1) - 1
    of_devices = privacy.level == "device"
    clips = 1 if of_devices else _CLIPS_IN_RANGE
    evaluation = _evaluation_facts(job) * training.rounds

    def integers(multiplier: float) -> tuple[int, int]:
        ratio = multiplier / math.sqrt(protection.min_devices)
        clip = max(1, int((magnitude - 2) / (clips + _NOISE_REACH * ratio)))
        return clip, max(1, math.ceil((ratio * clip) ** 2))

    def cost(multiplier: float) -> float:
        fact = _shared(job, shape, *integers(multiplier))
        facts = [*[fact] * training.rounds, *evaluation]
        return epsilon(facts, delta=privacy.delta, unit=privacy.level)

    if epsilon(evaluation, delta=privacy.delta) >= privacy.epsilon:
        problem = (
            f"privacy.epsilon: {privacy.epsilon:g} at delta = {privacy.delta:g} is used up by the "
            "held-out examples' scores alone; raise evaluation.noise"
        )
        raise ConfigError([problem], source="job")
    low, high = 0.0, 1.0
    while cost(high) > privacy.epsilon:
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            problem = (
                f"privacy.epsilon: {privacy.epsilon:g} at delta = {privacy.delta:g} cannot be met "
                "by any noise that 16-bit values have room for"
            )
            raise ConfigError([problem], source="job")
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        if cost(middle) > privacy.epsilon:
            low = middle
        else:
            high = middle
    clip, variance = integers(high)
    if shape.parameters > clip**2:
        problem = (
            f"privacy.noise: one example's gradient of {shape.parameters:,} values cannot be "
            f"rounded within {clip} steps, which this noise leaves of 16 bits; train fewer "
            "parameters, or spend more epsilon"
        )
        raise ConfigError([problem], source="job")
    if of_devices:
        step = privacy.update_clip / clip
    else:
        # One step of the integers, times the learning rate, as updates are measured.
        taken = training.learning_rate / (training.sample_rate * training.examples_cap)
        step = taken * training.clip_norm / clip
    value_range = magnitude * step
    plan = RunPlan(
        run=run,
        job=job,
        shape=shape,
        seed=seed,
        simulation=simulation,
        noise_multiplier=_shared(job, shape, clip, variance).noise_multiplier,
        value_range=value_range,
        update_norm=value_range * math.sqrt(shape.parameters),
        integer_clip=clip,
        share_variance=variance,
    )
    _check_totals(plan)
    return plan


def _check_totals(plan: RunPlan) -> None:
    """Refuse more running totals than a worker has memory for. Raises ConfigError."""
    protection = plan.job.protection
    totals = protection.max_devices if plan.compares_devices else protection.groups
    room = TOTALS_BYTES // (BYTES_PER_VALUE_ADDED * plan.layout.count)
    if totals > max(1, room):
        name = "max_devices" if plan.compares_devices else "groups"
        problem = (
            f"protection.{name}: {totals} sums of {plan.layout.count:,} values are kept side by "
            f"side, and there is room for {room}"
        )
        raise ConfigError([problem], source="job")
