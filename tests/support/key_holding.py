"""A real key holder on a memory network, and a coordinator that says what a test wants it to say.

The coordinator here is whoever holds the coordinator's key, honest or not: it
offers any blob and any manifest, and repeats its question until it is answered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from shared.crypto.identity import Identity
from shared.crypto.sum_cipher import Adder, Scheme, SumContext, SumLayout, cipher_for
from shared.crypto.sum_groups import drawn_groups, joined, parted
from shared.files import digest_of
from shared.key_holder.approvals import Approvals
from shared.key_holder.holder import KeyHolder
from shared.transport.memory import Link, MemoryNetwork
from shared.types import Digest, IntVector, RoundNumber, RunId
from shared.wire import codec, topics
from shared.wire.chunks import Downloads, serve_blob
from shared.wire.envelope import Envelope, Post, seal
from shared.wire.messages import (
    BlobChunk,
    BlobRequest,
    Contribution,
    FixRequest,
    KeyAnnouncement,
    KeyRequest,
    Message,
    Opened,
    OpeningRefused,
    OpenRequest,
    SumSet,
)
from sim.virtual_time import VirtualTime, drive

RUN: Final = RunId("a-run")
ROUND: Final = RoundNumber(1)
LAYOUT: Final = SumLayout(count=50, bits=12, max_devices=5)
MIN_DEVICES: Final = 3
REPEAT_S: Final = 3.0
_PATIENCE_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Device:
    """A device as the key holder meets it: a name, a key, one update."""

    name: str
    identity: Identity
    values: IntVector


@dataclass(frozen=True, slots=True)
class Update:
    """A ciphertext and the signed record that offers it."""

    frame: bytes
    record: bytes

    @property
    def digest(self) -> Digest:
        """The frame's."""
        return digest_of(self.frame)


@dataclass(frozen=True, slots=True)
class Question:
    """Fix a set, then open the sums of those updates of it that have arrived.

    Attributes:
        fix: The first half.
        arrived: What is to be summed.
        key_id: The round's key.
        total: Stands for every group's total when the coordinator lies about them.
    """

    fix: FixRequest
    arrived: tuple[Update, ...]
    key_id: str
    total: bytes | None

    def opening(self, sum_set: SumSet) -> OpenRequest:
        """The second half, once the set is fixed."""
        by_digest = {update.digest: update for update in self.arrived}
        groups = drawn_groups(sum_set.seed, parted(sum_set.digests), sum_set.groups)
        totals = []
        for group in groups:
            present = [by_digest[digest] for digest in group if digest in by_digest]
            if present:
                total = total_of(present, self.key_id) if self.total is None else self.total
                totals.append(hashlib.sha256(total).digest())
        return OpenRequest(joined(list(by_digest)), b"".join(totals))


def total_of(updates: Iterable[Update], key_id: str) -> bytes:
    """The encrypted total as the coordinator adds it."""
    total = cipher_for(Scheme.PUBLIC_KEY, LAYOUT).begin(SumContext(RUN, ROUND, key_id))
    for update in updates:
        total.add(update.frame)
    return total.dump()


class Town:
    """What outlives processes: the holder's folder, everybody's keys, the coordinator's blobs."""

    def __init__(self, folder: Path, adder: Adder, *, devices: int = 4) -> None:
        self.home = folder / "holder"
        self.adder = adder
        self.blobs: dict[str, Path] = {}
        self.asked_for: list[str] = []
        self._folder = folder
        self.holder_identity = Identity.create(self.home / "identity.key")
        self.coordinator_identity = Identity.create(folder / "coordinator" / "identity.key")
        self.post = Post(self.coordinator_identity, folder / "coordinator")
        rng = np.random.default_rng(5)
        self.devices = [
            Device(
                f"device-{number}",
                Identity.create(folder / f"device-{number}.key"),
                rng.integers(-LAYOUT.magnitude, LAYOUT.magnitude + 1, LAYOUT.count),
            )
            for number in range(devices)
        ]
        for device in self.devices:
            self.approvals.approve(device.name, device.identity.public)

    @property
    def approvals(self) -> Approvals:
        return Approvals(self.home / "approvals.json")

    @property
    def vault(self) -> Path:
        return self.home / "rounds" / RUN / str(ROUND)

    @property
    def received(self) -> Path:
        """Where the coordinator keeps what it fetches."""
        return self._folder / "coordinator" / "received"

    def keep(self, data: bytes, *, under: str | None = None) -> Digest:
        """Offer a blob; ``under`` lies about its digest."""
        digest = Digest(under or digest_of(data))
        path = self._folder / "coordinator" / digest_of(data)
        path.write_bytes(data)
        self.blobs[digest] = path
        return digest

    def update(
        self,
        device: Device,
        announcement: KeyAnnouncement,
        public_key: bytes,
        *,
        signer: Identity | None = None,
        round_: RoundNumber = ROUND,
        digest: str | None = None,
        key_id: str | None = None,
    ) -> Update:
        """A device's update for a round; ``digest`` and ``key_id`` make its record lie."""
        frame = cipher_for(Scheme.PUBLIC_KEY, LAYOUT).encrypt(
            device.values,
            public_key=public_key,
            context=SumContext(RUN, round_, announcement.key_id),
        )
        return self.signed(
            device, announcement, frame, signer=signer, round_=round_, digest=digest, key_id=key_id
        )

    def signed(
        self,
        device: Device,
        announcement: KeyAnnouncement,
        frame: bytes,
        *,
        signer: Identity | None = None,
        round_: RoundNumber = ROUND,
        digest: str | None = None,
        key_id: str | None = None,
    ) -> Update:
        """``frame`` with a record that offers it."""
        self.keep(frame)
        message = Contribution(
            device=device.name,
            digest=digest_of(frame) if digest is None else digest,
            size=len(frame),
            scheme=announcement.scheme,
            key_id=announcement.key_id if key_id is None else key_id,
        )
        record = seal(signer or device.identity, 1, message, run=RUN, round_=round_)
        return Update(frame, record)

    def total(self, updates: Iterable[Update], announcement: KeyAnnouncement) -> bytes:
        """The encrypted total as the coordinator adds it."""
        return total_of(updates, announcement.key_id)

    def request(
        self,
        updates: list[Update],
        announcement: KeyAnnouncement,
        *,
        total: bytes | None = None,
        arrived: list[Update] | None = None,
    ) -> Question:
        """The question to fix these and to open them, or those of them that ``arrived``.

        ``total`` lies about their sum.
        """
        manifest = codec.encode([update.record for update in updates])
        fix = FixRequest(self.keep(manifest), len(manifest))
        some = updates if arrived is None else arrived
        return Question(fix, tuple(some), announcement.key_id, total)


class Life:
    """From a start of the key holder to its end, orderly or not."""

    def __init__(
        self,
        town: Town,
        *,
        min_devices: int = MIN_DEVICES,
        link: Link | None = None,
        work_s: float = 0.1,
    ) -> None:
        self.town = town
        self.heard: list[Envelope] = []
        self.time = VirtualTime(workers=1)
        network = MemoryNetwork(self.time.schedule, np.random.default_rng(11), now=self.time.now)
        self._end = network.attach("coordinator", link)
        self._holder_end = network.attach("holder")
        self._downloads = Downloads(lambda _peer, request: self.say(request))
        self.holder = KeyHolder(
            town.home,
            transport=self._holder_end,
            post=Post(Identity.load(town.home / "identity.key"), town.home),
            coordinator=town.coordinator_identity.public,
            min_devices=min_devices,
            bench=self.time.bench(work_s),
            adder=town.adder,
        )
        self._end.open(self._receive, (topics.ALL_UP,))
        drive(self.holder, self._holder_end, self.time)
        self.time.schedule(0.5, self._tick)

    def say(self, message: Message, *, run: RunId = RUN, round_: RoundNumber = ROUND) -> None:
        """Tell the holder something, once."""
        self._end.publish(
            topics.down(topics.KEY_HOLDER), self.town.post.seal(message, run=run, round_=round_)
        )

    def say_raw(self, sealed: bytes) -> None:
        """Send bytes to the holder."""
        self._end.publish(topics.down(topics.KEY_HOLDER), sealed)

    def ask(
        self, question: Message | Question, *, run: RunId = RUN, round_: RoundNumber = ROUND
    ) -> Message:
        """Repeat a question until the holder answers it; of two halves, each."""
        if isinstance(question, Question):
            answer = self.ask(question.fix, run=run, round_=round_)
            if not isinstance(answer, SumSet):
                return answer
            return self.ask(question.opening(answer), run=run, round_=round_)
        before = len(self.heard)

        def repeat() -> None:
            if len(self.heard) == before:
                self.say(question, run=run, round_=round_)
                self.time.schedule(REPEAT_S, repeat)

        repeat()
        self.wait(lambda: len(self.heard) > before)
        return self.heard[before].message

    def wait(self, until: Callable[[], bool], *, patience_s: float = _PATIENCE_S) -> None:
        """Let virtual time pass. Fails if it does not happen."""
        assert self.time.run(until=until, limit_s=self.time.now() + patience_s), "no answer"

    def pass_time(self, seconds: float) -> None:
        """Let everything happen that happens in so many virtual seconds."""
        end = self.time.now() + seconds
        over = False

        def ring() -> None:
            nonlocal over
            over = True

        self.time.schedule(seconds, ring)
        self.wait(lambda: over, patience_s=seconds + 1)
        assert self.time.now() >= end

    def fetch(self, digest: str, size: int) -> bytes:
        """A blob of the holder's."""
        arrived: list[Path] = []
        self._downloads.fetch(
            Digest(digest),
            size,
            self.town.received / digest,
            peer="holder",
            now=self.time.now(),
            finished=arrived.append,
            failed=lambda err: None,
        )
        self.wait(lambda: bool(arrived))
        return arrived[0].read_bytes()

    def announced(self, *, groups: int = 1) -> tuple[KeyAnnouncement, bytes]:
        """The round's announcement and its public key."""
        answer = self.ask(KeyRequest.of(Scheme.PUBLIC_KEY, LAYOUT, groups, 2))
        assert isinstance(answer, KeyAnnouncement)
        return answer, self.fetch(answer.digest, answer.size)

    def fixed(self, question: Question) -> SumSet:
        """The set that the holder fixes for this question."""
        answer = self.ask(question.fix)
        assert isinstance(answer, SumSet), answer
        return answer

    def opened(self, request: Question | OpenRequest) -> IntVector:
        """The groups' sums that the holder opens for this request, behind each other."""
        answer = self.ask(request)
        assert isinstance(answer, Opened), answer
        return np.frombuffer(self.fetch(answer.digest, answer.size), "<i8")

    def refused(self, request: Message | Question) -> str:
        """The code with which the holder refuses this request."""
        answer = self.ask(request)
        assert isinstance(answer, OpeningRefused), answer
        return answer.code

    def close(self) -> None:
        """End the holder, in whatever state it is."""
        self._end.close()
        self._holder_end.close()
        self.time.close()

    def _receive(self, _topic: str, payload: bytes) -> None:
        envelope = self.town.post.open(payload, expected=self.town.holder_identity.public)
        match envelope.message:
            case BlobRequest() as request:
                self.town.asked_for.append(request.digest)
                if request.digest in self.town.blobs:
                    for chunk in serve_blob(request, self.town.blobs[request.digest]):
                        self.say(chunk)
            case BlobChunk() as chunk:
                self._downloads.receive("holder", chunk, self.time.now())
            case _:
                self.heard.append(envelope)

    def _tick(self) -> None:
        self._downloads.tick(self.time.now())
        self.time.schedule(0.5, self._tick)
