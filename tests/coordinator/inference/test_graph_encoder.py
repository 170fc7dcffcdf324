"""Encoders in child processes: the same bits as alone, and a crash costs its own requests only."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.inference.engine import EngineState, ServedAdapter
from coordinator.inference.graph_encoder import GraphEncoder
from coordinator.registry.model_import import imported_models
from shared.errors import ChildDied, EngineBusy, EngineError, ModelError
from shared.models.adapter import Adapter, AdapterShape
from shared.models.graph_session import GraphSession
from shared.types import Digest
from tests.support.tiny_encoders import FEATURES, make_encoder

PATIENCE_S = 120.0
TEXTS = [f"{chr(97 + n % 26)} {chr(97 + n % 7)} text {'x' * (n % 5)}" for n in range(40)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "tiny"
    folder.mkdir()
    make_encoder(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home") / "models"


@pytest.fixture(scope="module")
def encoder(source: Path, models: Path) -> Iterator[GraphEncoder]:
    encoder = GraphEncoder(str(source), models)
    yield encoder
    encoder.close()


def session(models: Path) -> GraphSession:
    (folder,) = imported_models(models)
    return GraphSession(folder)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def head(base: Digest, *, seed: int = 0, labels: tuple[str, ...] = ("a", "b", "c")) -> Adapter:
    rng = np.random.default_rng(seed)
    shape = AdapterShape(labels=labels, features=FEATURES)
    tensors = {name: rng.normal(size=s).astype(np.float32) for name, s in shape.tensors.items()}
    return Adapter(shape, base, tensors)


def test_the_first_request_imports_the_model_and_gets_what_the_graph_computes(
    encoder: GraphEncoder, models: Path
) -> None:
    assert encoder.card.name == "tiny"
    assert encoder.card.state is EngineState.LOADING
    encoded = asyncio.run(encoder.embed(TEXTS))
    alone = session(models)
    assert encoded.values.tobytes() == np.stack([alone.embed(t) for t in TEXTS]).tobytes()
    assert encoded.tokens == sum(alone.tokens(text) for text in TEXTS)
    card = encoder.card
    assert (card.state, card.base, card.features) == ("ready", alone.manifest.base, FEATURES)
    assert len(encoder.pids) == 2 or os.cpu_count() == 1


def test_adapters_come_with_requests_and_many_fit_at_once(
    encoder: GraphEncoder, models: Path
) -> None:
    asyncio.run(encoder.embed(["warm"]))
    assert encoder.card.base is not None
    adapters = [head(encoder.card.base, seed=seed) for seed in range(40)]  # more than are kept

    async def everybody() -> Any:
        return await asyncio.gather(
            *(encoder.classify(TEXTS[:3], ServedAdapter(f"r{n}", each.to_bytes()))
              for n, each in enumerate(adapters))
        )  # fmt: skip

    alone = session(models)
    for adapter, encoded in zip(adapters, asyncio.run(everybody()), strict=True):
        loaded = alone.load_adapter(adapter)
        wanted = np.stack([alone.answer(text, loaded)[1] for text in TEXTS[:3]])
        assert encoded.values.tobytes() == wanted.tobytes()


def test_an_adapter_of_another_base_is_refused(encoder: GraphEncoder) -> None:
    stranger = ServedAdapter("r", head(Digest("0" * 64)).to_bytes())
    with pytest.raises(ModelError, match="trained on the base"):
        asyncio.run(encoder.classify(["x"], stranger))


def test_a_killed_worker_costs_its_request_and_another_takes_its_place(
    encoder: GraphEncoder,
) -> None:
    before = asyncio.run(encoder.embed(TEXTS[:2])).values.tobytes()

    async def ask_while_they_die() -> list[Any]:
        until(lambda: len(encoder.pids) == len(encoder._children))
        for pid in encoder.pids:
            os.kill(pid, signal.SIGSTOP)  # so that a request is under way when it dies
        asked = [asyncio.create_task(encoder.embed(TEXTS[:8])) for _ in range(2)]
        taken = lambda: encoder.waiting == 16 and encoder._jobs.empty()  # noqa: E731
        await asyncio.sleep(0)  # both have come as far as they can
        await asyncio.to_thread(until, taken)
        for pid in encoder.pids:
            os.kill(pid, signal.SIGKILL)
        return await asyncio.gather(*asked, return_exceptions=True)

    # A request that was taken and not yet handed over finds a new process: then it is tried again.
    for _ in range(5):
        answers = asyncio.run(ask_while_they_die())
        if died := any(isinstance(answer, ChildDied) for answer in answers):
            break
    assert died
    assert asyncio.run(encoder.embed(TEXTS[:2])).values.tobytes() == before
    assert encoder.waiting == 0


def test_the_event_loop_goes_on_while_texts_are_embedded(encoder: GraphEncoder) -> None:
    async def ticks() -> int:
        asked = asyncio.create_task(encoder.embed(TEXTS * 5))
        count = 0
        while not asked.done():
            await asyncio.sleep(0.001)
            count += 1
        await asked
        return count

    assert asyncio.run(ticks()) > 3


def test_a_short_request_does_not_wait_behind_all_of_a_long_one(encoder: GraphEncoder) -> None:
    async def race() -> list[str]:
        done: list[str] = []

        async def ask(name: str, texts: list[str]) -> None:
            await encoder.embed(texts)
            done.append(name)

        await asyncio.gather(ask("long", TEXTS * 25), ask("short", TEXTS[:1]))
        return done

    assert asyncio.run(race()) == ["short", "long"]


def test_a_full_house_says_come_again(encoder: GraphEncoder, monkeypatch: Any) -> None:
    monkeypatch.setattr(encoder, "_max_waiting", 50)

    async def two() -> Any:
        return await asyncio.gather(
            encoder.embed(TEXTS), encoder.embed(TEXTS), return_exceptions=True
        )

    first, second = asyncio.run(two())
    assert first.values.shape == (len(TEXTS), FEATURES)
    assert isinstance(second, EngineBusy)
    assert encoder.waiting == 0


def test_a_stuck_worker_is_replaced(source: Path, models: Path) -> None:
    encoder = GraphEncoder(str(source), models, workers=1)
    try:
        asyncio.run(encoder.embed(["x"]))
        (pid,) = encoder.pids
        os.kill(pid, signal.SIGSTOP)
        encoder._stuck_s = 0.5
        with pytest.raises(ChildDied):
            asyncio.run(encoder.embed(["x"]))
        encoder._stuck_s = PATIENCE_S
        assert asyncio.run(encoder.embed(["x"])).values.shape == (1, FEATURES)
    finally:
        encoder.close()


def test_a_model_that_cannot_be_imported_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "no such"}', encoding="utf-8")
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes(b"nothing")
    encoder = GraphEncoder(str(folder), tmp_path / "models")
    try:
        for _ in range(2):
            with pytest.raises(EngineError, match="no such"):
                asyncio.run(encoder.embed(["x"]))
        assert encoder.card.state is EngineState.FAILED
    finally:
        encoder.close()


def test_an_encoder_reads_no_answers(encoder: GraphEncoder) -> None:
    with pytest.raises(ModelError, match="--reader"):
        asyncio.run(encoder.read("who?", ["someone"], answers=1))


def test_a_closed_encoder_answers_nobody_and_leaves_no_process(source: Path, models: Path) -> None:
    encoder = GraphEncoder(str(source), models)
    asyncio.run(encoder.embed(["x"]))
    encoder.close()
    assert encoder.pids == []
    with pytest.raises(EngineError, match="shutting down"):
        asyncio.run(encoder.embed(["x"]))
    encoder.close()
