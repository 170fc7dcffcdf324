"""A reader on a SQuAD file: exact match and F1 beside the trivial answer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

from coordinator.reading.baseline import best_sentence
from coordinator.reading.evaluation import Answerer, evaluate
from coordinator.reading.session import SpanSession
from coordinator.reading.squad import Question, language_of, read_squad
from coordinator.reading.training import held_out_ids
from coordinator.registry.reader_import import import_reader
from shared.errors import DataError

BASELINE: Final = "best sentence"


def bench_answer(
    data: Path,
    *,
    reader: str,
    quantise: Literal["int8", "none"],
    held_out: bool,
    limit: int,
    threshold: float | None,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Ask every question of ``data``, first the trivial answerer and then the reader.

    Args:
        data: A file in SQuAD's format.
        reader: Folder or hub id; empty for the baseline alone.
        quantise: How the reader's weights are stored.
        held_out: Only the questions that a reader from ``make-reader`` has not seen.
        limit: The first so many; 0 for all.
        threshold: Least score of an answer. ``None``: 0 where some questions have no answer, so
            that "none" can be right, and otherwise an answer is given always.
        progress: Told what is going on.

    Raises:
        DataError: the file holds no questions, or none is left.
        ModelError: there is no such reader.
    """
    questions = read_squad(data)
    language = language_of(questions)
    if held_out:
        unseen = held_out_ids(Path(reader).expanduser())
        questions = [question for question in questions if question.id in unseen]
    questions = questions[:limit] if limit else questions
    if not questions:
        raise DataError(f"none of the questions in {data} was held out from {reader}")
    unanswerable = sum(not question.answers for question in questions)
    if threshold is None and unanswerable:
        threshold = 0.0
    rows: list[dict[str, Any]] = []

    def judge(who: str, answer: Answerer) -> None:
        figures = evaluate(
            answer, questions, language, progress=lambda share: progress(f"{who} {share:.0%}")
        )
        rows.append({"who": who} | asdict(figures))

    judge(BASELINE, lambda question: best_sentence(question.text, question.passage))
    if reader:
        progress("importing")
        with tempfile.TemporaryDirectory(prefix="llmos-reader-") as models:
            imported = import_reader(reader, Path(models), quantise=quantise)
            session = SpanSession(imported.folder)

        def read(question: Question) -> str:
            found = session.read(question.text, [question.passage], answers=1, threshold=threshold)
            return found[0].text if found else ""

        judge(f"reader ({quantise})", read)
    return {
        "data": data.name,
        "language": language,
        "questions": len(questions),
        "without_answer": unanswerable,
        "threshold": threshold,
        "held_out": held_out,
        "rows": rows,
    }
