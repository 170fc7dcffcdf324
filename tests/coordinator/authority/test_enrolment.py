"""Certificates go to who joined with that key and was not revoked, and are kept before they are given."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from coordinator.authority.authority import Authority
from coordinator.authority.enrolment import LIFE_S, Enrolment
from coordinator.store.certificates import AGAIN_S
from coordinator.store.store import QUARANTINED, REVOKED, Store
from shared.crypto.certificates import read_certificate
from shared.crypto.identity import Identity, verify
from shared.enrolment import trust_statement
from shared.errors import AccessDenied, DataError
from shared.types import DeviceId
from tests.support.clocks import VirtualClock

DAY_S = 86_400.0
KITCHEN = DeviceId("kitchen")


class Site:
    """A coordinator with one device that joined."""

    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock(start_s=1_800_000_000.0)
        self.store = Store(f"sqlite:///{folder / 'store.db'}", folder)
        self.identity = Identity.create(folder / "coordinator.key")
        self.device = Identity.create(folder / "device.key")
        self.holder = Identity.create(folder / "holder.key")
        self.authority = Authority(folder / "authority", now=self.clock.now())
        self.enrolment = Enrolment(
            authority=self.authority,
            store=self.store,
            identity=self.identity,
            key_holder=self.holder.public,
            trusted=lambda: self.authority.pem,
            now=self.clock.now,
        )
        token = self.store.new_token(expires_at=self.clock.now() + 60)
        self.store.join(token, KITCHEN, self.device.public, now=self.clock.now())

    def serials(self, *names: str) -> list[int]:
        return self.store.certificates.serials(set(names))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_device_that_joined_gets_one_over_its_key_and_it_is_in_the_store(site: Site) -> None:
    pem = site.enrolment.certify(site.device.certificate_request("kitchen"))
    certified = read_certificate(pem, authority=site.authority.pem)
    assert (certified.name, certified.public_key) == ("kitchen", site.device.public)
    assert certified.expires_at == site.clock.now() + LIFE_S
    assert site.serials("kitchen") == [certified.serial]
    assert site.serials("cellar") == []


def test_so_does_the_key_holder_under_its_own_name(site: Site) -> None:
    pem = site.enrolment.certify(site.holder.certificate_request("key-holder"))
    assert read_certificate(pem, authority=site.authority.pem).public_key == site.holder.public


@pytest.mark.parametrize(
    ("who", "name"),
    [
        ("device", "cellar"),  # nobody of this name joined
        ("device", "key-holder"),
        ("device", "coordinator"),
        ("holder", "kitchen"),
        ("holder", "coordinator"),
        ("identity", "coordinator"),  # the coordinator itself asks nobody
        ("device", "kitchen\x00"),
        ("device", "KITCHEN"),
        ("device", "#"),
    ],
)
def test_nobody_gets_one_under_a_name_that_its_key_did_not_join_under(
    site: Site, who: str, name: str
) -> None:
    identity: Identity = getattr(site, who)
    with pytest.raises(AccessDenied, match="nobody has joined"):
        site.enrolment.certify(identity.certificate_request(name))
    assert site.serials("kitchen", "key-holder", "coordinator", name) == []


def test_without_a_key_holder_nobody_is_it(site: Site) -> None:
    request = site.holder.certificate_request("key-holder")
    bare = Enrolment(site.authority, site.store, site.identity, None, lambda: "", site.clock.now)
    with pytest.raises(AccessDenied):
        bare.certify(request)


def test_a_revoked_device_gets_none_and_a_quarantined_one_does(site: Site) -> None:
    request = site.device.certificate_request("kitchen")
    site.store.set_standing(KITCHEN, QUARANTINED, "", now=1.0)
    assert site.enrolment.certify(request)
    site.store.set_standing(KITCHEN, REVOKED, "", now=2.0)
    with pytest.raises(AccessDenied, match="revoked"):
        site.enrolment.certify(request)


def test_who_repeats_a_request_makes_no_rows(site: Site) -> None:
    request = site.device.certificate_request("kitchen")
    first = site.enrolment.certify(request)
    for _ in range(20):
        assert site.enrolment.certify(request) == first
    site.clock.run(until_s=site.clock.now() + AGAIN_S + 1)
    assert site.enrolment.certify(request) != first
    assert len(site.serials("kitchen")) == 2


def test_expired_ones_are_forgotten_and_those_that_hold_are_not(site: Site) -> None:
    request = site.device.certificate_request("kitchen")
    for _ in range(40):
        site.enrolment.certify(request)
        site.clock.run(until_s=site.clock.now() + DAY_S)
    assert 7 <= len(site.serials("kitchen")) <= 9


def test_by_what_servers_are_known_is_signed_with_the_pinned_identity(site: Site) -> None:
    authorities, signature = site.enrolment.signed_trust()
    assert authorities == site.authority.pem
    verify(site.identity.public, base64.b64decode(signature), trust_statement(authorities))


def test_rubbish_is_refused(site: Site) -> None:
    with pytest.raises(DataError):
        site.enrolment.certify("rubbish")
