"""A peer sends nothing secret to whom it does not know, and keeps a certificate that holds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.authority.authority import Authority
from shared.crypto.identity import Identity, fingerprint, format_public
from shared.enrolment import (
    CERTIFICATE,
    Enrolled,
    Renewal,
    fetch_authorities,
    is_secured,
    keep_certificate,
    time_at,
)
from shared.errors import (
    AccessDenied,
    ConfigError,
    CoordinatorUnavailable,
    DataError,
    LlmOsError,
    StorageError,
    WrongKey,
)
from shared.tls import client_context
from tests.support.tls_sites import TlsSite, tls_site

DAY_S = 86_400.0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TlsSite]:
    with tls_site(tmp_path / "site", now=time.time()) as site:
        yield site


@pytest.fixture
def enrolled(site: TlsSite, tmp_path: Path) -> Enrolled:
    home = tmp_path / "device"
    Identity.create(home / "identity.key")
    return Enrolled(home, site.url, fingerprint(site.identity.public), "kitchen")


@pytest.mark.parametrize(
    ("url", "secured"),
    [
        ("https://llmos.example.org:8443", True),
        ("https://192.0.2.7", True),
        ("http://127.0.0.1:8443", False),
        ("http://localhost:8443/", False),
        ("http://[::1]:8443", False),
    ],
)
def test_tls_is_used_where_the_address_says_so(url: str, secured: bool) -> None:
    assert is_secured(url) is secured


@pytest.mark.parametrize(
    "url",
    [
        "http://llmos.example.org:8443",
        "http://192.0.2.7",
        "http://127.0.0.1.example.org",
        "http://localhost.example.org",
        "ftp://127.0.0.1",
        "127.0.0.1:8443",
        "https://",
        "https://host:port",
        "",
    ],
)
def test_nothing_is_sent_in_clear_to_another_machine_nor_to_no_address(url: str) -> None:
    with pytest.raises(ConfigError):
        is_secured(url)


def test_who_the_pinned_coordinator_vouches_for_is_known(site: TlsSite) -> None:
    public, authorities = fetch_authorities(site.url, coordinator=fingerprint(site.identity.public))
    assert public == site.identity.public
    assert authorities == site.authority.pem


def test_another_coordinator_is_refused(site: TlsSite, tmp_path: Path) -> None:
    pinned = Identity.create(tmp_path / "pinned.key").public
    with pytest.raises(WrongKey, match="not the one that was pinned"):
        fetch_authorities(site.url, coordinator=fingerprint(pinned))
    # Nor if it says that it were the pinned one: that one's signature is not there.
    site.trust_changes = {"coordinator": format_public(pinned)}
    with pytest.raises(WrongKey, match="not signed"):
        fetch_authorities(site.url, coordinator=fingerprint(pinned))


def test_a_stranger_who_puts_an_authority_of_their_own_in_is_refused(
    site: TlsSite, tmp_path: Path
) -> None:
    theirs = Authority(tmp_path / "theirs", now=time.time())
    pinned = fingerprint(site.identity.public)
    for changes in (
        {"authorities": theirs.pem},
        {"authorities": site.authority.pem + theirs.pem},
        {"authorities": ""},
        {"signature": ""},
        {"signature": "!"},
        {"coordinator": "nobody"},
        {"authorities": "ünser"},
    ):
        site.trust_changes = changes
        with pytest.raises((WrongKey, CoordinatorUnavailable)):
            fetch_authorities(site.url, coordinator=pinned)


def test_nothing_is_asked_of_a_server_that_the_coordinator_did_not_vouch_for(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    # It passes on what the coordinator signed, and has a certificate of another authority.
    theirs = Authority(tmp_path / "theirs", now=time.time())
    with tls_site(tmp_path / "site", now=time.time(), shown_by=theirs) as between:
        there = Enrolled(enrolled.home, between.url, enrolled.coordinator, "kitchen")
        with pytest.raises(CoordinatorUnavailable, match="certificate verify failed"):
            there.renew()
        assert [path for path, _ in between.asked] == ["/api/v1/trust"]


def test_nor_of_one_that_it_vouched_for_under_another_name(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    with tls_site(tmp_path / "site", now=time.time(), name="other.example.org") as other:
        there = Enrolled(enrolled.home, other.url, enrolled.coordinator, "kitchen")
        with pytest.raises(CoordinatorUnavailable, match="certificate verify failed"):
            there.renew()
        assert [path for path, _ in other.asked] == ["/api/v1/trust"]


def test_a_certificate_is_fetched_kept_and_can_be_used(site: TlsSite, enrolled: Enrolled) -> None:
    with pytest.raises(StorageError):
        enrolled.certified()
    assert enrolled.is_due(time.time())
    answer = enrolled.renew()
    assert (answer.broker_host, answer.broker_port) == ("127.0.0.1", 8883)
    certified = enrolled.certified()
    assert certified.name == "kitchen"
    assert certified.public_key == Identity.load(enrolled.home / "identity.key").public
    enrolled.credentials().reload()
    assert not enrolled.is_due(site.now)


def test_it_is_due_after_two_thirds_of_its_life(site: TlsSite, enrolled: Enrolled) -> None:
    enrolled.renew()
    certified = enrolled.certified()
    at = certified.issued_at + (certified.expires_at - certified.issued_at) * 2 / 3
    assert not enrolled.is_due(at - 1)
    assert enrolled.is_due(at + 1)
    assert at < site.now + site.life_s * 2 / 3  # and a day's error of the clock does no harm
    assert at > site.now + 3 * DAY_S


def test_somebody_elses_certificate_does_not_take_its_place(
    site: TlsSite, enrolled: Enrolled, tmp_path: Path
) -> None:
    enrolled.renew()
    before = (enrolled.home / CERTIFICATE).read_bytes()
    other = Enrolled(tmp_path / "other", site.url, enrolled.coordinator, "kitchen")
    Identity.create(other.home / "identity.key")
    other.renew()
    for pem in ((other.home / CERTIFICATE).read_text(), site.authority.pem, "rubbish"):
        site.certificate = pem
        with pytest.raises((WrongKey, DataError)):
            enrolled.renew()
        assert (enrolled.home / CERTIFICATE).read_bytes() == before
    with pytest.raises(WrongKey):
        keep_certificate(
            enrolled.home,
            before.decode(),
            site.authority.pem,
            name="cellar",
            key=enrolled.certified().public_key,
        )


def test_a_renewal_that_fails_leaves_what_there_was_and_is_tried_again(
    site: TlsSite, enrolled: Enrolled
) -> None:
    enrolled.renew()
    before = (enrolled.home / CERTIFICATE).read_bytes()
    renewed: list[bool] = []
    clock = [site.now]
    renewal = Renewal(enrolled, on_renewed=lambda: renewed.append(True), now=lambda: clock[0])
    assert not renewal.look()
    clock[0] += 6 * DAY_S
    site.refusal = (401, "this device was revoked")
    assert not renewal.look()
    with pytest.raises(AccessDenied, match="revoked"):
        enrolled.renew()
    assert (enrolled.home / CERTIFICATE).read_bytes() == before
    site.refusal, site.now = None, clock[0]
    assert renewal.look()
    assert renewed == [True]
    assert (enrolled.home / CERTIFICATE).read_bytes() != before


def test_an_expired_certificate_is_renewed_too(site: TlsSite, enrolled: Enrolled) -> None:
    site.life_s = -DAY_S  # it was dated back two days, and ended one day ago
    enrolled.renew()
    assert enrolled.certified().expires_at < time.time()
    site.life_s = 7 * DAY_S
    assert Renewal(enrolled, on_renewed=lambda: None).look()
    assert enrolled.certified().expires_at > time.time()


def test_nobody_there_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CoordinatorUnavailable, match="llmos up"):
        fetch_authorities("https://127.0.0.1:1", coordinator="LF1-X")


def test_a_server_says_what_time_it_is(site: TlsSite) -> None:
    there = time_at(site.url, context=client_context(site.authority.pem))
    assert abs(there - time.time()) < 60
    with pytest.raises(LlmOsError):
        time_at(site.url)  # by nobody whom this machine happens to trust
