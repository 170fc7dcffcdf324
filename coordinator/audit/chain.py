"""One record of the audit log, how it is chained to the one before, and how a chain is signed.

    H1  a record has exactly one spelling, and its hash covers all of it and the hash before it
    H2  a checkpoint is a record whose whole content follows from what it signs
    H3  numbers, texts and their sizes have bounds; nothing else is read as a record

What is hashed is CBOR, so that the same record has the same hash in any language; what is on
disk is JSON, so that it can be read. Numbers are whole, because languages differ in how they
read the others. docs/audit.md describes the format and has a program that checks it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from shared.crypto.identity import Identity, fingerprint, format_public, parse_public, verify
from shared.errors import AuditDamaged, BadSignature, ConfigError
from shared.types import PublicKey
from shared.wire import codec

GENESIS: Final = "0" * 64
"""What the first record is chained to."""

MAX_LINE_BYTES: Final = 8 * 1024
MAX_ACTOR: Final = 80
MAX_TEXT: Final = 128
"""Characters of a subject or of a fact."""

MAX_FACTS: Final = 12
MAX_NUMBER: Final = 2**53 - 1
"""Whole numbers up to here are the same in every language that reads JSON."""

_RECORD: Final = b"llmos audit record v1\n"
_SIGNED: Final = b"llmos audit checkpoint v1\n"
_LINE: Final = "llmos-audit-checkpoint"
_SPELT: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_FIELDS: Final = frozenset(
    {"number", "at", "actor", "action", "subject", "facts", "previous", "hash"}
)
_FACT_NAME: Final = re.compile(r"[a-z][a-z_]{0,31}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")

Fact = str | int | bool
Facts = Mapping[str, Fact]


class Action(StrEnum):
    """Everything that is written down. A name is never used again for something else."""

    COORDINATOR_STARTED = "coordinator-started"
    COORDINATOR_STOPPED = "coordinator-stopped"
    TOKEN_MADE = "token-made"  # noqa: S105  the name of an action
    DEVICE_JOINED = "device-joined"
    DEVICE_QUARANTINED = "device-quarantined"
    DEVICE_RELEASED = "device-released"
    DEVICE_REVOKED = "device-revoked"
    KEY_MADE = "key-made"
    KEY_ROTATED = "key-rotated"
    KEY_QUARANTINED = "key-quarantined"
    KEY_RELEASED = "key-released"
    KEY_REVOKED = "key-revoked"
    PERSON_ADDED = "person-added"
    PERSON_LINKED = "person-linked"
    LINK_SPENT = "link-spent"
    ROLE_CHANGED = "role-changed"
    PERSON_DISABLED = "person-disabled"
    LOGGED_IN = "logged-in"
    LOGIN_FAILED = "login-failed"
    LOGGED_OUT = "logged-out"
    PASSWORD_CHANGED = "password-changed"  # noqa: S105  the name of an action
    RUN_SUBMITTED = "run-submitted"
    RUN_STOP_ASKED = "run-stop-asked"
    RUN_STARTED = "run-started"
    RUN_FINISHED = "run-finished"
    RUN_FAILED = "run-failed"
    RUN_STOPPED = "run-stopped"
    ROUND_OPENED = "round-opened"
    SUM_OPENED = "sum-opened"
    ROUND_APPLIED = "round-applied"
    ROUND_FAILED = "round-failed"
    RELEASE_MADE = "release-made"
    RELEASE_FAILED = "release-failed"
    SECURITY_FINDING = "security-finding"
    ALARM_RAISED = "alarm-raised"
    ALARM_ACKNOWLEDGED = "alarm-acknowledged"
    NOT_DONE = "not-done"
    CHECKPOINT = "audit-checkpoint"
    REPAIRED = "audit-repaired"


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be written down.

    Attributes:
        action: What was done.
        actor: Who did it: ``admin``, a key's name, ``person:NAME``, ``device:NAME``,
            ``key-holder``, ``coordinator``, or ``stranger`` who showed nothing valid.
        subject: To what: a run, ``RUN/ROUND``, a device, a key or a person; may be empty.
        facts: More about it; never a prompt, a secret, or what a single device did.
    """

    action: Action
    actor: str
    subject: str = ""
    facts: Facts = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what has no place in a record (H3).

        Raises:
            ValueError: something is too long, or no text, whole number or boolean.
        """
        problems = []
        if not self.actor or not _is_text(self.actor, MAX_ACTOR):
            problems.append("actor")
        if not _is_text(self.subject, MAX_TEXT):
            problems.append("subject")
        if len(self.facts) > MAX_FACTS:
            problems.append("number of facts")
        problems += [
            f"fact {name!r}"
            for name, value in self.facts.items()
            if not (_FACT_NAME.fullmatch(name) and _is_fact(value))
        ]
        if problems:
            raise ValueError(f"not what a record may hold: {', '.join(problems)}")


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the log.

    Attributes:
        number: 1, 2, 3, … without gaps.
        at: When it was written, in whole seconds since the epoch.
        entry: What was done.
        previous: Hash of the record before, 64 hexadecimal digits.
        hash: SHA-256 over all of this.
    """

    number: int
    at: int
    entry: Entry
    previous: str
    hash: str

    def to_json(self) -> dict[str, Any]:
        """Its fields as they stand on disk and in the API."""
        return {
            "number": self.number,
            "at": self.at,
            "actor": self.entry.actor,
            "action": str(self.entry.action),
            "subject": self.entry.subject,
            "facts": dict(self.entry.facts),
            "previous": self.previous,
            "hash": self.hash,
        }

    def to_line(self) -> bytes:
        """Its one spelling on disk, with the line end (H1)."""
        return _SPELT.encode(self.to_json()).encode() + b"\n"


def chained(after: Record | None, entry: Entry, at: int) -> Record:
    """The record of ``entry`` that follows ``after``; ``None`` begins a chain."""
    number, previous = (after.number + 1, after.hash) if after is not None else (1, GENESIS)
    return Record(number, at, entry, previous, _hash(number, at, entry, previous))


def read_record(line: bytes, *, after: Record | None) -> Record:
    """Read what :meth:`Record.to_line` wrote, and check that it follows ``after`` (H1, H3).

    Args:
        line: With its line end.
        after: The record before; ``None`` for the first.

    Raises:
        AuditDamaged: it is no record, was altered, or is not the next one.
    """
    number = after.number + 1 if after is not None else 1
    record = parse_line(line, number=number)
    if record.number != number:
        raise AuditDamaged(
            f"it is numbered {record.number}: records are missing, repeated or out of order",
            record=number,
        )
    if record.previous != (after.hash if after is not None else GENESIS):
        raise AuditDamaged("it does not follow the record before it", record=number)
    return record


def parse_line(line: bytes, *, number: int) -> Record:
    """Read a record that nothing is known of but its place, ``number``, in the file.

    Raises:
        AuditDamaged: it is none, or was altered.
    """
    try:
        fields = json.loads(line.decode())
        if not isinstance(fields, dict) or fields.keys() != _FIELDS:
            raise TypeError("the fields are not a record's")
        claimed, at, previous = fields["number"], fields["at"], fields["previous"]
        if not (_is_count(claimed) and _is_count(at) and isinstance(fields["facts"], dict)):
            raise TypeError("number, time or facts are something else")
        if not (isinstance(previous, str) and _HASH.fullmatch(previous)):
            raise ValueError("the hash before it is none")
        entry = Entry(Action(fields["action"]), fields["actor"], fields["subject"], fields["facts"])
        record = Record(claimed, at, entry, previous, fields["hash"])
        spelling = record.to_line()
    except (ValueError, TypeError, RecursionError) as err:
        raise AuditDamaged(f"it cannot be read: {err}", record=number) from err
    if record.hash != _hash(claimed, at, entry, previous):
        raise AuditDamaged("its content is not what its hash was made of", record=number)
    if spelling != line:
        raise AuditDamaged("it is not spelt as records are", record=number)
    return record


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The coordinator's signature over a chain up to one of its records.

    Attributes:
        number: Of that record; the checkpoint itself is the record after it.
        hash: Of that record, which stands for all before it.
        at: When it was signed, in whole seconds since the epoch.
        key: The coordinator's public key.
        signature: Ed25519 over the first three.
    """

    number: int
    hash: str
    at: int
    key: PublicKey
    signature: bytes

    @classmethod
    def sign(cls, identity: Identity, after: Record, at: int) -> Checkpoint:
        """Sign the chain that ends with ``after``."""
        signature = identity.sign(_signed(after.number, after.hash, at))
        return cls(after.number, after.hash, at, identity.public, signature)

    @classmethod
    def of(cls, record: Record) -> Checkpoint:
        """The checkpoint that ``record`` is, its signature checked (H2).

        Raises:
            AuditDamaged: it is none, or not signed by the key that it names.
        """
        try:
            facts = record.entry.facts
            found = cls(
                record.number - 1,
                record.previous,
                record.at,
                parse_public(str(facts["key"])),
                _bytes_of(str(facts["signature"])),
            )
            if record.entry != found.entry():
                raise ValueError("it holds more than a checkpoint does")
            found.check()
        except (KeyError, ValueError, ConfigError, BadSignature) as err:
            why = f"it is no signed checkpoint: {err}"
            raise AuditDamaged(why, record=record.number) from err
        return found

    def entry(self) -> Entry:
        """Its content as a record."""
        facts = {"key": format_public(self.key), "signature": _text_of(self.signature)}
        return Entry(Action.CHECKPOINT, "coordinator", "", facts)

    def check(self) -> None:
        """Return only if the signature is that of the key. Raises BadSignature."""
        verify(self.key, self.signature, _signed(self.number, self.hash, self.at))

    def to_line(self) -> str:
        """As one word, which an auditor keeps."""
        return ":".join(
            (
                *(_LINE, "1", str(self.number), str(self.at), self.hash),
                format_public(self.key).partition(":")[2],
                _text_of(self.signature),
            )
        )

    @classmethod
    def from_line(cls, line: str) -> Checkpoint:
        """Read what :meth:`to_line` wrote, and check the signature.

        Raises:
            ConfigError: it is something else, or not signed by the key in it.
        """
        try:
            head, version, number, at, digest, key, signature = line.strip().split(":")
            found = cls(
                int(number),
                digest,
                int(at),
                parse_public("llmos-ed25519:" + key),
                _bytes_of(signature),
            )
            if (head, version) != (_LINE, "1") or found.to_line() != line.strip():
                raise ValueError("another spelling")
            if not (_HASH.fullmatch(digest) and _is_count(found.number) and _is_count(found.at)):
                raise ValueError("not a hash and two numbers")
            found.check()
        except (ValueError, ConfigError, BadSignature) as err:
            problem = (
                f"{line.strip()[:80]!r} is none, or was altered: a whole one looks like "
                f"{_LINE}:1:… and is signed"
            )
            raise ConfigError([problem], source="checkpoint") from err
        return found

    def __repr__(self) -> str:
        return f"Checkpoint({self.number}, {self.hash[:12]}, by {fingerprint(self.key)})"


def _hash(number: int, at: int, entry: Entry, previous: str) -> str:
    content = [number, at, entry.actor, str(entry.action), entry.subject, dict(entry.facts)]
    encoded = codec.encode([*content, bytes.fromhex(previous)])
    return hashlib.sha256(_RECORD + encoded).hexdigest()


def _signed(number: int, digest: str, at: int) -> bytes:
    return _SIGNED + codec.encode([number, bytes.fromhex(digest), at])


def _is_text(value: object, limit: int) -> bool:
    """Whether this is a text without control characters or halves of others."""
    return isinstance(value, str) and len(value) <= limit and (not value or value.isprintable())


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_NUMBER


def _is_fact(value: object) -> bool:
    if isinstance(value, int):
        return abs(value) <= MAX_NUMBER
    return _is_text(value, MAX_TEXT)


def _text_of(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _bytes_of(text: str) -> bytes:
    """Read what :func:`_text_of` wrote. Raises ValueError."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as err:
        raise ValueError("not base64") from err
    if _text_of(data) != text:
        raise ValueError("another spelling of the same bytes")
    return data
