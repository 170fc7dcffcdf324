"""How the coordinator sees its devices, whatever carries the messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shared.types import DeviceId, RoundNumber, RunId
from shared.wire.messages import Message


class Fleet(Protocol):
    """The devices that may be reached now."""

    def present(self) -> Sequence[DeviceId]:
        """Devices that have shown themselves lately and are not busy elsewhere."""
        ...

    def send(self, device: DeviceId, message: Message, *, run: RunId, round_: RoundNumber) -> None:
        """Send a message to one device. It may be lost: callers repeat until answered."""
        ...

    def call(self) -> None:
        """Ask every device that hears it to show itself."""
        ...
