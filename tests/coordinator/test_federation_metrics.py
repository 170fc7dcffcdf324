"""What rounds do is counted; no device is named, and the dashboard asks for what there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.exposition import Exposition
from coordinator.federation.rounds import (
    AdapterApplied,
    DeviceDeclined,
    RoundFailed,
    SumOpened,
    Transition,
    UpdateStored,
)
from coordinator.federation_metrics import FederationMetrics
from coordinator.fleet.transport_fleet import PRESENT_S, TransportFleet
from coordinator.inference.serving_metrics import ServingMetrics
from coordinator.store.store import Store
from shared.types import DeviceId, Digest, PublicKey, RoundNumber, RunId
from tests.support.prometheus import value

RUN, DIGEST = RunId("run"), Digest("a" * 64)
DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "llmos.json"
NOW = 1000.0


class HeardOf(TransportFleet):
    """A fleet that heard of devices when a test says so."""

    def __init__(self) -> None:
        self._now = lambda: NOW
        self.stations: dict[str, tuple[float, str]] = {}

    def heard(self, device: DeviceId) -> tuple[float, str]:
        return self.stations.get(device, (float("-inf"), "unknown"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path / 'store.db'}", tmp_path)
    store.add_run(RUN, "{}", DIGEST, now=1.0)
    yield store
    store.close()


@pytest.fixture
def fleet() -> HeardOf:
    return HeardOf()


@pytest.fixture
def metrics(store: Store, fleet: HeardOf) -> Exposition:
    exposition = Exposition()
    FederationMetrics(
        exposition,
        store=store,
        fleet=fleet,
        is_connected=lambda: True,
    )
    return exposition


def applied(*, accepted: bool, accuracy: dict[str, float]) -> AdapterApplied:
    return AdapterApplied(DIGEST, accepted, "", accuracy, 0.5, DIGEST)


def happen(store: Store, *transitions: Transition) -> None:
    for transition in transitions:
        store.commit(RUN, RoundNumber(1), transition, now=2.0)


def test_rounds_updates_and_refusals_are_counted(store: Store, metrics: Exposition) -> None:
    store.add_milestone(RUN, "started", {}, now=1.5)
    store.add_milestone(RUN, "started", {}, now=1.6)  # it happens once
    happen(
        store,
        UpdateStored("kitchen", DIGEST),
        UpdateStored("attic", DIGEST),
        DeviceDeclined("cellar", "budget_exceeded", "3.2 of 3 would be spent"),
        SumOpened(DIGEST, 2),
        applied(accepted=True, accuracy={"": 0.5, "en": 0.7}),
        applied(accepted=False, accuracy={"": 0.25}),
        RoundFailed("cohort", "too few"),
    )
    assert value(metrics, "llmos_run_milestones_total", kind="started") == 1
    assert value(metrics, "llmos_updates_total") == 2
    assert value(metrics, "llmos_sums_opened_total") == 1
    assert value(metrics, "llmos_invitations_declined_total", code="budget_exceeded") == 1
    for outcome in ("accepted", "rejected", "failed"):
        assert value(metrics, "llmos_rounds_total", outcome=outcome) == 1
    assert value(metrics, "llmos_accuracy", group="") == 0.25
    text = metrics.text().decode()
    assert 'group="en"' not in text  # the last round has none
    assert not re.search("kitchen|attic|cellar|3.2 of 3", text)


def test_devices_are_counted_by_what_was_heard_of_them(
    store: Store, fleet: HeardOf, metrics: Exposition
) -> None:
    for number, name in enumerate(("one", "two", "three", "four")):
        token = store.new_token(expires_at=NOW)
        store.join(token, DeviceId(name), PublicKey(number.to_bytes(32)), now=1.0)
    fleet.stations = {
        "one": (NOW, "idle"),
        "two": (NOW - PRESENT_S, "training"),
        "three": (NOW - PRESENT_S - 1, "idle"),
    }
    counted = {s: value(metrics, "llmos_devices", state=s) for s in ("idle", "training", "away")}
    assert counted == {"idle": 1, "training": 1, "away": 2}
    assert value(metrics, "llmos_broker_connected") == 1


def test_the_dashboard_asks_for_metrics_that_there_are(store: Store, metrics: Exposition) -> None:
    ServingMetrics(metrics)
    there = set(re.findall(r"^# TYPE (llmos_\w+)", metrics.text().decode(), flags=re.MULTILINE))
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    assert len(asked) > 15
    for expression in asked:
        for name in re.findall(r"\bllmos_\w+", expression):
            assert name in there or name.removesuffix("_bucket") in there, expression
