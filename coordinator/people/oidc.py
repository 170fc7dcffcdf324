"""Logging in at a provider of identities: OpenID Connect, authorisation code with PKCE.

O1  what begins a login is bound to the browser it began in, by a signed cookie that is good once a
    redirect, for ten minutes, and in this process
O2  of what the provider says, nothing is believed without a signature by one of its keys, and only
    if it is for us, for this login, and not over
O3  nobody is let in whose claim no line of the mapping names

OpenID Connect Core 1.0, 3.1; RFC 7636 (PKCE); RFC 9700. The only module that knows joserfc.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from shared.errors import AccessDenied, ConfigError, ProviderUnavailable
from shared.extras import require

ALGORITHMS: Final = ("RS256", "PS256", "ES256", "ES384", "EdDSA")
"""Signatures with a key that only the provider has: neither ``none`` nor a shared secret."""
LOGIN_S: Final = 600.0
KNOWN_S: Final = 600.0
"""How old may be what is known of the provider's addresses."""
LEEWAY_S: Final = 60
TIMEOUT_S: Final = 10.0
MOST_BYTES: Final = 1_000_000
MOST_SUBJECT: Final = 255
"""Of what a provider calls somebody; OpenID Connect has the same bound."""


@dataclass(frozen=True, slots=True)
class OidcSettings:
    """Which provider, and who may do what.

    Attributes:
        issuer: Its address, to the letter as it calls itself.
        client_id: What we are called there.
        client_secret: What we show there.
        roles: Value of ``role_claim`` → role here; the first that fits holds.
        role_claim: The claim with somebody's groups or roles: a text or a list of texts.
        name_claim: The claim with somebody's name.
    """

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    roles: Mapping[str, str]
    role_claim: str = "groups"
    name_claim: str = "preferred_username"


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody whom the provider vouches for.

    Attributes:
        subject: Issuer and what it calls him or her for ever.
        name: As he or she is called.
        role: What the mapping gives.
    """

    subject: str
    name: str
    role: str


def check_settings(settings: OidcSettings, *, roles: tuple[str, ...]) -> None:
    """Refuse settings that cannot be right.

    Raises:
        ConfigError: with every problem.
    """
    problems = []
    if not _is_safe(settings.issuer):
        problems.append("--oidc-issuer: must be https://…, or http://… on loopback")
    if not settings.client_id:
        problems.append("--oidc-client-id: is missing")
    if not settings.client_secret:
        problems.append("LLMOS_OIDC_SECRET, or LLMOS_OIDC_SECRET_FILE: is missing")
    problems += [
        f"--oidc-roles: {role!r} is no role: one of {', '.join(roles)}"
        for role in settings.roles.values()
        if role not in roles
    ]
    if problems:
        raise ConfigError(problems, source="options")


class Provider:
    """One provider of identities. Safe on any thread; every method may wait for the network."""

    def __init__(
        self,
        settings: OidcSettings,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask nobody yet.

        Raises:
            DependencyMissing: the extra ``oidc`` is not installed.
        """
        require("joserfc", extra="oidc")
        # Made once: to read the certificates of this machine takes longer than all else.
        self._trust = require("httpx", extra="oidc").create_ssl_context(trust_env=False)
        self._settings = settings
        self._now = now
        self._monotonic = monotonic
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._known: dict[str, Any] = {}
        self._known_at = 0.0

    def begin(self, redirect_uri: str) -> tuple[str, str]:
        """Where a browser is sent to, and the cookie that it comes back with (O1).

        Raises:
            ProviderUnavailable: the provider does not say where.
        """
        endpoint = self._endpoint("authorization_endpoint")
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": redirect_uri,
            "scope": "openid profile email",
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge.rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        joint = "&" if "?" in endpoint else "?"
        cookie = self._signed([state, nonce, verifier, self._now() + LOGIN_S])
        return f"{endpoint}{joint}{urlencode(query)}", cookie

    def finish(self, query: Mapping[str, str], cookie: str, redirect_uri: str) -> Identity:
        """Who came back with this query and cookie (O2, O3).

        Raises:
            AccessDenied: it is not the browser that began, the provider vouches for nobody, or
                the mapping names nobody.
            ProviderUnavailable: the provider does not answer as one does.
        """
        state, nonce, verifier, ends_at = self._read(cookie)
        if self._now() >= ends_at or not hmac.compare_digest(
            state.encode(), query.get("state", "").encode(errors="replace")
        ):
            raise AccessDenied("this login took too long or began elsewhere: begin again")
        if query.get("iss", self._settings.issuer) != self._settings.issuer:  # RFC 9207
            raise AccessDenied("another provider answered")
        if "code" not in query:
            raise AccessDenied("the provider let nobody in")
        token = self._exchanged(query["code"], verifier, redirect_uri)
        return self._identity(self._claims(token, nonce))

    def _exchanged(self, code: str, verifier: str, redirect_uri: str) -> str:
        """The identity token that a code is good for, once."""
        body = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
            "client_id": self._settings.client_id,
            "client_secret": self._settings.client_secret,
        }
        answer = self._asked("POST", self._endpoint("token_endpoint"), data=body)
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise ProviderUnavailable("the provider gave no id_token")
        return token

    def _claims(self, token: str, nonce: str) -> dict[str, Any]:
        """What a token says, if it is the provider's, for us, for this login and not over (O2)."""
        from joserfc import jwk, jwt
        from joserfc.errors import JoseError

        ours = self._settings.client_id
        rules = jwt.JWTClaimsRegistry(
            now=lambda: int(self._now()),
            leeway=LEEWAY_S,
            iss={"essential": True, "value": self._settings.issuer},
            aud={"essential": True, "value": ours},
            exp={"essential": True},
            iat={"essential": True},
            sub={"essential": True},
            nonce={"essential": True, "value": nonce},
        )
        keys = self._asked("GET", self._endpoint("jwks_uri"))
        try:
            known = jwk.KeySet.import_key_set(keys)  # type: ignore[arg-type]
            claims = dict(jwt.decode(token, known, algorithms=list(ALGORITHMS)).claims)
            rules.validate(claims)
        except (JoseError, ValueError, TypeError, KeyError) as err:
            raise AccessDenied(f"the provider's token is not good: {type(err).__name__}") from err
        audience = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
        if claims.get("azp", ours) != ours or (len(audience) > 1 and "azp" not in claims):
            raise AccessDenied("the provider's token is for another client")
        return claims

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        """Who that is here (O3)."""
        subject, name = claims["sub"], claims.get(self._settings.name_claim)
        held = claims.get(self._settings.role_claim, [])
        values = held if isinstance(held, list) else [held]
        role = next((role for each, role in self._settings.roles.items() if each in values), None)
        named = isinstance(subject, str) and isinstance(name, str)
        if role is None or not named or not 0 < len(subject) <= MOST_SUBJECT:
            raise AccessDenied("the provider knows you, and nothing lets you in here: ask an admin")
        if not subject.isprintable():
            raise AccessDenied("the provider's token names nobody")
        return Identity(f"{self._settings.issuer} {subject}", str(name).lower(), role)

    # The provider's addresses

    def _endpoint(self, name: str) -> str:
        with self._lock:
            now = self._monotonic()
            if not self._known or now - self._known_at > KNOWN_S:
                base = self._settings.issuer.rstrip("/")
                found = self._asked("GET", f"{base}/.well-known/openid-configuration")
                if found.get("issuer") != self._settings.issuer:
                    raise ProviderUnavailable("the provider calls itself by another issuer")
                self._known, self._known_at = found, now
            endpoint = self._known.get(name)
        if not isinstance(endpoint, str) or not _is_safe(endpoint):
            raise ProviderUnavailable(f"the provider has no {name} that is safe to use")
        return endpoint

    def _asked(self, method: str, url: str, **options: Any) -> dict[str, Any]:
        import httpx

        try:
            with httpx.Client(timeout=TIMEOUT_S, trust_env=False, verify=self._trust) as client:
                answer = client.request(method, url, **options)
            found = answer.json() if len(answer.content) <= MOST_BYTES else None
        except (httpx.HTTPError, ValueError, RecursionError) as err:
            raise ProviderUnavailable(
                f"the provider does not answer: {type(err).__name__}"
            ) from err
        if answer.status_code in (400, 401) and method == "POST":
            raise AccessDenied("the provider does not take this login: begin again")
        if not answer.is_success or not isinstance(found, dict):
            raise ProviderUnavailable(f"the provider answers with {answer.status_code}")
        return found

    # The cookie

    def _signed(self, content: list[Any]) -> str:
        data = base64.urlsafe_b64encode(json.dumps(content).encode())
        return f"{data.decode()}.{self._signature(data)}"

    def _read(self, cookie: str) -> tuple[str, str, str, float]:
        """Raises AccessDenied if we did not write it."""
        data, _, signature = cookie.encode(errors="replace").partition(b".")
        if not hmac.compare_digest(self._signature(data).encode(), signature):
            raise AccessDenied("this login began elsewhere, or before a restart: begin again")
        state, nonce, verifier, ends_at = json.loads(base64.urlsafe_b64decode(data))
        return state, nonce, verifier, ends_at

    def _signature(self, data: bytes) -> str:
        return hmac.new(self._key, data, hashlib.sha256).hexdigest()


def _is_safe(url: str) -> bool:
    """Whether what is said there stays between the two, or on this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https":
        return bool(parts.hostname)
    if parts.scheme != "http":
        return False
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.hostname == "localhost"
