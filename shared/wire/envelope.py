"""Every message travels in a signed envelope with a sequence number.

    E1  nothing of a body is looked at before its signature has been checked
    E2  the signature covers the sender, its sequence number, run, round, kind
        and the SHA-256 of the body, under a domain of its own
    E3  a sequence number that is not newer than the last one accepted from the
        same sender is a replay, also after a restart of either side

Sequence numbers increase strictly: everything in the protocol is repeated until
answered, so a message that overtakes another only costs a repetition.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shared.crypto.identity import Identity, verify
from shared.errors import MalformedMessage, ReplayedMessage, StorageError, UndecodableMessage
from shared.files import write_durably
from shared.types import PublicKey, RoundNumber, RunId
from shared.wire import codec
from shared.wire.messages import KINDS, Message, from_body, to_body

_DOMAIN: Final = b"llmos/v1/envelope\x00"
_VERSION: Final = 1
_BLOCK: Final = 4096
_TYPES: Final = (int, str, bytes, int, str, int, bytes, bytes)
_HEAD: Final = bytes([0x80 + len(_TYPES)])
"""How a list of so many begins in CBOR."""

NO_RUN: Final = RunId("")
NO_ROUND: Final = RoundNumber(0)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message with its sender, as it was signed. ``raw`` is the signed bytes."""

    sender: PublicKey
    sequence: int
    run: RunId
    round: RoundNumber
    message: Message
    raw: bytes


class SequenceSource:
    """Strictly increasing numbers that never repeat, whatever happens to the process.

    Numbers are reserved on disk in blocks; a restart skips the rest of a block.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = 1
        if path.exists():
            try:
                self._next = int(path.read_text(encoding="ascii"))
            except ValueError as err:
                raise StorageError(
                    f"{path} is damaged; restore it from a backup, or remove it and join again "
                    "with a new identity (peers refuse numbers that go back)"
                ) from err
        self._reserved = self._next

    def next(self) -> int:
        """The next number; on disk before it is used."""
        if self._next >= self._reserved:
            reserved = self._next + _BLOCK
            write_durably(self._path, str(reserved).encode())
            self._reserved = reserved
        number = self._next
        self._next += 1
        return number


class ReplayGuard:
    """The last sequence number accepted from each sender, kept across restarts.

    :meth:`accept` works in memory; :meth:`save` makes what was accepted durable
    and belongs before any answer that a replay must not earn twice. A crash
    between the two lets old *idempotent* messages in once more, never an update:
    those are counted by (run, round, device).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: dict[str, int] = {}
        self._dirty = False
        if path.exists():
            try:
                self._last = {str(k): int(v) for k, v in json.loads(path.read_text()).items()}
            except (ValueError, AttributeError, TypeError) as err:
                raise StorageError(f"{path} is damaged; restore it from a backup") from err

    def accept(self, sender: PublicKey, sequence: int) -> None:
        """Remember ``sequence``.

        Raises:
            ReplayedMessage: it is not newer than the last one of this sender (E3).
        """
        last = self._last.get(sender.hex(), 0)
        if sequence <= last:
            raise ReplayedMessage(f"sequence {sequence} after {last}")
        self._last[sender.hex()] = sequence
        self._dirty = True

    def save(self) -> None:
        """Write what was accepted to disk, if anything was."""
        if self._dirty:
            write_durably(self._path, json.dumps(self._last).encode())
            self._dirty = False


class Post:
    """Seals outgoing and opens incoming messages of one process."""

    def __init__(self, identity: Identity, folder: Path) -> None:
        """``folder`` keeps the sequence numbers; one process uses it at a time."""
        self._identity = identity
        self._sequence = SequenceSource(folder / "sequence")
        self.guard = ReplayGuard(folder / "replay-guard.json")

    @property
    def public(self) -> PublicKey:
        """The key others know this process by."""
        return self._identity.public

    def seal(
        self, message: Message, *, run: RunId = NO_RUN, round_: RoundNumber = NO_ROUND
    ) -> bytes:
        """Sign a message under a fresh sequence number."""
        return seal(self._identity, self._sequence.next(), message, run=run, round_=round_)

    def open(self, raw: bytes, *, expected: PublicKey) -> Envelope:
        """Open a fresh message of a known sender.

        Raises:
            UndecodableMessage: not an envelope, not from ``expected``, or of an unknown kind.
            BadSignature: the signature does not fit.
            ReplayedMessage: the sequence number is not new (E3).
            MalformedMessage: it is fresh and from ``expected``, and its body is not what it
                should be: nobody else can have made that.
        """
        signed = _verified(raw, expected)
        self.guard.accept(signed.sender, signed.sequence)
        return signed.envelope(raw)


def seal(
    identity: Identity, sequence: int, message: Message, *, run: RunId, round_: RoundNumber
) -> bytes:
    """Sign ``message`` into an envelope (E2)."""
    body = to_body(message)
    head = [_VERSION, message.kind, bytes(identity.public), sequence, run, round_]
    signature = identity.sign(_signed(head, body))
    return codec.encode([*head, body, signature])


def open_sealed(raw: bytes, *, expected: PublicKey) -> Envelope:
    """Check an envelope's signature and read it, without looking at its sequence number.

    For records that are kept and shown again, such as contributions; whoever
    uses it must count them in a way that a replay cannot change.

    Raises:
        UndecodableMessage: not an envelope, not from ``expected``, or of an unknown kind.
        BadSignature: the signature does not fit.
        MalformedMessage: it does, and the body is not what it should be.
    """
    return _verified(raw, expected).envelope(raw)


@dataclass(frozen=True, slots=True)
class _Signed:
    """An envelope whose signature fits, before anything of its body is looked at (E1)."""

    kind: str
    sender: PublicKey
    sequence: int
    run: RunId
    round: RoundNumber
    body: bytes

    def envelope(self, raw: bytes) -> Envelope:
        if self.kind not in KINDS:  # of a newer program, perhaps: that is no fault of the sender
            raise UndecodableMessage(f"unknown kind of message {self.kind[:40]!r}")
        try:
            message = from_body(self.kind, self.body)
        except UndecodableMessage as err:
            raise MalformedMessage(str(err)) from err
        return Envelope(self.sender, self.sequence, self.run, self.round, message, raw)


def _verified(raw: bytes, expected: PublicKey) -> _Signed:
    version, kind, sender, sequence, run, round_, body, signature = _parts(raw)
    if version != _VERSION:
        raise UndecodableMessage(f"version {version} of the wire format, this is {_VERSION}")
    if sender != expected:
        raise UndecodableMessage("the sender is not who this message should come from")
    verify(
        PublicKey(sender), signature, _signed([version, kind, sender, sequence, run, round_], body)
    )
    return _Signed(kind, PublicKey(sender), sequence, RunId(run), RoundNumber(round_), body)


def claimed_sender(raw: bytes) -> PublicKey:
    """Who an envelope *says* it is from; to look the key up, never to trust it.

    Raises:
        UndecodableMessage: not an envelope.
    """
    return PublicKey(_parts(raw)[2])


def _parts(raw: bytes) -> list[Any]:
    # Anybody may send this far: of what is no flat list of eight nothing is built, since a list
    # of as many empty lists as fit into a message takes a hundred times its room.
    if raw[:1] != _HEAD:
        raise UndecodableMessage("not an envelope")
    parts = codec.decode(raw, depth=2)
    if not isinstance(parts, list) or [type(part) for part in parts] != list(_TYPES):
        raise UndecodableMessage("not an envelope")
    return parts


def _signed(head: list[Any], body: bytes) -> bytes:
    return _DOMAIN + codec.encode([*head, hashlib.sha256(body).digest()])
