"""Identities keep N1 to N3, and people can compare them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from shared.crypto.identity import (
    Identity,
    fingerprint,
    format_public,
    parse_public,
    verify,
)
from shared.errors import BadSignature, ConfigError, StorageError
from shared.types import PublicKey

publics = st.binary(min_size=32, max_size=32).map(PublicKey)


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return Identity.create(tmp_path / "key")


def test_an_identity_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "key"
    made = Identity.load_or_create(path)
    for again in (Identity.load(path), Identity.load_or_create(path)):
        assert again.public == made.public
        verify(made.public, again.sign(b"hello"), b"hello")


def test_a_key_file_is_its_owners_only(tmp_path: Path) -> None:
    path = tmp_path / "key"
    Identity.create(path)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644])
def test_a_key_that_others_may_touch_is_refused_with_advice(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    Identity.create(path)
    path.chmod(mode)
    for load in (Identity.load, Identity.load_or_create):
        with pytest.raises(StorageError, match="chmod 600"):
            load(path)
    path.chmod(0o400)
    Identity.load(path)


def test_an_identity_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    before = Identity.create(path).public
    with pytest.raises(StorageError, match="never overwritten"):
        Identity.create(path)
    assert Identity.load(path).public == before


def test_a_missing_damaged_or_foreign_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(StorageError, match="cannot read"):
        Identity.load(path)
    foreign = X25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    for content in (b"", b"junk", foreign):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(StorageError):
            Identity.load(path)


def test_a_signature_is_over_these_bytes_by_this_sender(identity: Identity, tmp_path: Path) -> None:
    signature = identity.sign(b"message")
    verify(identity.public, signature, b"message")
    Ed25519PublicKey.from_public_bytes(identity.public).verify(signature, b"message")
    stranger = Identity.create(tmp_path / "stranger").public
    flipped = bytes([signature[0] ^ 1]) + signature[1:]
    for public, bad, message in (
        (identity.public, signature, b"Message"),
        (identity.public, flipped, b"message"),
        (identity.public, signature[:-1], b"message"),
        (identity.public, b"", b"message"),
        (stranger, signature, b"message"),
        (PublicKey(b"short"), signature, b"message"),
    ):
        with pytest.raises(BadSignature):
            verify(public, bad, message)


@given(publics)
def test_a_public_key_is_read_as_it_was_written(public: PublicKey) -> None:
    assert parse_public(format_public(public)) == public


@pytest.mark.parametrize(
    "text",
    [
        "",
        "llmos-ed25519:",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "llmos-ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "llmos-ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "llmos-ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB",  # another spelling of zeros
        "llmos-ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA+",
        "llmos-ed25519:ÄAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        " llmos-ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    ],
)
def test_what_is_not_a_public_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="public key"):
        parse_public(text)


@given(publics, publics)
def test_fingerprints_tell_keys_apart_and_can_be_read_aloud(
    first: PublicKey, second: PublicKey
) -> None:
    assert (fingerprint(first) == fingerprint(second)) == (first == second)
    assert re.fullmatch(r"LF1(-[A-Z2-7]{4}){8}", fingerprint(first))


def test_a_private_key_does_not_show(identity: Identity, tmp_path: Path) -> None:
    assert repr(identity) == f"Identity({fingerprint(identity.public)})"
