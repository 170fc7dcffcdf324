"""Every message, as a frozen dataclass; the module is the protocol's vocabulary.

Fields are ``int``, ``float``, ``str``, ``bytes`` or tuples of text. Large
things (adapters, keys, encrypted updates, opened sums) never ride in a message:
it names their digest and size, and the receiver asks for the blob in windows
(:mod:`shared.wire.chunks`).

Versioning: a message never changes. Another field or meaning is another kind;
unknown kinds, and unknown or missing fields, are refused.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Final, get_type_hints

from shared.crypto.sum_cipher import Scheme, SumLayout
from shared.errors import UndecodableMessage
from shared.wire import codec


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages."""

    kind: ClassVar[str]


# Anyone ↔ coordinator


@dataclass(frozen=True, slots=True)
class BlobRequest(Message):
    """Send ``length`` bytes of a blob from ``offset`` on, in chunks."""

    kind: ClassVar[str] = "blob-request"
    digest: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class BlobChunk(Message):
    """A piece of a blob, at most 256 KiB."""

    kind: ClassVar[str] = "blob-chunk"
    digest: str
    offset: int
    data: bytes


# Coordinator → devices


@dataclass(frozen=True, slots=True)
class Call(Message):
    """Everyone who hears this says that they are present."""

    kind: ClassVar[str] = "call"


@dataclass(frozen=True, slots=True)
class Invitation(Message):
    """Take part in this round.

    Attributes:
        plan: The run plan as JSON.
        adapter: Digest of the adapter to start from; ``adapter_bytes`` its size.
        announcement: The key holder's signed envelope with a
            :class:`KeyAnnouncement`; empty with the clear scheme.
    """

    kind: ClassVar[str] = "invitation"
    plan: str
    adapter: str
    adapter_bytes: int
    announcement: bytes


@dataclass(frozen=True, slots=True)
class HandOver(Message):
    """The round's set is fixed: the update may leave the outbox when it is asked for.

    Attributes:
        fixed: The key holder's signed envelope with the :class:`SumSet`; empty
            with the clear scheme.
    """

    kind: ClassVar[str] = "hand-over"
    fixed: bytes


@dataclass(frozen=True, slots=True)
class Receipt(Message):
    """The update with this digest is on the coordinator's disk: it may be deleted."""

    kind: ClassVar[str] = "receipt"
    digest: str


@dataclass(frozen=True, slots=True)
class Refusal(Message):
    """The update with this digest will never be counted; ``code`` as in errors.md.

    Without a digest: nothing that the device says is listened to, for it is kept out.
    """

    kind: ClassVar[str] = "refusal"
    digest: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class RunOver(Message):
    """No further round of this run follows: release what was kept warm for it."""

    kind: ClassVar[str] = "run-over"


@dataclass(frozen=True, slots=True)
class Release(Message):
    """What devices answer with from now on: an adapter, and the model it goes into.

    Attributes:
        released_from: The run that made the adapter.
        task: What it was trained for.
        adapter: Digest of the adapter; ``adapter_bytes`` its size.
        manifest: Digest of the model's manifest, which names the model's files.
        calibration: As JSON, how sure an answer must be; ``shared.models.calibration``.
    """

    kind: ClassVar[str] = "release"
    released_from: str
    task: str
    adapter: str
    adapter_bytes: int
    manifest: str
    manifest_bytes: int
    calibration: str


@dataclass(frozen=True, slots=True)
class Reply(Message):
    """The coordinator's model to a :class:`Question`.

    Attributes:
        question: The question's identifier.
        text: The answer; empty if there is none.
        model: Which model gave it.
        stand_in: 1 if that is a stand-in for a real model.
        code: Why there is no answer, as in errors.md; empty with one.
        reason: The same in a sentence.
    """

    kind: ClassVar[str] = "reply"
    question: str
    text: str
    model: str
    stand_in: int
    code: str
    reason: str


# Devices → coordinator


@dataclass(frozen=True, slots=True)
class Answering(Message):
    """What this device answers with: an adapter's and a manifest's digest, or empty."""

    kind: ClassVar[str] = "answering"
    adapter: str
    manifest: str


@dataclass(frozen=True, slots=True)
class Question(Message):
    """Ask the coordinator's model. The device has taken personal data out before."""

    kind: ClassVar[str] = "question"
    question: str
    text: str


@dataclass(frozen=True, slots=True)
class Presence(Message):
    """This device is there; ``state`` is ``idle`` or ``training``."""

    kind: ClassVar[str] = "presence"
    state: str


PASSING: Final = frozenset({"battery", "busy", "hot", "metered", "window", "disk", "memory"})
"""Conditions of :class:`About` that pass: whoever has one is asked when it is gone."""


@dataclass(frozen=True, slots=True)
class About(Message):
    """What a device tells of itself, for whoever looks after the fleet.

    Attributes:
        version: Of its agent; 1 to 32 of letters, digits, ``.``, ``+``, ``-``, ``!`` and ``_``.
        condition: Why it would decline an invitation now, a code; empty: nothing it knows of.
        budget_left: ε that is left of the owner's budget, as a decimal number; empty where the
            owner does not tell.
    """

    kind: ClassVar[str] = "about"
    version: str
    condition: str
    budget_left: str


@dataclass(frozen=True, slots=True)
class Accepted(Message):
    """The device takes part in the envelope's round."""

    kind: ClassVar[str] = "accepted"


@dataclass(frozen=True, slots=True)
class Declined(Message):
    """The device does not take part; ``code`` as in errors.md."""

    kind: ClassVar[str] = "declined"
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Contribution(Message):
    """An encrypted update is ready in the outbox, and the device is bound to it.

    The digest leaves before any byte of the update does: a device that has seen
    the others' updates can no longer choose its own. The signed envelope around this message is the contribution *record*: the
    key holder checks its signature against the devices that its own operator
    approved, and adds only ciphertexts with this digest.
    """

    kind: ClassVar[str] = "contribution"
    device: str
    digest: str
    size: int
    scheme: str
    key_id: str


# Coordinator ↔ key holder


@dataclass(frozen=True, slots=True)
class KeyRequest(Message):
    """Make a key pair for the envelope's round.

    Attributes:
        min_devices: Fewest devices that the run allows in a sum; the holder opens for
            no fewer, whatever it would allow by itself.
    """

    kind: ClassVar[str] = "key-request"
    scheme: str
    count: int
    bits: int
    max_devices: int
    groups: int
    min_devices: int

    @classmethod
    def of(cls, scheme: Scheme, layout: SumLayout, groups: int, min_devices: int) -> KeyRequest:
        """Ask for a key under which ``groups`` groups' vectors of this layout are summed."""
        return cls(scheme, layout.count, layout.bits, layout.max_devices, groups, min_devices)


@dataclass(frozen=True, slots=True)
class KeyAnnouncement(Message):
    """The public key of the envelope's round, and the fewest devices it opens for.

    Attributes:
        min_devices: Fewest devices in any sum that is opened.
        draw: What the holder will draw the groups from, committed to before
            anybody has said to take part; see :mod:`shared.crypto.sum_groups`.
    """

    kind: ClassVar[str] = "key-announcement"
    scheme: str
    count: int
    bits: int
    max_devices: int
    groups: int
    min_devices: int
    draw: str
    key_id: str
    digest: str
    size: int

    def answers(self, request: KeyRequest) -> bool:
        """Whether the key is for what was asked for, and opens for no fewer devices."""
        return self.min_devices >= request.min_devices and (
            self.scheme,
            self.count,
            self.bits,
            self.max_devices,
            self.groups,
        ) == (
            request.scheme,
            request.count,
            request.bits,
            request.max_devices,
            request.groups,
        )


@dataclass(frozen=True, slots=True)
class FixRequest(Message):
    """Fix the set of contributions that may be summed in the envelope's round.

    Attributes:
        manifest: Digest of a blob: a CBOR array of contribution envelopes.
        manifest_bytes: Its size.
    """

    kind: ClassVar[str] = "fix-request"
    manifest: str
    manifest_bytes: int


@dataclass(frozen=True, slots=True)
class SumSet(Message):
    """The one set of the envelope's round; the envelope's signature is what counts.

    Attributes:
        key_id: The round's key.
        digests: SHA-256 of every ciphertext that may be summed, 32 bytes each,
            behind each other.
        groups: Into how many groups they fall.
        seed: What the groups are drawn from; the announcement committed to it.
    """

    kind: ClassVar[str] = "sum-set"
    key_id: str
    digests: bytes
    groups: int
    seed: bytes


@dataclass(frozen=True, slots=True)
class OpenRequest(Message):
    """Open the sums of these contributions, one for each group that has any.

    Attributes:
        digests: Of the fixed set, the ciphertexts that have arrived; 32 bytes each.
        totals: SHA-256 of the encrypted totals as the coordinator added them,
            32 bytes for each group, ascending. The holder adds by itself and
            refuses when its own differ.
    """

    kind: ClassVar[str] = "open-request"
    digests: bytes
    totals: bytes


@dataclass(frozen=True, slots=True)
class Opened(Message):
    """The groups' sums behind each other, as a blob of little-endian int64.

    ``devices`` is how many are in all of them together.
    """

    kind: ClassVar[str] = "opened"
    digest: str
    size: int
    devices: int


@dataclass(frozen=True, slots=True)
class OpeningRefused(Message):
    """The key holder does not open this; ``code`` as in errors.md."""

    kind: ClassVar[str] = "opening-refused"
    code: str
    reason: str


KINDS: Final[dict[str, type[Message]]] = {
    kind.kind: kind
    for kind in (
        BlobRequest,
        BlobChunk,
        Call,
        Invitation,
        HandOver,
        Receipt,
        Refusal,
        RunOver,
        Release,
        Reply,
        Presence,
        About,
        Answering,
        Question,
        Accepted,
        Declined,
        Contribution,
        KeyRequest,
        KeyAnnouncement,
        FixRequest,
        SumSet,
        OpenRequest,
        Opened,
        OpeningRefused,
    )
}


def to_body(message: Message) -> bytes:
    """CBOR map of the message's fields."""
    return codec.encode(
        {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
    )


def from_body(kind: str, body: bytes) -> Message:
    """Read a message of a kind.

    Raises:
        UndecodableMessage: unknown kind, unknown or missing field, wrong type,
            or a negative number where sizes and offsets stand.
    """
    cls = KINDS.get(kind)
    if cls is None:
        raise UndecodableMessage(f"unknown kind of message {kind[:40]!r}")
    values = codec.decode(body)
    hints = _field_types(kind)
    if not isinstance(values, dict) or values.keys() != hints.keys():
        raise UndecodableMessage(f"a '{kind}' has the fields {sorted(hints)}")
    for name, expected in hints.items():
        value: Any = values[name]
        if type(value) is not expected:
            raise UndecodableMessage(f"{kind}.{name} must be {expected.__name__}")
        if isinstance(value, int) and not 0 <= value < 2**63:
            raise UndecodableMessage(f"{kind}.{name} must lie in [0, 2^63)")
    return cls(**values)


@cache
def _field_types(kind: str) -> dict[str, type]:
    cls = KINDS[kind]
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}
