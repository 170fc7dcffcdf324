"""Connections that say nothing, or too slowly, keep nobody else from being answered. Real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared import http_connections
from shared.http_connections import HEAD_BYTES, room
from shared.loopback import LOOPBACK, served

ROOT = Path(__file__).parents[2]
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"
PART = WHOLE[:-10]
WAIT_S = 120
"""For what must come: far more than it ever takes."""


class App:
    """Answers at once, or at ``/slow`` when it is told to; reads every body."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked: list[str] = []

    def wait_for(self, number: int) -> None:
        """Until so many requests were begun."""
        while len(self.asked) < number:
            time.sleep(0.005)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        self.asked.append(scope["path"])
        while (await receive()).get("more_body"):
            pass
        while scope["path"] == "/slow" and not self.go.is_set():  # noqa: ASYNC110  by a thread
            await asyncio.sleep(0.002)
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def app() -> Iterator[App]:
    app = App()
    yield app
    app.go.set()


@contextlib.contextmanager
def connected(port: int, number: int = 1, say: bytes = b"") -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(number):
            connection = socket.create_connection((LOOPBACK, port), timeout=WAIT_S)
            stack.enter_context(connection)
            if say:
                connection.sendall(say)
            made.append(connection)
        yield made


def answer_of(connection: socket.socket) -> bytes:
    """What comes, up to the end of a short answer or of the connection."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while not said.endswith(b"ok") and (more := connection.recv(4096)):
            said += more
    return said


def is_healthy(port: int) -> bool:
    with connected(port, say=WHOLE) as (connection,):
        return answer_of(connection).startswith(b"HTTP/1.1 200")


def test_beside_two_hundred_that_never_finish_their_head_health_is_answered(app: App) -> None:
    with served(app, 0, extra="coordinator") as port, connected(port, 200, PART) as slow:
        for connection in slow[:50]:
            connection.sendall(b"X")
        assert is_healthy(port)
    assert app.asked == ["/healthz"]


SERVER = """
import resource, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (700, 700))
from shared.loopback import served
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
with served(app, 0, extra="coordinator", lifespan="off") as port:
    print(port, flush=True)
    sys.stdin.read()
"""


def test_also_where_there_are_more_of_them_than_the_process_may_open_files() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        with connected(port, 900, PART):
            assert is_healthy(port)
    finally:
        _, complaints = child.communicate(timeout=WAIT_S)
    assert (child.returncode, complaints) == (0, ""), "nobody had to wait for a file"


def test_who_never_finishes_a_head_is_hung_up_on(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "HEAD_S", 0.2)
    with served(app, 0, extra="coordinator") as port:
        for said in (b"", b"G", PART):
            with connected(port, say=said) as (connection,):
                assert answer_of(connection) == b""
        with connected(port, say=WHOLE) as (connection,):
            assert answer_of(connection).endswith(b"ok")
            connection.sendall(PART)  # of the second request
            assert answer_of(connection) == b""
    assert app.asked == ["/healthz"]


def test_between_two_requests_the_clock_stands(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "HEAD_S", 0.2)
    with served(app, 0, extra="coordinator") as port, connected(port) as (connection,):
        for _ in range(2):
            connection.sendall(WHOLE)
            assert answer_of(connection).endswith(b"ok")
            time.sleep(0.4)  # longer than a head may take, and shorter than a connection is kept
        connection.sendall(PART)
        assert answer_of(connection) == b""


def test_a_letter_now_and_then_buys_no_time(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "HEAD_S", 0.3)
    with served(app, 0, extra="coordinator") as port, connected(port) as (connection,):
        connection.settimeout(0.05)
        said = 0
        with contextlib.suppress(ConnectionError):
            while said < WAIT_S * 20:
                connection.sendall(b"G")
                said += 1
                with contextlib.suppress(TimeoutError):
                    if connection.recv(1) == b"":
                        break
        assert said < WAIT_S * 20


def test_a_request_under_way_is_not_cut_off(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "HEAD_S", 0.05)
    head = b"POST /slow HTTP/1.1\r\nHost: here\r\nContent-Length: 3\r\n\r\n"
    with served(app, 0, extra="coordinator") as port, connected(port, say=head) as (connection,):
        for letter in (b"a", b"b", b"c"):
            time.sleep(0.1)  # longer than a head may take
            connection.sendall(letter)
        time.sleep(0.1)
        app.go.set()
        assert answer_of(connection).endswith(b"ok")


def test_what_follows_a_refused_request_for_ever_is_not_listened_to_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuses(scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    monkeypatch.setattr(http_connections, "HEAD_S", 0.2)
    head = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 1000000\r\n\r\n"
    with (
        served(refuses, 0, extra="coordinator", lifespan="off") as port,
        connected(port, say=head) as (connection,),
    ):
        assert answer_of(connection).endswith(b"ok")
        connection.sendall(b"x")
        assert answer_of(connection) == b""


def test_one_too_many_takes_the_place_of_who_has_owed_longest(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connections, "room", lambda: 4)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(served(app, 0, extra="coordinator"))
        first = stack.enter_context(connected(port, 4, PART))
        for connection in first:
            (one_more,) = stack.enter_context(connected(port, say=PART))
            assert answer_of(connection) == b"", "the oldest goes"
        one_more.sendall(WHOLE[len(PART) :])
        assert answer_of(one_more).endswith(b"ok"), "and the newest stays"


def test_who_owes_a_body_gives_its_place_when_nobody_owes_a_head(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connections, "room", lambda: 3)
    owing = b"POST /join HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\nx"
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(served(app, 0, extra="coordinator"))
        first, second = stack.enter_context(connected(port, 2, owing))
        (silent,) = stack.enter_context(connected(port, say=PART))
        app.wait_for(2)
        stack.enter_context(connected(port, say=PART))
        assert answer_of(silent) == b""
        stack.enter_context(connected(port, say=owing))
        app.wait_for(3)
        stack.enter_context(connected(port, say=PART))
        assert answer_of(first) == b"", "the oldest"
        second.sendall(b"y" * 8)
        assert answer_of(second).endswith(b"ok")


def test_who_is_being_answered_gives_its_place_to_nobody(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connections, "room", lambda: 2)
    slow = WHOLE.replace(b"/healthz", b"/slow")
    with served(app, 0, extra="coordinator") as port, connected(port, 2, slow) as answered:
        app.wait_for(2)
        with connected(port, say=WHOLE) as (third,):
            assert answer_of(third).startswith(b"HTTP/1.1 503")
        app.go.set()
        assert [answer_of(each)[-2:] for each in answered] == [b"ok", b"ok"]
        assert is_healthy(port)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 2 * HEAD_BYTES,
        b"GET / HTTP/1.1\r\nHost: " + b"a" * 2 * HEAD_BYTES,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * HEAD_BYTES,
    ],
)
def test_a_head_without_end_is_refused(app: App, head: bytes) -> None:
    with served(app, 0, extra="coordinator") as port, connected(port) as (connection,):
        with contextlib.suppress(ConnectionError):
            connection.sendall(head)
        assert answer_of(connection)[:12] in (b"HTTP/1.1 400", b"")
        assert is_healthy(port)
    assert app.asked == ["/healthz"]


def test_there_is_room_for_as_many_as_files_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, places in ((100, 50), (1024, 512), (1_000_000, 4096), (1, 1)):
        monkeypatch.setattr("resource.getrlimit", lambda _, files=files: (files, files))
        assert room() == places
