"""An application is served on loopback for as long as it is wanted, and no longer."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from edge_agent.api.server import served
from shared.errors import ConfigError


async def hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


APP = Starlette(routes=[Route("/", hello)])


def test_it_answers_at_once_and_stops_afterwards() -> None:
    with served(APP, 0) as port:
        url = f"http://127.0.0.1:{port}/"
        assert httpx.get(url, trust_env=False).text == "hello"
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)
    with served(APP, port) as again:  # the port is free again
        assert again == port


def test_a_taken_port_is_said_in_words() -> None:
    with served(APP, 0) as port:
        second = served(APP, port)
        with pytest.raises(ConfigError, match=str(port)):
            second.__enter__()
