"""A process that records from several threads until it is killed, and tells what was acknowledged."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from coordinator.audit.chain import Action, Entry
from coordinator.audit.log import AuditLog
from shared.crypto.identity import Identity

THREADS = 4


def main() -> None:
    """Record for ever; a line on standard output for each record that is on disk.

    A line is written in one call to the kernel, after :meth:`AuditLog.record` returned.
    """
    home, life = Path(sys.argv[1]), sys.argv[2]
    log = AuditLog(home / "audit", Identity.load(home / "identity.key"), every_records=7)

    def work(worker: int) -> None:
        for count in range(1_000_000):
            name = f"{life}-{worker}-{count}"
            number = log.record(Entry(Action.KEY_MADE, "admin", name))
            os.write(1, f"{number} {name}\n".encode())

    for worker in range(THREADS):
        threading.Thread(target=work, args=(worker,)).start()


if __name__ == "__main__":
    main()
