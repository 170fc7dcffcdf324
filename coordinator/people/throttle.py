"""After some failed tries, every further one has to wait twice as long as the one before.

L1  a try counts as failed from its beginning on: tries at once get no further than one by one
L2  what is remembered has a bound, whatever is tried
L3  nobody waits longer than ``LONGEST_S``, and a try that is refused costs nothing
"""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

from shared.errors import TooManyTries

FIRST_S: Final = 1.0
LONGEST_S: Final = 300.0
"""Whoever fails on purpose keeps somebody out for so long at a time: sessions and links go on."""
FORGOTTEN_S: Final = 3600.0
MOST_KNOWN: Final = 10_000
"""To have one forgotten takes as many tries, of which two a time are worked on."""


class Throttle:
    """Counts tries by key. Safe on any thread."""

    def __init__(self, *, monotonic: Callable[[], float], most: int = MOST_KNOWN) -> None:
        """``monotonic`` gives seconds; ``most`` keys are remembered."""
        self._monotonic = monotonic
        self._most = most
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """How many tries failed, and when the last was; the oldest comes first."""

    def enter(self, free: Mapping[str, int]) -> None:
        """Begin a try that counts for each of these keys, after so many free ones (L1).

        Raises:
            TooManyTries: it has to wait for one of them; nothing was counted (L3).
        """
        now = self._monotonic()
        with self._lock:
            wait_s = max(self._wait_s(key, tries, now) for key, tries in free.items())
            if wait_s > 0:
                raise TooManyTries(
                    f"too many tries have failed: wait {wait_s:.0f} s", retry_after_s=wait_s
                )
            for key in free:
                self._known[key] = (self._tries(key, now) + 1, now)
                self._known.move_to_end(key)
            while len(self._known) > self._most:
                self._known.popitem(last=False)

    def take_back(self, key: str) -> None:
        """Count one try less."""
        with self._lock:
            tries, at = self._known.get(key, (0, 0.0))
            if tries > 1:
                self._known[key] = (tries - 1, at)
            else:
                self._known.pop(key, None)

    def forget(self, key: str) -> None:
        """Count from the beginning."""
        with self._lock:
            self._known.pop(key, None)

    def _tries(self, key: str, now: float) -> int:
        tries, at = self._known.get(key, (0, now))
        return tries if now - at < FORGOTTEN_S else 0

    def _wait_s(self, key: str, free: int, now: float) -> float:
        tries = self._tries(key, now)
        if tries < free:
            return 0.0
        at = self._known[key][1]
        return at + min(LONGEST_S, FIRST_S * 2.0 ** min(tries - free, 60)) - now


def place_of(address: str) -> str:
    """Of whom an address is: an IPv6 network of 64 bits is one customer's."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        mapped = found.ipv4_mapped
        network = ipaddress.ip_network((found, 64), strict=False)
        return str(mapped if mapped is not None else network)
    return str(found)
