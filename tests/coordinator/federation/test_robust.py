"""Robust rules are what their papers say, and a few hostile updates of any size move them little."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from coordinator.federation import robust
from coordinator.federation.robust import Updates, robust_middle
from coordinator.federation.server_update import ServerState, server_step
from shared.errors import CohortTooSmall, NonFiniteUpdate
from shared.job import ROBUST_RULES, ServerTable

RULES = list(ROBUST_RULES)


def table(rule: str, malicious: int = 1) -> ServerTable:
    return ServerTable(rule=rule, malicious=malicious)  # type: ignore[arg-type]


@st.composite
def cases(draw: st.DrawFn, *, extra: int = 6) -> tuple[ServerTable, Updates]:
    """A rule, how many are hostile, and enough updates for it; whole numbers, so often ties."""
    server = table(draw(st.sampled_from(RULES)), draw(st.integers(1, 3)))
    present = server.fewest_updates + draw(st.integers(0, extra))
    width = draw(st.integers(1, 5))
    values = st.integers(-20, 20)
    rows = st.lists(values, min_size=width, max_size=width)
    told = draw(st.lists(rows, min_size=present, max_size=present))
    return server, np.array(told, np.float64)


# The obvious way, in fractions


def obvious_median(column: list[Fraction]) -> Fraction:
    ordered = sorted(column)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def obvious_trimmed_mean(column: list[Fraction], cut: int) -> Fraction:
    kept = list(column)
    for _ in range(cut):
        kept.remove(max(kept))
        kept.remove(min(kept))
    return sum(kept, Fraction()) / len(kept)


def obvious_krum_scores(rows: list[list[Fraction]], malicious: int) -> list[Fraction]:
    def squared(a: list[Fraction], b: list[Fraction]) -> Fraction:
        return sum(((x - y) ** 2 for x, y in zip(a, b, strict=True)), Fraction())

    scores = []
    for place, row in enumerate(rows):
        others = [squared(row, other) for at, other in enumerate(rows) if at != place]
        scores.append(sum(sorted(others)[: len(rows) - malicious - 2], Fraction()))
    return scores


def as_fractions(updates: Updates) -> list[list[Fraction]]:
    return [[Fraction(float(value)) for value in row] for row in updates]


@given(cases())
def test_median_and_trimmed_mean_are_those_of_sorted_fractions(
    case: tuple[ServerTable, Updates],
) -> None:
    server, updates = case
    columns = zip(*as_fractions(updates), strict=True)
    if server.rule == "median":
        expected = [obvious_median(list(column)) for column in columns]
    elif server.rule == "trimmed-mean":
        expected = [obvious_trimmed_mean(list(column), server.malicious) for column in columns]
    else:
        return
    middle = robust_middle(server, updates)
    assert middle == pytest.approx([float(value) for value in expected], rel=1e-13, abs=1e-13)


@given(st.integers(1, 3), st.integers(0, 5), st.integers(1, 5), st.integers(0, 2**32))
def test_multi_krum_is_the_mean_of_the_updates_with_the_smallest_sums_of_distances(
    malicious: int, extra: int, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    updates = rng.integers(-1000, 1000, (2 * malicious + 3 + extra, width)).astype(np.float64)
    rows = as_fractions(updates)
    scores = obvious_krum_scores(rows, malicious)
    keep = len(rows) - malicious
    ranked = sorted(range(len(rows)), key=scores.__getitem__)
    assume(scores[ranked[keep - 1]] != scores[ranked[keep]])  # ties have a test of their own
    best = [rows[place] for place in ranked[:keep]]
    expected = [float(sum(column, Fraction()) / keep) for column in zip(*best, strict=True)]
    middle = robust_middle(table("multikrum", malicious), updates)
    assert middle == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_multi_krum_breaks_a_tie_the_same_way_in_every_order() -> None:
    # Two pairs as mirror images: their scores are equal and only one more may stay.
    updates = np.array([[0.0, 0], [1, 0], [-1, 0], [3, 0], [-3, 0]])
    scores = obvious_krum_scores(as_fractions(updates), 1)
    assert scores[3] == scores[4] == max(scores)
    chosen = robust_middle(table("multikrum"), updates)
    assert chosen.tolist() in ([0.75, 0.0], [-0.75, 0.0])
    for turned in (updates[::-1], updates[[3, 0, 4, 1, 2]]):
        assert robust_middle(table("multikrum"), turned).tolist() == chosen.tolist()


@given(cases(), st.integers(1, 5))
def test_rules_agree_with_flowers_formulas(
    case: tuple[ServerTable, Updates], malicious: int
) -> None:
    """Flower 1.x: ``np.median``; a trimmed mean by ``np.partition``; ``select_multikrum``."""
    server, updates = case
    present, cut = len(updates), server.malicious
    if server.rule == "median":
        expected = np.median(updates, axis=0)
    elif server.rule == "trimmed-mean":
        parted = np.partition(updates, (cut, present - cut - 1), axis=0)
        expected = np.mean(parted[cut : present - cut], axis=0)
    else:
        norms = np.square(updates).sum(axis=1)
        apart = norms[:, None] + norms[None, :] - 2 * updates @ updates.T
        # Whole numbers: exact, so a row is its own nearest, and [1:] leaves it out.
        scores = np.sort(apart, axis=1)[:, 1 : max(1, present - cut - 2) + 1].sum(axis=1)
        ranked = np.argsort(scores)
        assume(scores[ranked[present - cut - 1]] != scores[ranked[present - cut]])
        expected = updates[ranked[: present - cut]].mean(axis=0)
    assert robust_middle(server, updates) == pytest.approx(expected, rel=1e-12, abs=1e-12)


# What every rule keeps to


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_updates_changes_nothing(
    case: tuple[ServerTable, Updates], random: object
) -> None:
    server, updates = case
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    noised = updates + rng.normal(size=updates.shape)  # so that sums round
    turned = rng.permutation(noised)
    assert np.array_equal(robust_middle(server, noised), robust_middle(server, turned))


@given(cases(), st.integers(-1000, 1000))
def test_what_is_added_to_every_update_is_added_to_their_middle(
    case: tuple[ServerTable, Updates], shift: int
) -> None:
    server, updates = case
    moved = robust_middle(server, updates + shift)
    assert moved == pytest.approx(robust_middle(server, updates) + shift, rel=1e-10, abs=1e-10)


@given(cases())
def test_the_middle_lies_within_the_updates_and_leaves_them_as_they_are(
    case: tuple[ServerTable, Updates],
) -> None:
    server, updates = case
    before = updates.copy()
    middle = robust_middle(server, updates)
    assert (middle >= updates.min(axis=0) - 1e-9).all()
    assert (middle <= updates.max(axis=0) + 1e-9).all()
    assert np.array_equal(updates, before)


@given(st.sampled_from(RULES), st.integers(1, 3))
def test_equal_updates_are_their_own_middle(rule: str, malicious: int) -> None:
    server = table(rule, malicious)
    updates = np.tile([0.1, -3.0, 1e6], (server.fewest_updates, 1))
    assert robust_middle(server, updates) == pytest.approx([0.1, -3.0, 1e6], rel=1e-14)


@given(
    st.sampled_from(RULES),
    st.integers(1, 3),
    st.integers(0, 2**32),
    st.sampled_from([-1e90, -1e6, -10.0, 10.0, 1e6, 1e90]),
    st.booleans(),
)
def test_hostile_updates_of_any_size_leave_the_middle_among_the_honest_ones(
    rule: str, malicious: int, seed: int, factor: float, alike: bool
) -> None:
    rng = np.random.default_rng(seed)
    server = table(rule, malicious)
    # The median stands any minority; the others as many as they were told of.
    present = max(server.fewest_updates, 2 * malicious + 1)
    honest = rng.uniform(0, 2, (present - malicious, 4))
    hostile = np.full((malicious, 4), factor)
    if not alike:
        hostile *= np.arange(1, malicious + 1)[:, None]
    updates = rng.permutation(np.concatenate([honest, hostile]))
    middle = robust_middle(server, updates)
    assert (middle >= 0).all()
    assert (middle <= 2).all()
    mean = updates.mean(axis=0)
    assert ((mean < 0) | (mean > 2)).all(), "the control: a mean goes wherever it is pulled"


@pytest.mark.parametrize("rule", ["trimmed-mean", "multikrum"])
def test_one_hostile_update_more_than_a_rule_was_told_of_moves_it(rule: str) -> None:
    server = table(rule, 2)
    present = server.fewest_updates
    honest = np.random.default_rng(1).normal(size=(present, 3))
    for hostile, held in ((2, True), (3, False), (present, False)):
        updates = honest.copy()
        updates[:hostile] = 1e6
        assert (np.abs(robust_middle(server, updates)).max() < 10) == held


def test_the_median_stands_any_minority_and_no_half() -> None:
    honest = np.random.default_rng(1).normal(size=(8, 3))
    for hostile, held in ((3, True), (4, False)):
        updates = honest.copy()
        updates[:hostile] = 1e6
        assert (np.abs(robust_middle(table("median"), updates)).max() < 10) == held


def test_multi_krum_tells_near_updates_apart_beside_far_ones() -> None:
    """Lengths taken from the origin would round every distance between honest updates to noise."""
    rng = np.random.default_rng(2)
    near = 1e9 + rng.normal(scale=1e-3, size=(6, 50))
    odd = 1e9 + rng.normal(scale=1e-2, size=(1, 50))
    hostile = np.full((2, 50), -1e12)
    chosen = robust_middle(table("multikrum", 3), np.concatenate([odd, near, hostile]))
    assert chosen == pytest.approx(near.mean(axis=0), rel=1e-15, abs=1e-6)


# Limits


@pytest.mark.parametrize(
    ("rule", "malicious", "fewest"),
    [("median", 5, 3), ("trimmed-mean", 1, 3), ("trimmed-mean", 4, 9), ("multikrum", 1, 5)],
)
def test_one_update_fewer_than_needed_is_refused(rule: str, malicious: int, fewest: int) -> None:
    server = table(rule, malicious)
    assert robust_middle(server, np.ones((fewest, 2))).tolist() == [1.0, 1.0]
    with pytest.raises(CohortTooSmall) as caught:
        robust_middle(server, np.ones((fewest - 1, 2)))
    assert (caught.value.present, caught.value.required) == (fewest - 1, fewest)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.1e100, -1.1e100])
def test_an_update_that_cannot_be_compared_is_refused(rule: str, value: float) -> None:
    updates = np.zeros((7, 3))
    updates[4, 2] = value
    with pytest.raises(NonFiniteUpdate):
        robust_middle(table(rule), updates)


@pytest.mark.parametrize("rule", RULES)
def test_the_largest_values_that_are_taken_do_not_overflow(rule: str) -> None:
    updates = np.zeros((7, 3))
    updates[4] = 1e100
    assert robust_middle(table(rule), updates).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("rule", ["fedavg", "fedadam"])
def test_a_rule_that_compares_nothing_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="compare"):
        robust_middle(table(rule), np.zeros((7, 3)))


@pytest.mark.parametrize("rule", RULES)
def test_chunks_are_invisible(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = np.random.default_rng(3).normal(size=(9, 101))
    whole = robust_middle(table(rule, 2), updates)
    monkeypatch.setattr(robust, "_CHUNK", 9 * 10)
    assert robust_middle(table(rule, 2), updates) == pytest.approx(whole, rel=1e-14)


@pytest.mark.parametrize("rule", RULES)
def test_the_server_takes_the_middle_as_it_takes_a_mean(rule: str) -> None:
    server = ServerTable(rule=rule, learning_rate=0.5)  # type: ignore[arg-type]
    state = ServerState.initial()
    change, after = server_step(server, state, np.array([2.0, -4.0]))
    assert change.tolist() == [1.0, -2.0]
    assert after is state
