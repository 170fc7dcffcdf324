"""B1 to B4: a blob arrives whole or not at all, over any link and any restarts."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import DigestMismatch, LlmOsError, StorageError, UndecodableMessage
from shared.files import digest_of, move_durably
from shared.types import Digest
from shared.wire import chunks
from shared.wire.chunks import CHUNK_BYTES, STALL_S, WINDOW_BYTES, Downloads, serve_blob
from shared.wire.messages import BlobChunk, BlobRequest

SIZES = sorted(
    {0, 1, 2 * WINDOW_BYTES + 5}
    | {edge + off for edge in (CHUNK_BYTES, 2 * CHUNK_BYTES, WINDOW_BYTES) for off in (-1, 0, 1)}
)


@dataclass
class Ferry:
    """Carries requests to a file and its chunks back, with losses, repetitions and a clock."""

    source: Path
    target: Path
    digest: Digest
    size: int
    lost: Callable[[], bool] = lambda: False
    repeated: Callable[[], bool] = lambda: False
    now: float = 0.0
    requests: list[BlobRequest] = field(default_factory=list)
    arrived: list[Path] = field(default_factory=list)
    failures: list[LlmOsError] = field(default_factory=list)
    in_flight: list[BlobRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.downloads = self.process()

    def process(self) -> Downloads:
        def send(peer: str, request: BlobRequest) -> None:
            assert peer == "peer"
            self.requests.append(request)
            if not self.lost():
                self.in_flight.append(request)

        return Downloads(send)

    def fetch(self) -> None:
        self.downloads.fetch(
            self.digest,
            self.size,
            self.target,
            peer="peer",
            now=self.now,
            finished=self.arrived.append,
            failed=self.failures.append,
        )

    def step(self) -> None:
        """Answer what is in flight, then let a moment pass."""
        answered, self.in_flight = self.in_flight, []
        for request in answered:
            for chunk in serve_blob(request, self.source):
                for _ in range(2 if self.repeated() else 1):
                    if not self.lost():
                        self.downloads.receive("peer", chunk, self.now)
        self.now += STALL_S / 4
        self.downloads.tick(self.now)

    def run(self, *, steps: int = 20_000) -> None:
        for _ in range(steps):
            if not self.downloads.under_way:
                return
            self.step()
        raise AssertionError("the blob never arrived")


def ferry(folder: Path, data: bytes, **weather: Callable[[], bool]) -> Ferry:
    source = folder / "source"
    source.write_bytes(data)
    return Ferry(source, folder / "in" / "blob", digest_of(data), len(data), **weather)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES)
def test_every_size_arrives_whole(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    journey = ferry(tmp_path, data)
    journey.fetch()
    journey.run()
    assert journey.arrived == [journey.target]
    assert journey.target.read_bytes() == data
    assert sorted(path.name for path in journey.target.parent.iterdir()) == ["blob"]
    # One question per window; for a blob of nothing, none.
    assert len(journey.requests) == -(-size // WINDOW_BYTES)
    assert all(0 < request.length <= WINDOW_BYTES for request in journey.requests)


@settings(max_examples=40, deadline=None)
@given(
    size=st.one_of(st.integers(0, 60), st.sampled_from([79, 80, 81, 159, 160, 161, 240])),
    seed=st.integers(0, 2**32),
    loss=st.floats(0, 0.7),
    restarts=st.integers(0, 3),
)
def test_lost_and_repeated_chunks_and_restarts_cost_only_time(
    tmp_path_factory: pytest.TempPathFactory, size: int, seed: int, loss: float, restarts: int
) -> None:
    """In small: chunks of 10 bytes and windows of 80, so that every edge is met."""
    rng = random.Random(seed)
    data = rng.randbytes(size)
    with pytest.MonkeyPatch.context() as small:
        small.setattr(chunks, "CHUNK_BYTES", 10)
        small.setattr(chunks, "WINDOW_BYTES", 80)
        journey = ferry(
            tmp_path_factory.mktemp("weather"),
            data,
            lost=lambda: rng.random() < loss,
            repeated=lambda: rng.random() < 0.3,
        )
        journey.fetch()
        for _ in range(restarts):
            for _ in range(rng.randrange(4)):
                journey.step()
            journey.downloads = journey.process()
            journey.fetch()
        journey.run()
    assert journey.target.read_bytes() == data
    assert set(journey.arrived) == {journey.target}
    assert not journey.failures


def test_a_restart_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(2 * WINDOW_BYTES)
    journey = ferry(tmp_path, data)
    journey.fetch()
    for chunk in list(serve_blob(journey.in_flight.pop(), journey.source))[:3]:
        journey.downloads.receive("peer", chunk, 0.0)
    journey.downloads = journey.process()
    journey.fetch()
    assert journey.requests[-1].offset == 3 * CHUNK_BYTES
    journey.run()
    assert journey.target.read_bytes() == data


def test_what_was_complete_at_a_crash_needs_no_question(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(100)
    journey = ferry(tmp_path, data)
    journey.target.parent.mkdir()
    journey.target.with_name("blob.part").write_bytes(data)
    journey.fetch()
    assert journey.arrived == [journey.target]
    assert not journey.requests


@pytest.mark.parametrize("damage", ["zeros", "longer", "complete"])
def test_a_beginning_that_lost_power_is_fetched_again_and_not_blamed_on_the_peer(
    tmp_path: Path, damage: str
) -> None:
    """Chunks are not synced one by one: a file can have its length and not its content."""
    data = random.Random(1).randbytes(CHUNK_BYTES + 100)
    journey = ferry(tmp_path, data)
    journey.target.parent.mkdir()
    left = {"zeros": 1000, "longer": len(data) + 1000, "complete": len(data)}[damage]
    journey.target.with_name("blob.part").write_bytes(bytes(left))
    journey.fetch()
    journey.run()
    assert journey.target.read_bytes() == data
    assert not journey.failures


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, WINDOW_BYTES + 1])
def test_a_wrong_byte_is_found_and_leaves_nothing(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    journey = ferry(tmp_path, data)
    wrong = bytearray(data)
    if wrong:
        wrong[-1] ^= 1
    else:
        journey.digest = digest_of(b"something")
    journey.source.write_bytes(bytes(wrong))
    journey.fetch()
    journey.run()
    assert [type(error) for error in journey.failures] == [DigestMismatch]
    assert not journey.arrived
    assert list(journey.target.parent.iterdir()) == []
    # A second attempt starts from nothing and, where there is something to fetch, succeeds.
    if data:
        journey.source.write_bytes(data)
        journey.fetch()
        journey.run()
        assert journey.target.read_bytes() == data


def test_control_without_the_digest_the_wrong_byte_would_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journey = ferry(tmp_path, b"right")
    journey.source.write_bytes(b"wrong")
    monkeypatch.setattr(chunks, "digest_of_file", lambda path: journey.digest)
    journey.fetch()
    journey.run()
    assert journey.target.read_bytes() == b"wrong"


def test_a_blob_that_is_there_costs_nothing_and_one_under_way_is_shared(tmp_path: Path) -> None:
    journey = ferry(tmp_path, b"x" * 1000)
    journey.fetch()
    journey.fetch()
    assert len(journey.requests) == 1
    journey.run()
    assert journey.arrived == [journey.target] * 2
    journey.fetch()
    assert len(journey.arrived) == 3
    assert len(journey.requests) == 1


def test_two_peers_with_the_same_blob_are_two_downloads(tmp_path: Path) -> None:
    """Whoever repeats another's digest is not handed the other's file."""
    data = b"x" * 100
    asked: list[str] = []
    arrived: dict[str, Path] = {}
    downloads = Downloads(lambda peer, _: asked.append(peer))
    for peer in ("a", "b"):
        downloads.fetch(
            digest_of(data),
            len(data),
            tmp_path / peer,
            peer=peer,
            now=0.0,
            finished=lambda path, peer=peer: arrived.update({peer: path}),  # type: ignore[misc]
            failed=lambda _: None,
        )
    assert asked == ["a", "b"]
    downloads.receive("b", BlobChunk(digest_of(data), 0, data), 0.0)
    assert arrived == {"b": tmp_path / "b"}
    assert downloads.under_way == 1


def test_only_the_peer_that_was_asked_is_listened_to(tmp_path: Path) -> None:
    journey = ferry(tmp_path, b"right")
    journey.fetch()
    wrong = BlobChunk(journey.digest, 0, b"wrong")
    assert journey.downloads.receive("somebody", wrong, 0.0) is False
    assert journey.downloads.receive("peer", BlobChunk("0" * 64, 0, b"wrong"), 0.0) is False
    journey.run()
    assert journey.target.read_bytes() == b"right"


@pytest.mark.parametrize(
    ("size", "data"),
    [
        (10, b"x" * 11),
        (10, b""),
        (2 * CHUNK_BYTES, b"x" * (CHUNK_BYTES + 1)),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused_and_leaves_no_trace(
    tmp_path: Path, size: int, data: bytes
) -> None:
    """An empty one would pass for progress, and keep a round waiting."""
    journey = ferry(tmp_path, b"y" * size)
    journey.fetch()
    with pytest.raises(UndecodableMessage):
        journey.downloads.receive("peer", BlobChunk(journey.digest, 0, data), 0.0)
    journey.run()
    assert journey.target.read_bytes() == b"y" * size


@pytest.mark.parametrize("name", ["", "../secret.key", "/etc/passwd", "A" * 64, "0" * 63, "0" * 65])
def test_what_is_no_digest_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    downloads = Downloads(lambda *_: None)
    with pytest.raises(UndecodableMessage):
        downloads.fetch(
            Digest(name),
            5,
            tmp_path / "in" / name,
            peer="peer",
            now=0.0,
            finished=lambda _: pytest.fail("it was taken for a blob"),
            failed=lambda _: None,
        )
    assert list(tmp_path.iterdir()) == []


def test_questions_are_repeated_only_when_nothing_comes(tmp_path: Path) -> None:
    journey = ferry(tmp_path, b"x" * (3 * CHUNK_BYTES))
    journey.fetch()
    answer = list(serve_blob(journey.in_flight.pop(), journey.source))
    for moment, chunk in enumerate(answer[:2]):
        journey.downloads.receive("peer", chunk, moment * STALL_S)
        journey.downloads.tick(moment * STALL_S + 0.99 * STALL_S)
    assert len(journey.requests) == 1
    journey.downloads.tick(2 * STALL_S)
    assert [request.offset for request in journey.requests] == [0, 2 * CHUNK_BYTES]


def test_a_disk_that_is_full_at_the_last_step_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journey = ferry(tmp_path, b"x" * 1000)
    journey.fetch()
    full = True

    def move(source: Path, target: Path) -> None:
        if full:
            raise StorageError("the disk is full")
        move_durably(source, target)

    monkeypatch.setattr(chunks, "move_durably", move)
    (chunk,) = serve_blob(journey.in_flight.pop(), journey.source)
    with pytest.raises(StorageError):
        journey.downloads.receive("peer", chunk, 0.0)
    with pytest.raises(StorageError):
        journey.downloads.tick(STALL_S)
    journey.downloads.tick(1.5 * STALL_S)  # not at every tick
    full = False
    journey.downloads.tick(2 * STALL_S)
    assert journey.arrived == [journey.target]
    assert len(journey.requests) == 1


@pytest.mark.parametrize("by", ["chunk", "tick"])
def test_a_download_whose_folder_was_cleared_away_ends_quietly(tmp_path: Path, by: str) -> None:
    """As when a round is over before its last straggler: nobody waits for the rest."""
    journey = ferry(tmp_path, b"x" * (2 * CHUNK_BYTES))
    journey.fetch()
    first, second = serve_blob(journey.in_flight.pop(), journey.source)
    journey.downloads.receive("peer", first, 0.0)
    journey.target.with_name("blob.part").unlink()
    journey.target.parent.rmdir()
    if by == "chunk":
        assert journey.downloads.receive("peer", second, 0.0) is False
    else:
        journey.downloads.tick(STALL_S)
    assert journey.downloads.under_way == 0
    assert not journey.arrived
    assert not journey.failures


def test_the_server_gives_no_more_than_a_window_and_nothing_beyond_the_end(
    tmp_path: Path,
) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"x" * (WINDOW_BYTES + 10))

    def given(offset: int, length: int) -> int:
        return sum(len(chunk.data) for chunk in serve_blob(BlobRequest("d", offset, length), path))

    assert given(0, 2**62) == WINDOW_BYTES
    assert given(WINDOW_BYTES, 2**62) == 10
    assert given(WINDOW_BYTES + 10, 5) == 0
    assert given(2**62, 5) == 0
    assert given(3, 0) == 0
    assert given(3, 4) == 4


def test_memory_is_a_few_chunks_however_large_the_blob(tmp_path: Path) -> None:
    journey = ferry(tmp_path, bytes(16 * 1024 * 1024))
    tracemalloc.start()
    journey.fetch()
    journey.run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert journey.arrived
    assert peak < 4 * CHUNK_BYTES


def test_the_final_name_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def recorded(name: str) -> Callable[..., Any]:
        honest = getattr(chunks, name)

        def step(*paths: Path) -> Any:
            order.append(name)
            return honest(*paths)

        return step

    for name in ("digest_of_file", "move_durably"):
        monkeypatch.setattr(chunks, name, recorded(name))
    journey = ferry(tmp_path, b"x")
    journey.fetch()
    assert not journey.target.exists()
    journey.run()
    assert order == ["digest_of_file", "move_durably"]
