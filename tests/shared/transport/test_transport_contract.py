"""One contract, every transport: what holds in memory holds over a real broker."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import pytest

from coordinator.broker.embedded import EmbeddedBroker
from shared.transport.memory import MemoryNetwork
from shared.transport.mqtt import MqttTransport
from shared.transport.transport import MAX_PAYLOAD_BYTES, Transport
from tests.support.brokers import eventually
from tests.support.clocks import VirtualClock

CHUNK_BYTES = 256 * 1024


class Inbox(list[tuple[str, bytes]]):
    """Remembers what was delivered; a handler."""

    def __call__(self, topic: str, payload: bytes) -> None:
        self.append((topic, payload))


class Network(Protocol):
    """A transport under test with whatever carries its messages."""

    def end(self, name: str) -> Transport: ...

    def wait_for(self, condition: Callable[[], bool]) -> bool: ...


class InMemory:
    """Virtual time: waiting means running what is due."""

    def __init__(self) -> None:
        self._clock = VirtualClock()
        self._network = MemoryNetwork(
            self._clock.schedule, np.random.default_rng(1), now=self._clock.now
        )

    def end(self, name: str) -> Transport:
        return self._network.attach(name)

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        while not condition():
            if not self._clock.step():
                return False
        return True


class OverMqtt:
    """Real time and a real Mosquitto."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker
        self.ends: list[Transport] = []

    def end(self, name: str) -> Transport:
        end = MqttTransport(self._broker.host, self._broker.port, name)
        self.ends.append(end)
        return end

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        return eventually(condition)


@pytest.fixture(params=["memory", pytest.param("mqtt", marks=pytest.mark.broker)])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    if request.param == "memory":
        yield InMemory()
        return
    over_mqtt = OverMqtt(request.getfixturevalue("broker"))
    yield over_mqtt
    for end in over_mqtt.ends:
        end.close()


def nothing(_topic: str, _payload: bytes) -> None:
    """The handler of an end that only sends."""


def test_a_message_arrives_whole_at_every_subscriber(network: Network) -> None:
    first, second, sender = Inbox(), Inbox(), network.end("sender")
    network.end("first").open(first, ["news/#"])
    network.end("second").open(second, ["news/today"])
    sender.open(nothing, [])
    payload = bytes(range(256))
    assert sender.publish("news/today", payload)
    assert network.wait_for(lambda: bool(first and second))
    assert first == second == [("news/today", payload)]


def test_two_ends_talk_to_each_other(network: Network) -> None:
    left, right = network.end("left"), network.end("right")
    answers = Inbox()
    right.open(lambda _, question: _check(right.publish("answer", question.upper())), ["question"])
    left.open(answers, ["answer"])
    assert left.publish("question", b"anybody?")
    assert network.wait_for(lambda: bool(answers))
    assert answers == [("answer", b"ANYBODY?")]


def _check(truth: bool) -> None:
    assert truth


def test_only_matching_topics_are_delivered(network: Network) -> None:
    inbox, sender = Inbox(), network.end("sender")
    network.end("reader").open(inbox, ["fed/+/update", "fed/a/#", "end"])
    sender.open(nothing, [])
    for topic in ("fed/b/update", "fed/b/receipt", "fed", "fed/a", "fed/a/x/y", "fed/b/update/1"):
        assert sender.publish(topic, b"")
    assert sender.publish("end", b"")
    assert network.wait_for(lambda: ("end", b"") in inbox)
    assert [topic for topic, _ in inbox] == ["fed/b/update", "fed/a", "fed/a/x/y", "end"]


def test_messages_of_one_sender_on_one_topic_keep_their_order(network: Network) -> None:
    inbox, sender = Inbox(), network.end("sender")
    network.end("reader").open(inbox, ["count/+"])
    sender.open(nothing, [])
    for number in range(600):
        assert sender.publish(f"count/{number % 3}", number.to_bytes(2))
    assert network.wait_for(lambda: len(inbox) == 600)
    for branch in range(3):
        seen = [int.from_bytes(body) for topic, body in inbox if topic == f"count/{branch}"]
        assert seen == list(range(branch, 600, 3))


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 300 * 1024, MAX_PAYLOAD_BYTES])
def test_payloads_from_nothing_to_the_largest(network: Network, size: int) -> None:
    inbox, sender = Inbox(), network.end("sender")
    network.end("reader").open(inbox, ["blob"])
    sender.open(nothing, [])
    payload = os.urandom(size)
    assert sender.publish("blob", payload)
    assert network.wait_for(lambda: bool(inbox))
    assert inbox == [("blob", payload)]


def test_several_threads_may_publish_at_once(network: Network) -> None:
    inbox, sender = Inbox(), network.end("sender")
    network.end("reader").open(inbox, ["thread/+"])
    sender.open(nothing, [])

    def work(thread: int) -> int:
        return sum(sender.publish(f"thread/{thread}", bytes([n])) for n in range(100))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 800
    assert network.wait_for(lambda: len(inbox) == 800)
    by_thread = defaultdict(list)
    for topic, payload in inbox:
        by_thread[topic].append(payload[0])
    assert len(by_thread) == 8
    assert all(numbers == list(range(100)) for numbers in by_thread.values())
    assert sender.bytes_out == 800


def test_nothing_leaves_before_open_or_after_close(network: Network) -> None:
    inbox, sender = Inbox(), network.end("sender")
    network.end("reader").open(inbox, ["t"])
    assert (sender.connected, sender.publish("t", b"too early")) == (False, False)
    sender.open(nothing, [])
    assert (sender.connected, sender.publish("t", b"in time")) == (True, True)
    sender.close()
    assert (sender.connected, sender.publish("t", b"too late")) == (False, False)
    assert network.wait_for(lambda: bool(inbox))
    assert inbox == [("t", b"in time")]
    assert sender.bytes_out == len(b"in time")


def test_what_was_published_before_close_still_arrives(network: Network) -> None:
    inbox, sender = Inbox(), network.end("sender")
    network.end("reader").open(inbox, ["blob"])
    sender.open(nothing, [])
    for _ in range(40):
        assert sender.publish("blob", bytes(CHUNK_BYTES))
    sender.close()
    assert network.wait_for(lambda: len(inbox) == 40)


def test_nothing_is_delivered_after_close(network: Network) -> None:
    closed, open_, sender = Inbox(), Inbox(), network.end("sender")
    leaver = network.end("leaver")
    leaver.open(closed, ["t"])
    network.end("stayer").open(open_, ["t"])
    sender.open(nothing, [])
    leaver.close()
    assert sender.publish("t", b"")
    assert network.wait_for(lambda: bool(open_))
    assert closed == []


def test_a_closed_end_may_open_again_with_other_topics(network: Network) -> None:
    before, after, sender = Inbox(), Inbox(), network.end("sender")
    reader = network.end("reader")
    sender.open(nothing, [])
    reader.open(before, ["old"])
    reader.close()
    reader.open(after, ["new"])
    assert sender.publish("old", b"")
    assert sender.publish("new", b"")
    assert network.wait_for(lambda: bool(after))
    assert (before, after) == ([], [("new", b"")])


def test_an_open_end_cannot_be_opened_twice(network: Network) -> None:
    end = network.end("end")
    end.open(nothing, [])
    with pytest.raises(RuntimeError, match="open already"):
        end.open(nothing, [])
    assert end.connected


def test_closing_twice_or_never_having_opened_is_harmless(network: Network) -> None:
    end = network.end("end")
    end.close()
    end.open(nothing, ["t"])
    end.close()
    end.close()


def test_an_end_may_be_closed_by_its_own_handler(network: Network) -> None:
    seen, sender, reader = Inbox(), network.end("sender"), network.end("reader")

    def once(topic: str, payload: bytes) -> None:
        seen(topic, payload)
        reader.publish("bye", payload)
        reader.close()

    reader.open(once, ["t"])
    sender.open(nothing, [])
    assert sender.publish("t", b"1")
    assert network.wait_for(lambda: bool(seen) and not reader.connected)


@pytest.mark.parametrize("topic", ["", "a/+", "#"])
def test_a_malformed_topic_is_refused_and_not_counted(network: Network, topic: str) -> None:
    sender = network.end("sender")
    sender.open(nothing, [])
    with pytest.raises(ValueError, match="topic"):
        sender.publish(topic, b"x")
    with pytest.raises(ValueError, match="payload"):
        sender.publish("t", bytes(MAX_PAYLOAD_BYTES + 1))
    assert sender.bytes_out == 0
    assert sender.connected


def test_a_malformed_filter_is_refused_and_the_end_stays_closed(network: Network) -> None:
    end = network.end("end")
    with pytest.raises(ValueError, match="whole level"):
        end.open(nothing, ["good", "b#d"])
    assert not end.connected
    end.open(nothing, ["good"])
