"""A cohort is a fair draw that depends on who is there, on the round, and on nothing else."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.federation.cohort import cohort_stream, draw_cohort, invitations
from shared.types import DeviceId, RoundNumber, RunId

RUN = RunId("run")
names = st.sets(st.integers(0, 99).map(lambda n: DeviceId(f"device-{n}")), max_size=30)


def draw(
    present: list[DeviceId], wanted: int, *, most: int = 256, dropout: float = 0.0, seed: int = 1
) -> tuple[DeviceId, ...]:
    rng = cohort_stream(seed, RUN, RoundNumber(1))
    return draw_cohort(present, wanted, most=most, dropout=dropout, rng=rng)


@given(
    present=names,
    wanted=st.integers(0, 40),
    most=st.integers(2, 40),
    dropout=st.floats(0, 0.99),
    data=st.data(),
)
def test_the_draw_depends_on_the_set_of_devices_and_has_the_size_that_was_asked(
    present: set[DeviceId], wanted: int, most: int, dropout: float, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(sorted(present)))
    drawn = draw(list(order), wanted, most=most, dropout=dropout)
    assert drawn == draw(sorted(present), wanted, most=most, dropout=dropout)
    assert drawn == draw([*order, *order], wanted, most=most, dropout=dropout)
    assert list(drawn) == sorted(set(drawn))
    assert set(drawn) <= present
    asked = invitations(wanted, dropout=dropout) if wanted else len(present)
    assert len(drawn) == min(asked, most, len(present))


@given(wanted=st.integers(1, 300), dropout=st.floats(0, 1, exclude_max=True))
def test_enough_are_invited_that_enough_report(wanted: int, dropout: float) -> None:
    count = invitations(wanted, dropout=dropout)
    lost = min(dropout, 0.5)
    assert count * (1 - lost) >= wanted - 1e-9
    assert (count - 1) * (1 - lost) < wanted + 1e-9


@pytest.mark.parametrize(("dropout", "count"), [(0.0, 10), (0.5, 20), (0.51, 20), (0.999, 20)])
def test_at_most_half_of_the_invitations_are_planned_to_be_lost(dropout: float, count: int) -> None:
    assert invitations(10, dropout=dropout) == count


def test_a_restart_draws_the_same_cohort_and_another_round_another() -> None:
    def stream(seed: int = 1, run: str = "run", number: int = 1) -> list[int]:
        rng = cohort_stream(seed, RunId(run), RoundNumber(number))
        return [int(number) for number in rng.integers(0, 2**62, 4)]

    assert stream() == stream()
    others = [stream(seed=2), stream(run="other"), stream(number=2)]
    assert stream() not in others
    # Neighbouring fields must not run into each other.
    assert stream(run="run/1", number=1) != stream(run="run", number=1)


@pytest.mark.parametrize(("wanted", "most"), [(4, 256), (200, 4), (0, 4)])
def test_every_device_is_as_likely_as_every_other(wanted: int, most: int) -> None:
    """Also the last ones in the alphabet, and also when ``most`` is what limits the draw."""
    present, draws = [DeviceId(f"device-{n:02}") for n in range(12)], 3000
    rng = np.random.default_rng(5)
    counts = Counter(
        device
        for _ in range(draws)
        for device in draw_cohort(present, wanted, most=most, dropout=0.0, rng=rng)
    )
    # Each count is binomial (3000, 1/3): standard deviation 25.8. Five of them for 12 counts
    # alarm on right code in 1 of 140,000 seeds; a device left out or forced in is 38 away.
    spread = 5 * math.sqrt(draws * (1 / 3) * (2 / 3))
    assert set(counts) == set(present)
    assert all(abs(count - draws / 3) < spread for count in counts.values())


def test_pairs_are_independent_too() -> None:
    present, draws = [DeviceId(name) for name in "abcdef"], 3000
    rng = np.random.default_rng(6)
    pairs = Counter(draw_cohort(present, 2, most=256, dropout=0.0, rng=rng) for _ in range(draws))
    # 15 pairs of probability 1/15: standard deviation 13.7; five of them, as above.
    assert len(pairs) == 15
    spread = 5 * math.sqrt(draws * (1 / 15) * (14 / 15))
    assert all(abs(count - draws / 15) < spread for count in pairs.values())
