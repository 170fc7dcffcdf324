"""Who may not ask is answered before a byte of the body is read; who may is read to a bound."""

from __future__ import annotations

import asyncio

import pytest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from coordinator.api import gate, roles
from coordinator.api.access import Principal
from coordinator.api.gate import HEADERS_BYTES, TARGET_BYTES, Gate, own_origin
from coordinator.api.roles import (
    JOB_BYTES,
    PERMISSIONS,
    QUESTION_BYTES,
    SMALL_BYTES,
    Permission,
    Role,
)
from coordinator.inference.front_desk import Caller
from shared.errors import LlmOsError

CHUNK = 1024
KEYS = {f"Bearer {role}": Principal(Caller(role), role) for role in Role}


def identify(headers: Headers) -> Principal | None:
    return KEYS.get(headers.get("authorization") or headers.get("cookie", ""))


class Sender:
    """Sends a body of some length in chunks, and counts how much was asked for."""

    def __init__(self, length: int) -> None:
        self.sent = 0
        self.status = 0
        self._length = length

    async def receive(self) -> Message:
        size = min(CHUNK, self._length - self.sent)
        self.sent += size
        more = self.sent < self._length
        return {"type": "http.request", "body": b"x" * size, "more_body": more}

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)


async def reads_all(_scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 204, "headers": []})


async def answers(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})


def serve(sender: Sender, shown: str, path: str, method: str = "POST") -> None:
    headers = [(b"authorization", shown.encode())]
    scope = {"type": "http", "headers": headers, "path": path, "method": method}
    asyncio.run(Gate(reads_all, identify=identify)(scope, sender.receive, sender.send))


@pytest.mark.parametrize(
    ("role", "path", "status"),
    [
        ("nobody", "/api/v1/runs", 401),
        ("nobody", "/nowhere", 401),
        ("viewer", "/api/v1/runs", 403),
        ("caller", "/api/v1/runs", 403),
        ("viewer", "/v1/chat/completions", 403),
        ("admin", "/nowhere", 404),
        ("admin", "/healthz", 405),
    ],
)
@pytest.mark.parametrize("length", [1, 2**40])
def test_of_whom_is_refused_nothing_is_read(role: str, path: str, status: int, length: int) -> None:
    sender = Sender(length)
    serve(sender, f"Bearer {role}", path)
    assert (sender.status, sender.sent) == (status, 0)


@pytest.mark.parametrize(
    ("role", "path", "most"),
    [
        ("nobody", "/api/v1/devices/join", SMALL_BYTES),
        ("admin", "/api/v1/devices/join", SMALL_BYTES),
        ("caller", "/v1/chat/completions", QUESTION_BYTES),
        ("admin", "/v1/chat/completions", QUESTION_BYTES),
        ("operator", "/api/v1/keys", 0),
        ("admin", "/api/v1/keys", SMALL_BYTES),
    ],
)
def test_a_body_is_read_as_far_as_its_route_has_use_for(role: str, path: str, most: int) -> None:
    sender = Sender(most)
    serve(sender, f"Bearer {role}", path)
    assert sender.sent == most
    if most:
        sender = Sender(2**40)
        with pytest.raises(HTTPException) as caught:
            serve(sender, f"Bearer {role}", path)
        assert caught.value.status_code == 413
        assert sender.sent <= most + CHUNK


def test_a_job_with_its_examples_has_room_and_is_the_only_thing_that_has() -> None:
    large = {(each.method, each.route) for each in PERMISSIONS if each.body_bytes > QUESTION_BYTES}
    assert large == {("POST", "/api/v1/runs")}
    sender = Sender(2 * QUESTION_BYTES)
    serve(sender, "Bearer operator", "/api/v1/runs")
    assert sender.sent == 2 * QUESTION_BYTES < JOB_BYTES


def test_who_asks_is_known_to_the_route_and_a_stranger_is_nobody() -> None:
    seen = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append((scope["state"]["principal"], scope["state"].get("other")))

    for path, state in (("/v1/models", {"other": 1}), ("/healthz", {})):
        headers = [(b"authorization", b"Bearer caller")]
        scope = {"type": "http", "headers": headers, "path": path, "method": "GET", "state": state}
        sender = Sender(0)
        asyncio.run(Gate(app, identify=identify)(scope, sender.receive, sender.send))
        assert "principal" not in state, "one request's must not be found by the next"
    assert seen == [(Principal(Caller("caller"), Role.CALLER), 1), (None, None)]


# Lines and headers that are too long, bodies that are too slow


@pytest.mark.parametrize(("more", "status"), [(0, 401), (1, 414)])
@pytest.mark.parametrize("of", ["path", "query"])
def test_a_path_with_its_query_has_a_bound(of: str, more: int, status: int) -> None:
    start = b"/x"
    long = b"a" * (TARGET_BYTES - len(start) + more)
    path, query = (start + long, b"") if of == "path" else (start, long)
    scope = {
        "type": "http",
        "method": "GET",
        "path": path.decode(),
        "raw_path": path,
        "query_string": query,
        "headers": [],
    }
    sender = Sender(0)
    asyncio.run(Gate(reads_all, identify=identify)(scope, sender.receive, sender.send))
    assert sender.status == status


@pytest.mark.parametrize(("more", "status"), [(0, 401), (1, 431)])
@pytest.mark.parametrize("number", [1, 100])
def test_headers_have_a_bound_however_many_they_are(number: int, more: int, status: int) -> None:
    left = HEADERS_BYTES - 2 * (number - 1) + more
    headers = [(b"a", b"b")] * (number - 1) + [(b"a", b"b" * (left - 1))]
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers}
    sender = Sender(0)
    asyncio.run(Gate(reads_all, identify=identify)(scope, sender.receive, sender.send))
    assert sender.status == status


class Stalls(Sender):
    """Sends the first chunks at once, and then nothing."""

    def __init__(self, at_once: int) -> None:
        super().__init__(2**40)
        self._at_once = at_once

    async def receive(self) -> Message:
        if self.sent >= self._at_once:
            await asyncio.Event().wait()
        return await super().receive()


@pytest.mark.parametrize("at_once", [0, 2 * CHUNK])
def test_a_body_that_does_not_come_is_not_waited_for(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "PATIENCE_S", 0.1)
    sender = Stalls(at_once)
    with pytest.raises(HTTPException) as caught:
        serve(sender, "Bearer nobody", "/api/v1/devices/join")
    assert (caught.value.status_code, sender.sent) == (408, at_once)


@pytest.mark.parametrize(("chunk_s", "whole"), [(0.06, True), (0.1, False)])
def test_a_long_body_may_take_as_long_as_its_bytes_allow(chunk_s: float, whole: bool) -> None:
    """A chunk in 0.06 s is faster than 16 KiB a second, one in 0.1 s is not."""
    sender = Sender(10_000 * CHUNK)
    headers = [(b"authorization", b"Bearer admin")]
    scope = {"type": "http", "headers": headers, "path": "/api/v1/runs", "method": "POST"}

    def monotonic() -> float:
        return sender.sent / CHUNK * chunk_s

    app = Gate(reads_all, identify=identify, monotonic=monotonic)
    if whole:
        asyncio.run(app(scope, sender.receive, sender.send))
        assert sender.status == 204
        return
    with pytest.raises(HTTPException) as caught:
        asyncio.run(app(scope, sender.receive, sender.send))
    assert caught.value.status_code == 408
    assert 795 <= sender.sent / CHUNK <= 805, "30 s, and what came in them has earned 50 more"


def test_after_the_body_a_client_may_listen_for_as_long_as_it_likes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "PATIENCE_S", 0.05)

    async def listens(_scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        leaving = asyncio.ensure_future(receive())
        await asyncio.sleep(0.2)  # longer than the body had
        assert not leaving.done()
        leaving.cancel()
        await send({"type": "http.response.start", "status": 204, "headers": []})

    class Stays(Sender):
        async def receive(self) -> Message:
            if self.sent == 10:
                await asyncio.Event().wait()
            return await super().receive()

    sender = Stays(10)
    headers = [(b"authorization", b"Bearer caller")]
    scope = {
        "type": "http",
        "headers": headers,
        "path": "/v1/chat/completions",
        "method": "POST",
    }
    asyncio.run(Gate(listens, identify=identify)(scope, sender.receive, sender.send))
    assert sender.status == 204


# Pages of another origin


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    ("scheme", "origin", "own"),
    [
        ("http", "http://here:8443", True),
        ("https", "https://here:8443", True),
        ("https", "http://here:8443", False),
        ("http", "https://here:8443", False),
        ("http", "http://here", False),
        ("http", "http://here:8443.elsewhere", False),
        ("http", "http://elsewhere:8443", False),
        ("http", "null", False),
        ("http", "", False),
        ("http", None, False),
    ],
)
@pytest.mark.parametrize("shown", ["cookie", "authorization", "both", "nothing"])
def test_with_a_cookie_only_pages_of_ours_change_something(
    shown: str, scheme: str, origin: str | None, own: bool, method: str
) -> None:
    path = "/healthz" if shown == "nothing" else "/here"
    lines = (Permission(method, path, frozenset(Role if shown == "nothing" else [Role.ADMIN])),)
    headers = [(b"host", b"here:8443")]
    if origin is not None:
        headers.append((b"origin", origin.encode()))
    if shown in ("cookie", "both"):
        headers.append((b"cookie", b"Bearer admin"))
    if shown in ("authorization", "both"):
        headers.append((b"authorization", b"Bearer admin"))
    scope = {
        "type": "http",
        "scheme": scheme,
        "method": method,
        "path": path,
        "headers": headers,
    }
    sender = Sender(2**40 if method in ("POST", "PUT") else 0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(roles, "PERMISSIONS", lines)
        app = Gate(answers, identify=identify)
        asyncio.run(app(scope, sender.receive, sender.send))
    reads = method in ("GET", "HEAD")
    expected = {
        "cookie": reads or own,
        "authorization": True,
        "both": True,
        "nothing": reads or own or origin is None,
    }
    assert sender.status == (204 if expected[shown] else 403)
    assert sender.sent == 0


@pytest.mark.parametrize(
    ("scheme", "own"), [("ws", "http://here"), ("wss", "https://here"), ("https", "https://here")]
)
def test_a_sockets_origin_is_that_of_its_page(scheme: str, own: str) -> None:
    headers = Headers({"host": "here"})
    assert own_origin({"type": "websocket", "scheme": scheme}, headers) == own


class Seen:
    """What a gate tells whoever watches."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    def message_refused(self, peer: str | None, err: LlmOsError, *, by_itself: bool) -> None:
        raise AssertionError("a gate sees no messages")

    def update_refused(self, device: str, err: LlmOsError) -> None:
        raise AssertionError("a gate sees no updates")

    def credential_refused(self, address: str) -> None:
        self.told.append(("credential", address))

    def request_refused(self, caller: str) -> None:
        self.told.append(("request", caller))

    def key_used(self, key: str, address: str) -> None:
        self.told.append(("key", key, address))


@pytest.mark.parametrize(
    ("method", "path", "shown", "app_says", "told"),
    [
        ("GET", "/api/v1/runs", "Bearer nobody", 200, [("credential", "10.0.0.7")]),
        ("GET", "/api/v1/runs", None, 200, []),
        ("GET", "/nowhere", "Bearer nobody", 200, [("credential", "10.0.0.7")]),
        ("GET", "/api/v1/runs", "Bearer caller", 200, [("request", "caller")]),
        ("GET", "/api/v1/runs", "Bearer viewer", 200, [("key", "viewer", "10.0.0.7")]),
        ("GET", "/nowhere", "Bearer viewer", 404, []),
        ("GET", "/healthz", "Bearer nobody", 200, []),
        ("POST", "/api/v1/session", None, 401, [("credential", "10.0.0.7")]),
        ("POST", "/api/v1/session", None, 200, []),
        ("POST", "/api/v1/session", None, 429, []),
        ("POST", "/api/v1/devices/join", None, 401, [("credential", "10.0.0.7")]),
    ],
)
def test_it_tells_who_is_refused_and_from_where_keys_are_used(
    method: str, path: str, shown: str | None, app_says: int, told: list[tuple[str, ...]]
) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": app_says, "headers": []})

    seen, sender = Seen(), Sender(1)
    headers = [(b"authorization", shown.encode())] if shown is not None else []
    scope: Scope = {"type": "http", "headers": headers, "path": path, "method": method}
    scope["client"] = ("10.0.0.7", 1234)
    asyncio.run(Gate(app, identify=identify, watch=seen)(scope, sender.receive, sender.send))
    assert seen.told == told


def test_where_people_are_is_nobodys_business() -> None:
    seen, sender = Seen(), Sender(1)
    scope: Scope = {"type": "http", "headers": [], "path": "/api/v1/runs", "method": "GET"}
    person = Principal(Caller("person:ada"), Role.VIEWER)
    gate = Gate(answers, identify=lambda _: person, watch=seen)
    asyncio.run(gate(scope, sender.receive, sender.send))
    assert (sender.status, seen.told) == (204, [])


def test_an_old_cookie_is_no_credential_that_somebody_guesses() -> None:
    seen, sender = Seen(), Sender(1)
    headers = [(b"cookie", b"llmos_session=old")]
    scope = {"type": "http", "headers": headers, "path": "/api/v1/runs", "method": "GET"}
    asyncio.run(Gate(answers, identify=identify, watch=seen)(scope, sender.receive, sender.send))
    assert (sender.status, seen.told) == (401, [])
