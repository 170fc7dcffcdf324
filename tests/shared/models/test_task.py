"""A task is found by being there, and its results are plain averages."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import read
from shared.errors import ConfigError
from shared.job import Job
from shared.models import tasks
from shared.models.task import find_task, summed_up, task_names

MODULE = """
class Echo:
    name, base, has_head = "echo-back", "causal", False

TASK = Echo()
"""


@pytest.fixture
def dropped_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that counts as part of the package, with one more task in it."""
    (tmp_path / "echo_back.py").write_text(MODULE)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    task_names.cache_clear()
    yield tmp_path
    task_names.cache_clear()
    sys.modules.pop("shared.models.tasks.echo_back", None)
    vars(tasks).pop("echo_back", None)


@pytest.mark.parametrize("name", task_names())
def test_every_task_is_found_by_its_name_and_bears_it(name: str) -> None:
    task = find_task(name)
    assert task.name == name
    assert task.base in ("encoder", "causal")
    assert isinstance(task.has_head, bool)


def test_the_tasks_that_ship_are_these() -> None:
    assert task_names() == ("causal-lm", "text-classification")


@pytest.mark.usefixtures("dropped_in")
def test_a_module_that_is_dropped_in_is_a_task_without_any_other_change() -> None:
    assert task_names() == ("causal-lm", "echo-back", "text-classification")
    assert find_task("echo-back").name == "echo-back"
    job = read(Job, {"task": "echo-back", "model": {"trainable": "lora"}}, source="test")
    assert job.task == "echo-back"
    with pytest.raises(ConfigError, match="echo-back has no head"):
        read(Job, {"task": "echo-back"}, source="test")


def test_a_control_without_the_module_there_is_no_such_task() -> None:
    with pytest.raises(KeyError):
        find_task("echo-back")
    with pytest.raises(ConfigError, match="must be one of causal-lm, text-classification"):
        read(Job, {"task": "echo-back"}, source="test")


@pytest.mark.parametrize(
    "name", ["", "text_classification", "../task", "task", "os", "causal-lm.x"]
)
def test_a_name_that_is_no_tasks_imports_nothing(name: str) -> None:
    before = set(sys.modules)
    with pytest.raises(KeyError):
        find_task(name)
    assert set(sys.modules) == before


results = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0, 30), st.sampled_from(["", "en", "zh"])), min_size=1
)


@given(results)
def test_results_are_averages_over_all_and_within_each_group(
    rows: list[tuple[float, float, str]],
) -> None:
    scores, losses, groups = zip(*rows, strict=True)
    found = summed_up(np.array(scores), np.array(losses), groups)
    assert found.overall == pytest.approx(math.fsum(scores) / len(rows))
    assert found.loss == pytest.approx(math.fsum(losses) / len(rows))
    assert found.count == len(rows)
    assert list(found.by_group) == sorted(set(groups))
    for name, value in found.by_group.items():
        within = [score for score, _, group in rows if group == name]
        assert value == pytest.approx(math.fsum(within) / len(within))


def test_a_score_that_is_no_number_is_not_averaged_away() -> None:
    assert math.isnan(summed_up(np.ones(2), np.array([1.0, np.nan]), ["a", "b"]).loss)


@pytest.mark.parametrize(
    ("scores", "losses", "groups"), [(0, 0, 0), (2, 1, 2), (1, 2, 2), (2, 2, 1)]
)
def test_nothing_and_unequal_lengths_have_no_average(scores: int, losses: int, groups: int) -> None:
    with pytest.raises(ValueError, match=r"differ|at least one"):
        summed_up(np.ones(scores), np.ones(losses), ["a"] * groups)
