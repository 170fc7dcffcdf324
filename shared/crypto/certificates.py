"""What is read from certificates (X.509, RFC 5280) and from requests for them (PKCS #10).

X1  nothing is taken from a request whose own signature does not hold, nor from a certificate that
    the named authority did not sign
X2  a certificate is over an Ed25519 key and names one peer; every other kind is refused
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import NameOID

from shared.errors import BadSignature, DataError, WrongKey
from shared.types import PublicKey

MOST_BYTES: Final = 32 * 1024
"""Of a request, a certificate, or a bundle of those of authorities: some times what they have."""


@dataclass(frozen=True, slots=True)
class Requested:
    """What a request asks for: a name over a key that the asker has."""

    name: str
    public_key: PublicKey


@dataclass(frozen=True, slots=True)
class Certified:
    """What a certificate says.

    Attributes:
        name: The peer's; its common name.
        public_key: The peer's.
        serial: Of its authority's numbers, this one's.
        issued_at: From when it holds, in seconds since the epoch; authorities date it back.
        expires_at: Until when.
    """

    name: str
    public_key: PublicKey
    serial: int
    issued_at: float
    expires_at: float


def read_request(pem: str) -> Requested:
    """Read a request for a certificate (X1, X2).

    Raises:
        DataError: it is none, or over a key of another kind, or names nobody.
        BadSignature: whoever asks does not have the key.
    """
    try:
        request = x509.load_pem_x509_csr(_bounded(pem))
        holds = request.is_signature_valid
        public_key = request.public_key()
    except (ValueError, UnsupportedAlgorithm) as err:
        raise DataError("this is not a request for a certificate") from err
    if not holds:
        raise BadSignature("the request is not signed with the key that it is about")
    return Requested(_name_in(request.subject), _ed25519(public_key))


def read_certificate(pem: str, *, authority: str) -> Certified:
    """Read a certificate of a peer (X1, X2).

    Args:
        pem: The certificate.
        authority: The certificate of who has to have signed it, PEM.

    Raises:
        DataError: it is none, or of another kind.
        WrongKey: the authority did not sign it.
    """
    try:
        certificate = x509.load_pem_x509_certificate(_bounded(pem))
        signed_by = x509.load_pem_x509_certificate(_bounded(authority))
    except (ValueError, UnsupportedAlgorithm) as err:
        raise DataError("this is not a certificate") from err
    try:
        certificate.verify_directly_issued_by(signed_by)
    except (InvalidSignature, ValueError, TypeError) as err:
        raise WrongKey("the certificate was not signed by the coordinator's authority") from err
    return Certified(
        name=_name_in(certificate.subject),
        public_key=_ed25519(certificate.public_key()),
        serial=certificate.serial_number,
        issued_at=certificate.not_valid_before_utc.timestamp(),
        expires_at=certificate.not_valid_after_utc.timestamp(),
    )


def certificates_in(pem: str) -> str:
    """The certificates in a file, of whatever kind, and nothing else: a key may lie beside them.

    Raises:
        DataError: there is none, or one is damaged.
    """
    try:
        found = x509.load_pem_x509_certificates(_bounded(pem))
    except (ValueError, UnsupportedAlgorithm) as err:
        raise DataError("there is no certificate in it, or one is damaged") from err
    encoded = (each.public_bytes(serialization.Encoding.PEM).decode("ascii") for each in found)
    return "".join(encoded)


def _bounded(pem: str) -> bytes:
    if len(pem) > MOST_BYTES or not pem.isascii():
        raise DataError(f"a certificate or request is PEM of at most {MOST_BYTES} bytes")
    return pem.encode("ascii")


def _ed25519(key: object) -> PublicKey:
    if not isinstance(key, Ed25519PublicKey):
        raise DataError("the key is of another kind than Ed25519")
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return PublicKey(raw)


def _name_in(subject: x509.Name) -> str:
    names = [attribute.value for attribute in subject]
    common = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1 or len(common) != 1 or not isinstance(names[0], str):
        raise DataError("the subject is to be one common name and nothing else")
    return names[0]
