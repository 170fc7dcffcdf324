"""Whatever a request's body holds, the answer is an answer or a refusal, never an accident."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.api.app import create_app
from tests.support.scripted_engine import TOKEN, ScriptedEngine, services_of

ENGINE = ScriptedEngine()
# What no handler of ours foresaw is raised here, and fails the test with its traceback.
CLIENT = TestClient(
    create_app(services_of([ENGINE], {"trial": b"adapter"})),
    headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["\ud800", "", "text", "json_schema", "user", "none", "scripted"])
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "schema", "name", "\ud800"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)

SHARED = {
    "model": st.sampled_from(["scripted", "scripted:trial", "scripted:no-run"]),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.1, 1),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.lists(st.text(min_size=1, max_size=5), max_size=4),
    "n": st.integers(1, 8),
    "stream": st.booleans(),
    "max_tokens": st.integers(1, 100),
}
FORMS = {"type": st.just("json_schema")} | {
    "json_schema": st.fixed_dictionaries(
        {"name": st.just("x"), "schema": st.dictionaries(st.text(max_size=5), anything, max_size=3)}
    )
}
TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text(max_size=20)}
)
FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "/v1/chat/completions": SHARED
    | {
        "messages": st.lists(TURNS, min_size=1, max_size=3),
        "logprobs": st.booleans(),
        "response_format": st.fixed_dictionaries(FORMS),
    },
    "/v1/completions": SHARED
    | {
        "prompt": st.text(min_size=1, max_size=9)
        | st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=4)
        | st.lists(st.integers(0, 9), min_size=1),
        "logprobs": st.integers(0, 20),
    },
}

ODD: dict[str, st.SearchStrategy[Any]] = {
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "top_logprobs": st.integers(0, 20),
    "echo": st.booleans(),
    "best_of": st.integers(1, 8),
    "tools": st.none(),
    "unheard_of": st.none(),
}
"""Right in some bodies and wrong in others."""


@st.composite
def bodies(draw: st.DrawFn, path: str) -> Any:
    """Right, or nearly: with up to two fields that hold something else."""
    right = FIELDS[path]
    needed = {"model", "messages", "prompt"} & right.keys()
    optional = draw(st.sets(st.sampled_from(sorted(right.keys() - needed))))
    body = {name: draw(right[name]) for name in sorted(needed | optional)}
    wrong = draw(st.just([]) | st.lists(st.sampled_from([*right, *ODD]), max_size=2))
    return body | {name: draw(ODD.get(name, anything) | anything) for name in wrong}


@pytest.mark.parametrize("path", FIELDS)
def test_no_body_makes_the_server_fail(path: str) -> None:
    statuses: Counter[int] = Counter()

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(bodies(path) | anything)
    def ask(body: Any) -> None:
        answer = CLIENT.post(path, content=json.dumps(body).encode())
        statuses[answer.status_code] += 1
        assert answer.status_code in (200, 400, 404)
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]
        elif not (isinstance(body, dict) and body.get("stream")):
            assert answer.json()["choices"]

    ask()
    # A third of a hundred bodies or more is right, and a quarter or more wrong (measured): that
    # there is none of a kind happens in less than 1 run of 10^12.
    assert statuses[200], "no body was right"
    assert statuses[400], "no body was wrong"
    assert ENGINE.active == 0
