"""Blobs travel in chunks, and the receiver sets the pace.

    B1  a blob has its final name only after its SHA-256 was checked and it is on disk
    B2  memory stays at one chunk, however large the blob
    B3  an interrupted transfer goes on from what is already there, also after a restart
    B4  at most ``WINDOW_BYTES`` are under way per blob, so no broker queue overflows

The receiver asks for a window, writes chunks in order behind each other, and
asks again when the window is complete or nothing came for ``STALL_S``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shared.errors import DigestMismatch, LlmOsError, UndecodableMessage
from shared.files import digest_of_file, disk_errors, move_durably
from shared.types import Digest
from shared.wire.messages import BlobChunk, BlobRequest

CHUNK_BYTES: Final = 256 * 1024
WINDOW_BYTES: Final = 8 * CHUNK_BYTES
STALL_S: Final = 2.0

Finished = Callable[[Path], None]
Failed = Callable[[LlmOsError], None]


def serve_blob(request: BlobRequest, path: Path) -> Iterator[BlobChunk]:
    """The chunks that answer ``request`` from the file ``path``."""
    with path.open("rb") as file:
        file.seek(request.offset)
        offset, left = request.offset, min(request.length, WINDOW_BYTES)
        while left > 0 and (data := file.read(min(CHUNK_BYTES, left))):
            yield BlobChunk(request.digest, offset, data)
            offset += len(data)
            left -= len(data)


@dataclass(slots=True)
class _Download:
    digest: Digest
    size: int
    target: Path
    peer: str
    finished: list[Finished]
    failed: list[Failed]
    received: int = 0
    requested: int = 0
    asked_at: float = field(default=float("-inf"))

    @property
    def partial(self) -> Path:
        return self.target.with_name(self.target.name + ".part")


class Downloads:
    """Blobs on their way to this process. Driven by one thread."""

    def __init__(self, send: Callable[[str, BlobRequest], None]) -> None:
        """``send(peer, request)`` asks a peer for a window."""
        self._send = send
        self._by_digest: dict[str, _Download] = {}

    def fetch(
        self,
        digest: Digest,
        size: int,
        target: Path,
        *,
        peer: str,
        now: float,
        finished: Finished,
        failed: Failed,
    ) -> None:
        """Bring a blob to ``target``, then call ``finished(target)``, at once if it is there.

        ``failed`` is called with a DigestMismatch when the bytes that came are
        not the blob; the partial file is then removed.
        """
        if target.exists():
            finished(target)
            return
        under_way = self._by_digest.get(digest)
        if under_way is not None:
            under_way.finished.append(finished)
            under_way.failed.append(failed)
            return
        download = _Download(digest, size, target, peer, [finished], [failed])
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if download.partial.exists():
                download.received = min(download.partial.stat().st_size, size)
            with download.partial.open("ab") as file:
                file.truncate(download.received)
        self._by_digest[digest] = download
        self._go_on(download, now)

    def receive(self, peer: str, chunk: BlobChunk, now: float) -> bool:
        """Take a chunk; returns whether it brought a download forward.

        Raises:
            UndecodableMessage: the chunk is larger than any chunk, or reaches
                behind the announced size.
            StorageError: the disk refused; the download stays where it was.
        """
        download = self._by_digest.get(chunk.digest)
        if download is None or download.peer != peer or chunk.offset != download.received:
            return False  # an answer to a question asked twice
        if len(chunk.data) > CHUNK_BYTES or chunk.offset + len(chunk.data) > download.size:
            raise UndecodableMessage("the chunk does not fit the announced blob")
        with disk_errors(download.target), download.partial.open("r+b") as file:
            file.seek(chunk.offset)
            file.write(chunk.data)
        download.received += len(chunk.data)
        download.asked_at = now
        if download.received >= min(download.requested, download.size):
            self._go_on(download, now)
        return True

    def tick(self, now: float) -> None:
        """Ask again for whatever has stalled."""
        for download in list(self._by_digest.values()):
            if now - download.asked_at >= STALL_S:
                self._go_on(download, now)

    def cancel(self, digest: str) -> None:
        """Forget a download and its partial file."""
        download = self._by_digest.pop(digest, None)
        if download is not None:
            download.partial.unlink(missing_ok=True)

    @property
    def under_way(self) -> int:
        """How many blobs are on their way."""
        return len(self._by_digest)

    def _go_on(self, download: _Download, now: float) -> None:
        if download.received < download.size:
            download.requested = min(download.received + WINDOW_BYTES, download.size)
            download.asked_at = now
            length = download.requested - download.received
            self._send(download.peer, BlobRequest(download.digest, download.received, length))
            return
        del self._by_digest[download.digest]
        if digest_of_file(download.partial) != download.digest:
            download.partial.unlink()
            error = DigestMismatch(f"the blob {download.digest[:12]}… arrived damaged")
            for failed in download.failed:
                failed(error)
            return
        move_durably(download.partial, download.target)
        for finished in download.finished:
            finished(download.target)
