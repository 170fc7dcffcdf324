"""A key that is narrowed asks the models, tasks and collections it names, and hears of no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.inference.encoder import EncoderCard
from coordinator.inference.engine import EngineState
from coordinator.inference.text_services import TextServices
from coordinator.retrieval.lance_vectors import LanceVectors
from coordinator.retrieval.library import Library
from tests.support.coordinator_api import Api
from tests.support.encoders import WordEncoder

MESSAGES = [{"role": "user", "content": "hi"}]
DOCUMENTS = [{"id": "1", "text": "the sky is blue"}]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    encoder = WordEncoder()
    texts = TextServices(
        encoder=encoder,
        reader=WordEncoder(EncoderCard("reads", EngineState.READY, reads_answers=True)),
        library=Library(encoder, lambda: LanceVectors(tmp_path / "collections")),
    )
    api = Api(tmp_path, texts)
    yield api
    api.store.close()


class Key:
    """Asks under ``/v1`` with a key of its own."""

    def __init__(self, api: Api, **scopes: list[str]) -> None:
        secret = api.make_key(f"key-{len(api.store.api_keys())}", **scopes)["key"]
        self._headers = {"Authorization": f"Bearer {secret}"}
        self._api = api

    def ask(self, method: str, path: str, body: object = None) -> Any:
        return self._api.client.request(method, f"/v1{path}", json=body, headers=self._headers)

    def statuses(self) -> dict[str, int]:
        """What becomes of each kind of question."""
        chat = {"model": "scripted", "messages": MESSAGES, "max_tokens": 1}
        wanted: dict[str, tuple[str, str, Any]] = {
            "chat": ("POST", "/chat/completions", chat),
            "adapter": ("POST", "/chat/completions", chat | {"model": "scripted:run"}),
            "complete": (
                "POST",
                "/completions",
                {"model": "scripted", "prompt": "a", "max_tokens": 1},
            ),
            "show": ("GET", "/models/scripted", None),
            "embed": ("POST", "/embeddings", {"model": "words", "input": "a"}),
            "recommend": ("POST", "/tasks/recommend", {"history": ["a"], "items": ["b"]}),
            "answer": ("POST", "/tasks/answer", {"question": "a", "passages": ["b is c"]}),
            "add": ("POST", "/collections/manuals/documents", {"documents": DOCUMENTS}),
            "search": ("POST", "/collections/manuals/search", {"query": "sky"}),
            "card": ("GET", "/collections/manuals", None),
            "read": ("POST", "/tasks/answer", {"question": "sky", "collection": "manuals"}),
            "rank": ("POST", "/tasks/recommend", {"history": ["sky"], "collection": "manuals"}),
            "remove": ("DELETE", "/collections/manuals/documents", {"ids": ["1"]}),
            "drop": ("DELETE", "/collections/manuals", None),
        }
        return {name: self.ask(*call).status_code for name, call in wanted.items()}


WITH_MODELS = {"chat", "adapter", "complete", "show"}
WITH_ENCODER = {"embed", "recommend", "add", "search", "rank"}
WITH_READER = {"answer"}
WITH_BOTH = {"read"}
WITH_COLLECTION = {"add", "search", "card", "read", "rank", "remove", "drop"}
WITHOUT_MODEL = {"card", "remove", "drop"}
ALL = WITH_MODELS | WITH_ENCODER | WITH_READER | WITH_BOTH | WITH_COLLECTION


@pytest.mark.parametrize(
    ("scopes", "opened"),
    [
        ({}, ALL),
        ({"models": ["scripted"]}, {"chat", "complete", "show"} | WITHOUT_MODEL),
        ({"models": ["scripted:*"]}, {"adapter"} | WITHOUT_MODEL),
        ({"models": ["script*"]}, WITH_MODELS | WITHOUT_MODEL),
        ({"models": ["words"]}, WITH_ENCODER | WITHOUT_MODEL),
        ({"models": ["reads"]}, WITH_READER | WITHOUT_MODEL),
        ({"models": ["words", "reads"]}, ALL - WITH_MODELS),
        ({"models": ["*"]}, ALL),
        ({"tasks": ["classify"]}, ALL - {"recommend", "answer", "read", "rank"}),
        ({"tasks": ["answer"]}, ALL - {"recommend", "rank"}),
        ({"tasks": ["recommend"]}, ALL - {"answer", "read"}),
        ({"collections": ["manuals"]}, ALL),
        ({"collections": ["man*"]}, ALL),
        ({"collections": ["others"]}, ALL - WITH_COLLECTION),
    ],
)
def test_what_a_scope_opens(api: Api, scopes: dict[str, list[str]], opened: set[str]) -> None:
    key = Key(api, **scopes)
    statuses = key.statuses()
    assert set(statuses) == ALL
    assert {name for name, status in statuses.items() if status != 403} == opened, statuses
    if "add" not in opened:
        # Where nothing could be put there is nothing: 404, and not a refusal.
        statuses = {name: status for name, status in statuses.items() if status != 404}
    assert set(statuses.values()) <= {200, 403}, statuses


def test_classifying_takes_its_task_and_the_encoder(api: Api) -> None:
    for scopes, status in (
        ({"tasks": ["answer"]}, 403),
        ({"models": ["reads"]}, 403),
        ({"tasks": ["classify"], "models": ["words"]}, 422),  # let in: there are no runs here
    ):
        assert Key(api, **scopes).ask("POST", "/tasks/classify", {"input": "a"}).status_code == (
            status
        )


def test_models_and_collections_that_a_key_is_not_for_are_not_listed(api: Api) -> None:
    every = Key(api)
    assert [each["id"] for each in every.ask("GET", "/models").json()["data"]] == [
        "scripted",
        "words",
        "reads",
    ]
    narrow = Key(api, models=["words"], collections=["a*"])
    assert [each["id"] for each in narrow.ask("GET", "/models").json()["data"]] == ["words"]
    for name, status in (("a1", 200), ("b1", 403)):
        answer = narrow.ask("POST", f"/collections/{name}/documents", {"documents": DOCUMENTS})
        assert answer.status_code == status
    listed = narrow.ask("GET", "/collections").json()["data"]
    assert [each["name"] for each in listed] == ["a1"]


def test_whether_there_is_such_a_model_is_not_told_to_a_key_that_is_not_for_it(api: Api) -> None:
    narrow = Key(api, models=["words"])
    told = set()
    for model in ("scripted", "nothing"):
        answer = narrow.ask(
            "POST", "/chat/completions", {"model": model, "messages": MESSAGES, "max_tokens": 1}
        )
        assert answer.status_code == 403
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == ("model", "access_denied.not_permitted")
        told.add(error["message"].replace(model, "MODEL"))
        assert narrow.ask("GET", f"/models/{model}").status_code == 403
    assert told == {"model: this key is for the models words, and not for 'MODEL'"}
    assert api.engine.served == []
