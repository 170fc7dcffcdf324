"""What an owner types about answers: each command says what it did, or in a sentence why not."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from edge_agent.api.app import create_app
from edge_agent.api.server import served
from edge_agent.api.token import api_token
from edge_agent.examples import ExampleStore
from edge_agent.inference.answering import Answerer, Templates
from edge_agent.inference.installed import ANSWERS, CALIBRATION, Installation, open_model
from edge_agent.participate import Home
from shared.data_files import Example
from tests.support import tiny_graph as tiny
from tests.support.answering import CONFIDENT, FakeCoordinator, calibrated, released
from tests.support.commands import CommandLine


@pytest.fixture
def llmos(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def home(tmp_path: Path, model: Path) -> Path:
    home = tmp_path / "device"
    released(home, model, calibration=calibrated(0.0))
    return home


def label_of(home: Path, text: str) -> str:
    return open_model(home).classify(text).label


def labelled_file(home: Path, path: Path, count: int) -> Path:
    """Texts with the labels that the device would give them: never wrong."""
    rows = ["text,label"]
    for number in range(count):
        text = " ".join(tiny.WORDS[4 + (number // 14**k) % 14] for k in range(3))
        rows.append(f"{text},{label_of(home, text)}")
    path.write_text("\n".join(rows) + "\n")
    return path


# ask


def test_without_an_agent_the_installed_model_answers_and_says_so(
    llmos: CommandLine, home: Path
) -> None:
    assert llmos("edge", "ask", CONFIDENT, "--home", home) == 0
    assert llmos.out.strip() == label_of(home, CONFIDENT)
    assert "no agent runs" in llmos.err
    assert "[confident]" in llmos.err


def test_a_running_agent_is_asked(llmos: CommandLine, home: Path, model: Path) -> None:
    released(home, model, calibration=calibrated(1.0))
    answerer = Answerer(Installation(home).current, home, ask_coordinator=FakeCoordinator())
    with served(create_app(answerer, token=api_token(home)), 0) as port:
        ready = {"pid": 1, "url": f"http://127.0.0.1:{port}"}
        (home / "ready.json").write_text(json.dumps(ready))
        assert llmos("edge", "ask", CONFIDENT, "--home", home, "--json") == 0
        facts = json.loads(llmos.out)
        assert (facts["answer"], facts["source"]) == ("the coordinator's answer", "coordinator")
        assert llmos.err == ""
        assert llmos("edge", "ask", CONFIDENT, "--home", home) == 0
        assert "large, a stand-in" in llmos.err
        assert llmos("edge", "ask", "  ", "--home", home) == 1
        assert "is empty" in llmos.err
        (home / "api.token").write_text("wrong")
        assert llmos("edge", "ask", CONFIDENT, "--home", home) == 1
        assert "show the token" in llmos.err


@pytest.mark.parametrize("ready", ['{"url": "http://127.0.0.1:1"}', "[]", "{", '{"pid": 3}'])
def test_an_agent_that_ended_badly_is_not_waited_for(
    llmos: CommandLine, home: Path, ready: str
) -> None:
    (home / "ready.json").write_text(ready)
    api_token(home)
    assert llmos("edge", "ask", CONFIDENT, "--home", home, "--json") == 0
    assert json.loads(llmos.out)["source"] == "device"
    assert "no agent runs" in llmos.err


def test_a_device_without_a_model_and_an_agent_says_what_is_missing(
    llmos: CommandLine, tmp_path: Path
) -> None:
    assert llmos("edge", "ask", "hi", "--home", tmp_path) == 1
    assert "no model yet" in llmos.err


# calibrate


def test_calibration_is_in_force_and_its_curve_is_on_disk(
    llmos: CommandLine, home: Path, model: Path, tmp_path: Path
) -> None:
    adapter = released(home, model)
    file = labelled_file(home, tmp_path / "held-out.csv", 240)
    assert llmos("edge", "calibrate", file, "--home", home) == 0
    assert "← chosen" in llmos.out
    assert "100.0% of such questions stay here" in llmos.out
    found = open_model(home).calibration
    assert found is not None
    assert (found.threshold, found.examples, found.target_error) == (0.0, 240, 0.05)
    assert json.loads((home / CALIBRATION).read_text())["adapter"] == adapter.digest
    rows = list(csv.DictReader(io.StringIO((home / "calibration-curve.csv").read_text())))
    assert len(rows) == len(found.curve)
    assert float(rows[-1]["local_share"]) == 1.0


def test_what_cannot_be_certified_is_said(llmos: CommandLine, home: Path, tmp_path: Path) -> None:
    file = labelled_file(home, tmp_path / "few.csv", 40)
    file.write_text(file.read_text() + "weather,unheard of\n")
    assert llmos("edge", "calibrate", file, "--home", home) == 0
    assert "nothing can be certified" in llmos.out
    assert llmos("edge", "calibrate", file, "--home", home, "--json", "--target-error", "0.3") == 0
    facts = json.loads(llmos.out)
    assert facts["target_error"] == 0.3
    assert facts["threshold"] is not None
    assert facts["local_share"] > 0
    assert "the policy allows 5.0% errors" in llmos.err


def test_the_devices_own_examples_come_with_a_warning(
    llmos: CommandLine, home: Path, tmp_path: Path
) -> None:
    ExampleStore(Home(home).examples).add(
        Example(text, label_of(home, text)) for text in tiny.WORDS[4:]
    )
    assert llmos("edge", "calibrate", "--home", home, "--json") == 0
    assert "a FILE that it has not seen" in llmos.err
    assert llmos("edge", "calibrate", "--home", tmp_path / "new") == 1
    assert "no model" in llmos.err


# label


def test_texts_are_labelled_by_hand_with_a_suggestion(
    llmos: CommandLine, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("send money\n\nwhat is my balance\nweather\nbank\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("\ntransfer\n-\nnew\n"))
    assert llmos("edge", "label", path, "--home", home, "--json") == 0
    facts = json.loads(llmos.out)
    assert facts == {"accepted": 0, "asked": 3, "skipped": 1, "new": 3, "duplicates": 0}
    assert ExampleStore(Home(home).examples).examples() == [
        Example("send money", label_of(home, "send money")),
        Example("what is my balance", "transfer"),
        Example("bank", "new"),
    ]
    assert "does not know the label 'new'" in llmos.err


def test_what_the_model_is_sure_of_is_accepted(
    llmos: CommandLine, home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text\nsend money\nweather\n")
    words = ("edge", "label", path, "--home", home, "--accept-above", "0")
    assert llmos(*words, "--json") == 0
    assert json.loads(llmos.out)["accepted"] == 2
    assert llmos(*words) == 0
    assert "added 0 examples (2 were there already)" in llmos.out


def test_stopping_keeps_what_was_labelled(
    llmos: CommandLine, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "send money"}\n{"text": "weather"}\n')
    monkeypatch.setattr("sys.stdin", io.StringIO("balance\n"))
    assert llmos("edge", "label", path, "--home", home) == 0
    assert "stopped" in llmos.err
    assert ExampleStore(Home(home).examples).examples() == [Example("send money", "balance")]


def test_one_text_with_a_label_needs_no_model(llmos: CommandLine, tmp_path: Path) -> None:
    home = tmp_path / "new"
    assert llmos("edge", "label", "where is it", "--label", "delivery", "--home", home) == 0
    assert ExampleStore(Home(home).examples).examples() == [Example("where is it", "delivery")]


@pytest.mark.parametrize("given", ["absent.txt", "absent.csv", "  "])
def test_nothing_to_label_is_said(llmos: CommandLine, home: Path, given: str) -> None:
    assert llmos("edge", "label", given, "--home", home) == 1
    assert "there is no file" in llmos.err or "cannot read" in llmos.err or "empty" in llmos.err


# answers and doctor


def test_answers_are_added_to_those_there_are(
    llmos: CommandLine, tmp_path: Path, home: Path
) -> None:
    file = tmp_path / "answers.csv"
    file.write_text("label,answer,language\nbalance,Here.,en\n")
    assert llmos("edge", "answers", "add", file, "--home", home) == 0
    file.write_text("label,answer\ntransfer,There.\n")
    assert llmos("edge", "answers", "add", file, "--home", home, "--json") == 0
    assert json.loads(llmos.out) == {"new": 1, "total": 2}
    templates = Templates.read(home / ANSWERS)
    assert templates.find("balance", "?") == "Here."
    assert templates.find("transfer", "?") == "There."
    file.write_text("label\nx\n")
    assert llmos("edge", "answers", "add", file, "--home", home) == 1
    assert "'answer'" in llmos.err
    assert len(Templates.read(home / ANSWERS)) == 2


def test_the_doctor_ends_with_an_error_if_anything_fails(
    llmos: CommandLine, tmp_path: Path
) -> None:
    assert llmos("edge", "doctor", "--home", tmp_path / "absent") == 1
    assert "failed   home" in llmos.out
    assert llmos("edge", "doctor", "--home", tmp_path / "absent", "--json") == 1
    found = {each["check"]: each for each in json.loads(llmos.out)}
    assert found["home"]["outcome"] == "failed"
    assert "llmos edge join" in found["membership"]["detail"]
