"""Who somebody is: an Ed25519 key made where it is used, in a file of its owner's.

N1  a private key is made on the machine that uses it, is on disk before its public
    half is shown to anybody, and never leaves but in a backup that its owner makes
N2  a key file that others may read is refused, not used quietly
N3  a signature is checked or an error is raised: nothing returns a truth value
    that could be forgotten
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from shared.errors import BadSignature, ConfigError, StorageError
from shared.files import write_durably
from shared.types import PublicKey

KEY_BYTES: Final = 32
_PREFIX: Final = "llmos-ed25519:"
_FINGERPRINT_BYTES: Final = 20


class Identity:
    """A private key and what it can do: sign."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._public = PublicKey(key.public_key().public_bytes_raw())

    @classmethod
    def create(cls, path: Path) -> Identity:
        """Make a new key and keep it in ``path``, readable by its owner only (N1).

        Raises:
            StorageError: the disk refused, or a file is there already: replacing an
                identity would lock its owner out of everything that trusts it.
        """
        if path.exists():
            raise StorageError(f"{path} exists: an identity is never overwritten")
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_durably(path, pem, mode=0o600)
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read the key in ``path``.

        Raises:
            StorageError: there is none, others may read it (N2), or it is damaged.
        """
        try:
            with path.open("rb") as file:
                # Of the open file, so that it cannot be exchanged between check and use.
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                pem = file.read()
        except OSError as err:
            raise StorageError(f"cannot read the identity in {path}: {err.strerror}") from err
        if mode & 0o077:
            raise StorageError(
                f"others may read or change the private key in {path} (mode {mode:o}): if you are "
                f"sure that nobody did, run 'chmod 600 {path}'; else make a new identity"
            )
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as err:
            raise StorageError(f"{path} is damaged: it holds no private key") from err
        if not isinstance(key, Ed25519PrivateKey):
            raise StorageError(f"{path} holds a private key of another kind than Ed25519")
        return cls(key)

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """Read the key in ``path``, or make it there the first time."""
        return cls.load(path) if path.exists() else cls.create(path)

    @property
    def public(self) -> PublicKey:
        """The public half, 32 bytes."""
        return self._public

    def sign(self, message: bytes) -> bytes:
        """Return the signature of ``message``, 64 bytes."""
        return self._key.sign(message)

    def certificate_request(self, name: str) -> str:
        """Ask for a certificate over this key under ``name``, as PEM (PKCS #10, RFC 2986).

        It is signed with the key, so it proves that whoever asks has it.
        """
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject)
        signed = request.sign(self._key, None)  # Ed25519 brings its own hash
        return signed.public_bytes(serialization.Encoding.PEM).decode("ascii")

    def __repr__(self) -> str:
        return f"Identity({fingerprint(self._public)})"


def verify(public: PublicKey, signature: bytes, message: bytes) -> None:
    """Return only if ``signature`` is ``public``'s over ``message`` (N3).

    Raises:
        BadSignature: it is not, or ``public`` is no Ed25519 key.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError) as err:
        raise BadSignature("the signature does not belong to this sender and message") from err


def fingerprint(public: PublicKey) -> str:
    """The form of a public key that people compare: 160 bits of its SHA-256 in groups.

    Example:
        >>> fingerprint(PublicKey(bytes(32)))
        'LF1-MZUH-VLPY-MK6X-O3EP-YGFY-5H4O-EAEJ-OFEF'
    """
    digest = hashlib.sha256(public).digest()[:_FINGERPRINT_BYTES]
    letters = base64.b32encode(digest).decode("ascii")
    groups = [letters[start : start + 4] for start in range(0, len(letters), 4)]
    return "-".join(["LF1", *groups])


def format_public(public: PublicKey) -> str:
    """Write a public key the way command lines and files take it."""
    return _PREFIX + base64.urlsafe_b64encode(public).decode("ascii").rstrip("=")


def parse_public(text: str) -> PublicKey:
    """Read what :func:`format_public` wrote.

    Raises:
        ConfigError: ``text`` is something else.
    """
    head, encoded = text[: len(_PREFIX)], text[len(_PREFIX) :]
    try:
        public = PublicKey(base64.b64decode(encoded + "=", altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        public = PublicKey(b"")
    # The second comparison refuses other spellings of the same key.
    if head != _PREFIX or len(public) != KEY_BYTES or format_public(public) != text:
        raise ConfigError(
            [f"{text!r} is not a public key, which looks like {_PREFIX} and 43 letters"],
            source="public key",
        )
    return public
