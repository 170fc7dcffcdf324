"""A body is read no further than its sender may go, and nobody need be believed about its length."""

from __future__ import annotations

import asyncio

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from coordinator.api.bodies import (
    ADMINS_BYTES,
    CALLERS_BYTES,
    STRANGERS_BYTES,
    BoundedBodies,
)

CHUNK = 1024


class Sender:
    """Sends a body of some length in chunks, and counts how much was asked for."""

    def __init__(self, length: int) -> None:
        self.sent = 0
        self._length = length

    async def receive(self) -> Message:
        size = min(CHUNK, self._length - self.sent)
        self.sent += size
        more = self.sent < self._length
        return {"type": "http.request", "body": b"x" * size, "more_body": more}


async def reads_all(_scope: Scope, receive: Receive, _send: Send) -> None:
    while (await receive())["more_body"]:
        pass


async def nothing(_message: Message) -> None:
    """Nobody listens."""


def serve(sender: Sender, credential: str = "", path: str = "/api/v1/runs") -> None:
    app = BoundedBodies(
        reads_all,
        is_admin=lambda shown: shown == "Bearer right",
        is_caller=lambda shown: shown == "Bearer key",
    )
    headers = [(b"authorization", credential.encode())] if credential else []
    scope = {"type": "http", "headers": headers, "path": path}
    asyncio.run(app(scope, sender.receive, nothing))


@pytest.fixture(params=["", "Bearer wrong"])
def stranger(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_stranger_may_send_as_much_as_a_join_needs(stranger: str) -> None:
    sender = Sender(STRANGERS_BYTES)
    serve(sender, stranger)
    assert sender.sent == STRANGERS_BYTES


@pytest.mark.parametrize("length", [STRANGERS_BYTES + 1, 2**40])
def test_of_more_no_more_is_read(stranger: str, length: int) -> None:
    sender = Sender(length)
    with pytest.raises(HTTPException) as caught:
        serve(sender, stranger)
    assert caught.value.status_code == 413
    assert sender.sent <= STRANGERS_BYTES + CHUNK


def test_who_shows_the_token_may_send_a_job_with_its_examples() -> None:
    sender = Sender(100 * STRANGERS_BYTES)
    serve(sender, "Bearer right")
    assert sender.sent == 100 * STRANGERS_BYTES
    assert ADMINS_BYTES > 100 * STRANGERS_BYTES


def test_who_shows_an_api_key_may_send_a_conversation_to_v1_alone() -> None:
    sender = Sender(CALLERS_BYTES)
    serve(sender, "Bearer key", "/v1/chat/completions")
    assert sender.sent == CALLERS_BYTES
    for path, most in (
        ("/v1/chat/completions", CALLERS_BYTES),
        ("/api/v1/runs", STRANGERS_BYTES),
        ("/v1", STRANGERS_BYTES),
    ):
        sender = Sender(2**40)
        with pytest.raises(HTTPException):
            serve(sender, "Bearer key", path)
        assert sender.sent <= most + CHUNK
