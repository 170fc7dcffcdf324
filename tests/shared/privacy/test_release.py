"""One release, one seed: the same bytes after a crash, and good noise before it."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import StorageError
from shared.privacy import release
from shared.privacy.release import (
    ReleaseSeeds,
    ReleaseStream,
    operating_system_seed,
    simulation_seed,
)
from shared.types import DeviceId, RoundNumber, RunId

RUN, ROUND = RunId("run-a"), RoundNumber(3)
SEED = bytes(range(32))
N = 1_000_000


@pytest.fixture
def seeds(tmp_path: Path) -> ReleaseSeeds:
    return ReleaseSeeds(tmp_path / "seeds")


def never() -> bytes:
    raise AssertionError("a second seed was drawn for the same release")


def test_a_seed_is_drawn_once_and_returned_ever_after(seeds: ReleaseSeeds, tmp_path: Path) -> None:
    first = seeds.obtain(RUN, ROUND, operating_system_seed)
    assert seeds.obtain(RUN, ROUND, never) == first
    assert ReleaseSeeds(tmp_path / "seeds").obtain(RUN, ROUND, never) == first


def test_every_release_has_its_own_seed(seeds: ReleaseSeeds) -> None:
    drawn = {
        seeds.obtain(RunId(run), RoundNumber(number), operating_system_seed)
        for run in ("a", "b", "a-1")
        for number in (1, 11)
    }
    assert len(drawn) == 6


def test_a_seed_is_on_disk_before_it_is_returned_and_nobody_else_reads_it(
    seeds: ReleaseSeeds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    seeds.obtain(RUN, ROUND, operating_system_seed)
    assert len(synced) == 2, "the file and its folder"
    (path,) = (tmp_path / "seeds").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_run_named_by_a_peer_never_becomes_a_path(seeds: ReleaseSeeds, tmp_path: Path) -> None:
    seeds.obtain(RunId("../../outside/" + "x" * 300), ROUND, operating_system_seed)
    assert len(list((tmp_path / "seeds").iterdir())) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "seeds"]


def test_an_erased_seed_is_gone_and_erasing_again_is_harmless(
    seeds: ReleaseSeeds, tmp_path: Path
) -> None:
    first = seeds.obtain(RUN, ROUND, operating_system_seed)
    seeds.erase(RUN, ROUND)
    assert list((tmp_path / "seeds").iterdir()) == []
    seeds.erase(RUN, ROUND)
    assert seeds.obtain(RUN, ROUND, operating_system_seed) != first


def test_a_crash_while_erasing_never_leaves_a_seed_of_zeros(
    seeds: ReleaseSeeds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds.obtain(RUN, ROUND, operating_system_seed)

    def crash(_: Path, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", crash)
    with pytest.raises(KeyboardInterrupt):
        seeds.erase(RUN, ROUND)
    monkeypatch.undo()
    assert seeds.obtain(RUN, ROUND, operating_system_seed) != bytes(32)
    seeds.erase(RUN, ROUND)
    assert list((tmp_path / "seeds").iterdir()) == []


def test_a_damaged_seed_is_refused_rather_than_drawn_anew(
    seeds: ReleaseSeeds, tmp_path: Path
) -> None:
    seeds.obtain(RUN, ROUND, operating_system_seed)
    (path,) = (tmp_path / "seeds").iterdir()
    path.write_bytes(path.read_bytes()[:31])
    with pytest.raises(StorageError, match="second view"):
        seeds.obtain(RUN, ROUND, never)


def test_a_draw_of_the_wrong_length_is_refused(seeds: ReleaseSeeds) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        seeds.obtain(RUN, ROUND, lambda: b"short")
    with pytest.raises(ValueError, match="32 bytes"):
        ReleaseStream(b"short")


def test_a_simulated_seed_depends_on_everything_it_is_for_and_on_nothing_else() -> None:
    def seed(master: bytes, device: str, run: str, number: int) -> bytes:
        return simulation_seed(master, DeviceId(device), RunId(run), RoundNumber(number))

    asked = [
        (master, device, run, number)
        for master in (b"m", b"n")
        for device in ("a", "ab")
        for run in ("b", "")
        for number in (1, 2)
    ]
    assert len({seed(*one) for one in asked}) == len(asked)
    assert seed(b"m", "a", "b", 1) == seed(b"m", "a", "b", 1)
    assert len(seed(b"m", "a", "b", 1)) == 32


@settings(max_examples=25)
@given(st.lists(st.integers(0, 50), max_size=6), st.sampled_from(["uniforms", "gaussians"]))
def test_how_a_stream_is_divided_into_calls_does_not_matter(counts: list[int], kind: str) -> None:
    pieces, whole = ReleaseStream(SEED), ReleaseStream(SEED)
    parts = [getattr(pieces, kind)("noise", count) for count in counts]
    joined = np.concatenate([*parts, np.empty(0)])
    assert (joined == getattr(whole, kind)("noise", sum(counts))).all()


def test_a_stream_does_not_depend_on_what_other_labels_gave() -> None:
    alone, among = ReleaseStream(SEED), ReleaseStream(SEED)
    among.uniforms("sample", 1000)
    among.gaussians("noisy", 7)
    assert (alone.gaussians("noise", 100) == among.gaussians("noise", 100)).all()


def test_the_first_numbers_are_those_of_rfc_8439_s_cipher() -> None:
    """The key stream's 53 high bits, worked out with the cipher one block at a time."""
    key = release._derived(SEED, b"llmos release stream v1\0sample")
    blocks = b"".join(_chacha20_block(key, counter) for counter in range(2))
    words = [int.from_bytes(blocks[i : i + 8], "little") >> 11 for i in range(0, 128, 8)]
    assert ReleaseStream(SEED).uniforms("sample", 16).tolist() == [word / 2**53 for word in words]


def _chacha20_block(key: bytes, counter: int) -> bytes:
    """RFC 8439, section 2.3, with a nonce of zeros."""

    def rotate(value: int, by: int) -> int:
        return ((value << by) | (value >> (32 - by))) & 0xFFFFFFFF

    start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574]
    start += [int.from_bytes(key[i : i + 4], "little") for i in range(0, 32, 4)]
    start += [counter, 0, 0, 0]
    state = start.copy()
    columns = [(i, i + 4, i + 8, i + 12) for i in range(4)]
    diagonals = [(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4) for i in range(4)]
    for a, b, c, d in (columns + diagonals) * 10:
        for x, y, z, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) & 0xFFFFFFFF
            state[z] = rotate(state[z] ^ state[x], by)
    return b"".join(
        ((s + t) & 0xFFFFFFFF).to_bytes(4, "little") for s, t in zip(state, start, strict=True)
    )


def test_gaussians_are_box_and_muller_s_of_the_same_stream() -> None:
    uniforms = ReleaseStream(SEED).uniforms("noise", 200).reshape(100, 2).tolist()
    expected = [
        math.sqrt(-2 * math.log1p(-first)) * math.cos(2 * math.pi * second)
        for first, second in uniforms
    ]
    assert ReleaseStream(SEED).gaussians("noise", 100) == pytest.approx(expected, rel=1e-12)


# The seed is fixed, so these pass or fail forever; the rates say how likely right code was to
# fail on the first run: five standard errors, 1 in 1.7 million each.


def test_uniforms_are_uniform() -> None:
    numbers = ReleaseStream(SEED).uniforms("sample", N)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    # Pearson's statistic: mean 99, standard deviation sqrt(2·99).
    statistic = ((counts - N / 100) ** 2 / (N / 100)).sum()
    assert abs(statistic - 99) < 5 * math.sqrt(2 * 99)


def test_gaussians_have_the_moments_of_a_standard_normal() -> None:
    numbers = ReleaseStream(SEED).gaussians("noise", N)
    # Variances of powers: E[z²] = 1, Var z² = 2, Var z³ = 15, Var z⁴ = 96.
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (numbers**power).mean() == pytest.approx(expected, abs=5 * math.sqrt(variance / N))


def test_gaussians_have_the_tails_of_a_standard_normal() -> None:
    numbers = np.abs(ReleaseStream(SEED).gaussians("noise", N))
    for bound in (0.5, 1.0, 2.0, 3.0):
        tail = math.erfc(bound / math.sqrt(2))
        error = math.sqrt(tail * (1 - tail) / N)
        assert (numbers > bound).mean() == pytest.approx(tail, abs=5 * error)


@pytest.mark.parametrize(
    ("seed", "label"), [(SEED, "noise-2"), (bytes(32), "noise"), (bytes(32), "noise-2")]
)
def test_streams_of_other_labels_and_seeds_are_uncorrelated(seed: bytes, label: str) -> None:
    one = ReleaseStream(SEED).gaussians("noise", N)
    other = ReleaseStream(seed).gaussians(label, N)
    assert abs((one * other).mean()) < 5 / math.sqrt(N)


def test_neighbours_in_a_stream_are_uncorrelated() -> None:
    numbers = ReleaseStream(SEED).gaussians("noise", N)
    for lag in (1, 2, 7):
        assert abs((numbers[lag:] * numbers[:-lag]).mean()) < 5 / math.sqrt(N - lag)
