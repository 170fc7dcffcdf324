"""A reader's answers to questions whose answers are known, as one row of figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coordinator.reading.metrics import exact_match, f1
from coordinator.reading.squad import Language, Question

Answerer = Callable[[Question], str]
"""Says what the answer is; empty for none."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Shares, from 0 to 1, over all questions.

    Attributes:
        questions: How many there were.
        exact: Exact match.
        f1: As the official evaluation of the language counts it.
        said_none: Share for which no answer was given.
        ms: Mean milliseconds a question took.
    """

    questions: int
    exact: float
    f1: float
    said_none: float
    ms: float


def evaluate(
    answer: Answerer,
    questions: Sequence[Question],
    language: Language,
    *,
    progress: Callable[[float], None] | None = None,
) -> Figures:
    """Ask every question and judge the answers."""
    exact, overlap, none = 0.0, 0.0, 0
    started = time.perf_counter()
    for number, question in enumerate(questions, 1):
        said = answer(question)
        right = [each.text for each in question.answers]
        exact += exact_match(said, right, language)
        overlap += f1(said, right, language)
        none += not said
        if progress is not None:
            progress(number / len(questions))
    count = max(1, len(questions))
    return Figures(
        questions=len(questions),
        exact=round(exact / count, 4),
        f1=round(overlap / count, 4),
        said_none=round(none / count, 4),
        ms=round((time.perf_counter() - started) * 1e3 / count, 2),
    )
