"""What Prometheus reads of this process. The only module that knows prometheus_client.

Labels are words of which there are few; whoever adds a metric sees to it. Gauges are read when
somebody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from shared.extras import require

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Reading:
    """One metric as it is now.

    Attributes:
        name: Without the ``_total`` that a counter's name ends with.
        what: For a person.
        labels: Names of the labels.
        values: By the labels' values, in that order.
        counts: Whether it only grows.
    """

    name: str
    what: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]
    counts: bool = False


class Exposition:
    """Metrics in a registry of their own, so that two of them in one process count apart."""

    def __init__(self) -> None:
        """Begin with none.

        Raises:
            DependencyMissing: prometheus-client is not installed.
        """
        self._library: Any = require("prometheus_client", extra="coordinator")
        self._registry: Any = self._library.CollectorRegistry(auto_describe=False)

    def counter(self, name: str, what: str, *labels: str) -> Any:
        """A number that grows: ``.labels(…).inc()``."""
        return self._library.Counter(name, what, labels, registry=self._registry)

    def histogram(self, name: str, what: str, *labels: str, buckets: tuple[float, ...]) -> Any:
        """Numbers by size: ``.labels(…).observe(value)``."""
        return self._library.Histogram(name, what, labels, registry=self._registry, buckets=buckets)

    def read(self, readings: Callable[[], Iterable[Reading]]) -> None:
        """Ask for these whenever somebody looks; on whatever thread that happens."""
        self._registry.register(_Collector(readings))

    def text(self) -> bytes:
        """All of it in Prometheus' text format, :data:`CONTENT_TYPE`."""
        written: bytes = self._library.generate_latest(self._registry)
        return written


class _Collector:
    def __init__(self, readings: Callable[[], Iterable[Reading]]) -> None:
        self._core: Any = require("prometheus_client.metrics_core", extra="coordinator")
        self._readings = readings

    def collect(self) -> Iterator[Any]:
        """Prometheus' own name: the families of metrics, with their values."""
        for reading in self._readings():
            make = (
                self._core.CounterMetricFamily if reading.counts else self._core.GaugeMetricFamily
            )
            family = make(reading.name, reading.what, labels=reading.labels)
            for labels, value in reading.values.items():
                family.add_metric(labels, float(value))
            yield family
