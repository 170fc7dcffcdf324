"""Exact match and F1, by hand and against a plain copy of the published loops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.reading.metrics import exact_match, f1, segments


@pytest.mark.parametrize(
    ("said", "right", "exact", "score"),
    [
        ("The Broncos!", ["broncos"], 1.0, 1.0),
        ("Denver Broncos", ["the Broncos", "Carolina"], 0.0, 2 / 3),
        ("a b c", ["b c d e"], 0.0, 2 * (2 / 2 * 2 / 4) / (2 / 2 + 2 / 4)),
        ("x", ["y"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),
        ("the", ["x"], 0.0, 0.0),
        ("", ["x"], 0.0, 0.0),
        ("", [], 1.0, 1.0),
        ("x", [], 0.0, 0.0),
    ],
)
def test_english_as_squad_judges(said: str, right: list[str], exact: float, score: float) -> None:
    assert exact_match(said, right, "en") == exact
    assert f1(said, right, "en") == pytest.approx(score)


@pytest.mark.parametrize(
    ("said", "right", "exact", "score"),
    [
        ("《踢爆》", ["踢爆"], 1.0, 1.0),
        ("4分钟内", ["4分钟"], 0.0, 6 / 7),
        ("水枪", ["玩家以水枪"], 0.0, 2 * (1 * 0.4) / 1.4),
        ("北京", ["上海", "北京市"], 0.0, 2 * (1 * 2 / 3) / (1 + 2 / 3)),
        ("GPU", ["gpu"], 1.0, 1.0),
        ("天", ["地"], 0.0, 0.0),
        ("", ["地"], 0.0, 0.0),
        ("，", ["地"], 0.0, 0.0),
    ],
)
def test_chinese_as_cmrc_judges(said: str, right: list[str], exact: float, score: float) -> None:
    assert exact_match(said, right, "zh") == exact
    assert f1(said, right, "zh") == pytest.approx(score)


def longest_common(first: list[str], second: list[str]) -> int:
    """The table of cmrc2018_evaluate.py."""
    best = 0
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            if one == other:
                table[i + 1][j + 1] = table[i][j] + 1
                best = max(best, table[i + 1][j + 1])
    return best


TEXTS = st.text("天地人和a 1，", min_size=1, max_size=12)


@given(TEXTS, TEXTS)
def test_the_chinese_f1_is_that_of_the_published_table(said: str, answer: str) -> None:
    ours, theirs = segments(said), segments(answer)
    common = longest_common(theirs, ours)
    wanted = 0.0
    if common:
        precision, recall = common / len(ours), common / len(theirs)
        wanted = 2 * precision * recall / (precision + recall)
    assert f1(said, [answer], "zh") == pytest.approx(wanted)
