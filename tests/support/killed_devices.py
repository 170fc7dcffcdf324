"""A real agent in a process of its own, ended by SIGKILL at a file operation or from outside.

What anybody could have seen of it is written down by the process itself, line by line, so that
it outlives the process: every message that it published, and every noise it trained with.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from edge_agent.outbox import Outbox, Waiting
from edge_agent.training.trainer import Trained, TrainRequest
from shared.crypto.sum_cipher import KeyPair
from shared.job import RunPlan
from shared.models.adapter import Adapter
from shared.privacy.ledger import Charge, Ledger
from shared.privacy.release import ReleaseSeeds, operating_system_seed
from shared.transport.memory import MemoryTransport
from shared.wire import topics
from shared.wire.messages import Contribution
from tests.support.devices import DEVICE, TRAINS_S, DeviceWorld
from tests.support.trainers import ADAPTER, SeededTrainer

_CHANGES: Final = {"os.rename", "os.remove", "os.truncate", "os.mkdir", "sqlite3.connect"}
"""Besides opening a file to write, what CPython announces before it lets a program change one."""

# A clean process is forked for each life: it starts in milliseconds and inherits no thread.
_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])


class Record:
    """What was seen of all lives in one folder: lines that a kill cannot take back.

    A line is written before what it tells of is done, so of one that a kill has cut nothing
    was seen. The next line begins with an end of line, and leaves it by itself.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, what: str, **line: Any) -> None:
        """Write a line, in one call to the kernel."""
        file = os.open(self._path(what), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, b"\n" + json.dumps(line).encode())
        os.close(file)

    def lines(self, what: str) -> list[dict[str, Any]]:
        """Every whole line of a kind, oldest first."""
        if not self._path(what).exists():
            return []
        lines = self._path(what).read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def _path(self, what: str) -> Path:
        return self._folder / f"{what}.jsonl"


class RecordedTrainer(SeededTrainer):
    """Writes down which noise it was given, and makes another update of another adapter."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self._record = record
        self.round = 0

    def train(self, request: TrainRequest) -> Trained:
        """Draw an update from seed and adapter."""
        self._record.add("trained", round=self.round, seed=request.seed.hex())
        mixed = hashlib.sha256(request.seed + request.adapter).digest()
        return super().train(replace(request, seed=mixed))


def start_life(folder: Path, plan: RunPlan, keys: KeyPair, **options: Any) -> BaseProcess:
    """Start the device again; arguments as :func:`live`."""
    process = _FORKS.Process(target=live, args=(folder, plan, keys), kwargs=options)
    process.start()
    return process


def live(
    folder: Path,
    plan: RunPlan,
    keys: KeyPair,
    *,
    life: int,
    rounds: int,
    dies_before: int | None = None,
    fault: str = "",
) -> None:
    """Take part in rounds that no receipt was given for yet, and repeat one that was over.

    Args:
        folder: Where everything of all lives is.
        plan: The run.
        keys: The key holder's.
        life: How many went before; every other one is invited with another adapter.
        rounds: After so many it ends of itself.
        dies_before: The number of the file operation, from 1, that SIGKILL takes the place of.
        fault: A weakness that the device is given; see :func:`_weaken`.
    """
    record = Record(folder)
    _weaken(fault)
    publish = MemoryTransport.publish

    def recorded(end: MemoryTransport, topic: str, payload: bytes) -> bool:
        if topic == topics.up(DEVICE):
            record.add("sent", payload=payload.hex())
        return publish(end, topic, payload)

    patch.object(MemoryTransport, "publish", recorded).start()
    if dies_before is not None:
        _die_before(dies_before, folder / "device")
    trainer = RecordedTrainer(record)
    world = DeviceWorld(folder, trainer=trainer)
    over = [line["round"] for line in record.lines("receipt")]
    adapter = ADAPTER.moved(0.01 * (life % 2) * ADAPTER.flatten().astype(float) + life % 2)
    if over:
        _settle(world, record, over[-1])
        trainer.round = over[-1]
        _invite(world, plan, keys, over[-1], adapter)
        world.run_for(TRAINS_S + 2)
    first = max(over, default=0) + 1
    for round_ in range(first, first + rounds):
        trainer.round = round_
        _invite(world, plan, keys, round_, adapter)
        world.run_for(TRAINS_S + 2)
        _settle(world, record, round_)
    world.close()


def _invite(
    world: DeviceWorld, plan: RunPlan, keys: KeyPair, round_: int, adapter: Adapter
) -> None:
    announcement = world.coordinator.announcement(plan, keys, round_)
    world.coordinator.invite(plan, round_, announcement=announcement, adapter=adapter)


def _settle(world: DeviceWorld, record: Record, round_: int) -> None:
    """Fetch what the device announces for a round, if anything, and give the receipt."""
    world.run_for(0.1)
    announced = [
        envelope.message
        for envelope in world.coordinator.heard
        if isinstance(envelope.message, Contribution) and envelope.round == round_
    ]
    if announced:
        world.coordinator.fetch(announced[0])
        world.run_for(0.1)
        if len(world.coordinator.frames[announced[0].digest]) == announced[0].size:
            record.add("receipt", round=round_)
            world.coordinator.settle(announced[0])
            world.run_for(0.1)


def _die_before(number: int, folder: Path) -> None:
    left = number

    def seen(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in _CHANGES) and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(seen)


def _weaken(fault: str) -> None:
    """Take one promise from the device, for controls: what of it is kept is only in memory."""
    match fault:
        case "":
            return
        case "draws the noise anew":
            patch.object(ReleaseSeeds, "obtain", lambda *_: operating_system_seed()).start()
            patch.object(ReleaseSeeds, "holds", lambda *_: True).start()
        case "charges when the update is there":
            charge, put = Ledger.charge, Outbox.put
            due: list[tuple[Ledger, Charge]] = []

            def later(ledger: Ledger, what: Charge) -> None:
                due.append((ledger, what))

            def pay_and_put(outbox: Outbox, *args: Any, **fields: Any) -> Any:
                for ledger, what in due:
                    charge(ledger, what)
                due.clear()
                return put(outbox, *args, **fields)

            patch.object(Ledger, "charge", later).start()
            patch.object(Outbox, "put", pay_and_put).start()
        case "keeps updates in memory":
            put_on_disk, kept = Outbox.put, list[Waiting]()

            def put_aside(outbox: Outbox, *args: Any, **fields: Any) -> Waiting:
                kept.append(put_on_disk(outbox, *args, **fields))
                return kept[-1]

            patch.object(Outbox, "put", put_aside).start()
            patch.object(Outbox, "waiting", lambda _: list(kept)).start()
            patch.object(Outbox, "drop", lambda _, waiting: kept.remove(waiting)).start()
        case _:
            raise ValueError(fault)
