"""The API to read and to try in a browser. Knows where the bundled Swagger UI lies.

The page, its script and its style are open to everybody and hold nothing of this coordinator: a
page cannot send a header. It asks for a credential, keeps it until it is closed, and reads the
document with it, so whoever may not read that sees nothing. Its policy lets it speak to this
coordinator and to nobody else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from shared.extras import require

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""Swagger UI's icons are images in its style, as data."""
ASSETS: Final = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}

_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>LLM OS coordinator</title>
<link rel="stylesheet" href="/api/v1/docs/swagger-ui.css">
<form id="ask">
<label>API key or admin token <input id="credential" type="password" autocomplete="off"></label>
<button>Show</button> <output id="said"></output>
</form>
<div id="shown"></div>
<script src="/api/v1/docs/swagger-ui-bundle.js"></script>
<script src="/api/v1/docs/page.js"></script>
</html>
"""

_SCRIPT: Final = """"use strict";
document.getElementById("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const shown = "Bearer " + document.getElementById("credential").value.trim();
  const said = document.getElementById("said");
  try {
    const answer = await fetch("/api/v1/openapi.json", {headers: {Authorization: shown}});
    const body = await answer.json();
    if (!answer.ok) {
      said.textContent = body.detail;
      return;
    }
    said.textContent = "";
    SwaggerUIBundle({
      spec: body,
      dom_id: "#shown",
      validatorUrl: "none",
      requestInterceptor: (request) => {
        request.headers.Authorization = shown;
        return request;
      },
    });
  } catch (err) {
    said.textContent = String(err);
  }
});
"""


def docs_routes() -> APIRouter:
    """``/docs`` and what it loads.

    Raises:
        DependencyMissing: the assets are not installed.
    """
    library: Any = require("fastapi_offline", extra="coordinator")
    folder = Path(library.__file__).parent / "static"
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    def show_page() -> Response:
        """The page."""
        return Response(_PAGE, media_type="text/html", headers=_HEADERS)

    @router.get("/docs/page.js")
    def show_script() -> Response:
        """Its own script."""
        return Response(_SCRIPT, media_type="text/javascript", headers=_HEADERS)

    def add(name: str, kind: str) -> None:
        def show_asset() -> Any:
            """A file of Swagger UI."""
            return FileResponse(folder / name, media_type=kind, headers=_HEADERS)

        router.add_api_route(f"/docs/{name}", show_asset, methods=["GET"], response_model=None)

    for each in ASSETS.items():
        add(*each)
    return router
