"""What the rest of the coordinator tells whoever watches, from whatever thread, without waiting."""

from __future__ import annotations

from typing import Protocol

from shared.errors import LlmOsError


class Sightings(Protocol):
    """Told what is worth counting. No method waits, fails, or keeps content of a message."""

    def message_refused(self, peer: str | None, err: LlmOsError, *, by_itself: bool) -> None:
        """A message on ``peer``'s topic was refused.

        Args:
            peer: Whose topic it was; ``None``: nobody's who is known.
            err: Why.
            by_itself: Whether it was fresh and had the peer's own signature, so that nobody else
                can have made it.
        """
        ...

    def update_refused(self, device: str, err: LlmOsError) -> None:
        """What a device bound itself to by its signature was refused."""
        ...

    def credential_refused(self, address: str) -> None:
        """A credential was shown from there that opens nothing."""
        ...

    def request_refused(self, caller: str) -> None:
        """Somebody whose credential is valid asked for what it does not allow."""
        ...

    def key_used(self, key: str, address: str) -> None:
        """A key or token opened something."""
        ...


class NoSightings:
    """Nobody watches: for simulations and tests."""

    def message_refused(self, peer: str | None, err: LlmOsError, *, by_itself: bool) -> None:
        """Forget it."""

    def update_refused(self, device: str, err: LlmOsError) -> None:
        """Forget it."""

    def credential_refused(self, address: str) -> None:
        """Forget it."""

    def request_refused(self, caller: str) -> None:
        """Forget it."""

    def key_used(self, key: str, address: str) -> None:
        """Forget it."""
