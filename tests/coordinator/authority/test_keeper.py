"""Files for TLS follow the store and the clock, and whoever reads them is told."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from coordinator.authority import keeper as keeper_module
from coordinator.authority.authority import Authority, new_server_key
from coordinator.authority.keeper import SERVER_LIFE_S, GivenCertificate, Keeper
from coordinator.broker.access import access_list
from coordinator.store.store import REVOKED, Store
from shared.crypto.identity import Identity
from shared.errors import DataError, StorageError
from shared.types import DeviceId
from shared.wire import topics
from tests.support.brokers import eventually
from tests.support.clocks import VirtualClock

DAY_S = 86_400.0


class Kept:
    """A keeper on a clock of its own."""

    def __init__(self, home: Path, given: GivenCertificate | None = None) -> None:
        self.home = home
        self.clock = VirtualClock(start_s=1_800_000_000.0)
        self.store = Store(f"sqlite:///{home / 'store.db'}", home)
        self.authority = Authority(home / "authority", now=self.clock.now())
        self.reloads = 0
        self.keeper = Keeper(
            self.authority,
            self.store,
            Identity.load_or_create(home / "identity.key"),
            home,
            names=["llmos.example.org", "127.0.0.1"],
            now=self.clock.now,
            given=given,
            reload_broker=self.reloaded,
        )

    def reloaded(self) -> None:
        self.reloads += 1

    @property
    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.keeper.folder.iterdir()}

    def revoke(self, name: str) -> int:
        """Of a device that joined and has a certificate; gives the number of that."""
        identity = Identity.create(self.home / f"{name}.key")
        now = self.clock.now()
        self.store.join(
            self.store.new_token(expires_at=now + 9), DeviceId(name), identity.public, now=now
        )
        serial = abs(hash(name)) + 1
        self.store.certificates.add(serial, name, "", now=now, expires_at=now + DAY_S)
        self.store.set_standing(DeviceId(name), REVOKED, "", now=now)
        return serial


def revoked_in(pem: bytes) -> set[int]:
    return {each.serial_number for each in x509.load_pem_x509_crl(pem)}


def test_all_is_there_at_once_and_keys_are_their_owners(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    files = kept.keeper.broker_files
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["llmos.example.org"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    assert revoked_in(files.revocations.read_bytes()) == set()
    assert kept.keeper.trusted() == kept.authority.pem
    own = x509.load_pem_x509_certificate((kept.keeper.folder / "client.pem").read_bytes())
    assert own.subject.rfc4514_string() == f"CN={topics.COORDINATOR}"


def test_nothing_is_written_while_nothing_happens(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    before = kept.files
    kept.clock.run(until_s=kept.clock.now() + SERVER_LIFE_S / 2)
    assert not kept.keeper.look()
    assert kept.files == before
    assert kept.reloads == 0


def test_a_revocation_is_on_both_lists_after_one_look_whoever_wrote_it(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    first = kept.revoke("kitchen")
    assert kept.keeper.look()
    files = kept.keeper.broker_files
    assert revoked_in(files.revocations.read_bytes()) == {first}
    assert files.access_list.read_text() == access_list({"kitchen"})
    second = kept.revoke("cellar")
    assert kept.keeper.look()
    assert not kept.keeper.look()
    assert revoked_in(files.revocations.read_bytes()) == {first, second}
    assert kept.reloads == 2


def test_who_was_revoked_before_the_start_is_out_from_the_start(tmp_path: Path) -> None:
    serial = Kept(tmp_path).revoke("kitchen")
    again = Kept(tmp_path)
    assert revoked_in(again.keeper.broker_files.revocations.read_bytes()) == {serial}
    assert not again.keeper.look()


def test_certificates_are_replaced_in_time(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    before = kept.files
    kept.clock.run(until_s=kept.clock.now() + SERVER_LIFE_S * 2 / 3)
    assert kept.keeper.look()
    after = kept.files
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"server.pem", "server.key", "client.pem"}
    assert not kept.keeper.look()
    assert kept.reloads == 1


def given_in(folder: Path, now: float) -> GivenCertificate:
    """One that an operator brings along, of an authority of theirs."""
    public, key = new_server_key()
    authority = Authority(folder / "theirs", now=now)
    issued = authority.issue_for_server(["llmos.example.org"], public, now=now, life_s=9 * DAY_S)
    (folder / "given.pem").write_text(issued.pem + authority.pem)
    (folder / "given.key").write_bytes(key)
    return GivenCertificate(folder / "given.pem", folder / "given.key")


def test_an_operators_own_certificate_is_taken_and_its_replacement_too(tmp_path: Path) -> None:
    given = given_in(tmp_path, 1_800_000_000.0)
    kept = Kept(tmp_path, given)
    assert kept.keeper.trusted() == kept.authority.pem + given.certificate.read_text()
    given_in(tmp_path, 1_800_000_000.0)
    os.utime(given.certificate, (1, 1))
    kept.keeper.look()
    assert (kept.keeper.folder / "trusted.pem").read_text() == kept.keeper.trusted()
    assert isinstance(kept.keeper.context, ssl.SSLContext)


def test_a_key_in_the_same_file_is_told_to_nobody(tmp_path: Path) -> None:
    given = given_in(tmp_path, 1_800_000_000.0)
    both = given.certificate.read_text() + given.key.read_text()
    given.certificate.write_text(both)
    kept = Kept(tmp_path, GivenCertificate(given.certificate, given.certificate))
    assert "CERTIFICATE" in kept.keeper.trusted()
    assert "PRIVATE" not in kept.keeper.trusted()
    assert b"PRIVATE" not in kept.files["trusted.pem"]


def test_whatever_goes_wrong_it_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(tmp_path)
    monkeypatch.setattr(keeper_module, "LOOK_S", 0.01)
    troubles = iter([OSError("disk"), RuntimeError("anything")])

    def revoked() -> frozenset[str]:
        for trouble in troubles:
            raise trouble
        return frozenset({"kitchen"})

    monkeypatch.setattr(kept.store, "revoked", revoked)
    kept.keeper.start()
    try:
        assert eventually(lambda: kept.reloads == 1)
    finally:
        kept.keeper.close()
    assert "user kitchen" in kept.keeper.broker_files.access_list.read_text()


def test_an_operators_key_that_does_not_belong_to_it_is_refused_at_the_start(
    tmp_path: Path,
) -> None:
    given = given_in(tmp_path, 1_800_000_000.0)
    _, other = new_server_key()
    given.key.write_bytes(other)
    with pytest.raises(StorageError, match="cannot be used"):
        Kept(tmp_path, given)


def test_an_access_list_takes_names_and_nothing_that_could_be_read_as_more() -> None:
    for name in ("a\nuser b", "#", "a/+", "", "ünser"):
        with pytest.raises(DataError):
            access_list({name})
