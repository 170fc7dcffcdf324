"""What bodies about texts have in common: how long they may be, and who sends them."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Request
from pydantic import AfterValidator, StringConstraints

from coordinator.api.access import Principal
from coordinator.api.openai_errors import Refused
from coordinator.api.roles import Scopes
from coordinator.inference.encoder import Encoder
from coordinator.inference.front_desk import Caller
from shared.errors import NotPermitted

TEXT_CHARACTERS_LIMIT: Final = 32_000
"""Of a text that is embedded or classified; a model reads some hundred tokens of it."""
NAME_CHARACTERS_LIMIT: Final = 300


def sensible(text: str) -> str:
    """Refuse what holds no text, or halves of characters.

    Raises:
        ValueError: as pydantic wants it.
    """
    if not text.strip():
        raise ValueError("is empty")
    if re.search("[\ud800-\udfff]", text):
        raise ValueError("holds half a character (a lone surrogate)")
    return text


Text = Annotated[
    str,
    StringConstraints(min_length=1, max_length=TEXT_CHARACTERS_LIMIT),
    AfterValidator(sensible),
]


def caller_of(request: Request) -> Caller:
    """On whose behalf a request is made; collections belong to its name."""
    principal: Principal = request.state.principal
    return principal.caller


def scopes_of(request: Request) -> Scopes:
    """To what the caller's key is narrowed."""
    principal: Principal = request.state.principal
    return principal.scopes


def check_scope(request: Request, kind: str, name: str, *, param: str) -> None:
    """Refuse what the caller's key is not for, whether or not there is such a thing.

    Args:
        request: Whose caller it is.
        kind: ``models``, ``tasks`` or ``collections``.
        name: Of what is asked for.
        param: Where the request names it.

    Raises:
        Refused: a 403 that says what the key is for.
    """
    scopes = scopes_of(request)
    if not scopes.allow(kind, name):
        named = ", ".join(getattr(scopes, kind))
        raise Refused(
            HTTPStatus.FORBIDDEN,
            f"{param}: this key is for the {kind} {named}, and not for {name!r}",
            param=param,
            code=NotPermitted.code,
        )


def check_model(request: Request, model: str | None, served: Encoder) -> None:
    """Refuse a request whose key is not for the model, or that names another than would answer.

    Raises:
        Refused: a 403, or a 404 that names both.
    """
    check_scope(request, "models", served.card.name if model is None else model, param="model")
    if model is not None and model != served.card.name:
        raise Refused(
            HTTPStatus.NOT_FOUND,
            f"there is no model {model!r} for this: this coordinator serves {served.card.name}",
            param="model",
            code="model_not_found",
        )
