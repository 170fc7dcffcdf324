"""Requests are spelt as OpenAI's API has them, and answers are read however they are cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.inference.engine import (
    Alternative,
    ChatMessage,
    Finished,
    GenerationRequest,
    Piece,
    ServedAdapter,
)
from coordinator.inference.upstream_wire import (
    AnswerReader,
    EventReader,
    Node,
    body_of,
    model_name,
    offer_of,
    parse_nodes,
    refusal,
)
from shared.errors import (
    ChildDied,
    ConfigError,
    EngineBusy,
    EngineError,
    LlmOsError,
    PromptRefused,
    RunNotFound,
)
from tests.support.fake_nodes import choice, usage

TALK = (ChatMessage("system", "Be short."), ChatMessage("user", "Where is it?"))
NODE = Node("http://host:1/v1", "secret-key")


def sent(request: GenerationRequest, *, salted: bool = False) -> tuple[str, dict[str, Any]]:
    path, body = body_of(request, "m", salted=salted)
    return path, json.loads(body)


def test_a_conversation_is_asked_for_with_everything_that_was_set() -> None:
    request = GenerationRequest(
        TALK,
        max_tokens=9,
        temperature=0.7,
        top_p=0.9,
        seed=3,
        stop=("X",),
        logprobs=2,
        schema='{"type": "object"}',
    )
    path, body = sent(request)
    assert path == "/chat/completions"
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Where is it?"},
        ],
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["X"],
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize("prompt", ["Once upon", (1, 2, 3)])
def test_texts_and_tokens_are_continued(prompt: str | tuple[int, ...]) -> None:
    path, body = sent(GenerationRequest(prompt, max_tokens=4, logprobs=0))
    assert path == "/completions"
    assert body["prompt"] == (prompt if isinstance(prompt, str) else list(prompt))
    assert body["logprobs"] == 0
    assert "seed" not in body
    assert "messages" not in body


def test_half_a_character_in_a_prompt_is_still_a_body() -> None:
    assert sent(GenerationRequest("\ud83d", max_tokens=4))[1]["prompt"] == "\ud83d"


def test_a_schema_that_is_no_json_is_refused() -> None:
    with pytest.raises(PromptRefused, match="schema"):
        sent(GenerationRequest(TALK, max_tokens=4, schema="{"))


def test_what_vllm_computes_is_shared_by_those_who_share_a_word() -> None:
    def salt(share: str) -> str:
        return str(
            sent(GenerationRequest(TALK, max_tokens=1, share=share), salted=True)[1]["cache_salt"]
        )

    assert salt("ours") == salt("ours") != salt("theirs")
    assert salt("") != salt("")
    assert "cache_salt" not in sent(GenerationRequest(TALK, max_tokens=1, share="ours"))[1]


def test_an_adapter_is_called_as_the_nodes_call_it() -> None:
    request = GenerationRequest(TALK, max_tokens=1, adapter=ServedAdapter("run-1", b""))
    assert model_name("m", request, "llmos") == "m:run-1"
    assert model_name("m", request, "plain") == "run-1"
    assert model_name("m", GenerationRequest(TALK, max_tokens=1), "plain") == "m"


STREAM = (
    ': hello\r\nevent: x\r\ndata: one\r\n\r\ndata:two\ndata: "drei für €"\n\nid: 4\n\n'
    "data: four\r\rdata: five\n\ndata: not over"
).encode()
EVENTS = ["one", 'two\n"drei für €"', "four", "five"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_the_same_however_they_are_cut(cuts: list[int]) -> None:
    reader, edges = EventReader(), [0, *sorted(cuts), len(STREAM)]
    read: list[str] = []
    for start, end in pairwise(edges):
        read += reader.feed(STREAM[start:end])
    assert read == EVENTS


def test_one_byte_at_a_time_is_enough() -> None:
    reader = EventReader()
    assert [data for byte in STREAM for data in reader.feed(bytes([byte]))] == EVENTS


@pytest.mark.parametrize("part", [b"x" * 10, b"data: 123\n", b": never ending"])
def test_neither_lines_nor_events_grow_without_bound(part: bytes) -> None:
    reader = EventReader(limit=200)

    def feed() -> None:
        for _ in range(100):
            list(reader.feed(part))

    with pytest.raises(EngineError, match="200 bytes"):
        feed()


def test_bytes_that_are_no_text_are_named() -> None:
    with pytest.raises(EngineError, match="UTF-8"):
        list(EventReader().feed(b"data: \xff\n\n"))


def test_an_answer_is_its_pieces_and_an_end_with_counts() -> None:
    reader = AnswerReader(None)
    chunks = [
        choice(""),
        choice("Hel"),
        choice("lo \ud83d"),
        choice(None, finish="length"),
        usage(7, 2, cached=4),
    ]
    pieces = [reader.read(json.dumps(chunk)) for chunk in chunks]
    assert pieces == [None, Piece("Hel"), Piece("lo \ufffd"), None, None]
    assert reader.end() == Finished("length", 7, 2, 4)


def test_an_answer_without_an_end_has_none_and_one_without_usage_is_an_error() -> None:
    reader = AnswerReader(None)
    assert reader.end() is None
    reader.read(json.dumps(choice("x", finish="stop")))
    with pytest.raises(EngineError, match="include_usage"):
        reader.end()


def test_log_probabilities_of_conversations_come_with_their_bytes() -> None:
    def token(text: str, logprob: float, data: list[int] | None) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": data}

    told = token("€", -0.1, [226, 130]) | {
        "top_logprobs": [token("b", -3.0, None), token("€", -0.1, [226, 130])]
    }
    piece = AnswerReader(1).read(json.dumps(choice("", logprobs={"content": [told]})))
    assert piece is not None
    (logprob,) = piece.logprobs
    assert logprob.chosen == Alternative("€", b"\xe2\x82", -0.1)
    assert logprob.likeliest == (logprob.chosen,)


def test_log_probabilities_of_continued_texts_come_as_lists() -> None:
    told = {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -1.5],
        "top_logprobs": [{"a": -0.5, "x": -0.2}, {"b": -1.5}],
    }
    chunk = {"choices": [{"index": 0, "text": "ab", "logprobs": told}]}
    piece = AnswerReader(2).read(json.dumps(chunk))
    assert piece is not None
    assert piece.text == "ab"
    assert [each.chosen.text for each in piece.logprobs] == ["a", "b"]
    assert [each.text for each in piece.logprobs[0].likeliest] == ["x", "a"]


@pytest.mark.parametrize(
    "data",
    [
        "{",
        "[]",
        "null",
        "{}",
        '{"choices": 3}',
        '{"choices": [null]}',
        '{"choices": [{"delta": {"content": 3}}]}',
        '{"choices": [{"delta": 3}]}',
        '{"choices": [{"index": 0}]}',
        '{"choices": [], "usage": 3}',
        '{"choices": [{"delta": {}, "finish_reason": "content_filter"}]}',
        '{"choices": [{"delta": {}, "finish_reason": ["stop"]}]}',
        '{"choices": [{"delta": {}, "logprobs": {"content": [{"token": 1}]}}]}',
        "[" * 100_000,
    ],
)
def test_what_is_no_part_of_an_answer_is_an_error_of_ours(data: str) -> None:
    with pytest.raises(EngineError):
        AnswerReader(1).read(data)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "went wrong", "code": 500}, EngineError),
        ({"message": "went wrong", "code": "child_died"}, ChildDied),
        ({"message": "went wrong", "code": "engine.busy"}, EngineBusy),
        ({"message": "went wrong", "code": "engine.prompt"}, PromptRefused),
        ("went wrong", EngineError),
    ],
)
def test_an_error_within_a_stream_keeps_its_words(error: Any, kind: type[LlmOsError]) -> None:
    with pytest.raises(kind, match="went wrong") as caught:
        AnswerReader(None).read(json.dumps({"error": error}))
    assert type(caught.value) is kind


def refused(status: int, body: Any = None, *, run: str | None = None, **headers: str) -> LlmOsError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return refusal(NODE, status, headers, data, run=run)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "no such model"}}, "no such model"),
        ({"detail": "no such model"}, "no such model"),
        ({"message": "no such model", "type": "x"}, "no such model"),
        (b"no such\nmodel\x00", "no such model"),
    ],
)
def test_the_nodes_words_are_handed_on_in_one_line(body: Any, said: str) -> None:
    err = refused(404, body)
    assert type(err) is EngineError
    assert str(err) == f"host:1 answered 404: {said}"


def test_every_status_has_its_meaning() -> None:
    assert type(refused(404, run="r")) is RunNotFound
    for status in (400, 409, 413, 422):
        assert str(refused(status, {"error": {"message": "too long"}})) == "too long"
        assert type(refused(status)) is PromptRefused
    for status in (500, 502, 302, 418):
        assert type(refused(status)) is EngineError


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("", None), ("Wed, 21 Oct", None), ("-1", None), ("nan", None), ("9e9", 3600.0)],
)
def test_when_to_come_again_is_handed_on(header: str, seconds: float | None) -> None:
    for status in (429, 503):
        err = refusal(NODE, status, {"retry-after": header}, b"", run=None)
        assert type(err) is EngineBusy
        assert vars(err)["retry_after_s"] == seconds


def test_no_message_holds_the_key() -> None:
    body = {"error": {"message": "Incorrect API key provided: secret-key"}}
    for status in (400, 401, 403, 404, 429, 500):
        assert "secret-key" not in str(refused(status, body))
    assert "host:1 refuses the key" in str(refused(401, body))
    assert "secret-key" not in repr(NODE)


def test_a_long_message_is_cut() -> None:
    assert len(str(refused(500, b"x" * 100_000))) < 600


def test_addresses_are_read_with_and_without_v1_and_keys_for_all_or_each() -> None:
    one, two = parse_nodes("http://a:1/, https://b/x/v1/", "k")
    assert (one.url, one.name) == ("http://a:1/v1", "a:1")
    assert (two.url, two.name) == ("https://b/x/v1", "b/x")
    assert one.headers == two.headers == {"Authorization": "Bearer k"}
    one, two = parse_nodes("http://a:1,http://b:1", "k1, k2")
    assert (one.key, two.key) == ("k1", "k2")
    assert parse_nodes("http://a:1")[0].headers == {}


@pytest.mark.parametrize(
    ("urls", "keys", "named"),
    [
        ("", "", "no address"),
        ("ftp://a", "", "ftp://a"),
        ("a:1", "", "a:1"),
        ("http://", "", "http://"),
        ("http://[", "", "no address"),
        ("http://a:99999", "", "99999"),
        ("http://u:hidden@a", "", "no password"),
        ("http://a?x=1", "", r"\?"),
        ("http://a:1,http://a:1/v1", "", "twice"),
        ("http://a,http://b", "x1,x2,x3", "3 keys for 2"),
        ("http://a", "hid\nden", "printable"),
    ],
)
def test_what_is_wrong_with_addresses_and_keys_is_named(urls: str, keys: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        parse_nodes(urls, keys)
    assert "hid" not in str(caught.value)


def test_a_list_of_models_is_read_ours_and_vllms() -> None:
    ours = {"id": "m", "owned_by": "llmos", "state": "ready", "base": "ab", "context_tokens": 9}
    offer = offer_of(json.dumps({"data": [ours | {"stand_in": True}]}).encode(), "m")
    assert offer.models == {"m"}
    assert (offer.context_tokens, offer.base, offer.stand_in, offer.salted) == (
        9,
        "ab",
        True,
        False,
    )
    theirs = {"id": "m", "owned_by": "vllm", "max_model_len": 4096}
    offer = offer_of(json.dumps({"data": [theirs, {"id": "run-1"}]}).encode(), "m")
    assert offer.models == {"m", "run-1"}
    assert (offer.context_tokens, offer.base, offer.salted) == (4096, None, True)


def test_a_model_that_is_still_loaded_is_not_served_yet() -> None:
    body = {"data": [{"id": "m", "state": "failed", "reason": "no memory"}]}
    offer = offer_of(json.dumps(body).encode(), "m")
    assert (offer.models, offer.not_yet) == (frozenset(), "failed no memory")


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"data": 1}', b'{"data": [1]}', b"\xff"])
def test_what_is_no_list_of_models_is_an_error(body: bytes) -> None:
    with pytest.raises(EngineError):
        offer_of(body, "m")
