"""Everything that could be wrong with a job is found before anything of it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.store.store import Store
from coordinator.submission import read_probe, submit
from shared.config import read
from shared.data_files import Example
from shared.errors import ConfigError, DataError, ModelError
from shared.job import Job, RunPlan
from tests.support.coordination import FEATURES, PROBE, RUN, job_tables, make_base


class Desk:
    """Where jobs are handed in."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(f"sqlite:///{folder / 'store.db'}", folder)
        self.base = make_base(folder / "base")

    def submit(self, probe: list[Example] = PROBE, **tables: dict[str, Any]) -> RunPlan:
        job = read(Job, job_tables(self.base, **tables), source="job")
        return submit(self.store, job, probe, seed=5, simulation=False, now=7.0)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.store.close()


def test_a_job_is_kept_as_its_plan_with_its_probe_set(desk: Desk) -> None:
    plan = desk.submit()
    row = desk.store.run(RUN)
    assert RunPlan.model_validate_json(row.plan) == plan
    assert row.submitted_at == 7.0
    assert read_probe(desk.store, row.probe) == PROBE
    assert (plan.labels, plan.features, plan.seed) == (("cancel", "refund", "track"), FEATURES, 5)
    assert not plan.simulation


def test_labels_do_not_depend_on_the_order_of_examples(desk: Desk) -> None:
    first = desk.submit()
    job = read(Job, job_tables(desk.base), source="job").model_copy(update={"name": "other"})
    again = submit(desk.store, job, PROBE[::-1], seed=5, simulation=False, now=8.0)
    assert again.labels == first.labels


def test_noise_is_derived_from_the_privacy_that_was_asked(desk: Desk) -> None:
    plan = desk.submit(privacy={"noise": "local", "epsilon": 8.0})
    assert plan.noise_multiplier > 0


LONGEST = "x" * 200


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([], r"0 label\(s\), at least 2"),
        (["one"], r"1 label\(s\), at least 2"),
        (["one", ""], "a label has 1 to 200 characters"),
        (["one", LONGEST + "x"], "a label has 1 to 200 characters"),
        (["one", "\ud800"], "a label has 1 to 200 characters"),
    ],
)
def test_labels_that_no_adapter_could_have_are_refused(
    desk: Desk, labels: list[str], said: str
) -> None:
    """Later, such a label would end the coordinator again after every restart."""
    with pytest.raises(ConfigError, match=said):
        desk.submit([Example("text", label, "") for label in labels])
    assert desk.store.runs() == []


def test_the_longest_label_is_long_enough(desk: Desk) -> None:
    desk.submit([Example("text", label, "") for label in ("one", LONGEST)])
    assert desk.store.run(RUN).run == RUN


@pytest.mark.parametrize("bad", [Example("\ud800", "a", ""), Example("text", "a", "\ud800")])
def test_examples_that_are_no_text_are_refused(desk: Desk, bad: Example) -> None:
    with pytest.raises(ConfigError, match="evaluation"):
        desk.submit([bad, Example("text", "b", "")])
    assert desk.store.runs() == []


def test_too_many_examples_are_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.submission.MAX_PROBE_EXAMPLES", len(PROBE))
    desk.submit()
    with pytest.raises(ConfigError, match=r"7 examples, at most 6"):
        desk.submit([*PROBE, PROBE[0]])


def test_an_unknown_base_model_is_refused(desk: Desk) -> None:
    with pytest.raises(ModelError, match="no folder nowhere"):
        desk.submit(model={"base": "nowhere"})
    assert desk.store.runs() == []


def test_privacy_that_no_noise_reaches_is_refused(desk: Desk) -> None:
    with pytest.raises(ConfigError, match="privacy"):
        desk.submit(privacy={"noise": "local", "epsilon": 0.5, "delta": 1e-300})
    assert desk.store.runs() == []


def test_a_name_is_taken_once(desk: Desk) -> None:
    desk.submit()
    with pytest.raises(DataError, match="give the job another name"):
        desk.submit()
