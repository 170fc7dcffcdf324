"""One round on a device: charged before it trains, the same after any crash, within the budget.

The trainer is a stand-in; examples, ledger, seeds, quantiser and ciphertexts are real.
"""

from __future__ import annotations

import itertools
import math
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_agent import participate as module
from edge_agent.examples import ExampleStore
from edge_agent.participate import (
    Home,
    Invited,
    Owner,
    check_allowed,
    packed,
    participate,
)
from edge_agent.training.integer_gradient import NOISE_STREAM
from edge_agent.training.trainer import Trained, TrainRequest
from shared.crypto.sum_cipher import KeyPair, Scheme, SumContext, cipher_for, key_id_of, opener_for
from shared.data_files import Example
from shared.errors import (
    AlreadyReleased,
    BudgetExceeded,
    DataError,
    GateRefused,
    LedgerDamaged,
    PrivacyError,
    SeedRefused,
    StorageError,
    WrongKey,
)
from shared.files import append_durably
from shared.job import COUNT_NOISE, RunPlan
from shared.privacy import ledger as ledger_module
from shared.privacy import release as release_module
from shared.privacy.accountant import NonPrivate, epsilon
from shared.privacy.discrete_gaussian import discrete_gaussians
from shared.privacy.ledger import Charge, Ledger
from shared.privacy.release import ReleaseSeeds, ReleaseStream, simulation_seed
from shared.types import DeviceId, FloatVector, IntVector, RoundNumber
from tests.support.plans import a_plan
from tests.support.trainers import ADAPTER, SeededTrainer, update_of

ROUND = RoundNumber(1)
DEVICE = DeviceId("kitchen")
EASY_GOING = Owner(DEVICE, epsilon_budget=1000.0)
EXAMPLES = [Example(f"text {number}", "refund") for number in range(30)]
MASTER = bytes(range(32))

PLAN = a_plan()
EVALUATED = a_plan(
    evaluation={"share": 0.2}, protection={"scheme": "clear", "min_devices": 2, "bits": 16}
)
KEYS: KeyPair = opener_for(PLAN.scheme, PLAN.layout).new_key_pair()
"""One pair for all tests: nothing here depends on which."""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return a_home(tmp_path / "device")


def a_home(folder: Path) -> Home:
    home = Home(folder)
    ExampleStore(home.examples).add(EXAMPLES)
    return home


def invited(plan: RunPlan = PLAN, round_: int = ROUND) -> Invited:
    in_clear = plan.scheme is Scheme.CLEAR
    return Invited(
        plan=plan,
        round=RoundNumber(round_),
        adapter=ADAPTER.to_bytes(),
        public_key=b"" if in_clear else KEYS.public,
        key_id=key_id_of(b"") if in_clear else KEYS.key_id,
    )


def integers_in(frame: bytes, what: Invited) -> IntVector:
    """What a frame decrypts to, on its own: the key is ours."""
    plan = what.plan
    context = SumContext(plan.run_id, what.round, what.key_id)
    total = cipher_for(plan.scheme, plan.layout).begin(context)
    total.add(frame)
    secret = b"" if plan.scheme is Scheme.CLEAR else KEYS.secret
    return opener_for(plan.scheme, plan.layout).open(
        total.dump(), secret_key=secret, context=context, devices=1
    )


# P1: charged first


def test_the_ledger_is_charged_on_disk_before_training_begins(home: Home) -> None:
    seen: list[list[Charge]] = []
    trainer = SeededTrainer(before=lambda: seen.append(Ledger(home.ledger).charges()))
    participate(invited(), home, EASY_GOING, trainer)
    ((charge,),) = seen
    assert (charge.run, charge.round) == (PLAN.run_id, ROUND)
    assert charge.store == ExampleStore(home.examples).store_id
    assert charge.facts == PLAN.count_facts() + PLAN.round_facts()


def test_the_example_count_is_charged_in_the_first_round_only(home: Home) -> None:
    for round_ in (2, 1, 3):
        participate(invited(round_=round_), home, EASY_GOING, SeededTrainer())
    first, *others = (charge.facts for charge in Ledger(home.ledger).charges())
    assert first == PLAN.count_facts() + PLAN.round_facts()
    assert others == [PLAN.round_facts(), PLAN.round_facts()]


def test_a_whole_run_costs_what_was_asked_and_no_more(home: Home) -> None:
    for round_ in (1, 2, 3):
        participate(invited(round_=round_), home, EASY_GOING, SeededTrainer())
    spent = Ledger(home.ledger).epsilon(PLAN.job.privacy.delta)
    assert 0.95 * PLAN.job.privacy.epsilon < spent <= PLAN.job.privacy.epsilon


def test_training_without_noise_is_charged_as_no_privacy_at_all(home: Home) -> None:
    plan = a_plan(privacy={"noise": "none"})
    owner = replace(EASY_GOING, epsilon_budget=math.inf)
    trainer = SeededTrainer()
    participate(invited(plan), home, owner, trainer)
    ((fact,),) = (charge.facts for charge in Ledger(home.ledger).charges())
    assert isinstance(fact, NonPrivate)
    assert Ledger(home.ledger).epsilon(1e-5) == math.inf
    assert trainer.requests[0].clip_norm is None


def test_a_damaged_ledger_releases_nothing(home: Home) -> None:
    participate(invited(), home, EASY_GOING, SeededTrainer())
    home.ledger.write_bytes(home.ledger.read_bytes().replace(b'"round":1', b'"round":2'))
    trainer = SeededTrainer()
    with pytest.raises(LedgerDamaged):
        participate(invited(round_=3), home, EASY_GOING, trainer)
    assert trainer.requests == []


def test_a_ledger_that_lacks_what_the_examples_bore_releases_nothing(
    home: Home, tmp_path: Path
) -> None:
    for round_ in (1, 2):
        participate(invited(round_=round_), home, EASY_GOING, SeededTrainer())
    kept = home.ledger.read_bytes()
    copied = Home(tmp_path / "copied")
    copied.folder.mkdir()
    with sqlite3.connect(home.examples) as source, sqlite3.connect(copied.examples) as target:
        source.backup(target)
    first_line, _, _ = kept.partition(b"\n")
    home.ledger.write_bytes(first_line + b"\n")
    for place in (home, copied):
        trainer = SeededTrainer()
        with pytest.raises(LedgerDamaged, match="charged 2 times"):
            participate(invited(round_=3), place, EASY_GOING, trainer)
        assert trainer.requests == []
    home.ledger.write_bytes(kept)
    participate(invited(round_=3), home, EASY_GOING, SeededTrainer())


def test_another_store_s_charges_do_not_speak_for_copied_examples(
    home: Home, tmp_path: Path
) -> None:
    """The copy would begin anew: its own charges are in the ledger that was left behind."""
    other = Home(tmp_path / "other")
    other.folder.mkdir()
    ExampleStore(other.examples).add(EXAMPLES)
    for round_ in (1, 2):
        participate(invited(round_=round_), home, EASY_GOING, SeededTrainer())
        participate(invited(round_=round_), other, EASY_GOING, SeededTrainer())
    other.examples.unlink()
    with sqlite3.connect(home.examples) as source, sqlite3.connect(other.examples) as target:
        source.backup(target)
    trainer = SeededTrainer()
    with pytest.raises(LedgerDamaged, match="charged 2 times and the ledger beside them knows 0"):
        participate(invited(round_=3), other, EASY_GOING, trainer)
    assert trainer.requests == []


def test_examples_that_were_imported_anew_begin_beside_an_old_ledger(home: Home) -> None:
    """What the ledger knows of the store that went still counts against the budget."""
    participate(invited(round_=1), home, EASY_GOING, SeededTrainer())
    home.examples.unlink()
    ExampleStore(home.examples).add(EXAMPLES)
    for round_ in (2, 3):
        participate(invited(round_=round_), home, EASY_GOING, SeededTrainer())
    assert ExampleStore(home.examples).charges == 2
    assert len(Ledger(home.ledger).charges()) == 3


# P2: the same after a crash


def test_the_seeds_are_on_disk_before_the_charge(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[set[bytes]] = []

    def spy(path: Path, data: bytes) -> None:
        kept.append({file.read_bytes() for file in home.seeds.glob("*.seed")})
        append_durably(path, data)

    monkeypatch.setattr(ledger_module, "append_durably", spy)
    trainer = SeededTrainer()
    participate(invited(), home, EASY_GOING, trainer)
    ((round_seed, count_seed),) = (sorted(seeds) for seeds in kept)
    assert round_seed != count_seed
    assert trainer.requests[0].seed in {round_seed, count_seed}


class Crash(BaseException):
    """The power fails. No handler of ours may catch it."""


class Tripwire:
    """Fails the power at one chosen step: just before, or just after, a call that it watches."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._steps = itertools.count()

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: object, **kwargs: object) -> object:
            self._step()
            result = call(*args, **kwargs)
            self._step()
            return result

        return wrapped

    def _step(self) -> None:
        if next(self._steps) == self._at:
            raise Crash


STEPS = (
    (release_module, "operating_system_seed"),
    (release_module, "write_durably"),
    (ledger_module, "append_durably"),
    (module, "operating_system_seed"),
    (module, "write_durably"),
    (module, "packed"),
    (module, "cipher_for"),
)


def crashes_at(
    step: int, what: Invited, home: Home, trainer: SeededTrainer, packs: list[IntVector]
) -> bool:
    """Take part with the power failing at ``step``; whether there was such a step."""
    wire = Tripwire(step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "packed", recorded(packs))
        for where, name in STEPS:
            patch.setattr(where, name, wire.around(getattr(where, name)))
        patch.setattr(trainer, "prepare", wire.around(trainer.prepare))
        patch.setattr(trainer, "train", wire.around(trainer.train))
        try:
            participate(what, home, EASY_GOING, trainer)
        except Crash:
            return True
    return False


def recorded(packs: list[IntVector]) -> Callable[..., IntVector]:
    def spy(*given: Any, **named: Any) -> IntVector:
        packs.append(packed(*given, **named))
        return packs[-1]

    return spy


@pytest.mark.parametrize("evaluates", [False, True])
def test_a_crash_at_any_step_and_a_repeat_release_one_view_for_one_charge(
    tmp_path: Path, evaluates: bool
) -> None:
    what = invited(EVALUATED if evaluates else PLAN)
    for step in itertools.count():
        home, trainer = a_home(tmp_path / str(step)), SeededTrainer(scores=(3.5, 6))
        packs: list[IntVector] = []
        if not crashes_at(step, what, home, trainer, packs):
            break
        frames = [participate(what, home, EASY_GOING, trainer) for _ in range(2)]
        opened = [integers_in(frame, what) for frame in frames]
        for integers in opened + packs:
            assert np.array_equal(integers, opened[0]), step
        assert len({request.seed for request in trainer.requests}) == 1, step
        assert len({request.expected_examples for request in trainer.requests}) == 1, step
        (charge,) = Ledger(home.ledger).charges()
        assert charge.facts == what.plan.count_facts() + what.plan.round_facts(), step
    # Two around each of: prepare, two seeds drawn and written, charge, count, train, pack, cipher.
    assert step == 20


def test_without_a_crash_every_round_draws_afresh(home: Home) -> None:
    trainer = SeededTrainer()
    for round_ in (1, 2):
        participate(invited(round_=round_), home, EASY_GOING, trainer)
    assert trainer.requests[0].seed != trainer.requests[1].seed


def test_a_round_whose_update_was_settled_is_never_released_again(home: Home) -> None:
    """Its seed is erased by then, so a second update would be a second view for one charge."""
    participate(invited(), home, EASY_GOING, SeededTrainer())
    ReleaseSeeds(home.seeds).erase(PLAN.run_id, ROUND)
    trainer = SeededTrainer()
    with pytest.raises(AlreadyReleased, match="round 1"):
        participate(invited(), home, EASY_GOING, trainer)
    assert trainer.requests == []
    participate(invited(round_=2), home, EASY_GOING, trainer)


# The noised example count


def test_the_noised_count_stays_though_the_store_grows(home: Home) -> None:
    trainer = SeededTrainer()
    participate(invited(), home, EASY_GOING, trainer)
    ExampleStore(home.examples).add([Example(f"new {n}", "refund") for n in range(100)])
    participate(invited(round_=2), home, EASY_GOING, trainer)
    first, second = (request.expected_examples for request in trainer.requests)
    assert first == second


def test_without_noise_the_count_is_the_count(home: Home) -> None:
    """The control: what the test above would see if nothing kept the count."""
    plan = a_plan(privacy={"noise": "none"})
    owner, trainer = replace(EASY_GOING, epsilon_budget=math.inf), SeededTrainer()
    participate(invited(plan), home, owner, trainer)
    ExampleStore(home.examples).add([Example("new", "refund")])
    participate(invited(plan, 2), home, owner, trainer)
    assert [request.expected_examples for request in trainer.requests] == [30.0, 31.0]


def test_a_released_count_outlives_its_seed_and_is_not_drawn_again(home: Home) -> None:
    trainer = SeededTrainer()
    participate(invited(), home, EASY_GOING, trainer)
    ReleaseSeeds(home.seeds).erase(PLAN.run_id, ROUND)
    assert list(home.seeds.iterdir()) == []
    home.noised_count(PLAN.run_id).unlink()
    with pytest.raises(AlreadyReleased, match="count"):
        participate(invited(round_=2), home, EASY_GOING, trainer)


def test_the_noise_on_the_count_is_what_the_ledger_says(tmp_path: Path) -> None:
    # Relative standard error of a deviation over N draws is 1/sqrt(2 N); five of them, 1 seed in
    # 1.7 million. Half the noise is 5.5 of them away, twice the noise 11.
    noises, draws = [], 60
    for number in range(draws):
        home, trainer = a_home(tmp_path / str(number)), SeededTrainer()
        ExampleStore(home.examples).add([Example(f"more {n}", "refund") for n in range(100)])
        owner = Owner(DEVICE, 1000.0, simulation_seed=number.to_bytes(32))
        participate(invited(a_plan(simulation=True)), home, owner, trainer)
        noises.append(trainer.requests[0].expected_examples - 130)
    assert np.std(noises) == pytest.approx(COUNT_NOISE, rel=5 / math.sqrt(2 * draws))


def test_a_noised_count_is_at_least_one(tmp_path: Path) -> None:
    home = Home(tmp_path)
    ExampleStore(home.examples).add(EXAMPLES[:1])
    seed_below = next(
        seed.to_bytes(32)
        for seed in itertools.count()
        if ReleaseStream(
            simulation_seed(seed.to_bytes(32), DEVICE, PLAN.run_id, RoundNumber(0))
        ).gaussians("count", 1)[0]
        < -1
    )
    trainer = SeededTrainer()
    owner = Owner(DEVICE, 1000.0, simulation_seed=seed_below)
    participate(invited(a_plan(simulation=True)), home, owner, trainer)
    assert trainer.requests[0].expected_examples == 1.0


def test_a_damaged_count_is_said_and_not_drawn_again(home: Home) -> None:
    participate(invited(), home, EASY_GOING, SeededTrainer())
    home.noised_count(PLAN.run_id).write_text("3x")
    with pytest.raises(StorageError, match="damaged"):
        participate(invited(round_=2), home, EASY_GOING, SeededTrainer())


# P3: the owner's budget


def worst_case(plan: RunPlan, *others: RunPlan) -> float:
    facts = [fact for each in (plan, *others) for fact in each.run_facts()]
    return epsilon(facts, delta=plan.job.privacy.delta)


def test_a_budget_of_exactly_the_worst_case_is_enough_and_a_hair_less_is_not(home: Home) -> None:
    with pytest.raises(BudgetExceeded) as refused:
        check_allowed(PLAN, ROUND, home, Owner(DEVICE, 1.0))
    needed = refused.value.needed
    assert needed == pytest.approx(worst_case(PLAN))
    assert f"{needed:.2f}" in str(refused.value)
    assert "1.00" in str(refused.value)
    check_allowed(PLAN, ROUND, home, Owner(DEVICE, needed))
    with pytest.raises(BudgetExceeded):
        check_allowed(PLAN, ROUND, home, Owner(DEVICE, math.nextafter(needed, 0)))


def test_a_run_that_fitted_at_its_first_round_fits_at_its_last(home: Home) -> None:
    owner = Owner(DEVICE, worst_case(PLAN) * (1 + 1e-9))
    for round_ in (1, 2, 3):
        participate(invited(round_=round_), home, owner, SeededTrainer())


def test_a_refused_job_touches_nothing(home: Home) -> None:
    before = sorted(home.folder.iterdir())
    trainer = SeededTrainer()
    with pytest.raises(BudgetExceeded):
        participate(invited(), home, Owner(DEVICE, 1.0), trainer)
    assert sorted(home.folder.iterdir()) == before
    assert (trainer.prepared, trainer.requests) == (0, [])


def test_what_earlier_runs_cost_counts_against_a_later_one(home: Home) -> None:
    other = a_plan("another")
    needed = worst_case(PLAN, other)
    assert needed > worst_case(PLAN)
    for round_ in (1, 2, 3):
        participate(invited(other, round_), home, EASY_GOING, SeededTrainer())
    check_allowed(PLAN, ROUND, home, Owner(DEVICE, needed * (1 + 1e-9)))
    with pytest.raises(BudgetExceeded) as refused:
        check_allowed(PLAN, ROUND, home, Owner(DEVICE, needed * (1 - 1e-9)))
    assert refused.value.needed == pytest.approx(needed)


def test_the_budget_is_meant_at_the_owner_s_delta_whatever_the_job_names(home: Home) -> None:
    """A job at δ = 0.1 needs hardly any noise to call its ε 8."""
    careless = a_plan(privacy={"delta": 0.1})
    owner = Owner(DEVICE, epsilon_budget=8.5, delta=1e-5)
    check_allowed(PLAN, ROUND, home, owner)
    with pytest.raises(BudgetExceeded) as refused:
        check_allowed(careless, ROUND, home, owner)
    assert refused.value.needed == pytest.approx(epsilon(careless.run_facts(), delta=1e-5))
    check_allowed(careless, ROUND, home, replace(owner, delta=0.1))


def test_a_plan_that_was_shortened_since_still_pays_for_the_round_at_hand(home: Home) -> None:
    participate(invited(), home, EASY_GOING, SeededTrainer())
    shortened = PLAN.model_copy(
        update={
            "job": PLAN.job.model_copy(
                update={"training": PLAN.job.training.model_copy(update={"rounds": 1})}
            )
        }
    )
    two_rounds = PLAN.count_facts() + PLAN.round_facts() * 2
    needed = epsilon(two_rounds, delta=1e-5)
    check_allowed(shortened, RoundNumber(2), home, Owner(DEVICE, needed * (1 + 1e-9)))
    with pytest.raises(BudgetExceeded):
        check_allowed(shortened, RoundNumber(2), home, Owner(DEVICE, needed * (1 - 1e-9)))


def test_a_round_is_not_repeated_under_a_plan_with_less_noise(home: Home) -> None:
    """It was charged, its seed is there, the budget has room: and yet it is another release."""
    participate(invited(), home, EASY_GOING, SeededTrainer())
    quieter = PLAN.model_copy(update={"noise_multiplier": PLAN.noise_multiplier / 2})
    trainer = SeededTrainer()
    with pytest.raises(PrivacyError, match="already charged"):
        participate(invited(quieter), home, EASY_GOING, trainer)
    assert trainer.requests == []
    participate(invited(), home, EASY_GOING, trainer)


def test_a_run_without_noise_fits_no_finite_budget(home: Home) -> None:
    plan = a_plan(privacy={"noise": "none"})
    with pytest.raises(BudgetExceeded) as refused:
        check_allowed(plan, ROUND, home, EASY_GOING)
    assert refused.value.needed == math.inf


@pytest.mark.parametrize("simulated_run", [True, False])
def test_repeatable_noise_needs_a_simulated_run_and_a_simulated_device(
    home: Home, simulated_run: bool
) -> None:
    plan = a_plan(simulation=simulated_run)
    simulated, real = replace(EASY_GOING, simulation_seed=MASTER), EASY_GOING
    fitting, other = (simulated, real) if simulated_run else (real, simulated)
    trainer = SeededTrainer()
    with pytest.raises(SeedRefused):
        participate(invited(plan), home, other, trainer)
    assert trainer.requests == []
    assert not home.ledger.exists()
    participate(invited(plan), home, fitting, trainer)
    expected = simulation_seed(MASTER, DEVICE, plan.run_id, ROUND)
    assert (trainer.requests[0].seed == expected) is simulated_run


# P4: what leaves


@pytest.mark.parametrize("scheme", ["public-key", "clear"])
def test_what_leaves_is_the_packed_update_in_a_frame_of_the_run_s_one_length(
    home: Home, scheme: str
) -> None:
    plan = a_plan(protection={"scheme": scheme, "min_devices": 2})
    trainer = SeededTrainer()
    frame = participate(invited(plan), home, EASY_GOING, trainer)
    assert len(frame) == cipher_for(plan.scheme, plan.layout).frame_bytes()
    (request,) = trainer.requests
    expected = packed(
        update_of(request.seed).astype(np.float64),
        min(1.0, request.expected_examples / plan.job.training.examples_cap),
        plan,
        ReleaseStream(request.seed),
    )
    assert np.array_equal(integers_in(frame, invited(plan)), expected)


def test_a_device_with_more_examples_than_the_cap_weighs_one(home: Home) -> None:
    plan = a_plan(privacy={"noise": "none"}, training={"examples_cap": 10})
    owner, trainer = replace(EASY_GOING, epsilon_budget=math.inf), SeededTrainer()
    frame = participate(invited(plan), home, owner, trainer)
    seed = trainer.requests[0].seed
    whole = packed(update_of(seed).astype(np.float64), 1.0, plan, ReleaseStream(seed))
    assert np.array_equal(integers_in(frame, invited(plan)), whole)


def test_the_update_is_not_encrypted_under_another_key(home: Home) -> None:
    another = opener_for(PLAN.scheme, PLAN.layout).new_key_pair()
    with pytest.raises(WrongKey):
        participate(
            replace(invited(), public_key=another.public), home, EASY_GOING, SeededTrainer()
        )


def test_a_device_without_examples_says_how_to_add_some(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="llmos edge data add"):
        participate(invited(), Home(tmp_path), EASY_GOING, SeededTrainer())


def test_training_is_asked_for_with_the_plan_s_numbers(home: Home) -> None:
    plan = a_plan(training={"local_steps": 3, "sample_rate": 0.5, "proximal_mu": 0.25})
    trainer = SeededTrainer()
    participate(invited(plan), home, EASY_GOING, trainer)
    (asked,) = trainer.requests
    training = plan.job.training
    assert asked == TrainRequest(
        store_path=home.examples,
        cache_folder=home.features,
        base=plan.job.model.base,
        adapter=ADAPTER.to_bytes(),
        learning_rate=training.learning_rate,
        local_steps=3,
        sample_rate=0.5,
        clip_norm=training.clip_norm,
        noise_multiplier=plan.noise_multiplier,
        expected_examples=asked.expected_examples,
        seed=asked.seed,
        proximal_mu=0.25,
        task="text-classification",
        keep_layers=0,
        step_ratio=plan.job.adapter.step_ratio,
        held_out_share=0.0,
    )
    assert trainer.prepared == 1


values = st.floats(-1e4, 1e4, width=32)
updates = arrays.arrays(np.float64, (PLAN.parameters,), elements=values).filter(np.any)


def slowly_packed(update: list[float], weight: float, plan: RunPlan, seed: bytes) -> list[int]:
    """The definition, one value at a time."""
    weighted = [weight * value for value in update]
    norm = math.sqrt(math.fsum(value * value for value in weighted))
    factor = min(1.0, plan.update_norm / norm)
    stream = ReleaseStream(seed)
    most = int(2 ** (plan.job.protection.bits - 1)) - 1

    def rounded(value: float, reach: float) -> int:
        uniform = float(stream.uniforms("rounding", 1)[0])
        if abs(value) >= reach:
            return most if value > 0 else -most
        return max(-most, min(most, math.floor(value / (reach / most) + uniform)))

    integers = [rounded(value * factor, plan.value_range) for value in weighted]
    saturated = sum(abs(value * factor) > plan.value_range for value in weighted)
    return [*integers, max(1, rounded(weight, 1.0)), rounded(saturated / len(weighted), 1.0)]


@settings(deadline=None)
@given(update=updates, weight=st.floats(1e-6, 1.0), seed=st.binary(min_size=32, max_size=32))
def test_packing_is_weight_clip_round_and_behind_them_weight_and_saturation(
    update: FloatVector, weight: float, seed: bytes
) -> None:
    fast = packed(update, weight, PLAN, ReleaseStream(seed))
    slow = slowly_packed(update.tolist(), weight, PLAN, seed)
    # The two sum squares in another order: a value on the edge of a step may fall either way.
    assert np.max(np.abs(fast - slow)) <= 1
    assert np.count_nonzero(fast != slow) <= 1
    assert fast[-2] == slow[-2]
    assert fast.dtype == np.int64
    assert np.max(np.abs(fast)) <= PLAN.layout.magnitude


@given(seed=st.binary(min_size=32, max_size=32))
@settings(max_examples=20)
def test_the_smallest_device_still_weighs_one_step(seed: bytes) -> None:
    """A weight of zero beside an update would let the mean be divided by too little."""
    update = np.full(PLAN.parameters, 0.01)
    assert packed(update, 1e-9, PLAN, ReleaseStream(seed))[-2] == 1
    assert packed(update, 1.0, PLAN, ReleaseStream(seed))[-2] == PLAN.layout.magnitude


NARROW = a_plan(protection={"min_devices": 2, "value_range": 0.5})


@given(outside=st.integers(0, NARROW.parameters), seed=st.binary(min_size=32, max_size=32))
@settings(max_examples=60, deadline=None)
def test_saturated_values_are_counted_and_never_wrapped(outside: int, seed: bytes) -> None:
    update = np.full(NARROW.parameters, 0.25)
    update[:outside] = -0.6
    values = packed(update, 1.0, NARROW, ReleaseStream(seed))
    most = NARROW.layout.magnitude
    assert values[:outside].tolist() == [-most] * outside
    assert np.all(values[outside : NARROW.parameters] > 0)
    uniform = float(ReleaseStream(seed).uniforms("rounding", NARROW.layout.count)[-1])
    assert values[-1] == math.floor(outside / NARROW.parameters / (1 / most) + uniform)


def test_the_share_saturated_is_rounded_without_bias() -> None:
    """By Hoeffding it errs in fewer than one in 10⁹ runs: 2 exp(-2 · 3000 · 0.06²) < 10⁻⁹."""
    update = np.full(NARROW.parameters, 0.25)
    update[0] = 9.0
    told = [
        packed(update, 1.0, NARROW, ReleaseStream(number.to_bytes(32)))[-1]
        for number in range(3000)
    ]
    exact = NARROW.layout.magnitude / NARROW.parameters
    assert set(told) == {math.floor(exact), math.ceil(exact)}
    assert abs(np.mean(told) - exact) < 0.06


def test_a_value_at_the_end_of_the_range_is_not_saturated_and_one_beyond_is() -> None:
    update = np.full(NARROW.parameters, 0.5)
    assert packed(update, 1.0, NARROW, ReleaseStream(MASTER))[-1] == 0
    update[:] = math.nextafter(0.5, 1.0)
    assert packed(update, 1.0, NARROW, ReleaseStream(MASTER))[-1] == NARROW.layout.magnitude


@pytest.mark.parametrize(
    ("update", "why"),
    [
        (np.zeros(PLAN.parameters), "changed nothing"),
        (np.full(PLAN.parameters, np.nan), "not finite"),
        (np.append(np.full(PLAN.parameters - 1, 0.1), np.inf), "not finite"),
        (np.full(PLAN.parameters - 1, 0.1), "the run has 15"),
        (np.full(PLAN.parameters + 1, 0.1), "the run has 15"),
    ],
)
def test_what_training_must_not_give_is_not_sent(update: FloatVector, why: str) -> None:
    with pytest.raises(GateRefused, match=why):
        packed(update, 1.0, PLAN, ReleaseStream(MASTER))


# What rides behind the update when devices score their held-out examples

QUIET = a_plan(
    privacy={"noise": "none"},
    evaluation={"share": 0.2},
    protection={"scheme": "clear", "min_devices": 2},
)
UPDATE = np.linspace(-0.1, 0.1, PLAN.parameters)

device_scores = st.integers(0, QUIET.job.training.examples_cap).flatmap(
    lambda scored: st.tuples(st.floats(0, scored), st.just(scored))
)


def tail_of(scored: tuple[float, int], plan: RunPlan, seed: bytes) -> IntVector:
    return packed(UPDATE, 1.0, plan, ReleaseStream(seed), scored=scored)[-2:]


@settings(max_examples=60, deadline=None)
@given(devices=st.lists(device_scores, min_size=1, max_size=12), seed=st.integers(0, 2**64 - 1))
def test_without_noise_the_sum_over_devices_is_the_sum_of_their_scores(
    devices: list[tuple[float, int]], seed: int
) -> None:
    tails = [
        tail_of(scored, QUIET, (seed + number).to_bytes(32, "little"))
        for number, scored in enumerate(devices)
    ]
    quantiser = QUIET.evaluation_quantiser
    total = quantiser.dequantise(np.sum(tails, axis=0))
    exact = [math.fsum(score for score, _ in devices), sum(scored for _, scored in devices)]
    # Each device is less than one step away from its own values.
    assert np.all(np.abs(total - exact) < quantiser.step * len(devices) + 1e-9)


@settings(max_examples=60, deadline=None)
@given(
    score=st.floats(-1e12, 1e12),
    scored=st.integers(0, 10**12),
    seed=st.binary(min_size=32, max_size=32),
    plan=st.sampled_from([QUIET, EVALUATED]),
)
def test_no_device_can_add_more_to_the_evaluation_than_its_range(
    score: float, scored: int, seed: bytes, plan: RunPlan
) -> None:
    values = packed(UPDATE, 1.0, plan, ReleaseStream(seed), scored=(score, scored))
    assert np.max(np.abs(values)) <= plan.layout.magnitude
    reach = np.abs(plan.evaluation_quantiser.dequantise(values[-2:]))
    assert np.all(reach <= plan.evaluation_quantiser.value_range * (1 + 1e-12))


def test_the_cap_itself_is_told_as_it_is_and_one_more_is_not() -> None:
    cap, most = QUIET.job.training.examples_cap, QUIET.layout.magnitude
    assert tail_of((0.0, cap), QUIET, MASTER).tolist() == [0, most]
    assert tail_of((0.0, cap + 1), QUIET, MASTER).tolist() == [0, most]
    assert tail_of((0.0, cap - 1), QUIET, MASTER)[1] < most


def test_the_noise_on_the_evaluation_has_the_stated_spread_and_no_bias() -> None:
    """2 x 2000 draws at standard deviation 10 √2; false alarm below 1e-6 in all.

    The sum of squares is chi-squared with 4000 degrees of freedom, within 1 ± 0.13 of its
    mean but for 2e-8; their mean is within 5.5 standard errors but for 4e-8 each. Sixteen
    bits round with a step of 0.004.
    """
    exact, plan = np.array([20.0, 35.0]), EVALUATED
    seeds = [number.to_bytes(32, "little") for number in range(2000)]
    tails = np.array([tail_of((20.0, 35), plan, seed) for seed in seeds])
    noise = plan.evaluation_quantiser.dequantise(tails) - exact
    deviation = plan.job.evaluation.noise * math.sqrt(2)
    assert plan.noise_multiplier > 0
    assert np.all(np.abs(tails) < plan.layout.magnitude), "none of it was cut off"
    assert 0.87 < float(np.mean((noise / deviation) ** 2)) < 1.13
    assert np.all(np.abs(noise.mean(axis=0)) < 5.5 * deviation / math.sqrt(len(seeds)))
    # The two are drawn apart: their difference would otherwise give the exact difference away.
    assert abs(float(np.corrcoef(noise.T)[0, 1])) < 5.5 / math.sqrt(len(seeds))


@given(seed=st.binary(min_size=32, max_size=32))
@settings(max_examples=20)
def test_the_evaluation_changes_nothing_of_the_update_before_it(seed: bytes) -> None:
    """The same plan with and without: equal integers, two more behind them."""
    without = QUIET.model_copy(
        update={"job": QUIET.job.model_copy(update={"evaluation": PLAN.job.evaluation})}
    )
    plain = packed(UPDATE, 0.7, without, ReleaseStream(seed))
    told = packed(UPDATE, 0.7, QUIET, ReleaseStream(seed), scored=(3.0, 4))
    assert plain.shape == (PLAN.parameters + 2,)
    assert np.array_equal(told[:-2], plain)
    ignored = packed(UPDATE, 0.7, without, ReleaseStream(seed), scored=(3.0, 4))
    assert np.array_equal(ignored, plain), (
        "without evaluation no score leaves, whatever is handed in"
    )


def test_scores_ride_in_the_frame_and_are_charged_for(home: Home) -> None:
    trainer = SeededTrainer(scores=(4.25, 6))
    frame = participate(invited(EVALUATED), home, EASY_GOING, trainer)
    (request,) = trainer.requests
    expected = packed(
        update_of(request.seed).astype(np.float64),
        min(1.0, request.expected_examples / EVALUATED.job.training.examples_cap),
        EVALUATED,
        ReleaseStream(request.seed),
        scored=(4.25, 6),
    )
    assert np.array_equal(integers_in(frame, invited(EVALUATED)), expected)
    assert request.held_out_share == 0.2
    (charge,) = Ledger(home.ledger).charges()
    assert charge.facts == EVALUATED.count_facts() + EVALUATED.round_facts()
    assert len(EVALUATED.round_facts()) == 2


def test_steps_are_divided_by_the_examples_that_are_trained_on(home: Home) -> None:
    plan = a_plan(
        privacy={"noise": "none"},
        evaluation={"share": 0.2},
        protection={"scheme": "clear", "min_devices": 2},
    )
    trainer, owner = SeededTrainer(), replace(EASY_GOING, epsilon_budget=math.inf)
    participate(invited(plan), home, owner, trainer)
    assert trainer.requests[0].expected_examples == pytest.approx(0.8 * len(EXAMPLES))


def test_a_run_that_evaluates_costs_what_was_asked_and_no_more(home: Home) -> None:
    for round_ in (1, 2, 3):
        participate(invited(EVALUATED, round_), home, EASY_GOING, SeededTrainer(scores=(1.0, 2)))
    asked = EVALUATED.job.privacy
    assert 0.95 * asked.epsilon < Ledger(home.ledger).epsilon(asked.delta) <= asked.epsilon


class DivergingTrainer(SeededTrainer):
    """Gives an update that is not finite."""

    def train(self, request: TrainRequest) -> Trained:
        return replace(super().train(request), update=np.full(ADAPTER.parameters, np.inf, "f4"))


def test_training_that_diverged_is_charged_and_not_sent(home: Home) -> None:
    with pytest.raises(GateRefused):
        participate(invited(), home, EASY_GOING, DivergingTrainer())
    assert len(Ledger(home.ledger).charges()) == 1


def test_another_run_has_its_own_count_and_seeds(home: Home) -> None:
    trainer = SeededTrainer()
    participate(invited(), home, EASY_GOING, trainer)
    participate(invited(a_plan("another")), home, EASY_GOING, trainer)
    first, second = trainer.requests
    assert first.expected_examples != second.expected_examples
    assert first.seed != second.seed


# Noise that devices share

SHARED = a_plan(
    privacy={"noise": "distributed"},
    protection={"bits": 16, "min_devices": 3},
    training={"sample_rate": 0.5},
)
SHARED_KEYS = opener_for(SHARED.scheme, SHARED.layout).new_key_pair()


def released(home: Home, round_: int = ROUND) -> tuple[IntVector, TrainRequest]:
    """What a device's frame decrypts to, and what its trainer was asked for."""
    what = replace(
        invited(SHARED, round_), public_key=SHARED_KEYS.public, key_id=SHARED_KEYS.key_id
    )
    trainer = SeededTrainer()
    frame = participate(what, home, EASY_GOING, trainer)
    context = SumContext(SHARED.run_id, what.round, what.key_id)
    total = cipher_for(SHARED.scheme, SHARED.layout).begin(context)
    total.add(frame)
    opener = opener_for(SHARED.scheme, SHARED.layout)
    opened = opener.open(total.dump(), secret_key=SHARED_KEYS.secret, context=context, devices=1)
    return opened, trainer.requests[0]


def test_a_share_of_the_noise_leaves_as_the_training_child_made_it(home: Home) -> None:
    """No clip, rounding or weight comes after it: the sum is a function of the noised sum."""
    values, request = released(home)
    size = SHARED.parameters
    noise = discrete_gaussians(
        ReleaseStream(request.seed), NOISE_STREAM, variance=SHARED.share_variance, count=size
    )
    assert np.array_equal(values[:size], noise)


def test_with_shared_noise_nothing_tells_of_the_number_of_examples(
    home: Home, tmp_path: Path
) -> None:
    few = Home(tmp_path / "few")
    ExampleStore(few.examples).add(EXAMPLES[:2])
    size = SHARED.parameters
    for place in (home, few):
        values, request = released(place)
        assert values[size:].tolist() == [SHARED.share_quantiser.magnitude, 0]
        assert request.expected_examples == SHARED.job.training.examples_cap
        assert not place.noised_count(SHARED.run_id).exists()


def test_a_shared_round_is_charged_against_sums_and_against_its_own_share(home: Home) -> None:
    for round_ in range(1, SHARED.job.training.rounds + 1):
        released(home, round_)
    ledger = Ledger(home.ledger)
    spent = ledger.epsilon(SHARED.job.privacy.delta)
    assert 0.99 * SHARED.job.privacy.epsilon <= spent <= SHARED.job.privacy.epsilon
    assert ledger.epsilon_alone(SHARED.job.privacy.delta) > 1.5 * spent
    read_again = [fact for charge in ledger.charges() for fact in charge.facts]
    assert read_again == list(SHARED.run_facts())


def test_a_coin_decides_whether_an_update_is_in_the_sum_and_falls_again_alike() -> None:
    """64 rounds at one half: none of them all alike but once in 2^63 times; the seed is fixed."""
    plan = a_plan(
        simulation=True,
        privacy={"noise": "distributed", "level": "device", "participation": 0.5},
        protection={"bits": 16, "min_devices": 3},
        training={"rounds": 64},
    )
    fallen = [
        module._participates(plan, simulation_seed(MASTER, DEVICE, plan.run_id, RoundNumber(n)))
        for n in range(64)
    ]
    assert 0 < sum(fallen) < 64
    assert fallen == [
        module._participates(plan, simulation_seed(MASTER, DEVICE, plan.run_id, RoundNumber(n)))
        for n in range(64)
    ]
    assert module._participates(SHARED, bytes(32)), "records are hidden by their own coins"
