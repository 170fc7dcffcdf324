"""Every test of the store runs on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.store.store import Store
from tests.support.stores import DATABASES, DIGEST, RUN, Place, empty_place


@pytest.fixture(params=DATABASES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty database of either kind."""
    with empty_place(request.param, tmp_path, request) as place:
        yield place


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    """A store that knows one run."""
    store = place.open()
    store.add_run(RUN, "{}", DIGEST, now=1.0)
    yield store
    store.close()


@pytest.fixture(scope="module", params=DATABASES)
def shared_store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    """One store for all examples of a property."""
    with empty_place(request.param, tmp_path_factory.mktemp("store"), request) as place:
        store = place.open()
        yield store
        store.close()
