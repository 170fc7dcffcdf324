"""What a measurement was promised to reach, and how it is told."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Bar:
    """A number that was promised. NaN stands for one that could not be measured: it holds nothing."""

    name: str
    measured: float
    wanted: float
    at_least: bool = True

    @property
    def holds(self) -> bool:
        """Whether it was reached."""
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted


def told(bench: str, bars: Sequence[Bar], **facts: Any) -> dict[str, Any]:
    """A measurement as ``--json`` prints it: what, when, where, ``facts``, and its bars."""
    return {
        "bench": bench,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {platform.system()}, {platform.python_version()}",
        **facts,
        "bars": [
            {
                "name": bar.name,
                "measured": None if math.isnan(bar.measured) else round(bar.measured, 4),
                "wanted": bar.wanted,
                "at_least": bar.at_least,
                "holds": bar.holds,
            }
            for bar in bars
        ],
    }
