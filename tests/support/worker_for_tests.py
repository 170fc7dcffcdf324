"""A worker module whose operations do what hostile or heavy work may do to a process."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from shared.errors import CohortTooSmall, ConfigError, DigestMismatch
from shared.processes import serve

_calls = 0


def echo(value: Any) -> Any:
    """Return what came."""
    return value


def count() -> int:
    """How many times this process was asked."""
    global _calls  # noqa: PLW0603  the point is what a process remembers
    _calls += 1
    return _calls


def die(status: int) -> None:
    """End without an answer."""
    os._exit(status)


def shout() -> str:
    """Print to where the frames go."""
    sys.stdout.write("x" * 10_000)
    sys.stdout.flush()
    os.write(1, b"more")
    return "said"


def fail(kind: str) -> None:
    """Raise an error of ours, or a foreign one."""
    if kind == "digest":
        raise DigestMismatch("not the one")
    if kind == "cohort":
        raise CohortTooSmall(present=1, required=2)
    if kind == "config":
        raise ConfigError(["a: unknown"])
    raise KeyError(kind)


def allocate(size: int) -> int:
    """Take memory."""
    return len(bytearray(size))


def environment(name: str) -> str | None:
    """One variable of this process."""
    return os.environ.get(name)


def facts() -> dict[str, int]:
    """Process id, its parent's, and its niceness."""
    return {"pid": os.getpid(), "parent": os.getppid(), "nice": os.nice(0)}


def sleep(seconds: float) -> None:
    """Take time."""
    time.sleep(seconds)


def unspeakable() -> object:
    """Return what cannot be sent."""
    return object()


if __name__ == "__main__":
    serve(
        {
            operation.__name__: operation
            for operation in (
                echo,
                count,
                die,
                shout,
                fail,
                allocate,
                environment,
                facts,
                sleep,
                unspeakable,
            )
        }
    )
