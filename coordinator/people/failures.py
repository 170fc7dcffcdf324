"""Failed logins in the audit log, of which strangers cannot make as many records as they like."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from coordinator.audit.chain import Action, Entry, Fact
from coordinator.audit.sink import STRANGER, AuditSink

AT_ONCE: Final = 60
"""Records in a row; then one for every ``EACH_S`` seconds: half a megabyte a day."""
EACH_S: Final = 60.0


class FailedLogins:
    """Writes failed logins down, and of those that it leaves out how many there were."""

    def __init__(self, audit: AuditSink, *, monotonic: Callable[[], float]) -> None:
        """Write into ``audit``; ``monotonic`` gives seconds."""
        self._audit = audit
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._left = float(AT_ONCE)
        self._at = monotonic()
        self._left_out = 0

    def record(self, name: str, *, by: str) -> None:
        """Write one down: of ``name``, empty if nobody is called so, and with what it was tried.

        Whether there is such a person makes no difference to what is done here, so that nobody
        learns it from how long that takes.

        Raises:
            StorageError: it could not be written down.
        """
        with self._lock:
            now = self._monotonic()
            self._left = min(AT_ONCE, self._left + (now - self._at) / EACH_S)
            self._at = now
            if self._left < 1:
                self._left_out += 1
                return
            self._left -= 1
            facts: dict[str, Fact] = {"by": by}
            if self._left_out:
                facts["left_out"] = self._left_out
            self._left_out = 0
        self._audit.record(Entry(Action.LOGIN_FAILED, STRANGER, name, facts))
