"""A coordinator over TLS as far as peers that join or renew see it, honest or not."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from coordinator.authority.authority import Authority, new_server_key
from shared.crypto.certificates import read_request
from shared.crypto.identity import Identity, format_public
from shared.enrolment import trust_statement
from shared.tls import server_context


@dataclass
class TlsSite:
    """What it answers, and what it was asked."""

    folder: Path
    authority: Authority
    identity: Identity
    now: float
    url: str = ""
    life_s: float = 7 * 86_400.0
    refusal: tuple[int, str] | None = None
    trust_changes: dict[str, str] = field(default_factory=dict)
    certificate: str = ""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def trust(self) -> dict[str, str]:
        """As an honest coordinator answers, but for what was changed."""
        signature = self.identity.sign(trust_statement(self.authority.pem))
        honest = {
            "coordinator": format_public(self.identity.public),
            "authorities": self.authority.pem,
            "signature": base64.b64encode(signature).decode(),
        }
        return honest | self.trust_changes

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """To a device that joins or renews."""
        requested = read_request(body["request"])
        issued = self.authority.issue(requested, now=self.now, life_s=self.life_s)
        place = {"broker_host": "127.0.0.1", "broker_port": 8883}
        given = {"certificate": self.certificate or issued.pem}
        if path.endswith("/join"):
            known = {"coordinator": format_public(self.identity.public), "key_holder": ""}
            return place | given | known
        return place | given


@contextmanager
def tls_site(
    folder: Path, *, now: float, shown_by: Authority | None = None, name: str = "127.0.0.1"
) -> Iterator[TlsSite]:
    """Serve one on loopback.

    Args:
        folder: Its own.
        now: When its certificates are made.
        shown_by: Who signed what the web server shows, if not its own authority.
        name: What that is for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    site = TlsSite(
        folder,
        Authority(folder / "authority", now=now),
        Identity.load_or_create(folder / "identity.key"),
        now,
    )
    public, key = new_server_key()
    issued = (shown_by or site.authority).issue_for_server([name], public, now=now, life_s=86_400.0)
    (folder / "server.pem").write_text(issued.pem)
    (folder / "server.key").write_bytes(key)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append((self.path, {}))
            self._say(200, site.trust() if self.path.endswith("/trust") else {"status": "ok"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            site.asked.append((self.path, body))
            if site.refusal is not None:
                self._say(site.refusal[0], {"detail": site.refusal[1]})
            else:
                self._say(200, site.answer(self.path, body))

        def _say(self, status: int, body: dict[str, Any]) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that does not take the certificate goes away; that is no error here."""

    with Server(("127.0.0.1", 0), Handler) as http:
        context = server_context(folder / "server.pem", folder / "server.key")
        http.socket = context.wrap_socket(http.socket, server_side=True)
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        site.url = f"https://127.0.0.1:{http.server_port}"
        yield site
        http.shutdown()
