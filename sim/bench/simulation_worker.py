"""A process that runs one simulation after another and keeps what they have in common.

Run by :mod:`sim.bench.robustness`. A simulation is one thread of Python, so several
cores need several of these.
"""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from shared.config import read
from shared.logs import silence_logs
from shared.processes import serve
from sim.scenario import Scenario
from sim.simulation import Workshop, simulate


def _simulate(scenario: dict[str, Any], seed: int, folder: str) -> dict[str, Any]:
    """The report of a scenario; ``folder`` holds the features, and while it runs everything else."""
    # This process is ended by a signal: what it leaves lies where its parent clears up.
    tempfile.tempdir = folder
    wanted = read(Scenario, scenario, source="scenario")
    return simulate(wanted, seed=seed, watch=lambda *_: None, workshop=_workshop(folder))


@lru_cache(maxsize=1)
def _workshop(folder: str) -> Workshop:
    return Workshop(1, features=Path(folder) / "features")


if __name__ == "__main__":
    silence_logs()
    serve({"simulate": _simulate})
