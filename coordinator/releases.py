"""What devices answer with: the last finished run's adapter, in a model small enough for them.

A release is made once, in a process of its own: the base is imported if it was not yet, the
adapter answers the public probe set in the very graph that devices will run, and from that
follows how sure an answer must be to stay on a device. A device that answers with something
else is told, whenever it says so.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from coordinator.fleet.fleet import Fleet
from coordinator.store.store import RunRow, Store
from coordinator.submission import read_probe
from shared.actors import Workbench
from shared.config import read_json
from shared.data_files import Example
from shared.errors import LlmOsError, StorageError
from shared.job import RunPlan
from shared.models.manifest import MANIFEST, read_manifest
from shared.models.task import find_task
from shared.types import DeviceId, Digest
from shared.wire.envelope import NO_ROUND, NO_RUN
from shared.wire.messages import Answering, Release

RELEASED: Final = "released"
NOT_RELEASED: Final = "not-released"
"""Milestones of a run that is over."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Releasable:
    """What a release is made of."""

    plan: RunPlan
    adapter: Path
    examples: list[Example]


MakeRelease = Callable[[Releasable], dict[str, Any]]
"""Makes a release, slowly: ``folder``, ``manifest``, ``calibration`` (JSON) and ``accuracy``."""


@dataclass(frozen=True, slots=True)
class _Current:
    message: Release
    files: dict[str, Path]
    """Every blob that a device may fetch for it."""


class Releases:
    """The current release. Driven by the coordinator's thread."""

    def __init__(self, *, store: Store, fleet: Fleet, bench: Workbench, make: MakeRelease) -> None:
        self._store = store
        self._fleet = fleet
        self._bench = bench
        self._make = make
        self._due = True
        self._making = False
        self._current: _Current | None = None

    def run_over(self) -> None:
        """A run has ended: its adapter may be the one to release."""
        self._due = True

    def tick(self) -> None:
        """Release the last finished run's adapter, unless that was done or tried."""
        if not self._due or self._making:
            return
        self._due = False
        finished = self._last_finished()
        if finished is None:
            return
        row, plan, adapter = finished
        now = self._current.message if self._current is not None else None
        if now is not None and (now.released_from, now.adapter) == (row.run, adapter):
            return
        milestones = self._store.milestones(row.run)
        facts = milestones[RELEASED].facts if RELEASED in milestones else {}
        if facts and (Path(facts["folder"]) / MANIFEST).exists():
            self._take(plan, adapter, facts)
        elif NOT_RELEASED not in milestones:
            self._making = True
            path, store = self._store.blob(adapter), self._store
            self._bench.work(
                lambda: self._make(Releasable(plan, path, read_probe(store, row.probe))),
                lambda made: self._made(plan, adapter, made),
            )

    def heard(self, device: DeviceId, message: Answering) -> None:
        """A device said what it answers with; tell it if that is not the current release."""
        current = self._current
        if current is not None and (message.adapter, message.manifest) != (
            current.message.adapter,
            current.message.manifest,
        ):
            self._fleet.send(device, current.message, run=NO_RUN, round_=NO_ROUND)

    def file(self, digest: str) -> Path | None:
        """A part of the current release, for any device that joined."""
        return self._current.files.get(digest) if self._current is not None else None

    def _last_finished(self) -> tuple[RunRow, RunPlan, Digest] | None:
        """The run with a head that finished last, and its adapter."""
        found = []
        for row in self._store.runs():
            finished = self._store.milestones(row.run).get("finished")
            plan = read_json(RunPlan, row.plan, source=f"plan of {row.run}")
            if finished is not None and find_task(plan.job.task).has_head:
                found.append((finished.at, row, plan, Digest(finished.facts["adapter"])))
        return max(found, key=lambda entry: entry[0])[1:] if found else None

    def _made(self, plan: RunPlan, adapter: Digest, made: Future[dict[str, Any]]) -> None:
        self._making = False
        self._due = True  # another run may have finished meanwhile
        run, now = plan.run_id, self._bench.now()
        try:
            facts = made.result()
        except StorageError:
            raise  # tried again at the next tick
        except LlmOsError as err:
            log.error("release.failed", run=run, code=err.code, error=str(err))
            why = {"code": err.code, "reason": str(err)[:500]}
            self._store.add_milestone(run, NOT_RELEASED, why, now=now)
            return
        self._store.add_milestone(run, RELEASED, facts, now=now)
        self._take(plan, adapter, facts)
        log.info("release.made", run=run, adapter=adapter[:12], accuracy=facts["accuracy"])

    def _take(self, plan: RunPlan, adapter: Digest, facts: dict[str, Any]) -> None:
        """Make a release the current one, and offer it to everyone present."""
        folder = Path(facts["folder"])
        path = folder / MANIFEST
        manifest, _ = read_manifest(folder)
        blob = self._store.blob(adapter)
        message = Release(
            released_from=plan.run,
            task=plan.job.task,
            adapter=adapter,
            adapter_bytes=blob.stat().st_size,
            manifest=facts["manifest"],
            manifest_bytes=path.stat().st_size,
            calibration=facts["calibration"],
        )
        files = {entry.sha256: folder / name for name, entry in manifest.files.items()}
        files |= {str(adapter): blob, facts["manifest"]: path}
        if self._current is not None and self._current.message == message:
            return
        self._current = _Current(message, files)
        for device in self._fleet.known():
            self._fleet.send(device, message, run=NO_RUN, round_=NO_ROUND)
