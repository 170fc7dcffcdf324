"""OSV is asked for names and versions only, and whatever it answers is survived."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from coordinator.security.advisories import ask
from coordinator.security.facts import Advisory, Library
from shared.errors import ProtocolError

LIBRARIES = (Library("numpy", "1.0", ">=1.26", fits=False), Library("httpx", "0.28.1"))

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


@contextmanager
def osv(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server with OSV's batch API on loopback, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, **body})
            status, said = answer(body)
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_libraries_with_advisories_are_named_with_their_ids() -> None:
    """O1."""

    def answer(_: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"results": [{"vulns": [{"id": "PYSEC-2"}, {"id": "GHSA-1"}]}, {}]}

    with osv(answer) as (url, asked):
        assert ask(LIBRARIES, url=url) == [Advisory("numpy", "1.0", ("GHSA-1", "PYSEC-2"))]
    assert asked == [
        {
            "path": "/v1/querybatch",
            "queries": [
                {"package": {"name": "numpy", "ecosystem": "PyPI"}, "version": "1.0"},
                {"package": {"name": "httpx", "ecosystem": "PyPI"}, "version": "0.28.1"},
            ],
        }
    ]


def test_what_does_not_fit_a_page_is_asked_for_again() -> None:
    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        if "page_token" in body["queries"][0]:
            return 200, {"results": [{"vulns": [{"id": "B"}]}]}
        return 200, {"results": [{}, {"vulns": [{"id": "A"}], "next_page_token": "more"}]}

    with osv(answer) as (url, asked):
        assert ask(LIBRARIES, url=url) == [Advisory("httpx", "0.28.1", ("A", "B"))]
    assert [len(each["queries"]) for each in asked] == [2, 1]
    assert asked[1]["queries"][0]["page_token"] == "more"  # noqa: S105  a place in a listing


def test_pages_without_end_are_left_after_some() -> None:
    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"results": [{"next_page_token": "more"} for _ in body["queries"]]}

    with osv(answer) as (url, asked):
        assert ask(LIBRARIES, url=url) == []
    assert len(asked) == 20


def test_an_id_that_could_garble_a_terminal_is_none() -> None:
    def answer(_: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"results": [{"vulns": [{"id": "\x1b[31m"}, {"id": "x" * 99}]}, {}]}

    with osv(answer) as (url, _):
        assert ask(LIBRARIES, url=url) == []


@pytest.mark.parametrize(
    "said",
    [
        (500, {}),
        (200, b"<html>"),
        (200, []),
        (200, {"results": [{}]}),
        (200, {"results": [{"vulns": [{}]}, {}]}),
        (200, {"results": [None, {}]}),
        (200, b" " * (16 * 1024 * 1024) + b'{"results": [{}, {}]}'),
    ],
    ids=["refused", "no JSON", "no table", "too few", "no id", "no result", "too long"],
)
def test_any_other_answer_is_one_error(said: tuple[int, Any]) -> None:
    """O2."""
    with osv(lambda _: said) as (url, _), pytest.raises(ProtocolError, match=r"127\.0\.0\.1"):
        ask(LIBRARIES, url=url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "no address", "http://127.0.0.1:x"])
def test_nobody_there_is_one_error(url: str) -> None:
    with pytest.raises(ProtocolError):
        ask(LIBRARIES, url=url)
