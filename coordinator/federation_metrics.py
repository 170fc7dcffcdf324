"""What federated rounds do, for Prometheus: how many, never who.

Counters grow from the start of this process on: what happened before is in the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from coordinator.exposition import Exposition, Reading
from coordinator.federation.rounds import (
    AdapterApplied,
    DeviceDeclined,
    RoundFailed,
    SumOpened,
    Transition,
    UpdateStored,
)
from coordinator.fleet.transport_fleet import AWAY, TransportFleet
from coordinator.store.store import Store


class FederationMetrics:
    """Listens to the store, and asks the fleet when somebody looks."""

    def __init__(
        self,
        exposition: Exposition,
        *,
        store: Store,
        fleet: TransportFleet,
        is_connected: Callable[[], bool],
    ) -> None:
        """Show what is counted there.

        Args:
            exposition: Where.
            store: Whose committed transitions are counted.
            fleet: What devices do.
            is_connected: Whether the broker is.
        """
        self._store, self._fleet, self._is_connected = store, fleet, is_connected
        self._milestones: Any = exposition.counter(
            "llmos_run_milestones", "What happens once in a run: started, finished, …", "kind"
        )
        self._rounds: Any = exposition.counter(
            "llmos_rounds", "Rounds that are over: accepted, rejected or failed", "outcome"
        )
        self._updates: Any = exposition.counter(
            "llmos_updates", "Encrypted updates that were received and are on disk"
        )
        self._declined: Any = exposition.counter(
            "llmos_invitations_declined",
            "Invitations that devices declined, by their reason",
            "code",
        )
        self._sums: Any = exposition.counter("llmos_sums_opened", "Sums that the key holder opened")
        self._accuracy: dict[tuple[str, ...], float] = {}
        store.subscribe(self._happened)
        exposition.read(self._readings)

    def _happened(self, what: Transition | str) -> None:
        match what:
            case str():
                self._milestones.labels(what).inc()
            case UpdateStored():
                self._updates.inc()
            case DeviceDeclined(code=code):
                self._declined.labels(code).inc()
            case SumOpened():
                self._sums.inc()
            case RoundFailed():
                self._rounds.labels("failed").inc()
            case AdapterApplied() as applied:
                self._rounds.labels("accepted" if applied.accepted else "rejected").inc()
                self._accuracy = {(group,): value for group, value in applied.accuracy.items()}
            case _:
                pass

    def _readings(self) -> Iterator[Reading]:
        devices: Counter[tuple[str, ...]] = Counter({("idle",): 0, ("training",): 0, (AWAY,): 0})
        for device in self._store.devices():
            devices[(self._fleet.state(device.name),)] += 1
        yield Reading("llmos_devices", "Devices that joined", ("state",), devices)
        yield Reading(
            "llmos_broker_connected", "Whether the broker is", (), {(): self._is_connected()}
        )
        yield Reading(
            "llmos_accuracy",
            "Of the adapter that the last round brought, on the public probe set; '' is all of it",
            ("group",),
            self._accuracy,
        )
