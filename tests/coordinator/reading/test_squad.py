"""Files in SQuAD's format, with the slips that published ones have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coordinator.reading.squad import Answer, language_of, read_squad
from shared.errors import DataError


def written(folder: Path, *qas: dict[str, Any], context: str = "the cat sat on the mat") -> Path:
    path = folder / "squad.json"
    data = [{"title": "Cats", "paragraphs": [{"context": context, "qas": list(qas)}]}]
    path.write_text(json.dumps({"version": "1", "data": data}), encoding="utf-8")
    return path


def test_questions_come_with_their_answers_places(tmp_path: Path) -> None:
    answers = [{"text": "the mat", "answer_start": 15}, {"text": "the mat", "answer_start": 15}]
    path = written(tmp_path, {"id": "1", "question": "where?", "answers": answers})
    (question,) = read_squad(path)
    assert question.answers == (Answer("the mat", 15),)
    assert (question.article, question.id, question.text) == ("0:Cats", "1", "where?")


def test_a_place_that_is_wrong_is_put_right_and_a_text_that_is_not_there_left_out(
    tmp_path: Path,
) -> None:
    path = written(
        tmp_path,
        {"id": "1", "question": "?", "answers": [{"text": "the", "answer_start": 13}]},
        {"id": "2", "question": "?", "answers": [{"text": "dog", "answer_start": 0}]},
    )
    (question,) = read_squad(path)
    assert question.answers == (Answer("the", 15),)


def test_a_question_without_an_answer_stays_one(tmp_path: Path) -> None:
    path = written(tmp_path, {"id": "1", "question": "?", "answers": [], "is_impossible": True})
    assert read_squad(path)[0].answers == ()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"data": 3}', '{"data": []}', '{"data": [{}]}'])
def test_another_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"other\.json"):
        read_squad(path)


def test_the_language_is_that_of_most_questions(tmp_path: Path) -> None:
    chinese = {"id": "1", "question": "谁?", "answers": []}
    english = {"id": "2", "question": "who?", "answers": []}
    assert language_of(read_squad(written(tmp_path, chinese))) == "zh"
    assert language_of(read_squad(written(tmp_path, chinese, english))) == "en"
