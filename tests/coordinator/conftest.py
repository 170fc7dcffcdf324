"""Worlds for the coordinator's tests, with one pair of sum workers for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from shared.crypto.sum_worker import SumWorker
from tests.support.coordination import World


@pytest.fixture(scope="session")
def adders() -> Iterator[tuple[SumWorker, SumWorker]]:
    """The coordinator's and the key holder's worker processes. Totals carry their round's name."""
    pair = (SumWorker(), SumWorker())
    yield pair
    for adder in pair:
        adder.close()


@pytest.fixture
def make_world(
    tmp_path: Path, adders: tuple[SumWorker, SumWorker]
) -> Iterator[Callable[[], World]]:
    """As many worlds as a test wants, each in a folder of its own."""
    with ExitStack() as stack:
        count = 0

        def make() -> World:
            nonlocal count
            count += 1
            folder = tmp_path / f"world-{count}"
            folder.mkdir()
            return World(folder, adders[0], stack=stack)

        yield make


@pytest.fixture
def world(make_world: Callable[[], World]) -> World:
    """One world: a coordinator that is not started, and nobody else yet."""
    return make_world()
