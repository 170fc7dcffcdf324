"""Running totals in a process of their own, which may die and never holds a key.

W1  a peer's bytes are read here, under a memory limit, and not in the parent
W2  no operation takes a key: whatever happens in here, nothing can be opened
W3  a refused frame raises its own error in the parent and leaves the total alone
W4  when the process has died its totals are gone and every use of one is ChildDied,
    never a total that silently starts from zero: begin it again and add the files
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from shared.crypto.sum_cipher import Scheme, SumCipher, SumContext, SumLayout, Total, cipher_for
from shared.errors import ChildDied, StorageError, UndecodableMessage
from shared.processes import Child, Operation, serve
from shared.types import RoundNumber, RunId

MEMORY_LIMIT_BYTES: Final = 1 << 30
"""A total of a million values takes some 50 MB at its peak, the libraries as much again."""


class SumWorker:
    """The parent's side: totals by context, in one child process."""

    def __init__(self, *, memory_limit_bytes: int = MEMORY_LIMIT_BYTES) -> None:
        """Describe the process; it starts with the first total."""
        self._child = Child("shared.crypto.sum_worker", memory_limit_bytes=memory_limit_bytes)

    def begin(self, layout: SumLayout, scheme: Scheme, context: SumContext) -> None:
        """Start an empty total for ``context``, in place of one that may be there."""
        self._child.call(
            "begin",
            total_id=_total_id(context),
            scheme=scheme.value,
            count=layout.count,
            bits=layout.bits,
            max_devices=layout.max_devices,
            run=context.run,
            round=context.round,
            key_id=context.key_id,
            group=context.group,
        )

    def add(self, context: SumContext, path: Path) -> int:
        """Add the frame in ``path``.

        Returns:
            How many frames are in the total now.

        Raises:
            ProtocolError, SumOutOfRange: as ``Total.add``; the total is as it was.
            StorageError: the file cannot be read; the total is as it was.
            ChildDied: the process ended, or has since :meth:`begin`.
        """
        return int(self._child.call("add", total_id=_total_id(context), path=str(path)))

    def dump(self, context: SumContext) -> bytes:
        """The total's bytes. Raises as ``Total.dump``, or ChildDied."""
        return bytes(self._child.call("dump", total_id=_total_id(context)))

    def discard(self, context: SumContext) -> None:
        """Forget a total; harmless if there is none."""
        self._child.call("discard", total_id=_total_id(context))

    def close(self) -> None:
        """End the process."""
        self._child.close()

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._child.pid


def _total_id(context: SumContext) -> str:
    run = hashlib.sha256(context.run.encode()).hexdigest()
    return f"{run}/{context.round}/{context.key_id}/{context.group}"


_totals: Final[dict[str, tuple[SumCipher, Total]]] = {}


def _begin(
    *,
    total_id: str,
    scheme: str,
    count: int,
    bits: int,
    max_devices: int,
    run: str,
    round: int,
    key_id: str,
    group: int,
) -> None:
    cipher = cipher_for(Scheme(scheme), SumLayout(count=count, bits=bits, max_devices=max_devices))
    context = SumContext(RunId(run), RoundNumber(round), key_id, group)
    _totals[total_id] = (cipher, cipher.begin(context))


def _add(total_id: str, path: str) -> int:
    cipher, total = _total(total_id)
    try:
        with Path(path).open("rb") as file:
            # One byte more than is due shows a longer file without reading all of it.
            frame = file.read(cipher.frame_bytes() + 1)
    except OSError as err:
        raise StorageError(f"cannot read the update in {path}: {err.strerror}") from err
    if len(frame) != cipher.frame_bytes():
        raise UndecodableMessage(f"a frame has exactly {cipher.frame_bytes()} bytes; this one not")
    total.add(frame)
    return total.devices


def _dump(total_id: str) -> bytes:
    return _total(total_id)[1].dump()


def _discard(total_id: str) -> None:
    _totals.pop(total_id, None)


def _total(total_id: str) -> tuple[SumCipher, Total]:
    try:
        return _totals[total_id]
    except KeyError:
        raise ChildDied("this total is not here: the worker that held it has ended") from None


OPERATIONS: Final[Mapping[str, Operation]] = {
    "begin": _begin,
    "add": _add,
    "dump": _dump,
    "discard": _discard,
}


if __name__ == "__main__":
    serve(OPERATIONS)
