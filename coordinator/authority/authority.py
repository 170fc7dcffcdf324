"""The coordinator's own certificate authority.

U1  its key is on disk, readable by its owner only, before anything is signed with it, and never
    leaves but in a backup that its owner makes
U2  it signs for a peer's key only what cannot sign in turn, and names one peer
U3  what it signs is dated back, so that a peer whose clock is a day late takes it all the same

ECDSA over P-256, since browsers take no authority with an Ed25519 key.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.crypto.certificates import Requested
from shared.errors import ConfigError, StorageError
from shared.files import write_durably

DATED_BACK_S: Final = 2 * 86_400.0
"""A clock may be a day late, or set to the wrong time zone, and half as much again."""

LIFE_S: Final = 10 * 365 * 86_400.0
"""Of the authority: longer than a device is in use."""

KEY_FILE: Final = "ca.key"
CERTIFICATE_FILE: Final = "ca.pem"

_SERIAL_BYTES: Final = 19
"""At most 20, and positive (RFC 5280, 4.1.2.2)."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was signed.

    Attributes:
        serial: Its number; none is given twice.
        pem: The certificate.
        expires_at: Seconds since the epoch.
    """

    serial: int
    pem: str
    expires_at: float


class Authority:
    """Signs certificates, and lists of those that hold no more."""

    def __init__(self, folder: Path, *, now: float) -> None:
        """Read the authority in ``folder``, or make it there the first time (U1).

        Raises:
            StorageError: the disk refused, or what lies there is damaged.
        """
        self._key = _key_in(folder / KEY_FILE)
        path = folder / CERTIFICATE_FILE
        if not path.exists():
            write_durably(path, _pem(self._of_itself(now)))
        try:
            self._certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except ValueError as err:
            raise StorageError(f"{path} is damaged: restore it from a backup") from err
        if self._certificate.public_key() != self._key.public_key():
            raise StorageError(f"{path} and {KEY_FILE} beside it do not belong together")

    @property
    def pem(self) -> str:
        """Its own certificate."""
        return _pem(self._certificate).decode("ascii")

    def issue(self, requested: Requested, *, now: float, life_s: float) -> Issued:
        """Sign a certificate with which a peer connects (U2, U3).

        Whether the key is that peer's is for the caller to know.
        """
        return self._issued(
            requested.name,
            Ed25519PublicKey.from_public_bytes(requested.public_key),
            now=now,
            life_s=life_s,
            usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        )

    def issue_for_server(
        self, names: Sequence[str], key: ec.EllipticCurvePublicKey, *, now: float, life_s: float
    ) -> Issued:
        """Sign a certificate with which a server is known under these names and addresses.

        Raises:
            ConfigError: a name is none.
        """
        return self._issued(
            names[0],
            key,
            now=now,
            life_s=life_s,
            usage=ExtendedKeyUsageOID.SERVER_AUTH,
            names=[_general_name(name) for name in names],
        )

    def revocations(self, serials: Iterable[int], *, now: float) -> bytes:
        """Sign the list of certificates that hold no more, PEM.

        It names no time by which the next one comes that matters: whoever reads it is told at once.
        """
        revoked_at = _time(now)
        listed = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(_time(now - DATED_BACK_S))
            .next_update(_time(now + LIFE_S))
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        for serial in sorted(serials):
            entry = x509.RevokedCertificateBuilder().serial_number(serial)
            listed = listed.add_revoked_certificate(entry.revocation_date(revoked_at).build())
        return listed.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _issued(
        self,
        name: str,
        key: Ed25519PublicKey | ec.EllipticCurvePublicKey,
        *,
        now: float,
        life_s: float,
        usage: x509.ObjectIdentifier,
        names: Sequence[x509.GeneralName] = (),
    ) -> Issued:
        serial, expires_at = _serial(), now + life_s
        unsigned = (
            _unsigned(name, key, serial=serial, now=now, expires_at=expires_at)
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if names:
            unsigned = unsigned.add_extension(x509.SubjectAlternativeName(names), critical=False)
        pem = _pem(unsigned.sign(self._key, hashes.SHA256())).decode("ascii")
        return Issued(serial, pem, expires_at)

    def _of_itself(self, now: float) -> x509.Certificate:
        public = self._key.public_key()
        # Authorities of several coordinators are told apart in a browser's or system's list.
        digest = x509.SubjectKeyIdentifier.from_public_key(public).digest.hex()[:8]
        name = f"LLM OS coordinator {digest}"
        return (
            _unsigned(name, public, serial=_serial(), now=now, expires_at=now + LIFE_S)
            .issuer_name(_name(name))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )


def new_server_key() -> tuple[ec.EllipticCurvePublicKey, bytes]:
    """A key for a server that browsers take: its public half, and the whole as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.public_key(), _private_pem(key)


def _key_in(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        write_durably(path, _private_pem(key), mode=0o600)
        return key
    if path.stat().st_mode & 0o077:
        raise StorageError(
            f"others may read the authority's key in {path}: whoever did can join as any device. "
            f"If you are sure that nobody did, run 'chmod 600 {path}'"
        )
    try:
        loaded = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as err:
        raise StorageError(f"{path} is damaged: restore it from a backup") from err
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise StorageError(f"{path} holds a key of another kind than the authority's")
    return loaded


def _unsigned(
    name: str,
    key: Ed25519PublicKey | ec.EllipticCurvePublicKey,
    *,
    serial: int,
    now: float,
    expires_at: float,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(_time(now - DATED_BACK_S))
        .not_valid_after(_time(expires_at))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as err:
        raise ConfigError([f"--name: {name!r} is neither a name nor an address"]) from err


def _name(text: str) -> x509.Name:
    # A common name has at most 64 letters (RFC 5280, appendix A); a server's are in its extension.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _serial() -> int:
    return int.from_bytes(os.urandom(_SERIAL_BYTES), "big") | 1


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
