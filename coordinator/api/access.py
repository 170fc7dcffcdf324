"""Who asks over HTTP: of a credential, its name, its role and to what it is narrowed.

What a role may do is in :mod:`coordinator.api.roles`, and :mod:`coordinator.api.gate` sees to it.

A1  of a key, only the SHA-256 of its secret and the first letters are kept
A2  what a secret is compared with is its hash, or it is compared in constant time
A3  a key that was revoked, has expired or is in quarantine opens nothing, within a second; so does
    the secret that a key had before it was rotated, when its time is over
A4  a cookie is looked at where there is no Authorization header, and opens what its person's role
    may at this moment
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from coordinator.api.roles import ROLES_OF_KEYS, SCOPE_KINDS, TASKS, Role, Scopes
from coordinator.inference.front_desk import Caller
from coordinator.people.people import KIND, acting_name
from coordinator.store.people import Person
from coordinator.store.store import ApiKey
from shared.errors import ConfigError, DataError
from shared.wire import topics

ADMIN: Final = "admin"
METRICS: Final = "metrics"
TOKENS: Final = (ADMIN, METRICS)
"""What the tokens in the coordinator's folder are called; no key is."""
KEY_START: Final = "llmos_"
SESSION_COOKIE: Final = "llmos_session"
SECRET_BYTES: Final = 32
PREFIX_LENGTH: Final = len(KEY_START) + 6
"""Of a key's letters, those that are kept to recognise it: 36 of its 256 bits."""

FRESH_S: Final = 0.5
"""How old may be what is known of the keys (A3)."""

PRIORITIES: Final = range(-10, 11)
MOST_TOKENS: Final = 10**9
"""A minute's quota has a bound, so that a slip of the pen is found."""
MOST_NAMES: Final = 100
"""Of one kind in a key's scopes."""
NAME_LIMIT: Final = 300
MOST_OVERLAP_HOURS: Final = 24 * 30


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    Attributes:
        caller: As the front desk knows it; whatever it makes belongs to its name.
        role: What it may do.
        scopes: To what that is narrowed.
    """

    caller: Caller
    role: Role
    scopes: Scopes = field(default_factory=Scopes)

    @property
    def kind(self) -> str:
        """``person``, ``token`` or ``key``: no two of them share a name."""
        if self.caller.name.startswith(f"{KIND}:"):
            return KIND
        return "token" if self.caller.name in TOKENS else "key"

    @property
    def name(self) -> str:
        """Of the person, token or key."""
        return self.caller.name.removeprefix(f"{KIND}:")


class KeyStore(Protocol):
    """Where keys are kept."""

    def api_keys(self, after: str = "", limit: int | None = None) -> Sequence[ApiKey]:
        """All that were ever made, by name; or the first of those behind ``after``."""
        ...

    def add_key(self, key: ApiKey) -> None:
        """Keep a new one. Raises DataError if there is one of this name."""
        ...

    def revoke_key(self, name: str, *, now: float) -> bool:
        """Revoke one, unless it is already; False if there is none of this name."""
        ...

    def quarantine_key(self, name: str, reason: str, *, now: float) -> bool:
        """Let one open nothing for now; False if there is none of this name, or it was revoked."""
        ...

    def release_key(self, name: str) -> bool:
        """Let one out of quarantine; False if there is none of this name, or it was revoked."""
        ...

    def rotate_key(
        self, name: str, *, prefix: str, secret_sha256: str, former_ends_at: float
    ) -> bool:
        """Give one another secret; False if there is none of this name that is not revoked."""
        ...


class Sessions(Protocol):
    """Knows who is logged in."""

    def whose(self, secret: str, *, in_use: bool = True) -> Person | None:
        """Whose session that is; that is a use of it if ``in_use``."""
        ...


class Access:
    """Looks at what a request shows. Safe on any thread."""

    def __init__(
        self,
        store: KeyStore,
        *,
        admin_token: str,
        metrics_token: str = "",
        sessions: Sessions | None = None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Guard with these.

        Args:
            store: Of API keys.
            admin_token: Opens everything.
            metrics_token: Opens ``/metrics``; empty opens nothing.
            sessions: Of people; ``None``: nobody can log in.
            now: Seconds since the epoch, by which keys expire.
            monotonic: Seconds, by which what is known of the keys grows old.
        """
        self._store = store
        self._admin = admin_token.encode()
        self._metrics = metrics_token.encode()
        self._sessions = sessions
        self._now = now
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._known: dict[str, ApiKey] = {}
        self._known_at: float | None = None

    def identify(self, headers: Mapping[str, str], *, in_use: bool = True) -> Principal | None:
        """Who asks with these headers; ``None``: nobody whose credential is valid (A4).

        Args:
            headers: Whose names are found however they are written.
            in_use: Whether a session is used by this, and goes on; a stream that looks whether
                its client may still listen says no.
        """
        if "authorization" in headers:
            return self.principal(headers["authorization"])
        secret = shown_session(headers)
        if not secret or self._sessions is None:
            return None
        person = self._sessions.whose(secret, in_use=in_use)
        return self.of_person(person) if person is not None else None

    def of_person(self, person: Person) -> Principal:
        """Somebody who is logged in."""
        return Principal(Caller(acting_name(person.name)), Role(person.role))

    def principal(self, authorization: str) -> Principal | None:
        """Who shows this Authorization header; ``None``: nobody whose credential is valid."""
        shown = _shown(authorization)
        # All are compared always: which of them was nearly right takes the same time.
        admin = bool(self._admin) & hmac.compare_digest(shown, self._admin)
        scraper = bool(self._metrics) & hmac.compare_digest(shown, self._metrics)
        if admin:
            return Principal(Caller(ADMIN), Role.ADMIN)
        if scraper:
            return Principal(Caller(METRICS), Role.METRICS)
        if not shown.startswith(KEY_START.encode()) or len(shown) > 100:
            return None
        digest, now = hashlib.sha256(shown).hexdigest(), self._now()
        key = self._keys().get(digest)
        if key is None or not key.opens(now):
            return None
        if digest == key.former_sha256 and now >= (key.former_ends_at or 0.0):
            return None
        caller = Caller(key.name, key.priority, key.tokens_per_minute, key.public_cache)
        return Principal(caller, Role(key.role), Scopes.of(key.scopes))

    def make_key(
        self,
        name: str,
        *,
        role: str = Role.CALLER,
        scopes: Mapping[str, Sequence[str]] | None = None,
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
        if not topics.is_name(name) or name in TOKENS:
            problems.append(
                f"name: {name!r} is none: 1 to 48 of a-z, 0-9 and hyphens, "
                "and neither 'admin' nor 'metrics'"
            )
        if role not in ROLES_OF_KEYS:
            problems.append(f"role: {role!r} is none: one of {', '.join(ROLES_OF_KEYS)}")
        problems += _scope_problems(scopes or {})
        if days is not None and not 0 < days <= 36_500:
            problems.append("days: must be above 0 and at most 36500")
        if priority not in PRIORITIES:
            problems.append(f"priority: must be {PRIORITIES[0]} to {PRIORITIES[-1]}")
        if not 0 <= tokens_per_minute <= MOST_TOKENS:
            problems.append(f"tokens_per_minute: must be 0 (none) to {MOST_TOKENS}")
        if problems:
            raise ConfigError(problems, source="key")
        secret, prefix, digest = _new_secret()
        now = self._now()
        key = ApiKey(
            name,
            prefix,
            digest,
            created_at=now,
            expires_at=None if days is None else now + days * 86_400,
            priority=priority,
            tokens_per_minute=tokens_per_minute,
            public_cache=public_cache,
            role=role,
            scopes=Scopes.of(scopes or {}).kept(),
        )
        self._store.add_key(key)
        self._forget()
        return secret, key

    def rotate(self, name: str, *, overlap_hours: float) -> tuple[str, ApiKey] | None:
        """Give a key another secret; it, and what is kept. ``None``: no key has this name.

        The secret it had opens as much as before for so many hours more. One that was left from
        an earlier rotation ends at once.

        Raises:
            ConfigError: the hours are out of bounds.
            DataError: the key was revoked or has expired.
        """
        if not 0 <= overlap_hours <= MOST_OVERLAP_HOURS:
            problem = f"overlap_hours: must be 0 (ends at once) to {MOST_OVERLAP_HOURS}"
            raise ConfigError([problem], source="key")
        now = self._now()
        key = self._find(name)
        if key is None:
            return None
        secret, prefix, digest = _new_secret()
        rotated = not key.is_over(now) and self._store.rotate_key(
            name,
            prefix=prefix,
            secret_sha256=digest,
            former_ends_at=now + overlap_hours * 3600,
        )
        if not rotated:
            raise DataError(f"the key {name} was revoked or has expired: make another")
        self._forget()
        kept = self._find(name)
        assert kept is not None  # nothing deletes keys
        return secret, kept

    def api_keys(self, after: str = "", limit: int | None = None) -> Sequence[ApiKey]:
        """All keys that were ever made, by name; or the first of those behind ``after``."""
        return self._store.api_keys(after, limit)

    def revoke(self, name: str) -> bool:
        """Revoke a key; False if there is none of this name."""
        # A name that cannot be one is not looked for: not every database takes every text.
        found = topics.is_name(name) and self._store.revoke_key(name, now=self._now())
        self._forget()
        return found

    def quarantine(self, name: str, reason: str) -> bool:
        """Let a key open nothing until it is let out; False if none has this name, or it was revoked."""
        found = topics.is_name(name) and self._store.quarantine_key(name, reason, now=self._now())
        self._forget()
        return found

    def release(self, name: str) -> bool:
        """Let a key out of quarantine; False if there is none of this name, or it was revoked."""
        found = topics.is_name(name) and self._store.release_key(name)
        self._forget()
        return found

    def _find(self, name: str) -> ApiKey | None:
        return next((key for key in self._store.api_keys() if key.name == name), None)

    def _keys(self) -> dict[str, ApiKey]:
        """By the hash of the secret; read again when it is old, or another process changed it."""
        with self._lock:
            now = self._monotonic()
            if self._known_at is None or now - self._known_at > FRESH_S:
                self._known = {
                    digest: key
                    for key in self._store.api_keys()
                    for digest in (key.secret_sha256, key.former_sha256)
                    if digest is not None
                }
                self._known_at = now
            return self._known

    def _forget(self) -> None:
        with self._lock:
            self._known_at = None


def shown_session(headers: Mapping[str, str]) -> str:
    """The secret of a session in the cookies; empty where there is none, or one beside a header."""
    if "authorization" in headers:
        return ""
    pairs = (each.strip().partition("=") for each in headers.get("cookie", "").split(";"))
    found = [value for name, _, value in pairs if name == SESSION_COOKIE]
    # Of two, one was set by somebody else: by which, nobody can tell.
    return found[0] if len(found) == 1 else ""


def _new_secret() -> tuple[str, str, str]:
    """A secret, how it begins, and its hash."""
    secret = KEY_START + secrets.token_urlsafe(SECRET_BYTES)
    return secret, secret[:PREFIX_LENGTH], hashlib.sha256(secret.encode()).hexdigest()


def _scope_problems(scopes: Mapping[str, Sequence[str]]) -> list[str]:
    problems = [f"{kind}: no kind of scope" for kind in scopes if kind not in SCOPE_KINDS]
    for kind in SCOPE_KINDS:
        names = scopes.get(kind, ())
        if len(names) > MOST_NAMES:
            problems.append(f"{kind}: has at most {MOST_NAMES} names")
        if any(not name.strip() or "*" in name[:-1] or len(name) > NAME_LIMIT for name in names):
            problems.append(
                f"{kind}: a name has 1 to {NAME_LIMIT} characters, and a '*' as its last at most"
            )
    if not set(scopes.get("tasks", ())) <= set(TASKS):
        problems.append(f"tasks: are {', '.join(TASKS)}")
    return problems


def _shown(authorization: str) -> bytes:
    """The credential in a header; empty where it is written in another way."""
    scheme, _, credential = authorization.partition(" ")
    return credential.encode() if scheme.lower() == "bearer" else b""
