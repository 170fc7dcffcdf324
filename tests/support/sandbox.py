"""What a systemd unit forbids to its process, imposed without systemd.

``python sandbox.py UNIT[:DROP-IN] PROGRAM…`` reads the system-call filter, address families and
MemoryDenyWriteExecute, has the kernel enforce them through libseccomp, as systemd does, and
becomes the program. Folders, users and namespaces are systemd's alone and are not imitated.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

_ALLOW: Final = 0x7FFF0000
_EQUAL: Final = 4
_MASKED_EQUAL: Final = 7
_NO_NEW_PRIVILEGES: Final = 38
_WRITE_AND_EXECUTE: Final = 0b110
_EXECUTE: Final = 0b100
_SHM_EXEC: Final = 0o100000
_FAMILIES: Final = 46
"""Address families that Linux knows."""


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def _errno(number: int) -> int:
    return 0x00050000 | number


def settings_of(unit: str) -> dict[str, list[str]]:
    """Every setting of a unit, with its values in order."""
    found: dict[str, list[str]] = {}
    for line in unit.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";")):
            found.setdefault(name, []).append(value)
    return found


def _members(name: str) -> Iterator[str]:
    if not name.startswith("@"):
        yield name
        return
    listing = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", name],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for line in listing.splitlines()[1:]:
        word = line.strip()
        if word and not word.startswith("#"):
            yield from _members(word)


def allowed_calls(filters: Sequence[str]) -> set[str]:
    """System calls that an allow-list, line by line, leaves."""
    allowed = set(_members("@default"))
    for line in filters:
        named = {call for word in line.removeprefix("~").split() for call in _members(word)}
        allowed = allowed - named if line.startswith("~") else allowed | named
    return allowed


class _Filter:
    def __init__(self, library: Any, otherwise: int) -> None:
        self._library = library
        library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(library.seccomp_init(otherwise))

    def rule(self, call: str, action: int, *comparisons: tuple[int, int, int, int]) -> None:
        number = self._library.seccomp_syscall_resolve_name(call.encode())
        if number < 0:
            return  # a system call of another processor
        array = (_Comparison * len(comparisons))(*(_Comparison(*each) for each in comparisons))
        self._require(
            self._library.seccomp_rule_add_array(
                self._context, action, number, len(comparisons), array
            )
        )

    def load(self) -> None:
        self._require(self._library.seccomp_load(self._context))

    def _require(self, code: int) -> None:
        if code != 0:
            raise OSError(-code, os.strerror(-code))


def confine(unit: str) -> None:
    """Take from this process what the unit takes from its own."""
    settings = settings_of(unit)
    calls = allowed_calls(settings["SystemCallFilter"])
    library = ctypes.CDLL("libseccomp.so.2")
    ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    finer = _Filter(library, _ALLOW)
    if settings["MemoryDenyWriteExecute"][-1] == "yes":
        both, execute = _WRITE_AND_EXECUTE, _EXECUTE
        finer.rule("mmap", _errno(errno.EPERM), (2, _MASKED_EQUAL, both, both))
        finer.rule("mprotect", _errno(errno.EPERM), (2, _MASKED_EQUAL, execute, execute))
        finer.rule("pkey_mprotect", _errno(errno.EPERM), (2, _MASKED_EQUAL, execute, execute))
        finer.rule("shmat", _errno(errno.EPERM), (2, _MASKED_EQUAL, _SHM_EXEC, _SHM_EXEC))
    named = " ".join(settings["RestrictAddressFamilies"]).split()
    for family in set(range(_FAMILIES)) - {int(getattr(socket, each)) for each in named}:
        finer.rule("socket", _errno(errno.EAFNOSUPPORT), (0, _EQUAL, family, 0))
    coarse = _Filter(library, _errno(errno.EPERM))
    for call in calls | {"seccomp", "prctl"}:
        coarse.rule(call, _ALLOW)
    finer.load()
    coarse.load()


if __name__ == "__main__":
    files = [Path(each) for each in sys.argv[1].split(":")]
    confine("".join(file.read_text(encoding="utf-8") for file in files))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606
