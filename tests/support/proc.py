"""What the kernel says about processes: who started whom, and what is in their memory. Linux."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_BLOCK: Final = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Process:
    """One process; the start time tells it from a later one with the same number."""

    pid: int
    started: str
    command: str

    @property
    def alive(self) -> bool:
        """Whether it still runs; one that ended and waits for its parent does not."""
        stat = _stat(self.pid)
        return stat is not None and stat[0] not in "ZX" and stat[19] == self.started


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on: [0] state, [1] parent, [19] start time."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def descendants(pid: int) -> list[Process]:
    """Children of a process, and theirs."""
    children: dict[int, list[Process]] = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or (stat := _stat(int(entry.name))) is None:
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        children.setdefault(int(stat[1]), []).append(Process(int(entry.name), stat[19], command))
    found, parents = [], [pid]
    while parents:
        below = children.get(parents.pop(), [])
        found += below
        parents += [child.pid for child in below]
    return found


def child_running(pid: int, name: str) -> Process | None:
    """The descendant whose command line names ``name``, if there is one."""
    return next((child for child in descendants(pid) if name in child.command), None)


def freeze(pid: int) -> None:
    """Let a process stand still, as one does that gets no time."""
    os.kill(pid, signal.SIGSTOP)


def thaw(pid: int) -> None:
    """Let it go on."""
    os.kill(pid, signal.SIGCONT)


def memory_of(pid: int) -> Iterator[bytes]:
    """All memory that a process may read, in overlapping blocks."""
    with (_PROC / str(pid) / "mem").open("rb", buffering=0) as memory:
        for line in (_PROC / str(pid) / "maps").read_text().splitlines():
            span, rights, *_ = line.split()
            if not rights.startswith("r") or line.endswith(
                ("[vvar]", "[vsyscall]", "[vvar_vclock]")
            ):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            for position in range(start, end, _BLOCK):
                try:
                    memory.seek(position)
                    # A few bytes more, so that nothing is missed on the border of two blocks.
                    yield memory.read(min(_BLOCK + 256, end - position))
                except OSError:
                    break  # unmapped meanwhile, or a device


def holds_any(pid: int, needles: Sequence[bytes]) -> bool:
    """Whether any of ``needles`` (at most 256 bytes each) is in a process's memory."""
    return any(needle in block for block in memory_of(pid) for needle in needles)


def resident_bytes(pid: int) -> int:
    """How much memory a process has in use."""
    for line in (_PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has no memory any more")
