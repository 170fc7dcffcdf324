"""While real processes learn, nobody between the devices sees what one of them contributed.

Every search has a control, in which the same search finds what it looks for.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent.examples import ExampleStore
from edge_agent.participate import Home, Invited, Owner, participate
from edge_agent.training.trainer import ChildTrainer, Trained, TrainRequest
from shared.crypto.clear import ClearSum
from shared.crypto.sum_cipher import Scheme, SumContext, key_id_of
from shared.job import RunPlan
from shared.types import DeviceId, FloatVector, IntVector, RoundNumber
from sim.fleet_processes import COORDINATOR, KEY_HOLDER
from sim.simulation import simulation_master
from tests.support.proc import holds_any
from tests.support.small_fleet import SEED
from tests.support.stories import STREAM_AT, Watched, parts_of_secret

pytestmark = [pytest.mark.broker, pytest.mark.model, pytest.mark.processes, pytest.mark.slow]

FIRST = RoundNumber(1)
NO_KEY = key_id_of(b"")


class RememberingTrainer(ChildTrainer):
    """Keeps what training gave, which otherwise nobody sees."""

    def __init__(self) -> None:
        super().__init__()
        self.last = np.zeros(0, np.float32)

    def train(self, request: TrainRequest) -> Trained:
        trained = super().train(request)
        self.last = trained.update
        return trained


@pytest.fixture(scope="module")
def trainer() -> Iterator[RememberingTrainer]:
    trainer = RememberingTrainer()
    yield trainer
    trainer.close()


def contributions(
    watched: Watched, plan: RunPlan, adapter: bytes, trainer: RememberingTrainer, folder: Path
) -> dict[DeviceId, tuple[IntVector, FloatVector]]:
    """Each device's first update: the integers that it encrypted, and what training gave.

    Made once more on a copy of its data: noise is a function of the simulation's seed.
    """
    found = {}
    protection = plan.job.protection.model_copy(update={"scheme": "clear"})
    in_clear = plan.model_copy(
        update={"job": plan.job.model_copy(update={"protection": protection})}
    )
    for device, examples in watched.population.devices.items():
        home = Home(folder / plan.run / device)
        ExampleStore(home.examples).add(examples)
        shutil.copytree(watched.folder / device / "features", home.features)
        owner = Owner(device, math.inf, simulation_seed=simulation_master(SEED))
        frame = participate(Invited(in_clear, FIRST, adapter, b"", NO_KEY), home, owner, trainer)
        integers = ClearSum(in_clear.layout).read(frame, SumContext(plan.run_id, FIRST, NO_KEY))
        found[device] = integers, trainer.last.astype(np.float64)
    return found


@pytest.fixture(scope="module")
def encrypted(
    watched: Watched, trainer: RememberingTrainer, tmp_path_factory: pytest.TempPathFactory
) -> dict[DeviceId, tuple[IntVector, FloatVector]]:
    folder = tmp_path_factory.mktemp("again")
    return contributions(watched, watched.plan, watched.first_adapter, trainer, folder)


@pytest.fixture(scope="module")
def in_clear(
    watched: Watched, trainer: RememberingTrainer, tmp_path_factory: pytest.TempPathFactory
) -> dict[DeviceId, tuple[IntVector, FloatVector]]:
    folder = tmp_path_factory.mktemp("again")
    return contributions(watched, watched.clear_plan, watched.clear_first_adapter, trainer, folder)


def windows(integers: IntVector, trained: FloatVector, plan: RunPlan) -> list[bytes]:
    """Sixteen neighbouring values of an update at many places, spelt as programs spell them."""
    reals = plan.update_quantiser.dequantise(integers[:-1])
    spellings = [integers.astype(width) for width in ("<i2", ">i2", "<i4", "<i8", ">i8")]
    spellings += [reals.astype(width) for width in ("<f4", "<f8")]
    spellings += [trained.astype(width) for width in ("<f4", "<f8")]
    places = range(0, len(trained) - 16, len(trained) // 40)
    return [array[place : place + 16].tobytes() for array in spellings for place in places]


def seen(traffic: bytes, needles: list[bytes]) -> int:
    return sum(needle in traffic for needle in needles)


def test_the_updates_we_look_for_are_those_that_were_added(
    watched: Watched,
    encrypted: dict[DeviceId, tuple[IntVector, FloatVector]],
    in_clear: dict[DeviceId, tuple[IntVector, FloatVector]],
) -> None:
    """They sum up to what the key holder opened: each device is in it, and once."""
    for updates, sums in ((encrypted, watched.sums), (in_clear, watched.clear_sums)):
        opened = np.frombuffer(sums[1], "<i8")
        assert np.array_equal(sum(integers for integers, _ in updates.values()), opened)


def test_the_broker_carries_no_part_of_an_update(
    watched: Watched, encrypted: dict[DeviceId, tuple[IntVector, FloatVector]]
) -> None:
    for device, (integers, trained) in encrypted.items():
        assert seen(watched.traffic, windows(integers, trained, watched.plan)) == 0, device


def test_the_same_search_finds_every_update_of_a_run_in_clear(
    watched: Watched, in_clear: dict[DeviceId, tuple[IntVector, FloatVector]]
) -> None:
    for device, (integers, trained) in in_clear.items():
        needles = windows(integers, trained, watched.clear_plan)
        # One of nine spellings is the wire's; a chunk's border may cut a window or two.
        assert seen(watched.clear_traffic, needles) >= 38, device


def test_the_listener_heard_the_encrypted_run_whole(watched: Watched) -> None:
    """Of all rounds it has the updates' bytes, and what everybody may have: the sums."""
    assert watched.plan.scheme is Scheme.PUBLIC_KEY
    for number, opened in watched.sums.items():
        assert opened[:4096] in watched.traffic, number
    sent = [report["reported"] for report in watched.view["rounds"]]
    frames = sum(sent) * 58_000  # one ciphertext of the smallest parameters
    assert len(watched.traffic) > frames


def test_no_process_but_the_key_holder_has_the_secret_key_in_its_memory(watched: Watched) -> None:
    """Looked for while the round was open and two encrypted updates lay at the coordinator."""
    assert watched.holding_the_secret[COORDINATOR] is False
    names = " ".join(watched.holding_the_secret)
    assert "mosquitto" in names
    assert "shared.crypto.sum_worker" in names
    assert not any(watched.holding_the_secret.values()), watched.holding_the_secret


LOADED = """
import sys
from shared.crypto import public_key
from shared.crypto.sum_cipher import SumLayout
secret = open(sys.argv[1], "rb").read()
opener = public_key.PublicKeyOpener(SumLayout(count=16, bits=12, max_devices=240))
seal = public_key._seal(opener._cipher.parameters)
key = seal._secret_key(secret, secret[40:48].hex())
print("loaded", flush=True)
sys.stdin.read()
"""


def test_the_same_search_finds_it_in_a_process_that_was_given_it(
    watched: Watched, tmp_path: Path
) -> None:
    """As a file's bytes, and as the numbers that SEAL works with."""
    path = tmp_path / "secret.key"
    path.write_bytes(watched.secret)
    *as_file, first, second, third = parts_of_secret(watched.secret)
    with subprocess.Popen(
        [sys.executable, "-c", LOADED, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    ) as given:
        try:
            assert given.stdout is not None
            assert given.stdout.readline() == b"loaded\n"
            assert all(holds_any(given.pid, [part]) for part in as_file)
            assert all(holds_any(given.pid, [part]) for part in (first, second, third))
        finally:
            given.kill()


def files_with(folder: Path, needles: list[bytes]) -> list[str]:
    return [
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.is_file() and any(needle in file.read_bytes() for needle in needles)
    ]


def test_no_file_of_the_coordinator_or_a_device_holds_a_secret_key_and_none_is_kept(
    watched: Watched, tmp_path: Path
) -> None:
    parts = parts_of_secret(watched.secret)
    assert files_with(watched.folder, parts) == []
    assert list((watched.folder / KEY_HOLDER).rglob("secret.key")) == []
    (tmp_path / "a copy").write_bytes(b"something before it" + watched.secret)
    assert files_with(tmp_path, parts) == ["a copy"]


def test_the_secret_we_look_for_is_one(watched: Watched) -> None:
    assert watched.secret.startswith(b"LLMOSSEC")
    assert watched.secret[STREAM_AT : STREAM_AT + 4] == b"\x28\xb5\x2f\xfd"  # Zstandard's mark
