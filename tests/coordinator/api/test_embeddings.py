"""The unmodified OpenAI client gets embeddings, and refusals name the field."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from coordinator.api.embeddings import INPUTS_LIMIT
from coordinator.inference.text_services import TextServices
from shared.errors import EngineBusy
from tests.support.encoders import FEATURES, WordEncoder, embedded
from tests.support.serving import TOKEN, serving, text_app


class BusyEncoder(WordEncoder):
    """Has no room."""

    async def embed(self, texts: Any) -> Any:
        raise EngineBusy("4096 texts wait already")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(text_app(TextServices(encoder=WordEncoder()))) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client:
        yield client


def test_texts_are_embedded_in_their_order_and_their_tokens_counted(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="words", input=["red car", "a blue house"])
    assert [row.index for row in answer.data] == [0, 1]
    assert np.allclose(answer.data[0].embedding, embedded("red car"))
    assert np.allclose(answer.data[1].embedding, embedded("a blue house"))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 5
    assert answer.model == "words"


def test_one_text_may_stand_alone_and_numbers_may_be_spelt_out(url: str) -> None:
    head = {"Authorization": f"Bearer {TOKEN}"}
    for coding in ("float", "base64", None):
        body = {"model": "words", "input": "red car", "encoding_format": coding}
        (row,) = httpx.post(f"{url}/embeddings", json=body, headers=head).json()["data"]
        values = row["embedding"]
        if coding == "base64":
            values = np.frombuffer(base64.b64decode(values), "<f4")
        assert np.allclose(values, embedded("red car"))


def test_dimensions_may_say_what_there_is_and_nothing_else(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="words", input="x", dimensions=FEATURES)
    assert len(answer.data[0].embedding) == FEATURES
    with pytest.raises(openai.BadRequestError, match="dimensions: this model has 64") as refused:
        client.embeddings.create(model="words", input="x", dimensions=8)
    assert refused.value.param == "dimensions"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", ""),
        ("input", " "),
        ("input", []),
        ("input", ["good", ""]),
        ("input", ["x"] * (INPUTS_LIMIT + 1)),
        ("input", "x" * 40_000),
        ("input", [1, 2, 3]),
        ("input", [[1, 2], [3]]),
        ("input", 7),
        ("encoding_format", "hex"),
        ("dimensions", 0),
        ("no_such_field", 1),
    ],
)
def test_what_is_wrong_is_named(client: openai.OpenAI, field: str, value: Any) -> None:
    body = {"model": "words", "input": "x", field: value}
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/embeddings", body=body, cast_to=object)
    assert str(refused.value.param).startswith(field)
    assert field in refused.value.message


def test_tokens_are_refused_with_a_way_out(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model="words", input=[[1, 2]])


def test_another_models_name_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="serves words"):
        client.embeddings.create(model="text-embedding-3-small", input="x")


def test_the_encoder_is_listed_among_the_models(client: openai.OpenAI) -> None:
    (entry,) = client.models.list().data
    assert entry.id == "words"
    assert client.models.retrieve("words").model_dump()["features"] == FEATURES


def test_without_the_token_nothing_is_embedded(url: str) -> None:
    with (
        openai.OpenAI(base_url=url, api_key="guessed", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.embeddings.create(model="words", input="x")


def test_a_busy_encoder_says_when_to_come_again() -> None:
    with (
        serving(text_app(TextServices(encoder=BusyEncoder()))) as url,
        openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client,
        pytest.raises(openai.InternalServerError) as refused,
    ):
        client.embeddings.create(model="words", input="x")
    assert refused.value.status_code == 503
    assert int(refused.value.response.headers["Retry-After"]) >= 1


def test_without_an_encoder_the_answer_says_how_to_start_one() -> None:
    with (
        serving(text_app(TextServices())) as url,
        openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client,
        pytest.raises(openai.UnprocessableEntityError, match="--encoder"),
    ):
        client.embeddings.create(model="words", input="x")


def test_langchains_client_embeds_too(url: str) -> None:
    from langchain_openai import OpenAIEmbeddings

    options: Any = {"model": "words", "base_url": url, "api_key": TOKEN}
    client = OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
    assert np.allclose(client.embed_query("red car"), embedded("red car"))
    assert len(client.embed_documents(["a", "b"])) == 2
