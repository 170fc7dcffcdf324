"""API keys over HTTP, for the admin."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, HTTPException, status
from pydantic import BaseModel, Field

from coordinator.api.access import Access
from coordinator.store.store import ApiKey


class NewKey(BaseModel):
    """Whose key it is and what it may do."""

    name: str = Field(max_length=64)
    days: float | None = Field(default=None, gt=0, le=36_500)
    priority: int = 0
    tokens_per_minute: int = 0
    public_cache: bool = False


def key_routes(access: Access) -> APIRouter:
    """``/keys``."""
    router = APIRouter(tags=["keys"])

    @router.get("/keys")
    def list_keys() -> list[dict[str, Any]]:
        """Every key that was ever made, without its secret."""
        return [_view(key) for key in access.api_keys()]

    @router.post("/keys", status_code=status.HTTP_201_CREATED)
    def make_key(body: NewKey) -> dict[str, Any]:
        """A key that opens ``/v1``; this answer is the only place where it can be read."""
        secret, key = access.make_key(
            body.name,
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
            raise HTTPException(HTTPStatus.NOT_FOUND, f"there is no key called {name[:64]!r}")
        return {"name": name}

    return router


def _view(key: ApiKey) -> dict[str, Any]:
    return {
        "name": key.name,
        "prefix": key.prefix,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "priority": key.priority,
        "tokens_per_minute": key.tokens_per_minute,
        "public_cache": key.public_cache,
    }
