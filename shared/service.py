"""Run an actor as a process: stop on signals, tell that it is ready, clean up."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import structlog

from shared.actors import Actor, ActorLoop
from shared.errors import StorageError
from shared.files import disk_errors, write_durably
from shared.transport.transport import Transport


class HomeLock:
    """One process per home folder: two would reuse each other's sequence numbers."""

    def __init__(self, home: Path) -> None:
        """Lock ``home``. The lock goes with the process, however that ends.

        Raises:
            StorageError: another process holds it, or the folder cannot be written.
        """
        import fcntl

        with disk_errors(home):
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = (home / "lock").open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise StorageError(
                f"another process works in {home}: end it, or choose another --home"
            ) from err


def serve(actor: Actor, transport: Transport, loop: ActorLoop) -> None:
    """Drive ``actor`` until SIGINT or SIGTERM. Call on the main thread.

    Raises:
        BrokerUnavailable: no broker answers.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        structlog.get_logger().info("signal.received", signal=signal.Signals(number).name)
        loop.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    loop.run(actor, transport)


def announce_ready(home: Path, facts: Mapping[str, object]) -> None:
    """Write ``ready.json``: where to reach this process, for whoever started it."""
    write_durably(home / "ready.json", json.dumps({"pid": os.getpid()} | dict(facts)).encode())
