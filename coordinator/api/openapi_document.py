"""What the HTTP API says of itself to a machine: its errors, who may ask, what leads to what.

The framework knows bodies and parameters; its own idea of an error is not what is sent here.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI

from coordinator.api.roles import PERMISSIONS, Permission, Role

_TEXT: Final = {"type": "string"}
_NAME: Final = {"type": ["string", "null"]}
_SCHEMAS: Final[dict[str, Any]] = {
    "Problem": {
        "description": "RFC 9457; `type` is `urn:llmos:` and a code of docs/errors.md.",
        "type": "object",
        "required": ["type", "title", "detail", "status", "retryable"],
        "properties": {
            "type": _TEXT,
            "title": _TEXT,
            "detail": _TEXT,
            "status": {"type": "integer"},
            "retryable": {"type": "boolean"},
            "roles": {"description": "Of 403: which it takes.", "type": "array", "items": _TEXT},
        },
    },
    "Error": {
        "description": "As OpenAI's clients read it.",
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {"message": _TEXT, "type": _TEXT, "param": _NAME, "code": _TEXT},
            }
        },
    },
}

_BODY: Final = "$response.body#/"
_PATH: Final = "$request.path."
_LINKS: Final[dict[tuple[str, str], tuple[str, str, tuple[tuple[str, str], ...]]]] = {
    ("POST", "/api/v1/keys"): (
        "name",
        f"{_BODY}name",
        (("POST", "/api/v1/keys/{name}/rotate"), ("DELETE", "/api/v1/keys/{name}")),
    ),
    ("POST", "/api/v1/people"): (
        "name",
        f"{_BODY}name",
        (
            ("POST", "/api/v1/people/{name}/link"),
            ("PUT", "/api/v1/people/{name}/role"),
            ("DELETE", "/api/v1/people/{name}"),
        ),
    ),
    ("POST", "/api/v1/runs"): (
        "run",
        f"{_BODY}run",
        (
            ("GET", "/api/v1/runs/{run}"),
            ("GET", "/api/v1/runs/{run}/events"),
            ("POST", "/api/v1/runs/{run}/stop"),
        ),
    ),
    ("POST", "/v1/collections/{name}/documents"): (
        "name",
        f"{_PATH}name",
        (
            ("GET", "/v1/collections/{name}"),
            ("POST", "/v1/collections/{name}/search"),
            ("DELETE", "/v1/collections/{name}/documents"),
            ("DELETE", "/v1/collections/{name}"),
        ),
    ),
}
"""Of what makes a thing: its parameter, where its value is, and where it can be used."""


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of the coordinator's application."""
    document = app.openapi()
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for theirs in ("HTTPValidationError", "ValidationError"):
        schemas.pop(theirs, None)
    schemas |= _SCHEMAS
    components["securitySchemes"] = {"credential": {"type": "http", "scheme": "bearer"}}
    operations = {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }
    lines = {(each.method, each.route.replace(":path}", "}")): each for each in PERMISSIONS}
    for (method, path), operation in operations.items():
        _tell(operation, lines[method, path])
    for source, (parameter, value, targets) in _LINKS.items():
        if source not in operations:  # an application may be without some of its parts
            continue
        answers = operations[source]["responses"]
        answers["201" if "201" in answers else "200"]["links"] = {
            operations[target]["summary"]: {
                "operationId": operations[target]["operationId"],
                "parameters": {parameter: value},
            }
            for target in targets
        }
    return document


def _tell(operation: dict[str, Any], line: Permission) -> None:
    """Say of an operation who may use it, and what is answered instead."""
    stranger = Role.STRANGER in line.roles
    operation["security"] = [] if stranger else [{"credential": []}]
    operation["x-roles"] = [role for role in Role if role in line.roles]
    serving = line.route.startswith("/v1/")
    kind = "application/json" if serving else "application/problem+json"
    name = "Error" if serving else "Problem"
    error = {kind: {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    responses = operation["responses"]
    responses.pop("422", None)
    responses["4XX"] = {"description": "Refused", "content": error}
    if serving:
        responses["503"] = {"description": "Nothing answers this, or not now", "content": error}
    responses["5XX"] = {"description": "Failed", "content": error}
