"""The console's files. What a request names is looked up among what there was at the start.

C1  no path of a request reaches the file system
C2  a page may load and reach this coordinator alone, and run no script but its files
"""

from __future__ import annotations

import hashlib
import mimetypes
import re
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

BUILT: Final = Path(__file__).parents[1] / "console" / "dist"

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_HASHED: Final = re.compile(r"assets/.+-[A-Za-z0-9_-]{8}\.[a-z0-9]+")
"""Files whose names change with what is in them."""

_NOT_BUILT: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>LLM OS</title>
<h1>The console was not built</h1>
<p>Run <code>make console</code> where this coordinator was installed from, and start it again.
Its API works without.</p>
</html>
"""


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    kind: str
    headers: dict[str, str]


def console_routes(built: Path = BUILT) -> APIRouter:
    """``/`` and ``/console/``, out of the folder that was built."""
    router = APIRouter(include_in_schema=False)
    files = _read(built)

    @router.get("/")
    def to_console() -> RedirectResponse:
        return RedirectResponse("/console/", HTTPStatus.SEE_OTHER)

    @router.get("/console/")
    def page(request: Request) -> Response:
        if "index.html" not in files:
            return HTMLResponse(_NOT_BUILT, HTTPStatus.NOT_FOUND, headers=HEADERS)
        return _answer(files["index.html"], request)

    @router.get("/console/{name}")
    def file(name: str, request: Request) -> Response:
        return named(name, request)

    @router.get("/console/assets/{name}")
    def asset(name: str, request: Request) -> Response:
        return named(f"assets/{name}", request)

    def named(name: str, request: Request) -> Response:
        found = files.get(name)
        if found is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "the console has no such file")
        return _answer(found, request)

    return router


def _answer(file: _File, request: Request) -> Response:
    if request.headers.get("if-none-match") == file.headers["ETag"]:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=file.headers)
    return Response(file.body, media_type=file.kind, headers=file.headers)


def _read(built: Path) -> dict[str, _File]:
    found = {}
    for path in sorted(built.rglob("*")) if built.is_dir() else ():
        if not path.is_file():
            continue
        name, body = path.relative_to(built).as_posix(), path.read_bytes()
        kept = "public, max-age=31536000, immutable" if _HASHED.fullmatch(name) else "no-cache"
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        found[name] = _File(
            body,
            mimetypes.guess_type(name)[0] or "application/octet-stream",
            HEADERS | {"Cache-Control": kept, "ETag": etag},
        )
    return found
