"""What the kernel tells of processes: whose they are, what they listen on, what they show. Linux.

Whatever cannot be read, or ends meanwhile, is passed over: another user's processes show their
command lines only.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordinator.security.facts import Exposure, Listener

PROC: Final = Path("/proc")
_LISTEN: Final = "0A"
"""TCP_LISTEN in the kernel's net/tcp_states.h."""


@dataclass(frozen=True, slots=True)
class Running:
    """One process."""

    pid: int
    parent: int
    name: str
    owner: int
    arguments: tuple[bytes, ...]
    environment: bytes


def running(proc: Path = PROC) -> list[Running]:
    """All processes that can be seen."""
    found = []
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name is in parentheses and may hold any character, these included.
            name, _, rest = (
                (folder / "stat").read_text(errors="replace").partition("(")[2].rpartition(")")
            )
            environment = b""
            with contextlib.suppress(OSError):
                environment = (folder / "environ").read_bytes()
            found.append(
                Running(
                    pid=int(folder.name),
                    parent=int(rest.split()[1]),
                    name="".join(each for each in name if each.isprintable()),
                    owner=folder.stat().st_uid,
                    arguments=tuple((folder / "cmdline").read_bytes().split(b"\0")),
                    environment=environment,
                )
            )
    return found


def family(pid: int, everyone: list[Running]) -> list[Running]:
    """A process and those below it."""
    members = {pid}
    grown = True
    while grown:
        below = {each.pid for each in everyone if each.parent in members}
        grown = not below <= members
        members |= below
    return [each for each in everyone if each.pid in members]


def listeners(processes: list[Running], proc: Path = PROC) -> list[Listener]:
    """The TCP sockets that these processes listen on."""
    sockets = dict(_listening_sockets(proc))
    found = set()
    for one in processes:
        with contextlib.suppress(OSError):
            for descriptor in (proc / str(one.pid) / "fd").iterdir():
                with contextlib.suppress(OSError):
                    place = sockets.get(str(descriptor.readlink()))
                    if place is not None:
                        found.add(Listener(one.name, *place))
    return sorted(found, key=lambda each: (each.process, each.host, each.port))


def _listening_sockets(proc: Path) -> Iterator[tuple[str, tuple[str, int]]]:
    """What a descriptor of a listening socket links to, and its address and port."""
    for table in ("tcp", "tcp6"):
        lines = []
        with contextlib.suppress(OSError):
            lines = (proc / "net" / table).read_text().splitlines()[1:]
        for line in lines:
            fields = line.split()
            if len(fields) > 9 and fields[3] == _LISTEN:
                address, _, port = fields[1].partition(":")
                yield f"socket:[{fields[9]}]", (_host(address), int(port, 16))


def _host(digits: str) -> str:
    """An address as /proc/net/tcp writes it: 32-bit words, each in the machine's byte order."""
    words = [bytes.fromhex(digits[at : at + 8])[::-1] for at in range(0, len(digits), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


def exposures(token: bytes, everyone: list[Running]) -> list[Exposure]:
    """Processes that have ``token`` among their arguments or in their environment."""
    found = set()
    for one in everyone:
        if any(token in argument for argument in one.arguments):
            found.add(Exposure(one.name, "command line"))
        if token in one.environment:
            found.add(Exposure(one.name, "environment"))
    return sorted(found, key=lambda each: (each.process, each.where))


def key_holder_beside(everyone: list[Running], user: int) -> str:
    """Whether a key holder runs here: ``same-user``, ``same-machine``, or empty for no."""
    owners = {
        one.owner
        for one in everyone
        for before, after in zip(one.arguments, one.arguments[1:], strict=False)
        if (before, after) == (b"keyholder", b"run")
    }
    if user in owners:
        return "same-user"
    return "same-machine" if owners else ""
