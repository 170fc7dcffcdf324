"""Measure what each pass over a graph did: size, speed, and whether it still says the same."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from coordinator.registry.samples import TOPICS
from shared.extras import require
from shared.models.graph_session import open_graph, open_tokenizer
from shared.models.manifest import Pass
from shared.types import FloatMatrix

Effort = Literal["full", "quick"]

_LENGTHS: Final = (32, 128)


@dataclass(frozen=True, slots=True)
class Stage:
    """A graph as one pass left it."""

    name: str
    graph: Path
    compared_with: str
    """Name of the stage whose answers it should give."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """How much is measured."""

    rounds: int
    """In each of them every graph has its turn, so that a busy minute is shared by all."""
    runs: int
    """Of one graph in a row, as a device would; the first of them warms the caches."""
    texts: int
    """Of each topic."""


_PLANS: Final[dict[Effort, _Plan]] = {
    "full": _Plan(rounds=8, runs=11, texts=8),
    "quick": _Plan(rounds=3, runs=4, texts=3),
}


def measure(
    stages: Sequence[Stage], tokenizer: Path, *, vocabulary: int, max_tokens: int, effort: Effort
) -> tuple[Pass, ...]:
    """Return one row per stage, in their order.

    Times are medians for one text on one thread. Agreement is the share of sample texts whose
    nearest topic is the same as with ``compared_with``; a topic's place is the mean of its
    texts' features there.

    Raises:
        ModelError: the tokenizer or a graph cannot be opened.
    """
    onnx: Any = require("onnx", extra="coordinator")
    plan = _PLANS[effort]
    sessions = {stage.name: open_graph(stage.graph) for stage in stages}
    times = {
        length: _median_ms(sessions, vocabulary, min(length, max_tokens), plan)
        for length in _LENGTHS
    }
    texts = [text for topic in TOPICS.values() for text in topic[: plan.texts]]
    reader = open_tokenizer(tokenizer, max_tokens)
    tokens = [encoding.ids for encoding in reader.encode_batch(texts)]
    features = {name: _features(session, tokens) for name, session in sessions.items()}
    return tuple(
        Pass(
            name=stage.name,
            nodes=len(onnx.load(stage.graph, load_external_data=False).graph.node),
            bytes=stage.graph.stat().st_size,
            p50_ms_32=round(times[32][stage.name], 3),
            p50_ms_128=round(times[128][stage.name], 3),
            agreement=agreement(features[stage.name], features[stage.compared_with], plan.texts),
        )
        for stage in stages
    )


def agreement(features: FloatMatrix, reference: FloatMatrix, texts: int) -> float:
    """Return the share of rows that are nearest to the same topic as in ``reference``.

    Args:
        features: (topics · texts, F), length-normalised, topic by topic.
        reference: The same texts' features of another model.
        texts: Of each topic.
    """
    places = reference.reshape(-1, texts, reference.shape[1]).mean(axis=1)
    nearest = (features @ places.T).argmax(axis=1)
    return float(np.mean(nearest == (reference @ places.T).argmax(axis=1)))


def _median_ms(
    sessions: dict[str, Any], vocabulary: int, tokens: int, plan: _Plan
) -> dict[str, float]:
    rng = np.random.default_rng(0)
    feeds = {
        "input_ids": rng.integers(0, vocabulary, (1, tokens)),
        "attention_mask": np.ones((1, tokens), np.int64),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(plan.rounds):
        for name, session in sessions.items():
            for run in range(plan.runs):
                start = time.perf_counter()
                session.run(["features"], feeds)
                if run:
                    seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * float(np.median(each)) for name, each in seconds.items()}


def _features(session: Any, tokens: Sequence[list[int]]) -> FloatMatrix:
    rows = [
        session.run(
            ["features"],
            {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)},
        )[0]
        for ids in tokens
    ]
    return np.concatenate(rows)
