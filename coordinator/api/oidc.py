"""To a provider of identities and back, with a browser."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from fastapi import APIRouter, HTTPException, Request, Response, status
from fastapi.responses import RedirectResponse

from coordinator.api.gate import own_origin
from coordinator.api.session import set_session
from coordinator.people.oidc import LOGIN_S, Provider
from coordinator.people.people import People
from shared.errors import AccessDenied

LOGIN_COOKIE: Final = "llmos_oidc"
PLACE: Final = "/api/v1/session/oidc"
CONSOLE: Final = "/console/"


def oidc_routes(people: People, provider: Provider | None) -> APIRouter:
    """``/session/oidc``; without a provider it says that there is none."""
    router = APIRouter(tags=["session"])

    @router.get("/session/oidc", status_code=status.HTTP_303_SEE_OTHER, response_class=Response)
    def go_to_provider(request: Request) -> Response:
        """To the provider of identities."""
        there, cookie = _provider().begin(_callback(request))
        response = RedirectResponse(there, HTTPStatus.SEE_OTHER)
        response.set_cookie(
            LOGIN_COOKIE,
            cookie,
            max_age=int(LOGIN_S),
            path=PLACE,
            httponly=True,
            samesite="lax",  # the provider's page is another site's, and sends the browser back
            secure=request.url.scheme == "https",
        )
        return response

    @router.get(
        "/session/oidc/callback", status_code=status.HTTP_303_SEE_OTHER, response_class=Response
    )
    def come_back(request: Request) -> Response:
        """From the provider of identities; its query says who that is, or why nobody."""
        query, cookie = dict(request.query_params), request.cookies.get(LOGIN_COOKIE, "")
        try:
            identity = _provider().finish(query, cookie, _callback(request))
        except AccessDenied:
            people.refused(by="oidc")
            raise
        made = people.let_in(identity)
        response = RedirectResponse(CONSOLE, HTTPStatus.SEE_OTHER)
        set_session(request, response, made.secret)
        response.delete_cookie(LOGIN_COOKIE, path=PLACE)
        return response

    def _provider() -> Provider:
        if provider is None:
            problem = "no provider of identities is named here: log in with a password"
            raise HTTPException(HTTPStatus.NOT_FOUND, problem)
        return provider

    return router


def _callback(request: Request) -> str:
    return f"{own_origin(request.scope, request.headers)}{PLACE}/callback"
