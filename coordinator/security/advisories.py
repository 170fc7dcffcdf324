"""Known advisories about installed libraries, from OSV's API, asked for by ``--online`` only.

    O1  names and versions of libraries are sent, and nothing else
    O2  whatever is answered, or is not, the check goes on

The form of question and answer: https://google.github.io/osv.dev/post-v1-querybatch/
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from coordinator.security.facts import Advisory, Library
from shared.errors import ProtocolError
from shared.extras import require

OSV: Final = "https://api.osv.dev"
_PATH: Final = "/v1/querybatch"
_MOST_QUERIES: Final = 1000
"""In one request, by OSV's own rule."""
_MOST_PAGES: Final = 20
_MOST_BYTES: Final = 16 * 1024 * 1024
_TIMEOUT_S: Final = 30.0
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")


def ask(libraries: Sequence[Library], *, url: str = OSV) -> list[Advisory]:
    """The libraries with known advisories, and the ids of these.

    Raises:
        ProtocolError: nobody answers, or in a form that OSV's is not.
    """
    httpx = require("httpx", extra="coordinator")
    ids: dict[Library, list[str]] = {}
    waiting: list[tuple[Library, str]] = [(library, "") for library in libraries]
    try:
        with httpx.Client(timeout=_TIMEOUT_S) as client:
            for _ in range(_MOST_PAGES):
                if not waiting:
                    break
                batch, waiting = waiting[:_MOST_QUERIES], waiting[_MOST_QUERIES:]
                results = _results(client, url, [_query(*one) for one in batch])
                for (library, _), result in zip(batch, results, strict=True):
                    ids.setdefault(library, []).extend(_ids(result))
                    if token := result.get("next_page_token"):
                        waiting.append((library, str(token)))
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as err:
        raise ProtocolError(f"{url} does not answer: {str(err) or type(err).__name__}") from err
    except (ValueError, TypeError, KeyError, AttributeError) as err:
        raise ProtocolError(f"{url} answers in another form than OSV's: {err}") from err
    return [
        Advisory(library.name, library.version, tuple(sorted(set(found))))
        for library, found in ids.items()
        if found
    ]


def _query(library: Library, page: str) -> dict[str, Any]:
    package = {"name": library.name, "ecosystem": "PyPI"}
    query: dict[str, Any] = {"package": package, "version": library.version}
    return query | ({"page_token": page} if page else {})


def _results(client: Any, url: str, queries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with client.stream("POST", url.rstrip("/") + _PATH, json={"queries": queries}) as response:
        response.raise_for_status()
        data = bytearray()
        for piece in response.iter_bytes():
            data += piece
            if len(data) > _MOST_BYTES:
                raise ValueError(f"more than {_MOST_BYTES} bytes")
    results: list[dict[str, Any]] = json.loads(data)["results"]
    return results


def _ids(result: dict[str, Any]) -> list[str]:
    """Of one library; an id that could garble a terminal or a log is no id."""
    found = [str(one["id"]) for one in result.get("vulns", ())]
    return [one for one in found if _ID.fullmatch(one)]
