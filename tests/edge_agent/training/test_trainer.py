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

from edge_agent.examples import ExampleStore, is_held_out
from edge_agent.training import child, dp_sgd
from edge_agent.training.trainer import ChildTrainer, TrainRequest
from shared.config import read
from shared.data_files import Example
from shared.errors import (
    ChildDied,
    DataError,
    LlmOsError,
    ModelError,
    NonFiniteUpdate,
    UndecodableMessage,
)
from shared.job import Job, RunPlan, plan_run
from shared.models.adapter import Adapter, AdapterShape
from shared.models.architecture import read_architecture
from shared.models.encoder import MINILM, BaseModel, find_base_model
from shared.models.pytorch import CausalModel, Prefix, TextEncoder
from shared.types import Digest, RunId
from tests.support.tiny_models import make_tiny_base, tiny_adapter

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
        adapter=Adapter.initial(AdapterShape(labels=labels, features=384), base).to_bytes(),
        learning_rate=1.0,
        local_steps=4,
        sample_rate=1.0,
        clip_norm=1.0,
        noise_multiplier=0.5,
        expected_examples=9.0,
        seed=bytes(range(32)),
    )


def a_plan(base: str = MINILM, shape: AdapterShape | None = None, **job: Any) -> RunPlan:
    """As much of a plan as preparing looks at."""
    tables = {"model": {"base": base}} | job
    return plan_run(
        read(Job, {"name": "run"} | tables, source="test"),
        run=RunId("run"),
        shape=shape or AdapterShape(labels=tuple(INTENTS), features=384),
        seed=1,
        simulation=False,
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
    paths = (tmp_path / "examples.db", tmp_path / "cache")
    assert trainer.prepare(a_plan(), *paths) == 9
    file = cached(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    texts = [one.text for one in store.examples()]
    features = TextEncoder(base).encode(texts)
    assert file.read_bytes().endswith(features.tobytes())
    made = file.stat().st_mtime_ns
    assert trainer.prepare(a_plan(), *paths) == 9
    assert cached(tmp_path).stat().st_mtime_ns == made, "the cache was used, not made again"
    found, labels = child.stored_features(MINILM, *paths)
    assert found.tobytes() == features.tobytes()
    assert labels == [one.label for one in store.examples()]


@pytest.mark.model
@pytest.mark.parametrize("kept", [0, 20, 5000, -1])
def test_a_damaged_cache_is_made_again(
    trainer: ChildTrainer, request_: TrainRequest, tmp_path: Path, kept: int
) -> None:
    before = trainer.train(request_).update
    whole = cached(tmp_path).read_bytes()
    cached(tmp_path).write_bytes(whole[:kept] + (b"?" if kept == -1 else b""))
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
    learner = dp_sgd.head_learner(features[rows], targets, Adapter.from_bytes(request.adapter))
    expected = dp_sgd.local_update(learner, np.arange(len(rows)), request)
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
        trainer.prepare(a_plan(), tmp_path / "examples.db", tmp_path / "cache")
    assert not (tmp_path / "examples.db").exists()
    ExampleStore(tmp_path / "examples.db")
    with pytest.raises(DataError, match="is empty"):
        trainer.prepare(a_plan(), tmp_path / "examples.db", tmp_path / "cache")
    request = a_request(tmp_path, Digest("ab" * 32), labels=("a", "b"))
    with pytest.raises(UndecodableMessage):
        trainer.train(replace(request, adapter=b"not an adapter"))


def test_a_child_beyond_its_memory_dies_alone(tmp_path: Path) -> None:
    ExampleStore(tmp_path / "examples.db").add(EXAMPLES)
    small = ChildTrainer(memory_limit_bytes=48 * 2**20)
    try:
        with pytest.raises(LlmOsError):
            small.prepare(a_plan(), tmp_path / "examples.db", tmp_path / "cache")
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
        ({"step_ratio": 0.0}, ["step_ratio"]),
        ({"held_out_share": 1.0}, ["held_out_share"]),
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


# What follows needs no MiniLM: bases with random weights, in this process.


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseModel]:
    pytest.importorskip("opacus")
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("bases")
    return {kind: make_tiny_base(folder / kind, kind) for kind in ("bert", "llama")}


def tiny_request(folder: Path, base: BaseModel, adapter: Adapter, **changes: Any) -> TrainRequest:
    request = a_request(folder, Digest("ab" * 32), labels=("a", "b"))
    fields: dict[str, Any] = {
        "base": str(base.folder),
        "adapter": adapter.to_bytes(),
        "keep_layers": base.layers,
    }
    return replace(request, **(fields | changes))


def in_this_process(request: TrainRequest) -> dict[str, Any]:
    fields = {slot: getattr(request, slot) for slot in request.__dataclass_fields__}
    answer = child.train(**(fields | {name: str(fields[name]) for name in ("store_path",)}))
    return answer | {"update": np.frombuffer(answer["update"], np.float32)}


def test_matrices_train_over_states_that_are_made_once(
    tiny: dict[str, BaseModel], store: ExampleStore, tmp_path: Path
) -> None:
    base = find_base_model(str(tiny["bert"].folder), keep_layers=2)
    adapter = tiny_adapter(base, "lora", top=1, labels=tuple(INTENTS))
    plan = a_plan(str(base.folder), adapter.shape, model={"base": str(base.folder), "layers": 2})
    trainer = ChildTrainer()
    try:
        assert trainer.prepare(plan, tmp_path / "examples.db", tmp_path / "cache") == 9
        file = cached(tmp_path)
        made = file.stat().st_mtime_ns
        request = tiny_request(tmp_path, base, adapter, step_ratio=0.1)
        trained = trainer.train(request)
    finally:
        trainer.close()
    assert cached(tmp_path).stat().st_mtime_ns == made
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    encoder = TextEncoder(base)
    tokens = encoder.tokens([one.text for one in store.examples()])
    states = encoder.states(tokens, 1)
    assert file.read_bytes().endswith(states.tobytes())
    targets = np.array([list(INTENTS).index(one.label) for one in store.examples()])
    with encoder.adapted(adapter) as adapted:
        prefix = Prefix(encoder, tokens, 1, states)
        learner = dp_sgd.inner_learner(adapted, prefix, targets, adapter)
        expected = dp_sgd.local_update(learner, np.arange(9), request)
    assert trained.update.tobytes() == expected.tobytes()
    assert trained.examples_used == 9


def test_a_language_model_learns_continuations(
    tiny: dict[str, BaseModel], store: ExampleStore, tmp_path: Path
) -> None:
    base = tiny["llama"]
    adapter = tiny_adapter(base, "lora", labels=(), top=3)
    request = tiny_request(
        tmp_path, base, adapter, task="causal-lm", noise_multiplier=0.01, local_steps=40
    )
    answer = in_this_process(request)
    assert answer["examples_used"] == store.count
    assert not (tmp_path / "cache").exists(), "embeddings are looked up faster than read"
    pairs = [(one.text, one.label) for one in store.examples()]
    model = CausalModel(base)
    before = model.outcome(pairs, adapter)[1].mean()
    assert model.outcome(pairs, adapter.moved(answer["update"]))[1].mean() < 0.8 * before


def test_a_language_model_keeps_states_below_its_top_layers(
    tiny: dict[str, BaseModel], store: ExampleStore, tmp_path: Path
) -> None:
    assert store.count == 9
    adapter = tiny_adapter(tiny["llama"], "lora", labels=(), top=1)
    request = tiny_request(tmp_path, tiny["llama"], adapter, task="causal-lm")
    first = in_this_process(request)["update"]
    assert cached(tmp_path).name.startswith("layer-2-")
    assert (in_this_process(request)["update"] == first).all()


@pytest.mark.parametrize("method", ["none", "lora"])
def test_held_out_examples_are_scored_and_not_trained_on(
    tiny: dict[str, BaseModel], store: ExampleStore, tmp_path: Path, method: Any
) -> None:
    base, share = tiny["bert"], 0.4
    adapter = tiny_adapter(base, method, labels=tuple(INTENTS))
    request = tiny_request(tmp_path, base, adapter, held_out_share=share)
    answer = in_this_process(request)
    held = [one for one in store.examples() if is_held_out(one, share)]
    kept = [one for one in store.examples() if not is_held_out(one, share)]
    assert 0 < len(held) < 9
    assert (answer["examples_used"], answer["scored"]) == (len(kept), len(held))
    features = TextEncoder(base).encode([one.text for one in held], adapter=adapter)
    right = [a == one.label for a, one in zip(adapter.predict(features), held, strict=True)]
    assert answer["score_sum"] == sum(right)

    alone = ExampleStore(tmp_path / "alone.db")
    alone.add(kept)
    alone_request = replace(request, store_path=tmp_path / "alone.db", held_out_share=0.0)
    without = in_this_process(alone_request)
    assert answer["update"] == pytest.approx(without["update"], abs=1e-5)
    assert (without["scored"], without["score_sum"]) == (0, 0.0)


def test_a_store_that_is_all_held_out_has_nothing_to_train_on(
    tiny: dict[str, BaseModel], tmp_path: Path
) -> None:
    text = next(f"text {n}" for n in range(99) if is_held_out(Example(f"text {n}", "a"), 0.5))
    ExampleStore(tmp_path / "examples.db").add([Example(text, "a")])
    adapter = tiny_adapter(tiny["bert"], "none", labels=("a", "b"))
    request = tiny_request(tmp_path, tiny["bert"], adapter, held_out_share=0.5)
    with pytest.raises(DataError, match="no example has a label that is being trained"):
        in_this_process(request)


@pytest.mark.parametrize("method", ["none", "bottleneck"])
def test_stored_features_have_the_matrices_in_place(
    tiny: dict[str, BaseModel], store: ExampleStore, tmp_path: Path, method: Any
) -> None:
    base = tiny["bert"]
    adapter = tiny_adapter(base, method)
    texts = [one.text for one in store.examples()]
    paths = (tmp_path / "examples.db", tmp_path / "cache")
    features, labels = child.stored_features(str(base.folder), *paths, adapter=adapter)
    expected = TextEncoder(base).encode(texts, adapter=adapter)
    assert features == pytest.approx(expected, abs=1e-6)
    assert labels == [one.label for one in store.examples()]


def test_a_cache_folder_does_not_grow_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "CACHE_BYTES", 5000)
    for number in range(9):
        path = tmp_path / f"layer-2-{number}"
        matrix = np.full((10, 25), number, np.float32)  # a file of 1160 bytes
        child._kept(path, lambda matrix=matrix: matrix)  # type: ignore[misc]
        os.utime(path, ns=(number, number))
    assert sorted(file.name[-1] for file in tmp_path.iterdir()) == ["4", "5", "6", "7", "8"]


def test_what_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteUpdate, match="NaN or infinity"):
        child._kept(tmp_path / "features", lambda: np.full((2, 2), np.nan, np.float32))
    assert list(tmp_path.iterdir()) == []


def test_slots_of_a_plan_say_how_deep_to_prepare(
    tiny: dict[str, BaseModel], store: ExampleStore, tmp_path: Path
) -> None:
    assert store.count == 9
    base = tiny["bert"]
    slots = read_architecture(base).slots("lora", 2)
    paths = (str(tmp_path / "examples.db"), str(tmp_path / "cache"))
    child.prepare(str(base.folder), *paths, slots=[slot.name for slot in slots])
    assert cached(tmp_path).name.startswith("layer-1-")


def test_the_agent_s_side_is_light() -> None:
    code = (
        "import sys, edge_agent.training.trainer, edge_agent.examples;"
        "print([m for m in ('torch', 'opacus', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
