"""Spans for OpenTelemetry: HTTP requests, what engines were asked, rounds and their steps.

    S1  without an endpoint nothing is measured, kept or sent
    S2  a span holds ids, names, numbers and outcomes: never a prompt, an answer, a tensor, a key,
        a path as it was asked for, or who asked
    S3  no request or round waits for the collector; what it does not take in time is dropped, and
        what waits for it is bounded

The only module that knows OpenTelemetry. Its own environment variables (``OTEL_…``) hold for
headers, resource attributes and sampling.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import structlog

from coordinator.federation.rounds import (
    AdapterApplied,
    Closed,
    Invited,
    KeyAnnounced,
    Planned,
    Proposed,
    RoundFailed,
    SetFixed,
    SumOpened,
    Transition,
)
from coordinator.inference.front_desk import Served
from coordinator.store.store import Store
from shared.errors import ConfigError
from shared.extras import require
from shared.types import RoundNumber, RunId

_PATH: Final = "/v1/traces"
_QUEUE: Final = 2048
_BATCH: Final = 512
_DELAY_MS: Final = 5000
_TIMEOUT_S: Final = 5
"""Of one export, its repetitions included."""
CLOSE_S: Final = 5.0
_MOST_ATTRIBUTES: Final = 32
_MOST_CHARACTERS: Final = 256
_MOST_ROUNDS: Final = 1000
"""Spans of rounds that are open; a run that was abandoned must not keep one for ever."""

_STEPS: Final[dict[type, str]] = {
    KeyAnnounced: "key",
    Invited: "invite",
    Proposed: "collect",
    SetFixed: "fix",
    Closed: "gather",
    SumOpened: "open",
    AdapterApplied: "apply",
    RoundFailed: "fail",
}
"""What had been done when such a row was committed. What single devices do is no step (S2)."""

Facts = Mapping[str, str | int | float | bool]


class Tracing:
    """Sends spans to one collector. Safe on any thread; a context manager."""

    def __init__(self, endpoint: str) -> None:
        """Send to the OTLP/HTTP receiver at ``endpoint``, such as ``http://127.0.0.1:4318``.

        Raises:
            ConfigError: it is no address.
            DependencyMissing: the extra ``otel`` is not installed.
        """
        url = _traces_url(endpoint)
        require("opentelemetry.sdk", extra="otel")
        require("opentelemetry.exporter.otlp.proto.http", extra="otel")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "llmos-coordinator"}),
            span_limits=SpanLimits(
                max_span_attributes=_MOST_ATTRIBUTES, max_span_attribute_length=_MOST_CHARACTERS
            ),
            shutdown_on_exit=False,
        )
        processor = BatchSpanProcessor(
            OTLPSpanExporter(endpoint=url, timeout=_TIMEOUT_S),
            max_queue_size=_QUEUE,
            max_export_batch_size=_BATCH,
            schedule_delay_millis=_DELAY_MS,
            export_timeout_millis=_TIMEOUT_S * 1000,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("llmos")

    def close(self) -> None:
        """Send what waits, for ``CLOSE_S`` at most."""
        # The library's own end tries every batch in turn: 15 s where nobody answers (1.45).
        closing = threading.Thread(target=self._provider.shutdown, daemon=True, name="last-spans")
        closing.start()
        closing.join(CLOSE_S)

    @contextlib.contextmanager
    def span(self, name: str, facts: Facts) -> Iterator[dict[str, str | int | float | bool]]:
        """Something that takes as long as the body; what is put into the yield is added to it.

        An error that leaves the body is told by its class alone: its message could hold
        what somebody asked (S2).
        """
        more: dict[str, str | int | float | bool] = {}
        with self._tracer.start_as_current_span(
            name, attributes=facts, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield more
            except BaseException as err:
                more["error.type"] = type(err).__name__
                raise
            finally:
                span.set_attributes(more)

    def was(
        self, name: str, facts: Facts, *, begun_ns: int, ended_ns: int, parent: Any = None
    ) -> None:
        """Something that is over; below ``parent``, or what this thread or request is in."""
        span = self._tracer.start_span(
            name, context=_context(parent), attributes=facts, start_time=begun_ns
        )
        span.end(ended_ns)

    def begin(self, name: str, facts: Facts, *, begun_ns: int) -> Any:
        """Something that begins, below nothing else; whoever asked for it ends it."""
        from opentelemetry.context import Context

        return self._tracer.start_span(
            name, context=Context(), attributes=facts, start_time=begun_ns
        )


def _context(parent: Any) -> Any:
    if parent is None:
        return None
    from opentelemetry.trace import set_span_in_context

    return set_span_in_context(parent)


def _traces_url(endpoint: str) -> str:
    try:
        parts = urlsplit(endpoint)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        # It may hold a password, so it is not repeated.
        raise ConfigError(["--otel-endpoint: expected http://HOST:PORT"], source="options")
    return endpoint.rstrip("/") + _PATH


class EngineSpans:
    """A span for each request to an engine; a :class:`~coordinator.inference.front_desk.Meter`."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def served(self, what: Served) -> None:
        """A request is over, however it ended."""
        now = time.time_ns()
        facts: dict[str, str | int | float | bool] = {
            "llmos.model": what.model,
            "llmos.outcome": what.outcome,
            **ids(),
        }
        if what.waited_s is not None:
            facts["llmos.waited_s"] = what.waited_s
        if what.first_s is not None:
            facts["llmos.first_s"] = what.first_s
        if what.finished is not None:
            facts["llmos.prompt_tokens"] = what.finished.prompt_tokens
            facts["llmos.cached_tokens"] = what.finished.cached_tokens
            facts["llmos.completion_tokens"] = what.finished.completion_tokens
        self._tracing.was("engine", facts, begun_ns=now - int(what.total_s * 1e9), ended_ns=now)

    def looked_up(self, model: str, *, hit: bool) -> None:
        """An answer was looked for in the cache; one from it is served like others."""


class RoundSpans:
    """A span for each round of a run, and one below it for each of its steps."""

    def __init__(self, tracing: Tracing, store: Store) -> None:
        self._tracing = tracing
        self._lock = threading.Lock()
        self._open: dict[tuple[RunId, RoundNumber], tuple[Any, int]] = {}
        """The span of a round, and when its last step was over."""
        store.follow(self._happened)

    def _happened(self, run: RunId, number: RoundNumber, what: Transition) -> None:
        now, of = time.time_ns(), (run, number)
        facts: dict[str, str | int | float | bool] = {"llmos.run": run, "llmos.round": number}
        step = _STEPS.get(type(what))
        with self._lock:
            if of not in self._open:
                if len(self._open) >= _MOST_ROUNDS:
                    self._open.pop(next(iter(self._open)))
                # A round that another process began is seen from here on.
                seen = {"llmos.resumed": not isinstance(what, Planned)}
                span = self._tracing.begin("round", facts | seen, begun_ns=now)
                self._open[of] = (span, now)
            span, since = self._open[of]
            if step is None:
                return
            self._tracing.was(f"round.{step}", facts, begun_ns=since, ended_ns=now, parent=span)
            self._open[of] = (span, now)
            if isinstance(what, AdapterApplied | RoundFailed):
                span.set_attribute("llmos.outcome", _outcome(what))
                span.end(now)
                del self._open[of]


def _outcome(what: AdapterApplied | RoundFailed) -> str:
    if isinstance(what, RoundFailed):
        return what.code
    return "accepted" if what.accepted else "rejected"


def ids() -> dict[str, str]:
    """Which request or run this is about, as log lines name it."""
    bound = structlog.contextvars.get_contextvars()
    return {f"llmos.{name}": str(bound[name]) for name in ("request", "run") if name in bound}
