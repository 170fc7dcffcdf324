"""E1 to E3: a message is read only as it was signed, and only once."""

from __future__ import annotations

import random
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.crypto.identity import Identity
from shared.errors import (
    BadSignature,
    MalformedMessage,
    ProtocolError,
    ReplayedMessage,
    StorageError,
    UndecodableMessage,
)
from shared.files import write_durably
from shared.types import PublicKey, RoundNumber, RunId
from shared.wire import codec, envelope
from shared.wire.envelope import (
    Post,
    ReplayGuard,
    SequenceSource,
    claimed_sender,
    open_sealed,
    seal,
)
from shared.wire.messages import Accepted, Call, Message, Receipt

MESSAGE = Receipt("0" * 64)


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Identity, Identity]:
    folder = tmp_path_factory.mktemp("identities")
    return Identity.create(folder / "a.key"), Identity.create(folder / "b.key")


@pytest.fixture(scope="module")
def sealed(identities: tuple[Identity, Identity]) -> bytes:
    return seal(identities[0], 7, MESSAGE, run=RunId("a-run"), round_=RoundNumber(3))


def test_what_was_sealed_opens_as_it_was(
    identities: tuple[Identity, Identity], sealed: bytes
) -> None:
    opened = open_sealed(sealed, expected=identities[0].public)
    assert (opened.sender, opened.sequence) == (identities[0].public, 7)
    assert (opened.run, opened.round, opened.message) == ("a-run", 3, MESSAGE)
    assert opened.raw == sealed
    assert claimed_sender(sealed) == identities[0].public


FIELDS = ["version", "kind", "sender", "sequence", "run", "round", "body", "signature"]
OTHER: dict[str, Any] = {
    "version": 2,
    "kind": "refusal",
    "sender": bytes(32),
    "sequence": 8,
    "run": "b-run",
    "round": 4,
    "body": codec.encode({"digest": "1" * 64}),
    "signature": bytes(64),
}


@pytest.mark.parametrize("field", FIELDS)
def test_the_signature_covers_every_field(
    identities: tuple[Identity, Identity], sealed: bytes, field: str
) -> None:
    parts = codec.decode(sealed)
    parts[FIELDS.index(field)] = OTHER[field]
    error = UndecodableMessage if field in ("version", "sender") else BadSignature
    with pytest.raises(error):
        open_sealed(codec.encode(parts), expected=identities[0].public)


def test_a_kind_cannot_be_exchanged_for_one_of_the_same_shape(
    identities: tuple[Identity, Identity],
) -> None:
    call = seal(identities[0], 1, Call(), run=RunId("r"), round_=RoundNumber(1))
    parts = codec.decode(call)
    assert parts[1] == "call"
    parts[1] = Accepted.kind
    with pytest.raises(BadSignature):
        open_sealed(codec.encode(parts), expected=identities[0].public)


def test_no_single_bit_can_be_turned(identities: tuple[Identity, Identity], sealed: bytes) -> None:
    for at in range(len(sealed)):
        for bit in range(8):
            turned = bytearray(sealed)
            turned[at] ^= 1 << bit
            with pytest.raises((UndecodableMessage, BadSignature)):
                open_sealed(bytes(turned), expected=identities[0].public)


def test_somebody_elses_message_is_refused_however_well_signed(
    identities: tuple[Identity, Identity], sealed: bytes
) -> None:
    with pytest.raises(UndecodableMessage, match="sender"):
        open_sealed(sealed, expected=identities[1].public)


def test_claiming_to_be_somebody_else_fails_the_signature(
    identities: tuple[Identity, Identity],
) -> None:
    parts = codec.decode(seal(identities[1], 1, MESSAGE, run=RunId(""), round_=RoundNumber(0)))
    parts[2] = bytes(identities[0].public)
    assert claimed_sender(codec.encode(parts)) == identities[0].public  # which proves nothing
    with pytest.raises(BadSignature):
        open_sealed(codec.encode(parts), expected=identities[0].public)


def test_a_signature_of_another_domain_does_not_fit(
    identities: tuple[Identity, Identity], sealed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envelope, "_DOMAIN", b"llmos/v1/something-else\x00")
    with pytest.raises(BadSignature):
        open_sealed(sealed, expected=identities[0].public)


def test_a_body_is_not_looked_at_before_its_signature(
    identities: tuple[Identity, Identity], sealed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untouched(kind: str, body: bytes) -> Message:
        raise AssertionError("the body was read")

    monkeypatch.setattr(envelope, "from_body", untouched)
    parts = codec.decode(sealed)
    parts[7] = bytes(64)
    with pytest.raises(BadSignature):
        open_sealed(codec.encode(parts), expected=identities[0].public)
    with pytest.raises(AssertionError, match="was read"):
        open_sealed(sealed, expected=identities[0].public)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        codec.encode([]),
        codec.encode({}),
        codec.encode([1, "call", bytes(32), 1, "", 0, b""]),
        codec.encode([1, "call", bytes(32), 1, "", 0, b"", b"", b""]),
        codec.encode([1, "call", bytes(32), 1.0, "", 0, b"", b""]),
        codec.encode([True, "call", bytes(32), 1, "", 0, b"", b""]),
        codec.encode([1, "call", "a", 1, "", 0, b"", b""]),
    ],
)
def test_what_is_no_envelope_is_refused(identities: tuple[Identity, Identity], raw: bytes) -> None:
    with pytest.raises(UndecodableMessage):
        open_sealed(raw, expected=identities[0].public)
    with pytest.raises(UndecodableMessage):
        claimed_sender(raw)


@pytest.mark.parametrize("key", [b"", b"short", bytes(33)])
def test_a_sender_that_is_no_key_is_a_bad_signature(
    identities: tuple[Identity, Identity], sealed: bytes, key: bytes
) -> None:
    parts = codec.decode(sealed)
    parts[2] = key
    with pytest.raises(BadSignature):
        open_sealed(codec.encode(parts), expected=PublicKey(key))


@given(st.binary(max_size=300))
def test_noise_is_a_protocol_error(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        open_sealed(raw, expected=PublicKey(bytes(32)))


# Sequence numbers.


def test_numbers_increase_strictly_over_any_restarts(tmp_path: Path) -> None:
    numbers = []
    for used in (1, 0, 3, 5000, 1, 4096, 2):
        source = SequenceSource(tmp_path / "sequence")
        numbers += [source.next() for _ in range(used)]
    assert all(a < b for a, b in pairwise(numbers))
    assert numbers[0] == 1


def test_a_number_is_reserved_on_disk_before_it_is_used_and_a_block_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sequence"
    writes: list[int] = []
    honest = write_durably

    def counted(target: Path, data: bytes) -> None:
        honest(target, data)
        writes.append(int(data))

    monkeypatch.setattr(envelope, "write_durably", counted)
    source = SequenceSource(path)
    assert not path.exists()  # reserving waits for the first use
    for _ in range(4096 * 2 + 1):
        number = source.next()
        assert number < int(path.read_text())
    assert len(writes) == 3


def test_a_number_that_could_not_be_reserved_is_never_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the second attempt either: after a restart it would be given again."""
    source = SequenceSource(tmp_path / "sequence")

    def full(target: Path, data: bytes) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(envelope, "write_durably", full)
        for _ in range(3):
            with pytest.raises(StorageError):
                source.next()
    first = source.next()
    assert SequenceSource(tmp_path / "sequence").next() > first


@pytest.mark.parametrize("content", [b"", b"x", b"1.5", b"\xff"])
def test_damaged_numbers_are_not_guessed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sequence").write_bytes(content)
    with pytest.raises(StorageError, match="damaged"):
        SequenceSource(tmp_path / "sequence")


# Replays.


@pytest.fixture
def posts(tmp_path: Path) -> tuple[Post, Post]:
    def post(name: str) -> Post:
        return Post(Identity.create(tmp_path / name / "identity.key"), tmp_path / name)

    return post("a"), post("b")


def test_a_message_is_accepted_once(posts: tuple[Post, Post]) -> None:
    sender, receiver = posts
    raw = sender.seal(MESSAGE)
    assert receiver.open(raw, expected=sender.public).message == MESSAGE
    with pytest.raises(ReplayedMessage):
        receiver.open(raw, expected=sender.public)


def test_an_overtaken_message_is_a_replay(posts: tuple[Post, Post]) -> None:
    sender, receiver = posts
    old, new = sender.seal(MESSAGE), sender.seal(MESSAGE)
    receiver.open(new, expected=sender.public)
    with pytest.raises(ReplayedMessage):
        receiver.open(old, expected=sender.public)


def test_a_refused_message_does_not_use_up_its_number(posts: tuple[Post, Post]) -> None:
    """Else whoever forges a high number would silence its sender."""
    sender, receiver = posts
    raw = sender.seal(MESSAGE)
    parts = codec.decode(raw)
    parts[3] = 10**9
    with pytest.raises(BadSignature):
        receiver.open(codec.encode(parts), expected=sender.public)
    receiver.open(raw, expected=sender.public)


def test_senders_are_counted_apart(posts: tuple[Post, Post], tmp_path: Path) -> None:
    sender, receiver = posts
    other = Post(Identity.create(tmp_path / "c" / "identity.key"), tmp_path / "c")
    for _ in range(3):
        receiver.open(sender.seal(MESSAGE), expected=sender.public)
    receiver.open(other.seal(MESSAGE), expected=other.public)


def test_a_replay_is_refused_after_the_receivers_restart(
    posts: tuple[Post, Post], tmp_path: Path
) -> None:
    sender, receiver = posts
    raw = sender.seal(MESSAGE)
    receiver.open(raw, expected=sender.public)
    receiver.guard.save()
    again = Post(Identity.load(tmp_path / "b" / "identity.key"), tmp_path / "b")
    with pytest.raises(ReplayedMessage):
        again.open(raw, expected=sender.public)
    # And after the sender's, its messages are new.
    restarted = Post(Identity.load(tmp_path / "a" / "identity.key"), tmp_path / "a")
    again.open(restarted.seal(MESSAGE), expected=restarted.public)


def test_the_guard_writes_only_what_is_new(tmp_path: Path) -> None:
    guard = ReplayGuard(tmp_path / "guard.json")
    guard.save()
    assert not (tmp_path / "guard.json").exists()
    guard.accept(PublicKey(bytes(32)), 5)
    guard.save()
    (tmp_path / "guard.json").unlink()
    guard.save()
    assert not (tmp_path / "guard.json").exists()


@pytest.mark.parametrize("sequence", [0, -1, -(2**64)])
def test_numbers_begin_at_one(tmp_path: Path, sequence: int) -> None:
    with pytest.raises(ReplayedMessage):
        ReplayGuard(tmp_path / "guard.json").accept(PublicKey(bytes(32)), sequence)


@pytest.mark.parametrize("content", ["", "[]", "5", '{"a": "b"}', '{"a": null}', '{"a": [1]}'])
def test_a_damaged_guard_is_not_believed(tmp_path: Path, content: str) -> None:
    (tmp_path / "guard.json").write_text(content)
    with pytest.raises(StorageError, match="damaged"):
        ReplayGuard(tmp_path / "guard.json")


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x9a\x00\x06\x00\x00" + b"\x80" * 0x60000,
        b"\x88\x9a\x00\x06\x00\x00" + b"\x80" * (0x60000 + 7),
        b"\x88" + b"\x00" * 7 + b"\x9a\x00\x02\x00\x00" + b"\xa1\x00\x80" * 0x20000,
    ],
    ids=["a long list", "a long list inside", "many maps inside"],
)
def test_of_what_is_no_envelope_nothing_is_built(
    identities: tuple[Identity, Identity], bomb: bytes
) -> None:
    """Everybody on the broker may send as much, and may do so before anything is verified."""
    tracemalloc.start()
    try:
        with pytest.raises(UndecodableMessage):
            open_sealed(bomb, expected=identities[0].public)
        assert tracemalloc.get_traced_memory()[1] < 50_000
        with pytest.raises(UndecodableMessage):
            claimed_sender(bomb)
        assert tracemalloc.get_traced_memory()[1] < 50_000
        assert len(codec.decode(bomb)) >= 8, "the control: as a message it could be read"
        assert tracemalloc.get_traced_memory()[1] > 5_000_000
    finally:
        tracemalloc.stop()


def test_a_malformed_body_is_blamed_on_its_sender_only_while_it_is_fresh(
    tmp_path: Path, identities: tuple[Identity, Identity]
) -> None:
    """Who has recorded it can send it as often as he likes: it counts once."""
    sender = identities[0]
    head = [1, "receipt", bytes(sender.public), 9, "a-run", 3]
    body = codec.encode({"digest": 7})
    raw = codec.encode([*head, body, sender.sign(envelope._signed(head, body))])
    post = Post(identities[1], tmp_path)
    with pytest.raises(MalformedMessage, match=r"receipt\.digest must be str"):
        post.open(raw, expected=sender.public)
    for _ in range(2):
        with pytest.raises(ReplayedMessage):
            post.open(raw, expected=sender.public)
    with pytest.raises(BadSignature):
        post.open(raw[:-1] + bytes([raw[-1] ^ 1]), expected=sender.public)


def test_a_kind_of_a_newer_program_is_no_fault_of_its_sender(
    tmp_path: Path, identities: tuple[Identity, Identity]
) -> None:
    sender = identities[0]
    head = [1, "of-tomorrow", bytes(sender.public), 9, "a-run", 3]
    raw = codec.encode([*head, b"\xa0", sender.sign(envelope._signed(head, b"\xa0"))])
    with pytest.raises(UndecodableMessage, match="unknown kind") as caught:
        Post(identities[1], tmp_path).open(raw, expected=sender.public)
    assert not isinstance(caught.value, MalformedMessage)


@pytest.mark.parametrize("clock_off_s", [-86_400.0, 0.0, 86_400.0])
def test_of_ten_thousand_replays_none_is_accepted_whatever_restarts_and_the_clock_says(
    posts: tuple[Post, Post], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock_off_s: float
) -> None:
    sender, receiver = posts
    recorded = [sender.seal(MESSAGE, round_=RoundNumber(number)) for number in range(200)]
    for raw in recorded:
        receiver.open(raw, expected=sender.public)
    receiver.guard.save()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + clock_off_s)
    rng = random.Random(int(clock_off_s))
    accepted = 0
    for attempt in range(10_000):
        if attempt == 5_000:
            receiver = Post(Identity.load(tmp_path / "b" / "identity.key"), tmp_path / "b")
            sender = Post(Identity.load(tmp_path / "a" / "identity.key"), tmp_path / "a")
        raw = recorded[-1 - attempt % 200] if attempt < 5_000 else rng.choice(recorded)
        try:
            receiver.open(raw, expected=sender.public)
        except ReplayedMessage:
            continue
        accepted += 1
    assert accepted == 0
    receiver.open(sender.seal(MESSAGE), expected=sender.public)  # what is new is taken as ever
