"""The training child encodes once, repeats itself to the byte, and may die without harm."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.examples import ExampleStore
from edge_agent.training.dp_sgd import local_update
from edge_agent.training.trainer import ChildTrainer, TrainRequest
from shared.data_files import Example
from shared.errors import ChildDied, DataError, LlmOsError, ModelError, UndecodableMessage
from shared.models.adapter import Adapter
from shared.models.encoder import MINILM, BaseModel, find_base_model
from shared.models.pytorch import TextEncoder
from shared.types import Digest

ROOT = Path(__file__).parents[3]

INTENTS = {
    "track": ["where is my parcel", "track my order", "when will my package arrive"],
    "refund": ["I want my money back", "please refund this purchase", "give me a refund"],
    "cancel": ["cancel my subscription", "end my membership", "stop my monthly plan"],
}
EXAMPLES = [Example(INTENTS[label][index], label) for index in range(3) for label in INTENTS]
UNSEEN = {
    "has my order been shipped yet": "track",
    "how do I get reimbursed": "refund",
    "I no longer want to be subscribed": "cancel",
}


@pytest.fixture(scope="module")
def base() -> BaseModel:
    pytest.importorskip("opacus")
    try:
        return find_base_model(MINILM)
    except LlmOsError as err:
        pytest.skip(f"no MiniLM here: {err}")


@pytest.fixture(scope="module")
def trainer() -> Iterator[ChildTrainer]:
    trainer = ChildTrainer()
    yield trainer
    trainer.close()


@pytest.fixture
def store(tmp_path: Path) -> ExampleStore:
    store = ExampleStore(tmp_path / "examples.db")
    store.add(EXAMPLES)
    return store


@pytest.fixture
def request_(base: BaseModel, store: ExampleStore, tmp_path: Path) -> TrainRequest:
    assert store.count == len(EXAMPLES)
    return a_request(tmp_path, base.digest, labels=tuple(INTENTS))


def a_request(folder: Path, base: Digest, *, labels: tuple[str, ...]) -> TrainRequest:
    return TrainRequest(
        store_path=folder / "examples.db",
        cache_folder=folder / "cache",
        base=MINILM,
        adapter=Adapter.zeros(labels, 384, base).to_bytes(),
        learning_rate=1.0,
        local_steps=4,
        sample_rate=1.0,
        clip_norm=1.0,
        noise_multiplier=0.5,
        expected_examples=9.0,
        seed=bytes(range(32)),
    )


def cached(folder: Path) -> Path:
    (file,) = (folder / "cache").iterdir()
    return file


@pytest.mark.model
def test_a_head_learns_the_intents(
    trainer: ChildTrainer, base: BaseModel, request_: TrainRequest
) -> None:
    plain = replace(request_, clip_norm=None, noise_multiplier=0.0)
    trained = trainer.train(plain)
    assert (trained.steps, trained.examples_used) == (4, 9)
    adapter = Adapter.from_bytes(plain.adapter).moved(trained.update)
    assert adapter.predict(TextEncoder(base).encode(list(UNSEEN))) == list(UNSEEN.values())


@pytest.mark.model
def test_texts_are_encoded_once_and_kept_from_other_users(
    trainer: ChildTrainer, base: BaseModel, store: ExampleStore, tmp_path: Path
) -> None:
    paths = (MINILM, tmp_path / "examples.db", tmp_path / "cache")
    assert trainer.prepare(*paths) == 9
    file = cached(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    texts = [one.text for one in store.examples()]
    assert np.load(file).tobytes() == TextEncoder(base).encode(texts).tobytes()
    marked = np.zeros((9, 384), np.float32)
    np.save(file, marked)
    assert trainer.prepare(*paths) == 9
    assert (np.load(file) == marked).all(), "the cache was used, not made again"


@pytest.mark.model
@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"not an array"])
def test_a_damaged_cache_is_made_again(
    trainer: ChildTrainer, request_: TrainRequest, tmp_path: Path, damage: bytes
) -> None:
    before = trainer.train(request_).update
    whole = cached(tmp_path).read_bytes()
    cached(tmp_path).write_bytes(damage)
    assert (trainer.train(request_).update == before).all()
    assert cached(tmp_path).read_bytes() == whole


@pytest.mark.model
def test_a_store_that_grew_is_encoded_anew(
    trainer: ChildTrainer, request_: TrainRequest, store: ExampleStore
) -> None:
    before = trainer.train(request_)
    store.add([Example("where did my box go", "track")])
    after = trainer.train(request_)
    assert (before.examples_used, after.examples_used) == (9, 10)
    assert (before.update != after.update).any()


@pytest.mark.model
def test_the_cache_tells_stores_of_one_size_apart(
    trainer: ChildTrainer, request_: TrainRequest, tmp_path: Path
) -> None:
    other = ExampleStore(tmp_path / "other.db")
    other.add([*EXAMPLES[:-1], Example("put an end to my contract", EXAMPLES[-1].label)])
    here = trainer.train(request_)
    there = trainer.train(replace(request_, store_path=tmp_path / "other.db"))
    assert (here.update != there.update).any()
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.model
def test_examples_whose_label_is_not_trained_are_left_out(
    trainer: ChildTrainer, request_: TrainRequest, base: BaseModel, tmp_path: Path
) -> None:
    two = a_request(tmp_path, base.digest, labels=("refund", "track"))
    assert trainer.train(two).examples_used == 6
    none = a_request(tmp_path, base.digest, labels=("x", "y"))
    with pytest.raises(DataError, match="no example has a label"):
        trainer.train(none)
    assert trainer.train(request_).examples_used == 9, "the child is well after a refusal"


@pytest.mark.model
def test_the_child_trains_on_the_right_rows(
    trainer: ChildTrainer, base: BaseModel, store: ExampleStore, tmp_path: Path
) -> None:
    labels = ("refund", "track")
    request = a_request(tmp_path, base.digest, labels=labels)
    examples = store.examples()
    features = TextEncoder(base).encode([one.text for one in examples])
    rows = [index for index, one in enumerate(examples) if one.label in labels]
    targets = np.array([labels.index(examples[row].label) for row in rows])
    expected = local_update(features[rows], targets, Adapter.from_bytes(request.adapter), request)
    assert (trainer.train(request).update == expected).all()


@pytest.mark.model
def test_a_child_that_was_killed_gives_the_same_update_again(
    trainer: ChildTrainer, request_: TrainRequest
) -> None:
    before = trainer.train(request_)
    pid = trainer._child.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    try:
        again = trainer.train(request_)
    except ChildDied:  # the death was noticed by the call itself
        again = trainer.train(request_)
    assert again.update.tobytes() == before.update.tobytes()
    assert trainer._child.pid != pid


@pytest.mark.model
def test_an_adapter_of_another_base_is_refused(
    trainer: ChildTrainer, request_: TrainRequest, tmp_path: Path
) -> None:
    assert request_.store_path.exists()
    other = a_request(tmp_path, Digest("ab" * 32), labels=tuple(INTENTS))
    with pytest.raises(ModelError, match="SHA-256"):
        trainer.train(other)


def test_what_is_wrong_with_the_input_is_our_error_in_the_parent(
    trainer: ChildTrainer, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="there is no example store"):
        trainer.prepare(MINILM, tmp_path / "examples.db", tmp_path / "cache")
    assert not (tmp_path / "examples.db").exists()
    ExampleStore(tmp_path / "examples.db")
    with pytest.raises(DataError, match="is empty"):
        trainer.prepare(MINILM, tmp_path / "examples.db", tmp_path / "cache")
    request = a_request(tmp_path, Digest("ab" * 32), labels=("a", "b"))
    with pytest.raises(UndecodableMessage):
        trainer.train(replace(request, adapter=b"not an adapter"))


def test_a_child_beyond_its_memory_dies_alone(tmp_path: Path) -> None:
    ExampleStore(tmp_path / "examples.db").add(EXAMPLES)
    small = ChildTrainer(memory_limit_bytes=48 * 2**20)
    try:
        with pytest.raises(LlmOsError):
            small.prepare(MINILM, tmp_path / "examples.db", tmp_path / "cache")
        assert not (tmp_path / "cache").exists()
    finally:
        small.close()


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"learning_rate": 0.0, "local_steps": 0}, ["learning_rate", "local_steps"]),
        ({"sample_rate": 0.0}, ["sample_rate"]),
        ({"sample_rate": 1.1}, ["sample_rate"]),
        ({"clip_norm": 0.0}, ["clip_norm"]),
        ({"clip_norm": None}, ["noise needs a finite clip_norm"]),
        ({"clip_norm": float("inf")}, ["noise needs a finite clip_norm"]),
        ({"noise_multiplier": -1.0}, ["noise_multiplier"]),
        ({"expected_examples": 0.0}, ["expected_examples"]),
        ({"expected_examples": float("nan")}, ["expected_examples"]),
        ({"proximal_mu": -1.0}, ["proximal_mu"]),
        ({"seed": b"short"}, ["seed"]),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_with_every_problem(
    tmp_path: Path, changes: dict[str, Any], problems: list[str]
) -> None:
    request = a_request(tmp_path, Digest("ab" * 32), labels=("a", "b"))
    with pytest.raises(ValueError, match=problems[0]) as caught:
        replace(request, **changes)
    assert str(caught.value).count(";") == len(problems) - 1
    assert all(problem in str(caught.value) for problem in problems)


def test_the_agent_s_side_is_light() -> None:
    code = (
        "import sys, edge_agent.training.trainer, edge_agent.examples;"
        "print([m for m in ('torch', 'opacus', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
