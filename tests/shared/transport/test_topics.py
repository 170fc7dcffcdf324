"""The grammar of topics, against paho's matcher and the examples of the standard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from shared.transport.transport import (
    MAX_PAYLOAD_BYTES,
    MAX_TOPIC_BYTES,
    check_filter,
    check_payload,
    check_topic,
    topic_matches,
)

# Few and short levels, so that filters and topics often meet.
levels = st.sampled_from(["", "a", "b", "$a", "设备"])
topics = st.lists(levels, min_size=1, max_size=4).map("/".join).filter(bool)


@st.composite
def filters(draw: st.DrawFn) -> str:
    middle = draw(st.lists(st.one_of(levels, st.just("+")), max_size=4))
    last = draw(st.lists(st.just("#"), max_size=1))
    return "/".join(middle + last) or "+"


@given(filters(), topics)
def test_matching_agrees_with_paho(topic_filter: str, topic: str) -> None:
    assert topic_matches(topic_filter, topic) == topic_matches_sub(topic_filter, topic)


@given(filters(), topics)
def test_what_the_grammar_makes_is_accepted(topic_filter: str, topic: str) -> None:
    check_filter(topic_filter)
    check_topic(topic)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "matches"),
    [
        # MQTT 3.1.1, sections 4.7.1.2, 4.7.1.3, 4.7.2 and 4.7.3
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("#", "sport/tennis", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/uptime", False),
        ("+/uptime", "$SYS/uptime", False),
        ("$SYS/#", "$SYS/uptime", True),
        ("ACCOUNTS", "Accounts", False),
    ],
)
def test_examples_of_the_standard(topic_filter: str, topic: str, matches: bool) -> None:
    assert topic_matches(topic_filter, topic) is matches


@pytest.mark.parametrize("bad", ["", "a#", "#/a", "a/#/b", "a+", "a/+b", "a\0b", "##", "++"])
def test_malformed_filters_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=r"filter|whole level"):
        check_filter(bad)


@pytest.mark.parametrize("bad", ["", "a/+", "#", "a+b", "a\0b", "a" * (MAX_TOPIC_BYTES + 1)])
def test_what_cannot_be_published_to_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="topic"):
        check_topic(bad)


def test_the_longest_topic_and_payload_are_accepted_and_one_more_is_not() -> None:
    check_topic("设" * (MAX_TOPIC_BYTES // 3))
    check_payload(bytes(MAX_PAYLOAD_BYTES))
    with pytest.raises(ValueError, match="topic"):
        check_topic("设" * (MAX_TOPIC_BYTES // 3) + "a")
    with pytest.raises(ValueError, match="payload"):
        check_payload(bytes(MAX_PAYLOAD_BYTES + 1))
