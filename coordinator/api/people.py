"""Accounts of people over HTTP, for the admin."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, HTTPException, status
from pydantic import BaseModel, ConfigDict, Field

from coordinator.api.pages import ITEMS, Cursor, Limit, Page, Places
from coordinator.api.roles import ROLES_OF_PEOPLE
from coordinator.people.people import NAME, MadeLink, People
from coordinator.store.people import Person


class NewPerson(BaseModel):
    """Who is invited, and what he or she may do."""

    model_config = ConfigDict(extra="forbid")

    # What has a ``json_schema_extra`` is checked in ``invite``, which names every problem at once.
    name: str = Field(max_length=80, json_schema_extra={"pattern": f"^{NAME}$"})
    role: str = Field(max_length=32, json_schema_extra={"enum": list(ROLES_OF_PEOPLE)})


class NewRole(BaseModel):
    """What somebody may do from now on."""

    model_config = ConfigDict(extra="forbid")

    role: str = Field(max_length=32, json_schema_extra={"enum": list(ROLES_OF_PEOPLE)})


def people_routes(people: People) -> APIRouter:
    """``/people``."""
    router = APIRouter(tags=["people"])

    by_name = Places("people", str)

    @router.get("/people", summary="List people")
    def list_people(limit: Limit = ITEMS, cursor: Cursor = "") -> Page[dict[str, Any]]:
        """Everybody who was ever invited, by name."""
        after = by_name.read(cursor) or ("",)
        found = people.people(str(after[0]), limit + 1)
        items, following = by_name.page(found, limit, lambda person: (person.name,))
        return Page(items=[_view(person) for person in items], next=following)

    @router.post("/people", status_code=status.HTTP_201_CREATED)
    def invite(body: NewPerson) -> dict[str, Any]:
        """Invite somebody; this answer is the only place where the link can be read."""
        return _link(people.invite(body.name, body.role))

    @router.post("/people/{name}/link", status_code=status.HTTP_201_CREATED)
    def make_link(name: str) -> dict[str, Any]:
        """Another link, with which a new password is set; earlier ones open nothing any more."""
        made = people.new_link(name)
        if made is None:
            raise _nobody(name)
        return _link(made)

    @router.put("/people/{name}/role")
    def set_role(name: str, body: NewRole) -> dict[str, Any]:
        """Give somebody another role, from the next request on."""
        person = people.set_role(name, body.role)
        if person is None:
            raise _nobody(name)
        return _view(person)

    @router.delete("/people/{name}")
    def disable(name: str) -> dict[str, str]:
        """Let somebody in no more, and end all sessions; a new link lets in again."""
        if not people.disable(name):
            raise _nobody(name)
        return {"name": name}

    return router


def _nobody(name: str) -> HTTPException:
    return HTTPException(HTTPStatus.NOT_FOUND, f"there is nobody called {name[:64]!r}")


def _link(made: MadeLink) -> dict[str, Any]:
    return {
        "name": made.name,
        "role": made.role,
        "link": made.secret,
        "expires_at": made.expires_at,
    }


def _view(person: Person) -> dict[str, Any]:
    return {
        "name": person.name,
        "role": person.role,
        "state": person.state,
        "created_at": person.created_at,
        "last_login_at": person.last_login_at,
    }
