"""What bodies about texts have in common: how long they may be, and who sends them."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Request
from pydantic import AfterValidator, StringConstraints

from coordinator.api.openai_errors import Refused
from coordinator.inference.encoder import Encoder
from coordinator.inference.front_desk import Caller

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
    caller: Caller = request.state.caller
    return caller


def check_model(model: str | None, served: Encoder) -> None:
    """Refuse a request that names another model than the one that would answer.

    Raises:
        Refused: a 404 that names both.
    """
    if model is not None and model != served.card.name:
        raise Refused(
            HTTPStatus.NOT_FOUND,
            f"there is no model {model!r} for this: this coordinator serves {served.card.name}",
            param="model",
            code="model_not_found",
        )
