"""The application keeps to its own OpenAPI document, whatever is generated from it."""

from __future__ import annotations

import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import run_state_machine_as_test
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.python import asgi

from coordinator.api.roles import PERMISSIONS, WEB_SOCKET, Role
from coordinator.inference.encoder import EncoderCard
from coordinator.inference.engine import EngineState
from coordinator.inference.text_services import TextServices
from coordinator.retrieval.lance_vectors import LanceVectors
from coordinator.retrieval.library import Library
from shared.errors import LlmOsError
from tests.support.coordinator_api import HEADERS, Api
from tests.support.encoders import WordEncoder

load_all_checks()
LEFT_OUT = {"positive_data_acceptance", "object_level_authorization"}
"""Bodies have rules that no schema can tell, and a collection is its caller's by its name."""
CHECKED: Any = [check for check in CHECKS.get_all() if check.__name__ not in LEFT_OUT]
BUT_REFUSALS: Any = [check for check in CHECKED if check.__name__ != "negative_data_rejection"]
"""Where a refusal is not owed, or is one that the library does not know: of parameters that nobody
named none is, as everywhere on the web, and what is too long is refused with 413."""

STREAM = "/api/v1/events"
"""Its answer has no end; ``test_events.py`` reads it."""
HIDDEN = {"/api/v1/openapi.json"} | {
    each.route
    for each in PERMISSIONS
    if each.route.startswith(("/api/v1/docs", "/console/"))
    or each.route == "/"
    or each.method == WEB_SOCKET
}
"""The document itself, the page that shows it, the console's files, and sockets, of which it knows nothing."""
OPERATIONS = sorted(
    f"{each.method} {each.route.replace(':path}', '}')}"
    for each in PERMISSIONS
    if each.route not in {*HIDDEN, STREAM}
)
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "scripted", "max_tokens": 2, "max_completion_tokens": None},
    "/v1/completions": {"model": "scripted", "max_tokens": 2, "suffix": None, "best_of": None},
    "/v1/embeddings": {"model": "words"},
}
"""What no schema can tell: which models there are. Long answers say no more than short ones."""
SETTINGS: dict[str, Any] = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


class Served:
    """An application with everything behind it, and its document as the library reads it."""

    def __init__(self, folder: Path) -> None:
        encoder = WordEncoder()
        self.library = Library(encoder, lambda: LanceVectors(folder / "collections"))
        self.api = Api(
            folder,
            TextServices(
                encoder=encoder,
                reader=WordEncoder(EncoderCard("reads", EngineState.READY, reads_answers=True)),
                library=self.library,
            ),
        )
        key = self.api.make_key("the-caller")["key"]
        self.credentials = {"admin": HEADERS, "caller": {"Authorization": f"Bearer {key}"}}
        self.app: Any = self.api.app
        self.schema = schemathesis.openapi.from_asgi(
            "/api/v1/openapi.json", self.api.app, headers=HEADERS
        ).exclude(path=STREAM)

    def forget(self) -> None:
        """Remove what was made, so that one story is not the next one's past."""
        with sqlite3.connect(self.api.store.folder / "store.db") as database:
            made = ("person_links", "person_sessions", "people", "api_key_roles", "api_keys")
            for table in (*made, "join_tokens"):
                database.execute(f"DELETE FROM {table}")  # noqa: S608  of the names above
        database.close()
        for card, _ in self.library.shown("admin"):
            self.library.drop("admin", card.name)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as folder:
        served = Served(Path(folder))
        yield served
        served.api.store.close()


@pytest.mark.parametrize("label", OPERATIONS)
@pytest.mark.parametrize("credential", ["admin", "caller"])
def test_what_is_answered_is_what_the_document_says(
    served: Served, credential: str, label: str
) -> None:
    method, _, path = label.partition(" ")
    operation = served.schema[path][method]
    headers = served.credentials[credential]
    statuses: Counter[int] = Counter()
    named = {each.name for each in operation.iter_parameters()}

    def keeps_to_it(case: Any) -> None:
        if case.meta.generation.mode is GenerationMode.POSITIVE and path in ASKED:
            case.body |= ASKED[path]
        answer = case.call(headers=headers, session=session)
        statuses[int(answer.status_code)] += 1
        assert answer.status_code < 500 or (answer.status_code == 503 and path.startswith("/v1/"))
        unnamed = set(case.query or {}) - named
        checks = BUT_REFUSALS if unnamed or answer.status_code == 413 else CHECKED
        case.validate_response(answer, checks=checks, headers=headers)

    may = credential in served.schema.raw_schema["paths"][path][method.lower()]["x-roles"]
    takes_something = any(operation.iter_parameters()) or operation.body
    modes = list(GenerationMode) if takes_something else [GenerationMode.POSITIVE]
    with asgi.get_client(served.app) as session:
        for mode in modes:
            cases = operation.as_strategy(generation_mode=mode)
            # Of bodies with many fields few are answered: more are asked, so that some are.
            count = (25 if path in ASKED else 5) if may else 1
            settings(max_examples=count, **SETTINGS)(given(case=cases)(keeps_to_it))()
    let_in = {status for status in statuses if status not in (401, 403)}
    assert bool(let_in) is may, statuses
    if path in ASKED:
        assert 200 in statuses, "the control: some of it is answered"


@pytest.mark.parametrize(
    ("part", "used"),
    [
        ("/api/v1/keys", {"POST /api/v1/keys/{name}/rotate", "DELETE /api/v1/keys/{name}"}),
        (
            "/api/v1/people",
            {"PUT /api/v1/people/{name}/role", "DELETE /api/v1/people/{name}"},
        ),
        ("/v1/collections", {"GET /v1/collections/{name}", "DELETE /v1/collections/{name}"}),
    ],
)
def test_what_makes_a_thing_leads_to_what_uses_it(
    served: Served, part: str, used: set[str]
) -> None:
    seen: Counter[tuple[str, int]] = Counter()
    made_from_links: Any = served.schema.include(path_regex=f"^{part}").as_state_machine()

    class Visits(made_from_links):  # type: ignore[misc]
        def setup(self) -> None:
            served.forget()

        def get_call_kwargs(self, _case: Any) -> dict[str, Any]:
            return {"headers": HEADERS}

        def validate_response(self, response: Any, case: Any, **_: Any) -> None:
            seen[case.operation.label, int(response.status_code)] += 1
            case.validate_response(response, checks=CHECKED, headers=HEADERS)

    # What is visited is drawn: where a few machines have not come everywhere, more of them do.
    for machines in (6, 12, 24):
        run_state_machine_as_test(
            Visits, settings=settings(max_examples=machines, stateful_step_count=12, **SETTINGS)
        )
        if used <= {label for label, status in seen if status == 200}:
            break
    assert used <= {label for label, status in seen if status == 200}, sorted(seen)
    assert not [each for each in seen if each[1] >= 500]


# The document itself


def test_the_document_says_of_every_route_who_may_use_it(served: Served) -> None:
    document = served.schema.raw_schema
    for line in PERMISSIONS:
        if line.route in HIDDEN:
            continue
        operation = document["paths"][line.route.replace(":path}", "}")][line.method.lower()]
        assert set(operation["x-roles"]) == line.roles
        assert operation["security"] == (
            [] if Role.STRANGER in line.roles else [{"credential": []}]
        )
        error = "Error" if line.route.startswith("/v1/") else "Problem"
        assert f"#/components/schemas/{error}" in str(operation["responses"]["4XX"])
        assert "422" not in operation["responses"]
    assert "HTTPValidationError" not in str(document)


def test_what_is_answered_otherwise_than_documented_is_seen(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the check above can fail."""
    operation = served.schema["/api/v1/runs"]["GET"]

    def call(stored: Any) -> None:
        monkeypatch.setattr(served.api.store, "runs_after", stored)
        case = operation.Case()
        with asgi.get_client(served.app) as session:
            answer = case.call(headers=HEADERS, session=session)
        case.validate_response(answer, checks=CHECKED, headers=HEADERS)

    def fails(*_: object, **__: object) -> list[Any]:
        raise LlmOsError("nobody foresaw it")

    call(lambda *_, **__: [])
    with pytest.raises(FailureGroup, match="Server error"):
        call(fails)
    answer = operation.Case().call(headers=HEADERS | {"Accept": "text/html"})
    answer.headers["content-type"] = ["text/html"]
    with pytest.raises(FailureGroup, match="Content-Type"):
        operation.Case().validate_response(answer, checks=CHECKED, headers=HEADERS)
