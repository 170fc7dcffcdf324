"""Clients that nobody changed for us: the script in the documents, and LangChain's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from tests.support.scripted_engine import TOKEN, ScriptedEngine, serving

SCRIPT = Path(__file__).parents[3] / "docs" / "openai_client.py"


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def url(engine: ScriptedEngine) -> Iterator[str]:
    with serving(engine) as url:
        yield url


@pytest.fixture
def model(url: str) -> ChatOpenAI:
    return ChatOpenAI(
        model="scripted", base_url=url, api_key=SecretStr(TOKEN), max_retries=0, stream_usage=True
    )


def test_the_script_in_the_documents_works(url: str, engine: ScriptedEngine) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "Wo ist mein Paket?"],
        env=os.environ | {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": TOKEN, "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["Hello, world", "Hello, world", "10 tokens"]
    assert len(engine.requests) == 2


def test_langchain_gets_an_answer_whole_and_in_pieces(model: ChatOpenAI) -> None:
    answer = model.invoke([("system", "Be brief."), ("human", "Where is it?")])
    assert answer.content == "Hello, world"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] == 10
    assert answer.usage_metadata["input_token_details"]["cache_read"] == 3
    assert answer.response_metadata["finish_reason"] == "stop"
    pieces = [*model.stream("Where is it?")]
    assert "".join(str(piece.content) for piece in pieces) == "Hello, world"
    assert len([piece for piece in pieces if piece.content]) == 3
    assert [piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata] == [
        3
    ]


class Parcel(BaseModel):
    """What a test wants to know."""

    number: int


def test_langchain_gets_an_answer_in_a_form(model: ChatOpenAI, engine: ScriptedEngine) -> None:
    engine.pieces = ['{"number":', " 5}"]
    form = model.with_structured_output(Parcel, method="json_schema")
    assert form.invoke("Which?") == Parcel(number=5)
    assert json.loads(engine.requests[0].schema or "")["properties"].keys() == {"number"}
