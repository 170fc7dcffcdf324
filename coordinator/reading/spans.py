"""From logits to answers: the best spans over all windows of a passage. Numbers only.

S1  a span lies inside the passage, ends where it starts or later, and is not too long
S2  no two answers overlap
S3  scores are less those of "no answer": above 0 the model finds an answer likelier than none

Source:
    Devlin et al., "BERT", NAACL 2019, section 4.3 (SQuAD 2.0: the score of a span is the sum of
    its start's and its end's logit, that of no answer the one of [CLS]; windows with a stride as
    in the authors' run_squad.py, where no answer scores what the window that likes it least
    gives it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from shared.types import FloatMatrix

MAX_ANSWER_TOKENS: Final = 64
BEST_OF_WINDOW: Final = 20
"""Spans of one window that are looked at further; as many as run_squad.py's n_best_size."""


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A part of a passage as the model read it.

    Attributes:
        logits: (tokens, 2), for an answer's start and its end.
        offsets: (tokens, 2), each token's first character in the passage and the one behind it;
            (-1, -1) for what is not the passage's.
    """

    logits: FloatMatrix
    offsets: np.ndarray


@dataclass(frozen=True, slots=True)
class Candidate:
    """Characters ``start`` to before ``end`` of a passage."""

    start: int
    end: int
    score: float


def best_spans(
    windows: Sequence[Window],
    *,
    answers: int,
    threshold: float | None = 0.0,
    max_answer_tokens: int = MAX_ANSWER_TOKENS,
) -> list[Candidate]:
    """Return the best answers of one passage, best first.

    Args:
        windows: All of the passage's, overlapping.
        answers: At most so many.
        threshold: A score must be higher; ``None``: any is taken.
        max_answer_tokens: Longest answer.
    """
    none = min((float(window.logits[0].sum()) for window in windows), default=0.0)
    scores: dict[tuple[int, int], float] = {}
    for window in windows:
        for start, end, score in _of_window(window, max_answer_tokens):
            # A span in two windows counts as where it scores best.
            scores[start, end] = max(score, scores.get((start, end), -np.inf))
    ranked = sorted(scores, key=lambda place: (-scores[place], place))
    chosen: list[Candidate] = []
    for start, end in ranked:
        score = scores[start, end] - none
        if len(chosen) == answers or (threshold is not None and not score > threshold):
            break
        if all(end <= other.start or other.end <= start for other in chosen):
            chosen.append(Candidate(start, end, score))
    return chosen


def _of_window(window: Window, longest: int) -> list[tuple[int, int, float]]:
    inside = np.flatnonzero(window.offsets[:, 1] > window.offsets[:, 0])
    if not len(inside):
        return []
    starts = window.logits[inside, 0].astype(np.float64)
    ends = window.logits[inside, 1].astype(np.float64)
    sums = starts[:, None] + ends[None, :]
    span = np.subtract.outer(np.arange(len(inside)), np.arange(len(inside)))
    sums[(span > 0) | (span <= -longest)] = -np.inf
    flat = sums.ravel()
    count = min(BEST_OF_WINDOW, flat.size)
    places = np.argpartition(-flat, count - 1)[:count]
    found = []
    for place in places:
        if np.isfinite(flat[place]):
            first, last = divmod(int(place), len(inside))
            start, end = window.offsets[inside[first], 0], window.offsets[inside[last], 1]
            found.append((int(start), int(end), float(flat[place])))
    return found
