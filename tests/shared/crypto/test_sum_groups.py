"""Nobody chooses its neighbours, and everybody can check the draw."""

from __future__ import annotations

import hashlib
import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.crypto.sum_groups import commitment_to, drawn_groups, joined, new_seed, parted
from shared.errors import UndecodableMessage
from shared.types import Digest


def digest(number: int) -> Digest:
    return Digest(hashlib.sha256(str(number).encode()).hexdigest())


seeds = st.binary(min_size=32, max_size=32)
sets = st.sets(st.integers(0, 1000), min_size=1, max_size=40).map(
    lambda numbers: [digest(number) for number in numbers]
)


@given(seed=seeds, digests=sets, groups=st.integers(1, 8))
def test_every_member_is_in_one_group_and_sizes_differ_by_one_at_most(
    seed: bytes, digests: list[Digest], groups: int
) -> None:
    drawn = drawn_groups(seed, digests, groups)
    assert len(drawn) == groups
    assert sorted(member for group in drawn for member in group) == sorted(digests)
    sizes = [len(group) for group in drawn]
    assert max(sizes) - min(sizes) <= 1
    assert all(list(group) == sorted(group) for group in drawn)


@given(seed=seeds, digests=sets, groups=st.integers(1, 8), order=st.randoms())
def test_the_draw_depends_on_the_set_and_not_on_its_order(
    seed: bytes, digests: list[Digest], groups: int, order: random.Random
) -> None:
    shuffled = list(digests)
    order.shuffle(shuffled)
    assert drawn_groups(seed, shuffled, groups) == drawn_groups(seed, digests, groups)


def test_any_two_members_are_equally_often_together() -> None:
    """2,000 draws of 9 members into 3 groups: each pair together with chance 1/4.

    A pair's count has standard deviation 19.4; beyond 6 of them for one of 36 pairs in fewer than
    one run in 10^7.
    """
    members = [digest(number) for number in range(9)]
    together = dict.fromkeys(combinations(sorted(members), 2), 0)
    for draw in range(2000):
        for group in drawn_groups(hashlib.sha256(b"%d" % draw).digest(), members, 3):
            for pair in combinations(group, 2):
                together[pair] += 1
    assert all(abs(count - 500) < 6 * 19.4 for count in together.values())


def test_another_seed_is_another_draw_and_another_commitment() -> None:
    members = [digest(number) for number in range(20)]
    first, second = new_seed(), new_seed()
    assert drawn_groups(first, members, 4) != drawn_groups(second, members, 4)
    assert commitment_to(first) != commitment_to(second)


@given(seeds)
def test_a_commitment_shows_neither_the_seed_nor_anybodys_place(seed: bytes) -> None:
    """It is a digest under a name of its own, never a number that the draw uses."""
    shown = commitment_to(seed)
    assert len(shown) == 64
    assert seed.hex() not in shown
    assert shown != hashlib.sha256(seed).hexdigest()


@given(sets)
def test_digests_survive_being_joined(digests: list[Digest]) -> None:
    assert parted(joined(digests)) == digests


@given(sets, st.integers(1, 31))
def test_a_list_that_is_not_whole_digests_is_refused(digests: list[Digest], cut: int) -> None:
    with pytest.raises(UndecodableMessage, match="32 bytes"):
        parted(joined(digests)[:-cut])


@given(sets)
def test_a_list_that_names_one_twice_is_refused(digests: list[Digest]) -> None:
    with pytest.raises(UndecodableMessage, match="twice"):
        parted(joined([*digests, digests[0]]))
