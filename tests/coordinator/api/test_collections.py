"""Passages go in, are found by meaning, and belong to whoever put them there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import coordinator.api.collections as routes
from coordinator.inference.front_desk import Caller
from coordinator.inference.text_services import TextServices
from coordinator.retrieval.lance_vectors import LanceVectors
from coordinator.retrieval.library import Library
from tests.support.encoders import FEATURES, WordEncoder
from tests.support.serving import TOKEN, serving, text_app

DOCUMENTS = [
    {"id": "1", "text": "the red car is fast", "metadata": {"page": 1}},
    {"id": "2", "text": "the blue house is old"},
]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    encoder = WordEncoder()
    library = Library(encoder, lambda: LanceVectors(tmp_path / "collections"))
    texts = TextServices(encoder=encoder, library=library)
    head = {"Authorization": f"Bearer {TOKEN}"}
    with (
        serving(text_app(texts)) as url,
        httpx.Client(base_url=url, headers=head, timeout=60) as client,
    ):
        yield client


def add(client: httpx.Client, name: str, documents: Any) -> httpx.Response:
    return client.post(f"/collections/{name}/documents", json={"documents": documents})


def search(client: httpx.Client, name: str, query: str, **more: Any) -> Any:
    answer = client.post(f"/collections/{name}/search", json={"query": query, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def test_what_was_added_is_found_by_its_words(client: httpx.Client) -> None:
    answer = add(client, "things", DOCUMENTS).json()
    assert answer["documents"] == 2
    assert answer["usage"]["prompt_tokens"] == 10
    hits = search(client, "things", "car red")
    assert [hit["id"] for hit in hits] == ["1", "2"]
    assert hits[0]["metadata"] == {"page": 1}
    assert hits[0]["text"] == "the red car is fast"
    assert hits[0]["score"] > hits[1]["score"]
    assert len(search(client, "things", "car red", top=1)) == 1


def test_the_same_id_again_replaces_also_within_one_request(client: httpx.Client) -> None:
    add(client, "things", DOCUMENTS)
    twice = [{"id": "1", "text": "first try"}, {"id": "1", "text": "a green tree"}]
    assert add(client, "things", twice).json()["documents"] == 2
    assert search(client, "things", "green tree", top=1)[0]["text"] == "a green tree"


def test_documents_and_collections_can_be_removed(client: httpx.Client) -> None:
    add(client, "things", DOCUMENTS)
    gone = client.request("DELETE", "/collections/things/documents", json={"ids": ["1", "x"]})
    assert gone.json()["deleted"] == 1
    assert [hit["id"] for hit in search(client, "things", "red car")] == ["2"]
    assert client.delete("/collections/things").json()["deleted"] is True
    answer = client.post("/collections/things/search", json={"query": "x"})
    assert answer.status_code == 404
    assert "'things'" in answer.json()["error"]["message"]
    assert client.delete("/collections/things").status_code == 404


def test_a_collection_says_which_encoder_it_is_of(client: httpx.Client) -> None:
    add(client, "things", DOCUMENTS)
    about = client.get("/collections/things").json()
    assert (about["encoder"], about["features"], about["documents"]) == ("b" * 64, FEATURES, 2)
    assert [each["name"] for each in client.get("/collections").json()["data"]] == ["things"]


def test_another_keys_collections_are_not_there(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(client, "things", DOCUMENTS)
    monkeypatch.setattr(routes, "caller_of", lambda _: Caller("somebody else"))
    assert client.get("/collections").json()["data"] == []
    assert client.get("/collections/things").status_code == 404
    assert add(client, "things", DOCUMENTS[:1]).json()["documents"] == 1
    monkeypatch.undo()
    assert client.get("/collections/things").json()["documents"] == 2


@pytest.mark.parametrize(
    ("field", "document"),
    [
        ("documents.0.text", {"id": "1", "text": ""}),
        ("documents.0.text", {"id": "1", "text": "x" * 40_000}),
        ("documents.0.text", {"id": "1", "text": "a\0b"}),
        ("documents.0.id", {"id": "", "text": "x"}),
        ("documents.0.id", {"id": "a\nb", "text": "x"}),
        ("documents.0.id", {"id": 7, "text": "x"}),
        ("documents.0.metadata", {"id": "1", "text": "x", "metadata": {"k": "v" * 20_000}}),
        ("documents.0.metadata", {"id": "1", "text": "x", "metadata": [1]}),
        ("documents.0.vector", {"id": "1", "text": "x", "vector": [0.5]}),
    ],
)
def test_a_document_that_cannot_be_kept_is_named(
    client: httpx.Client, field: str, document: Any
) -> None:
    answer = add(client, "things", [document])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert client.get("/collections").json()["data"] == []


@pytest.mark.parametrize(
    "body", [{}, {"query": ""}, {"query": "x", "top": 0}, {"query": "x", "top": 1000}]
)
def test_a_search_that_cannot_be_made_is_400(client: httpx.Client, body: Any) -> None:
    add(client, "things", DOCUMENTS)
    assert client.post("/collections/things/search", json=body).status_code == 400


def test_a_name_that_leads_elsewhere_is_refused(client: httpx.Client) -> None:
    answer = add(client, "..%2Fx", DOCUMENTS)
    assert answer.status_code in (400, 404)
