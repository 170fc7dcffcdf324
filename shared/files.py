"""Files that are whole or absent, and on disk before anyone is told so.

F1  after :func:`write_durably` returns, the file survives power loss
F2  a reader sees the old file or the new one, never half of either
F3  a full or read-only disk is a :class:`~shared.errors.StorageError` that
    says so, and leaves no temporary file behind
F4  a folder made with :func:`appearing_folder`, and a file written piece by piece in
    :func:`appearing_file`, is there whole or not at all
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from shared.errors import StorageError
from shared.types import Digest

_ADVICE: Final = {
    errno.ENOSPC: "the disk is full: free some space and start again, nothing was lost",
    errno.EDQUOT: "the disk quota is used up: free some space and start again, nothing was lost",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file would be larger than this system or user may write",
    errno.EIO: "the disk reports errors: look after its health before you go on",
    errno.ENOTDIR: "there is a file where a folder should be: choose another place",
    errno.EEXIST: "there is a file where a folder should be: choose another place",
    errno.EACCES: "permission denied: run as the owner of this folder or choose another",
}


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the disk's refusals into :class:`StorageError`; other errors pass."""
    try:
        yield
    except OSError as err:
        if err.errno in _ADVICE:
            raise StorageError(f"cannot write {path}: {_ADVICE[err.errno]}") from err
        raise


def write_durably(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` by ``data``, atomically and on disk (F1, F2, F3).

    Raises:
        StorageError: the disk is full, read-only or not ours.
    """
    with disk_errors(path):
        make_folder(path.parent)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def append_durably(path: Path, data: bytes) -> None:
    """Add ``data`` at the end of ``path`` and wait until it is on disk.

    Either all of ``data`` is there afterwards or, after an error, none of it.

    Raises:
        StorageError: the disk is full, read-only or not ours.
    """
    with disk_errors(path):
        make_folder(path.parent)
        created = not path.exists()
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise
        if created:
            sync_folder(path.parent)


def move_durably(source: Path, target: Path) -> None:
    """Give a finished file its final name, on disk before this returns."""
    with disk_errors(target):
        make_folder(target.parent)
        with source.open("rb+") as file:
            os.fsync(file.fileno())
        source.replace(target)
        sync_folder(target.parent)


@contextlib.contextmanager
def appearing_file(target: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Give a file its name, replacing one that has it, when all of it is on disk (F4).

    Yields:
        Where to write it.

    Raises:
        StorageError: the disk refused; ``target`` is as it was.
    """
    with disk_errors(target):
        make_folder(target.parent)
        new = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb+") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            new.replace(target)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)


@contextlib.contextmanager
def appearing_folder(target: Path) -> Iterator[Path]:
    """Give a folder its name, replacing one that has it, when all of it is on disk (F4).

    Yields:
        Where to make it, beside ``target``; nothing is there yet.

    Raises:
        StorageError: the disk refused; ``target`` is as it was.
    """
    with disk_errors(target):
        make_folder(target.parent)
        new = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            yield new
            for path in (*new.rglob("*"), new):
                sync_folder(path)
            if target.exists():
                old = new.with_suffix(".old")
                target.replace(old)
                new.replace(target)
                shutil.rmtree(old)
            else:
                new.replace(target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its parents where they are missing, to survive power loss (F1)."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename or creation in ``folder``, or what is in a file, survive power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(data: bytes) -> Digest:
    """SHA-256 of ``data`` in hexadecimal."""
    return Digest(hashlib.sha256(data).hexdigest())


def digest_of_file(path: Path) -> Digest:
    """SHA-256 of a file's content, read in blocks."""
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest())
