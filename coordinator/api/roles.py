"""Who may do what over HTTP: one table, and what is not in it nobody may do.

R1  a route without a line in ``PERMISSIONS`` answers nobody
R2  where two lines fit one request, both must allow it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from re import Pattern
from typing import Any, Final

from fastapi import FastAPI, routing
from starlette.routing import WebSocketRoute, compile_path


class Role(StrEnum):
    """What a credential is for."""

    STRANGER = "stranger"
    """Who shows no credential, or where none is looked at."""
    METRICS = "metrics"
    """The token in ``metrics.token``; no key has it."""
    DEVICE = "device"
    CALLER = "caller"
    VIEWER = "viewer"
    AUDITOR = "auditor"
    OPERATOR = "operator"
    ADMIN = "admin"


ROLES_OF_KEYS: Final = tuple(role for role in Role if role not in {Role.STRANGER, Role.METRICS})
ROLES_OF_PEOPLE: Final = tuple(role for role in ROLES_OF_KEYS if role is not Role.DEVICE)

WEB_SOCKET: Final = "WEBSOCKET"
"""Stands for a method: opening one."""

SMALL_BYTES: Final = 16 * 1024
"""A join has 500 bytes."""
QUESTION_BYTES: Final = 4_000_000
"""A long conversation, or some thousand passages."""
JOB_BYTES: Final = 100_000_000
"""A job with as many probe examples as there may be, of 1000 bytes each."""


@dataclass(frozen=True, slots=True)
class Permission:
    """One line of the table.

    Attributes:
        method: As HTTP spells it.
        route: As the framework spells it.
        roles: That may use it.
        body_bytes: A longer body is not read to its end.
        pattern: Of the paths that fit ``route``, read as the framework reads it.
    """

    method: str
    route: str
    roles: frozenset[Role]
    body_bytes: int = SMALL_BYTES
    pattern: Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Read the route."""
        object.__setattr__(self, "pattern", compile_path(self.route)[0])


_ADMIN: Final = frozenset({Role.ADMIN})
_ALL: Final = frozenset(Role)
_ASKING: Final = frozenset({Role.CALLER, Role.OPERATOR, Role.ADMIN})
_AUDITING: Final = frozenset({Role.AUDITOR, Role.ADMIN})
_LISTING: Final = _ASKING | {Role.VIEWER}
_MEASURING: Final = frozenset({Role.METRICS, Role.ADMIN})
_PEOPLE: Final = frozenset(ROLES_OF_PEOPLE)
_READING: Final = frozenset({Role.VIEWER, Role.OPERATOR, Role.ADMIN})
_WORKING: Final = frozenset({Role.OPERATOR, Role.ADMIN})

PERMISSIONS: Final = (
    Permission("GET", "/healthz", _ALL),
    Permission("GET", "/readyz", _ALL),
    Permission("GET", "/metrics", _MEASURING),
    Permission("POST", "/api/v1/devices/join", _ALL),
    Permission("GET", "/api/v1/trust", _ALL),
    Permission("POST", "/api/v1/certificates", _ALL),
    Permission("GET", "/api/v1/devices", _READING),
    Permission("POST", "/api/v1/devices/tokens", _WORKING),
    Permission("GET", "/api/v1/runs", _READING),
    Permission("POST", "/api/v1/runs", _WORKING, JOB_BYTES),
    Permission("GET", "/api/v1/runs/{run}", _READING),
    Permission("GET", "/api/v1/runs/{run}/events", _READING),
    Permission("POST", "/api/v1/runs/{run}/stop", _WORKING),
    Permission("GET", "/api/v1/runs/{run}/privacy", _READING),
    Permission(WEB_SOCKET, "/api/v1/live", _READING),
    Permission("GET", "/api/v1/overview", _READING),
    Permission("GET", "/api/v1/usage", _READING | {Role.CALLER}),
    Permission("GET", "/api/v1/models", _READING),
    Permission("GET", "/api/v1/models/{name:path}", _READING),
    Permission("GET", "/api/v1/devices/{name}", _READING),
    Permission("DELETE", "/api/v1/devices/{name}", _ADMIN),
    Permission("POST", "/api/v1/devices/{name}/quarantine", _WORKING),
    Permission("DELETE", "/api/v1/devices/{name}/quarantine", _WORKING),
    Permission("GET", "/api/v1/alarms", _READING | _AUDITING),
    Permission("POST", "/api/v1/alarms/{number}/acknowledge", _WORKING),
    Permission("GET", "/api/v1/events", _READING),
    Permission("GET", "/api/v1/releases", _READING),
    Permission("GET", "/api/v1/releases/{run}", _READING),
    Permission("GET", "/api/v1/keys", _AUDITING),
    Permission("POST", "/api/v1/keys", _ADMIN),
    Permission("DELETE", "/api/v1/keys/{name}", _ADMIN),
    Permission("POST", "/api/v1/keys/{name}/quarantine", _WORKING),
    Permission("DELETE", "/api/v1/keys/{name}/quarantine", _ADMIN),
    Permission("POST", "/api/v1/keys/{name}/rotate", _ADMIN),
    Permission("GET", "/api/v1/session", _ALL),
    Permission("POST", "/api/v1/session", _ALL),
    Permission("DELETE", "/api/v1/session", _PEOPLE),
    Permission("POST", "/api/v1/session/link", _ALL),
    Permission("GET", "/api/v1/session/oidc", _ALL),
    Permission("GET", "/api/v1/session/oidc/callback", _ALL),
    Permission("POST", "/api/v1/session/first", _ADMIN),
    Permission("PUT", "/api/v1/session/password", _PEOPLE),
    Permission("GET", "/api/v1/people", _AUDITING),
    Permission("POST", "/api/v1/people", _ADMIN),
    Permission("DELETE", "/api/v1/people/{name}", _ADMIN),
    Permission("POST", "/api/v1/people/{name}/link", _ADMIN),
    Permission("PUT", "/api/v1/people/{name}/role", _ADMIN),
    Permission("GET", "/api/v1/audit", _AUDITING),
    Permission("GET", "/api/v1/openapi.json", _READING | _AUDITING),
    Permission("GET", "/api/v1/docs", _ALL),
    Permission("GET", "/api/v1/docs/page.js", _ALL),
    Permission("GET", "/api/v1/docs/swagger-ui-bundle.js", _ALL),
    Permission("GET", "/api/v1/docs/swagger-ui.css", _ALL),
    Permission("GET", "/", _ALL),
    Permission("GET", "/console/", _ALL),
    Permission("GET", "/console/{name}", _ALL),
    Permission("GET", "/console/assets/{name}", _ALL),
    Permission("GET", "/v1/models", _LISTING),
    Permission("GET", "/v1/models/{model:path}", _LISTING),
    Permission("POST", "/v1/chat/completions", _ASKING, QUESTION_BYTES),
    Permission("POST", "/v1/completions", _ASKING, QUESTION_BYTES),
    Permission("POST", "/v1/embeddings", _ASKING, QUESTION_BYTES),
    Permission("POST", "/v1/tasks/classify", _ASKING, QUESTION_BYTES),
    Permission("POST", "/v1/tasks/answer", _ASKING, QUESTION_BYTES),
    Permission("POST", "/v1/tasks/recommend", _ASKING, QUESTION_BYTES),
    Permission("GET", "/v1/collections", _ASKING),
    Permission("GET", "/v1/collections/{name}", _ASKING),
    Permission("DELETE", "/v1/collections/{name}", _ASKING),
    Permission("POST", "/v1/collections/{name}/documents", _ASKING, QUESTION_BYTES),
    Permission("DELETE", "/v1/collections/{name}/documents", _ASKING, QUESTION_BYTES),
    Permission("POST", "/v1/collections/{name}/search", _ASKING, QUESTION_BYTES),
)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the table says about one request.

    Attributes:
        roles: That may make it; nobody where it is empty.
        body_bytes: Of its body, so many are read.
        methods: That the path has lines for.
    """

    roles: frozenset[Role]
    body_bytes: int
    methods: tuple[str, ...]


def allowance(method: str, path: str) -> Allowance:
    """Look a request up (R1, R2)."""
    fitting = [each for each in PERMISSIONS if each.pattern.fullmatch(path)]
    lines = [each for each in fitting if each.method == method]
    roles = frozenset.intersection(*(each.roles for each in lines)) if lines else frozenset()
    return Allowance(
        roles,
        min((each.body_bytes for each in lines), default=0),
        tuple(sorted({each.method for each in fitting})),
    )


def route_of(method: str, path: str) -> str | None:
    """The line of the table that a request fits, such as ``/api/v1/runs/{run}``; ``None``: none."""
    fitting = (each for each in PERMISSIONS if each.method == method)
    return next((each.route for each in fitting if each.pattern.fullmatch(path)), None)


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    """Every method and path of an application, hidden ones too; of a mount, ``*`` and its path."""
    # Older versions of the framework have no such function, and list routes one by one.
    flat = getattr(routing, "iter_route_contexts", iter)
    found: set[tuple[str, str]] = set()
    for route in flat(app.routes):
        if isinstance(getattr(route, "original_route", route), WebSocketRoute):
            # Of one that was included, only the framework's copy knows the whole path.
            whole: Any = getattr(route, "starlette_route", route)
            found.add((WEB_SOCKET, whole.path))
            continue
        path: str = getattr(route, "path", None) or "?"
        found |= {(method, path) for method in getattr(route, "methods", None) or ["*"]}
    return found


def unlisted(app: FastAPI) -> set[tuple[str, str]]:
    """Routes of an application that have no line in the table."""
    return routes_of(app) - {(each.method, each.route) for each in PERMISSIONS}


SCOPE_KINDS: Final = ("models", "tasks", "collections")
TASKS: Final = ("classify", "answer", "recommend")


@dataclass(frozen=True, slots=True)
class Scopes:
    """To what a key is narrowed further under ``/v1``; where nothing is named, to nothing.

    A name that ends in ``*`` stands for all that begin so.
    """

    models: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    collections: tuple[str, ...] = ()

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Scopes:
        """As the store keeps them."""
        return cls(**{kind: tuple(kept.get(kind, ())) for kind in SCOPE_KINDS})

    def kept(self) -> dict[str, list[str]]:
        """For the store: what names something."""
        named = {kind: list(getattr(self, kind)) for kind in SCOPE_KINDS}
        return {kind: names for kind, names in named.items() if names}

    def allow(self, kind: str, name: str) -> bool:
        """Whether ``name`` may be used."""
        names: tuple[str, ...] = getattr(self, kind)
        return not names or any(_fits(each, name) for each in names)


def _fits(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
