"""Encrypted updates wait here until the coordinator has them on its disk.

O1  an update is on disk before it is announced, and deleted only on a receipt
    for its digest, or on a refusal that no repetition can cure
O2  what is sent again is the same bytes: the update in the outbox is the release
O3  its digest is told before any byte of it leaves, and no byte leaves before the
    key holder has fixed the set of digests (the agent asks for that)
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from shared.errors import StorageError
from shared.files import digest_of, write_durably
from shared.types import Digest, RoundNumber, RunId


@dataclass(frozen=True, slots=True)
class Waiting:
    """An update without a receipt.

    Attributes:
        draw: What the key holder showed of the groups' seed; empty in clear.
    """

    run: RunId
    round: RoundNumber
    digest: Digest
    size: int
    scheme: str
    key_id: str
    draw: str


class Outbox:
    """A folder with two files per waiting update: the frame, then what it is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(
        self,
        run: RunId,
        round_: RoundNumber,
        frame: bytes,
        *,
        scheme: str,
        key_id: str,
        draw: str,
    ) -> Waiting:
        """Keep an update (O1). On disk when this returns.

        Raises:
            StorageError: the disk refused; nothing is left of the attempt.
        """
        waiting = Waiting(run, round_, digest_of(frame), len(frame), scheme, key_id, draw)
        path = self._frame(waiting)
        write_durably(path, frame, mode=0o600)
        try:
            # Written last: without it the frame is not in the outbox.
            write_durably(path.with_suffix(".json"), json.dumps(asdict(waiting)).encode())
        except StorageError:
            path.unlink(missing_ok=True)
            raise
        return waiting

    def waiting(self) -> list[Waiting]:
        """Every update without a receipt, oldest round first."""
        if not self._folder.exists():
            return []
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                found.append(Waiting(**json.loads(path.read_text())))
            except (ValueError, TypeError) as err:
                raise StorageError(
                    f"{path} is damaged; the update beside it cannot be sent"
                ) from err
        return sorted(found, key=lambda waiting: (waiting.run, waiting.round))

    def find(self, run: RunId, round_: RoundNumber) -> Waiting | None:
        """The waiting update of a round, if there is one."""
        for waiting in self.waiting():
            if (waiting.run, waiting.round) == (run, round_):
                return waiting
        return None

    def frame(self, digest: str) -> Path | None:
        """The file with this digest, if it waits here."""
        for waiting in self.waiting():
            if waiting.digest == digest:
                return self._frame(waiting)
        return None

    def drop(self, waiting: Waiting) -> None:
        """Forget an update that has its receipt or will never be counted."""
        path = self._frame(waiting)
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def _frame(self, waiting: Waiting) -> Path:
        return self._folder / f"{waiting.run}.{waiting.round:05d}.frame"
