"""Serving a language model against what people would run otherwise, in one run.

Every way answers the same requests greedily: prompts and answers of mixed length, drawn from a
seed, on weights drawn from a seed. The ways take turns, several times over, so that whatever else
the machine does meets all of them; a figure is the median of its turns.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from coordinator.inference.engine import (
    Engine,
    EngineState,
    Finished,
    GenerationRequest,
    ServedAdapter,
)
from coordinator.inference.engines import EngineSettings, make_engine
from shared.errors import EngineError
from shared.models.adapter import Adapter, AdapterShape
from shared.models.architecture import read_architecture
from shared.models.encoder import find_base_model
from shared.processes import Child
from sim.bench.bars import Bar, told
from sim.bench.serving_baselines import SHAPES

REQUESTS: Final = 32
PROMPT_TOKENS: Final = (16, 96)
ANSWER_TOKENS: Final = (32, 96)
ADAPTERS: Final = 4
RANK: Final = 8
LOAD_S: Final = 1800.0

GENERATE: Final = "generate, one by one"
STATIC: Final = "generate, static batch"
CONTINUOUS: Final = "transformers' continuous batching"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests as every way gets them."""

    prompts: Sequence[Sequence[int]]
    lengths: Sequence[int]

    @classmethod
    def drawn(cls, requests: int, *, vocabulary: int, seed: int) -> Workload:
        """Prompts of random tokens."""
        rng = np.random.default_rng(seed)
        sizes = rng.integers(PROMPT_TOKENS[0], PROMPT_TOKENS[1] + 1, size=requests)
        lengths = rng.integers(ANSWER_TOKENS[0], ANSWER_TOKENS[1] + 1, size=requests)
        prompts = [rng.integers(1, vocabulary, size=size).tolist() for size in sizes]
        return cls(prompts, lengths.tolist())


@dataclass(slots=True)
class Turn:
    """What one way did with a workload once."""

    seconds: float
    answers: list[list[int] | str]
    generated: int
    first_s: list[float] = field(default_factory=list)
    """From asking to the first piece, for each request; empty where it cannot be told."""

    @property
    def rate(self) -> float:
        """Generated tokens per second."""
        return self.generated / self.seconds


Way = Callable[[], Turn]


def bench_serving(
    shape: str,
    *,
    concurrency: Sequence[int],
    precisions: Sequence[str],
    device: str,
    threads: int,
    turns: int,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Measure every way at every concurrency.

    Args:
        shape: A name in :data:`~sim.bench.serving_baselines.SHAPES`.
        concurrency: How many requests are under way at once.
        precisions: Of our engine on the processor.
        device: ``cpu`` or ``cuda``.
        threads: Arithmetic threads of every way.
        turns: How often each is measured.
        seed: Of weights and requests.
        progress: Told what is being measured.

    Returns:
        JSON values: ``bars`` with what was promised, and the figures behind them.

    Raises:
        LlmOsError: something needed is missing.
    """
    dtype = "float32" if device == "cpu" else "bfloat16"
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary) / shape
        baselines = Child("sim.bench.serving_baselines", threads=threads)
        stack.callback(baselines.close)
        progress("drawing weights")
        baselines.call("make", folder=str(folder), shape=shape, seed=seed, dtype=dtype)
        model = {"folder": str(folder), "device": device, "dtype": dtype, "threads": threads}
        work = Workload.drawn(REQUESTS, vocabulary=SHAPES[shape].vocabulary, seed=seed)
        engines = {}
        for precision in precisions if device == "cpu" else ("bf16",):
            progress(f"loading our engine, {precision}")
            settings = EngineSettings(
                precision=precision, threads=threads, device=device, models=Path(temporary)
            )
            engines[precision] = stack.enter_context(_ready(str(folder), settings))
        ways: dict[tuple[str, int], Way] = {}
        for at_once in concurrency:
            if at_once == 1:
                ways[GENERATE, 1] = _asking(baselines, "one by one", model, work)
            else:
                ways[STATIC, at_once] = _asking(
                    baselines, "static batch", model, work, concurrency=at_once
                )
            ways[CONTINUOUS, at_once] = _asking(
                baselines, "continuous batching", model, work, concurrency=at_once
            )
            for precision, engine in engines.items():
                ways[f"llmos {precision}", at_once] = _streaming(engine, work, at_once)
        if GENERATE not in {name for name, _ in ways}:
            ways[GENERATE, 1] = _asking(baselines, "one by one", model, work)
        most = max(concurrency)
        if device == "cpu" and "fp32" in engines:
            adapters = _adapters(str(folder), seed)
            ways["llmos fp32, four adapters", most] = _streaming(
                engines["fp32"], work, most, adapters
            )
        measured = _in_turns(ways, turns, progress)
        peak = _peak_bandwidth(baselines, model) if device == "cuda" else None
    return _result(
        shape,
        measured,
        most,
        facts={
            "device": device,
            "threads": threads,
            "turns": turns,
            "seed": seed,
            "requests": REQUESTS,
            "prompt_tokens": PROMPT_TOKENS,
            "answer_tokens": ANSWER_TOKENS,
        },
        peak=peak,
    )


@contextmanager
def _ready(folder: str, settings: EngineSettings) -> Iterator[Engine]:
    """An engine that has loaded its model."""
    engine = make_engine(folder, settings)
    engine.start()
    try:
        deadline = time.monotonic() + LOAD_S
        while engine.card.state is EngineState.LOADING and time.monotonic() < deadline:
            time.sleep(0.1)
        if engine.card.state is not EngineState.READY:
            raise EngineError(f"the engine is {engine.card.state}: {engine.card.reason}")
        yield engine
    finally:
        engine.close()


def _asking(
    child: Child, way: str, model: Mapping[str, Any], work: Workload, **options: int
) -> Way:
    def turn() -> Turn:
        said = child.call(way, model=model, prompts=work.prompts, lengths=work.lengths, **options)
        return Turn(said["seconds"], said["tokens"], sum(map(len, said["tokens"])))

    return turn


def _streaming(
    engine: Engine, work: Workload, at_once: int, adapters: Sequence[ServedAdapter] = ()
) -> Way:
    """Our engine, through the very interface that the API uses."""

    async def answer(number: int) -> tuple[str, int, float]:
        adapter = adapters[number % len(adapters)] if adapters else None
        request = GenerationRequest(
            prompt=tuple(work.prompts[number]),
            max_tokens=work.lengths[number],
            adapter=adapter,
        )
        asked, first, text = time.perf_counter(), math.nan, ""
        async for event in engine.stream(request):
            if math.isnan(first):
                first = time.perf_counter() - asked
            if isinstance(event, Finished):
                return text, event.completion_tokens, first
            text += event.text
        raise AssertionError("a stream without an end")

    async def all_of_them() -> list[tuple[str, int, float]]:
        gate = asyncio.Semaphore(at_once)

        async def in_turn(number: int) -> tuple[str, int, float]:
            async with gate:
                return await answer(number)

        return list(await asyncio.gather(*map(in_turn, range(len(work.prompts)))))

    def turn() -> Turn:
        began = time.perf_counter()
        answers = asyncio.run(all_of_them())
        seconds = time.perf_counter() - began
        texts: list[list[int] | str] = [text for text, _, _ in answers]
        generated = sum(tokens for _, tokens, _ in answers)
        return Turn(seconds, texts, generated, [first for _, _, first in answers])

    return turn


def _adapters(folder: str, seed: int) -> list[ServedAdapter]:
    """Different ones, so that a batch is truly mixed."""
    base = find_base_model(folder)
    built = read_architecture(base)
    shape = AdapterShape(
        features=built.features,
        method="lora",
        rank=RANK,
        alpha=2.0 * RANK,
        slots=built.slots("lora", built.layers),
    )
    made = []
    for number in range(ADAPTERS):
        start = Adapter.initial(shape, base.digest, seed=seed + number)
        rng = np.random.default_rng(seed + number)
        moved = start.moved(rng.normal(scale=0.02, size=start.parameters))
        made.append(ServedAdapter(f"run-{number}", moved.to_bytes()))
    return made


def _in_turns(
    ways: Mapping[tuple[str, int], Way], turns: int, progress: Progress
) -> dict[tuple[str, int], list[Turn]]:
    measured: dict[tuple[str, int], list[Turn]] = {key: [] for key in ways}
    for number in range(turns + 1):
        for (name, at_once), way in ways.items():
            round_ = f"turn {number} of {turns}" if number else "warming up"
            progress(f"{round_}: {name}, {at_once} at once")
            turn = way()
            if number:  # the first of all pays for caches, compilation and adapters
                measured[name, at_once].append(turn)
    return measured


def _peak_bandwidth(child: Child, model: Mapping[str, Any]) -> float:
    """Bytes per second that the device's memory gives, measured by copying."""
    return float(child.call("bandwidth", model=model))


def _result(
    shape: str,
    measured: Mapping[tuple[str, int], Sequence[Turn]],
    most: int,
    *,
    facts: Mapping[str, Any],
    peak: float | None,
) -> dict[str, Any]:
    rates = {key: statistics.median(turn.rate for turn in turns) for key, turns in measured.items()}
    alone = rates[GENERATE, 1]
    bars = []
    for precision, wanted in (("fp32", 5.0), ("int4", 8.0)):
        if (rate := rates.get((f"llmos {precision}", most))) is not None:
            bars.append(Bar(f"times generate one by one, {precision}", rate / alone, wanted))
    if (ours := rates.get(("llmos fp32", most))) is not None:
        theirs = rates[CONTINUOUS, most]
        bars.append(Bar("times transformers' continuous batching, fp32", ours / theirs, 1.5))
        mixed = rates["llmos fp32, four adapters", most]
        bars.append(Bar("cost of four adapters mixed", 1 - mixed / ours, 0.05, at_least=False))
        if (solo := measured.get(("llmos fp32", 1))) is not None:
            company = measured["llmos fp32", most][0].answers
            same = sum(a == b for a, b in zip(solo[0].answers, company, strict=True))
            bars.append(Bar("answers that are the same alone and in company", same / REQUESTS, 1.0))
    rows = []
    for (name, at_once), turns in measured.items():
        first = [value for turn in turns for value in turn.first_s]
        row: dict[str, Any] = {
            "way": name,
            "concurrency": at_once,
            "tokens_per_s": round(rates[name, at_once], 1),
            "least": round(min(turn.rate for turn in turns), 1),
            "most": round(max(turn.rate for turn in turns), 1),
        }
        if first:
            row["first_token_s"] = {
                "p50": round(statistics.median(first), 4),
                "p99": round(float(np.quantile(first, 0.99)), 4),
            }
        if peak is not None:
            # Every step reads all weights once, for all requests under way together.
            weights = 2 * _parameters(shape)
            row["share_of_bandwidth"] = round(rates[name, at_once] / at_once * weights / peak, 3)
        rows.append(row)
    return told("serving", bars, shape=shape, **facts, rows=rows)


def _parameters(shape: str) -> int:
    """Weights that a step reads: of attention, feed-forward layers and the last product."""
    build = SHAPES[shape]
    head = build.hidden // build.heads
    attention = build.hidden * head * (2 * build.heads + 2 * build.kv_heads)
    return build.layers * (attention + 3 * build.hidden * build.inner) + (
        build.vocabulary * build.hidden
    )
