"""A tar whose every byte is checked: files, a manifest that names them all, and its seal.

    A1  the same files give the same bytes; one bit more, less or different is noticed
    A2  there are plain files with harmless names and nothing else: no links, no folders, no
        path that leads outside
    A3  a file that is not in the manifest, or is missing, is noticed

Any ``tar`` can list and unpack it. Nothing is taken from a header but a name and a length: a header
that is not the one that we would have written is refused.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from shared.errors import DataError
from shared.files import digest_of

MANIFEST: Final = "manifest.json"
SEAL: Final = "manifest.sha256"

_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)
_PIECE: Final = 1024 * 1024
_PART: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,98}|\.[A-Za-z0-9_-][A-Za-z0-9._-]{0,97}")


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive: what the manifest says of it."""

    name: str
    size: int
    sha256: str


class Vanished(Exception):
    """The file is not there any more, or another one."""


def is_harmless(name: str) -> bool:
    """Whether a name stays inside the folder that it is unpacked in (A2).

    >>> [is_harmless(name) for name in ("blobs/ab", "../ab", "/ab", "a//b", "a/./b", "")]
    [True, False, False, False, False, False]
    """
    return len(name) <= 250 and all(_PART.fullmatch(part) for part in name.split("/"))


class ArchiveWriter:
    """Writes an archive, file by file, and the manifest last."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.members: dict[str, Member] = {}

    def add(self, name: str, data: bytes) -> None:
        """Add a file."""
        self._file.write(_header(name, len(data)))
        self._file.write(data)
        self._pad(len(data))
        self.members[name] = Member(name, len(data), digest_of(data))

    def add_stream(self, name: str, source: BinaryIO, size: int, *, sha256: str = "") -> None:
        """Add ``size`` bytes of ``source``; nothing is added if that fails.

        Raises:
            Vanished: there are fewer bytes, or their digest is not ``sha256``.
        """
        begin = self.mark()
        self._file.write(_header(name, size))
        digest, left = hashlib.sha256(), size
        while left and (piece := source.read(min(left, _PIECE))):
            digest.update(piece)
            self._file.write(piece)
            left -= len(piece)
        if left or (sha256 and digest.hexdigest() != sha256):
            self.go_back(begin)
            raise Vanished(name)
        self._pad(size)
        self.members[name] = Member(name, size, digest.hexdigest())

    def add_file(self, name: str, path: Path, *, sha256: str = "") -> None:
        """Add a file on disk.

        Raises:
            Vanished: it is not there, or not the one with this digest.
        """
        try:
            with path.open("rb") as source:
                source.seek(0, 2)
                size = source.tell()
                source.seek(0)
                self.add_stream(name, source, size, sha256=sha256)
        except FileNotFoundError as err:
            raise Vanished(name) from err

    def mark(self) -> tuple[int, int]:
        """Where the archive ends now, for :meth:`go_back`."""
        return self._file.tell(), len(self.members)

    def go_back(self, mark: tuple[int, int]) -> None:
        """Take out what was added since."""
        end, count = mark
        self._file.seek(end)
        self._file.truncate()
        self.members = dict(list(self.members.items())[:count])

    def finish(self, manifest: bytes) -> None:
        """Add the manifest and its seal."""
        self.add(MANIFEST, manifest)
        self.add(SEAL, _seal(manifest))
        self._file.write(_END)

    def _pad(self, size: int) -> None:
        self._file.write(bytes(-size % _BLOCK))


class ArchiveReader:
    """An archive whose form was checked; what is in its files is checked with :meth:`problems`."""

    def __init__(self, file: BinaryIO) -> None:
        """Walk through the archive.

        Raises:
            DataError: it is no archive of ours, or is torn or damaged (A1, A2).
        """
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        file.seek(0, 2)
        self._length = file.tell()
        for name, at, size in self._walk():
            if name in self._places:
                raise DataError(f"{name} is in it twice")
            self._places[name] = (at, size)
        if list(self._places)[-2:] != [MANIFEST, SEAL]:
            raise DataError("its last files are not a manifest and a seal")
        if self.read(SEAL) != _seal(self.read(MANIFEST)):
            raise DataError("its manifest does not fit its seal: it is damaged")

    @property
    def names(self) -> set[str]:
        """What is in it, but for manifest and seal."""
        return self._places.keys() - {MANIFEST, SEAL}

    def read(self, name: str) -> bytes:
        """A file that is small."""
        return b"".join(self.pieces(name))

    def pieces(self, name: str) -> Iterator[bytes]:
        """A file, piece by piece."""
        at, size = self._places[name]
        while size:
            self._file.seek(at)
            piece = self._file.read(min(size, _PIECE))
            if not piece:
                raise DataError(f"{name} became shorter while it was read")
            yield piece
            at, size = at + len(piece), size - len(piece)

    def problems(self, listed: list[Member]) -> Iterator[str]:
        """Where the files are not what the manifest says (A1, A3)."""
        if len({member.name for member in listed}) != len(listed):
            yield "its manifest names a file twice"
        yield from (
            f"{name} is not in its manifest"
            for name in sorted(self.names - {member.name for member in listed})
        )
        for member in listed:
            if member.name not in self.names:
                yield f"{member.name} is missing"
            elif self._places[member.name][1] != member.size:
                yield f"{member.name} has another length"
            else:
                digest = hashlib.sha256()
                for piece in self.pieces(member.name):
                    digest.update(piece)
                if digest.hexdigest() != member.sha256:
                    yield f"{member.name} is damaged"

    def _walk(self) -> Iterator[tuple[str, int, int]]:
        """Name, position and length of every file; every byte between them is as we write it."""
        at = 0
        while (header := self._bytes(at, _BLOCK)) != _END[:_BLOCK]:
            try:
                info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
                expected = _header(info.name, info.size)
            except (tarfile.HeaderError, ValueError, DataError) as err:
                raise DataError(f"it is no backup, or damaged at byte {at}: {err}") from None
            if header != expected:
                raise DataError(f"the file at byte {at} is not a plain one as a backup has them")
            begin = at + _BLOCK
            at = begin + info.size
            if any(self._bytes(at, -info.size % _BLOCK)):
                raise DataError(f"it is damaged at byte {at}")
            at += -info.size % _BLOCK
            yield info.name, begin, info.size
        if self._bytes(at, len(_END)) != _END or at + len(_END) != self._length:
            raise DataError(f"it does not end at byte {at}, as it should")

    def _bytes(self, at: int, count: int) -> bytes:
        self._file.seek(at)
        data = self._file.read(count)
        if len(data) != count:
            raise DataError(f"it is torn: it ends at byte {self._length}")
        return data


def _header(name: str, size: int) -> bytes:
    if not is_harmless(name):
        raise DataError(f"{name[:80]!r} is no name of a file in a backup")
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _seal(manifest: bytes) -> bytes:
    """As ``sha256sum`` writes and checks it."""
    return f"{digest_of(manifest)}  {MANIFEST}\n".encode()
