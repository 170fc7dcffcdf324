"""A real Mosquitto on a free loopback port, for tests marked ``broker``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coordinator.broker.embedded import EmbeddedBroker, find_mosquitto


def mosquitto_or_skip() -> None:
    """Skip the test where Mosquitto is not installed. With LLMOS_REQUIRE_ALL=1 that is a failure."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: sh deploy/install-broker.sh")


@contextmanager
def running_mosquitto(folder: Path) -> Iterator[EmbeddedBroker]:
    """A broker of one's own, e.g. to restart it; otherwise use the fixture ``broker``."""
    mosquitto_or_skip()
    with EmbeddedBroker(folder) as broker:
        assert broker.kind == "mosquitto"
        yield broker


def eventually(condition: Callable[[], bool], *, within_s: float = 60.0) -> bool:
    """Whether ``condition`` comes true in time; for what another thread or process does."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
