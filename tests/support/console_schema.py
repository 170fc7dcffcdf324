"""The console's types of the API, made of the coordinator's OpenAPI document.

``python -m tests.support.console_schema`` makes them anew (``make console-schema``).
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Final

from tests.support.coordinator_api import Api

CONSOLE: Final = Path(__file__).parents[2] / "coordinator" / "console"
SCHEMA: Final = CONSOLE / "src" / "api" / "schema.ts"


def document(folder: Path) -> bytes:
    """The OpenAPI document of a coordinator, as JSON; ``folder`` is for its rows."""
    api = Api(folder)
    try:
        found = api.get("/api/v1/openapi.json").json()
    finally:
        api.usage.close()
        api.store.close()
    return json.dumps(found, sort_keys=True).encode()


def first_line(told: bytes) -> str:
    """What types made of this document begin with."""
    return f"// Made by `make console-schema` of the OpenAPI document {sha256(told).hexdigest()}.\n"


def main() -> None:
    """Make the types. Raises CalledProcessError where the tool fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told = document(folder)
        source, made = folder / "openapi.json", folder / "schema.ts"
        source.write_bytes(told)
        tool = str(CONSOLE / "node_modules" / ".bin" / "openapi-typescript")
        subprocess.run([tool, str(source), "--output", str(made)], check=True)
        SCHEMA.write_text(first_line(told) + made.read_text(encoding="utf-8"), encoding="utf-8")


if __name__ == "__main__":
    main()
