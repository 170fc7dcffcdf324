"""A model that is cut over processes computes what it computes whole, and is one process to others."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from coordinator.inference.engine import (
    EngineState,
    Generation,
    GenerationRequest,
    ServedAdapter,
    answered,
    collect,
)
from coordinator.inference.engine_text import TextModel
from coordinator.inference.engines import EngineSettings, make_engine
from coordinator.inference.local_engine import LocalEngine
from coordinator.inference.tensor_parallel import Group, TensorParallelModel
from coordinator.inference.token_runtime import Emitted
from shared.errors import ChildDied, ConfigError, ModelError
from shared.models.adapter import Adapter
from shared.models.encoder import BaseModel
from tests.support.causal_models import TorchOracle, make_causal
from tests.support.proc import Process, descendants
from tests.support.tiny_models import tiny_adapter

PATIENCE_S = 200.0
KINDS = ("llama", "qwen2")
PROMPTS = [[5 + (7 * row + 3 * at) % 290 for at in range(4 + 9 * row)] for row in range(6)]


class Alone:
    """A group of one, or the first of more that is never heard."""

    leads, rank = True, 0

    def __init__(self, size: int = 1) -> None:
        self.size = size
        self.torch = importlib.import_module("torch")
        self.told: list[Any] = []

    def tell(self, message: Any) -> None:
        self.told.append(message)

    def collected(self, part: Any) -> list[Any]:
        return [part]

    def agreed(self, problem: str) -> str:
        return problem


def alone(base: BaseModel, *, size: int = 1, precision: str = "fp32") -> TensorParallelModel:
    group = cast(Group, Alone(size))
    return TensorParallelModel(group, base, precision=precision, cuda=False)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseModel]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: make_causal(folder / kind, kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def base(request: pytest.FixtureRequest, bases: dict[str, BaseModel]) -> BaseModel:
    return bases[str(request.param)]


def lora(base: BaseModel, seed: int, *, top: int = 2) -> Adapter:
    return tiny_adapter(base, "lora", labels=(), seed=seed, top=top)


@pytest.mark.slow
def test_logits_are_the_models_own_however_a_prompt_is_cut(base: BaseModel) -> None:
    model = alone(base)
    model.reserve(3, 64)
    prompt = PROMPTS[4]
    expected = TorchOracle(base).logits(prompt)
    for start, end in ((0, 7), (7, 8), (8, len(prompt))):
        got = model.read(1, prompt[start:end], start)
        np.testing.assert_allclose(got, expected[end - 1], atol=2e-4)


@pytest.mark.slow
def test_rows_of_any_length_and_adapter_are_computed_as_if_alone(base: BaseModel) -> None:
    model = alone(base)
    model.reserve(6, 64)
    same = lora(base, 1)
    adapters = [None, same, lora(base, 2, top=1), None, same, lora(base, 3)]
    for row, (prompt, adapter) in enumerate(zip(PROMPTS, adapters, strict=True)):
        model.place(row, adapter)
        model.read(row, prompt, 0)
    got = model.decode([9] * 6, [len(prompt) for prompt in PROMPTS])
    for row, (prompt, adapter) in enumerate(zip(PROMPTS, adapters, strict=True)):
        expected = TorchOracle(base, adapter).logits([*prompt, 9])[-1]
        np.testing.assert_allclose(got[row], expected, atol=5e-4)


@pytest.mark.slow
def test_a_row_that_was_moved_or_put_together_again_goes_on_as_before(base: BaseModel) -> None:
    model, prompt, adapter = alone(base), PROMPTS[3], lora(base, 5)
    model.reserve(2, 32)
    model.place(1, adapter)
    model.read(1, prompt, 0)
    model.reserve(3, 64)  # a longer room keeps what the rows hold
    expected = TorchOracle(base, adapter).logits([*prompt, 7])[-1]
    model.move(1, 0, len(prompt))
    np.testing.assert_allclose(model.decode([7], [len(prompt)])[0], expected, atol=5e-4)
    kept = model.take(1, 0, len(prompt))
    model.place(2, adapter)
    model.put(2, 0, kept)
    np.testing.assert_allclose(model.read(2, [7], len(prompt)), expected, atol=5e-4)


@pytest.mark.slow
def test_what_cannot_be_cut_is_refused_with_the_reason(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    base = bases["llama"]
    with pytest.raises(ModelError, match="4 heads of queries and 2 of keys"):
        alone(base, size=4)
    odd = tmp_path / "odd"
    odd.mkdir()
    for file in base.folder.iterdir():
        (odd / file.name).write_bytes(file.read_bytes())
    table = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(table | {"model_type": "qwen3_next"}))
    with pytest.raises(ModelError, match="linear_attention"):
        alone(replace(base, folder=odd, name="odd"))
    with pytest.raises(ModelError, match="trained on the base"):
        alone(base).check(lora(bases["qwen2"], 1))
    with pytest.raises(ModelError, match="not one of a language model"):
        alone(base).check(tiny_adapter(base, "none"))


def test_a_graph_is_not_cut(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="onnx keeps a model whole"):
        make_engine(str(tmp_path), EngineSettings(tmp_path, runtime="onnx", tensor_parallel=2))


# Two processes.


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def engine(
    bases: dict[str, BaseModel], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalEngine]:
    settings = EngineSettings(
        tmp_path_factory.mktemp("models"), device="cpu", threads=2, tensor_parallel=2
    )
    engine = make_engine(str(bases["qwen2"].folder), settings)
    assert isinstance(engine, LocalEngine)
    engine.start()
    until(lambda: engine.card.state is not EngineState.LOADING, "two processes that have loaded")
    assert engine.card.state is EngineState.READY, engine.card.reason
    yield engine
    engine.close()


def written(base: BaseModel, tokens: list[int]) -> str:
    """What tokens read like when they come one by one."""
    stream = TextModel(base.folder).stream(stop=(), ends=(1,))
    pieces = [stream.feed(Emitted(0, token)) for token in tokens]
    return "".join(piece.text for piece in [*pieces, stream.finish()] if piece is not None)


def together(engine: LocalEngine, requests: list[GenerationRequest]) -> list[Generation]:
    async def all_of_them() -> list[Generation]:
        return list(await asyncio.gather(*(collect(engine.stream(each)) for each in requests)))

    return asyncio.run(all_of_them())


two_processes = [pytest.mark.slow, pytest.mark.processes, pytest.mark.timeout(500)]


def marked(test: Callable[..., None]) -> Callable[..., None]:
    for mark in two_processes:
        test = mark(test)
    return test


@marked
def test_two_processes_give_the_tokens_of_one_to_many_requests_with_adapters(
    engine: LocalEngine, bases: dict[str, BaseModel]
) -> None:
    base = bases["qwen2"]
    adapters = [None, lora(base, 1), None, lora(base, 2), None, lora(base, 1)]
    requests = [
        GenerationRequest(
            tuple(prompt),
            12,
            adapter=ServedAdapter(str(row), adapter.to_bytes()) if adapter is not None else None,
            share="k",
        )
        for row, (prompt, adapter) in enumerate(zip(PROMPTS, adapters, strict=True))
    ]
    expected = [
        written(base, TorchOracle(base, adapter).greedy(prompt, 12, ends=(1,)))
        for prompt, adapter in zip(PROMPTS, adapters, strict=True)
    ]
    first, again = together(engine, requests), together(engine, requests)
    assert [each.text for each in first] == expected
    # The second time prompts begin with keys and values that both processes gave to be kept.
    assert [each.text for each in again] == expected
    assert [each.cached_tokens for each in again] == [0, 0, 0, 0, 32, 32]


@marked
def test_nothing_of_it_can_be_reached_from_other_machines(engine: LocalEngine) -> None:
    assert engine.pid is not None
    workers = descendants(engine.pid)
    assert len(workers) == 2, workers
    sockets = {
        match[1]
        for pid in (engine.pid, *(worker.pid for worker in workers))
        for file in Path(f"/proc/{pid}/fd").iterdir()
        if (match := re.fullmatch(r"socket:\[(\d+)\]", _target(file)))
    }
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            place, state, inode = (line.split()[at] for at in (1, 3, 9))
            if state == "0A" and inode in sockets:
                listening.append(place.partition(":")[0])
    assert listening
    assert set(listening) == {"0100007F"}


def _target(file: Path) -> str:
    try:
        return str(file.readlink())
    except OSError:  # closed meanwhile
        return ""


@marked
def test_when_one_process_is_killed_all_end_and_others_answer(engine: LocalEngine) -> None:
    request = GenerationRequest(tuple(PROMPTS[2]), 12)
    expected = answered(engine, request)
    assert engine.pid is not None
    before: list[Process] = descendants(engine.pid)

    async def killed_meanwhile() -> None:
        # At random from all tokens, so that the end of a turn is unlikely to come before.
        long = replace(request, max_tokens=400, temperature=5.0)
        async with aclosing(engine.stream(long)) as stream:
            await anext(stream)
            os.kill(before[-1].pid, signal.SIGKILL)
            async for _ in stream:
                pass

    with pytest.raises(ChildDied):
        asyncio.run(killed_meanwhile())
    until(lambda: not any(each.alive for each in before), "an end of all")
    until(lambda: engine.card.state is EngineState.READY, "others")
    assert answered(engine, request) == expected
    assert engine.load.restarts == 1
    after = descendants(engine.pid)
    engine.close()
    until(lambda: not any(each.alive for each in after), "an end of these too")


@marked
def test_a_model_that_cannot_be_cut_says_why(bases: dict[str, BaseModel], tmp_path: Path) -> None:
    settings = EngineSettings(tmp_path, device="cpu", threads=1, tensor_parallel=3)
    engine = make_engine(str(bases["llama"].folder), settings)
    engine.start()
    try:
        until(lambda: engine.card.state is EngineState.FAILED, "a failure")
        assert "4 heads of queries and 2 of keys" in engine.card.reason
    finally:
        engine.close()
