"""The local API answers its owner in OpenAI's shapes, and whatever arrives, in words."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from edge_agent.api.app import BODY_BYTES_LIMIT, TEXT_CHARACTERS_LIMIT, create_app
from edge_agent.api.server import served
from edge_agent.inference.answering import Answerer, CoordinatorAnswer
from edge_agent.inference.installed import Installation
from shared.errors import StorageError
from tests.support import tiny_graph as tiny
from tests.support.answering import CONFIDENT, FakeCoordinator, calibrated, released

SECRET = "the-token"  # noqa: S105
ROUTES = ("/v1/tasks/classify", "/v1/embeddings", "/v1/chat/completions")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def coordinator() -> FakeCoordinator:
    return FakeCoordinator()


@pytest.fixture
def home(tmp_path: Path, model: Path) -> Path:
    released(tmp_path, model, calibration=calibrated(0.0))
    return tmp_path


@pytest.fixture
def client(home: Path, coordinator: FakeCoordinator) -> TestClient:
    return client_of(home, coordinator)


def client_of(home: Path, coordinator: FakeCoordinator) -> TestClient:
    answerer = Answerer(Installation(home).current, home, ask_coordinator=coordinator)
    return TestClient(
        create_app(answerer, token=SECRET),
        base_url="http://127.0.0.1:8080",
        headers={"Authorization": f"Bearer {SECRET}"},
        raise_server_exceptions=False,
    )


def chat(question: Any = CONFIDENT, **fields: Any) -> dict[str, Any]:
    return {"model": "any", "messages": [{"role": "user", "content": question}], **fields}


def error_of(response: Any) -> dict[str, Any]:
    """The error, after a look at its shape."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    kind = "server_error" if response.status_code >= 500 else "invalid_request_error"
    assert body["error"]["type"] == kind
    return dict(body["error"])


# What is answered


def test_a_text_is_classified_with_its_likeliest_labels(client: TestClient) -> None:
    response = client.post("/v1/tasks/classify", json={"text": CONFIDENT})
    assert response.status_code == 200
    body = response.json()
    assert set(body["probabilities"]) == set(tiny.LABELS)
    assert list(body["probabilities"].values()) == sorted(
        body["probabilities"].values(), reverse=True
    )
    assert body["probabilities"][body["label"]] == body["confidence"]
    assert sum(body["probabilities"].values()) == pytest.approx(1)
    assert (body["source"], body["model"], body["calibrated"]) == ("device", "tiny", True)


def test_embeddings_are_the_bases_features_in_both_codings(client: TestClient, home: Path) -> None:
    texts = ["send money", "余 额"]
    body = client.post("/v1/embeddings", json={"input": texts, "model": "any"}).json()
    assert [row["index"] for row in body["data"]] == [0, 1]
    assert body["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    coded = client.post("/v1/embeddings", json={"input": texts, "encoding_format": "base64"}).json()
    local = Installation(home).current().model
    assert local is not None
    for text, plain, packed in zip(texts, body["data"], coded["data"], strict=True):
        expected = local.encoder.embed(text)
        np.testing.assert_array_equal(np.array(plain["embedding"], np.float32), expected)
        np.testing.assert_array_equal(
            np.frombuffer(base64.b64decode(packed["embedding"]), "<f4"), expected
        )


def test_a_chat_is_answered_here_with_the_reason(
    client: TestClient, home: Path, coordinator: FakeCoordinator
) -> None:
    (home / "answers.csv").write_text(
        "label,answer\n" + "".join(f"{label},It is {label}.\n" for label in tiny.LABELS)
    )
    body = client.post("/v1/chat/completions", json=chat()).json()
    about = body["llmos"]
    assert body["object"] == "chat.completion"
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": f"It is {about['label']}."}
    assert choice["finish_reason"] == "stop"
    assert (about["source"], about["code"], body["model"]) == ("device", "confident", "tiny")
    assert about["reason"]
    assert about["milliseconds"] > 0
    assert coordinator.asked == []


def test_the_last_user_message_is_the_question(
    client: TestClient, home: Path, model: Path, coordinator: FakeCoordinator
) -> None:
    released(home, model, calibration=calibrated(1.0))
    parts = [{"type": "text", "text": "reach me at"}, {"type": "text", "text": "ann@example.com"}]
    messages = [
        {"role": "user", "content": "first"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "well"},
    ]
    body = client.post("/v1/chat/completions", json={"messages": messages}).json()
    ((asked, _),) = coordinator.asked
    assert asked.startswith("reach me at\n")
    assert "ann@example.com" not in asked
    assert body["llmos"]["source"] == "coordinator"
    assert body["llmos"]["stand_in"] is True
    assert sum(body["llmos"]["redacted"].values()) == 1
    assert body["model"] == "large"


def test_a_streamed_chat_says_the_same(client: TestClient) -> None:
    whole = client.post("/v1/chat/completions", json=chat()).json()
    response = client.post("/v1/chat/completions", json=chat(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    said = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert said == whole["choices"][0]["message"]["content"]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["llmos"]["code"] == whole["llmos"]["code"]


def test_openais_own_client_understands(home: Path, coordinator: FakeCoordinator) -> None:
    openai = pytest.importorskip("openai")
    with listening(home, coordinator) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=SECRET, max_retries=0)
        assert [model.id for model in client.models.list()] == ["tiny"]
        completion = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": CONFIDENT}]
        )
        assert completion.choices[0].message.content in tiny.LABELS
        assert completion.llmos["source"] == "device"
        chunks = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": CONFIDENT}], stream=True
        )
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert said == completion.choices[0].message.content
        vector = client.embeddings.create(model="tiny", input="money").data[0].embedding
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        with pytest.raises(openai.BadRequestError, match="'user'"):
            client.chat.completions.create(model="tiny", messages=[])


def test_a_device_without_a_model_says_so(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    client = client_of(tmp_path, coordinator)
    assert client.get("/v1/models").json() == {"object": "list", "data": []}
    body = client.post("/v1/chat/completions", json=chat()).json()
    assert body["llmos"]["code"] == "no-model"
    for route, asked in (
        ("/v1/tasks/classify", {"text": "x"}),
        ("/v1/embeddings", {"input": "x"}),
    ):
        response = client.post(route, json=asked)
        assert response.status_code == 503
        assert "no model was released" in error_of(response)["message"]
    coordinator.error = TimeoutError()
    response = client.post("/v1/chat/completions", json=chat())
    assert response.status_code == 503
    assert error_of(response)["code"] == "coordinator_unavailable"


# Who may ask


@pytest.mark.parametrize("shown", ["", "Bearer ", "Bearer wrong", "Bearer the-token2", "Basic x"])
def test_without_the_token_nothing_is_answered(client: TestClient, shown: str) -> None:
    for route in ROUTES:
        response = client.post(route, json=chat(), headers={"Authorization": shown})
        assert response.status_code == 401
        assert error_of(response)["code"] == "access_denied"
        assert response.headers["www-authenticate"] == "Bearer"
    assert client.get("/v1/models", headers={"Authorization": shown}).status_code == 401
    assert client.get("/healthz", headers={"Authorization": shown}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1234", 200),
        ("127.0.0.1", 200),
        ("LOCALHOST:80", 200),
        ("[::1]:9", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:80", 421),
        ("10.0.0.1", 421),
        ("", 421),
        ("127.0.0.1:80@evil.example", 421),
    ],
)
def test_only_a_name_of_this_machine_is_answered(
    client: TestClient, host: str, status: int
) -> None:
    """A page that makes its own name point to 127.0.0.1 still sends that name."""
    for path in ("/healthz", "/v1/models"):
        assert client.get(path, headers={"Host": host}).status_code == status


# What is refused


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("/v1/tasks/classify", {}, "text"),
        ("/v1/tasks/classify", {"text": 3}, "text"),
        ("/v1/tasks/classify", {"text": " \n"}, "text"),
        ("/v1/tasks/classify", {"text": "x" * (TEXT_CHARACTERS_LIMIT + 1)}, "text"),
        ("/v1/tasks/classify", {"text": "a\ud800"}, "text"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ["a"] * 65}, "input"),
        ("/v1/embeddings", {"input": ["a", 3]}, "input[1]"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "dimensions": 3}, "dimensions"),
        ("/v1/chat/completions", {}, "messages"),
        ("/v1/chat/completions", {"messages": "hi"}, "messages"),
        ("/v1/chat/completions", {"messages": ["hi"]}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ("/v1/chat/completions", chat(None), "messages[0].content"),
        ("/v1/chat/completions", chat([{"type": "image_url"}]), "messages[0].content"),
        ("/v1/chat/completions", chat([]), "messages[0].content"),
        ("/v1/chat/completions", chat(n=2), "n"),
        ("/v1/chat/completions", chat(n=True), "n"),
        ("/v1/chat/completions", chat(n=[]), "n"),
        ("/v1/chat/completions", chat(stream="yes"), "stream"),
        ("/v1/chat/completions", chat(tools=[{"type": "function"}]), "tools"),
        ("/v1/embeddings", {"input": "a", "dimensions": []}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": []}, "encoding_format"),
    ],
)
def test_a_bad_field_is_named(client: TestClient, route: str, body: Any, param: str) -> None:
    response = client.post(route, content=json.dumps(body))
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert error["message"].startswith(param)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"[" * 60_000, b'{"text": ' * 6_000, b"NaN"],
)
@pytest.mark.parametrize("route", ROUTES)
def test_what_is_no_json_object_is_refused(client: TestClient, route: str, content: bytes) -> None:
    response = client.post(route, content=content)
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_json"


def test_a_request_is_read_up_to_its_limit_and_no_further(client: TestClient) -> None:
    def body(size: int) -> bytes:
        start = json.dumps({"text": "money"})[:-1].encode()
        return start + b" " * (size - len(start) - 1) + b"}"

    route = "/v1/tasks/classify"
    assert client.post(route, content=body(BODY_BYTES_LIMIT)).status_code == 200
    assert client.post(route, content=body(BODY_BYTES_LIMIT + 1)).status_code == 413
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield b" " * 4096

    response = client.post(route, content=endless())  # without a Content-Length
    assert response.status_code == 413
    assert error_of(response)["code"] == "too_large"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/answers/log", 404),
        ("GET", "/", 404),
        ("GET", "/v1/embeddings", 405),
        ("POST", "/healthz", 405),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_what_is_not_there_is_said_in_the_same_shape(
    client: TestClient, method: str, path: str, status: int
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    error_of(response)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        name: json_values
        | st.lists(
            st.fixed_dictionaries(
                {}, optional={"role": st.just("user") | json_values, "content": json_values}
            ),
            max_size=2,
        )
        for name in ("text", "input", "messages", "stream", "n", "encoding_format", "dimensions")
    },
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(route=st.sampled_from(ROUTES), body=bodies)
def test_no_body_brings_it_down(client: TestClient, route: str, body: dict[str, Any]) -> None:
    response = client.post(route, content=json.dumps(body))
    assert response.status_code in {200, 400}
    if response.status_code == 400:
        error_of(response)


def test_a_failure_of_ours_is_told_and_a_bug_is_not(
    home: Path, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(home, coordinator)
    for error, code in ((StorageError("disk full"), "storage"), (KeyError("secret"), "internal")):

        def failing(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(Answerer, "answer", failing)
        response = client.post("/v1/chat/completions", json=chat())
        assert response.status_code == 500
        assert error_of(response)["code"] == code
        assert "secret" not in response.text


# Over a real socket


@contextmanager
def listening(home: Path, coordinator: Any) -> Iterator[str]:
    answerer = Answerer(Installation(home).current, home, ask_coordinator=coordinator)
    with served(create_app(answerer, token=SECRET), 0) as port:
        yield f"http://127.0.0.1:{port}"


def test_health_is_told_at_once_while_questions_wait(home: Path, model: Path) -> None:
    import httpx

    released(home, model, calibration=calibrated(1.0))
    go, waiting = threading.Event(), threading.Semaphore(0)

    def slow(text: str, timeout_s: float) -> CoordinatorAnswer:
        waiting.release()
        go.wait(300)
        return CoordinatorAnswer("late", "large")

    with listening(home, slow) as url:
        headers = {"Authorization": f"Bearer {SECRET}"}
        results: list[int] = []

        def ask() -> None:
            response = httpx.post(
                f"{url}/v1/chat/completions",
                json=chat(),
                headers=headers,
                timeout=300,
                trust_env=False,
            )
            results.append(response.status_code)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert waiting.acquire(timeout=120)
        assert httpx.get(f"{url}/healthz", timeout=60, trust_env=False).json() == {"status": "ok"}
        classified = httpx.post(
            f"{url}/v1/tasks/classify",
            json={"text": "money"},
            headers=headers,
            timeout=60,
            trust_env=False,
        )
        assert classified.status_code == 200
        go.set()
        for thread in threads:
            thread.join()
        assert results == [200] * 8
