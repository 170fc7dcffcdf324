"""Logging in and out over HTTP.

A browser shows a session as the cookie ``llmos_session``, which no script can read and no other
site's page can have sent; the gate sees to the rest.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Final

from fastapi import APIRouter, Request, Response, status
from pydantic import BaseModel, ConfigDict, Field

from coordinator.api.access import SESSION_COOKIE, Access, Principal, shown_session
from coordinator.people.passwords import LONGEST
from coordinator.people.people import NAME, SECRET_LENGTH, People
from coordinator.store.people import Person
from shared.errors import AccessDenied, DataError

_NAMED: Final[dict[str, Any]] = {"pattern": f"^{NAME}$"}
_SECRET: Final[dict[str, Any]] = {"minLength": SECRET_LENGTH}


class ShownLink(BaseModel):
    """The secret of a link."""

    model_config = ConfigDict(extra="forbid")

    link: str = Field(max_length=SECRET_LENGTH, json_schema_extra=_SECRET)


class Login(BaseModel):
    """Name and password; with a link, the password that is to be set."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=64, json_schema_extra=_NAMED)
    password: str = Field(max_length=LONGEST)
    link: str | None = Field(default=None, max_length=SECRET_LENGTH)


class NewPassword(BaseModel):
    """The password that somebody has, and the one that takes its place."""

    model_config = ConfigDict(extra="forbid")

    old: str = Field(max_length=LONGEST)
    new: str = Field(max_length=LONGEST)


class Who(BaseModel):
    """Who asks, and what a login page has to know.

    Attributes:
        first: Nobody has an account yet.
        oidc: Whether a provider of identities can be asked.
    """

    name: str | None
    role: str | None
    kind: str | None = Field(description="`person`, `key` or `token`")
    first: bool
    oidc: bool


class Offer(BaseModel):
    """What a link is for."""

    purpose: str = Field(description="`first`, `invite` or `reset`")
    name: str | None
    role: str
    expires_at: float


def session_routes(people: People, access: Access, *, oidc: bool) -> APIRouter:
    """``/session``; ``oidc``: whether people can log in at a provider of identities too."""
    router = APIRouter(tags=["session"])

    @router.get("/session", summary="Show who asks")
    def show(request: Request) -> Who:
        """Whose the credential is; strangers get an answer too."""
        return _who(access.identify(request.headers))

    @router.post("/session/link", summary="Look at a link")
    def look(body: ShownLink) -> Offer:
        """What a link is for. It is not spent."""
        made = people.look_at(body.link)
        return Offer(
            purpose=made.purpose, name=made.name, role=made.role, expires_at=made.expires_at
        )

    @router.post("/session/first", status_code=status.HTTP_201_CREATED)
    def make_first_link() -> dict[str, Any]:
        """A link that makes the first account; this answer is the only place where it can be read."""
        made = people.first_link()
        return {"role": made.role, "link": made.secret, "expires_at": made.expires_at}

    @router.post("/session", summary="Log in")
    async def log_in(body: Login, request: Request, response: Response) -> Who:
        """With name and password; with a link too, the password is set and the link is spent."""
        address = _address(request)
        if body.link is None:
            future = people.log_in(body.name, body.password, address=address)
        else:
            future = people.enter(body.link, body.name, body.password, address=address)
        made = await asyncio.wrap_future(future)
        set_session(request, response, made.secret)
        return _who(access.of_person(made.person))

    @router.delete("/session", status_code=status.HTTP_204_NO_CONTENT)
    def log_out(request: Request) -> Response:
        """End this session."""
        secret, person = _session(request)
        people.log_out(secret, person)
        response = Response(status_code=HTTPStatus.NO_CONTENT)
        response.delete_cookie(
            SESSION_COOKIE,
            path="/",
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    @router.put("/session/password", status_code=status.HTTP_204_NO_CONTENT)
    async def change_password(body: NewPassword, request: Request) -> Response:
        """Set another password; all other sessions of the same person end."""
        secret, person = _session(request)
        future = people.change_password(
            person, body.old, body.new, secret=secret, address=_address(request)
        )
        await asyncio.wrap_future(future)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    def _who(principal: Principal | None) -> Who:
        return Who(
            name=principal.name if principal is not None else None,
            role=principal.role if principal is not None else None,
            kind=principal.kind if principal is not None else None,
            first=not people.has_accounts(),
            oidc=oidc,
        )

    def _session(request: Request) -> tuple[str, Person]:
        """The session that the request shows. Raises DataError if it shows something else."""
        secret = shown_session(request.headers)
        if not secret:
            raise DataError("this is for people who logged in: a key or token has no session")
        person = people.whose(secret)
        if person is None:
            raise AccessDenied("the session has ended: log in again")
        return secret, person

    return router


def set_session(request: Request, response: Response, secret: str) -> None:
    """Give a browser the secret of its session."""
    response.set_cookie(
        SESSION_COOKIE,
        secret,
        path="/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def _address(request: Request) -> str:
    return request.client.host if request.client is not None else ""
