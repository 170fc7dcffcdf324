"""The best spans over windows, against a search of everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.reading.spans import Window, best_spans


def window(logits: list[tuple[float, float]], offsets: list[tuple[int, int]]) -> Window:
    return Window(np.array(logits, np.float32), np.array(offsets, np.int64))


OUT = (-1, -1)


def test_a_span_scores_its_logits_less_those_of_no_answer() -> None:
    one = window([(1, 1), (5, 0), (0, 3)], [OUT, (0, 2), (2, 5)])
    (best,) = best_spans([one], answers=1)
    assert (best.start, best.end, best.score) == (0, 5, 6.0)


def test_no_answer_where_none_scores_higher_unless_one_is_insisted_on() -> None:
    one = window([(5, 5), (1, 2)], [OUT, (0, 2)])
    assert best_spans([one], answers=1) == []
    (best,) = best_spans([one], answers=1, threshold=None)
    assert best.score == -7.0
    assert best_spans([one], answers=1, threshold=-8.0) == [best]
    assert best_spans([one], answers=1, threshold=-7.0) == []


def test_no_answer_counts_as_in_the_window_that_likes_it_least() -> None:
    sure = window([(9, 9), (0, 0)], [OUT, (0, 1)])
    doubtful = window([(1, 1), (3, 3)], [OUT, (5, 6)])
    (best,) = best_spans([sure, doubtful], answers=1)
    assert (best.start, best.end, best.score) == (5, 6, 4.0)


def test_a_span_in_two_windows_counts_once_and_where_it_is_best() -> None:
    first = window([(0, 0), (2, 2)], [OUT, (4, 6)])
    second = window([(0, 0), (3, 4)], [OUT, (4, 6)])
    (best,) = best_spans([first, second], answers=5)
    assert best.score == 7.0


def test_answers_do_not_overlap() -> None:
    one = window([(0, 0), (9, 8), (7, 9), (5, 6)], [OUT, (0, 2), (2, 4), (4, 6)])
    found = best_spans([one], answers=3)
    assert [(span.start, span.end) for span in found] == [(0, 4), (4, 6)]


def test_an_answer_ends_behind_its_start_and_is_not_too_long() -> None:
    one = window([(0, 0), (0, 9), (0, 0), (9, 0)], [OUT, (0, 1), (1, 2), (2, 3)])
    (best,) = best_spans([one], answers=1)
    assert best.score == 9.0
    assert best.start < best.end
    far = window([(0, 0), (9, 0), (0, 0), (0, 9)], [OUT, (0, 1), (1, 2), (2, 3)])
    assert best_spans([far], answers=1)[0].score == 18.0
    assert best_spans([far], answers=1, max_answer_tokens=2)[0].score == 9.0


def test_a_window_without_passage_has_no_spans() -> None:
    assert best_spans([window([(1, 1)], [OUT])], answers=3, threshold=None) == []
    assert best_spans([], answers=3, threshold=None) == []


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_the_best_span_is_the_best_of_all(seed: int, tokens: int, longest: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(tokens + 1, 2)).astype(np.float32)
    one = Window(logits, np.array([OUT, *((n, n + 1) for n in range(tokens))]))
    everything = max(
        float(logits[i + 1, 0]) + float(logits[j + 1, 1])
        for i in range(tokens)
        for j in range(i, min(tokens, i + longest))
    )
    (best,) = best_spans([one], answers=1, threshold=None, max_answer_tokens=longest)
    assert best.score == pytest.approx(everything - float(logits[0].sum()), abs=1e-5)
