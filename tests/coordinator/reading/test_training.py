"""The stand-in for a reader: labelled, repeatable, and judged on articles it never saw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from coordinator.inference.served_name import served_name
from coordinator.reading.squad import Question, read_squad
from coordinator.reading.training import MadeReader, _made_up, held_out_ids, make_reader
from shared.errors import DataError
from tests.support.squad_files import write_squad


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    return read_squad(write_squad(tmp_path_factory.mktemp("squad") / "squad.json"))


@pytest.fixture(scope="module")
def made(questions: list[Question], tmp_path_factory: pytest.TempPathFactory) -> MadeReader:
    return make_reader(
        tmp_path_factory.mktemp("made") / "little", questions, steps=3, held_out=0.25
    )


def test_articles_are_kept_back_whole_and_the_figures_are_of_them(
    made: MadeReader, questions: list[Question]
) -> None:
    back = held_out_ids(Path(made.folder))
    articles = {question.article for question in questions if question.id in back}
    assert len(articles) == 2
    assert back == {question.id for question in questions if question.article in articles}
    assert made.held_out.questions == made.baseline.questions == len(back)
    assert made.trained_on == len(questions) - len(back)


def test_the_folder_says_that_it_is_a_stand_in(made: MadeReader) -> None:
    folder = Path(made.folder)
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["stand_in"] is True
    assert served_name(made.folder) == ("little-stand-in", True)
    about = json.loads((folder / "stand_in.json").read_text(encoding="utf-8"))
    assert about["made"]["held_out"]["f1"] == made.held_out.f1


def test_the_same_number_of_steps_gives_the_same_weights(
    made: MadeReader, questions: list[Question], tmp_path: Path
) -> None:
    again = make_reader(tmp_path / "again", questions, steps=3, held_out=0.25)
    weights = [
        (Path(folder) / "model.safetensors").read_bytes() for folder in (made.folder, again.folder)
    ]
    assert weights[0] == weights[1]
    other = make_reader(tmp_path / "other", questions, steps=3, held_out=0.25, seed=1)
    assert (Path(other.folder) / "model.safetensors").read_bytes() != weights[0]


@pytest.mark.slow
def test_what_it_was_trained_for_it_learns(questions: list[Question], tmp_path: Path) -> None:
    """Places and foods of articles it never saw, in sentences it did."""
    made = make_reader(tmp_path / "learnt", questions, steps=80, held_out=0.25)
    assert made.held_out.f1 > made.baseline.f1


def test_too_few_articles_are_refused(questions: list[Question], tmp_path: Path) -> None:
    one = [question for question in questions if question.article.startswith("0:")]
    with pytest.raises(DataError, match="1 articles"):
        make_reader(tmp_path / "none", one, steps=1)
    assert not (tmp_path / "none").exists()


def test_made_up_questions_have_their_answer_in_the_passage_and_not_in_themselves() -> None:
    rng = np.random.default_rng(0)
    passage = "甲乙丙丁戊，己庚辛壬癸子，丑寅卯辰巳午。未申酉戌亥天，地玄黄宇宙洪，荒日月盈昃。"
    found = [question for _ in range(60) if (question := _made_up(passage, rng)) is not None]
    assert len(found) > 20
    for question in found:
        (answer,) = question.answers
        assert passage[answer.start :].startswith(answer.text)
        assert not set(question.text) & set(answer.text)
        assert set(question.text) <= set(passage)
    assert len({question.answers for question in found}) == 6
    assert _made_up("太短。", rng) is None


def test_a_folder_that_was_not_made_here_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="make-reader"):
        held_out_ids(tmp_path)
