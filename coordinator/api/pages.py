"""Listings in pages: some items, and where the next ones are.

P1  all pages of a listing together hold everything that was there when the first was asked for,
    each once, whatever is added meanwhile
P2  a cursor is a place and no secret; one that this listing did not give is refused by its name
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Generic, TypeVar

from fastapi import Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field

ItemT = TypeVar("ItemT")

MOST_ITEMS: Final = 200
ITEMS: Final = 50
MOST_CURSOR: Final = 600

Limit = Annotated[int, Query(ge=1, le=MOST_ITEMS, description="Items on a page")]
Cursor = Annotated[
    str,
    Query(max_length=MOST_CURSOR, description="`next` of the page before; empty for the first"),
]


class Page(BaseModel, Generic[ItemT]):
    """Some of a listing."""

    items: list[ItemT]
    next: str | None = Field(description="The `cursor` of the next page; null on the last")


Place = tuple[str | int | float, ...]
"""Where an item stands in its listing."""


class Places:
    """Reads and writes the cursors of one listing."""

    def __init__(self, listing: str, *kinds: type) -> None:
        """``kinds``: of the parts of a place: ``str``, ``int`` or ``float``."""
        self._listing = listing
        self._kinds = kinds

    def read(self, cursor: str) -> Place | None:
        """The place that a cursor names; ``None`` for an empty one.

        Raises:
            RequestValidationError: it names no place in this listing (P2).
        """
        if not cursor:
            return None
        try:
            listing, *parts = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
        # A number of 5000 digits is a ValueError, deep nesting a RecursionError.
        except (ValueError, TypeError, binascii.Error, RecursionError):
            raise _no_cursor() from None
        fits = len(parts) == len(self._kinds) and all(map(_fits, parts, self._kinds))
        if listing != self._listing or not fits or self.write(tuple(parts)) != cursor:
            raise _no_cursor()
        return tuple(parts)

    def write(self, place: Place) -> str:
        """A cursor that names a place."""
        text = json.dumps([self._listing, *place], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode()

    def page(
        self,
        found: Sequence[Any],
        limit: int,
        place: Callable[[Any], Place],
    ) -> tuple[list[Any], str | None]:
        """Items of a page and its ``next``, out of one item more than fit, if there are so many."""
        items = list(found[:limit])
        return items, self.write(place(items[-1])) if len(found) > limit else None


def _fits(part: object, kind: type) -> bool:
    if type(part) is not kind:
        return False
    if isinstance(part, str):
        # No database takes every text: NUL and lone surrogates are refused here.
        return part.isprintable()
    if isinstance(part, int):
        return 0 <= part < 2**63
    return isinstance(part, float) and math.isfinite(part)


def _no_cursor() -> RequestValidationError:
    what = {
        "type": "value_error",
        "loc": ("query", "cursor"),
        "msg": "is none that this listing gave: begin without one",
    }
    return RequestValidationError([what])
