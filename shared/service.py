"""Run an actor as a process: stop on signals, tell that it is ready, clean up."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

import structlog

from shared.actors import Actor, ActorLoop
from shared.errors import StorageError
from shared.files import disk_errors, write_durably
from shared.transport.transport import Transport


@contextlib.contextmanager
def home_lock(home: Path) -> Iterator[None]:
    """Keep ``home`` to this process: two would reuse each other's sequence numbers.

    The lock goes with the process, however that ends.

    Raises:
        StorageError: another process holds it, or the folder cannot be written.
    """
    with disk_errors(home):
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (home / "lock").open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise StorageError(
                f"another process works in {home}: end it, or choose another --home"
            ) from err
        yield


def secret_token(path: Path) -> str:
    """Return the token in a file, made at first use and readable by its owner only.

    Raises:
        StorageError: the disk refused.
    """
    # An empty file, left by a full disk elsewhere, would let an empty token in.
    if not path.exists() or not path.read_text(encoding="ascii").strip():
        write_durably(path, secrets.token_urlsafe(32).encode(), mode=0o600)
    return path.read_text(encoding="ascii").strip()


def serve(actor: Actor, transport: Transport, loop: ActorLoop) -> None:
    """Drive ``actor`` until SIGINT or SIGTERM. Call on the main thread.

    Raises:
        BrokerUnavailable: no broker answers.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        structlog.get_logger().info("signal.received", signal=signal.Signals(number).name)
        loop.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        loop.run(actor, transport)
    except BaseException:
        # Not after an end in order: a second Ctrl-C must not cut short what is closed then.
        for number, handler in before.items():
            signal.signal(number, handler)
        raise


@contextlib.contextmanager
def announced_ready(home: Path, facts: Mapping[str, object]) -> Iterator[None]:
    """Keep ``ready.json`` while this runs: where to reach the process, for whoever started it."""
    path = home / "ready.json"
    write_durably(path, json.dumps({"pid": os.getpid()} | dict(facts)).encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
