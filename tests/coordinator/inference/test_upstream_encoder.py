"""Texts are spread over nodes, and a node that fails costs none of them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest

from coordinator.inference.encoder import Encoded
from coordinator.inference.engine import EngineState, ServedAdapter
from coordinator.inference.upstream_encoder import PASSAGES, PIECE, UpstreamEncoder
from coordinator.inference.upstream_nodes import Patience
from coordinator.inference.upstream_wire import parse_nodes
from shared.errors import ChildDied, DataError, EngineBusy, EngineError, ModelError
from shared.models.adapter import Adapter, AdapterShape
from shared.types import Digest
from tests.support.brokers import eventually
from tests.support.encoders import BASE, FEATURES, embedded
from tests.support.fake_nodes import MODEL, Answer, Call, FakeNode

# As in test_upstream_engine: a fake node may leave its side of a socket to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)

QUICK = Patience(check=0.1, longest_check=0.2, listing=10.0, first=30.0)
LONG_S = 30.0
TEXTS = [f"text number {number}" for number in range(3 * PIECE + 5)]
ENTRY = {"id": MODEL, "owned_by": "llmos", "state": "ready"}
MODELS = {"data": [ENTRY | {"base": BASE, "features": FEATURES, "max_tokens": 128}]}
CLOSE = {"Connection": "close"}


def rows(texts: Sequence[str], *, coded: bool, scale: float = 3.0) -> list[dict[str, Any]]:
    found = []
    for index, text in enumerate(texts):
        row = scale * embedded(text)
        given = base64.b64encode(row.astype("<f4").tobytes()).decode() if coded else row.tolist()
        found.append({"index": index, "embedding": given})
    return found[::-1]  # their order is their index's


def told(texts: Sequence[str], *, coded: bool = True) -> dict[str, Any]:
    tokens = sum(len(text.split()) for text in texts)
    return {"data": rows(texts, coded=coded), "usage": {"prompt_tokens": tokens}}


async def embeds(call: Call) -> None:
    assert call.path == "/v1/embeddings"
    assert call.body["model"] == MODEL
    await call.answer(200, told(call.body["input"]), headers=CLOSE)


async def embeds_written_out(call: Call) -> None:
    await call.answer(200, told(call.body["input"], coded=False), headers=CLOSE)


async def aborts(call: Call) -> None:
    call.abort()


def answers(status: int, body: Any, **headers: str) -> Answer:
    async def answer(call: Call) -> None:
        spelt = {name.replace("_", "-"): value for name, value in headers.items()}
        await call.answer(status, body, headers=spelt | CLOSE)

    return answer


@contextmanager
def encoder_over(
    *behaviours: Answer, patience: Patience = QUICK, **options: Any
) -> Iterator[tuple[UpstreamEncoder, list[FakeNode]]]:
    with ExitStack() as stack:
        nodes = [stack.enter_context(FakeNode(each, models=MODELS)) for each in behaviours]
        urls = ",".join(node.url for node in nodes)
        encoder = UpstreamEncoder(parse_nodes(urls, "the-key"), MODEL, patience=patience, **options)
        stack.callback(encoder.close)
        encoder.start()
        assert eventually(
            lambda: all(each.offer or each.failures for each in encoder.health.values()),
            within_s=LONG_S,
        )
        yield encoder, nodes


def embed(encoder: UpstreamEncoder, texts: Sequence[str] = TEXTS) -> Encoded:
    return asyncio.run(encoder.embed(texts))


def right(encoded: Encoded, texts: Sequence[str] = TEXTS) -> bool:
    expected = np.stack([embedded(text) for text in texts])
    return bool(np.allclose(encoded.values, expected, atol=1e-6))


@pytest.mark.parametrize("way", [embeds, embeds_written_out])
def test_texts_are_spread_over_nodes_and_come_back_in_their_order(way: Answer) -> None:
    with encoder_over(way, way) as (encoder, nodes):
        encoded = embed(encoder)
        assert right(encoded)
        assert encoded.tokens == 3 * len(TEXTS)
        assert [len(node.calls) for node in nodes] == [2, 2]
        given = [text for node in nodes for call in node.calls for text in call.body["input"]]
        assert sorted(given) == sorted(TEXTS)
        assert nodes[0].calls[0].headers["authorization"] == "Bearer the-key"
        assert encoder.outstanding == dict.fromkeys((node.name for node in nodes), 0)


def test_the_card_is_what_the_nodes_tell() -> None:
    with encoder_over(embeds, embeds) as (encoder, _):
        card = encoder.card
        assert (card.name, card.state, card.base) == (MODEL, EngineState.READY, BASE)
        assert (card.features, card.max_tokens, card.reads_answers) == (FEATURES, 128, False)
    with encoder_over(embeds) as (encoder, (node,)):
        node.models_status = 500
        assert eventually(lambda: encoder.card.state is EngineState.FAILED, within_s=LONG_S)
        assert node.name in encoder.card.reason


@pytest.mark.parametrize(
    "failing",
    [
        aborts,
        answers(500, {"error": {"message": "out of memory"}}),
        answers(429, {}, retry_after="3"),
        answers(200, b"{"),
        answers(200, {"data": []}),
        answers(200, told(["one"] * 2)),
        answers(200, {"data": [{"index": 0, "embedding": "!"}], "usage": {"prompt_tokens": 1}}),
        answers(200, {"data": [{"index": 0, "embedding": [0.0]}], "usage": {"prompt_tokens": 1}}),
    ],
    ids=["aborts", "500", "429", "half", "none", "two", "no-base64", "no-length"],
)
def test_what_one_node_fails_at_another_answers(failing: Answer) -> None:
    with encoder_over(failing, embeds) as (encoder, _):
        for text in ("one", "two", "three"):
            assert right(embed(encoder, [text]), [text])


def test_a_node_that_is_gone_costs_nothing_and_none_at_all_says_where_it_was_looked_for() -> None:
    with encoder_over(embeds, embeds) as (encoder, nodes):
        nodes[0].shut()
        assert right(embed(encoder))
        nodes[1].shut()
        with pytest.raises((EngineBusy, ChildDied), match=nodes[1].name):
            embed(encoder)
        nodes[0].open()
        assert eventually(lambda: encoder.card.state is EngineState.READY, within_s=LONG_S)
        assert right(embed(encoder))


def test_a_node_that_says_nothing_is_left_for_another() -> None:
    async def hangs(call: Call) -> None:
        await call.gone()

    patience = Patience(check=0.1, longest_check=0.2, listing=10.0, first=0.3)
    with encoder_over(hangs, embeds, patience=patience) as (encoder, _):
        assert right(embed(encoder, ["a", "b"]), ["a", "b"])
        assert right(embed(encoder, ["c"]), ["c"])


def test_what_all_refuse_is_an_error_in_their_words_without_the_key() -> None:
    refusal = answers(400, {"error": {"message": "input: the-key is empty"}})
    with encoder_over(refusal, refusal) as (encoder, nodes):
        with pytest.raises(DataError, match=r"input: \.\.\. is empty"):
            embed(encoder, ["a"])
        assert sum(len(node.calls) for node in nodes) == 1
    busy = answers(429, {"error": {"message": "later"}}, retry_after="7")
    with encoder_over(busy) as (encoder, _), pytest.raises(EngineBusy) as raised:
        embed(encoder, ["a"])
    assert raised.value.retry_after_s == 7
    with (
        encoder_over(answers(200, b"[1]")) as (encoder, (node,)),
        pytest.raises(EngineError, match=node.name),
    ):
        embed(encoder, ["a"])


def test_more_texts_than_may_wait_are_refused_and_whoever_leaves_makes_room() -> None:
    async def hangs(call: Call) -> None:
        await call.gone()
        node.dropped.set()

    with encoder_over(hangs, max_waiting=5) as (encoder, (node,)):

        async def leave() -> None:
            task = asyncio.create_task(encoder.embed(["a"] * 5))
            assert await asyncio.to_thread(eventually, lambda: bool(node.calls), within_s=LONG_S)
            with pytest.raises(EngineBusy, match="5 texts wait"):
                await encoder.embed(["b"])
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(leave())
        assert node.dropped.wait(LONG_S)
        node.answer = embeds
        assert right(embed(encoder, ["b"] * 5), ["b"] * 5)


def test_closing_tells_whoever_waits() -> None:
    async def hangs(call: Call) -> None:
        await call.gone()

    with encoder_over(hangs) as (encoder, (node,)):

        async def closed() -> None:
            task = asyncio.create_task(encoder.embed(["a"]))
            assert await asyncio.to_thread(eventually, lambda: bool(node.calls), within_s=LONG_S)
            await asyncio.to_thread(encoder.close)
            with pytest.raises(EngineError, match="shutting down"):
                await task

        asyncio.run(closed())
        with pytest.raises(EngineError, match="shutting down"):
            embed(encoder, ["a"])


def head(base: Digest = BASE) -> Adapter:
    shape = AdapterShape(features=FEATURES, method="none", labels=("yes", "no"))
    return Adapter.initial(shape, base, seed=1)


def test_heads_are_computed_here_on_what_the_nodes_embed() -> None:
    with encoder_over(embeds, embeds) as (encoder, nodes):
        adapter = head()
        served = ServedAdapter("run", adapter.to_bytes())
        got = asyncio.run(encoder.classify(TEXTS, served))
        expected = adapter.logits(np.stack([embedded(text) for text in TEXTS]))
        np.testing.assert_allclose(got.values, expected, atol=1e-4)
        before = sum(len(node.calls) for node in nodes)
        with pytest.raises(ModelError, match="trained on the base"):
            asyncio.run(
                encoder.classify(["a"], ServedAdapter("r", head(Digest("c" * 64)).to_bytes()))
            )
        assert sum(len(node.calls) for node in nodes) == before


async def finds(call: Call) -> None:
    """The word behind "is" of every passage; the longer the passage, the better."""
    assert call.path == "/v1/tasks/answer"
    body = call.body
    found = []
    for number, passage in enumerate(body["passages"]):
        if (at := passage.find(" is ")) >= 0:
            place = {"passage": number, "start": at + 4, "end": len(passage)}
            found.append(place | {"text": passage[at + 4 :], "score": float(len(passage))})
    found.sort(key=lambda row: -row["score"])
    await call.answer(200, {"data": found[: body["answers"]]}, headers=CLOSE)


def test_passages_are_spread_over_readers_and_the_best_spans_of_all_are_given() -> None:
    passages = [f"{'word ' * number}it is {number}" for number in range(2 * PASSAGES + 1)]
    with encoder_over(finds, finds, reads=True) as (encoder, nodes):
        spans = asyncio.run(encoder.read("what?", passages, answers=3, threshold=None))
        assert [span.text for span in spans] == ["8", "7", "6"]
        assert [span.passage for span in spans] == [8, 7, 6]
        assert all(passages[s.passage][s.start : s.end] == s.text for s in spans)
        assert all(node.calls for node in nodes)
        assert json.loads(json.dumps(nodes[0].calls[0].body))["threshold"] is None
        with pytest.raises(ModelError, match="does not embed"):
            embed(encoder, ["a"])
    outside = answers(200, {"data": [{"passage": 0, "start": 0, "end": 99, "score": 1.0}]})
    with (
        encoder_over(outside, reads=True) as (encoder, _),
        pytest.raises(EngineError, match="no answer"),
    ):
        asyncio.run(encoder.read("what?", ["short"], answers=1))
    with encoder_over(embeds) as (encoder, _), pytest.raises(ModelError):
        asyncio.run(encoder.read("what?", ["a"], answers=1))
