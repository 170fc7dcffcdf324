"""Every question is answered by whom the policy says, with the reason, and never lost."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.inference.answering import (
    MAX_WAITING,
    QUESTIONS,
    Answerer,
    Code,
    CoordinatorAnswer,
    Equipment,
    LocalModel,
    Policy,
    Source,
    Templates,
)
from shared.config import read_toml
from shared.errors import ConfigError, CoordinatorUnavailable, DataError, ModelError, StorageError
from shared.models.calibration import Calibration
from shared.models.graph_session import GraphSession
from tests.support import tiny_graph as tiny
from tests.support.answering import CONFIDENT, FakeCoordinator, calibrated

PERSONAL = "send money to ann.smith@example.com please"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> GraphSession:
    return GraphSession(tiny.make_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def bare(session: GraphSession) -> LocalModel:
    return LocalModel("tiny", session, session.load_adapter(tiny.tiny_adapter()), None)


def with_threshold(bare: LocalModel, calibration: Calibration | None) -> LocalModel:
    return LocalModel(bare.name, bare.encoder, bare.adapter, calibration)


class Device:
    """An answerer with everything around it."""

    def __init__(self, home: Path, equipment: Equipment) -> None:
        self.home = home
        self.equipment = equipment
        self.coordinator = FakeCoordinator()
        self.answerer = Answerer(lambda: self.equipment, home, ask_coordinator=self.coordinator)

    @property
    def written(self) -> list[dict[str, object]]:
        path = self.home / QUESTIONS
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]


@pytest.fixture
def device(tmp_path: Path, bare: LocalModel) -> Device:
    return Device(tmp_path, Equipment(with_threshold(bare, calibrated(0.0))))


def use(device: Device, bare: LocalModel, threshold: float | None, **policy: object) -> None:
    device.equipment = Equipment(
        with_threshold(bare, calibrated(threshold)),
        Policy.model_validate(policy),
        device.equipment.templates,
    )


def test_a_confident_answer_stays_here(device: Device) -> None:
    answer = device.answerer.answer(CONFIDENT)
    assert device.equipment.model is not None
    opinion = device.equipment.model.classify(CONFIDENT)
    assert opinion.label != "oos"
    assert (answer.source, answer.code) == (Source.DEVICE, Code.CONFIDENT)
    assert (answer.text, answer.label) == (opinion.label, opinion.label)
    assert answer.confidence == opinion.confidence
    assert answer.model == "tiny"
    assert answer.adapter == tiny.tiny_adapter().digest
    assert answer.milliseconds > 0
    assert device.coordinator.asked == []
    assert device.written == []


def test_the_threshold_itself_is_confident_enough(device: Device, bare: LocalModel) -> None:
    sure = bare.classify(CONFIDENT).confidence
    use(device, bare, sure)
    assert device.answerer.answer(CONFIDENT).code is Code.CONFIDENT
    use(device, bare, min(1.0, sure + 1e-9))
    assert device.answerer.answer(CONFIDENT).code is Code.NOT_CONFIDENT


def test_below_the_threshold_the_coordinator_is_asked(device: Device, bare: LocalModel) -> None:
    use(device, bare, 1.0, timeout_s=3.0)
    answer = device.answerer.answer(CONFIDENT)
    assert (answer.source, answer.code) == (Source.COORDINATOR, Code.NOT_CONFIDENT)
    assert (answer.text, answer.model, answer.stand_in) == (device.coordinator.text, "large", True)
    assert answer.label == bare.classify(CONFIDENT).label
    assert device.coordinator.asked == [(CONFIDENT, 3.0)]


@pytest.mark.parametrize(
    ("calibration", "sentence"),
    [
        (None, "nothing is known"),
        (calibrated(None), "no threshold could be certified"),
        (calibrated(0.0, target_error=0.1), "policy allows 5.0%"),
    ],
)
def test_without_a_threshold_of_the_owners_everything_is_asked(
    device: Device, bare: LocalModel, calibration: Calibration | None, sentence: str
) -> None:
    device.equipment = Equipment(with_threshold(bare, calibration))
    answer = device.answerer.answer(CONFIDENT)
    assert (answer.source, answer.code) == (Source.COORDINATOR, Code.UNCALIBRATED)
    assert sentence in answer.reason


def test_a_question_about_nothing_known_is_asked(device: Device, bare: LocalModel) -> None:
    label = bare.classify(CONFIDENT).label
    use(device, bare, 0.0, out_of_scope=(label,))
    answer = device.answerer.answer(CONFIDENT)
    assert (answer.source, answer.code) == (Source.COORDINATOR, Code.OUT_OF_SCOPE)


def test_a_label_without_a_text_is_asked_where_other_labels_have_one(
    device: Device, bare: LocalModel
) -> None:
    label = bare.classify(CONFIDENT).label
    model = with_threshold(bare, calibrated(0.0))
    device.equipment = Equipment(model, templates=Templates({("another", ""): "text"}))
    assert device.answerer.answer(CONFIDENT).code is Code.NO_TEMPLATE
    device.equipment = Equipment(model, templates=Templates({(label, "en"): "Here it is."}))
    answer = device.answerer.answer(CONFIDENT)
    assert (answer.code, answer.text) == (Code.CONFIDENT, "Here it is.")


# What may leave


def test_personal_data_is_replaced_before_a_question_leaves(
    device: Device, bare: LocalModel
) -> None:
    use(device, bare, 1.0)
    answer = device.answerer.answer(PERSONAL)
    assert answer.source is Source.COORDINATOR
    assert sum(answer.redacted.values()) == 1
    ((asked, _),) = device.coordinator.asked
    assert "ann.smith" not in asked
    assert asked.startswith("send money to ")
    (written,) = device.written
    assert written["text"] == asked
    assert written["code"] == Code.NOT_CONFIDENT
    assert written["redacted"] == answer.redacted


def test_a_question_is_on_disk_before_it_leaves(device: Device, bare: LocalModel) -> None:
    use(device, bare, 1.0)
    seen: list[list[dict[str, object]]] = []

    def asked(text: str, timeout_s: float) -> CoordinatorAnswer:
        seen.append(device.written)
        return CoordinatorAnswer("x", "large")

    Answerer(lambda: device.equipment, device.home, ask_coordinator=asked).answer("weather")
    assert [record["text"] for record in seen[0]] == ["weather"]
    assert stat.S_IMODE((device.home / QUESTIONS).stat().st_mode) == 0o600


def test_what_cannot_be_written_down_does_not_leave(
    device: Device, bare: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StorageError("the disk is full")

    use(device, bare, 1.0)
    monkeypatch.setattr("edge_agent.inference.answering.append_durably", full)
    answer = device.answerer.answer(CONFIDENT)
    assert (answer.source, answer.code) == (Source.DEVICE, Code.COORDINATOR_FAILED)
    assert device.coordinator.asked == []


def test_only_clean_keeps_texts_with_personal_data_here(device: Device, bare: LocalModel) -> None:
    use(device, bare, 1.0, escalate="only-clean")
    answer = device.answerer.answer(PERSONAL)
    assert (answer.source, answer.code) == (Source.DEVICE, Code.POLICY_PERSONAL_DATA)
    assert "below 1.000" in answer.reason
    assert device.answerer.answer(CONFIDENT).source is Source.COORDINATOR
    assert [text for text, _ in device.coordinator.asked] == [CONFIDENT]
    assert len(device.written) == 1


def test_never_means_never(device: Device, bare: LocalModel) -> None:
    use(device, bare, 1.0, escalate="never")
    for question in (CONFIDENT, PERSONAL):
        answer = device.answerer.answer(question)
        assert (answer.source, answer.code) == (Source.DEVICE, Code.POLICY_NEVER)
    assert device.coordinator.asked == []
    assert device.written == []


# A coordinator that is of no help


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TimeoutError(), Code.COORDINATOR_TIMEOUT),
        (CoordinatorUnavailable("gone"), Code.COORDINATOR_FAILED),
        (ModelError("it has no model"), Code.COORDINATOR_FAILED),
    ],
)
def test_a_failing_coordinator_costs_quality_and_not_the_answer(
    device: Device, bare: LocalModel, error: Exception, code: Code
) -> None:
    use(device, bare, 1.0)
    device.coordinator.error = error
    answer = device.answerer.answer(PERSONAL)
    assert (answer.source, answer.code) == (Source.DEVICE, code)
    assert answer.text == bare.classify(PERSONAL).label
    assert "below 1.000; the coordinator" in answer.reason
    assert sum(answer.redacted.values()) == 1  # it did leave
    assert len(device.written) == 1


def test_without_a_connection_the_device_answers(device: Device, bare: LocalModel) -> None:
    use(device, bare, 1.0)
    alone = Answerer(lambda: device.equipment, device.home, ask_coordinator=None)
    assert alone.answer(CONFIDENT).code is Code.NOT_CONNECTED
    assert device.written == []


def test_a_slow_coordinator_holds_a_limited_number_of_questions(
    device: Device, bare: LocalModel
) -> None:
    use(device, bare, 1.0)
    go, waiting = threading.Event(), threading.Semaphore(0)

    def slow(text: str, timeout_s: float) -> CoordinatorAnswer:
        waiting.release()
        go.wait(300)
        return CoordinatorAnswer("late", "large")

    answerer = Answerer(lambda: device.equipment, device.home, ask_coordinator=slow)
    sources: list[Source] = []
    threads = [
        threading.Thread(target=lambda: sources.append(answerer.answer("weather").source))
        for _ in range(MAX_WAITING)
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert waiting.acquire(timeout=120)
    assert answerer.answer("weather").code is Code.COORDINATOR_BUSY
    go.set()
    for thread in threads:
        thread.join()
    assert sources == [Source.COORDINATOR] * MAX_WAITING
    assert answerer.answer("weather").source is Source.COORDINATOR  # its place is free again
    assert len(device.written) == MAX_WAITING + 1


# A device without a model


def test_without_a_model_the_coordinator_answers(device: Device) -> None:
    device.equipment = Equipment()
    answer = device.answerer.answer("weather")
    assert (answer.source, answer.code) == (Source.COORDINATOR, Code.NO_MODEL)
    assert (answer.label, answer.confidence, answer.adapter) == (None, None, None)


@pytest.mark.parametrize(
    ("policy", "failure", "error", "sentence"),
    [
        (Policy(escalate="never"), None, ModelError, "never asks"),
        (Policy(escalate="only-clean"), None, ModelError, "personal data"),
        (Policy(), TimeoutError(), CoordinatorUnavailable, "within 20 s"),
    ],
)
def test_with_neither_model_nor_coordinator_there_is_a_clear_error(
    device: Device, policy: Policy, failure: Exception | None, error: type[Exception], sentence: str
) -> None:
    device.equipment = Equipment(policy=policy)
    device.coordinator.error = failure
    with pytest.raises(error, match="no model yet") as refused:
        device.answerer.answer(PERSONAL)
    assert sentence in str(refused.value)


def test_a_question_is_answered_with_one_equipment(device: Device, bare: LocalModel) -> None:
    """A4: what is swapped in while the coordinator thinks does not mix in."""
    use(device, bare, 1.0)
    device.coordinator.error = TimeoutError()
    before = device.equipment

    def swapping() -> Equipment:
        device.equipment = Equipment()
        return before

    answer = Answerer(swapping, device.home, ask_coordinator=device.coordinator).answer(CONFIDENT)
    assert answer.adapter == bare.adapter.digest


# Policy and texts from files


def test_a_policy_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('escalate = "only-clean"\ntimeout_s = 5.0\nout_of_scope = ["other"]\n')
    assert read_toml(Policy, path) == Policy(
        escalate="only-clean", timeout_s=5.0, out_of_scope=("other",)
    )
    path.write_text('escalate = "sometimes"\n')
    with pytest.raises(ConfigError, match="escalate"):
        read_toml(Policy, path)
    path.write_text("out_of_scope = [3]\n")
    with pytest.raises(ConfigError, match="out_of_scope"):
        read_toml(Policy, path)


@pytest.mark.parametrize(
    ("texts", "question", "expected"),
    [
        ({("a", "en"): "hello", ("a", "zh"): "你好"}, "余额多少", "你好"),
        ({("a", "en"): "hello", ("a", "zh"): "你好"}, "how much", "hello"),
        ({("a", "zh"): "你好", ("a", ""): "any"}, "how much", "any"),
        ({("a", "zh"): "你好"}, "how much", "你好"),
        ({("a", "de"): "hallo", ("a", "fr"): "salut"}, "余额", "hallo"),
        ({("b", "en"): "hello"}, "how much", None),
    ],
)
def test_a_text_is_said_in_the_questions_language_if_there_is_one(
    texts: dict[tuple[str, str], str], question: str, expected: str | None
) -> None:
    assert Templates(texts).find("a", question) == expected


filled = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
    str.strip
)


@given(
    st.dictionaries(
        st.tuples(filled.map(str.strip), st.sampled_from(["", "en", "zh"])),
        filled.map(str.strip),
        min_size=1,
    )
)
def test_texts_survive_being_written_and_read(
    tmp_path_factory: pytest.TempPathFactory, texts: dict[tuple[str, str], str]
) -> None:
    path = tmp_path_factory.mktemp("answers") / "answers.csv"
    path.write_bytes(Templates(texts).to_csv())
    assert Templates.read(path)._texts == texts


def test_a_file_of_texts_needs_no_language_and_may_not_contradict_itself(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    path.write_text("label,answer\na,hello\nb,bye\n")
    assert Templates.read(path).find("b", "?") == "bye"
    path.write_text("label,answer,language\na,hello,en-GB\na,salut,fr\na,hi,en_US\n")
    with pytest.raises(DataError, match="two answers for 'a'"):
        Templates.read(path)
    path.write_text("label,answer\na,\n")
    with pytest.raises(DataError, match="line 2"):
        Templates.read(path)
    with pytest.raises(DataError, match="no file"):
        Templates.read(tmp_path / "absent.csv")


def test_newer_texts_replace_older_ones() -> None:
    old = Templates({("a", ""): "old", ("b", ""): "kept"})
    merged = old.merged(Templates({("a", ""): "new"}))
    assert (merged.find("a", "?"), merged.find("b", "?"), len(merged)) == ("new", "kept", 2)


def test_the_questions_file_is_one_record_a_line(device: Device, bare: LocalModel) -> None:
    use(device, bare, 1.0)
    for question in ("one\ntwo", "  three  ", "\u2028", "四"):
        device.answerer.answer(question)
    lines = (device.home / QUESTIONS).read_bytes().split(b"\n")
    assert lines[-1] == b""
    assert [json.loads(line)["text"] for line in lines[:-1]] == [
        text for text, _ in device.coordinator.asked
    ]
