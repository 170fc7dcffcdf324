"""What consoles watch: each topic's state at one moment, as JSON without nulls.

Read on worker threads, one at a time. A run is read row by row as it grows, never twice as a whole.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

from coordinator.merge_patch import without_nulls
from coordinator.privacy_card import PrivacyCard, privacy_card
from coordinator.store.store import ENDINGS, Store, TransitionRow
from coordinator.views import RoundView, summarise_runs, view_round
from shared.config import read_json
from shared.errors import DataError
from shared.job import RunPlan
from shared.types import RoundNumber, RunId

MOST_DEVICES: Final = 1000
MOST_RUNS: Final = 50
RUN: Final = "run/"
_KEPT_RUNS: Final = 32
_BATCH: Final = 1000

JsonObject = dict[str, Any]


class LiveTopics:
    """Reads topics. Driven by one thread at a time."""

    def __init__(self, store: Store, others: Mapping[str, Callable[[], JsonObject]]) -> None:
        """Read runs from ``store``; ``others`` are read by what is called."""
        self._store = store
        self._readers = {"runs": self._runs, **others}
        self._tails: OrderedDict[RunId, _RunTail] = OrderedDict()

    def read(self, topic: str) -> JsonObject:
        """The state of ``topic``.

        Raises:
            LlmOsError: there is no such topic or run.
        """
        if topic.startswith(RUN):
            found = self._run(RunId(topic.removeprefix(RUN)))
        elif topic in self._readers:
            found = self._readers[topic]()
        else:
            raise DataError(f"there is no topic {topic[:64]!r}")
        plain: JsonObject = without_nulls(found)
        return plain

    def _runs(self) -> JsonObject:
        store = self._store
        rows = {row.run: row for row in store.open_runs(limit=MOST_RUNS)}
        rows |= {row.run: row for row in store.runs_after(limit=MOST_RUNS, newest=True)}
        summaries = summarise_runs(store, list(rows.values()))
        return {"runs": {each.run: dataclasses.asdict(each) for each in summaries}}

    def _run(self, run: RunId) -> JsonObject:
        row = self._store.run(run)
        tail = self._tails.get(run)
        if tail is None:
            tail = self._tails[run] = _RunTail(self._store, run, row.plan)
        self._tails.move_to_end(run)
        while len(self._tails) > _KEPT_RUNS:
            self._tails.popitem(last=False)
        (summary,) = summarise_runs(self._store, [row])
        return {"summary": dataclasses.asdict(summary), **tail.read(summary.state)}


class _RunTail:
    """A run's rounds as far as they were read; only what was added since is read again."""

    def __init__(self, store: Store, run: RunId, plan: str) -> None:
        self._store = store
        self._run = run
        self._plan = read_json(RunPlan, plan, source=f"plan of {run}")
        self._place = (0, 0)
        self._last: list[TransitionRow] = []
        """Rows of the last round, out of which its view is made anew when there are more."""
        self._view: RoundView | None = None
        self._rounds: dict[str, JsonObject] = {}
        self._card = PrivacyCard(self._plan)

    def read(self, state: str) -> JsonObject:
        """Rounds, the round under way, and the privacy card."""
        while rows := self._store.transitions_after(self._run, self._place, limit=_BATCH):
            for stored in rows:
                assert isinstance(stored.what, TransitionRow)
                self._take(stored.what)
                self._place = (int(stored.what.round), stored.id)
            self._fold()
        facts: JsonObject = {
            "rounds": dict(self._rounds),
            "privacy": privacy_card(self._card, self._store, self._run),
        }
        if self._view is not None and state not in ENDINGS:
            facts["now"] = self._now(self._view)
        return facts

    def _take(self, row: TransitionRow) -> None:
        if self._last and self._last[0].round != row.round:
            self._fold()
            self._last = []
        self._last.append(row)
        self._card.take(row)

    def _fold(self) -> None:
        self._view = view_round(int(self._last[0].round), self._last)
        self._rounds[str(self._view.round)] = dataclasses.asdict(self._view)

    def _now(self, view: RoundView) -> JsonObject:
        return {
            "round": view.round,
            "state": str(view.state),
            "cohort": view.invited,
            "committed": view.committed,
            "declined": len(view.declined),
            "updates": view.reported,
            "bytes": self._store.spooled_bytes(self._run, RoundNumber(view.round)),
            "changed_at": view.changed_at,
        }
