"""The unmodified OpenAI client talks to the coordinator's model, and refusals name the field."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import uvicorn
from coordinator.inference.transformers_engine import TransformersEngine
from fastapi import FastAPI

from coordinator.api.app import Services, create_app
from coordinator.inference.engine import EngineState
from coordinator.inference.front_desk import FrontDesk
from shared.errors import RunNotFound
from shared.types import RunId
from tests.support.language_models import make_model

TOKEN = "secret"  # noqa: S105  of this test
TURN: Any = {"role": "user", "content": "Where is my parcel?"}


class Served:
    """An application behind a real server on loopback."""

    def __init__(self, app: FastAPI) -> None:
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(make_model(tmp_path_factory.mktemp("model") / "few").folder)
    engine.start()
    while engine.card.state is EngineState.LOADING:
        time.sleep(0.05)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def url(engine: TransformersEngine) -> Iterator[str]:
    nothing: Any = None

    def adapter_of(run: RunId) -> bytes:
        raise RunNotFound(f"no run named {run}")

    app = create_app(
        Services(
            store=nothing,
            fleet=nothing,
            coordinator=nothing,
            key_holder=None,
            broker=("127.0.0.1", 1883),
            admin_token=TOKEN,
            now=time.time,
            stop_run=nothing,
            is_ready=lambda: True,
            desk=FrontDesk({engine.card.name: engine}),
            adapter_of=adapter_of,
        )
    )
    served = Served(app)
    yield f"http://127.0.0.1:{served.port}/v1"
    served.stop()


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client:
        yield client


def test_a_chat_is_answered_and_its_tokens_are_counted(
    client: openai.OpenAI, engine: TransformersEngine
) -> None:
    (model,) = client.models.list().data
    assert model.id == engine.card.name
    answer = client.chat.completions.create(
        model=model.id, messages=[TURN], max_tokens=8, temperature=0
    )
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_a_stand_in_says_so_in_every_answer(
    client: openai.OpenAI, engine: TransformersEngine
) -> None:
    answer = client.chat.completions.create(model=engine.card.name, messages=[TURN], max_tokens=2)
    assert "stand-in" in answer.model
    assert answer.model_dump()["stand_in"] is True


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stream", True),
        ("n", 2),
        ("logprobs", True),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("response_format", {"type": "json_object"}),
        ("max_tokens", 0),
        ("temperature", -1),
        ("messages", []),
        ("no_such_field", 1),
    ],
)
def test_what_the_engine_cannot_do_is_a_400_that_names_the_field(
    client: openai.OpenAI, engine: TransformersEngine, field: str, value: Any
) -> None:
    body: dict[str, Any] = {"model": engine.card.name, "messages": [TURN]} | {field: value}
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/chat/completions", body=body, cast_to=object)
    assert field in str(refused.value)


def test_an_unknown_model_or_run_is_not_found(
    client: openai.OpenAI, engine: TransformersEngine
) -> None:
    for name in ("nothing", f"{engine.card.name}:no-run"):
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model=name, messages=[TURN])


def test_without_the_token_nothing_is_answered(url: str) -> None:
    with (
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
