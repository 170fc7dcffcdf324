"""What is installed is whole, fits, and is in force from the next question on."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from edge_agent.inference.answering import Policy
from edge_agent.inference.installed import (
    ANSWERS,
    CALIBRATION,
    POLICY,
    SERVING,
    Installation,
    Serving,
    adapter_file,
    install,
    install_model,
    model_folder,
    open_model,
    write_own_calibration,
)
from shared.errors import (
    ConfigError,
    DigestMismatch,
    LlmOsError,
    ModelError,
    StorageError,
    UndecodableMessage,
)
from shared.files import digest_of
from shared.models.adapter import Adapter, AdapterShape, Slot
from shared.types import Digest
from tests.support import tiny_graph as tiny
from tests.support.answering import CONFIDENT, calibrated, released


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "device"


def test_a_release_is_served_as_it_was_released(home: Path, model: Path) -> None:
    assert Serving.load(home) is None
    adapter = released(home, model, calibration=calibrated(0.4))
    serving = Serving.load(home)
    assert serving is not None
    assert serving.adapter == adapter.digest
    local = open_model(home)
    assert local.adapter.digest == adapter.digest
    assert local.calibration == calibrated(0.4)
    assert local.name == "tiny"


def test_a_model_is_copied_whole_once_and_under_its_digest(home: Path, model: Path) -> None:
    digest = install_model(home, model)
    folder = model_folder(home, digest)
    assert digest == digest_of((model / "manifest.json").read_bytes())
    assert {file.name for file in folder.iterdir()} == {file.name for file in model.iterdir()}
    before = (folder / "model.onnx").stat().st_ino
    assert install_model(home, model) == digest
    assert (folder / "model.onnx").stat().st_ino == before
    assert [entry.name for entry in folder.parent.iterdir()] == [digest]


def test_a_damaged_model_leaves_nothing_behind(home: Path, tmp_path: Path) -> None:
    source = tiny.make_tiny_model(tmp_path / "source")
    (source / "model.onnx").write_bytes(b"other")
    with pytest.raises(ModelError, match=r"model\.onnx"):
        install_model(home, source)
    assert not home.exists()


def test_a_full_disk_leaves_no_half_model(
    home: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(StorageError, match="full"):
        install_model(home, model)
    assert list((home / "models").iterdir()) == []


def serving_of(home: Path, model: Path, adapter: Adapter) -> Serving:
    return Serving(
        manifest=install_model(home, model),
        adapter=adapter.digest,
        released_at=2.0,
        run="run",
        task="text-classification",
    )


INNER = AdapterShape(
    features=8,
    method="lora",
    rank=1,
    alpha=1.0,
    slots=(Slot(name=tiny.QUERY, inputs=8, outputs=8),),
)


@pytest.mark.parametrize(
    ("adapter", "error"),
    [
        (tiny.tiny_adapter(base=Digest("c" * 64)), ModelError),
        (Adapter.initial(INNER, tiny.BASE), ModelError),  # no labels
    ],
)
def test_what_does_not_fit_changes_nothing(
    home: Path, model: Path, adapter: Adapter, error: type[Exception]
) -> None:
    before = released(home, model)
    with pytest.raises(error):
        install(home, serving_of(home, model, adapter), adapter.to_bytes())
    assert open_model(home).adapter.digest == before.digest


def test_other_bytes_or_no_adapter_at_all_are_refused(home: Path, model: Path) -> None:
    adapter = tiny.tiny_adapter()
    serving = serving_of(home, model, adapter)
    with pytest.raises(DigestMismatch):
        install(home, serving, adapter.to_bytes() + b"x")
    junk = serving.model_copy(update={"adapter": digest_of(b"junk")})
    with pytest.raises(UndecodableMessage):
        install(home, junk, b"junk")
    with pytest.raises(ModelError, match="no imported model"):
        install(home, serving.model_copy(update={"manifest": Digest("d" * 64)}), adapter.to_bytes())
    assert not (home / SERVING).exists()


def test_a_crash_before_the_last_step_leaves_the_old_in_force(
    home: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = released(home, model)
    from shared.files import write_durably

    def crashing(path: Path, data: bytes, **options: int) -> None:
        if path.name == SERVING:
            raise StorageError("power cut")
        write_durably(path, data, **options)

    monkeypatch.setattr("edge_agent.inference.installed.write_durably", crashing)
    after = tiny.tiny_adapter(seed=2)
    with pytest.raises(StorageError):
        install(home, serving_of(home, model, after), after.to_bytes())
    assert open_model(home).adapter.digest == before.digest


def test_the_adapter_in_force_and_the_one_before_are_kept(home: Path, model: Path) -> None:
    first, second, third = (
        released(home, model, adapter=tiny.tiny_adapter(seed=seed)) for seed in (1, 2, 3)
    )
    assert not adapter_file(home, first.digest).exists()
    assert {file.name for file in (home / "adapters").iterdir()} == {second.digest, third.digest}


def test_the_owners_calibration_counts_for_its_adapter_alone(home: Path, model: Path) -> None:
    first = released(home, model, calibration=calibrated(0.4))
    write_own_calibration(home, first.digest, calibrated(0.9))
    assert open_model(home).calibration == calibrated(0.9)
    released(home, model, adapter=tiny.tiny_adapter(seed=2), calibration=calibrated(0.5))
    assert open_model(home).calibration == calibrated(0.5)


@pytest.mark.parametrize("what", ["serving", "adapter", "missing adapter", "manifest"])
def test_damage_is_found_when_it_is_opened(home: Path, model: Path, what: str) -> None:
    adapter = released(home, model)
    path = adapter_file(home, adapter.digest)
    match what:
        case "serving":
            (home / SERVING).write_text("{}")
        case "adapter":
            path.write_bytes(path.read_bytes()[:-1] + b"\0")
        case "missing adapter":
            path.unlink()
        case _:
            serving = Serving.load(home)
            assert serving is not None
            manifest = model_folder(home, serving.manifest) / "manifest.json"
            manifest.write_text(manifest.read_text().replace('"tiny"', '"other"'))
    with pytest.raises(LlmOsError):
        open_model(home)


# Following the disk


def test_what_is_installed_is_in_force_from_the_next_question_on(home: Path, model: Path) -> None:
    installation = Installation(home)
    assert installation.current().model is None
    assert "no model was released" in installation.current().problem
    first = released(home, model, calibration=calibrated(0.4))
    one = installation.current()
    assert one.model is not None
    assert one.model.adapter.digest == first.digest
    assert installation.current() is one  # nothing changed, nothing is read

    second = released(home, model, adapter=tiny.tiny_adapter(seed=2))
    two = installation.current()
    assert two.model is not None
    assert two.model.adapter.digest == second.digest
    assert two.model.encoder is one.model.encoder  # the base was not loaded again
    assert one.model.adapter.digest == first.digest

    write_own_calibration(home, second.digest, calibrated(0.7))
    (home / POLICY).write_text('escalate = "never"\n')
    (home / ANSWERS).write_text("label,answer\nbalance,Here.\n")
    three = installation.current()
    assert three.model is not None
    assert three.model.calibration == calibrated(0.7)
    assert three.policy == Policy(escalate="never")
    assert three.templates.find("balance", "?") == "Here."


def test_another_model_is_opened_anew(home: Path, model: Path, tmp_path: Path) -> None:
    installation = Installation(home)
    released(home, model)
    one = installation.current().model
    released(home, tiny.make_tiny_model(tmp_path / "other", seed=4))
    two = installation.current().model
    assert one is not None
    assert two is not None
    assert one.encoder is not two.encoder
    assert one.adapter.model != two.adapter.model


@pytest.mark.parametrize("name", [SERVING, CALIBRATION, POLICY, ANSWERS])
def test_something_damaged_never_replaces_what_works(home: Path, model: Path, name: str) -> None:
    installation = Installation(home)
    released(home, model)
    (home / POLICY).write_text('escalate = "never"\n')
    (home / ANSWERS).write_text("label,answer\nbalance,Here.\n")
    before = installation.current()
    (home / name).write_text("damaged = = = \n")
    after = installation.current()
    assert before.model is not None
    assert after.model is not None
    assert after.model.adapter.digest == before.model.adapter.digest
    assert after.policy == before.policy
    assert after.templates.find("balance", "?") == "Here."
    assert installation.current() is after  # and it is tried once


def test_without_a_readable_policy_nothing_begins(home: Path, model: Path) -> None:
    released(home, model)
    (home / POLICY).write_text("escalate = 3\n")
    with pytest.raises(ConfigError, match="escalate"):
        Installation(home).current()


def test_a_damaged_model_at_the_start_is_a_problem_with_a_name(home: Path, model: Path) -> None:
    released(home, model)
    (home / SERVING).write_text("{}")
    equipment = Installation(home).current()
    assert equipment.model is None
    assert SERVING in equipment.problem


def test_four_threads_asking_meet_a_hundred_installations(home: Path, model: Path) -> None:
    """1 000 questions; every answer is that of an adapter that was in force at some time."""
    adapters = [tiny.tiny_adapter(seed=seed) for seed in (1, 2)]
    installation = Installation(home)
    known: dict[Digest, bytes] = {}
    for adapter in adapters:
        released(home, model, adapter=adapter)
        local = installation.current().model
        assert local is not None
        logits = local.encoder.answer(CONFIDENT, local.adapter)[1]
        known[adapter.digest] = logits.tobytes()
    problems: list[object] = []
    seen: set[Digest] = set()

    def ask() -> None:
        try:
            for _ in range(250):
                local = installation.current().model
                assert local is not None
                logits = local.encoder.answer(CONFIDENT, local.adapter)[1]
                seen.add(local.adapter.digest)
                if logits.tobytes() != known[local.adapter.digest]:
                    problems.append(local.adapter.digest)
        except Exception as err:  # noqa: BLE001 - whatever a thread meets is shown below
            problems.append(err)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(100):
        adapter = adapters[number % 2]
        install(home, serving_of(home, model, adapter), adapter.to_bytes())
    for thread in threads:
        thread.join()
    assert problems == []
    assert seen <= known.keys()
    last = installation.current().model
    assert last is not None
    assert last.adapter.digest == adapters[1].digest
