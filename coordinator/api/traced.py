"""A span for every HTTP request, named after the line of the table of roles that it fits."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.api.roles import route_of
from coordinator.tracing import Tracing, ids


class Traced:
    """Stands behind the request's id and before the gate, so that refusals are seen too."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, route = scope["method"], route_of(scope["method"], scope["path"])
        if route is None:  # whatever was asked for instead is a client's text, and not told
            method, route = "other", "unknown"
        facts = {"http.request.method": method, "http.route": route, **ids()}
        with self._tracing.span(f"{method} {route}", facts) as span:

            async def told(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span["http.response.status_code"] = message["status"]
                await send(message)

            await self._app(scope, receive, told)
