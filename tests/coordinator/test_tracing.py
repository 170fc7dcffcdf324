"""Spans reach a real receiver, hang together, and hold nothing that was asked or learnt."""

from __future__ import annotations

import dataclasses
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from coordinator.api.app import create_app
from coordinator.api.roles import PERMISSIONS, route_of
from coordinator.federation.rounds import AdapterApplied, KeyAnnounced, Planned, RoundFailed
from coordinator.store.store import Store
from coordinator.tracing import EngineSpans, RoundSpans, Tracing
from coordinator.usage import Meters
from shared.errors import ConfigError, DependencyMissing
from shared.types import Digest, RoundNumber, RunId
from tests.support.coordinator_api import HEADERS, TOKEN, Api
from tests.support.trace_receivers import Receiver, receiving

PROMPT = "the-prompt-of-somebody"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


def traced(api: Api, tracing: Tracing) -> FastAPI:
    """The application of ``api``, with spans."""
    api.desk._meter = Meters(EngineSpans(tracing))
    return create_app(dataclasses.replace(api.services, tracing=tracing))


def test_a_request_is_a_span_with_its_id_and_the_engine_below_it(
    api: Api, receiver: Receiver
) -> None:
    tracing = Tracing(receiver.url)
    client = TestClient(traced(api, tracing), raise_server_exceptions=False)
    body = {"model": "scripted", "messages": [{"role": "user", "content": PROMPT}]}
    headers = HEADERS | {"X-Request-Id": "mine-1"}
    answer = client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200
    assert client.get(f"/api/v1/runs/{PROMPT}", headers=HEADERS).status_code == 404
    assert client.get(f"/{PROMPT}").status_code in (401, 404)
    assert client.request(PROMPT.upper(), f"/{PROMPT}").status_code >= 400
    tracing.close()
    (asked,) = receiver.named("POST /v1/chat/completions")
    assert asked.facts == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "llmos.request": "mine-1",
    }
    (engine,) = receiver.named("engine")
    assert (engine.parent, engine.trace) == (asked.id, asked.trace)
    assert asked.begun_ns <= engine.begun_ns <= engine.ended_ns <= asked.ended_ns
    assert engine.facts["llmos.outcome"] == answer.json()["choices"][0]["finish_reason"]
    assert engine.facts["llmos.request"] == "mine-1"
    assert engine.facts["llmos.prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    (missing,) = receiver.named("GET /api/v1/runs/{run}")
    assert missing.facts["http.response.status_code"] == 404
    assert len(receiver.named("other unknown")) == 2
    assert receiver.paths == {"/v1/traces"}
    sent = b"".join(receiver.bodies).lower()
    for secret in (PROMPT, TOKEN, "hello, world"):
        assert secret.encode() not in sent


def test_an_error_is_told_by_its_class_alone(receiver: Receiver) -> None:
    """S2."""
    tracing = Tracing(receiver.url)
    with pytest.raises(ValueError, match=PROMPT), tracing.span("work", {}):
        raise ValueError(PROMPT)
    tracing.close()
    (span,) = receiver.spans
    assert span.facts == {"error.type": "ValueError"}
    assert PROMPT.encode() not in b"".join(receiver.bodies)


def test_a_round_is_a_span_with_its_steps_below_it(tmp_path: Path, receiver: Receiver) -> None:
    tracing = Tracing(receiver.url)
    store = Store(f"sqlite:///{tmp_path / 'store.db'}", tmp_path)
    RoundSpans(tracing, store)
    adapter = Digest("a" * 64)
    of, one, two = RunId("tickets"), RoundNumber(1), RoundNumber(2)
    store.add_run(of, "{}", adapter, now=0.0)
    store.commit(of, one, Planned(adapter), now=1.0)
    store.commit(of, one, KeyAnnounced(b"the-key-of-the-round"), now=2.0)
    applied = AdapterApplied(adapter, True, "", {"": 1.0}, loss=0.5, moments=adapter)
    store.commit(of, one, applied, now=3.0)
    store.commit(of, two, RoundFailed("privacy.cohort", PROMPT), now=4.0)
    store.close()
    tracing.close()
    first, second = receiver.named("round")
    assert first.facts == {
        "llmos.run": "tickets",
        "llmos.round": 1,
        "llmos.resumed": False,
        "llmos.outcome": "accepted",
    }
    (key,), (apply,) = receiver.named("round.key"), receiver.named("round.apply")
    assert key.parent == apply.parent == first.id
    assert first.begun_ns == key.begun_ns <= key.ended_ns == apply.begun_ns
    assert apply.ended_ns == first.ended_ns
    assert (second.facts["llmos.resumed"], second.facts["llmos.outcome"]) == (
        True,
        "privacy.cohort",
    )
    sent = b"".join(receiver.bodies)
    assert b"the-key-of-the-round" not in sent
    assert PROMPT.encode() not in sent


def test_a_collector_that_never_answers_holds_up_nothing_but_the_end_and_that_not_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S3."""
    monkeypatch.setattr("coordinator.tracing.CLOSE_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracing = Tracing(f"http://127.0.0.1:{silent.getsockname()[1]}")
        for _ in range(5000):
            with tracing.span("work", {}):
                pass
        tracing.close()
        # Still at it, and nobody waits for it.
        last = [thread for thread in threading.enumerate() if thread.name == "last-spans"]
        assert [thread.daemon for thread in last] == [True]


@pytest.mark.parametrize("endpoint", ["here", "ftp://x", "http://", "http://x:port", "http://[x"])
def test_what_is_no_address_is_refused_and_not_repeated(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="--otel-endpoint: expected http"):
        Tracing(endpoint)


def test_without_the_extra_it_is_said_which_one_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    with pytest.raises(DependencyMissing, match=r"\.\[otel\]"):
        Tracing("http://127.0.0.1:4318")


def test_every_line_of_the_table_is_a_route_and_what_has_none_is_no_route() -> None:
    for each in PERMISSIONS:
        path = each.route.replace("{", "").replace("}", "").replace(":path", "")
        assert route_of(each.method, path) is not None
    assert route_of("GET", "/nowhere") is None
    assert route_of("PATCH", "/healthz") is None
