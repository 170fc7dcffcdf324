"""The security check in a process of its own, with less right to the processor than its parent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coordinator.security.checks import check
from coordinator.security.gather import gather
from shared.processes import serve


def look(home: str, store_at: str) -> list[dict[str, Any]]:
    """What is to be acted on, offline."""
    return [
        {"code": one.code, "subject": one.subject, "detail": one.detail}
        for one in check(gather(Path(home), store_at=store_at))
        if one.is_to_be_acted_on
    ]


if __name__ == "__main__":
    serve({"look": look})
