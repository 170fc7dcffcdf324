"""What holds for every test: no network beyond loopback, and in CI no silent gaps."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from coordinator.broker.embedded import EmbeddedBroker
    from tests.support.stories import Watched

# Before anything imports a library that reads them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    DO_NOT_TRACK="1",
)

# How long an example takes says something of the machine, and nothing of what is tested.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

REQUIRED_IN_CI = ("broker", "browser", "install", "model", "postgres", "processes", "redis")
"""A test with one of these marks must run, not be skipped, where LLMOS_REQUIRE_ALL=1."""


ONLY_WHEN_ASKED_FOR = ("hostile", "killed")
"""Tests with one of these marks run with ``-m MARK`` alone: a small one of the kind always runs."""


FLEETS = (
    "tests/sim/test_chain_killed.py",
    "tests/sim/test_commands.py",
    "tests/sim/test_demo.py",
    "tests/sim/test_fleet_processes.py",
    "tests/sim/test_simulation.py",
    "tests/test_hostile_bytes.py",
    "tests/test_nobody_reads_an_update.py",
)
"""Modules that start whole fleets, or look at the one story that is told for all of them."""


INSTALLATIONS = "tests/deploy/"
"""Modules that share one wheel and one environment that it is installed into."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with fleets where workers share the tests; leave out what runs only when asked for."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _work_unit(item.nodeid) != "fleets")
    unasked = [mark for mark in ONLY_WHEN_ASKED_FOR if mark not in str(config.option.markexpr)]
    left_out = [item for item in items if any(map(item.get_closest_marker, unasked))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _work_unit(nodeid: str) -> str:
    module = nodeid.partition("::")[0]
    if module.startswith(INSTALLATIONS):
        return "installations"
    return "fleets" if module in FLEETS else module


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a module's tests with one worker, and those of fleets, so that no two run at a time.

    Those of installations too, so that each thing is built once.

    Not xdist's own groups: its version 3.8 finds none under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _work_unit(nodeid)

    return ByModule(config, log)


def _everything_must_run() -> bool:
    return os.environ.get("LLMOS_REQUIRE_ALL") == "1"


def _fail_instead(report: pytest.TestReport | pytest.CollectReport) -> None:
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    report.outcome = "failed"
    report.longrepr = f"LLMOS_REQUIRE_ALL=1, but this was skipped: {why}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip of a required test into a failure."""
    report = yield
    marked = any(item.get_closest_marker(mark) is not None for mark in REQUIRED_IN_CI)
    if report.skipped and not hasattr(report, "wasxfail") and marked and _everything_must_run():
        _fail_instead(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the skip of a whole module into a failure: which marks it holds cannot be known."""
    report = yield
    if report.skipped and _everything_must_run():
        _fail_instead(report)
    return report


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """One Mosquitto for all tests that do not restart it. Mark them ``broker``."""
    from tests.support.brokers import running_mosquitto

    with running_mosquitto(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL with pgvector. Mark tests ``postgres``."""
    from tests.support.postgres import running_postgres

    with running_postgres() as url:
        yield url


@pytest.fixture(scope="session")
def simulated_twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Two reports of the small story over the memory transport. Mark tests ``model``."""
    from tests.support.stories import simulate_small_story

    return simulate_small_story(tmp_path_factory), simulate_small_story(tmp_path_factory)


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """The small story with real processes, once for all tests. Mark them ``processes``."""
    from tests.support.stories import watch

    return watch(tmp_path_factory.mktemp("watched"))


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """What one test decides about logs is over with it."""
    import structlog

    before = structlog.get_config()
    yield
    structlog.configure(**before)
