"""The key holder opens one honest sum per round, whatever the coordinator tries or the power does.

The holder is real, and so are ciphertexts, signatures, files and the worker
process that adds. Only the coordinator is scripted: it is the attacker. Where a
check stands between it and a device's update, a control shows what would happen
without the check.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.crypto.public_key import DEGREE, PARAMETERS, PublicKeySum, _seal
from shared.crypto.sum_cipher import Scheme, SumContext, opener_for
from shared.crypto.sum_groups import commitment_to, drawn_groups, joined, parted
from shared.crypto.sum_worker import SumWorker
from shared.errors import StorageError
from shared.files import digest_of, digest_of_file, write_durably
from shared.key_holder import holder as holder_module
from shared.key_holder.approvals import Approvals
from shared.key_holder.holder import KEY_LIFE_S, KeyHolder
from shared.transport.memory import Link
from shared.types import IntVector, RoundNumber, RunId
from shared.wire import chunks, codec, messages
from shared.wire.envelope import seal
from shared.wire.messages import (
    KINDS,
    Call,
    Contribution,
    FixRequest,
    KeyAnnouncement,
    KeyRequest,
    Opened,
    OpeningRefused,
    OpenRequest,
    SumSet,
)
from tests.support.key_holding import LAYOUT, MIN_DEVICES, ROUND, RUN, Life, Town, Update

KEY_REQUEST = KeyRequest.of(Scheme.PUBLIC_KEY, LAYOUT, 1, 2)


@pytest.fixture(scope="module")
def adder() -> Iterator[SumWorker]:
    worker = SumWorker()
    # On this thread: with the one that starts it, the process ends.
    worker.begin(LAYOUT, Scheme.CLEAR, SumContext(RUN, ROUND, "0" * 16))
    yield worker
    worker.close()


@pytest.fixture
def town(tmp_path: Path, adder: SumWorker) -> Town:
    return Town(tmp_path, adder)


@pytest.fixture
def life(town: Town) -> Iterator[Life]:
    life = Life(town)
    yield life
    life.close()


@pytest.fixture
def round_(life: Life) -> tuple[KeyAnnouncement, bytes]:
    return life.announced()


def updates_of(town: Town, round_: tuple[KeyAnnouncement, bytes], *numbers: int) -> list[Update]:
    return [town.update(town.devices[number], *round_) for number in numbers]


def sum_of(town: Town, *numbers: int) -> IntVector:
    """The oracle: what the devices' vectors add up to in clear."""
    total: IntVector = np.sum([town.devices[number].values for number in numbers], axis=0)
    return total


def openings(town: Town) -> list[dict[str, Any]]:
    path = town.home / "openings.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def nothing_was_opened(town: Town) -> bool:
    return not openings(town) and not (town.vault / "opened.sum").exists()


# H1: never a total that was handed over.


def test_the_sum_of_enough_devices_is_opened_exactly(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    updates = updates_of(town, round_, 0, 1, 2, 3)
    assert np.array_equal(life.opened(town.request(updates, round_[0])), sum_of(town, 0, 1, 2, 3))


def test_no_message_to_the_holder_can_carry_a_total() -> None:
    """What it acts upon names digests of contributions; totals are only ever digests."""
    to_holder = {"BlobRequest", "BlobChunk", "KeyRequest", "FixRequest", "OpenRequest"}
    handled = {kind.__name__ for kind in KINDS.values()} & set(KeyHolder._handle.__code__.co_names)
    assert handled == to_holder
    carriers = {
        (name, field.name)
        for name in to_holder
        for field in dataclasses.fields(getattr(messages, name))
        if field.type == "bytes"
    }
    assert carriers == {
        ("BlobChunk", "data"),  # of blobs that the holder itself asked for
        ("OpenRequest", "digests"),  # 32 bytes each, as the next test shows
        ("OpenRequest", "totals"),
    }


def test_an_opening_names_whole_digests_and_each_once(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    question = town.request(updates_of(town, round_, 0, 1, 2), round_[0])
    right = question.opening(life.fixed(question))
    crafted = crafted_total(round_[0])
    for wrong in (
        dataclasses.replace(right, totals=crafted),
        dataclasses.replace(right, digests=crafted),
        dataclasses.replace(right, digests=right.digests[:-1]),
        dataclasses.replace(right, digests=right.digests + right.digests[:32]),
        dataclasses.replace(right, totals=right.totals + bytes(32)),
        dataclasses.replace(right, totals=b""),
    ):
        assert life.refused(wrong).startswith("protocol")
    assert nothing_was_opened(town)
    assert np.array_equal(life.opened(right), sum_of(town, 0, 1, 2))


def crafted_total(announcement: KeyAnnouncement) -> bytes:
    """(0, Δ): structurally a total of three devices; its decryption is the secret key."""
    parameters = PARAMETERS[LAYOUT.bits]
    (prime,) = parameters.data_primes
    residues = np.zeros((2, DEGREE), dtype=np.uint64)
    residues[1, 0] = prime // parameters.plain_modulus
    context = SumContext(RUN, ROUND, announcement.key_id)
    return PublicKeySum(LAYOUT).write_total([residues], context, devices=3)


def test_a_crafted_total_is_neither_fetched_nor_opened(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    crafted = crafted_total(round_[0])
    digest = town.keep(crafted)
    updates = updates_of(town, round_, 0, 1, 2)
    assert life.refused(town.request(updates, round_[0], total=crafted)) == "protocol"
    assert digest not in town.asked_for
    assert nothing_was_opened(town)
    # The honest question about the same set is still answered.
    assert np.array_equal(life.opened(town.request(updates, round_[0])), sum_of(town, 0, 1, 2))


def test_control_whoever_decrypts_the_crafted_total_has_the_key(
    town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    """Its decryption is a polynomial of -1, 0 and 1: the secret key, not a sum."""
    crafted, key_id = crafted_total(round_[0]), round_[0].key_id
    context = SumContext(RUN, ROUND, key_id)
    engine = _seal(PARAMETERS[LAYOUT.bits])
    slots = engine.decrypt(
        PublicKeySum(LAYOUT).read_total(crafted, context, 3),
        (town.vault / "secret.key").read_bytes(),
        key_id,
    )
    plaintext = engine._api.Plaintext()
    engine._encoder.encode(slots[0].tolist(), plaintext)
    modulus = PARAMETERS[LAYOUT.bits].plain_modulus
    coefficients = {plaintext.data(index) for index in range(plaintext.coeff_count())}
    assert coefficients == {0, 1, modulus - 1}


def test_a_contribution_frame_that_is_a_total_is_refused(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    """Not even an approved device can smuggle one in."""
    honest = updates_of(town, round_, 0, 1)
    smuggled = town.signed(town.devices[2], round_[0], crafted_total(round_[0]))
    request = town.request([*honest, smuggled], round_[0], total=b"")
    assert life.refused(request) == "protocol.undecodable"
    assert nothing_was_opened(town)


# H2: enough devices, each approved, each once.


def test_one_device_is_not_a_set(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    updates = updates_of(town, round_, 0)
    assert life.refused(town.request(updates, round_[0])) == "privacy.cohort"
    assert nothing_was_opened(town)


def test_control_a_sum_over_one_device_would_be_its_update(
    town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    updates = updates_of(town, round_, 0)
    opened = opener_for(Scheme.PUBLIC_KEY, LAYOUT).open(
        town.total(updates, round_[0]),
        secret_key=(town.vault / "secret.key").read_bytes(),
        context=SumContext(RUN, ROUND, round_[0].key_id),
        devices=1,
    )
    assert np.array_equal(opened, town.devices[0].values)


@pytest.mark.parametrize("devices", [MIN_DEVICES - 1, MIN_DEVICES, MIN_DEVICES + 1])
def test_the_holders_own_minimum_is_the_boundary(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes], devices: int
) -> None:
    numbers = range(devices)
    request = town.request(updates_of(town, round_, *numbers), round_[0])
    if devices < MIN_DEVICES:
        assert life.refused(request) == "privacy.cohort"
        assert nothing_was_opened(town)
    else:
        assert np.array_equal(life.opened(request), sum_of(town, *numbers))


def test_a_run_may_ask_for_more_devices_than_the_holder_would_and_never_for_fewer(
    life: Life, town: Town
) -> None:
    """Where noise is shared, so many devices' noise is what a record hides behind."""
    asked = replace(KEY_REQUEST, min_devices=MIN_DEVICES + 1)
    announcement = life.ask(asked)
    assert isinstance(announcement, KeyAnnouncement)
    assert announcement.min_devices == MIN_DEVICES + 1
    assert announcement.answers(asked)
    assert not announcement.answers(replace(asked, min_devices=MIN_DEVICES + 2))
    round_ = announcement, life.fetch(announcement.digest, announcement.size)
    enough = updates_of(town, round_, *range(MIN_DEVICES + 1))
    refused = life.refused(town.request(enough[:-1], announcement))
    assert refused == "privacy.cohort"
    dropped = town.request(enough, announcement, arrived=enough[:-1])
    assert life.refused(dropped) == "privacy.cohort"
    assert nothing_was_opened(town)
    opened = life.opened(town.request(enough, announcement))
    assert np.array_equal(opened, sum_of(town, *range(MIN_DEVICES + 1)))


@pytest.mark.parametrize("min_devices", [0, 1, LAYOUT.max_devices + 1])
def test_a_run_that_asks_for_no_possible_sum_gets_no_key(life: Life, min_devices: int) -> None:
    assert life.refused(replace(KEY_REQUEST, min_devices=min_devices)).startswith("protocol")


def test_too_few_devices_do_not_cost_the_round_its_key(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    updates = updates_of(town, round_, 0, 1, 2)
    assert life.refused(town.request(updates[:2], round_[0])) == "privacy.cohort"
    assert np.array_equal(life.opened(town.request(updates, round_[0])), sum_of(town, 0, 1, 2))


def test_more_devices_than_fields_can_hold_are_refused(tmp_path: Path, adder: SumWorker) -> None:
    town = Town(tmp_path, adder, devices=LAYOUT.max_devices + 1)
    life = Life(town)
    round_ = life.announced()
    updates = updates_of(town, round_, *range(LAYOUT.max_devices + 1))
    request = town.request(updates, round_[0], total=b"")
    assert life.refused(request) == "protocol"
    assert nothing_was_opened(town)
    most = updates[: LAYOUT.max_devices]
    assert np.array_equal(
        life.opened(town.request(most, round_[0])), sum_of(town, *range(LAYOUT.max_devices))
    )
    life.close()


@pytest.mark.parametrize("min_devices", [1, 0, -1])
def test_a_holder_that_would_open_one_update_does_not_start(town: Town, min_devices: int) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        Life(town, min_devices=min_devices)


def forged(town: Town, round_: tuple[KeyAnnouncement, bytes]) -> list[Update]:
    """The coordinator signs in the name of an approved device."""
    *rest, last = updates_of(town, round_, 0, 1, 2)
    parts = codec.decode(last.record)
    parts[7] = town.coordinator_identity.sign(b"whatever")
    return [*rest, Update(last.frame, codec.encode(parts))]


def signed_by_the_coordinator(town: Town, round_: tuple[KeyAnnouncement, bytes]) -> list[Update]:
    sybil = town.update(town.devices[2], *round_, signer=town.coordinator_identity)
    return [*updates_of(town, round_, 0, 1), sybil]


def of_another_round(town: Town, round_: tuple[KeyAnnouncement, bytes]) -> list[Update]:
    replayed = town.update(town.devices[2], *round_, round_=RoundNumber(2))
    return [*updates_of(town, round_, 0, 1), replayed]


def of_another_run(town: Town, round_: tuple[KeyAnnouncement, bytes]) -> list[Update]:
    frame = town.update(town.devices[2], *round_).frame
    message = Contribution(
        "device-2", digest_of(frame), len(frame), round_[0].scheme, round_[0].key_id
    )
    record = seal(town.devices[2].identity, 1, message, run=RunId("another"), round_=ROUND)
    return [*updates_of(town, round_, 0, 1), Update(frame, record)]


def under_another_key(town: Town, round_: tuple[KeyAnnouncement, bytes]) -> list[Update]:
    return [
        *updates_of(town, round_, 0, 1),
        town.update(town.devices[2], *round_, key_id="0" * 16),
    ]


def one_device_twice(town: Town, round_: tuple[KeyAnnouncement, bytes]) -> list[Update]:
    return updates_of(town, round_, 0, 1, 1)


def one_record_twice(town: Town, round_: tuple[KeyAnnouncement, bytes]) -> list[Update]:
    first, second = updates_of(town, round_, 0, 1)
    return [first, second, second]


def one_ciphertext_twice(town: Town, round_: tuple[KeyAnnouncement, bytes]) -> list[Update]:
    """A colluding device signs for another's update, so that the victim weighs double."""
    first, second = updates_of(town, round_, 0, 1)
    return [first, second, town.signed(town.devices[2], round_[0], first.frame)]


def another_message(town: Town, round_: tuple[KeyAnnouncement, bytes]) -> list[Update]:
    record = seal(town.devices[2].identity, 1, Call(), run=RUN, round_=ROUND)
    return [*updates_of(town, round_, 0, 1), Update(b"", record)]


def a_path_for_a_digest(town: Town, round_: tuple[KeyAnnouncement, bytes]) -> list[Update]:
    """A file the holder has already would be added without being fetched."""
    first, second = updates_of(town, round_, 0, 1)
    path = f"../contributions/{digest_of(first.frame)}"
    return [first, second, town.update(town.devices[2], *round_, digest=path)]


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        (signed_by_the_coordinator, "privacy.not_approved"),
        (forged, "protocol.signature"),
        (of_another_round, "protocol"),
        (of_another_run, "protocol"),
        (under_another_key, "protocol.wrong_key"),
        (one_device_twice, "protocol"),
        (one_record_twice, "protocol"),
        (one_ciphertext_twice, "protocol"),
        (another_message, "protocol"),
        (a_path_for_a_digest, "protocol"),
    ],
)
def test_a_set_with_one_wrong_contribution_is_refused_whole(
    life: Life,
    town: Town,
    round_: tuple[KeyAnnouncement, bytes],
    attack: Callable[[Town, tuple[KeyAnnouncement, bytes]], list[Update]],
    code: str,
) -> None:
    request = town.request(attack(town, round_), round_[0], total=b"")
    before = len(town.asked_for)
    assert life.refused(request) == code
    assert town.asked_for[before:] == [request.fix.manifest]  # no ciphertext was even looked at
    assert nothing_was_opened(town)
    assert not (town.vault / "fixed.json").exists()
    # And the round is not lost: an honest set opens.
    town.approvals.approve("device-2", town.devices[2].identity.public)
    updates = updates_of(town, round_, 0, 1, 2)
    assert np.array_equal(life.opened(town.request(updates, round_[0])), sum_of(town, 0, 1, 2))


def test_a_device_that_nobody_approved_is_left_out_and_cannot_be_summed(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    updates = updates_of(town, round_, 0, 1, 2, 3)
    town.approvals.withdraw("device-2")
    question = town.request(updates, round_[0])
    sum_set = life.fixed(question)
    assert parted(sum_set.digests) == sorted(updates[number].digest for number in (0, 1, 3))
    assert life.refused(question.opening(sum_set)) == "protocol"
    assert nothing_was_opened(town)
    town.approvals.approve("device-2", town.devices[2].identity.public)
    assert life.refused(question) == "privacy.already_opened", "approved too late for this round"
    kept = town.request([updates[0], updates[1], updates[3]], round_[0])
    assert np.array_equal(life.opened(kept), sum_of(town, 0, 1, 3))


def test_control_without_approvals_the_coordinator_makes_up_the_others(
    life: Life,
    town: Town,
    round_: tuple[KeyAnnouncement, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two invented devices with zeros: the 'sum over three' is the victim's update."""
    (victim,) = updates_of(town, round_, 0)
    invented = [
        town.update(
            dataclasses.replace(device, values=np.zeros(LAYOUT.count, np.int64)),
            *round_,
            signer=identity,
        )
        for device, identity in zip(
            town.devices[1:3],
            (town.coordinator_identity, town.holder_identity),
            strict=True,
        )
    ]
    request = town.request([victim, *invented], round_[0])
    assert life.refused(request) == "privacy.not_approved"

    class Anybody(dict[bytes, str]):
        def get(self, key: bytes, default: Any = None) -> str:
            return key.hex()

    monkeypatch.setattr(Approvals, "read", lambda self: Anybody())
    assert np.array_equal(life.opened(request), town.devices[0].values)


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"\x00",
        codec.encode({"records": []}),
        codec.encode([1, 2, 3]),
        codec.encode([b"a", b"b", b"c"]),
        codec.encode([]),
        b"\x9b" + b"\xff" * 8,
    ],
)
def test_a_manifest_that_is_none_is_refused(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes], manifest: bytes
) -> None:
    request = FixRequest(town.keep(manifest), len(manifest))
    assert life.refused(request).startswith(("protocol", "privacy.cohort"))
    assert nothing_was_opened(town)


def test_a_manifest_beyond_the_limit_is_not_fetched(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    limit = holder_module.MAX_MANIFEST_BYTES
    assert life.refused(FixRequest("0" * 64, limit + 1)) == "protocol"
    assert "0" * 64 not in town.asked_for


@pytest.mark.parametrize("name", ["/../secret.key", "../../../x", "/etc/passwd", "A" * 64, ""])
def test_a_manifest_is_named_by_a_digest_and_not_by_a_path(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes], name: str
) -> None:
    before = sorted(town.home.rglob("*"))
    assert life.refused(FixRequest(name, 10)) == "protocol.undecodable"
    assert sorted(town.home.rglob("*")) == before


# Contributions are what their devices signed.


def test_a_swapped_ciphertext_is_not_added(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    updates = updates_of(town, round_, 0, 1, 2)
    stranger = town.update(town.devices[3], *round_)
    request = town.request(updates, round_[0])
    town.keep(stranger.frame, under=digest_of(updates[2].frame))
    assert life.refused(request) == "protocol.digest"
    assert nothing_was_opened(town)
    # The damaged copy left nothing behind that would spoil a second attempt.
    town.keep(updates[2].frame)
    assert np.array_equal(life.opened(request), sum_of(town, 0, 1, 2))


def test_control_without_the_digest_the_swapped_one_would_be_added(
    life: Life,
    town: Town,
    round_: tuple[KeyAnnouncement, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    updates = updates_of(town, round_, 0, 1, 2)
    stranger = town.update(town.devices[3], *round_)
    total = town.total([updates[0], updates[1], stranger], round_[0])
    request = town.request(updates, round_[0], total=total)
    swapped = digest_of(updates[2].frame)
    town.keep(stranger.frame, under=swapped)
    monkeypatch.setattr(
        chunks,
        "digest_of_file",
        lambda path: swapped if path.name.startswith(swapped) else digest_of_file(path),
    )
    assert np.array_equal(life.opened(request), sum_of(town, 0, 1, 3))


def scaled(town: Town, round_: tuple[KeyAnnouncement, bytes], factor: int) -> bytes:
    """A device's ciphertext times ``factor``: a valid frame, made without any key."""
    cipher = PublicKeySum(LAYOUT)
    context = SumContext(RUN, ROUND, round_[0].key_id)
    residues = cipher.read_contribution(town.update(town.devices[2], *round_).frame, context)
    primes = cipher.parameters.data_primes
    scaled = [
        np.asarray([[int(c) * factor % prime for c in row] for row in polynomials], dtype=np.uint64)
        for polynomials, prime in zip(residues, primes, strict=True)
    ]
    return cipher._contribution.wrap(*cipher._payload(scaled), context=context, devices=1)


def cancelling(town: Town, round_: tuple[KeyAnnouncement, bytes], others: list[Update]) -> Update:
    """An encryption of zero minus ``others``: what a device can make that has seen them."""
    cipher = PublicKeySum(LAYOUT)
    context = SumContext(RUN, ROUND, round_[0].key_id)
    primes = cipher.parameters.data_primes
    nothing = dataclasses.replace(town.devices[3], values=np.zeros(LAYOUT.count, np.int64))
    crafted = cipher.read_contribution(town.update(nothing, *round_).frame, context)
    for other in others:
        seen = cipher.read_contribution(other.frame, context)
        crafted = [
            np.asarray(
                [[(int(a) - int(b)) % prime for a, b in zip(*rows, strict=True)] for rows in pairs],
                dtype=np.uint64,
            )
            for prime, pairs in (
                (prime, list(zip(left, right, strict=True)))
                for prime, left, right in zip(primes, crafted, seen, strict=True)
            )
        ]
    frame = cipher._contribution.wrap(*cipher._payload(crafted), context=context, devices=1)
    return town.signed(town.devices[3], round_[0], frame)


def test_control_a_device_that_chooses_after_it_saw_the_others_cancels_them(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    """Were ciphertexts shown before the set is fixed: no form of the frame gives it away."""
    victim, *others = updates_of(town, round_, 0, 1, 2)
    colluding = cancelling(town, round_, others)
    opened = life.opened(town.request([victim, *others, colluding], round_[0]))
    assert np.array_equal(opened, town.devices[0].values)


def test_once_the_set_is_fixed_what_a_device_chooses_is_not_summed(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    """Devices show their ciphertexts only now (``tests/edge_agent/test_agent.py``)."""
    *honest, bound = updates_of(town, round_, 0, 1, 2, 3)
    question = town.request([*honest, bound], round_[0])
    sum_set = life.fixed(question)
    chosen = cancelling(town, round_, honest[1:])
    # As a member of the set, which it is not.
    late = town.request([*honest, bound], round_[0], arrived=[*honest, chosen])
    assert life.refused(late.opening(sum_set)) == "protocol"
    # As another set.
    assert life.refused(town.request([*honest, chosen], round_[0])) == "privacy.already_opened"
    # In the place of the frame that the device is bound to.
    swapped = town.total([*honest, chosen], round_[0])
    lie = dataclasses.replace(question, total=swapped)
    town.keep(chosen.frame, under=bound.digest)
    assert life.refused(lie.opening(sum_set)) == "protocol.digest"
    assert nothing_was_opened(town)
    town.keep(bound.frame)
    assert np.array_equal(life.opened(question), sum_of(town, 0, 1, 2, 3))


def test_a_scaled_ciphertext_of_an_honest_device_is_not_what_it_signed(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    updates = updates_of(town, round_, 0, 1, 2)
    request = town.request(updates, round_[0])
    town.keep(scaled(town, round_, 1000), under=digest_of(updates[2].frame))
    assert life.refused(request) == "protocol.digest"
    assert nothing_was_opened(town)


# H5: no value that honest devices cannot reach.


def test_a_sum_beyond_reach_is_not_released_and_costs_the_round_its_key(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    """A colluding device signs ten times another's update, to lift it over the rest."""
    loud = town.signed(town.devices[3], round_[0], scaled(town, round_, 10))
    updates = [*updates_of(town, round_, 0, 1), loud]
    assert life.refused(town.request(updates, round_[0])) == "privacy.sum_range"
    assert nothing_was_opened(town)
    assert not (town.vault / "secret.key").exists()
    assert not (town.vault / "contributions").exists()
    assert life.refused(town.request(updates, round_[0])) == "privacy.already_opened"
    others = updates_of(town, round_, 0, 1, 2)
    assert life.refused(town.request(others, round_[0])) == "privacy.already_opened"


def test_control_without_the_range_check_it_would_be_released(
    life: Life,
    town: Town,
    round_: tuple[KeyAnnouncement, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from shared.crypto import public_key

    loud = town.signed(town.devices[3], round_[0], scaled(town, round_, 10))
    request = town.request([*updates_of(town, round_, 0, 1), loud], round_[0])
    monkeypatch.setattr(public_key, "check_range", lambda *_: None)
    opened = life.opened(request)
    assert np.abs(opened).max() > 3 * LAYOUT.magnitude


# H3, H4, H6, H8: once, then never again; logged before it leaves.


def test_another_set_in_the_same_round_is_refused_for_ever(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    updates = updates_of(town, round_, 0, 1, 2, 3)
    first = life.opened(town.request(updates[:3], round_[0]))
    for other in (updates, updates[1:], updates[:2]):
        refused = life.refused(town.request(other, round_[0]))
        assert refused == ("privacy.cohort" if len(other) < 3 else "privacy.already_opened")
    life.close()
    again = Life(town)
    assert again.refused(town.request(updates, round_[0])) == "privacy.already_opened"
    assert np.array_equal(again.opened(town.request(updates[:3], round_[0])), first)
    assert len(openings(town)) == 1
    again.close()


def test_control_two_sets_would_show_the_difference(
    life: Life,
    town: Town,
    round_: tuple[KeyAnnouncement, bytes],
) -> None:
    updates = updates_of(town, round_, 0, 1, 2, 3)
    opener = opener_for(Scheme.PUBLIC_KEY, LAYOUT)
    with_and_without = [
        opener.open(
            town.total(some, round_[0]),
            secret_key=(town.vault / "secret.key").read_bytes(),
            context=SumContext(RUN, ROUND, round_[0].key_id),
            devices=len(some),
        )
        for some in (updates, updates[:3])
    ]
    assert np.array_equal(with_and_without[0] - with_and_without[1], town.devices[3].values)


def test_a_set_that_could_not_be_opened_stays_the_only_one(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    """Fixed is fixed before anything is fetched: else a lie about one total buys another set."""
    updates = updates_of(town, round_, 0, 1, 2, 3)
    assert life.refused(town.request(updates[:3], round_[0], total=b"other")) == "protocol"
    assert life.refused(town.request(updates, round_[0])) == "privacy.already_opened"
    assert (town.vault / "secret.key").exists()
    assert np.array_equal(life.opened(town.request(updates[:3], round_[0])), sum_of(town, 0, 1, 2))


def test_the_order_of_a_set_does_not_make_it_another(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    updates = updates_of(town, round_, 0, 1, 2)
    first = life.opened(town.request(updates, round_[0]))
    assert np.array_equal(life.opened(town.request(updates[::-1], round_[0])), first)


def test_after_the_opening_the_key_and_the_ciphertexts_are_gone_and_the_log_tells(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    secret = (town.vault / "secret.key").read_bytes()
    assert (town.vault / "secret.key").stat().st_mode & 0o777 == 0o600
    updates = updates_of(town, round_, 0, 1, 2)
    request = town.request(updates, round_[0])
    opened = life.opened(request)
    assert not (town.vault / "contributions").exists()
    left = b"".join(path.read_bytes() for path in town.home.rglob("*") if path.is_file())
    assert secret[-1000:] not in left
    (record,) = openings(town)
    (group,) = record["groups"]
    assert (record["run"], record["round"]) == (RUN, ROUND)
    assert group == {
        "devices": ["device-0", "device-1", "device-2"],
        "total": digest_of(town.total(updates, round_[0])),
        "sum": digest_of(opened.astype("<i8").tobytes()),
        "within_reach": True,
    }


def test_every_round_has_its_own_key(life: Life, town: Town) -> None:
    first = life.ask(KEY_REQUEST)
    assert life.ask(KEY_REQUEST) == first  # asked again, not made again
    second = life.ask(KEY_REQUEST, round_=RoundNumber(2))
    third = life.ask(KEY_REQUEST, run=RunId("another"))
    keys = {message.key_id for message in (first, second, third) if hasattr(message, "key_id")}
    assert len(keys) == 3
    draws = {message.draw for message in (first, second, third) if hasattr(message, "draw")}
    assert len(draws) == 3, "and its own groups"


def test_a_later_round_ends_the_key_of_one_that_was_never_opened(life: Life, town: Town) -> None:
    life.ask(KEY_REQUEST)
    lost = town.vault / "secret.key"
    assert lost.exists()
    life.ask(KEY_REQUEST, run=RunId("another"), round_=RoundNumber(2))
    assert lost.exists()  # the rounds of another run say nothing about this one
    life.ask(KEY_REQUEST, round_=RoundNumber(2))
    assert not lost.exists()
    assert (town.vault.parent / "2" / "secret.key").exists()


def test_a_key_of_a_run_that_was_given_up_ends_after_a_week(life: Life, town: Town) -> None:
    life.ask(KEY_REQUEST)
    old, secret = -KEY_LIFE_S - 60, town.vault / "secret.key"
    os.utime(secret, (old, old))
    life.ask(KEY_REQUEST, run=RunId("another"))
    assert not secret.exists()


@pytest.mark.parametrize(
    "question",
    [
        dataclasses.replace(KEY_REQUEST, count=LAYOUT.count + 1),
        dataclasses.replace(KEY_REQUEST, max_devices=LAYOUT.max_devices + 1),
        dataclasses.replace(KEY_REQUEST, bits=8),
        dataclasses.replace(KEY_REQUEST, groups=2),
        dataclasses.replace(KEY_REQUEST, scheme="clear"),
    ],
)
def test_a_round_keeps_its_layout(
    life: Life, round_: tuple[KeyAnnouncement, bytes], question: KeyRequest
) -> None:
    assert life.refused(question) == "protocol.wrong_key"
    assert life.ask(KEY_REQUEST) == round_[0]


@pytest.mark.parametrize(
    "question",
    [
        dataclasses.replace(KEY_REQUEST, scheme="clear"),
        dataclasses.replace(KEY_REQUEST, scheme="rot13"),
        dataclasses.replace(KEY_REQUEST, bits=13),
        dataclasses.replace(KEY_REQUEST, count=0),
        dataclasses.replace(KEY_REQUEST, max_devices=241),
        dataclasses.replace(KEY_REQUEST, groups=0),
        dataclasses.replace(KEY_REQUEST, groups=129),
    ],
)
def test_no_key_is_made_for_what_is_no_layout(life: Life, town: Town, question: KeyRequest) -> None:
    assert life.refused(question) == "protocol"
    assert not (town.vault / "secret.key").exists()


@pytest.mark.parametrize(
    ("run", "number"), [("", 1), ("../x", 1), ("a/b", 1), ("A", 1), ("a-run", 0), ("x" * 49, 1)]
)
def test_a_round_that_is_no_name_for_a_folder_is_refused(
    life: Life, town: Town, run: str, number: int
) -> None:
    answer = life.ask(KEY_REQUEST, run=RunId(run), round_=RoundNumber(number))
    assert isinstance(answer, OpeningRefused)
    assert answer.code == "protocol"
    assert not (town.home / "rounds").exists()


def test_an_opening_without_a_key_is_refused(life: Life, town: Town) -> None:
    assert life.refused(FixRequest("0" * 64, 1)) == "protocol.wrong_key"
    assert life.refused(OpenRequest(bytes(32), bytes(32))) == "protocol.wrong_key"


def test_an_opening_without_a_set_is_refused(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    updates = updates_of(town, round_, 0, 1, 2)
    named = OpenRequest(joined([update.digest for update in updates]), bytes(32))
    assert life.refused(named) == "protocol"
    assert nothing_was_opened(town)


def test_after_its_key_was_given_up_no_set_is_signed(life: Life, town: Town) -> None:
    """Devices would hand their updates over for nothing."""
    round_ = life.announced()
    updates = updates_of(town, round_, 0, 1, 2)
    life.ask(KEY_REQUEST, round_=RoundNumber(2))
    assert life.refused(town.request(updates, round_[0]).fix) == "privacy.already_opened"


# Updates that never arrive, and groups.


def test_a_sum_may_lack_those_of_the_set_that_never_arrived(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    updates = updates_of(town, round_, 0, 1, 2, 3)
    question = town.request(updates, round_[0], arrived=updates[1:])
    assert np.array_equal(life.opened(question), sum_of(town, 1, 2, 3))


def test_a_second_choice_of_members_is_refused_for_ever(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    """Or the difference of the two sums would be one device's update."""
    updates = updates_of(town, round_, 0, 1, 2, 3)
    first = life.opened(town.request(updates, round_[0], arrived=updates[1:]))
    for arrived in (updates, updates[:3]):
        question = town.request(updates, round_[0], arrived=arrived)
        assert life.refused(question) == "privacy.already_opened"
    life.close()
    again = Life(town)
    assert again.refused(town.request(updates, round_[0])) == "privacy.already_opened"
    kept = again.opened(town.request(updates, round_[0], arrived=updates[1:]))
    assert np.array_equal(kept, first)
    again.close()


def test_too_few_that_arrived_are_refused_and_more_may_come(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    updates = updates_of(town, round_, 0, 1, 2)
    for arrived in ([], updates[:1], updates[:2]):
        question = town.request(updates, round_[0], arrived=arrived)
        assert life.refused(question) == "privacy.cohort"
    assert nothing_was_opened(town)
    assert np.array_equal(life.opened(town.request(updates, round_[0])), sum_of(town, 0, 1, 2))


@pytest.fixture
def village(tmp_path: Path, adder: SumWorker) -> Iterator[tuple[Town, Life]]:
    """Seven devices, whose sums are opened in two groups."""
    town = Town(tmp_path, adder, devices=7)
    life = Life(town)
    yield town, life
    life.close()


def groups_of(town: Town, sum_set: SumSet, updates: list[Update]) -> list[list[int]]:
    """The numbers of the devices in each group."""
    number_of = {update.digest: number for number, update in enumerate(updates)}
    drawn = drawn_groups(sum_set.seed, parted(sum_set.digests), sum_set.groups)
    return [sorted(number_of[digest] for digest in group) for group in drawn]


def test_each_groups_sum_is_over_its_own_members(village: tuple[Town, Life]) -> None:
    town, life = village
    round_ = life.announced(groups=2)
    updates = updates_of(town, round_, *range(7))
    question = town.request(updates, round_[0])
    sum_set = life.fixed(question)
    groups = groups_of(town, sum_set, updates)
    assert sorted(map(len, groups)) == [3, 4]
    sums = life.opened(question).reshape(2, -1)
    for group, opened in zip(groups, sums, strict=True):
        assert np.array_equal(opened, sum_of(town, *group))
    (record,) = openings(town)
    assert [group["devices"] for group in record["groups"]] == [
        [f"device-{number}" for number in group] for group in groups
    ]


def test_the_groups_follow_from_what_was_committed_to_before_anybody_took_part(
    village: tuple[Town, Life],
) -> None:
    town, life = village
    round_ = life.announced(groups=2)
    updates = updates_of(town, round_, *range(7))
    sum_set = life.fixed(town.request(updates, round_[0]))
    assert commitment_to(sum_set.seed) == round_[0].draw
    life.close()
    again = Life(town)
    assert again.fixed(town.request(updates, round_[0])) == sum_set, "after a restart as before"
    again.close()


def test_before_the_set_is_fixed_the_seed_is_on_the_holders_disk_alone(
    village: tuple[Town, Life],
) -> None:
    town, life = village
    life.announced(groups=2)
    seed = town.vault / "groups.seed"
    assert seed.stat().st_mode & 0o777 == 0o600
    assert all(seed.read_bytes() not in envelope.raw for envelope in life.heard)
    with pytest.raises(AssertionError, match="no answer"):
        life.fetch(digest_of(seed.read_bytes()), 32)


def test_a_group_below_the_minimum_is_refused_and_may_be_left_out(
    village: tuple[Town, Life],
) -> None:
    town, life = village
    round_ = life.announced(groups=2)
    updates = updates_of(town, round_, *range(7))
    sum_set = life.fixed(town.request(updates, round_[0]))
    small, large = sorted(groups_of(town, sum_set, updates), key=len)
    thinned = [updates[number] for number in (*small[1:], *large)]
    assert life.refused(town.request(updates, round_[0], arrived=thinned)) == "privacy.cohort"
    alone = town.request(updates, round_[0], arrived=[updates[number] for number in large])
    assert np.array_equal(life.opened(alone), sum_of(town, *large))


@pytest.mark.parametrize(("devices", "code"), [(5, "privacy.cohort"), (6, "")])
def test_a_set_needs_the_minimum_for_every_group(
    village: tuple[Town, Life], devices: int, code: str
) -> None:
    town, life = village
    round_ = life.announced(groups=2)
    question = town.request(updates_of(town, round_, *range(devices)), round_[0])
    if code:
        assert life.refused(question) == code
        assert not (town.vault / "fixed.json").exists()
    else:
        assert len(life.opened(question)) == 2 * LAYOUT.count


def test_of_a_group_beyond_reach_zeros_are_released_and_the_others_are_exact(
    village: tuple[Town, Life],
) -> None:
    town, life = village
    round_ = life.announced(groups=2)
    updates = updates_of(town, round_, *range(7))
    updates[6] = town.signed(town.devices[6], round_[0], scaled(town, round_, 10))
    question = town.request(updates, round_[0])
    groups = groups_of(town, life.fixed(question), updates)
    sums = life.opened(question).reshape(2, -1)
    for group, opened in zip(groups, sums, strict=True):
        expected = np.zeros(LAYOUT.count) if 6 in group else sum_of(town, *group)
        assert np.array_equal(opened, expected)
    (record,) = openings(town)
    assert [group["within_reach"] for group in record["groups"]] == [
        6 not in group for group in groups
    ]
    assert not (town.vault / "secret.key").exists()


def test_when_every_group_is_beyond_reach_nothing_is_released(village: tuple[Town, Life]) -> None:
    town, life = village
    round_ = life.announced(groups=2)
    updates = [
        town.signed(device, round_[0], scaled(town, round_, 10 + number))
        for number, device in enumerate(town.devices)
    ]
    assert life.refused(town.request(updates, round_[0])) == "privacy.sum_range"
    assert nothing_was_opened(town)
    assert not (town.vault / "secret.key").exists()


# Who is listened to, and what is handed out.


def test_only_the_coordinators_fresh_messages_are_heard(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    honest = town.post.seal(KEY_REQUEST, run=RUN, round_=ROUND)
    life.say_raw(honest)
    life.pass_time(1)
    heard = len(life.heard)
    life.say_raw(honest)  # a replay
    life.say_raw(seal(town.devices[0].identity, 10**6, KEY_REQUEST, run=RUN, round_=ROUND))
    life.say_raw(honest[:-1] + bytes([honest[-1] ^ 1]))
    life.say_raw(b"noise")
    life.say(Call())  # the coordinator's, but nothing for a key holder
    life.say(Contribution("device-0", "0" * 64, 1, "public-key", "0" * 16))
    life.pass_time(5)
    assert len(life.heard) == heard


def test_a_replayed_message_is_refused_after_a_restart_too(
    town: Town,
) -> None:
    life = Life(town)
    old = town.post.seal(KEY_REQUEST, run=RUN, round_=ROUND)
    life.ask(KEY_REQUEST)
    life.close()
    again = Life(town)
    again.say_raw(old)
    again.pass_time(2)
    assert not again.heard
    again.close()


def test_nothing_of_the_vault_but_public_keys_and_opened_sums_is_handed_out(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    updates = updates_of(town, round_, 0, 1, 2)
    held = town.blobs.pop(digest_of(updates[0].frame))
    question = town.request(updates, round_[0])
    life.say(question.opening(life.fixed(question)))
    life.pass_time(3)  # the opening is under way and lacks one
    files = [path for path in town.home.rglob("*") if path.is_file() and path.suffix != ".part"]
    assert any(path.parent.name == "contributions" for path in files)
    for path in files:
        before = life._downloads.under_way
        digest, size = digest_of(path.read_bytes()), path.stat().st_size
        if path.name in ("public.key", "opened.sum"):
            assert life.fetch(digest, size) == path.read_bytes()
        else:
            with pytest.raises(AssertionError, match="no answer"):
                life.fetch(digest, size)
            assert life._downloads.under_way == before + 1
    town.blobs[digest_of(updates[0].frame)] = held


# H7: after a crash, at any point.


class PowerCutError(Exception):
    """The process ends here."""


class Breaker:
    """Cuts the power before or after the n-th durable step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, cut_at: int | None) -> None:
        self.steps: list[str] = []
        self._cut_at = cut_at
        for module, name in (
            (holder_module, "write_durably"),
            (holder_module, "append_durably"),
            (holder_module, "_erase"),
            (shutil, "rmtree"),
            (chunks, "move_durably"),
        ):
            monkeypatch.setattr(module, name, self._wrapped(name, getattr(module, name)))

    def restore_power(self) -> None:
        self._cut_at = None

    def _wrapped(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Path, *args: Any, **kwargs: Any) -> None:
            self._moment(f"before {name} {path.name[:8]}")
            step(path, *args, **kwargs)
            self._moment(f"after {name} {path.name[:8]}")

        return wrapped

    def _moment(self, name: str) -> None:
        if self._cut_at is not None and len(self.steps) == self._cut_at:
            raise PowerCutError(name)
        self.steps.append(name)


STEPS = 34
"""Moments before and after: three files of a key and the seed, the manifest, the fixed set, the
choice, three contributions, the log, the sum, the erasure, the removal of ciphertexts (14, so 28);
the coordinator's two downloads (4); and past the end, where nothing is cut."""


@pytest.mark.parametrize("cut_at", range(STEPS))
def test_after_a_power_cut_the_one_opening_is_neither_lost_nor_done_twice(
    town: Town, monkeypatch: pytest.MonkeyPatch, cut_at: int
) -> None:
    breaker = Breaker(monkeypatch, cut_at=cut_at)
    updates: list[Update] = []
    seen: list[KeyAnnouncement] = []
    life = Life(town)

    def story(life: Life) -> IntVector:
        round_ = life.announced()
        seen.append(round_[0])
        if not updates:
            updates.extend(updates_of(town, round_, 0, 1, 2))
        return life.opened(town.request(updates[:3], round_[0]))

    try:
        opened = story(life)
    except PowerCutError:
        life.close()
        breaker.restore_power()
        life = Life(town)
        opened = story(life)
    else:
        assert cut_at >= len(breaker.steps)
        breaker.restore_power()
    assert np.array_equal(opened, sum_of(town, 0, 1, 2))
    assert len({announcement.key_id for announcement in seen}) == 1
    # Restarted once more, it stands where it stood.
    life.close()
    life = Life(town)
    assert np.array_equal(life.opened(town.request(updates, seen[0])), opened)
    other = town.update(town.devices[3], *life.announced())
    assert life.refused(town.request([*updates, other], seen[0])) == "privacy.already_opened"
    assert not (town.vault / "secret.key").exists()
    assert not (town.vault / "contributions").exists()
    records = [{k: v for k, v in record.items() if k != "at"} for record in openings(town)]
    assert 1 <= len(records) <= 2
    assert all(record == records[0] for record in records)
    life.close()


def test_the_steps_of_an_opening_are_taken_in_their_order(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fixed before fetched, logged before kept, kept before erased, all before told."""
    breaker = Breaker(monkeypatch, cut_at=None)
    life = Life(town)
    round_ = life.announced()
    breaker.steps.clear()
    updates = updates_of(town, round_, 0, 1, 2)
    answer = life.ask(town.request(updates, round_[0]))
    assert isinstance(answer, Opened)
    done = [step.removeprefix("after ") for step in breaker.steps if step.startswith("after")]
    kinds = [step.split()[0] + ("" if "write" not in step else " " + step[-8:]) for step in done]
    assert kinds == [
        "move_durably",  # the manifest
        "write_durably fixed.js",
        "write_durably chosen.j",
        *["move_durably"] * 3,  # contributions
        "append_durably",
        "write_durably opened.s",
        "_erase",
        "rmtree",
    ]
    life.close()


def test_a_crash_between_the_sum_and_the_erasure_erases_at_the_next_start(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only when the coordinator happens to ask again: it may never do so."""
    life = Life(town)
    round_ = life.announced()
    updates = updates_of(town, round_, 0, 1, 2)
    with monkeypatch.context() as broken:
        broken.setattr(holder_module, "_erase", lambda _: (_ for _ in ()).throw(PowerCutError))
        with pytest.raises(PowerCutError):
            life.opened(town.request(updates, round_[0]))
    assert (town.vault / "opened.sum").exists()
    assert (town.vault / "secret.key").exists()
    life.close()
    Life(town).close()
    assert not (town.vault / "secret.key").exists()
    assert not (town.vault / "contributions").exists()


# Trouble that passes.


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (holder_module, "write_durably"),
        (holder_module, "append_durably"),
        (chunks, "move_durably"),
    ],
)
@pytest.mark.parametrize("failures", [1, 2, 3, 4, 5])
def test_a_full_disk_delays_an_opening_and_nothing_else(
    town: Town, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, failures: int
) -> None:
    """The n-th step of a kind fails once; the coordinator's repetitions bring it to its end."""
    life = Life(town)
    round_ = life.announced()
    updates = updates_of(town, round_, 0, 1, 2)
    calls, honest = 0, getattr(module, name)

    def full(path: Path, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        if town.home in path.parents:
            calls += 1
            if calls == failures:
                raise StorageError("the disk is full")
        honest(path, *args, **kwargs)

    monkeypatch.setattr(module, name, full)
    assert np.array_equal(life.opened(town.request(updates, round_[0])), sum_of(town, 0, 1, 2))
    assert not (town.vault / "secret.key").exists()
    life.close()


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_a_fetch_that_the_disk_refuses_does_not_block_the_next_attempt(
    life: Life,
    town: Town,
    round_: tuple[KeyAnnouncement, bytes],
    monkeypatch: pytest.MonkeyPatch,
    failing: int,
) -> None:
    """The manifest is the first, then come three contributions."""
    fetch, calls = chunks.Downloads.fetch, 0

    def full(downloads: chunks.Downloads, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise StorageError("the disk is full")
        fetch(downloads, *args, **kwargs)

    request = town.request(updates_of(town, round_, 0, 1, 2), round_[0])
    with monkeypatch.context() as broken:
        broken.setattr(chunks.Downloads, "fetch", full)
        answer = life.ask(request)
    assert isinstance(answer, Opened)
    assert len(openings(town)) == 1


def test_a_disk_that_is_full_at_every_answer_ends_nothing(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a refusal can be sent while sequence numbers cannot be reserved."""
    life = Life(town)
    full = True

    def save(_guard: object) -> None:
        if full:
            raise StorageError("the disk is full")

    monkeypatch.setattr("shared.wire.envelope.ReplayGuard.save", save)
    life.say(OpenRequest(bytes(32), bytes(32)))
    life.say(KEY_REQUEST)
    life.pass_time(5)
    assert not life.heard
    full = False
    round_ = life.announced()
    updates = updates_of(town, round_, 0, 1, 2)
    full = True
    life.say(town.request(updates, round_[0]).fix)
    life.pass_time(5)
    assert len(life.heard) == 1
    full = False
    assert np.array_equal(life.opened(town.request(updates, round_[0])), sum_of(town, 0, 1, 2))
    life.close()


def test_a_worker_that_dies_is_only_a_delay(
    life: Life,
    town: Town,
    adder: SumWorker,
    round_: tuple[KeyAnnouncement, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    updates = updates_of(town, round_, 0, 1, 2)
    deaths, honest = 0, SumWorker.add

    def dying(worker: SumWorker, context: SumContext, path: Path) -> int:
        nonlocal deaths
        if deaths < 2:
            deaths += 1
            worker.close()
        return honest(worker, context, path)

    monkeypatch.setattr(SumWorker, "add", dying)
    assert np.array_equal(life.opened(town.request(updates, round_[0])), sum_of(town, 0, 1, 2))
    assert deaths == 2


@pytest.mark.parametrize("fetched_before", [False, True])
def test_a_question_repeated_while_its_manifest_is_on_the_way_is_one_opening(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes], fetched_before: bool
) -> None:
    """Two openings side by side would share one running total and erase each other's key."""
    updates = updates_of(town, round_, 0, 1, 2)
    if fetched_before:  # by a process that ended since
        for update in updates:
            write_durably(town.vault / "contributions" / digest_of(update.frame), update.frame)
    request = town.request(updates, round_[0])
    manifest = town.blobs.pop(request.fix.manifest)
    for _ in range(3):
        life.say(request.fix)
    life.pass_time(1)
    town.blobs[request.fix.manifest] = manifest
    opening = request.opening(life.fixed(request))
    for _ in range(3):
        life.say(opening)
    answer = life.ask(opening)
    assert isinstance(answer, (Opened, SumSet)), answer
    life.pass_time(10)
    assert len(openings(town)) == 1
    assert {type(envelope.message) for envelope in life.heard[1:]} == {SumSet, Opened}
    assert len({envelope.message for envelope in life.heard[1:]}) == 2, "one set and one sum"


def test_on_a_bad_link_the_opening_takes_longer_and_is_the_same(
    town: Town,
) -> None:
    life = Life(town, link=Link(latency_s=0.05, loss=0.25))
    round_ = life.announced()
    updates = updates_of(town, round_, 0, 1, 2)
    assert np.array_equal(life.opened(town.request(updates, round_[0])), sum_of(town, 0, 1, 2))
    assert len(openings(town)) == 1
    life.close()


def test_damaged_approvals_open_nothing_and_end_nothing(
    life: Life, town: Town, round_: tuple[KeyAnnouncement, bytes]
) -> None:
    updates = updates_of(town, round_, 0, 1, 2)
    whole = (town.home / "approvals.json").read_bytes()
    (town.home / "approvals.json").write_bytes(b'{"device-0": 5}')
    life.say(town.request(updates, round_[0]).fix)
    life.pass_time(5)
    assert len(life.heard) == 1
    assert nothing_was_opened(town)
    (town.home / "approvals.json").write_bytes(whole)
    assert np.array_equal(life.opened(town.request(updates, round_[0])), sum_of(town, 0, 1, 2))
