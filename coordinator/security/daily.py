"""The security check once a day inside ``llmos up``.

C1  it runs on a thread of its own and works in a child process: it delays nobody, and
    whatever becomes of it, the coordinator goes on
C2  a finding is raised when it is new, and again only after it was gone for a check; what was
    raised is remembered across restarts
C3  what was raised is in the audit log before it is remembered: after a crash it is raised
    twice, and never not at all
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from coordinator.audit.chain import MAX_TEXT, Action, Entry
from coordinator.audit.sink import COORDINATOR, AuditSink
from coordinator.security.findings import RULES, Finding, Severity
from shared.errors import LlmOsError
from shared.files import write_durably
from shared.processes import Child

log = structlog.get_logger()

FIRST_S: Final = 60.0
EVERY_S: Final = 86_400.0
REMEMBERED: Final = "findings.json"
"""In the coordinator's home: code and subject of what was raised."""
_NICE: Final = 15


def raise_finding(finding: Finding, audit: AuditSink) -> None:
    """Tell of one new finding: a record in the audit log, and a line in the log.

    Raises:
        StorageError: it could not be written down.
    """
    facts = {"code": finding.code, "severity": str(finding.severity)}
    subject = "".join(letter for letter in finding.subject if letter.isprintable())[:MAX_TEXT]
    audit.record(Entry(Action.SECURITY_FINDING, COORDINATOR, subject, facts))
    tell = log.error if finding.severity is Severity.CRITICAL else log.warning
    tell(
        "security.finding",
        finding=finding.code,
        severity=str(finding.severity),
        subject=finding.subject,
        detail=finding.detail,
        advice=finding.advice,
    )


class DailyCheck:
    """Looks a minute after it was started and then once a day; a context manager."""

    def __init__(
        self,
        home: Path,
        *,
        look: Callable[[], Sequence[Finding]],
        raise_one: Callable[[Finding], None],
        stop_looking: Callable[[], None] = lambda: None,
        first_s: float = FIRST_S,
        every_s: float = EVERY_S,
    ) -> None:
        """Describe it.

        Args:
            home: Where is remembered what was raised.
            look: Everything that is to be acted on now.
            raise_one: Called with what is new.
            stop_looking: Ends a look that is under way.
            first_s: Before the first check.
            every_s: Between two.
        """
        self._path = home / REMEMBERED
        self._look = look
        self._raise = raise_one
        self._stop_looking = stop_looking
        self._first_s = first_s
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="security-check")

    def start(self) -> None:
        """Begin to wait for the first check."""
        self._thread.start()

    def close(self) -> None:
        """No further check; of one under way nothing is raised."""
        self._over.set()
        self._stop_looking()
        if self._thread.is_alive():
            self._thread.join()

    def check(self) -> None:
        """Look now, raise what is new, and remember it (C2, C3).

        Raises:
            LlmOsError: it could not be looked, raised or remembered.
        """
        before = self._remembered()
        found = {(finding.code, finding.subject): finding for finding in self._look()}
        if self._over.is_set():
            return
        for identity, finding in found.items():
            if identity not in before:
                self._raise(finding)
        if set(found) != before:
            write_durably(self._path, json.dumps(sorted(found)).encode(), mode=0o600)

    def _remembered(self) -> set[tuple[str, str]]:
        """What was raised; a file that says nothing sensible is as good as none."""
        try:
            return {
                (str(code), str(subject)) for code, subject in json.loads(self._path.read_bytes())
            }
        except (OSError, ValueError, TypeError):
            return set()

    def _run(self) -> None:
        wait_s = self._first_s
        while not self._over.wait(wait_s):
            wait_s = self._every_s
            try:
                self.check()
            except LlmOsError as err:
                if not self._over.is_set():
                    log.error("security.not_checked", code=err.code, error=str(err))
            except Exception:  # a mistake in a check must not end the checks (C1)
                log.exception("security.not_checked")


class LookInChild:
    """Gathers and checks in a child process (C1)."""

    def __init__(self, home: Path, *, store_at: str) -> None:
        self._home = home
        self._store_at = store_at
        self._child = Child("coordinator.security.worker", nice=_NICE)

    def __call__(self) -> list[Finding]:
        """What is to be acted on.

        Raises:
            ChildDied: the child ended before it answered.
            LlmOsError: as the child raised it.
        """
        try:
            found = self._child.call("look", home=str(self._home), store_at=self._store_at)
        finally:
            self._child.close()
        return [Finding(**fields) for fields in found if fields["code"] in RULES]

    def close(self) -> None:
        """End a look that is under way."""
        self._child.close()
