"""What every language model promises, and every implementation is asked to show."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.inference.engine import (
    ChatMessage,
    Engine,
    EngineState,
    Finished,
    Generation,
    GenerationRequest,
    Piece,
    ServedAdapter,
    answered,
    collect,
)
from coordinator.inference.engines import EngineSettings, make_engine
from coordinator.inference.local_engine import LocalEngine
from shared.errors import ChildDied, EngineBusy, EngineError, ModelError, PromptRefused
from shared.models.adapter import Adapter, AdapterShape
from shared.models.architecture import read_architecture
from shared.models.encoder import find_base_model
from shared.types import Digest
from tests.support.language_models import make_model
from tests.support.scripted_worker import DIES, HANGS

PATIENCE_S = 120.0
QUESTION = (ChatMessage("user", "Where is my parcel?"),)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("model") / "few-steps").folder)


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def scripted(folder: Path, *, stuck_s: float = 60.0) -> LocalEngine:
    return LocalEngine(
        *(str(folder), {"runtime": "scripted"}),
        threads=1,
        stuck_s=stuck_s,
        worker="tests.support.scripted_worker",
    )


def started(engine: Engine) -> Engine:
    engine.start()
    until(lambda: engine.card.state is not EngineState.LOADING, "an engine that has loaded")
    assert engine.card.state is EngineState.READY, engine.card.reason
    return engine


@pytest.fixture(
    scope="module",
    params=[
        "scripted",
        pytest.param("onnx", marks=[pytest.mark.model, pytest.mark.slow]),
        pytest.param("transformers", marks=[pytest.mark.model, pytest.mark.slow]),
    ],
)
def kind(request: pytest.FixtureRequest) -> str:
    """Which implementation it is."""
    return str(request.param)


@pytest.fixture(scope="module")
def engine(kind: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if kind == "scripted":
        engine: Engine = scripted(folder)
    else:
        models = tmp_path_factory.mktemp("models")
        settings = EngineSettings(models, runtime=kind, device="cpu", threads=1)
        engine = make_engine(str(folder), settings)
    yield started(engine)
    engine.close()


def asked(tokens: int = 12, **changes: object) -> GenerationRequest:
    return replace(GenerationRequest(QUESTION, tokens), **changes)  # type: ignore[arg-type]


def served_adapter(folder: Path, *, seed: int, spread: float = 0.5) -> ServedAdapter:
    base = find_base_model(str(folder))
    built = read_architecture(base)
    shape = AdapterShape(
        features=built.features,
        method="lora",
        rank=4,
        alpha=8.0,
        slots=built.slots("lora", built.layers),
    )
    start = Adapter.initial(shape, base.digest, seed=seed)
    rng = np.random.default_rng(seed)
    return ServedAdapter(
        f"run-{seed}", start.moved(spread * rng.normal(size=start.parameters)).to_bytes()
    )


def together(engine: Engine, requests: list[GenerationRequest]) -> list[Generation]:
    async def all_of_them() -> list[Generation]:
        return list(await asyncio.gather(*(collect(engine.stream(each)) for each in requests)))

    return asyncio.run(all_of_them())


def test_a_stream_is_pieces_and_then_exactly_one_end(engine: Engine) -> None:
    async def events() -> list[Piece | Finished]:
        return [event async for event in engine.stream(asked())]

    *pieces, last = asyncio.run(events())
    assert all(isinstance(each, Piece) for each in pieces)
    assert isinstance(last, Finished)
    whole = answered(engine, asked())
    assert "".join(each.text for each in pieces if isinstance(each, Piece)) == whole.text
    assert (last.prompt_tokens, last.completion_tokens) == (
        whole.prompt_tokens,
        whole.completion_tokens,
    )
    assert 0 < whole.completion_tokens <= 12
    assert whole.prompt_tokens > 0


def test_many_at_once_get_what_each_gets_alone(engine: Engine) -> None:
    words = ["refund", "parcel", "late", "退款", "cancel my order", "hello", "broken", "invoice"]
    requests = [asked(8 + 3 * i, prompt=f"{word} {i}") for i, word in enumerate(words)]
    alone = [answered(engine, each) for each in requests]
    assert together(engine, requests) == alone


def test_the_text_ends_before_the_first_stop_string(engine: Engine) -> None:
    whole = answered(engine, asked(40)).text
    stop = whole[len(whole) // 2 :][:2]
    cut = answered(engine, asked(40, stop=("never to be seen", stop)))
    assert cut.text == whole[: whole.find(stop)]
    assert cut.finish_reason == "stop"


def serves(engine: Engine, field: str) -> None:
    """Skip where an engine says that it does not serve a field; the API refuses it by name then."""
    if field in engine.card.lacks:
        pytest.skip(f"it lacks {field}")


def test_the_same_seed_gives_the_same_text_whatever_is_asked_beside_it(engine: Engine) -> None:
    serves(engine, "seed")
    request = asked(24, temperature=1.2, top_p=0.95, seed=5)
    alone = answered(engine, request)
    others = [replace(request, seed=seed) for seed in range(6, 12)]
    texts = [each.text for each in together(engine, [request, *others])]
    assert texts[0] == alone.text
    assert len(set(texts)) > 1


def test_log_probabilities_come_with_the_tokens_they_are_of(engine: Engine) -> None:
    serves(engine, "logprobs")
    said = answered(engine, asked(10, logprobs=3))
    assert len(said.logprobs) == said.completion_tokens
    for each in said.logprobs:
        assert each.chosen.logprob <= 0
        assert len(each.likeliest) == 3
        assert each.likeliest[0].logprob >= each.chosen.logprob
        assert each.likeliest[0] == each.chosen  # greedy takes the likeliest
    data = b"".join(each.chosen.data for each in said.logprobs)
    assert said.text in data.decode(errors="replace")


def test_a_stream_that_is_closed_gives_its_slot_back(engine: Engine) -> None:
    async def leave_early() -> None:
        async with aclosing(engine.stream(asked(400, prompt="a b c"))) as stream:
            async for _ in stream:
                return

    asyncio.run(leave_early())
    began = time.monotonic()
    until(lambda: engine.load.active + engine.load.waiting == 0, "a free slot")
    assert time.monotonic() - began < 5.0  # promised is one second; this machine may be busy


def test_adapters_answer_their_own_requests_and_no_others(engine: Engine, folder: Path) -> None:
    one, other = served_adapter(folder, seed=1), served_adapter(folder, seed=2)
    plain = asked(16, prompt="where is my parcel " * 12, share="key")
    requests = [plain, replace(plain, adapter=one), replace(plain, adapter=other)]
    alone = [answered(engine, each) for each in requests]
    assert len({each.text for each in alone}) == 3
    again = together(engine, requests * 3)
    assert [each.text for each in again] == [each.text for each in alone] * 3


def test_what_one_share_has_computed_is_no_other_s(engine: Engine, kind: str) -> None:
    prompt = "the same long question, asked again and again " * 4
    first = answered(engine, asked(4, prompt=prompt, share="one"))
    again = answered(engine, asked(4, prompt=prompt, share="one"))
    other = answered(engine, asked(4, prompt=prompt, share="other"))
    nobody = answered(engine, asked(4, prompt=prompt))
    # Transformers shares what it has computed with everybody or with nobody.
    assert (again.cached_tokens > 0) == (kind != "transformers")
    assert (first.cached_tokens, other.cached_tokens, nobody.cached_tokens) == (0, 0, 0)
    assert first.text == again.text == other.text == nobody.text


def test_what_is_wrong_with_one_request_is_told_to_it_alone(engine: Engine, folder: Path) -> None:
    context = engine.card.context_tokens
    assert context is not None
    foreign = served_adapter(folder, seed=3)
    damaged = ServedAdapter("damaged", foreign.data[: len(foreign.data) // 2])

    async def all_of_them() -> list[Generation | BaseException]:
        requests = [
            asked(prompt="parcel " * 2 * context),
            asked(adapter=damaged),
            asked(prompt="fine"),
        ]
        return list(
            await asyncio.gather(
                *(collect(engine.stream(each)) for each in requests), return_exceptions=True
            )
        )

    too_long, no_adapter, fine = asyncio.run(all_of_them())
    assert isinstance(too_long, PromptRefused)
    assert "maximum context length" in str(too_long)
    assert isinstance(no_adapter, Exception)
    assert not isinstance(no_adapter, ChildDied)
    assert isinstance(fine, Generation)


def test_two_threads_with_loops_of_their_own_are_served(engine: Engine) -> None:
    expected = answered(engine, asked(20))
    found: list[Generation] = []
    threads = [
        threading.Thread(target=lambda: found.append(answered(engine, asked(20)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert found == [expected] * 4


def test_an_adapter_of_another_base_is_refused(folder: Path, engine: Engine, kind: str) -> None:
    adapter = Adapter.from_bytes(served_adapter(folder, seed=4).data)
    foreign = Adapter(adapter.shape, Digest("0" * 64), adapter.tensors)
    request = asked(adapter=ServedAdapter("other", foreign.to_bytes()))
    if kind == "scripted":
        pytest.skip("a hash has no base")
    with pytest.raises(ModelError, match="trained on the base"):
        answered(engine, request)


def test_a_process_that_dies_costs_its_requests_and_the_next_are_answered(folder: Path) -> None:
    engine = scripted(folder)
    try:
        started(engine)
        expected = answered(engine, asked(prompt=(1, 2, 3)))
        with pytest.raises(ChildDied):
            answered(engine, asked(prompt=(DIES,)))
        until(lambda: engine.card.state is EngineState.READY, "another process")
        assert answered(engine, asked(prompt=(1, 2, 3))) == expected
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        until(lambda: engine.load.restarts == 2, "a second restart")
        until(lambda: engine.card.state is EngineState.READY, "a third process")
        assert answered(engine, asked(prompt=(1, 2, 3))) == expected
    finally:
        engine.close()


def test_a_process_that_hangs_is_replaced(folder: Path) -> None:
    engine = scripted(folder, stuck_s=0.5)
    try:
        started(engine)
        with pytest.raises(ChildDied):
            answered(engine, asked(prompt=(HANGS,)))
        until(lambda: engine.card.state is EngineState.READY, "another process")
        assert answered(engine, asked(prompt=(1, 2, 3))).completion_tokens > 0
    finally:
        engine.close()


def test_who_asks_before_the_model_is_loaded_or_after_the_end_is_told(folder: Path) -> None:
    engine = scripted(folder)
    with pytest.raises(EngineBusy):
        answered(engine, asked())
    started(engine)
    engine.close()
    with pytest.raises((EngineBusy, EngineError)):
        answered(engine, asked())


def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path, folder: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "model.safetensors"):
        (broken / name).write_bytes((folder / name).read_bytes())
    (broken / "tokenizer.json").write_text("{}")
    engine = scripted(broken)
    engine.start()
    try:
        until(lambda: engine.card.state is EngineState.FAILED, "a failure")
        assert "tokenizer.json" in engine.card.reason
        with pytest.raises(EngineError, match="could not be loaded"):
            answered(engine, asked())
    finally:
        engine.close()
