"""The frame around every contribution and every total: fixed fields, one exact length.

    offset  bytes  field
         0      8  magic, ``LLMOSSUM``
         8      2  version
        10      1  kind: 1 a contribution, 2 a total
        11      1  scheme: 0 clear, 1 public key
        12     32  parameter-set id, ASCII, padded with zeros
        44      8  key id
        52     32  SHA-256 of the run's identifier
        84      8  round
        92      8  values in the vector
       100      4  contributions inside, 1 unless it is a total
       104     32  SHA-256 of the payload
       136         payload

All numbers are little-endian. The receiver knows every field but the last
digest beforehand, so nothing of a frame is ever *believed*: fields are compared,
and the length is checked before anything else is looked at.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from shared.crypto.sum_cipher import Scheme, SumContext
from shared.errors import DigestMismatch, ShapeMismatch, UndecodableMessage, WrongKey

_HEADER: Final = struct.Struct("<8sHBB32s8s32sQQI32s")
_MAGIC: Final = b"LLMOSSUM"
_VERSION: Final = 1
_SCHEMES: Final = {Scheme.CLEAR: 0, Scheme.PUBLIC_KEY: 1}


class Kind(IntEnum):
    """What a frame holds."""

    CONTRIBUTION = 1
    TOTAL = 2


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """Everything about a scheme's frames that is the same for all of them."""

    kind: Kind
    scheme: Scheme
    parameter_set: str
    count: int
    payload_bytes: int

    @property
    def frame_bytes(self) -> int:
        """The one length such a frame has."""
        return _HEADER.size + self.payload_bytes

    def wrap(self, *payload: bytes, context: SumContext, devices: int) -> bytes:
        """Put a header before ``payload``, whose parts follow one another."""
        assert sum(map(len, payload)) == self.payload_bytes
        digest = hashlib.sha256()
        for part in payload:
            digest.update(part)
        header = _HEADER.pack(
            _MAGIC,
            _VERSION,
            self.kind,
            _SCHEMES[self.scheme],
            self.parameter_set.encode("ascii"),
            bytes.fromhex(context.key_id),
            _run_digest(context),
            context.round,
            self.count,
            devices,
            digest.digest(),
        )
        return b"".join([header, *payload])

    def unwrap(self, frame: bytes, *, context: SumContext, devices: int) -> memoryview:
        """Check everything about a frame but the meaning of its payload, and return that.

        Raises:
            UndecodableMessage: the length, or what kind of bytes this is, differs.
            WrongKey: another parameter set, key, run or round.
            ShapeMismatch: another number of values or of contributions.
            DigestMismatch: the payload is not the one that was framed.
        """
        if len(frame) != self.frame_bytes:
            raise UndecodableMessage(
                f"{len(frame)} bytes, where a frame of {self.parameter_set} with {self.count} "
                f"values has exactly {self.frame_bytes}"
            )
        (magic, version, kind, scheme, parameter_set, key, run, round_, count, inside, digest) = (
            _HEADER.unpack_from(frame)
        )
        if (magic, version, kind, scheme) != (_MAGIC, _VERSION, self.kind, _SCHEMES[self.scheme]):
            raise UndecodableMessage(
                f"not a {self.kind.name.lower()} frame of the {self.scheme} scheme"
            )
        # Foreign values are not repeated in messages: they end up in logs.
        if parameter_set.rstrip(b"\0") != self.parameter_set.encode("ascii"):
            raise WrongKey(f"the frame was made with other parameters than {self.parameter_set}")
        if key != bytes.fromhex(context.key_id):
            raise WrongKey(f"the frame was made for another key than {context.key_id}")
        if run != _run_digest(context):
            raise WrongKey(f"the frame was made for another run than {context.run}")
        if round_ != context.round:
            raise WrongKey(f"the frame was made for another round than {context.round}")
        if count != self.count:
            raise ShapeMismatch(f"the frame does not hold {self.count} values")
        if inside != devices:
            raise ShapeMismatch(f"the frame does not hold {devices} contributions")
        payload = memoryview(frame)[_HEADER.size :]
        if hashlib.sha256(payload).digest() != digest:
            raise DigestMismatch("the frame's payload is not the one that was framed")
        return payload


def _run_digest(context: SumContext) -> bytes:
    return hashlib.sha256(context.run.encode()).digest()
