"""The unmodified OpenAI client talks to the coordinator's models, and refusals name the field."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from coordinator.api.chat import share_of
from coordinator.inference.engine import (
    ChatMessage,
    Engine,
    EngineState,
    Piece,
    ServedAdapter,
)
from coordinator.inference.engines import EngineSettings, make_engine
from coordinator.inference.front_desk import Caller
from shared.errors import EngineBusy, EngineError, PromptRefused
from tests.support.brokers import eventually
from tests.support.language_models import make_model
from tests.support.scripted_engine import (
    BASE,
    TOKEN,
    ScriptedEngine,
    alternative,
    serving,
    token,
)

TURN: Any = {"role": "user", "content": "Where is my parcel?"}
CHAT: dict[str, Any] = {"model": "scripted", "messages": [TURN]}
TEXT: dict[str, Any] = {"model": "scripted", "prompt": "Once"}


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def other() -> ScriptedEngine:
    return ScriptedEngine(name="org/other:latest", pieces=("other",), stand_in=True)


@pytest.fixture
def url(engine: ScriptedEngine, other: ScriptedEngine) -> Iterator[str]:
    with serving(engine, other, adapters={"trial": b"adapter"}) as url:
        yield url
        engine.go.set()


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client:
        yield client


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as http:
        yield http


@pytest.fixture(scope="module")
def unasked() -> Iterator[tuple[httpx.Client, ScriptedEngine]]:
    """A server for all requests that never reach its engine."""
    engine = ScriptedEngine()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with (
        serving(engine) as url,
        httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as http,
    ):
        yield http, engine


def events_of(response: httpx.Response) -> list[Any]:
    """What a stream of server-sent events holds; its end is ``[DONE]``."""
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    return [
        line[6:] if line == "data: [DONE]" else json.loads(line.removeprefix("data: "))
        for line in lines
    ]


# Conversations


def test_a_chat_is_answered_and_its_tokens_are_counted(
    client: openai.OpenAI, engine: ScriptedEngine
) -> None:
    answer = client.chat.completions.create(
        model="scripted",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Where is"}]},
        ],
        max_completion_tokens=8,
        temperature=0,
        top_p=0.5,
        seed=-1,
        stop=["\n"],
        user="somebody",
        metadata={"a": "b"},
        store=False,
    )
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello, world")
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    assert answer.system_fingerprint == BASE[:16]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    counted = answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens
    assert counted == (7, 3, 10)
    (asked,) = engine.requests
    assert asked.prompt == (ChatMessage("system", "Be brief."), ChatMessage("user", "Where is"))
    assert (asked.max_tokens, asked.temperature, asked.top_p, asked.seed, asked.stop) == (
        (8, 0.0, 0.5, 2**63 - 1, ("\n",))
    )
    assert (asked.logprobs, asked.schema, asked.adapter, asked.share) == (
        (None, None, None, "key:admin")
    )


def test_the_same_chat_streamed_is_the_same_text(
    client: openai.OpenAI, engine: ScriptedEngine
) -> None:
    engine.finish_reason = "length"
    chunks = list(client.chat.completions.create(**CHAT, stream=True))
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert [delta.content for delta in deltas if delta.content] == ["Hello", ", ", "world"]
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None, None, None, None, "length"]


def test_pieces_arrive_while_the_model_still_speaks(
    client: openai.OpenAI, engine: ScriptedEngine
) -> None:
    engine.holds_after = 1
    stream = client.chat.completions.create(**CHAT, stream=True)
    next(stream)
    assert next(stream).choices[0].delta.content == "Hello"
    assert engine.active == 1
    engine.go.set()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ", world"


def test_a_stream_says_what_it_cost_if_it_is_asked_to(http: httpx.Client) -> None:
    body = {**CHAT, "stream": True, "n": 2, "stream_options": {"include_usage": True}}
    *chunks, last, done = events_of(http.post("/chat/completions", json=body))
    assert done == "[DONE]"
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 6,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    silent = events_of(http.post("/chat/completions", json={**CHAT, "stream": True}))
    assert all("usage" not in chunk for chunk in silent[:-1])


def test_several_answers_have_seeds_of_their_own_and_the_first_that_of_a_single_one(
    client: openai.OpenAI, engine: ScriptedEngine
) -> None:
    engine.says = lambda request: [str(request.seed)]
    texts = [
        [
            choice.message.content
            for choice in client.chat.completions.create(**(CHAT | given)).choices
        ]
        for given in ({"n": 3, "seed": 5}, {"n": 8, "seed": 5}, {"seed": 5}, {"n": 2}, {"n": 2})
    ]
    assert texts[0] == texts[1][:3]
    assert texts[2] == texts[0][:1] == ["5"]
    assert len(set(texts[1])) == 8
    assert len({*texts[3], *texts[4]}) == 4


def test_a_prompt_is_counted_once_and_what_its_first_answer_computed_is_not_cached(
    client: openai.OpenAI, engine: ScriptedEngine
) -> None:
    cached = iter([0, 7, 7])

    def says(_: object) -> list[str]:
        engine.cached_tokens = next(cached)
        return ["x"]

    engine.says = says
    usage = client.chat.completions.create(**CHAT, n=3).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    counted = usage.prompt_tokens, usage.completion_tokens
    assert (counted, usage.prompt_tokens_details.cached_tokens) == ((7, 3), 0)


def test_log_probabilities_have_openais_shape(
    client: openai.OpenAI, engine: ScriptedEngine
) -> None:
    impossible = alternative("No", float("-inf"))
    engine.pieces = [
        Piece("", (token(b"\xe4\xbd", -1.0),)),
        Piece("你", (token(b"\xa0", -0.25, impossible),)),
    ]
    whole = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2).choices[0]
    assert whole.logprobs is not None
    first, second = whole.logprobs.content or []
    assert (first.token, first.bytes, first.logprob) == ("\ufffd", [0xE4, 0xBD], -1.0)
    assert [other.token for other in second.top_logprobs] == ["\ufffd", "No"]
    assert second.top_logprobs[1].logprob == -9999.0
    assert bytes([*(first.bytes or []), *(second.bytes or [])]).decode() == "你"
    assert engine.requests[0].logprobs == 2
    streamed = [
        row
        for chunk in client.chat.completions.create(
            **CHAT, logprobs=True, top_logprobs=2, stream=True
        )
        if chunk.choices[0].logprobs is not None
        for row in chunk.choices[0].logprobs.content or []
    ]
    assert streamed == [first, second]
    client.chat.completions.create(**CHAT, logprobs=True)
    assert engine.requests[-1].logprobs == 0


class Parcel(BaseModel):
    """What a test wants to know."""

    number: int
    city: str


def test_an_answer_in_a_form_is_parsed_by_the_clients_own_helpers(
    client: openai.OpenAI, engine: ScriptedEngine
) -> None:
    engine.pieces = ['{"number": 5, ', '"city": "Köln"}']
    answer = client.chat.completions.parse(**CHAT, response_format=Parcel)
    assert answer.choices[0].message.parsed == Parcel(number=5, city="Köln")
    asked = json.loads(engine.requests[0].schema or "")
    assert asked["properties"].keys() == {"number", "city"}
    assert asked["additionalProperties"] is False
    with client.chat.completions.stream(**CHAT, response_format=Parcel) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.parsed == Parcel(number=5, city="Köln")


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["é"]}}},
            {"enum": ["é"]},
        ),
    ],
)
def test_a_form_reaches_the_engine_as_a_schema(
    client: openai.OpenAI, engine: ScriptedEngine, form: Any, schema: Any
) -> None:
    client.chat.completions.create(**CHAT, response_format=form)
    asked = engine.requests[0].schema
    assert (None if asked is None else json.loads(asked)) == schema


def test_an_answer_can_be_sent_back_in_the_next_turn(
    client: openai.OpenAI, engine: ScriptedEngine
) -> None:
    answer = client.chat.completions.create(**CHAT).choices[0].message
    messages: list[Any] = [TURN, answer, {"role": "user", "content": "And now?"}]
    client.chat.completions.create(model="scripted", messages=messages)
    prompt = engine.requests[-1].prompt
    assert isinstance(prompt, tuple)
    assert prompt[1] == ChatMessage("assistant", "Hello, world")


def test_a_line_end_that_only_some_clients_know_ends_no_event(
    http: httpx.Client, engine: ScriptedEngine
) -> None:
    engine.pieces = ["a\u2028b\u0085c\r\nd"]
    chunks = events_of(http.post("/chat/completions", json={**CHAT, "stream": True}))
    assert chunks[1]["choices"][0]["delta"]["content"] == "a\u2028b\u0085c\r\nd"


# Texts that are continued


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("Once", ["Once"]),
        (["Once", "Twice"], ["Once", "Twice"]),
        ([5, 6], [(5, 6)]),
        ([[5, 6], [7]], [(5, 6), (7,)]),
    ],
)
def test_texts_and_tokens_are_continued(
    client: openai.OpenAI, engine: ScriptedEngine, prompt: Any, asked: list[Any]
) -> None:
    engine.says = lambda request: [f"{request.prompt}!"]
    answer = client.completions.create(model="scripted", prompt=prompt, n=2)
    assert [choice.text for choice in answer.choices] == [
        f"{each}!" for each in asked for _ in "ab"
    ]
    assert [choice.index for choice in answer.choices] == list(range(2 * len(asked)))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 7 * len(asked)
    assert answer.usage.completion_tokens == 2 * len(asked)
    assert {request.max_tokens for request in engine.requests} == {16}
    streamed = [""] * len(answer.choices)
    for chunk in client.completions.create(model="scripted", prompt=prompt, n=2, stream=True):
        assert chunk.object == "text_completion"
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == [choice.text for choice in answer.choices]


def test_the_prompt_is_repeated_if_it_is_asked_for(client: openai.OpenAI) -> None:
    answer = client.completions.create(**TEXT, echo=True)
    assert answer.choices[0].text == "OnceHello, world"
    chunks = client.completions.create(**TEXT, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "OnceHello, world"


def test_log_probabilities_of_a_text_come_in_columns(
    client: openai.OpenAI, engine: ScriptedEngine
) -> None:
    engine.pieces = [
        Piece("a", (token("a", -0.1, alternative("b", -2.0)),)),
        Piece("", (token(b"\xe4\xbd", -1.0, alternative(b"\xe5\xa5", -3.0)),)),
        Piece("你c", (token(b"\xa0", -0.2), token("c", float("-inf")))),
    ]
    (choice,) = client.completions.create(**TEXT, logprobs=1).choices
    columns = choice.logprobs
    assert columns is not None
    assert columns.tokens == ["a", "bytes:\\xe4\\xbd", "bytes:\\xa0", "c"]
    assert columns.token_logprobs == [-0.1, -1.0, -0.2, -9999.0]
    assert columns.text_offset == [0, 1, 1, 2]
    assert columns.top_logprobs is not None
    assert columns.top_logprobs[:2] == [
        {"a": -0.1, "b": -2.0},
        {"bytes:\\xe4\\xbd": -1.0, "bytes:\\xe5\\xa5": -3.0},
    ]
    found: dict[str, list[Any]] = {"tokens": [], "text_offset": [], "token_logprobs": []}
    for chunk in client.completions.create(**TEXT, logprobs=1, stream=True):
        if chunk.choices[0].logprobs is not None:
            for name in found:
                found[name] += getattr(chunk.choices[0].logprobs, name)
    assert found == {name: getattr(columns, name) for name in found}
    bare = client.completions.create(**TEXT, logprobs=0).choices[0].logprobs
    assert bare is not None
    assert bare.top_logprobs is None


# Models


def test_all_models_are_listed_and_each_can_be_asked(
    client: openai.OpenAI, engine: ScriptedEngine, other: ScriptedEngine
) -> None:
    assert [model.id for model in client.models.list().data] == ["scripted", "org/other:latest"]
    for name in ("org/other:latest", "org/other:latest:trial", "scripted:trial"):
        assert client.models.retrieve(name).id == name
        assert client.chat.completions.create(model=name, messages=[TURN]).model == name
    assert [request.adapter for request in other.requests] == [
        None,
        ServedAdapter("trial", b"adapter"),
    ]
    assert engine.requests[0].adapter == ServedAdapter("trial", b"adapter")


def test_a_stand_in_says_so_in_every_answer_and_every_piece(client: openai.OpenAI) -> None:
    asked: Any = {"model": "org/other:latest", "messages": [TURN]}
    assert client.chat.completions.create(**asked).model_dump()["stand_in"] is True
    pieces = [*client.chat.completions.create(**asked, stream=True)]
    assert all(piece.model_dump()["stand_in"] is True for piece in pieces)
    assert "stand_in" not in client.chat.completions.create(**CHAT).model_dump()


def test_an_unknown_model_or_run_is_not_found(client: openai.OpenAI) -> None:
    for name in ("nothing", "scripted:no-run", "scripted:", "org/other"):
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model=name, messages=[TURN])
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)


def test_a_coordinator_without_a_model_says_how_to_start_one() -> None:
    with serving() as url, openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client:
        assert client.models.list().data == []
        with pytest.raises(openai.NotFoundError, match="--model"):
            client.chat.completions.create(**CHAT)


def test_without_the_token_nothing_is_answered(url: str, engine: ScriptedEngine) -> None:
    with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
        for ask in (
            client.models.list,
            lambda: client.models.retrieve("scripted"),
            lambda: client.chat.completions.create(**CHAT),
            lambda: client.completions.create(**TEXT, stream=True),
        ):
            with pytest.raises(openai.AuthenticationError):
                ask()
    assert engine.requests == []


def test_what_is_computed_is_shared_within_a_key_or_in_public_and_the_two_never_meet() -> None:
    words = {
        share_of(caller)
        for caller in (Caller("public"), Caller("a"), Caller("a", public_cache=True))
    }
    assert len(words) == 3
    assert share_of(Caller("a", public_cache=True)) == share_of(Caller("b", public_cache=True))


# Refusals


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 9),
        ("n", True),
        ("n", 1.0),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "auto"),
        ("response_format", {"type": "xml"}),
        ("response_format", "json_object"),
        ("response_format.json_schema", {"type": "json_schema"}),
        (
            "response_format.json_schema.name",
            {"type": "json_schema", "json_schema": {"name": "no good", "schema": {}}},
        ),
        (
            "response_format.json_schema.schema",
            {"type": "json_schema", "json_schema": {"name": "x", "schema": []}},
        ),
        ("max_tokens", 0),
        ("max_tokens", 10**9),
        ("temperature", -1),
        ("temperature", "warm"),
        ("top_p", 0),
        ("seed", 2**64),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("stop", ""),
        ("logprobs", 1),
        ("top_logprobs", 2),
        ("logit_bias", {"5": 1}),
        ("frequency_penalty", 0.5),
        ("store", True),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("messages", []),
        ("messages", "hello"),
        ("messages.0.role", [{"role": "tool", "content": "x"}]),
        ("messages.0.name", [{"role": "user", "content": "x", "name": "Ada"}]),
        ("messages.0.content", [{"role": "user", "content": None}]),
        ("messages.0.content.0.type", [{"role": "user", "content": [{"type": "image_url"}]}]),
        ("no_such_field", 1),
        ("model", 5),
    ],
)
def test_what_a_chat_cannot_have_is_a_400_that_names_the_field(
    unasked: tuple[httpx.Client, ScriptedEngine], field: str, value: Any
) -> None:
    http, engine = unasked
    name = field.partition(".")[0]
    answer = http.post("/chat/completions", json=CHAT | {name: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (field, "invalid_request_error")
    assert field in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None),
        ("prompt", ""),
        ("prompt", []),
        ("prompt", [""]),
        ("prompt", [[]]),
        ("prompt", ["a", 5]),
        ("prompt", [5, "a"]),
        ("prompt", [True]),
        ("prompt", [-1]),
        ("prompt", [2**31]),
        ("prompt", [1.5]),
        ("prompt", {"text": "a"}),
        ("prompt", ["a"] * 17),
        ("prompt", "x" * 100_001),
        ("prompt", [1] * 100_001),
        ("max_tokens", 0),
        ("suffix", "end"),
        ("best_of", 3),
        ("logprobs", 21),
        ("logprobs", True),
        ("response_format", {"type": "json_object"}),
        ("messages", [TURN]),
    ],
)
def test_what_a_text_cannot_have_is_a_400_that_names_the_field(
    unasked: tuple[httpx.Client, ScriptedEngine], field: str, value: Any
) -> None:
    http, engine = unasked
    answer = http.post("/completions", json=TEXT | {field: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == field
    assert field in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("n", {"prompt": ["a"] * 16, "n": 3}),
        ("echo", {"echo": True, "prompt": [5]}),
        ("echo", {"echo": True, "logprobs": 1}),
    ],
)
def test_what_does_not_go_together_is_refused(
    unasked: tuple[httpx.Client, ScriptedEngine], field: str, body: dict[str, Any]
) -> None:
    http, engine = unasked
    answer = http.post("/completions", json=TEXT | body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert engine.requests == []


@pytest.mark.parametrize(
    ("lacked", "field", "body"),
    [
        ("logprobs", "logprobs", {"logprobs": True}),
        ("schema", "response_format", {"response_format": {"type": "json_object"}}),
        ("adapter", "model", {"model": "scripted:trial"}),
        ("stop", "stop", {"stop": "x"}),
        ("seed", "seed", {"seed": 1}),
        ("temperature", "temperature", {}),
        ("top_p", "top_p", {"top_p": 0.5}),
    ],
)
def test_what_the_engine_lacks_is_refused_only_where_it_is_asked_for(
    http: httpx.Client, engine: ScriptedEngine, lacked: str, field: str, body: dict[str, Any]
) -> None:
    engine.lacks = frozenset({lacked})
    answer = http.post("/chat/completions", json=CHAT | body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert answer.json()["error"]["code"] == "unsupported_value"
    assert engine.requests == []
    assert http.post("/chat/completions", json=CHAT | {"temperature": 0}).status_code == 200


def deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"items": value}
    return value


@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"\xff"', 400),
        (b'{"model": "\\ud800", "prompt": "\\ud800", "messages": "\\ud800"}', 400),
        (b'{"\\ud800": 1}', 400),
        (b"[" * 100_000 + b"]" * 100_000, 400),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
        (b'{"seed": ' + b"9" * 10_000 + b"}", 400),
        (b'{"messages": [' + b"1," * 900_000 + b"1]}", 400),
        (b'{"prompt": [' + b'"",' * 900_000 + b"1]}", 400),
        (b'{"temperature": NaN, "top_p": Infinity}', 400),
        (b" " * 4_000_001, 413),
    ],
    ids=range(14),
)
def test_bytes_of_every_kind_are_refused_clearly(
    unasked: tuple[httpx.Client, ScriptedEngine], path: str, content: bytes, status: int
) -> None:
    http, engine = unasked
    headers = {"content-type": "application/json"}
    answer = http.post(path, content=content, headers=headers)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert len(error["message"]) < 5_000
    assert engine.requests == []


@pytest.mark.parametrize(
    "schema",
    ['{"a": NaN}', '{"a": "\\ud800"}', json.dumps(deep(70)), json.dumps({"x": "y" * 60_000})],
)
def test_a_schema_that_no_engine_could_read_is_refused(
    unasked: tuple[httpx.Client, ScriptedEngine], schema: str
) -> None:
    http, engine = unasked
    form = '{"type": "json_schema", "json_schema": {"name": "x", "schema": %s}}'
    body = '{"model": "scripted", "messages": [{"role": "user", "content": "x"}], '
    answer = http.post(
        "/chat/completions",
        content=body + '"response_format": ' + form % schema + "}",
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "response_format"
    assert engine.requests == []


# Failures


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "header"),
    [
        (EngineBusy("later"), 503, {"retry-after": "1"}),
        (EngineError("broken"), 503, {"x-should-retry": "false"}),
        (PromptRefused("too long"), 400, {}),
    ],
)
def test_what_fails_before_the_first_piece_is_an_error_and_no_stream(
    http: httpx.Client,
    engine: ScriptedEngine,
    stream: bool,
    failure: Any,
    status: int,
    header: dict[str, str],
) -> None:
    engine.fails = failure
    answer = http.post("/chat/completions", json={**CHAT, "stream": stream, "n": 2})
    assert answer.status_code == status
    assert answer.json()["error"]["message"] == str(failure)
    assert header.items() <= answer.headers.items()
    assert ("retry-after" in answer.headers) == ("retry-after" in header)
    assert eventually(lambda: engine.active == 0)


def test_an_error_that_knows_when_to_come_again_is_believed(
    http: httpx.Client, engine: ScriptedEngine
) -> None:
    engine.fails = EngineBusy("later")
    engine.fails.retry_after_s = 12.2
    answer = http.post("/completions", json=TEXT)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "13")


def test_what_fails_after_the_first_piece_ends_the_stream_with_the_error(
    client: openai.OpenAI, http: httpx.Client, engine: ScriptedEngine
) -> None:
    engine.fails, engine.fails_after = EngineBusy("its process died"), 2
    *_, last = events_of(http.post("/chat/completions", json={**CHAT, "stream": True}))
    assert last["error"]["code"] == "engine.busy"
    chunks = client.chat.completions.create(**CHAT, stream=True)
    said = [next(chunks).choices[0].delta.content for _ in range(3)]
    assert said == ["", "Hello", ", "]
    with pytest.raises(openai.APIError, match="its process died"):
        next(chunks)
    whole = http.post("/chat/completions", json=CHAT)
    assert whole.status_code == 503


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("said", [0, 2])
def test_a_client_that_leaves_frees_its_slots(
    url: str, engine: ScriptedEngine, n: int, stream: bool, said: int
) -> None:
    engine.holds_after = said
    body = json.dumps({**CHAT, "n": n, "stream": stream}).encode()
    head = f"Host: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}"
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 0), timeout=60) as client:
        client.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode())
        client.sendall(b"Content-Type: application/json\r\n\r\n" + body)
        assert eventually(lambda: engine.active == n, within_s=60)
        if stream and said:
            assert b"200 OK" in client.recv(1000)
    left = time.monotonic()
    assert eventually(lambda: (engine.active, engine.cancelled) == (0, n), within_s=60)
    assert time.monotonic() - left < 5, "it takes milliseconds, and more where tests crowd"
    assert engine.finished == 0


def test_answers_name_their_request(client: openai.OpenAI, http: httpx.Client) -> None:
    assert client.chat.completions.create(**CHAT)._request_id
    for name, kept in (("order-7.a_b", True), ("no good", False), ("x" * 129, False)):
        for path, body in (("/chat/completions", {**CHAT, "stream": True}), ("/completions", {})):
            headers = {"X-Request-Id": name}
            given = http.post(path, json=body, headers=headers).headers["x-request-id"]
            assert (given == name) == kept
    raw = client.chat.completions.with_raw_response.create(**CHAT)
    assert raw.headers["x-request-id"].startswith("req-")
    assert raw.parse().choices[0].message.content == "Hello, world"


# A real model


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("model")
    settings = EngineSettings(folder / "graphs", device="cpu", threads=1)
    engine = make_engine(make_model(folder / "few").folder, settings)
    engine.start()
    while engine.card.state is EngineState.LOADING:
        time.sleep(0.05)
    yield engine
    engine.close()


def test_a_real_model_answers_whole_and_in_pieces(real: Engine) -> None:
    name = real.card.name
    asked: Any = {"model": name, "messages": [TURN], "max_tokens": 8, "temperature": 0}
    with serving(real) as url, openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client:
        (model,) = client.models.list().data
        assert model.id == name
        answer = client.chat.completions.create(**asked)
        assert answer.usage is not None
        assert 0 < answer.usage.completion_tokens <= 8
        assert "stand-in" in answer.model
        chunks = [*client.chat.completions.create(**asked, stream=True)]
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert streamed == answer.choices[0].message.content
        assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason
        text = client.completions.create(model=name, prompt="Where", max_tokens=4, temperature=0)
        assert text.choices[0].finish_reason in ("stop", "length")
