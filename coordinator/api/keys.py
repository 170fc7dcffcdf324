"""API keys over HTTP, for the admin."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, HTTPException, status
from pydantic import BaseModel, ConfigDict, Field

from coordinator.api.access import MOST_NAMES, MOST_OVERLAP_HOURS, MOST_TOKENS, PRIORITIES, Access
from coordinator.api.devices import Quarantine
from coordinator.api.pages import ITEMS, Cursor, Limit, Page, Places
from coordinator.api.roles import ROLES_OF_KEYS, SCOPE_KINDS, TASKS, Role
from coordinator.store.store import ApiKey


class NewKey(BaseModel):
    """Whose key it is and what it may do.

    Of models, tasks and collections those that are named, or all that begin so where a name ends
    in ``*``; where none is named, all.
    """

    model_config = ConfigDict(extra="forbid")

    # What has a ``json_schema_extra`` is checked in ``make_key``, which names every problem at once.
    name: str = Field(
        max_length=64, json_schema_extra={"pattern": "^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$"}
    )
    role: str = Field(
        default=Role.CALLER, max_length=32, json_schema_extra={"enum": list(ROLES_OF_KEYS)}
    )
    models: list[str] = Field(default_factory=list, max_length=MOST_NAMES)
    tasks: list[str] = Field(
        default_factory=list,
        max_length=MOST_NAMES,
        json_schema_extra={"items": {"type": "string", "enum": list(TASKS)}},
    )
    collections: list[str] = Field(default_factory=list, max_length=MOST_NAMES)
    days: float | None = Field(default=None, gt=0, le=36_500)
    priority: int = Field(default=0, ge=PRIORITIES[0], le=PRIORITIES[-1])
    tokens_per_minute: int = Field(default=0, ge=0, le=MOST_TOKENS)
    public_cache: bool = False


class Rotation(BaseModel):
    """How long the secret that a key has goes on beside the new one; 0: it ends at once."""

    model_config = ConfigDict(extra="forbid")

    overlap_hours: float = Field(default=24.0, ge=0, le=MOST_OVERLAP_HOURS)


def key_routes(access: Access) -> APIRouter:
    """``/keys``."""
    router = APIRouter(tags=["keys"])

    by_name = Places("keys", str)

    @router.get("/keys", summary="List keys")
    def list_keys(limit: Limit = ITEMS, cursor: Cursor = "") -> Page[dict[str, Any]]:
        """Every key that was ever made, by name, without its secret."""
        after = by_name.read(cursor) or ("",)
        found = access.api_keys(str(after[0]), limit + 1)
        items, following = by_name.page(found, limit, lambda key: (key.name,))
        return Page(items=[_view(key) for key in items], next=following)

    @router.post("/keys", status_code=status.HTTP_201_CREATED)
    def make_key(body: NewKey) -> dict[str, Any]:
        """A key with one role; this answer is the only place where it can be read."""
        secret, key = access.make_key(
            body.name,
            role=body.role,
            scopes={kind: getattr(body, kind) for kind in SCOPE_KINDS},
            days=body.days,
            priority=body.priority,
            tokens_per_minute=body.tokens_per_minute,
            public_cache=body.public_cache,
        )
        return _view(key) | {"key": secret}

    @router.delete("/keys/{name}")
    def revoke_key(name: str) -> dict[str, str]:
        """Revoke a key; from now on it opens nothing."""
        if not access.revoke(name):
            raise _no_key(name)
        return {"name": name}

    @router.post("/keys/{name}/quarantine", summary="Quarantine a key")
    def quarantine_key(name: str, body: Quarantine) -> dict[str, str]:
        """From now on it opens nothing, until it is let out. Everything else of it stays."""
        if not access.quarantine(name, body.reason):
            raise _no_valid_key(name)
        return {"name": name}

    @router.delete("/keys/{name}/quarantine", summary="Let a key out of quarantine")
    def release_key(name: str) -> dict[str, str]:
        """From now on it opens what it did before."""
        if not access.release(name):
            raise _no_valid_key(name)
        return {"name": name}

    @router.post("/keys/{name}/rotate")
    def rotate_key(name: str, body: Rotation) -> dict[str, Any]:
        """Another secret for a key; this answer is the only place where it can be read."""
        rotated = access.rotate(name, overlap_hours=body.overlap_hours)
        if rotated is None:
            raise _no_key(name)
        secret, key = rotated
        return _view(key) | {"key": secret}

    return router


def _no_key(name: str) -> HTTPException:
    return HTTPException(HTTPStatus.NOT_FOUND, f"there is no key called {name[:64]!r}")


def _no_valid_key(name: str) -> HTTPException:
    problem = f"there is no key called {name[:64]!r}, or it was revoked"
    return HTTPException(HTTPStatus.NOT_FOUND, problem)


def _view(key: ApiKey) -> dict[str, Any]:
    return {
        "name": key.name,
        "prefix": key.prefix,
        "role": key.role,
        **{kind: key.scopes.get(kind, []) for kind in SCOPE_KINDS},
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "quarantined_at": key.quarantined_at,
        "priority": key.priority,
        "tokens_per_minute": key.tokens_per_minute,
        "public_cache": key.public_cache,
        "former_ends_at": key.former_ends_at,
    }
