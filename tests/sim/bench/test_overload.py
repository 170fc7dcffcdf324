"""The measure tells a server that refuses well from one that does not. Scripted engines, real HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from typer.testing import CliRunner

from coordinator.api.access import Access
from coordinator.api.app import Services, create_app
from coordinator.inference.front_desk import FrontDesk
from coordinator.inference.waiting_line import DeskLimits
from coordinator.store.store import Store
from shared.errors import ConfigError, CoordinatorUnavailable
from shared.loopback import served
from sim.bench.commands import bench
from sim.bench.overload import Target, _is_whole, bench_overload, measure, resident_bytes
from tests.support.scripted_engines import ScriptedEngine

TOKEN = "secret"  # noqa: S105  of this test


@contextmanager
def target_of(folder: Path, limits: DeskLimits) -> Iterator[tuple[Target, ScriptedEngine]]:
    """A coordinator's API with two slots that answer twenty requests a second."""
    engine = ScriptedEngine(slots=2, token_s=lambda _: 0.05)
    store = Store(f"sqlite:///{folder / 'store.db'}", folder)
    nothing: Any = None
    services = Services(
        store=store,
        fleet=nothing,
        coordinator=nothing,
        key_holder=None,
        broker=("127.0.0.1", 1883),
        admin_token=TOKEN,
        now=time.time,
        stop_run=nothing,
        is_ready=lambda: True,
        desk=FrontDesk({engine.card.name: engine}, limits=limits),
        adapter_of=nothing,
    )
    access = Access(store, admin_token=TOKEN)
    keys = [access.make_key(f"key-{number}")[0] for number in range(2)]
    with served(create_app(services), 0, extra="coordinator") as port:
        yield Target(f"http://127.0.0.1:{port}", keys, engine.card.name, 2), engine
    store.close()


def measured(target: Target, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"seconds": 2, "factor": 5, "concurrency": 100}
    return measure(target, **defaults | options, progress=lambda _: None)


def bar(result: dict[str, Any], start: str) -> dict[str, Any]:
    (found,) = [bar for bar in result["bars"] if bar["name"].startswith(start)]
    return found  # type: ignore[no-any-return]


def test_overloaded_a_coordinator_refuses_well_and_answers_whom_it_let_in(tmp_path: Path) -> None:
    limits = DeskLimits(waiting=6, waiting_of_one=4)
    with target_of(tmp_path, limits) as (target, engine):
        result = measured(target, memory=lambda: resident_bytes(os.getpid()))
    figures = result["figures"]
    assert figures["errors"] == {}
    assert figures["refused"] > 0
    assert figures["refused_with_retry_after"] == figures["refused"]
    assert 0 < figures["accepted"] == figures["finished"]
    assert figures["accepted"] + figures["refused"] == figures["offered"]
    assert engine.most_active == 2
    assert engine.active == engine.closed_early == 0
    # How fast this machine can offer is its own affair; all else must hold.
    assert [b["name"] for b in result["bars"] if not b["holds"]] in (
        [],
        ["offered, times what it can answer"],
    )


@contextmanager
def bad_server(refuse: Response | None, answer: dict[str, Any]) -> Iterator[Target]:
    """Answers a while, and then does what it is told."""
    app = FastAPI()
    asked = [0]

    @app.post("/v1/chat/completions", response_model=None)
    async def complete(_: Request) -> Response | dict[str, Any]:
        asked[0] += 1
        return refuse if refuse is not None and asked[0] % 2 else answer

    with served(app, 0, extra="coordinator") as port:
        yield Target(f"http://127.0.0.1:{port}", ["key"], "any", 2)


WHOLE: dict[str, Any] = {
    "choices": [{"finish_reason": "stop"}],
    "usage": {"completion_tokens": 1},
}


@pytest.mark.parametrize(
    ("refuse", "answer", "fails"),
    [
        (Response(status_code=503), WHOLE, "refusals that do not say"),
        (Response(status_code=503, headers={"Retry-After": "soon"}), WHOLE, "refusals that do"),
        (None, {"choices": [{"finish_reason": None}], "usage": {}}, "accepted and not answered"),
        (None, WHOLE, "refused, because"),
    ],
)
def test_a_server_that_does_worse_does_not_pass(
    refuse: Response | None, answer: dict[str, Any], fails: str
) -> None:
    with bad_server(refuse, answer) as target:
        result = measured(target, seconds=1, factor=1.5, concurrency=10)
    assert not bar(result, fails)["holds"]


def test_growth_of_memory_and_a_dead_process_are_seen(tmp_path: Path) -> None:
    sizes = iter([10, *[10 + 300 * 2**20] * 1000])
    with target_of(tmp_path, DeskLimits(waiting=2)) as (target, _):
        result = measured(target, seconds=1, memory=lambda: next(sizes), alive=lambda: False)
    assert bar(result, "growth of memory")["measured"] == 300
    assert not bar(result, "growth of memory")["holds"]
    assert not bar(result, "the server answers")["holds"]


def test_a_server_that_is_not_there_is_an_error_of_ours() -> None:
    with pytest.raises(CoordinatorUnavailable):
        measured(Target("http://127.0.0.1:9", ["key"], "any", 1))


def test_a_server_that_runs_wants_a_key() -> None:
    result = CliRunner().invoke(bench, ["overload", "--url", "http://127.0.0.1:9"])
    assert isinstance(result.exception, ConfigError)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ('{"choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": 1}}', True),
        ('{"choices": [{"finish_reason": "length"}], "usage": {"completion_tokens": 4}}', True),
        ('{"choices": [{"finish_reason": "length"}], "usage": {"completion_tokens": 3}}', False),
        ('{"choices": []}', False),
        ('{"choices"', False),
        ("[]", False),
    ],
)
def test_an_answer_is_whole_or_not(text: str, whole: bool) -> None:
    assert _is_whole(text, 4) is whole


def test_memory_is_that_of_a_process_and_its_children() -> None:
    before = resident_bytes(os.getpid())
    code = "x = bytearray(b'1' * 50_000_000); print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert resident_bytes(os.getpid()) - before > 40_000_000
        assert resident_bytes(child.pid) > 50_000_000
        child.communicate(b"\n")
    assert resident_bytes(child.pid) == 0


@pytest.mark.slow
@pytest.mark.processes
def test_a_real_coordinator_with_a_real_model_lives_through_it(tmp_path: Path) -> None:
    from tests.support.language_models import make_model

    model = make_model(tmp_path / "few").folder
    result = bench_overload(
        seconds=4,
        factor=5,
        concurrency=60,
        max_tokens=2,
        model=str(model),
        url="",
        key="",
        progress=lambda _: None,
    )
    held = {b["name"] for b in result["bars"] if b["holds"]}
    # Whether so few seconds of load fill the line depends on the machine.
    assert held >= {b["name"] for b in result["bars"]} - {
        "refused, because there was more than it could answer",
        "offered, times what it can answer",
    }
    assert result["figures"]["memory_before_mib"] > 100
