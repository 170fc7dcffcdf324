"""Who may do what over HTTP: the admin token everything, an API key ``/v1`` alone.

A1  of a key, only the SHA-256 of its secret and the first letters are kept
A2  what a secret is compared with is its hash, or it is compared in constant time
A3  a key that was revoked or has expired opens nothing, within a second
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from coordinator.inference.front_desk import Caller
from coordinator.store.store import ApiKey
from shared.errors import ConfigError
from shared.wire import topics

ADMIN: Final = "admin"
KEY_START: Final = "llmos_"
SECRET_BYTES: Final = 32
PREFIX_LENGTH: Final = len(KEY_START) + 6
"""Of a key's letters, those that are kept to recognise it: 36 of its 256 bits."""

FRESH_S: Final = 0.5
"""How old may be what is known of the keys (A3)."""

PRIORITIES: Final = range(-10, 11)
MOST_TOKENS: Final = 10**9
"""A minute's quota has a bound, so that a slip of the pen is found."""


class KeyStore(Protocol):
    """Where keys are kept."""

    def api_keys(self) -> Sequence[ApiKey]:
        """All that were ever made."""
        ...

    def add_key(self, key: ApiKey) -> None:
        """Keep a new one. Raises DataError if there is one of this name."""
        ...

    def revoke_key(self, name: str, *, now: float) -> bool:
        """Revoke one, unless it is already; False if there is none of this name."""
        ...


class Access:
    """Looks at what a request shows. Safe on any thread."""

    def __init__(
        self,
        store: KeyStore,
        *,
        admin_token: str,
        metrics_token: str = "",
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Guard with these.

        Args:
            store: Of API keys.
            admin_token: Opens everything.
            metrics_token: Opens ``/metrics``; empty opens nothing.
            now: Seconds since the epoch, by which keys expire.
            monotonic: Seconds, by which what is known of the keys grows old.
        """
        self._store = store
        self._admin = admin_token.encode()
        self._metrics = metrics_token.encode()
        self._now = now
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._known: dict[str, ApiKey] = {}
        self._known_at: float | None = None

    def is_admin(self, authorization: str) -> bool:
        """Whether an Authorization header shows the admin token."""
        return bool(self._admin) and hmac.compare_digest(_shown(authorization), self._admin)

    def may_read_metrics(self, authorization: str) -> bool:
        """Whether it shows the admin token or that for metrics."""
        shown = _shown(authorization)
        # Both are compared always: which of them was nearly right takes the same time.
        scraper = bool(self._metrics) & hmac.compare_digest(shown, self._metrics)
        return self.is_admin(authorization) | scraper

    def caller(self, authorization: str) -> Caller | None:
        """Who asks under ``/v1``; ``None``: nobody who may."""
        if self.is_admin(authorization):
            return Caller(ADMIN)
        shown = _shown(authorization)
        if not shown.startswith(KEY_START.encode()) or len(shown) > 100:
            return None
        digest = hashlib.sha256(shown).hexdigest()
        key = self._keys().get(digest)
        if key is None or not key.opens(self._now()):
            return None
        return Caller(key.name, key.priority, key.tokens_per_minute, key.public_cache)

    def make_key(
        self,
        name: str,
        *,
        days: float | None = None,
        priority: int = 0,
        tokens_per_minute: int = 0,
        public_cache: bool = False,
    ) -> tuple[str, ApiKey]:
        """Make a key; its secret, which is nowhere kept, and what is kept of it.

        Raises:
            ConfigError: the name cannot be one, or a number is out of bounds.
            DataError: there is or was a key of this name.
        """
        problems = []
        if not topics.is_name(name) or name == ADMIN:
            problems.append(f"name: {name!r} is none: 1 to 48 of a-z, 0-9 and hyphens, not 'admin'")
        if days is not None and not 0 < days <= 36_500:
            problems.append("days: must be above 0 and at most 36500")
        if priority not in PRIORITIES:
            problems.append(f"priority: must be {PRIORITIES[0]} to {PRIORITIES[-1]}")
        if not 0 <= tokens_per_minute <= MOST_TOKENS:
            problems.append(f"tokens_per_minute: must be 0 (none) to {MOST_TOKENS}")
        if problems:
            raise ConfigError(problems, source="key")
        secret = KEY_START + secrets.token_urlsafe(SECRET_BYTES)
        now = self._now()
        key = ApiKey(
            name,
            secret[:PREFIX_LENGTH],
            hashlib.sha256(secret.encode()).hexdigest(),
            created_at=now,
            expires_at=None if days is None else now + days * 86_400,
            priority=priority,
            tokens_per_minute=tokens_per_minute,
            public_cache=public_cache,
        )
        self._store.add_key(key)
        self._forget()
        return secret, key

    def api_keys(self) -> Sequence[ApiKey]:
        """All keys that were ever made."""
        return self._store.api_keys()

    def revoke(self, name: str) -> bool:
        """Revoke a key; False if there is none of this name."""
        found = self._store.revoke_key(name, now=self._now())
        self._forget()
        return found

    def _keys(self) -> dict[str, ApiKey]:
        """By the hash of the secret; read again when it is old, or another process changed it."""
        with self._lock:
            now = self._monotonic()
            if self._known_at is None or now - self._known_at > FRESH_S:
                self._known = {key.secret_sha256: key for key in self._store.api_keys()}
                self._known_at = now
            return self._known

    def _forget(self) -> None:
        with self._lock:
            self._known_at = None


def _shown(authorization: str) -> bytes:
    return authorization.removeprefix("Bearer ").encode()
