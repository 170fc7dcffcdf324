"""A real Mosquitto over TLS holds every device to its branch, and a revoked one to nothing."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coordinator.authority.authority import Authority
from coordinator.authority.enrolment import Enrolment
from coordinator.authority.keeper import Keeper
from coordinator.broker.embedded import EmbeddedBroker
from coordinator.store.store import REVOKED, Store
from shared.crypto.identity import Identity
from shared.enrolment import keep_certificate
from shared.errors import BrokerUnavailable
from shared.tls import Credentials, client_context
from shared.transport.mqtt import MqttTransport
from shared.types import DeviceId
from shared.wire import topics
from tests.support.brokers import eventually, mosquitto_or_skip
from tests.support.clocks import VirtualClock

pytestmark = pytest.mark.broker

HOUR_S = 3600.0


class Site:
    """A broker with TLS, and who may connect to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = VirtualClock(start_s=time.time())
        self.store = Store(f"sqlite:///{folder / 'store.db'}", folder)
        self.identity = Identity.create(folder / "identity.key")
        self.authority = Authority(folder / "authority", now=self.clock.now())
        self.keeper = Keeper(
            self.authority,
            self.store,
            self.identity,
            folder,
            names=["127.0.0.1"],
            now=self.clock.now,
        )
        self.broker = EmbeddedBroker(folder / "broker", files=self.keeper.broker_files)
        self.keeper.reload_broker = self.broker.reload

    def joined(self, name: str, *, authority: Authority | None = None) -> Credentials:
        """A device with a certificate, of this authority or another one."""
        home, now = self.folder / name, self.clock.now()
        home.mkdir(exist_ok=True)
        identity = Identity.load_or_create(home / "identity.key")
        token = self.store.new_token(expires_at=now + 9)
        if self.store.device(name) is None:
            self.store.join(token, DeviceId(name), identity.public, now=now)
        signs = authority or self.authority
        enrolment = Enrolment(
            signs, self.store, self.identity, None, self.keeper.trusted, self.clock.now
        )
        pem = enrolment.certify(identity.certificate_request(name))
        keep_certificate(home, pem, signs.pem, name=name, key=identity.public)
        credentials = Credentials(home / "ca.pem", home / "certificate.pem", home / "identity.key")
        if authority is not None:  # it knows the broker all the same
            credentials.context.load_verify_locations(cadata=self.authority.pem)
        return credentials


class Peer:
    """A connection, and what came over it."""

    def __init__(self, site: Site, credentials: Credentials | None, name: str) -> None:
        self.got: list[tuple[str, bytes]] = []
        self._there = threading.Lock()
        self.transport = MqttTransport(
            "127.0.0.1", site.broker.port, name, credentials=credentials, connect_timeout_s=3
        )

    def open(self, *filters: str) -> Peer:
        self.transport.open(self._take, filters)
        return self

    def _take(self, topic: str, payload: bytes) -> None:
        with self._there:
            self.got.append((topic, payload))

    def heard(self, payload: bytes) -> bool:
        return eventually(lambda: payload in [each for _, each in self.got], within_s=20)

    @property
    def payloads(self) -> list[bytes]:
        return [payload for _, payload in self.got]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    mosquitto_or_skip()
    site = Site(tmp_path_factory.mktemp("site"))
    with site.broker:
        yield site


@pytest.fixture
def peer(site: Site) -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def make(credentials: Credentials | None, name: str = "somebody") -> Peer:
        made.append(Peer(site, credentials, name))
        return made[-1]

    yield make
    for each in made:
        each.transport.close()


def test_a_device_speaks_on_its_own_branch_and_hears_its_own_and_the_call(
    site: Site, peer: Callable[..., Peer]
) -> None:
    coordinator = peer(site.keeper.credentials, "coordinator").open(topics.ALL_UP)
    kitchen = peer(site.joined("kitchen"), "a").open(topics.down("kitchen"), topics.CALL)
    cellar = peer(site.joined("cellar"), "b").open(topics.down("cellar"))
    kitchen.transport.publish(topics.up("cellar"), b"forged")
    kitchen.transport.publish(topics.down("cellar"), b"forged")
    kitchen.transport.publish(topics.CALL, b"forged")
    kitchen.transport.publish(topics.up("kitchen"), b"mine")
    assert coordinator.heard(b"mine")
    coordinator.transport.publish(topics.down("cellar"), b"for the cellar")
    coordinator.transport.publish(topics.down("kitchen"), b"for the kitchen")
    coordinator.transport.publish(topics.CALL, b"call")
    assert cellar.heard(b"for the cellar")
    assert kitchen.heard(b"for the kitchen")
    assert kitchen.heard(b"call")
    assert coordinator.payloads == [b"mine"]
    assert cellar.payloads == [b"for the cellar"]
    assert kitchen.payloads == [b"for the kitchen", b"call"]


@pytest.mark.parametrize("listened_to", [topics.down("cellar"), "llmos/#", "#", topics.ALL_UP])
def test_who_listens_elsewhere_hears_nothing(
    site: Site, peer: Callable[..., Peer], listened_to: str
) -> None:
    coordinator = peer(site.keeper.credentials, "coordinator").open(topics.ALL_UP)
    cellar = peer(site.joined("cellar"), "b").open(topics.down("cellar"))
    spy = peer(site.joined("spy"), "c").open(listened_to, topics.down("spy"))
    cellar.transport.publish(topics.up("cellar"), b"secret up")
    assert coordinator.heard(b"secret up")
    coordinator.transport.publish(topics.down("cellar"), b"secret down")
    assert cellar.heard(b"secret down")
    coordinator.transport.publish(topics.down("spy"), b"for the spy")
    assert spy.heard(b"for the spy")
    assert not {b"secret up", b"secret down"} & set(spy.payloads)


def test_who_connects_under_anothers_identifier_does_not_end_its_session(
    site: Site, peer: Callable[..., Peer]
) -> None:
    coordinator = peer(site.keeper.credentials, "coordinator").open(topics.ALL_UP)
    peer(site.joined("spy"), "coordinator").open(topics.down("spy"))
    kitchen = peer(site.joined("kitchen"), "kitchen").open(topics.down("kitchen"))
    kitchen.transport.publish(topics.up("kitchen"), b"still here")
    assert coordinator.heard(b"still here")
    assert coordinator.transport.connected


def test_without_a_certificate_of_this_authority_nobody_connects(
    site: Site, peer: Callable[..., Peer], tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other", now=site.clock.now())
    for credentials in (None, site.joined("stranger", authority=other)):
        with pytest.raises(BrokerUnavailable):
            peer(credentials, "stranger").open(topics.down("stranger"))


# Paho leaves the socket of a handshake that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_peer_does_not_take_a_broker_of_another_authority(
    site: Site, peer: Callable[..., Peer], tmp_path: Path
) -> None:
    credentials = site.joined("kitchen")
    other = Authority(tmp_path / "other", now=site.clock.now())
    context = client_context(other.pem)
    context.load_cert_chain(credentials.certificate, credentials.key)
    object.__setattr__(credentials, "context", context)
    with pytest.raises(BrokerUnavailable, match="certificate verify failed"):
        peer(credentials, "kitchen").open(topics.down("kitchen"))


def test_a_revoked_device_is_shut_out_of_its_session_and_cannot_come_back(
    site: Site, peer: Callable[..., Peer]
) -> None:
    coordinator = peer(site.keeper.credentials, "coordinator").open(topics.ALL_UP)
    thief_has = site.joined("stolen")
    thief = peer(thief_has, "stolen").open(topics.down("stolen"))
    kitchen = peer(site.joined("kitchen"), "a").open(topics.down("kitchen"))
    site.store.set_standing(DeviceId("stolen"), REVOKED, "", now=site.clock.now())
    assert site.keeper.look()

    attempts = itertools.count()

    def shut_out() -> bool:
        number = next(attempts)
        thief.transport.publish(topics.up("stolen"), b"probe %d" % number)
        kitchen.transport.publish(topics.up("kitchen"), b"mark %d" % number)
        assert coordinator.heard(b"mark %d" % number)
        return b"probe %d" % number not in coordinator.payloads

    assert eventually(shut_out, within_s=20)
    coordinator.transport.publish(topics.down("stolen"), b"secret")
    coordinator.transport.publish(topics.down("kitchen"), b"to others as ever")
    assert kitchen.heard(b"to others as ever")
    thief.transport.publish(topics.up("stolen"), b"the last")
    thief.transport.close()  # which waits until the broker has taken it
    kitchen.transport.publish(topics.up("kitchen"), b"the end")
    assert coordinator.heard(b"the end")
    assert b"the last" not in coordinator.payloads
    assert b"secret" not in thief.payloads
    with pytest.raises(BrokerUnavailable):
        peer(thief_has, "stolen").open(topics.down("stolen"))


def test_a_certificate_that_has_ended_opens_nothing(site: Site, peer: Callable[..., Peer]) -> None:
    back_s = 9 * 24 * HOUR_S
    site.clock = VirtualClock(start_s=time.time() - back_s)
    ended = site.joined("old")
    site.clock = VirtualClock(start_s=time.time())
    with pytest.raises(BrokerUnavailable):
        peer(ended, "old").open(topics.down("old"))
