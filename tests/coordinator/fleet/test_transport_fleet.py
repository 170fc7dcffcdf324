"""Peers are who their keys say, are there while they speak, and are reached on their own branch."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from coordinator.fleet.standings import judge
from coordinator.fleet.transport_fleet import PRESENT_S, AboutDevice, TransportFleet
from coordinator.store.store import Device, Store
from shared.crypto.identity import Identity
from shared.errors import (
    BadSignature,
    NotPermitted,
    ProtocolError,
    ReplayedMessage,
    UndecodableMessage,
)
from shared.transport.memory import MemoryNetwork
from shared.types import DeviceId, RoundNumber, RunId
from shared.wire import topics
from shared.wire.envelope import Post, seal
from shared.wire.messages import About, Call, Message, Presence, Receipt, RunOver
from tests.support.clocks import VirtualClock


class Peer:
    """Somebody with a key."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = DeviceId(name)
        self.identity = Identity.create(folder / f"{name}.key")
        self.post = Post(self.identity, folder / name)

    def says(self, message: Message) -> tuple[str, bytes]:
        return topics.up(self.name), self.post.seal(message)


class Scene:
    """A fleet of two devices and a key holder, and whatever reaches them."""

    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock(start_s=100.0)
        network = MemoryNetwork(self.clock.schedule, np.random.default_rng(1), now=self.clock.now)
        self.heard: list[tuple[str, bytes]] = []
        network.attach("all").open(lambda topic, data: self.heard.append((topic, data)), ["#"])
        self.coordinator = Peer("coordinator", folder)
        self.a, self.b = Peer("a", folder), Peer("b", folder)
        self.holder = Peer(topics.KEY_HOLDER, folder)
        self.folder = folder
        self.registry = [Device(peer.name, peer.identity.public, 0.0) for peer in (self.a, self.b)]
        transport = network.attach("coordinator")
        transport.open(lambda topic, data: None, [])
        self.fleet = TransportFleet(
            transport,
            self.coordinator.post,
            key_holder=self.holder.identity.public,
            devices=lambda: self.registry,
            now=self.clock.now,
        )


@pytest.fixture
def s(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_message_comes_from_whoever_signed_it(s: Scene) -> None:
    for peer in (s.a, s.b, s.holder):
        name, envelope = s.fleet.open(*peer.says(Presence("idle")))
        assert (name, envelope.sender) == (peer.name, peer.identity.public)
        assert envelope.message == Presence("idle")


def test_nobody_speaks_on_anothers_branch(s: Scene) -> None:
    _, sealed = s.a.says(Presence("idle"))
    for name in ("b", topics.KEY_HOLDER):
        with pytest.raises(UndecodableMessage, match="not who"):
            s.fleet.open(topics.up(DeviceId(name)), sealed)


@pytest.mark.parametrize(
    "topic", ["llmos/v1/up/stranger", "llmos/v1/down/a", "llmos/v1/up/a/b", "a", "", "llmos/v1/up/"]
)
def test_nobody_unknown_is_listened_to(s: Scene, topic: str) -> None:
    with pytest.raises(UndecodableMessage, match="nobody known"):
        s.fleet.open(topic, s.a.says(Presence("idle"))[1])


def test_a_forged_or_repeated_message_is_refused(s: Scene) -> None:
    topic, sealed = s.a.says(Presence("idle"))
    with pytest.raises(BadSignature):
        s.fleet.open(topic, sealed[:-1] + bytes([sealed[-1] ^ 1]))
    assert s.fleet.heard(s.a.name) == (float("-inf"), "unknown"), "it counts for nothing"
    s.fleet.open(topic, sealed)
    with pytest.raises(ReplayedMessage):
        s.fleet.open(topic, sealed)


def test_a_replay_is_refused_after_a_restart_too(s: Scene) -> None:
    topic, sealed = s.a.says(Presence("idle"))
    s.fleet.open(topic, sealed)
    s.fleet.save_replay_guard()
    again = Post(s.coordinator.identity, s.folder / "coordinator")
    with pytest.raises(ReplayedMessage):
        again.open(sealed, expected=s.a.identity.public)


def test_without_a_key_holder_nobody_speaks_as_one(s: Scene) -> None:
    s.fleet._holder = None
    with pytest.raises(UndecodableMessage, match="nobody known"):
        s.fleet.open(*s.holder.says(Presence("idle")))


def test_a_device_is_present_while_it_is_idle_and_was_heard_lately(s: Scene) -> None:
    assert s.fleet.present() == []
    s.fleet.open(*s.a.says(Presence("idle")))
    assert s.fleet.present() == [], "what it does is not known yet"
    s.fleet.set_state(s.a.name, "idle")
    assert s.fleet.present() == ["a"]
    s.clock.run(until_s=100.0 + PRESENT_S)
    assert s.fleet.present() == ["a"]
    s.clock.run(until_s=100.0 + PRESENT_S + 0.01)
    assert s.fleet.present() == []
    s.fleet.open(*s.a.says(Presence("training")))
    s.fleet.set_state(s.a.name, "training")
    assert s.fleet.present() == []
    assert s.fleet.heard(s.a.name) == (s.clock.now(), "training")


def test_a_device_that_joins_later_is_known_at_its_first_word(s: Scene, tmp_path: Path) -> None:
    late = Peer("late", tmp_path)
    with pytest.raises(UndecodableMessage):
        s.fleet.open(*late.says(Presence("idle")))
    s.registry.append(Device(late.name, late.identity.public, 100.0))
    name, _ = s.fleet.open(*late.says(Presence("idle")))
    assert name == "late"
    assert s.fleet.known() == ["a", "b", "late"]


def test_a_message_goes_to_one_device_and_a_call_to_all(s: Scene) -> None:
    s.fleet.send(s.a.name, RunOver(), run=RunId("run"), round_=RoundNumber(3))
    s.fleet.call()
    s.clock.run()
    (topic, sealed), (everywhere, call) = s.heard
    assert (topic, everywhere) == (topics.down(s.a.name), topics.CALL)
    envelope = s.a.post.open(sealed, expected=s.coordinator.identity.public)
    assert (envelope.run, envelope.round, envelope.message) == ("run", 3, RunOver())
    opened = s.b.post.open(call, expected=s.coordinator.identity.public)
    assert opened.message == Call()


def test_the_registry_may_be_a_store(tmp_path: Path, s: Scene) -> None:
    store = Store(f"sqlite:///{tmp_path / 'store.db'}", tmp_path)
    token = store.new_token(expires_at=10.0)
    store.join(token, s.a.name, s.a.identity.public, now=1.0)
    s.registry = store.devices()
    assert s.fleet.open(*s.a.says(Presence("idle")))[0] == "a"
    store.close()


def test_a_message_signed_with_the_coordinators_own_key_is_no_devices(s: Scene) -> None:
    forged = seal(
        s.coordinator.identity,
        9999,
        Receipt("0" * 64),
        run=RunId("run"),
        round_=RoundNumber(1),
    )
    with pytest.raises(UndecodableMessage):
        s.fleet.open(topics.up(s.a.name), forged)


def test_a_device_in_quarantine_is_neither_heard_nor_invited_until_it_is_let_out(s: Scene) -> None:
    s.fleet.open(*s.a.says(Presence("idle")))
    s.fleet.set_state(s.a.name, "idle")
    assert s.fleet.present() == [s.a.name]
    s.fleet.set_standing(s.a.name, "quarantined")
    assert s.fleet.present() == []
    with pytest.raises(NotPermitted, match="quarantined"):
        s.fleet.open(*s.a.says(Presence("idle")))
    s.fleet.set_standing(s.a.name, "trusted")
    assert s.fleet.present() == [s.a.name]
    s.fleet.open(*s.a.says(Presence("idle")))


def test_a_device_whose_row_says_revoked_is_not_heard_after_a_restart(s: Scene) -> None:
    gone = Peer("gone", s.folder)
    s.registry.append(Device(gone.name, gone.identity.public, 0.0, "revoked"))
    with pytest.raises(NotPermitted, match="revoked"):
        s.fleet.open(*gone.says(Presence("idle")))


def test_a_standing_that_is_set_while_the_registry_is_read_is_not_lost(
    tmp_path: Path, s: Scene
) -> None:
    """Row and memory say the same (D1), whichever of the two threads comes first."""
    store = Store(f"sqlite:///{tmp_path / 'store.db'}", tmp_path)
    token = store.new_token(expires_at=10.0)
    store.join(token, DeviceId("late"), Identity.create(tmp_path / "late.key").public, now=1.0)
    judging: list[threading.Thread] = []

    def registry() -> list[Device]:
        found = store.devices()
        thread = threading.Thread(
            target=judge,
            args=(store, s.fleet, DeviceId("late"), "quarantined", ""),
            kwargs={"now": 2.0},
        )
        judging.append(thread)
        thread.start()
        thread.join(timeout=0.3)  # it must not come in between; it may be waiting
        return found

    s.fleet._registry = registry
    s.fleet._refresh()
    judging[0].join()
    assert s.fleet._stations[DeviceId("late")].standing == "quarantined"
    store.close()


@pytest.mark.parametrize(
    ("told", "known"),
    [
        (About("0.1.0", "", ""), AboutDevice("0.1.0", "", None)),
        (
            About("1!2.0rc1+x_y-z", "budget-spent", "0.00"),
            AboutDevice("1!2.0rc1+x_y-z", "budget-spent", 0.0),
        ),
        (About("2", "of-a-newer-agent", "123.5"), AboutDevice("2", "of-a-newer-agent", 123.5)),
    ],
)
def test_what_a_device_tells_of_itself_is_kept(s: Scene, told: About, known: AboutDevice) -> None:
    assert s.fleet.about(s.a.name) is None
    s.fleet.set_about(s.a.name, AboutDevice.read(told))
    assert s.fleet.about(s.a.name) == known
    assert s.fleet.about(DeviceId("nobody")) is None


@pytest.mark.parametrize(
    ("told", "field"),
    [
        (About("", "", ""), "version"),
        (About("1" * 33, "", ""), "version"),
        (About("<b>", "", ""), "version"),
        (About("1", "Spent", ""), "condition"),
        (About("1", "x" * 33, ""), "condition"),
        (About("1", "", "-1"), "budget_left"),
        (About("1", "", "nan"), "budget_left"),
        (About("1", "", "1e9"), "budget_left"),
        (About("1", "", "9" * 10), "budget_left"),
        (About("1", "", "1.5\n"), "budget_left"),
        (About("1", "", "\u0661"), "budget_left"),
    ],
)
def test_what_no_device_of_ours_tells_is_refused_by_its_name(told: About, field: str) -> None:
    with pytest.raises(ProtocolError, match=rf"about\.{field}"):
        AboutDevice.read(told)
