"""A small provider of identities on loopback, which signs with keys of its own and can be told to lie."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable
from functools import cache
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

CLIENT, SECRET = "llmos-here", "what only we two know"
ANNA: dict[str, Any] = {"sub": "u-1", "preferred_username": "anna", "groups": ["staff", "ops"]}

Claims = dict[str, Any]


def signed(claims: Claims, key: RSAKey, **header: Any) -> str:
    """As a provider signs."""
    return jwt.encode({"alg": "RS256", "kid": key.kid} | header, claims, key)


def unsigned(claims: Claims) -> str:
    """As nobody should: ``alg`` is ``none``."""
    parts = ({"alg": "none"}, claims)
    written = [base64.urlsafe_b64encode(json.dumps(part).encode()) for part in parts]
    return b".".join([*(part.rstrip(b"=") for part in written), b""]).decode()


def signed_with_our_own(claims: Claims, key: RSAKey) -> str:
    """With the public key, as if it were a secret that both share."""
    head = unsigned(claims).split(".")[1]
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"1"}').decode().rstrip("=")
    mac = hmac.new(key.as_pem(private=False), f"{header}.{head}".encode(), hashlib.sha256).digest()
    return f"{header}.{head}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


@cache
def key_of(kid: str) -> RSAKey:
    """One for each id: to make one takes long."""
    return RSAKey.generate_key(2048, parameters={"kid": kid}, auto_kid=False)


class OidcProvider:
    """Discovery, authorisation, tokens and keys; everybody is logged in as ``user`` at once."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self.key = key_of("1")
        self.user = dict(ANNA)
        self.change: Callable[[Claims], Claims] = lambda claims: claims
        self.sign: Callable[[Claims, RSAKey], str] = signed
        self.discovery: Claims = {}
        """Changes to what is said at the well-known address."""
        self.keys: Callable[[], Any] = lambda: KeySet([self.key]).as_dict(private=False)
        self.asked: list[str] = []
        self._codes: dict[str, dict[str, str]] = {}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider._get(self)

            def do_POST(self) -> None:
                provider._post(self)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        ).start()  # looks whether it is to end so often

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def visited(self, address: str) -> dict[str, str]:
        """What a browser that visits this address comes back with."""
        parts = urlsplit(address)
        connection = HTTPConnection(parts.netloc)
        connection.request("GET", f"{parts.path}?{parts.query}")
        answer = connection.getresponse()
        assert answer.status == 302
        query = parse_qs(urlsplit(answer.headers["location"]).query)
        connection.close()
        return {name: values[0] for name, values in query.items()}

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        self.asked.append(parts.path)
        if parts.path == "/.well-known/openid-configuration":
            names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
            places = ("authorize", "token", "keys")
            said = {name: f"{self.issuer}/{at}" for name, at in zip(names, places, strict=True)}
            _answer(request, 200, {"issuer": self.issuer} | said | self.discovery)
        elif parts.path == "/keys":
            _answer(request, 200, self.keys())
        elif parts.path == "/authorize":
            asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
            assert asked["client_id"] == CLIENT
            assert asked["response_type"] == "code"
            assert asked["code_challenge_method"] == "S256"
            code = secrets.token_urlsafe(8)
            self._codes[code] = asked
            back = urlencode({"code": code, "state": asked["state"], "iss": self.issuer})
            request.send_response(302)
            request.send_header("Location", f"{asked['redirect_uri']}?{back}")
            request.end_headers()
        else:
            _answer(request, 404, {})

    def _post(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.path)
        length = int(request.headers["Content-Length"])
        body = {k: v[0] for k, v in parse_qs(request.rfile.read(length).decode()).items()}
        asked = self._codes.pop(body["code"], None)
        challenge = base64.urlsafe_b64encode(
            hashlib.sha256(body["code_verifier"].encode()).digest()
        )
        right = (
            asked is not None
            and (body["client_id"], body["client_secret"]) == (CLIENT, SECRET)
            and body["redirect_uri"] == asked["redirect_uri"]
            and challenge.rstrip(b"=").decode() == asked["code_challenge"]
        )
        if asked is None or not right:
            _answer(request, 400, {"error": "invalid_grant"})
            return
        now = int(self.now())
        times = {"iat": now, "exp": now + 300}
        claims = {"iss": self.issuer, "aud": CLIENT, "nonce": asked["nonce"]} | times | self.user
        token = self.sign(self.change(claims), self.key)
        _answer(request, 200, {"access_token": "a", "token_type": "Bearer", "id_token": token})


def _answer(request: BaseHTTPRequestHandler, status: int, content: Claims) -> None:
    data = json.dumps(content).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)
