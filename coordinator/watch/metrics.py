"""Alarms and sightings, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.exposition import Exposition, Reading
from coordinator.store.alarms import AlarmRows
from coordinator.watch.rules import RULES
from coordinator.watch.watch import Watch


def show_alarms(exposition: Exposition, watch: Watch, rows: AlarmRows) -> None:
    """Show what ``watch`` raised since it began, and how many ``rows`` are open."""

    def readings() -> Iterator[Reading]:
        raised: dict[tuple[str, ...], float] = {
            (rule,): float(watch.raised[rule]) for rule in RULES
        }
        yield Reading("llmos_alarms", "New alarms, by rule", ("rule",), raised, counts=True)
        yield Reading(
            "llmos_alarms_open", "Alarms nobody acknowledged", (), {(): rows.count_open()}
        )
        dropped = "What was seen and not counted, because too much came at once"
        yield Reading(
            "llmos_sightings_dropped", dropped, (), {(): float(watch.dropped)}, counts=True
        )

    exposition.read(readings)
