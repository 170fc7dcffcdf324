"""Questions about passages, from files in SQuAD's format (SQuAD 1.1 and 2.0, CMRC 2018, DRCD).

Source:
    Rajpurkar et al., "SQuAD", EMNLP 2016, and "Know What You Don't Know", ACL 2018; Cui et al.,
    "A Span-Extraction Dataset for Chinese Machine Reading Comprehension", EMNLP 2019.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from shared.errors import DataError

Language = Literal["en", "zh"]

_HAN: Final = re.compile("[\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class Answer:
    """A right answer; ``start`` is its first character in the passage."""

    text: str
    start: int


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a passage.

    Attributes:
        id: In its file.
        article: Title or number of the article that the passage is from; splits go by it.
        passage: Where the answer stands.
        text: The question.
        answers: Any of them is right; none: the passage does not answer it (SQuAD 2.0).
    """

    id: str
    article: str
    passage: str
    text: str
    answers: tuple[Answer, ...]


def read_squad(path: Path) -> list[Question]:
    """Read every question of a file.

    An answer whose place is wrong by some characters is put where its text stands nearest; one
    whose text does not stand in the passage is left out, and a question with no answer left is too.

    Raises:
        DataError: the file cannot be read, or holds no questions in this format.
    """
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        found = [
            question
            for number, article in enumerate(articles)
            for question in _of_article(article, number)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise DataError(f"{path} holds no questions in SQuAD's format: {err!r}") from err
    if not found:
        raise DataError(f"{path} holds no questions in SQuAD's format")
    return found


def language_of(questions: Sequence[Question]) -> Language:
    """Chinese if most questions have a Chinese character."""
    chinese = sum(_HAN.search(question.text) is not None for question in questions)
    return "zh" if 2 * chinese > len(questions) else "en"


def _of_article(article: dict[str, Any], number: int) -> list[Question]:
    found = []
    # Titles are not unique everywhere; a number makes sure that a split keeps articles whole.
    name = f"{number}:{article.get('title') or article.get('id') or ''}"
    for paragraph in article["paragraphs"]:
        passage = str(paragraph["context"])
        for entry in paragraph["qas"]:
            stated = [] if entry.get("is_impossible") else entry.get("answers") or []
            placed = [_placed(passage, str(a["text"]), int(a["answer_start"])) for a in stated]
            answers = tuple(dict.fromkeys(answer for answer in placed if answer is not None))
            if answers or not stated:
                text = str(entry["question"])
                found.append(Question(str(entry["id"]), name, passage, text, answers))
    return found


def _placed(passage: str, text: str, start: int) -> Answer | None:
    if text and passage[start : start + len(text)] == text:
        return Answer(text, start)
    places = [found.start() for found in re.finditer(re.escape(text), passage)] if text else []
    return Answer(text, min(places, key=lambda at: abs(at - start))) if places else None
