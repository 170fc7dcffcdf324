"""What was served to whom, day by day, kept across restarts.

    U1  what was counted is in the file of its day some seconds later, and at once when this is closed
    U2  to count never waits for the disk
    U3  what could not be written is written later

A day is one of UTC. Its file, ``usage/YYYY-MM-DD.json`` in the coordinator's home, holds one line
for each key and model. It is replaced as a whole, so a crash loses what was counted since, and
nothing else.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

import structlog

from coordinator.inference.front_desk import Meter, Served
from shared.errors import StorageError
from shared.files import disk_errors, write_durably

log = structlog.get_logger()

WRITE_S: Final = 5.0
"""Longest that something counted is not on disk, if the disk takes it."""
FOLDER: Final = "usage"
"""In the coordinator's home."""
DEVICES: Final = "device"
"""All devices together."""


@dataclass(frozen=True, slots=True)
class Use:
    """How much was served.

    Attributes:
        requests: That are over, however they ended.
        prompt_tokens: Of whole answers.
        cached_tokens: Of the prompts', those that were not computed.
        completion_tokens: Of whole answers.
    """

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Use) -> Use:
        """Both together."""
        return Use(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True)
class Account:
    """What uses are added up by."""

    day: date
    key: str
    model: str


class UsageBook:
    """Counts as a :class:`~coordinator.inference.front_desk.Meter`. Safe on any thread."""

    def __init__(self, home: Path, *, now: Callable[[], float], write_s: float = WRITE_S) -> None:
        """Keep it in ``home``; ``now`` gives seconds since the epoch."""
        self._folder = home / FOLDER
        self._now = now
        self._write_s = write_s
        self._lock = threading.Lock()
        self._disk = threading.Lock()
        """Held while files are read or written; taken before ``_lock``."""
        self._pending: dict[Account, Use] = {}
        self._over = threading.Event()
        self._writer: threading.Thread | None = None

    def served(self, what: Served) -> None:
        """A request is over, however it ended (U2)."""
        day = datetime.fromtimestamp(self._now(), UTC).date()
        account = Account(day, account_of(what.caller), what.model)
        end = what.finished
        use = Use(1)
        if end is not None:
            use = Use(1, end.prompt_tokens, end.cached_tokens, end.completion_tokens)
        with self._lock:
            self._pending[account] = self._pending.get(account, Use()) + use
            if self._writer is None and not self._over.is_set():
                self._writer = threading.Thread(target=self._write_on, daemon=True, name="usage")
                self._writer.start()

    def looked_up(self, model: str, *, hit: bool) -> None:
        """An answer was looked for in the cache; one from it is served like others."""

    def used(self, since: date, until: date) -> dict[Account, Use]:
        """Everything that was served on these days and between.

        Raises:
            StorageError: a file cannot be read.
        """
        with self._disk:
            found: dict[Account, Use] = {}
            for day in self._days():
                if since <= day <= until:
                    found |= self._read(day)
            with self._lock:
                pending = dict(self._pending)
        for account, use in pending.items():
            if since <= account.day <= until:
                found[account] = found.get(account, Use()) + use
        return found

    def write(self) -> None:
        """Write what was counted.

        Raises:
            StorageError: the disk does not take it, or holds something else; it is kept for later.
        """
        with self._disk:
            with self._lock:
                waiting, self._pending = self._pending, {}
            try:
                for day in sorted({account.day for account in waiting}):
                    new = {each: use for each, use in waiting.items() if each.day == day}
                    self._write_day(day, new)
                    waiting = {each: use for each, use in waiting.items() if each.day != day}
            finally:
                with self._lock:
                    for account, use in waiting.items():
                        self._pending[account] = self._pending.get(account, Use()) + use

    def close(self) -> None:
        """Write the rest (U1)."""
        self._over.set()
        if self._writer is not None:
            self._writer.join()
        self._write_or_log()

    def _write_on(self) -> None:
        while not self._over.wait(self._write_s):
            self._write_or_log()

    def _write_or_log(self) -> None:
        try:
            self.write()
        except StorageError as err:
            log.error("usage.not_written", code=err.code, error=str(err))

    def _write_day(self, day: date, new: dict[Account, Use]) -> None:
        whole = self._read(day)
        for account, use in new.items():
            whole[account] = whole.get(account, Use()) + use
        lines = [
            json.dumps({"key": account.key, "model": account.model, **asdict(use)})
            for account, use in sorted(whole.items(), key=lambda each: (each[0].key, each[0].model))
        ]
        write_durably(self._file(day), ("[\n" + ",\n".join(lines) + "\n]\n").encode(), mode=0o600)

    def _read(self, day: date) -> dict[Account, Use]:
        path = self._file(day)
        with disk_errors(path):
            if not path.exists():
                return {}
            data = path.read_bytes()
        try:
            return {
                Account(day, row.pop("key"), row.pop("model")): Use(**row)
                for row in json.loads(data)
            }
        except (ValueError, TypeError, KeyError, AttributeError) as err:
            raise StorageError(f"{path} holds no usage of a day: move it away") from err

    def _file(self, day: date) -> Path:
        return self._folder / f"{day.isoformat()}.json"

    def _days(self) -> Iterator[date]:
        for path in sorted(self._folder.glob("[0-9]*.json")):
            with contextlib.suppress(ValueError):
                yield date.fromisoformat(path.stem)


class Meters:
    """Several meters as one."""

    def __init__(self, *meters: Meter) -> None:
        self._meters = meters

    def served(self, what: Served) -> None:
        """Tell all."""
        for meter in self._meters:
            meter.served(what)

    def looked_up(self, model: str, *, hit: bool) -> None:
        """Tell all."""
        for meter in self._meters:
            meter.looked_up(model, hit=hit)


def account_of(caller: str) -> str:
    """On whose account a caller's requests are: its key's, or all devices' together."""
    return DEVICES if caller.startswith(f"{DEVICES}:") else caller
