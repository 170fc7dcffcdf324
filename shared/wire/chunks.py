"""Blobs travel in chunks, and the receiver sets the pace.

    B1  a blob has its final name only after its SHA-256 was checked and it is on disk
    B2  memory stays at one chunk, however large the blob
    B3  an interrupted transfer goes on from what is already there, also after a restart
    B4  at most ``WINDOW_BYTES`` are under way per blob, so no broker queue overflows

The receiver asks for a window, writes chunks in order behind each other, and
asks again when the window is complete or nothing came for ``STALL_S``.
"""

from __future__ import annotations

import os
import re
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


def is_digest(text: str) -> bool:
    """Whether ``text`` is a SHA-256 in hexadecimal, and so safe to be part of a path.

    >>> is_digest("0" * 64), is_digest("../identity.key")
    (True, False)
    """
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def serve_blob(request: BlobRequest, path: Path) -> Iterator[BlobChunk]:
    """The chunks that answer ``request`` from the file ``path``."""
    with path.open("rb") as file:
        # An offset far beyond the end is an error of the system's, and it is the peer's number.
        file.seek(min(request.offset, os.fstat(file.fileno()).st_size))
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
    resumed: bool = False
    """Its beginning is of an earlier process, which may have lost power while writing."""
    asked_at: float = field(default=float("-inf"))

    @property
    def partial(self) -> Path:
        return self.target.with_name(self.target.name + ".part")


class Downloads:
    """Blobs on their way to this process. Driven by one thread."""

    def __init__(self, send: Callable[[str, BlobRequest], None]) -> None:
        """``send(peer, request)`` asks a peer for a window."""
        self._send = send
        # Of one digest from two peers each brings its own: neither is told of the other's file.
        self._under_way: dict[tuple[str, str], _Download] = {}

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

        Raises:
            UndecodableMessage: ``digest`` is none; a peer chose it, and ``target``
                is made of it.
            StorageError: the disk refused.
        """
        if not is_digest(digest):
            raise UndecodableMessage("a blob is named by its SHA-256")
        if target.exists():
            finished(target)
            return
        under_way = self._under_way.get((peer, digest))
        if under_way is not None:
            under_way.finished.append(finished)
            under_way.failed.append(failed)
            return
        download = _Download(digest, size, target, peer, [finished], [failed])
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if download.partial.exists():
                download.received = min(download.partial.stat().st_size, size)
                download.resumed = download.received > 0
            with download.partial.open("ab") as file:
                file.truncate(download.received)
        self._under_way[peer, digest] = download
        self._go_on(download, now)

    def receive(self, peer: str, chunk: BlobChunk, now: float) -> bool:
        """Take a chunk; returns whether it brought a download forward.

        Raises:
            UndecodableMessage: the chunk is empty, larger than any chunk, or
                reaches behind the announced size.
            StorageError: the disk refused; the download stays where it was.
        """
        download = self._under_way.get((peer, chunk.digest))
        if download is None or chunk.offset != download.received:
            return False  # an answer to a question asked twice
        if not 0 < len(chunk.data) <= CHUNK_BYTES or (
            chunk.offset + len(chunk.data) > download.size
        ):
            raise UndecodableMessage("the chunk does not fit the announced blob")
        if self._is_dropped(download):
            return False
        with disk_errors(download.target), download.partial.open("r+b") as file:
            file.seek(chunk.offset)
            file.write(chunk.data)
        download.received += len(chunk.data)
        download.asked_at = now
        if download.received >= min(download.requested, download.size):
            self._go_on(download, now)
        return True

    def tick(self, now: float) -> None:
        """Ask again for whatever has stalled. Raises StorageError as :meth:`receive`."""
        for download in list(self._under_way.values()):
            if now - download.asked_at >= STALL_S and not self._is_dropped(download):
                self._go_on(download, now)

    def forget(self, peer: str, digest: str) -> None:
        """End a download that nobody wants any more; harmless if there is none."""
        download = self._under_way.pop((peer, digest), None)
        if download is not None:
            download.partial.unlink(missing_ok=True)

    @property
    def under_way(self) -> int:
        """How many blobs are on their way."""
        return len(self._under_way)

    def _is_dropped(self, download: _Download) -> bool:
        """Forget a download whose partial file was removed: nobody wants it any more."""
        if download.partial.exists():
            return False
        del self._under_way[download.peer, download.digest]
        return True

    def _go_on(self, download: _Download, now: float) -> None:
        download.asked_at = now
        if download.received == download.size:
            if digest_of_file(download.partial) == download.digest:
                self._finish(download)
                return
            if not download.resumed:
                self._give_up(download)
                return
            download.received, download.resumed = 0, False
        download.requested = min(download.received + WINDOW_BYTES, download.size)
        length = download.requested - download.received
        self._send(download.peer, BlobRequest(download.digest, download.received, length))

    def _finish(self, download: _Download) -> None:
        # First of all: while the disk refuses, the download stays and is tried again.
        move_durably(download.partial, download.target)
        del self._under_way[download.peer, download.digest]
        for finished in download.finished:
            finished(download.target)

    def _give_up(self, download: _Download) -> None:
        del self._under_way[download.peer, download.digest]
        download.partial.unlink()
        error = DigestMismatch(f"the blob {download.digest[:12]}… arrived damaged")
        for failed in download.failed:
            failed(error)
