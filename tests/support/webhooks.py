"""Who listens for alarms: a real HTTP server that answers as a test tells it to."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Listener:
    """What came in, and what is answered."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    """For the next requests; then 204."""
    headers: dict[str, str] = field(default_factory=dict)
    """Of every answer."""
    held: threading.Event | None = None
    """No answer before this is set."""
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def alarms(self) -> list[dict[str, Any]]:
        return [json.loads(body)["data"] for _, body in self.received]


def fits(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """Whether a signature is right, as the specification of Standard Webhooks has it checked."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = b".".join(
        [headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body]
    )
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return f"v1,{expected}" in headers["webhook-signature"].split(" ")


@contextmanager
def listening() -> Iterator[Listener]:
    """A server on loopback."""
    listener = Listener()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            listener.received.append((headers, body))
            listener.paths.append(self.path)
            if listener.held is not None:
                listener.held.wait(60)
            self.send_response(listener.statuses.pop(0) if listener.statuses else 204)
            for name, value in listener.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815  for a redirect that somebody follows

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        listener.url = f"http://127.0.0.1:{server.server_port}/alarms"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield listener
        finally:
            if listener.held is not None:
                listener.held.set()
            server.shutdown()
            thread.join()
