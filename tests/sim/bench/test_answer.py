"""The measurement of readers: who is asked what, and that the figures are theirs."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from coordinator.reading.baseline import best_sentence
from coordinator.registry.commands import model
from shared.errors import ConfigError, DataError
from sim.bench.commands import bench
from tests.support.squad_files import write_squad


def test_the_best_sentence_shares_most_with_the_question() -> None:
    passage = "天是蓝的。他住在北京，很好！吃饭。"
    assert best_sentence("他住在哪？", passage) == "他住在北京，很好"
    assert best_sentence("the dog", "A cat. The dog ran; it fell.") == "The dog ran"
    assert best_sentence("x", "。。") == ""


def test_a_reader_is_made_and_measured_on_what_it_has_not_seen(tmp_path: Path) -> None:
    data, folder = write_squad(tmp_path / "squad.json"), tmp_path / "reader"
    options = ["make-reader", "--data", str(data), "--out", str(folder), "--steps", "2", "--json"]
    made = CliRunner().invoke(model, options)
    assert made.exit_code == 0, made.output
    figures = json.loads(made.stdout.splitlines()[-1])
    options = ["answer", "--data", str(data), "--reader", str(folder), "--held-out", "--json"]
    result = json.loads(CliRunner().invoke(bench, options).stdout)
    assert result["questions"] == figures["held_out"]["questions"] == 4
    assert [row["who"] for row in result["rows"]] == ["best sentence", "reader (int8)"]
    for row, before in zip(result["rows"], (figures["baseline"], figures["held_out"]), strict=True):
        assert (row["exact"], row["f1"]) == (before["exact"], before["f1"])
    again = CliRunner().invoke(model, ["make-reader", *options[1:3], "--out", str(folder)])
    assert isinstance(again.exception, ConfigError)
    assert "--force" in str(again.exception)


def test_the_baseline_alone_needs_no_model(tmp_path: Path) -> None:
    data = write_squad(tmp_path / "squad.json")
    shown = CliRunner().invoke(bench, ["answer", "--data", str(data), "--limit", "3"])
    assert shown.exit_code == 0
    assert "3 questions of squad.json" in shown.stdout
    assert "best sentence" in shown.stdout


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    data = write_squad(tmp_path / "squad.json")
    run = CliRunner().invoke(bench, ["answer", "--data", str(data), "--held-out"])
    assert isinstance(run.exception, ConfigError)
    run = CliRunner().invoke(bench, ["answer", "--data", str(tmp_path / "none.json")])
    assert isinstance(run.exception, DataError)
