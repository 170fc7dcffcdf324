"""Somebody on the fleet's broker, and devices that joined, were approved, and mean harm."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

from edge_agent.membership import join
from shared.config import read_json
from shared.crypto.identity import Identity, fingerprint, parse_public
from shared.crypto.public_key import PublicKeySum
from shared.crypto.sum_cipher import SumContext
from shared.errors import ProtocolError
from shared.files import digest_of
from shared.job import RunPlan
from shared.key_holder.approvals import Approvals
from shared.transport.mqtt import MqttTransport
from shared.types import RoundNumber, RunId
from shared.wire import codec, topics
from shared.wire.chunks import CHUNK_BYTES
from shared.wire.envelope import SequenceSource, open_sealed, seal
from shared.wire.messages import (
    BlobChunk,
    BlobRequest,
    Contribution,
    Declined,
    HandOver,
    Invitation,
    KeyAnnouncement,
    Message,
    Presence,
    Refusal,
)
from sim.fleet_processes import KEY_HOLDER, FleetProcesses
from tests.support.hostile import (
    Liar,
    Poisoner,
    RawRequest,
    bombs,
    extended,
    flipped,
    spliced,
    truncated,
)
from tests.support.stories import wait_for

KEPT_OF_A_KIND: Final = 6
"""Recorded messages of each kind on each topic."""

AT_ONCE: Final = 100
"""So many messages are sent before the attacker waits until they were read."""


class Log:
    """What a process says, read on as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0
        self.text = ""

    def __contains__(self, words: str) -> bool:
        with self.path.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        self._at += len(new)
        self.text += new.decode()
        return words in self.text

    def refused(self) -> Counter[str]:
        """How many messages were refused, by code; those of a wrong kind by kind."""
        # Not read as JSON: the server of the API writes there too, sometimes into the same line.
        lines = self.path.read_text(encoding="utf-8").splitlines()
        found = [
            re.search('"(?:code|kind)": "([^"]*)"', line)
            for line in lines
            if '"event": "message.refused"' in line
        ]
        return Counter(match[1] for match in found if match is not None)


class Eavesdropper:
    """Has access to the broker and to no key: records everything, publishes anything."""

    def __init__(self, port: int, folder: Path, logs: dict[str, Log], seed: int) -> None:
        """``logs`` of the processes that are attacked, by the topic that they listen to."""
        self.rng = Random(seed)
        self.sent: Counter[str] = Counter()
        self.logs = logs
        self._heard: dict[str, dict[str, deque[bytes]]] = defaultdict(dict)
        self._own: set[int] = set()
        self._marks = 1000
        folder.mkdir()
        stranger = Identity.create(folder / "identity.key")
        self._stranger = Liar(stranger, SequenceSource(folder / "sequence"))
        self._transport = MqttTransport("127.0.0.1", port, "eavesdropper")
        self._transport.open(self._record, ("llmos/#",))

    def close(self) -> None:
        """Leave the broker."""
        self._transport.close()

    def heard(self, topic: str, kind: str | None = None) -> list[bytes]:
        """Recorded messages on a topic."""
        kept = dict(self._heard.get(topic, {}))
        return [
            payload for name, of in kept.items() if kind in {None, name} for payload in list(of)
        ]

    def publish(self, topic: str, payload: bytes) -> None:
        """Send bytes."""
        self._own.add(hash(payload))
        wait_for(lambda: self._transport.publish(topic, payload) or None, "the broker")
        self.sent[topic] += 1

    def mutation(self, topic: str, others: Sequence[str]) -> bytes:
        """Something for an inbox that nobody sent who may."""
        rng = self.rng
        heard = self.heard(topic)
        elsewhere = [payload for other in others for payload in self.heard(other)]
        one, other = rng.choice(heard), rng.choice(heard + elsewhere)
        make: list[Callable[[], bytes]] = [
            lambda: flipped(rng, one),
            lambda: flipped(rng, one),
            lambda: truncated(rng, one),
            lambda: extended(rng, one),
            lambda: spliced(rng, one, other),
            lambda: one,
            lambda: rng.choice(elsewhere),
            lambda: bombs(rng),
            lambda: self._stranger.malformed(rng, "small", 1),
            lambda: self._stranger.silly(rng, "small", 1, []),
        ]
        return rng.choice(make)()

    def mark(self, topic: str) -> None:
        """Wait until the process that listens to a topic has read everything sent so far."""
        self._marks += 1
        marker = self._stranger.sealed("call", b"\xa0", version=self._marks)
        self.publish(topic, marker)
        wait_for(
            lambda: f"version {self._marks} of" in self.logs[topic] or None, f"{topic} to be read"
        )

    def _record(self, topic: str, payload: bytes) -> None:
        if hash(payload) in self._own or "hostile" in topic:
            return
        try:
            kind = codec.decode(payload)[1]
        except ProtocolError:
            return  # of another attacker
        kept = self._heard[topic].setdefault(kind, deque(maxlen=KEPT_OF_A_KIND))
        kept.append(payload)


class HostileDevice:
    """Joined and approved like any other; what it sends is up to the test."""

    def __init__(self, fleet: FleetProcesses, name: str) -> None:
        self.name = name
        self.refusals: dict[str, str] = {}
        self.invitations: dict[int, Invitation] = {}
        self.handed_over: set[int] = set()
        self.withholds = True
        """Whether it keeps the updates that it is bound to for itself."""
        self.retired = False
        """Whether it declines every further round."""
        self._frames: dict[str, bytes] = {}
        self._blobs: dict[str, bytes] = {}
        home = fleet.home(name)
        holder = Identity.load(fleet.home(KEY_HOLDER) / "identity.key").public
        token = fleet.client.post("/api/v1/devices/tokens", {})["token"]
        membership = join(
            home, fleet.ready["url"], token, name=name, key_holder=fingerprint(holder)
        )
        self._coordinator = parse_public(membership.coordinator)
        self._holder = holder
        self._identity = Identity.load(home / "identity.key")
        self._sequence = SequenceSource(home / "sequence")
        self.liar = Liar(self._identity, self._sequence)
        approvals = Approvals(fleet.home(KEY_HOLDER) / "approvals.json")
        approvals.approve(name, self._identity.public)
        self._transport = MqttTransport("127.0.0.1", membership.broker_port, name)
        self._transport.open(self._receive, (topics.down(name),))

    def close(self) -> None:
        """Leave the broker."""
        self._transport.close()

    def send(self, message: Message, run: str = "", number: int = 0) -> None:
        """Sign and publish a message, as a real device does."""
        sealed = seal(
            self._identity,
            self._sequence.next(),
            message,
            run=RunId(run),
            round_=RoundNumber(number),
        )
        self.publish(sealed)

    def publish(self, sealed: bytes) -> None:
        """Publish on its own branch."""
        assert self._transport.publish(topics.up(self.name), sealed)

    def show(self) -> None:
        """Say that it waits to be invited."""
        self.send(Presence("idle"))

    def poisoner(self, number: int, earlier: bytes) -> Poisoner:
        """Makes updates of a round that this device was invited to."""
        invitation = self.invitations[number]
        plan = read_json(RunPlan, invitation.plan, source="plan")
        announced = open_sealed(invitation.announcement, expected=self._holder).message
        assert isinstance(announced, KeyAnnouncement)

        def fetched() -> bytes | None:
            if announced.digest not in self._blobs:
                self.send(BlobRequest(announced.digest, 0, announced.size))
            data = self._blobs.get(announced.digest, b"")
            return data if len(data) == announced.size else None

        public_key = wait_for(fetched, "the round's public key", pause_s=0.3)
        context = SumContext(plan.run_id, RoundNumber(number), announced.key_id)
        return Poisoner(PublicKeySum(plan.layout), context, public_key, earlier)

    def commit(self, frame: bytes, context: SumContext, **lies: Any) -> str:
        """Bind itself to an update; ``lies`` are other values for the contribution's fields."""
        digest = digest_of(frame)
        self._frames[digest] = frame
        fields: dict[str, Any] = {
            "device": self.name,
            "digest": digest,
            "size": len(frame),
            "scheme": "public-key",
            "key_id": context.key_id,
        }
        message = Contribution(**(fields | lies))
        self.send(message, context.run, context.round)
        return message.digest

    def forget_refusals(self) -> None:
        """Wait for the answers to everything that was sent in this device's name, and forget them."""
        nowhere = SumContext(RunId("nowhere"), RoundNumber(1), "0" * 16)
        self.code_for(self.commit(os.urandom(32), nowhere))
        self.refusals.clear()

    def code_for(self, digest: str) -> str:
        """With which code its update was refused."""
        return wait_for(lambda: self.refusals.get(digest), f"a refusal of {digest[:12]}")

    def _receive(self, _topic: str, payload: bytes) -> None:
        envelope = open_sealed(payload, expected=self._coordinator)
        match envelope.message:
            case Invitation() as invitation:
                self.invitations[envelope.round] = invitation
                if self.retired:
                    self.send(Declined("retired", ""), envelope.run, envelope.round)
            case HandOver():
                self.handed_over.add(envelope.round)
            case BlobChunk() as chunk if len(self._blobs.get(chunk.digest, b"")) == chunk.offset:
                self._blobs[chunk.digest] = self._blobs.get(chunk.digest, b"") + chunk.data
            case BlobRequest() as request if not self.withholds:
                frame = self._frames[request.digest]
                for at in range(request.offset, len(frame), CHUNK_BYTES):
                    self.send(BlobChunk(request.digest, at, frame[at : at + CHUNK_BYTES]))
            case Refusal(digest=digest, code=code):
                self.refusals[digest] = code
            case _:
                pass


def status_of(port: int, request: RawRequest) -> int | None:
    """The status with which a server answers; None if nobody waited, or it hung up instead."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        answer = b""
        with contextlib.suppress(ConnectionError):  # it need not listen to the end
            connection.sendall(request.data)
        with contextlib.suppress(ConnectionError):
            while request.whole and b"\r\n" not in answer and (data := connection.recv(4096)):
                answer += data
    return int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else None
