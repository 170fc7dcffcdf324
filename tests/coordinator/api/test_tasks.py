"""Texts are classified, questions answered and items recommended; what is wrong is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from coordinator.inference.encoder import EncoderCard
from coordinator.inference.engine import EngineState, ServedAdapter
from coordinator.inference.run_heads import Head
from coordinator.inference.text_services import TextServices
from coordinator.retrieval.lance_vectors import LanceVectors
from coordinator.retrieval.library import Library
from shared.errors import RunNotFound
from shared.models.adapter import Adapter, AdapterShape
from shared.types import RunId
from tests.support.encoders import BASE, FEATURES, WordEncoder, embedded
from tests.support.serving import TOKEN, serving, text_app

LABELS = ("animal", "vehicle", "plant")
SHAPE = AdapterShape(labels=LABELS, features=FEATURES)
WORDS = ("cat dog", "car bus", "tree rose")
HEAD = np.stack([embedded(words) for words in WORDS])
ADAPTER = Adapter(SHAPE, BASE, {"head.weight": HEAD, "head.bias": np.zeros(3, np.float32)})


def find_head(*, run: str | None = None, adapter: str | None = None) -> Head:
    if run not in (None, "r1") or adapter not in (None, ADAPTER.digest):
        raise RunNotFound(f"no run named {run}")
    served = ServedAdapter("r1", ADAPTER.to_bytes())
    return Head(RunId("r1"), ADAPTER.digest, served, temperature=2.0, calibrated=True)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    encoder = WordEncoder()
    reader = WordEncoder(EncoderCard("reads", EngineState.READY, reads_answers=True))
    texts = TextServices(
        encoder=encoder,
        reader=reader,
        library=Library(encoder, lambda: LanceVectors(tmp_path / "collections")),
        find_head=find_head,
    )
    head = {"Authorization": f"Bearer {TOKEN}"}
    with (
        serving(text_app(texts)) as url,
        httpx.Client(base_url=url, headers=head, timeout=60) as client,
    ):
        yield client


def ask(client: httpx.Client, task: str, **body: Any) -> Any:
    answer = client.post(f"/tasks/{task}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def problem(client: httpx.Client, task: str, status: int, **body: Any) -> Any:
    answer = client.post(f"/tasks/{task}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_texts_get_labels_with_calibrated_probabilities(client: httpx.Client) -> None:
    answer = ask(client, "classify", input=["a cat", "the bus"], run="r1")
    assert [row["label"] for row in answer["data"]] == ["animal", "vehicle"]
    logits = ADAPTER.logits(np.stack([embedded("a cat")]))[0].astype(np.float64) / 2.0
    wanted = np.exp(logits) / np.exp(logits).sum()
    row = answer["data"][0]
    assert row["probabilities"] == pytest.approx(dict(zip(LABELS, wanted, strict=True)))
    assert row["confidence"] == pytest.approx(wanted[0])
    assert next(iter(row["probabilities"])) == "animal"
    assert answer["calibrated"] is True
    assert (answer["run"], answer["adapter"]) == ("r1", ADAPTER.digest)
    assert answer["usage"]["total_tokens"] == 4


def test_one_text_by_the_adapters_digest_or_by_the_last_run(client: httpx.Client) -> None:
    for more in ({"adapter": ADAPTER.digest}, {}):
        (row,) = ask(client, "classify", input="a rose", **more)["data"]
        assert row["label"] == "plant"


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("input", {}),
        ("input", {"input": []}),
        ("input", {"input": ""}),
        ("input", {"input": ["x"] * 257}),
        ("adapter", {"input": "x", "adapter": "short"}),
        ("adapter", {"input": "x", "run": "r1", "adapter": ADAPTER.digest}),
        ("labels", {"input": "x", "labels": ["a", "b"]}),
    ],
)
def test_a_classification_that_cannot_be_made_is_named(
    client: httpx.Client, param: str, body: Any
) -> None:
    assert problem(client, "classify", 400, **body)["param"] == param


def test_an_unknown_run_or_model_is_404(client: httpx.Client) -> None:
    assert "r9" in problem(client, "classify", 404, input="x", run="r9")["message"]
    assert problem(client, "classify", 404, input="x", model="other")["param"] == "model"


def test_answers_come_from_given_passages_with_their_places(client: httpx.Client) -> None:
    passages = ["nothing here", "the colour is red today"]
    answer = ask(client, "answer", question="the colour ?", passages=passages)
    assert answer["answer"] == "red"
    (row,) = answer["data"]
    assert passages[row["passage"]][row["start"] : row["end"]] == row["text"] == "red"


def test_no_answer_is_none_unless_one_is_insisted_on(client: httpx.Client) -> None:
    asked = {"question": "what ?", "passages": ["it is red"]}
    answer = ask(client, "answer", **asked)
    assert answer["answer"] is None
    assert answer["data"] == []
    assert ask(client, "answer", **asked, threshold=None)["answer"] == "red"


def test_answers_come_from_retrieved_passages_and_name_the_document(client: httpx.Client) -> None:
    documents = [
        {"id": "cars", "text": "the colour of the car is red"},
        {"id": "houses", "text": "the age of the house is ninety"},
        {"id": "trees", "text": "a tree is green"},
    ]
    client.post("/collections/facts/documents", json={"documents": documents})
    answer = ask(client, "answer", question="the age of the house ?", collection="facts", top=2)
    assert answer["answer"] == "ninety"
    assert answer["data"][0]["document"] == "houses"
    assert [each["id"] for each in answer["retrieved"]] == ["houses", "cars"]


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("question", {"passages": ["x"]}),
        ("question", {"question": " ", "passages": ["x"]}),
        ("question", {"question": "x" * 2001, "passages": ["x"]}),
        ("passages", {"question": "x"}),
        ("passages", {"question": "x", "passages": ["x"], "collection": "facts"}),
        ("passages", {"question": "x", "passages": []}),
        ("passages", {"question": "x", "passages": ["x"] * 65}),
        ("passages", {"question": "x", "passages": ["x" * 90_000] * 5}),
        ("passages.0", {"question": "x", "passages": [""]}),
        ("collection", {"question": "x", "collection": "../x"}),
        ("answers", {"question": "x", "passages": ["x"], "answers": 0}),
        ("top", {"question": "x", "collection": "facts", "top": 65}),
    ],
)
def test_a_question_that_cannot_be_answered_is_named(
    client: httpx.Client, param: str, body: Any
) -> None:
    assert problem(client, "answer", 400, **body)["param"] == param


def test_items_like_the_history_come_first_and_known_ones_are_left_out(
    client: httpx.Client,
) -> None:
    items = ["blue house", "red car", "red bus", "green tree"]
    answer = ask(client, "recommend", history=["red car"], items=items, top=2)
    assert next(row["index"] for row in answer["data"]) == 2
    assert "red car" not in [row["text"] for row in answer["data"]]
    kept = ask(client, "recommend", history=["red car"], items=items, exclude_history=False)
    assert kept["data"][0]["text"] == "red car"
    assert kept["data"][0]["score"] == pytest.approx(1.0, abs=1e-5)
    assert ask(client, "recommend", history=["red car"], items=items, top=2) == answer


def test_what_was_seen_last_counts_most_and_weights_count_besides(client: httpx.Client) -> None:
    items = ["house", "car"]
    newest = ask(client, "recommend", history=["old house", "new car"], half_life=1.0, items=items)
    assert [row["text"] for row in newest["data"]] == ["car", "house"]
    liked = ask(
        client, "recommend", history=["old house", "new car"], weights=[5.0, 1.0], items=items
    )
    assert [row["text"] for row in liked["data"]] == ["house", "car"]


def test_items_may_come_from_a_collection(client: httpx.Client) -> None:
    texts = ["red car", "red bus", "red car fast", "blue house"]
    documents = [{"id": f"d{at}", "text": text} for at, text in enumerate(texts)]
    client.post("/collections/shop/documents", json={"documents": documents})
    rows = ask(client, "recommend", history=["red car"], collection="shop", top=2)["data"]
    assert [row["id"] for row in rows] == ["d2", "d1"]
    mixed = ask(client, "recommend", history=["red car"], collection="shop", top=2, diversity=0.9)
    assert [row["id"] for row in mixed["data"]] == ["d2", "d3"]


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("history", {"items": ["x"]}),
        ("history", {"history": [], "items": ["x"]}),
        ("history", {"history": ["x"] * 201, "items": ["x"]}),
        ("items", {"history": ["x"]}),
        ("items", {"history": ["x"], "items": ["x"], "collection": "shop"}),
        ("items", {"history": ["x"], "items": ["x"] * 1001}),
        ("weights", {"history": ["x"], "items": ["x"], "weights": [1.0, 2.0]}),
        ("weights", {"history": ["x"], "items": ["x"], "weights": [0.0]}),
        ("weights.0", {"history": ["x"], "items": ["x"], "weights": [-1.0]}),
        ("half_life", {"history": ["x"], "items": ["x"], "half_life": 0.0}),
        ("diversity", {"history": ["x"], "items": ["x"], "diversity": 2.0}),
        ("top", {"history": ["x"], "items": ["x"], "top": 0}),
    ],
)
def test_a_recommendation_that_cannot_be_made_is_named(
    client: httpx.Client, param: str, body: Any
) -> None:
    assert problem(client, "recommend", 400, **body)["param"] == param
