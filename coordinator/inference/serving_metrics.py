"""What serving does, for Prometheus.

Labels are models, names of API keys and outcomes, all of which are few; never a prompt, and all
devices together are ``device``. Gauges are read from desk and engines when somebody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from coordinator.exposition import Exposition, Reading
from coordinator.inference.engine import Engine, EngineLoad, EngineState
from coordinator.inference.front_desk import FrontDesk, Served
from coordinator.usage import account_of

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

_GAUGES: Final[Mapping[str, tuple[str, Callable[[EngineLoad], int]]]] = {
    "llmos_slots": ("Requests that can be worked on at the same moment", lambda x: x.slots),
    "llmos_slots_active": ("Requests that are worked on", lambda x: x.active),
    "llmos_engine_waiting": ("Requests that wait inside the engine", lambda x: x.waiting),
    "llmos_kv_tokens_limit": (
        "Tokens whose keys and values fit; 0: unknown",
        lambda x: x.kv_tokens,
    ),
    "llmos_kv_tokens_used": ("Tokens whose keys and values are kept", lambda x: x.kv_tokens_used),
}


class ServingMetrics:
    """Counts as the desk's :class:`~coordinator.inference.front_desk.Meter`."""

    def __init__(self, exposition: Exposition) -> None:
        """Show what is counted there."""
        self._desk: FrontDesk | None = None
        counter = exposition.counter

        self._requests = counter(
            "llmos_requests", "Requests that are over, by how they ended", "model", "key", "outcome"
        )
        self._tokens = counter(
            "llmos_tokens",
            "Tokens of whole answers: prompt, cached (of the prompt, not computed), completion",
            "model",
            "key",
            "kind",
        )
        self._quota = counter(
            "llmos_quota_refusals", "Requests beyond a key's tokens per minute", "key"
        )
        self._lookups = counter(
            "llmos_answer_cache_lookups",
            "Answers that were looked for in the cache",
            "model",
            "result",
        )
        self._first, self._total, self._waited = (
            exposition.histogram(name, what, "model", buckets=_SECONDS)
            for name, what in (
                ("llmos_time_to_first_token_seconds", "From a request to its first piece"),
                ("llmos_request_duration_seconds", "From a request to the end of its answer"),
                ("llmos_queue_wait_seconds", "From a request to the slot that it was given"),
            )
        )
        exposition.read(self._loads)

    def watch(self, desk: FrontDesk) -> None:
        """Read gauges from this desk and its engines."""
        self._desk = desk

    def served(self, what: Served) -> None:
        """A request is over, however it ended."""
        key = account_of(what.caller)
        self._requests.labels(what.model, key, what.outcome).inc()
        if what.outcome == "quota":
            self._quota.labels(key).inc()
        if what.waited_s is not None:
            self._waited.labels(what.model).observe(what.waited_s)
        if what.first_s is not None:
            self._first.labels(what.model).observe(what.first_s)
        if what.finished is not None:
            self._total.labels(what.model).observe(what.total_s)
            for kind, tokens in (
                ("prompt", what.finished.prompt_tokens),
                ("cached", what.finished.cached_tokens),
                ("completion", what.finished.completion_tokens),
            ):
                self._tokens.labels(what.model, key, kind).inc(tokens)

    def looked_up(self, model: str, *, hit: bool) -> None:
        """An answer was looked for in the cache."""
        self._lookups.labels(model, "hit" if hit else "miss").inc()

    def _loads(self) -> Iterator[Reading]:
        desk = self._desk
        engines: Mapping[str, Engine] = {} if desk is None else desk.engines
        loads = {name: engine.load for name, engine in engines.items()}
        for name, (what, read) in _GAUGES.items():
            yield _by_model(name, what, {model: read(load) for model, load in loads.items()})
        waiting = {} if desk is None else {name: desk.waiting(name) for name in engines}
        yield _by_model("llmos_queue_depth", "Requests that wait for a slot", waiting)
        used = {
            name: (load.active + load.waiting + waiting[name]) / max(1, load.slots)
            for name, load in loads.items()
        }
        yield _by_model(
            "llmos_slot_demand",
            "Requests that are worked on or wait, for each slot: above 1, more slots are wanted",
            used,
        )
        ready = {name: e.card.state is EngineState.READY for name, e in engines.items()}
        yield _by_model("llmos_engine_ready", "Whether the model answers", ready)
        yield _by_model(
            "llmos_engine_restarts",
            "Model processes that were replaced",
            {model: load.restarts for model, load in loads.items()},
            counts=True,
        )


def _by_model(
    name: str, what: str, values: Mapping[str, float], *, counts: bool = False
) -> Reading:
    return Reading(name, what, ("model",), {(m,): v for m, v in values.items()}, counts)
