"""How far devices are trusted: row and memory together, whoever judges.

D1  of judgements at the same time about the same device, row and memory hold the same one
"""

from __future__ import annotations

from coordinator.fleet.transport_fleet import TransportFleet
from coordinator.store.store import QUARANTINED, TRUSTED, Store
from shared.types import DeviceId


def judge(
    store: Store, fleet: TransportFleet, device: DeviceId, standing: str, reason: str, *, now: float
) -> bool:
    """Trust a device so far from now on; False if none of this name joined, or it was revoked.

    Raises:
        StorageError: it could not be written down, and holds neither here nor there.
    """
    with fleet.judging:
        if not store.set_standing(device, standing, reason, now=now):
            return False
        fleet.set_standing(device, standing)
        return True


def quarantine_trusted(
    store: Store, fleet: TransportFleet, device: DeviceId, reason: str, *, now: float
) -> bool:
    """Put a device that is trusted into quarantine; False if it is not, or none of this name joined.

    Raises:
        StorageError: as :func:`judge`.
    """
    found = store.device(device)
    if found is None or found.standing != TRUSTED:
        return False
    return judge(store, fleet, device, QUARANTINED, reason, now=now)
