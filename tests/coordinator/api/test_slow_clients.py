"""The real application behind the real server, with clients that are slow or say too much."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import httpx
import pytest

from coordinator.api import gate
from coordinator.api.app import create_app
from coordinator.api.gate import HEADERS_BYTES, TARGET_BYTES
from coordinator.api.roles import SMALL_BYTES
from shared.loopback import LOOPBACK, served
from tests.support.scripted_engine import TOKEN, ScriptedEngine, services_of

WAIT_S = 120
JOIN = b"POST /api/v1/devices/join HTTP/1.1\r\nHost: here\r\n"


@pytest.fixture
def port() -> Iterator[int]:
    with served(create_app(services_of([ScriptedEngine()])), 0, extra="coordinator") as port:
        yield port


@contextlib.contextmanager
def saying(port: int, said: bytes, *, times: int = 1) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(times):
            connection = socket.create_connection((LOOPBACK, port), timeout=WAIT_S)
            stack.enter_context(connection)
            connection.sendall(said)
            made.append(connection)
        yield made


def get(port: int, path: str, **headers: str) -> httpx.Response:
    return httpx.get(
        f"http://{LOOPBACK}:{port}{path}", headers=headers, timeout=WAIT_S, trust_env=False
    )


def test_health_is_answered_beside_two_hundred_of_each_kind_of_slow_client(port: int) -> None:
    silent, half, body = b"", JOIN[:-4], JOIN + b"Content-Length: 500\r\n\r\n{"
    with (
        saying(port, silent, times=200),
        saying(port, half, times=200),
        saying(port, body, times=200) as bodies,
    ):
        assert get(port, "/healthz").json() == {"status": "ok"}
        answer = get(port, "/v1/models", Authorization=f"Bearer {TOKEN}")
        assert [each["id"] for each in answer.json()["data"]] == ["scripted"]
        for connection in bodies:
            connection.sendall(b" ")
        assert get(port, "/healthz").status_code == 200


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (b"Content-Length: 500", b"{", b"408"),
        (b"Transfer-Encoding: chunked", b"1\r\n{\r\n", b"408"),
        (b"Content-Length: 16385", b" " * (SMALL_BYTES + 1), b"413"),
        (b"Transfer-Encoding: chunked", b"10000\r\n" + b" " * 0x10000 + b"\r\n", b"413"),
        (b"X: " + b"a" * HEADERS_BYTES + b"\r\nContent-Length: 0", b"", b"431"),
    ],
)
def test_a_join_that_is_too_slow_or_too_long_is_a_problem_document(
    port: int, headers: bytes, body: bytes, status: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if status == b"408":
        monkeypatch.setattr(gate, "PATIENCE_S", 0.1)
    with saying(port, JOIN + headers + b"\r\n\r\n" + body) as (connection,):
        answer = b""
        while b'"retryable"' not in answer:
            more = connection.recv(4096)
            assert more, answer
            answer += more
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"application/problem+json" in answer
    assert get(port, "/healthz").status_code == 200


def test_a_path_that_is_too_long_is_refused_before_anybody_is_asked_who_they_are(
    port: int,
) -> None:
    assert get(port, "/v1/models?" + "a" * TARGET_BYTES).json()["error"]["code"] == "request"
    assert get(port, "/" + "a" * TARGET_BYTES).status_code == 414
