"""Requests and certificates: only what their signatures hold for, and only of the one kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.authority.authority import Authority, new_server_key
from shared.crypto.certificates import (
    Requested,
    certificates_in,
    read_certificate,
    read_request,
)
from shared.crypto.identity import Identity
from shared.errors import BadSignature, DataError, LlmOsError, WrongKey

NOW = 1_800_000_000.0
DAY_S = 86_400.0


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity.create(tmp_path_factory.mktemp("identity") / "identity.key")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), now=NOW)


def named(*attributes: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in attributes])


def requested_with(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, subject: x509.Name
) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    hash_of = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, hash_of).public_bytes(serialization.Encoding.PEM).decode()


def test_a_request_says_whose_key_it_is_and_under_which_name(identity: Identity) -> None:
    request = identity.certificate_request("kitchen")
    assert read_request(request) == Requested("kitchen", identity.public)


def test_a_request_that_was_changed_is_refused(identity: Identity) -> None:
    request = x509.load_pem_x509_csr(identity.certificate_request("kitchen").encode())
    raw = bytearray(request.public_bytes(serialization.Encoding.DER))
    at = bytes(raw).index(b"kitchen")
    raw[at : at + 7] = b"cellar7"
    changed = x509.load_der_x509_csr(bytes(raw)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(BadSignature):
        read_request(changed.decode())


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: "",
        lambda: "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        lambda: "x" * 100_000,
        lambda: "kitchen\N{SNOWMAN}",
        lambda: requested_with(
            ec.generate_private_key(ec.SECP256R1()), named((NameOID.COMMON_NAME, "a"))
        ),
        lambda: requested_with(ed25519.Ed25519PrivateKey.generate(), named()),
        lambda: requested_with(
            ed25519.Ed25519PrivateKey.generate(),
            named((NameOID.COMMON_NAME, "a"), (NameOID.COMMON_NAME, "b")),
        ),
        lambda: requested_with(
            ed25519.Ed25519PrivateKey.generate(), named((NameOID.ORGANIZATION_NAME, "a"))
        ),
    ],
    ids=["empty", "rubbish", "long", "no ASCII", "other key", "nobody", "two names", "no name"],
)
def test_what_is_no_request_for_one_peer_is_refused(request_of: object) -> None:
    assert callable(request_of)
    with pytest.raises(DataError):
        read_request(request_of())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_bytes_come_the_answer_is_an_error_of_ours(data: st.DataObject) -> None:
    text = data.draw(st.one_of(st.text(max_size=300), st.binary(max_size=300).map(bytes.hex)))
    framed = f"-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n"
    for each in (text, framed):
        with pytest.raises(LlmOsError):
            read_request(each)
        with pytest.raises(LlmOsError):
            certificates_in(each)


def test_a_certificate_is_read_only_if_the_authority_signed_it(
    identity: Identity, authority: Authority, tmp_path: Path
) -> None:
    wanted = Requested("kitchen", identity.public)
    issued = authority.issue(wanted, now=NOW, life_s=7 * DAY_S)
    certified = read_certificate(issued.pem, authority=authority.pem)
    assert (certified.name, certified.public_key) == ("kitchen", identity.public)
    assert certified.serial == issued.serial
    assert certified.expires_at == issued.expires_at == NOW + 7 * DAY_S
    other = Authority(tmp_path / "other", now=NOW)
    with pytest.raises(WrongKey):
        read_certificate(issued.pem, authority=other.pem)
    with pytest.raises(DataError):
        read_certificate("nothing", authority=authority.pem)


def test_a_servers_certificate_is_no_peers(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    issued = authority.issue_for_server(["localhost"], key, now=NOW, life_s=DAY_S)
    with pytest.raises(DataError, match="another kind"):
        read_certificate(issued.pem, authority=authority.pem)
    assert certificates_in(issued.pem + authority.pem) == issued.pem + authority.pem


def test_of_a_file_with_a_key_the_certificates_alone_are_taken(authority: Authority) -> None:
    public, key = new_server_key()
    issued = authority.issue_for_server(["localhost"], public, now=NOW, life_s=DAY_S)
    for file in (key.decode() + issued.pem, f"chain of ours\n{issued.pem}\n{key.decode()}"):
        assert certificates_in(file) == issued.pem
    with pytest.raises(DataError):
        certificates_in(key.decode())
