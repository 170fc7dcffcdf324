"""How the coordinator sees its devices, whatever carries the messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shared.types import DeviceId, PublicKey, RoundNumber, RunId
from shared.wire.messages import Message


class Fleet(Protocol):
    """The devices that may be reached now, and the key holder."""

    @property
    def key_holder(self) -> PublicKey | None:
        """The key holder's public key, if this coordinator works with one."""
        ...

    def known(self) -> Sequence[DeviceId]:
        """Every device that joined."""
        ...

    def present(self) -> Sequence[DeviceId]:
        """Devices that have shown themselves lately and are not busy elsewhere."""
        ...

    def unable(self, device: DeviceId) -> str:
        """The passing condition for which a device said it takes no part now; empty: none."""
        ...

    def heard(self, device: DeviceId) -> tuple[float, str]:
        """When a device was last heard, and what it said it was doing."""
        ...

    def send(self, device: DeviceId, message: Message, *, run: RunId, round_: RoundNumber) -> None:
        """Send a message to one device. It may be lost: callers repeat until answered."""
        ...

    def call(self) -> None:
        """Ask every device that hears it to show itself."""
        ...

    def save_replay_guard(self) -> None:
        """Make what was accepted so far durable, before it is answered."""
        ...
