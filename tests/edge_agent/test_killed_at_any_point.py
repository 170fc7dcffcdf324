"""Whatever a device was doing when it was killed, its ledger is not low and no update is sent twice.

The agent is real, in a process of its own, with its ledger, seeds, outbox and ciphertexts on a
real disk; the process is ended by SIGKILL. The coordinator it faces is as bad as it can be: after
every other restart it asks for the same round with another adapter, so that a round trained anew
gives another update.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from pathlib import Path

import pytest

from edge_agent.participate import Home
from shared.crypto.identity import Identity
from shared.crypto.sum_cipher import cipher_for
from shared.files import digest_of
from shared.job import RunPlan
from shared.privacy.accountant import epsilon
from shared.privacy.ledger import Ledger
from shared.wire.envelope import open_sealed
from shared.wire.messages import BlobChunk, Contribution
from tests.support.devices import new_keys
from tests.support.killed_devices import Record, start_life
from tests.support.plans import a_plan

KILLS = 100
"""Of a device with noise of its own, and as many of one that shares it."""

DELTA = 1e-5
LIFE_S = 120.0
"""Far more than a life takes."""

ROUNDS = {"rounds": 1000, "examples_cap": 50}
PLANS = {
    "local": a_plan(training=ROUNDS),
    "distributed": a_plan(
        training={"rounds": 1000, "examples_cap": 50, "local_steps": 1, "sample_rate": 0.2},
        privacy={"noise": "distributed"},
        protection={"min_devices": 9, "bits": 16},
    ),
}
KEYS = {noise: new_keys(plan) for noise, plan in PLANS.items()}
NOISES = sorted(PLANS)

pytestmark = pytest.mark.processes


def what_is_low(folder: Path, plan: RunPlan) -> list[str]:
    """What the device trained or announced and its ledger, as it stands now, does not know."""
    record, ledger = Record(folder), Ledger(Home(folder / "device").ledger, repair=False)
    trained = {line["round"] for line in record.lines("trained")}
    charged = {charge.round for charge in ledger.charges()}
    problems = [f"round {at}: trained and not charged" for at in trained - charged]
    facts = plan.count_facts() + plan.round_facts() * len(trained)
    if trained and ledger.epsilon(DELTA) < epsilon(facts, delta=DELTA):
        problems.append("the ledger is low")
    return problems


def what_differs(folder: Path, plan: RunPlan) -> list[str]:
    """Rounds with more than one noise or update among all that was ever trained or sent."""
    noises: dict[int, set[str]] = defaultdict(set)
    for line in Record(folder).lines("trained"):
        noises[line["round"]].add(line["seed"])
    problems = [f"round {at}: {len(each)} noises" for at, each in noises.items() if len(each) > 1]
    updates: dict[int, set[str]] = defaultdict(set)
    frames: dict[str, dict[int, bytes]] = defaultdict(dict)
    sender = Identity.load_or_create(folder / "device" / "identity.key").public
    for line in Record(folder).lines("sent"):
        envelope = open_sealed(bytes.fromhex(line["payload"]), expected=sender)
        match envelope.message:
            case Contribution(digest=digest):
                updates[envelope.round].add(digest)
            case BlobChunk(digest=digest, offset=offset, data=data):
                if frames[digest].setdefault(offset, data) != data:
                    problems.append(f"{digest[:8]} differs between sendings")
    problems += [
        f"round {at}: {len(each)} updates" for at, each in updates.items() if len(each) > 1
    ]
    size = cipher_for(plan.scheme, plan.layout).frame_bytes()
    for digest, parts in frames.items():
        frame = b"".join(parts[offset] for offset in sorted(parts))
        if len(frame) == size and digest_of(frame) != digest:
            problems.append(f"{digest[:8]} is not what was announced")
    return problems


def receipts(folder: Path) -> int:
    return len({line["round"] for line in Record(folder).lines("receipt")})


def lives_undisturbed(folder: Path, noise: str) -> None:
    """Let the device live on for two rounds, which must work."""
    before = receipts(folder)
    process = start_life(folder, PLANS[noise], KEYS[noise], life=0, rounds=2)
    process.join(LIFE_S)
    assert process.exitcode == 0
    assert receipts(folder) >= before + 2


def kill_before_each_operation(folder: Path, noise: str, fault: str = "") -> tuple[int, list[str]]:
    """Kill it before its 1st, 2nd, 3rd … file operation, until a life ends of itself.

    Returns:
        How often it was killed, and what is wrong; the first of that ends it.
    """
    plan = PLANS[noise]
    for number in range(1, 1000):
        process = start_life(
            folder, plan, KEYS[noise], life=number, rounds=2, dies_before=number, fault=fault
        )
        process.join(LIFE_S)
        problems = what_is_low(folder, plan)
        if process.exitcode == 0 or problems:
            return number - 1, problems + what_differs(folder, plan)
    raise AssertionError("a life has no end")


@pytest.mark.parametrize("noise", NOISES)
def test_a_device_killed_before_each_of_its_file_operations(tmp_path: Path, noise: str) -> None:
    kills, problems = kill_before_each_operation(tmp_path, noise)
    assert problems == []
    assert kills > 40
    lives_undisturbed(tmp_path, noise)


@pytest.mark.timeout(1800)  # half a minute where nothing else runs
@pytest.mark.parametrize("noise", NOISES)
def test_a_device_killed_a_hundred_times_at_random_moments(tmp_path: Path, noise: str) -> None:
    rng = random.Random(5)
    lives_undisturbed(tmp_path, noise)  # the first life also starts what the others fork from
    began = time.monotonic()
    lives_undisturbed(tmp_path, noise)
    life_s = time.monotonic() - began
    kills = 0
    for life in range(10 * KILLS):
        process = start_life(tmp_path, PLANS[noise], KEYS[noise], life=life, rounds=2)
        process.join(rng.uniform(0, life_s))
        process.kill()
        process.join(LIFE_S)
        assert what_is_low(tmp_path, PLANS[noise]) == []
        kills += process.exitcode != 0
        if kills == KILLS:
            break
    assert kills == KILLS
    assert what_differs(tmp_path, PLANS[noise]) == []
    lives_undisturbed(tmp_path, noise)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("draws the noise anew", "2 noises"),
        ("charges when the update is there", "not charged"),
        ("keeps updates in memory", "2 updates"),
    ],
)
def test_a_device_without_one_of_its_promises_is_found_out(
    tmp_path: Path, fault: str, found: str
) -> None:
    _, problems = kill_before_each_operation(tmp_path, "local", fault)
    assert any(found in problem for problem in problems)
