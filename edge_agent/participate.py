"""The device side of one round, whatever carries the messages.

P1  nothing derived from examples leaves before its worst case is charged on disk
P2  the release seed is on disk before the charge, so that a crash at any point
    repeats the identical update and never draws a second noisy view
P3  a job whose worst case overruns the owner's budget is declined, with the
    numbers, whatever the coordinator says
P4  what leaves is clipped, quantised and encrypted under the key of the key
    holder that this device's owner pinned
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import structlog

from edge_agent.examples import ExampleStore
from edge_agent.training.trainer import Trainer, TrainRequest
from shared.crypto.sum_cipher import SumContext, cipher_for
from shared.errors import (
    AlreadyReleased,
    BudgetExceeded,
    DataError,
    GateRefused,
    LedgerDamaged,
    SeedRefused,
    ShapeMismatch,
    StorageError,
)
from shared.files import write_durably
from shared.job import COUNT_NOISE, SENSITIVITY_OF_EVALUATION, RunPlan
from shared.models.adapter import Adapter
from shared.privacy.accountant import Fact
from shared.privacy.clipping import clip_by_norm
from shared.privacy.ledger import Charge, Ledger
from shared.privacy.release import (
    ReleaseSeeds,
    ReleaseStream,
    operating_system_seed,
    simulation_seed,
)
from shared.types import DeviceId, FloatVector, IntVector, RoundNumber, RunId

log = structlog.get_logger()

PARTICIPATION_STREAM = "participation"
"""Label of the release seed's stream that the coin comes from."""

_COUNT_ROUND = RoundNumber(0)
"""The noised example count belongs to the run, not to one of its rounds."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where a device keeps what it must not lose, and what it must not show."""

    folder: Path

    @property
    def examples(self) -> Path:
        """The example store."""
        return self.folder / "examples.db"

    @property
    def ledger(self) -> Path:
        """The privacy ledger."""
        return self.folder / "ledger.jsonl"

    @property
    def seeds(self) -> Path:
        """Release seeds of updates that have no receipt yet."""
        return self.folder / "seeds"

    @property
    def outbox(self) -> Path:
        """Encrypted updates that have no receipt yet."""
        return self.folder / "outbox"

    @property
    def features(self) -> Path:
        """Cached activations of the frozen encoder."""
        return self.folder / "features"

    @property
    def blobs(self) -> Path:
        """Adapters and public keys that were fetched."""
        return self.folder / "blobs"

    def noised_count(self, run: RunId) -> Path:
        """The run's noised example count, released once."""
        return self.folder / "counts" / run


@dataclass(frozen=True, slots=True)
class Invited:
    """One round that this device was asked to take part in, with what it fetched."""

    plan: RunPlan
    round: RoundNumber
    adapter: bytes
    public_key: bytes
    key_id: str


@dataclass(frozen=True, slots=True)
class Owner:
    """What the device's owner allows.

    Attributes:
        device: The device's name.
        epsilon_budget: Most ε over everything this store ever took part in;
            infinity allows runs without noise.
        delta: The δ at which that ε is meant: the owner's, not the job's, since
            a job could name one at which any ε looks small.
        simulation_seed: Makes noise repeatable; only for simulated devices.
        tells_budget: Whether the coordinator is told what is left of the budget.
    """

    device: DeviceId
    epsilon_budget: float
    delta: float = 1e-5
    simulation_seed: bytes | None = None
    tells_budget: bool = False


def check_allowed(plan: RunPlan, round_: RoundNumber, home: Home, owner: Owner) -> None:
    """Refuse what the owner does not allow, before anything is fetched or trained (P3, P4).

    The worst case is everything charged so far and every round of this run that
    is not charged yet, the device taking part in all of them.

    Raises:
        BudgetExceeded: with both numbers.
        SeedRefused: the run or the device is simulated and the other is not.
        AlreadyReleased: the round's update has left this device before.
        LedgerDamaged: the ledger cannot be trusted.
    """
    if plan.simulation != (owner.simulation_seed is not None):
        raise SeedRefused(
            "the run asks for repeatable noise, which only a simulated device gives"
            if plan.simulation
            else "this is a simulated device: its noise is repeatable and protects nobody"
        )
    ledger = Ledger(home.ledger)
    if ledger.repaired:
        log.warning("ledger.repaired", reason="its last record was torn; nothing followed it")
    charged = [charge for charge in ledger.charges() if charge.run == plan.run]
    trained = any(charge.round == round_ for charge in charged)
    if trained and not ReleaseSeeds(home.seeds).holds(plan.run_id, round_):
        # Without its seed the release is out, and cannot be repeated.
        raise AlreadyReleased(f"round {round_} of {plan.run} was already released")
    # At least the round at hand: a plan may have been shortened since the last one.
    left = max(plan.job.training.rounds - len(charged), 0 if trained else 1)
    ahead = plan.round_facts() * left + (() if charged else plan.count_facts())
    needed = ledger.epsilon_after(ahead, owner.delta)
    if needed > owner.epsilon_budget:
        raise BudgetExceeded(needed=needed, budget=owner.epsilon_budget)


def check_charged(store: ExampleStore, ledger: Ledger) -> None:
    """Refuse a ledger that lacks charges which the examples have borne.

    Raises:
        LedgerDamaged: with both numbers and what to do.
    """
    borne, known = store.charges, _charges_of(store, ledger)
    if known < borne:
        raise LedgerDamaged(
            f"these examples were charged {borne} times and the ledger beside them knows {known}: "
            "restore ledger.jsonl, or bring it along from where the examples were copied"
        )


def _charges_of(store: ExampleStore, ledger: Ledger) -> int:
    """How many of the ledger's charges this store bore: others' do not speak for it."""
    return sum(charge.store == store.store_id for charge in ledger.charges())


def participate(invited: Invited, home: Home, owner: Owner, trainer: Trainer) -> bytes:
    """Train, and return the encrypted update: the one release of this round.

    The same call after a crash returns an update that decrypts to the same
    integers. Runs for as long as training takes; call it beside the agent.

    Returns:
        The ciphertext frame, of the run's exact length.

    Raises:
        BudgetExceeded, SeedRefused, AlreadyReleased, LedgerDamaged: as
            :func:`check_allowed` and :func:`check_charged`; nothing is released.
        GateRefused: training gave nothing that may be sent.
        DataError: there are no examples, or none with a label of the run.
        UndecodableMessage, ShapeMismatch: the adapter is not one of this run;
            found before anything is charged.
        StorageError, ModelError, ChildDied: as their names say.
    """
    plan, round_ = invited.plan, invited.round
    store = ExampleStore(home.examples)
    if store.count == 0:
        raise DataError("this device has no examples; add some with 'llmos edge data add FILE'")
    check_allowed(plan, round_, home, owner)
    ledger = Ledger(home.ledger)
    check_charged(store, ledger)
    start = Adapter.from_bytes(invited.adapter)
    if start.shape != plan.shape:
        raise ShapeMismatch("the adapter has another shape than the run plan states")
    seeds = ReleaseSeeds(home.seeds)
    trainer.prepare(plan, home.examples, home.features)
    seed = seeds.obtain(plan.run_id, round_, _draw(owner, plan, round_))
    if plan.count_facts() and all(charge.run != plan.run for charge in ledger.charges()):
        seeds.obtain(plan.run_id, _COUNT_ROUND, _draw(owner, plan, _COUNT_ROUND))
    _charge(ledger, plan, round_, store.store_id)
    store.note_charges(_charges_of(store, ledger))
    training, held_out = plan.job.training, plan.job.evaluation.share
    if plan.distributed:
        # Every device weighs the same: nothing needs to be told of how many examples it has.
        learnt_from = float(training.examples_cap)
    else:
        learnt_from = max(1.0, _noised_count(home, plan, store.count) * (1 - held_out))
    trained = trainer.train(
        TrainRequest(
            store_path=home.examples,
            cache_folder=home.features,
            task=plan.job.task,
            base=plan.job.model.base,
            keep_layers=plan.job.model.layers,
            adapter=invited.adapter,
            learning_rate=training.learning_rate,
            local_steps=training.local_steps,
            sample_rate=training.sample_rate,
            step_ratio=plan.job.adapter.step_ratio if plan.labels else 1.0,
            clip_norm=plan.clip_norm,
            # Whole updates are noised behind training, which is then as without.
            noise_multiplier=0.0 if plan.hides_devices else plan.noise_multiplier,
            expected_examples=learnt_from,
            held_out_share=held_out,
            seed=seed,
            proximal_mu=training.proximal_mu,
            integer_clip=plan.integer_clip,
            update_clip=plan.job.privacy.update_clip if plan.hides_devices else 0.0,
            participates=_participates(plan, seed),
            share_variance=plan.share_variance,
            coordinate_clamp=plan.coordinate_clamp if plan.distributed else 0,
            magnitude=plan.layout.magnitude if plan.distributed else 0,
        )
    )
    weight = min(1.0, learnt_from / training.examples_cap)
    values = packed(
        trained.update.astype(np.float64),
        weight,
        plan,
        ReleaseStream(seed),
        scored=(trained.score_sum, trained.scored),
    )
    return cipher_for(plan.scheme, plan.layout).encrypt(
        values,
        public_key=invited.public_key,
        context=SumContext(plan.run_id, round_, invited.key_id),
    )


def packed(
    update: FloatVector,
    weight: float,
    plan: RunPlan,
    stream: ReleaseStream,
    *,
    scored: tuple[float, int] = (0.0, 0),
) -> IntVector:
    """The integers that are encrypted: weighted update, weight, share saturated, evaluation.

    Gate, clip, quantise: after the noise, so all three are post-processing.

    Args:
        update: Change to the parameters, float64, shape (parameters,).
        weight: This device's share, in (0, 1].
        plan: Ranges and bounds of the run.
        stream: Noises the evaluation and rounds without bias, after a restart as before it.
        scored: Exact sum of the scores of held-out examples, and their number; left out
            unless the run evaluates.

    Raises:
        GateRefused: the update is not finite, zero, or of the wrong length.
    """
    if update.shape != (plan.parameters,):
        raise GateRefused(f"{update.shape} values were trained, the run has {plan.parameters}")
    uniforms = stream.uniforms("rounding", plan.layout.count)
    size = plan.parameters
    if plan.distributed:
        # Integers already, with noise. Whatever more was made of them here, be it a count of
        # those that were held, would be seen under this device's own share of noise alone.
        parts = [update.astype(np.int64), np.array([plan.share_quantiser.magnitude, 0])]
    else:
        parts = list(_weighted(update, weight, plan, uniforms[: size + 2]))
    if plan.evaluates:
        # Of more examples than the cap the mean counts as the cap's: one record weighs less.
        sums = np.array(scored, np.float64) * min(
            1.0, plan.job.training.examples_cap / max(scored[1], 1)
        )
        if plan.noise_multiplier:
            spread = plan.job.evaluation.noise * SENSITIVITY_OF_EVALUATION
            sums += spread * stream.gaussians("evaluation", 2)
        parts.append(plan.evaluation_quantiser.quantise(sums, uniforms[size + 2 :]).values)
    return np.concatenate(parts).astype(np.int64)


def _weighted(
    update: FloatVector, weight: float, plan: RunPlan, uniforms: FloatVector
) -> tuple[IntVector, IntVector]:
    """The weighted update in integers, and behind it weight and share saturated.

    Raises:
        GateRefused: the update is not finite or zero.
    """
    norm = float(np.linalg.norm(update))
    if not math.isfinite(norm):
        raise GateRefused("training diverged: the update is not finite")
    if norm == 0.0:
        raise GateRefused("training changed nothing")
    clipped = clip_by_norm(weight * update, plan.update_norm).update
    size = plan.parameters
    quantised = plan.update_quantiser.quantise(clipped, uniforms[:size])
    shares = np.array([weight, quantised.saturated / size])
    share, saturated = plan.share_quantiser.quantise(shares, uniforms[size:]).values
    # A weight that rounds to nothing would leave the update in the sum and its weight out.
    return quantised.values, np.array([max(share, 1), saturated])


def _participates(plan: RunPlan, seed: bytes) -> bool:
    """Whether this device's update is in the round's sum: the same after a crash, by its seed."""
    if not plan.hides_devices:
        return True
    coin = ReleaseStream(seed).uniforms(PARTICIPATION_STREAM, 1)[0]
    return bool(coin < plan.job.privacy.participation)


def _draw(owner: Owner, plan: RunPlan, round_: RoundNumber) -> Callable[[], bytes]:
    master = owner.simulation_seed
    if master is None:
        return operating_system_seed
    return lambda: simulation_seed(master, owner.device, plan.run_id, round_)


def _charge(ledger: Ledger, plan: RunPlan, round_: RoundNumber, store_id: str) -> None:
    """Charge the round, and with the run's first round the example count (P1).

    Charged before: the ledger accepts the same facts again, and refuses a plan
    that has been given less noise since.
    """
    earlier = [charge for charge in ledger.charges() if charge.run == plan.run]
    facts: tuple[Fact, ...] = plan.round_facts()
    if not earlier or earlier[0].round == round_:
        facts = plan.count_facts() + facts
    at = datetime.now(UTC).isoformat(timespec="seconds")
    ledger.charge(Charge(plan.run_id, round_, store_id, facts, at))


def _noised_count(home: Home, plan: RunPlan, count: int) -> float:
    """The example count as the run may know it: noised once, then fixed.

    Fixed on disk for good, since examples may be added during a run: the same
    noise on two counts would give their difference away exactly, and fresh noise
    on the same count would be a second release that nobody charged.
    """
    if plan.noise_multiplier == 0:
        return float(count)
    path, seeds = home.noised_count(plan.run_id), ReleaseSeeds(home.seeds)
    if path.exists():
        try:
            return float(path.read_text(encoding="ascii"))
        except ValueError as err:
            raise StorageError(f"{path} is damaged; restore it from a backup") from err
    if not seeds.holds(plan.run_id, _COUNT_ROUND):
        raise AlreadyReleased(f"the example count was already released to run {plan.run}")
    seed = seeds.obtain(plan.run_id, _COUNT_ROUND, operating_system_seed)
    noise = float(ReleaseStream(seed).gaussians("count", 1)[0])
    noised = max(1.0, count + COUNT_NOISE * noise)
    write_durably(path, repr(noised).encode(), mode=0o600)
    seeds.erase(plan.run_id, _COUNT_ROUND)
    return noised
