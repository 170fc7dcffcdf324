"""A topic names its peer and no other, whatever somebody calls himself."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.transport.transport import check_topic, topic_matches
from shared.wire import topics

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?", fullmatch=True)


@given(names)
def test_a_peers_branch_is_its_own(name: str) -> None:
    assert topics.is_name(name)
    assert topics.peer_of(topics.up(name)) == name
    assert topics.peer_of(topics.down(name)) is None
    check_topic(topics.up(name))
    check_topic(topics.down(name))
    assert topic_matches(topics.ALL_UP, topics.up(name))
    assert not topic_matches(topics.ALL_UP, topics.down(name))


@given(names, names)
def test_different_peers_never_share_a_topic(one: str, other: str) -> None:
    all_topics = {topics.up(one), topics.down(one), topics.up(other), topics.down(other)}
    assert len(all_topics | {topics.CALL}) == (3 if one == other else 5)


@given(st.text(max_size=60))
def test_a_name_is_what_the_docstring_says(text: str) -> None:
    oracle = (
        1 <= len(text) <= 48
        and all(letter in "abcdefghijklmnopqrstuvwxyz0123456789-" for letter in text)
        and not re.search(r"\A-|-\Z", text)
    )
    assert topics.is_name(text) == oracle
    assert (topics.peer_of(topics.up(text)) == text) == oracle


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("x" * 48, True),
        ("x" * 49, False),
        ("a--b", True),
        ("a\n", False),
        ("+", False),
        ("#", False),
        ("..", False),
        ("é", False),
        ("١", False),
    ],
)
def test_names_at_the_edge(name: str, good: bool) -> None:
    assert topics.is_name(name) is good


@pytest.mark.parametrize(
    "topic", ["", "a", "llmos/v1/up", "llmos/v1/up/", "llmos/v1/up/a/b", "x/llmos/v1/up/a"]
)
def test_other_topics_belong_to_nobody(topic: str) -> None:
    assert topics.peer_of(topic) is None


def test_the_key_holder_has_a_name_like_everybody() -> None:
    assert topics.is_name(topics.KEY_HOLDER)
