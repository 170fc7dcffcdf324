"""The engine answers from a process of its own, the same way every time, adapter by adapter."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from coordinator.inference.engine import (
    ChatMessage,
    EngineState,
    GenerationRequest,
    ServedAdapter,
)
from coordinator.inference.transformers_engine import TransformersEngine
from shared.errors import EngineError, ModelError, PromptRefused
from shared.models.adapter import Adapter, AdapterShape
from shared.models.architecture import read_architecture
from shared.models.encoder import find_base_model
from shared.types import Digest
from tests.support.language_models import make_model

QUESTION = (ChatMessage("user", "Where is my parcel?"),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("model") / "few-steps").folder)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(str(folder))
    engine.start()
    ready(engine)
    yield engine
    engine.close()


def ready(engine: TransformersEngine) -> None:
    deadline = time.monotonic() + 240
    while engine.card.state is EngineState.LOADING and time.monotonic() < deadline:
        time.sleep(0.05)
    assert engine.card.state is EngineState.READY, engine.card.reason


def asked(tokens: int = 12, **changes: object) -> GenerationRequest:
    values: dict[str, object] = {"prompt": QUESTION, "max_tokens": tokens}
    return GenerationRequest(**(values | changes))  # type: ignore[arg-type]  # by name, per test


def adapter_for(folder: Path, *, spread: float) -> ServedAdapter:
    base = find_base_model(str(folder))
    built = read_architecture(base)
    shape = AdapterShape(
        features=built.features,
        method="lora",
        rank=4,
        alpha=8.0,
        slots=built.slots("lora", built.layers),
    )
    start = Adapter.initial(shape, base.digest, seed=3)
    rng = np.random.default_rng(4)
    moved = start.moved(spread * rng.normal(size=start.parameters))
    return ServedAdapter("run", moved.to_bytes())


def test_a_greedy_answer_is_the_same_every_time_and_no_longer_than_asked(
    engine: TransformersEngine,
) -> None:
    first, again = engine.generate(asked()), engine.generate(asked())
    assert first == again
    assert 0 < first.completion_tokens <= 12
    assert first.prompt_tokens > 0


def test_the_same_seed_draws_the_same_and_another_seed_something_else(
    engine: TransformersEngine,
) -> None:
    def drawn(seed: int) -> str:
        return engine.generate(asked(24, temperature=1.5, seed=seed)).text

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(4)}) > 1


def test_an_adapter_answers_for_one_request_and_is_gone_after_it(
    engine: TransformersEngine, folder: Path
) -> None:
    before = engine.generate(asked(24))
    other = engine.generate(asked(24, adapter=adapter_for(folder, spread=0.5)))
    nothing = engine.generate(asked(24, adapter=adapter_for(folder, spread=0.0)))
    assert other.text != before.text
    assert nothing == before
    assert engine.generate(asked(24)) == before


def test_an_adapter_of_another_base_is_refused(engine: TransformersEngine, folder: Path) -> None:
    own = Adapter.from_bytes(adapter_for(folder, spread=0.0).data)
    foreign = Adapter(own.shape, Digest("ab" * 32), own.tensors)
    with pytest.raises(ModelError):
        engine.generate(asked(adapter=ServedAdapter("other", foreign.to_bytes())))
    assert engine.generate(asked()).completion_tokens > 0


def test_a_prompt_that_fills_the_context_is_refused_with_the_numbers(
    engine: TransformersEngine,
) -> None:
    context = engine.card.context_tokens
    assert context is not None
    with pytest.raises(PromptRefused, match=str(context)):
        engine.generate(asked(prompt=(ChatMessage("user", "parcel " * 2 * context),)))


def test_a_process_that_dies_costs_its_request_only(folder: Path) -> None:
    engine = TransformersEngine(str(folder))
    engine.start()
    ready(engine)
    assert engine.pid is not None
    expected = engine.generate(asked())
    os.kill(engine.pid, signal.SIGKILL)
    deadline, answer = time.monotonic() + 240, None
    while answer is None and time.monotonic() < deadline:
        try:
            answer = engine.generate(asked())
        except Exception:  # noqa: BLE001  the one that met the death, and those while it loads
            time.sleep(0.1)
    assert answer == expected
    engine.close()


def test_a_stand_in_is_called_one(engine: TransformersEngine) -> None:
    assert engine.card.stand_in
    assert "stand-in" in engine.card.name


def test_what_is_no_model_fails_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises((ModelError, EngineError)):
        TransformersEngine(str(tmp_path / "nowhere"))
