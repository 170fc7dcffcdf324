"""The public-key scheme: its proofs at their bounds, and bytes that SEAL never gets to see."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shared.crypto import public_key
from shared.crypto.public_key import (
    DEGREE,
    PARAMETERS,
    Parameters,
    PublicKeyOpener,
    PublicKeySum,
    _Encoding,
    _scratch,
    _seal,
)
from shared.crypto.residues import Residues
from shared.crypto.sum_cipher import CAPACITY, MAX_DEVICES, KeyPair, SumContext, SumLayout
from shared.errors import (
    DependencyMissing,
    LlmOsError,
    SumOutOfRange,
    UndecodableMessage,
    WrongKey,
)
from shared.types import IntVector, RoundNumber, RunId

pytest.importorskip("tenseal", reason="the extra 'crypto' brings it")

ROOT = Path(__file__).parents[3]
LAYOUT = SumLayout(count=20_000, bits=12, max_devices=MAX_DEVICES)
CIPHER = PublicKeySum(LAYOUT)
OPENER = PublicKeyOpener(LAYOUT)
COUNT_AT, KEY_PARAMETERS_AT, KEY_PAYLOAD_AT = 92, 8, 40

sets = pytest.mark.parametrize("parameters", PARAMETERS.values(), ids=lambda p: p.name)


@pytest.fixture(scope="module")
def keys() -> KeyPair:
    return OPENER.new_key_pair()


@pytest.fixture(scope="module")
def context(keys: KeyPair) -> SumContext:
    return SumContext(RunId("run"), RoundNumber(1), keys.key_id)


def values(seed: int, magnitude: int = 2047) -> IntVector:
    return np.random.default_rng(seed).integers(-magnitude, magnitude + 1, LAYOUT.count)


# Field capacity.


@sets
def test_fields_at_their_bound_do_not_touch(parameters: Parameters) -> None:
    bound = CAPACITY * (2 ** (parameters.bits - 1) - 1)
    for pattern in ([1, 1, 1], [-1, -1, -1], [1, -1, 1], [-1, 1, -1], [0, 0, 1], [0, 1, 0]):
        fields = np.repeat(np.array(pattern[: parameters.fields]) * bound, DEGREE)
        assert np.array_equal(parameters.unpack(parameters.pack(fields)), fields)


@sets
def test_one_device_past_the_fields_capacity_runs_into_the_neighbour(
    parameters: Parameters,
) -> None:
    magnitude = 2 ** (parameters.bits - 1) - 1
    capacity = (2 ** (parameters.field_bits - 1) - 1) // magnitude
    assert CAPACITY <= capacity <= CAPACITY + 2
    for devices, exact in ((capacity, True), (capacity + 1, False)):
        fields = np.zeros(parameters.values_per_ciphertext, dtype=np.int64)
        fields[:DEGREE] = devices * magnitude
        assert np.array_equal(parameters.unpack(parameters.pack(fields)), fields) is exact


@sets
def test_the_largest_slot_is_below_half_the_plain_modulus(parameters: Parameters) -> None:
    assert parameters.slot_bound(CAPACITY) < parameters.plain_modulus // 2
    full = np.full(parameters.values_per_ciphertext, CAPACITY * (2 ** (parameters.bits - 1) - 1))
    assert set(parameters.pack(full).ravel().tolist()) == {parameters.slot_bound(CAPACITY)}


@sets
def test_moduli_are_what_batching_needs(parameters: Parameters) -> None:
    moduli = [*parameters.key_primes, parameters.plain_modulus]
    assert len(set(moduli)) == len(moduli)
    assert all(modulus % (2 * DEGREE) == 1 for modulus in moduli)
    assert sum(prime.bit_length() for prime in parameters.key_primes) <= 109  # 128-bit security


# Noise.


@sets
def test_the_stated_noise_tail_is_far_beyond_what_is_promised(parameters: Parameters) -> None:
    assert parameters.noise_tail_log2(CAPACITY) < -117
    assert parameters.noise_tail_log2(2) < parameters.noise_tail_log2(CAPACITY)


@sets
def test_noise_over_the_most_devices_is_as_derived(parameters: Parameters) -> None:
    # 256 fresh ciphertexts have, as derived, a standard deviation of 3832 of 65536 allowed,
    # or 242 of 4096. The largest of 4096 coefficients lies between 2.2 and 8.4 of them but
    # for one run in 10^13, which leaves 1 or 2 bits; four times the noise always leaves 0,
    # half of it leaves 3 in nine runs of ten.
    api = pytest.importorskip("tenseal.sealapi")
    seal = _seal(parameters)
    generator = api.KeyGenerator(seal._context)
    key, total = api.PublicKey(), api.Ciphertext()
    generator.create_public_key(key)
    encryptor, evaluator = api.Encryptor(seal._context, key), api.Evaluator(seal._context)
    encryptor.encrypt_zero(total)
    for _ in range(CAPACITY - 1):
        fresh = api.Ciphertext()
        encryptor.encrypt_zero(fresh)
        evaluator.add_inplace(total, fresh)
    budget = api.Decryptor(seal._context, generator.secret_key()).invariant_noise_budget(total)
    assert 1 <= budget <= 2


def test_noise_that_is_not_fresh_is_outside_the_promise_and_found(
    keys: KeyPair, context: SumContext
) -> None:
    frame = CIPHER.encrypt(values(1), public_key=keys.public, context=context)
    total = CIPHER.begin(context)
    for _ in range(MAX_DEVICES):
        total.add(frame)  # the same noise 240 times adds up instead of averaging out
    with pytest.raises(SumOutOfRange):
        OPENER.open(total.dump(), secret_key=keys.secret, context=context, devices=MAX_DEVICES)


@sets
def test_the_range_check_keeps_its_teeth_at_the_most_devices(parameters: Parameters) -> None:
    """Random slots, as a crafted ciphertext decrypts to, do not all fall within reach.

    The control is the fields' whole capacity, where more than every hundredth attempt would pass.
    """
    reach = 2 ** (parameters.bits - 1) - 1
    fields = parameters.values_per_ciphertext

    def log2_chance(devices: int) -> float:
        return fields * math.log2(min(1.0, (2 * devices * reach + 1) / 2**parameters.field_bits))

    assert log2_chance(MAX_DEVICES) < -700
    if parameters.bits > 8:
        assert log2_chance(CAPACITY) > -7


# Hostile frames and totals.


def ciphertexts(keys: KeyPair, fields: IntVector) -> list[Residues]:
    parameters = CIPHER.parameters
    return _seal(parameters).encrypt(parameters.pack(fields), keys.public)


def as_contribution(residues: list[Residues], context: SumContext) -> bytes:
    """Frame residues as a hostile device would: everything right but what is inside."""
    return CIPHER._contribution.wrap(*CIPHER._payload(residues), context=context, devices=1)


def test_equal_vectors_do_not_look_equal(keys: KeyPair) -> None:
    (first,), (second,) = (ciphertexts(keys, values(1)) for _ in range(2))
    assert np.mean(first == second) < 1e-3


@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_transparent_ciphertext_among_others_is_refused(
    keys: KeyPair, context: SumContext, which: int
) -> None:
    (residues,) = ciphertexts(keys, values(1))
    total = CIPHER.begin(context)
    residues[2 * which + 1] = 0
    with pytest.raises(UndecodableMessage, match="transparent"):
        total.add(as_contribution([residues], context))
    assert total.devices == 0
    residues[2 * which + 1, -1] = 1
    total.add(as_contribution([residues], context))  # the control: only that was wrong


def test_a_number_beyond_the_modulus_is_refused(keys: KeyPair, context: SumContext) -> None:
    (residues,) = ciphertexts(keys, values(1))
    (prime,) = CIPHER.parameters.data_primes
    total = CIPHER.begin(context)
    residues[3, 77] = prime
    with pytest.raises(UndecodableMessage, match="modulus"):
        total.add(as_contribution([residues], context))
    residues[3, 77] = prime - 1
    total.add(as_contribution([residues], context))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("place", [0, DEGREE, LAYOUT.count - 1])
def test_a_value_at_the_bound_opens_and_one_past_it_does_not(
    keys: KeyPair, context: SumContext, sign: int, place: int
) -> None:
    for excess in (0, 1):
        vector = np.zeros(LAYOUT.count, dtype=np.int64)
        vector[place] = sign * (2 * 2047 + excess)
        dump = CIPHER.write_total(ciphertexts(keys, vector), context, devices=2)
        if excess:
            with pytest.raises(SumOutOfRange):
                OPENER.open(dump, secret_key=keys.secret, context=context, devices=2)
        else:
            opened = OPENER.open(dump, secret_key=keys.secret, context=context, devices=2)
            assert np.array_equal(opened, vector)


@pytest.mark.parametrize("place", [LAYOUT.count, 3 * 2 * DEGREE - 1])
def test_a_value_hidden_in_the_padding_is_refused(
    keys: KeyPair, context: SumContext, place: int
) -> None:
    vector = np.zeros(3 * 2 * DEGREE, dtype=np.int64)
    for hidden in (0, 1):
        vector[place] = hidden
        total = CIPHER.begin(context)
        total.add(as_contribution(ciphertexts(keys, vector), context))
        if hidden:
            with pytest.raises(SumOutOfRange, match="hold none"):
                OPENER.open(total.dump(), secret_key=keys.secret, context=context, devices=1)
        else:
            OPENER.open(total.dump(), secret_key=keys.secret, context=context, devices=1)


def test_a_crafted_total_is_structurally_whole_and_would_decrypt_to_the_secret_key(
    keys: KeyPair, context: SumContext
) -> None:
    # Why an opener adds contributions itself: no check on (0, Δ) as such can tell.
    parameters = CIPHER.parameters
    (prime,) = parameters.data_primes
    crafted = np.zeros((6, DEGREE), dtype=np.uint64)
    crafted[1::2, 0] = prime // parameters.plain_modulus
    dump = CIPHER.write_total([crafted], context, devices=2)
    seal = _seal(parameters)
    slots = seal.decrypt(CIPHER.read_total(dump, context, 2), keys.secret, keys.key_id)
    plaintext = seal._api.Plaintext()
    seal._encoder.encode(slots[0].tolist(), plaintext)
    coefficients = {plaintext.data(index) for index in range(plaintext.coeff_count())}
    assert coefficients == {0, 1, parameters.plain_modulus - 1}  # ternary: this is the key
    # The range check is a second fence, not the first: slots of a key look random.
    with pytest.raises(SumOutOfRange):
        OPENER.open(dump, secret_key=keys.secret, context=context, devices=2)


# Adding without SEAL.


def test_adding_residues_is_what_seal_does(keys: KeyPair, context: SumContext) -> None:
    for parameters in PARAMETERS.values():
        seal = _seal(parameters)
        pair = seal.new_key_pair()
        layout = replace(LAYOUT, count=100, bits=parameters.bits)
        cipher = PublicKeySum(layout)
        own = replace(context, key_id=pair.key_id)
        frames = [
            cipher.encrypt(np.full(100, n), public_key=pair.public, context=own) for n in (3, 4)
        ]
        total = cipher.begin(own)
        loaded = []
        with _scratch() as scratch:
            for frame in frames:
                total.add(frame)
                residues = cipher.read_contribution(frame, own)
                loaded.append(seal._api.Ciphertext())
                scratch.load(loaded[-1], seal._context, seal._encoding.write(np.stack(residues, 1)))
            seal._api.Evaluator(seal._context).add_inplace(*loaded)
            oracle = seal._encoding.read(scratch.saved(loaded[0]))
        ours = cipher.read_total(total.dump(), own, 2)
        assert np.array_equal(np.stack(ours, 1).ravel(), oracle)


ADDING = """
import sys
from pathlib import Path
from shared.crypto.sum_cipher import Scheme, SumContext, SumLayout, cipher_for, opener_for
cipher = cipher_for(Scheme.PUBLIC_KEY, SumLayout(20_000, 12, 240))
total = cipher.begin(SumContext("run", 1, sys.argv[2]))
total.add(Path(sys.argv[1]).read_bytes())
total.dump()
print("tenseal" in sys.modules)
opener_for(Scheme.PUBLIC_KEY, cipher.layout).new_key_pair()
print("tenseal" in sys.modules)
"""


def test_an_adder_never_loads_what_could_decrypt(
    tmp_path: Path, keys: KeyPair, context: SumContext
) -> None:
    frame = tmp_path / "frame"
    frame.write_bytes(CIPHER.encrypt(values(1), public_key=keys.public, context=context))
    out = subprocess.run(
        [sys.executable, "-c", ADDING, str(frame), keys.key_id],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.split() == ["False", "True"]  # the second is the control


# Keys.


def test_a_damaged_or_foreign_public_key_is_refused(keys: KeyPair) -> None:
    foreign = PublicKeyOpener(replace(LAYOUT, bits=16)).new_key_pair().public
    renamed = keys.public[:KEY_PARAMETERS_AT] + foreign[KEY_PARAMETERS_AT:KEY_PAYLOAD_AT]
    renamed += keys.public[KEY_PAYLOAD_AT:]
    huge = keys.public[:KEY_PAYLOAD_AT] + b"\xff" * (len(keys.public) - KEY_PAYLOAD_AT)
    for bad, error in (
        (b"", UndecodableMessage),
        (keys.public[:-1], UndecodableMessage),
        (foreign, UndecodableMessage),
        (b"X" + keys.public[1:], UndecodableMessage),
        (huge, UndecodableMessage),
        (renamed, WrongKey),
    ):
        context = SumContext(RunId("r"), RoundNumber(1), KeyPair(bad, b"").key_id)
        with pytest.raises(error):
            CIPHER.encrypt(values(1), public_key=bad, context=context)


def test_a_damaged_or_foreign_secret_key_is_refused(keys: KeyPair, context: SumContext) -> None:
    total = CIPHER.begin(context)
    total.add(CIPHER.encrypt(values(1), public_key=keys.public, context=context))
    for bad, error in (
        (OPENER.new_key_pair().secret, WrongKey),
        (PublicKeyOpener(replace(LAYOUT, bits=16)).new_key_pair().secret, WrongKey),
        (keys.public, UndecodableMessage),
        (b"", UndecodableMessage),
        (keys.secret[:-1000], UndecodableMessage),
    ):
        with pytest.raises(error):
            OPENER.open(total.dump(), secret_key=bad, context=context, devices=1)


def test_every_pair_of_keys_is_new() -> None:
    pairs = [OPENER.new_key_pair() for _ in range(3)]
    assert len({pair.key_id for pair in pairs}) == 3
    assert len({pair.secret for pair in pairs}) == 3


# The machine underneath.


def test_without_memory_files_a_temporary_file_serves(
    monkeypatch: pytest.MonkeyPatch, keys: KeyPair, context: SumContext
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with _scratch() as scratch:
        path = Path(scratch.path)
        assert path.stat().st_mode & 0o077 == 0
    assert not path.exists()
    frame = CIPHER.encrypt(values(1), public_key=keys.public, context=context)
    total = CIPHER.begin(context)
    total.add(frame)
    opened = OPENER.open(total.dump(), secret_key=keys.secret, context=context, devices=1)
    assert np.array_equal(opened, values(1))


def test_a_device_without_tenseal_is_told_which_extra_brings_it(
    monkeypatch: pytest.MonkeyPatch, keys: KeyPair, context: SumContext
) -> None:
    monkeypatch.setitem(sys.modules, "tenseal.sealapi", None)
    monkeypatch.setattr(public_key, "_seal", public_key._Seal)  # past the cache
    with pytest.raises(DependencyMissing, match="crypto"):
        CIPHER.encrypt(values(1), public_key=keys.public, context=context)


def test_a_seal_that_writes_something_new_is_an_error_and_not_a_wrong_sum() -> None:
    encoding = _seal(CIPHER.parameters)._encoding
    api = _seal(CIPHER.parameters)._api
    with _scratch() as scratch:
        saved = scratch.saved(api.Ciphertext())  # an empty one: other lengths in its head
    with pytest.raises(LlmOsError, match="do not know"):
        encoding.read(saved)
    with pytest.raises(LlmOsError, match="Zstandard"):
        _Encoding.learnt_from(saved[:5] + b"\0" + saved[6:], residues=0)
