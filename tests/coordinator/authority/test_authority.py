"""What the coordinator's authority signs holds where OpenSSL looks at it, and nowhere else."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from coordinator.authority.authority import (
    CERTIFICATE_FILE,
    KEY_FILE,
    Authority,
    Issued,
    new_server_key,
)
from shared.crypto.certificates import Requested
from shared.crypto.identity import Identity
from shared.errors import ConfigError, StorageError

NOW = 1_800_000_000.0
DAY_S = 86_400.0


def issued_for(authority: Authority, folder: Path, name: str = "kitchen") -> Issued:
    identity = Identity.load_or_create(folder / "device.key")
    return authority.issue(Requested(name, identity.public), now=NOW, life_s=7 * DAY_S)


def holds(
    folder: Path, authority: Authority, issued: Issued, *, at: float = NOW, revoked: bytes = b""
) -> bool:
    """What OpenSSL says to it as a client's certificate."""
    (folder / "ca").write_text(authority.pem)
    (folder / "certificate").write_text(issued.pem)
    command = [
        "openssl",
        "verify",
        "-attime",
        str(int(at)),
        "-purpose",
        "sslclient",
        "-x509_strict",
    ]
    if revoked:
        (folder / "revoked").write_bytes(revoked)
        command += ["-crl_check", "-CRLfile", str(folder / "revoked")]
    command += ["-CAfile", str(folder / "ca"), str(folder / "certificate")]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (NOW, True),
        (NOW - DAY_S, True),  # a clock that is a day late
        (NOW + 6.9 * DAY_S, True),
        (NOW + 7.1 * DAY_S, False),
        (NOW - 3 * DAY_S, False),
    ],
)
def test_a_certificate_holds_for_its_life_and_for_a_clock_that_is_late(
    tmp_path: Path, at: float, expected: bool
) -> None:
    authority = Authority(tmp_path / "authority", now=NOW - 300 * DAY_S)
    assert holds(tmp_path, authority, issued_for(authority, tmp_path), at=at) is expected


def test_a_list_of_revocations_ends_those_on_it_and_no_others(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority", now=NOW)
    one, other = issued_for(authority, tmp_path), issued_for(authority, tmp_path)
    assert one.serial != other.serial
    listed = authority.revocations([one.serial], now=NOW)
    assert not holds(tmp_path, authority, one, revoked=listed)
    assert holds(tmp_path, authority, other, revoked=listed)
    # Years later, too: nobody has to make a new one in time.
    assert holds(tmp_path, authority, one, revoked=authority.revocations([], now=NOW - 2 * DAY_S))


def test_a_peers_certificate_signs_nothing_and_serves_nobody(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority", now=NOW)
    certificate = x509.load_pem_x509_certificate(issued_for(authority, tmp_path).pem.encode())
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_the_key_is_its_owners_alone_and_the_authority_outlives_the_process(tmp_path: Path) -> None:
    first = Authority(tmp_path, now=NOW)
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    again = Authority(tmp_path, now=NOW + DAY_S)
    assert again.pem == first.pem
    assert holds(tmp_path, first, issued_for(again, tmp_path))


def test_a_crash_between_key_and_certificate_leaves_an_authority_that_works(tmp_path: Path) -> None:
    first = Authority(tmp_path, now=NOW)
    (tmp_path / CERTIFICATE_FILE).unlink()
    again = Authority(tmp_path, now=NOW)
    assert holds(tmp_path, again, issued_for(first, tmp_path))  # the key is the same


@pytest.mark.parametrize("file", [KEY_FILE, CERTIFICATE_FILE])
def test_what_is_damaged_is_said_and_not_replaced(tmp_path: Path, file: str) -> None:
    Authority(tmp_path, now=NOW)
    (tmp_path / file).write_text("rubbish")
    with pytest.raises(StorageError, match="damaged"):
        Authority(tmp_path, now=NOW)
    assert (tmp_path / file).read_text() == "rubbish"


def test_a_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    Authority(tmp_path, now=NOW)
    (tmp_path / KEY_FILE).chmod(0o640)
    with pytest.raises(StorageError, match="others may read"):
        Authority(tmp_path, now=NOW)


def test_a_key_beside_another_ones_certificate_is_refused(tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", now=NOW)
    Authority(tmp_path / "mine", now=NOW)
    (tmp_path / "mine" / CERTIFICATE_FILE).write_text(other.pem)
    with pytest.raises(StorageError, match="do not belong together"):
        Authority(tmp_path / "mine", now=NOW)


def test_a_servers_name_that_is_none_is_refused(tmp_path: Path) -> None:
    public, _ = new_server_key()
    authority = Authority(tmp_path, now=NOW)
    with pytest.raises(ConfigError, match="ünser"):
        authority.issue_for_server(["ünser.example"], public, now=NOW, life_s=DAY_S)
