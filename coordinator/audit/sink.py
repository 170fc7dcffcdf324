"""Who is acting, and where it is written down: all that the rest of the coordinator knows.

An action that somebody asks for is written down first and then done. If it cannot be written
down it is not done; if it cannot be done then, that is written down as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final, Protocol

from coordinator.audit.chain import Action, Entry
from shared.errors import LlmOsError, StorageError

ADMIN: Final = "admin"
COORDINATOR: Final = "coordinator"
KEY_HOLDER: Final = "key-holder"
STRANGER: Final = "stranger"

acting: Final[ContextVar[str]] = ContextVar("acting", default=COORDINATOR)
"""On whose behalf this thread or request works; the API sets it."""


class AuditSink(Protocol):
    """Where actions are written down."""

    def record(self, entry: Entry) -> int:
        """Write ``entry`` down; on disk when this returns. Gives the record's number.

        Raises:
            StorageError: it is not written down.
        """
        ...


class NoAudit:
    """Writes nothing down: for simulations and tests."""

    def record(self, entry: Entry) -> int:
        """Forget ``entry``."""
        del entry
        return 0


@contextlib.contextmanager
def recorded(audit: AuditSink, entry: Entry) -> Iterator[None]:
    """Write ``entry`` down and then do it, in the body.

    Raises:
        StorageError: it could not be written down, and the body was not entered.
    """
    number = audit.record(entry)
    try:
        yield
    except Exception as err:
        code = err.code if isinstance(err, LlmOsError) else LlmOsError.code
        # Where that cannot be written either, the next start finds that it was not done.
        with contextlib.suppress(StorageError):
            audit.record(
                Entry(Action.NOT_DONE, entry.actor, entry.subject, {"of": number, "code": code})
            )
        raise
