"""Metrics as Prometheus reads them."""

from __future__ import annotations

import re

from coordinator.exposition import Exposition


def value(metrics: Exposition, name: str, **labels: str) -> float:
    """One sample."""
    for line in metrics.text().decode().splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? ([\d.e+-]+)", line)
        if match and match[1] == name:
            found = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
            if found == labels:
                return float(match[3])
    raise AssertionError(f"no {name} with {labels} in\n{metrics.text().decode()}")
