"""Several times as many requests as a server can answer, over real connections on loopback.

First as many as it can answer are sent, from callers that wait for their answers; then requests
come at a multiple of that pace, whatever becomes of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from coordinator.commands import Client
from shared.errors import ChildDied, ConfigError, CoordinatorUnavailable, EngineError
from sim.bench.bars import Bar, told
from sim.fleet_processes import start_llmos

if TYPE_CHECKING:
    import httpx

CALLERS: Final = 4
"""API keys that the requests come from, in turns."""
POOL: Final = 50
"""Connections of one client."""
CLOSED_LOOP: Final = 16
"""Callers that wait for their answers, while the pace is measured."""
MEMORY_BYTES: Final = 256 * 2**20
"""What a server may grow by: its line holds 64 MiB of prompts at most, and so much again and more
for what the framework makes of them."""
PATIENCE_S: Final = 180.0
"""For an answer; a server sends away whoever has waited a minute."""
START_S: Final = 180.0
STAND_IN_STEPS: Final = 4

Progress = Callable[[str], None]


@dataclass(slots=True)
class Tally:
    """What became of the requests.

    Attributes:
        offered: That were sent.
        held_back: That were not: so many as may be were under way.
        accepted: Answered with 200.
        finished: Of these, with a whole answer and its usage.
        refused: Answered with 429 or 503.
        told_when: Of these, with a ``Retry-After`` of at least a second.
        errors: By what went wrong otherwise.
        took_s: Until the last was sent.
    """

    offered: int = 0
    held_back: int = 0
    accepted: int = 0
    finished: int = 0
    refused: int = 0
    told_when: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Target:
    """A server and what is asked of it.

    Attributes:
        url: Without ``/v1``.
        keys: Shown in turns.
        model: By its name.
        max_tokens: Of every answer.
    """

    url: str
    keys: Sequence[str]
    model: str
    max_tokens: int


def bench_overload(
    *,
    seconds: float,
    factor: float,
    concurrency: int,
    max_tokens: int,
    model: str,
    url: str,
    key: str,
    progress: Progress,
) -> dict[str, Any]:
    """Overload a server and see what becomes of it.

    Args:
        seconds: How long.
        factor: Of what it can answer.
        concurrency: Requests under way at once, at most.
        max_tokens: Of every answer.
        model: Folder or hub id of what is served; empty trains a stand-in. Unless there is a URL.
        url: Of a server that runs already; empty starts a coordinator.
        key: For that server.
        progress: Told what is being done.

    Returns:
        JSON values: ``bars`` with what was promised, and the figures behind them.

    Raises:
        LlmOsError: the server could not be started or asked.
    """
    if url and not key:
        raise ConfigError(["--key: a server that runs already wants one"], source="options")
    with ExitStack() as stack:
        if url:
            target = Target(url, (key,), _model_at(url, key, progress), max_tokens)
            return measure(
                target, seconds=seconds, factor=factor, concurrency=concurrency, progress=progress
            )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmos-bench-")))
        started = stack.enter_context(_coordinator(folder, model, max_tokens, progress))
        target, pid = started
        return measure(
            target,
            seconds=seconds,
            factor=factor,
            concurrency=concurrency,
            progress=progress,
            memory=lambda: resident_bytes(pid),
            alive=lambda: _is_running(pid),
        )


def measure(
    target: Target,
    *,
    seconds: float,
    factor: float,
    concurrency: int,
    progress: Progress,
    memory: Callable[[], int] | None = None,
    alive: Callable[[], bool] = lambda: True,
) -> dict[str, Any]:
    """As :func:`bench_overload`, of a server that is there.

    Args:
        target: The server.
        seconds: How long more is offered.
        factor: How much more.
        concurrency: Requests under way at once, at most.
        progress: Told what is being done.
        memory: Bytes that the server has; ``None`` where that cannot be seen.
        alive: Whether its process still is what it was.
    """
    progress("measuring the pace")
    pace = asyncio.run(_pace(target, max(1.0, min(15.0, seconds / 4))))
    before = memory() if memory is not None else 0
    progress(f"{pace:.1f} requests a second are answered; offering {pace * factor:.1f}")
    tally, peak = asyncio.run(
        _overload(
            target, rate=pace * factor, seconds=seconds, concurrency=concurrency, memory=memory
        )
    )
    lives = alive() and asyncio.run(_answers(target))
    grown = max(0, peak - before)
    offered = tally.offered / tally.took_s / pace
    bars = [
        Bar("the server answers afterwards", float(lives), 1.0),
        Bar("refused, because there was more than it could answer", tally.refused, 1.0),
        Bar("offered, times what it can answer", offered, 0.8 * factor),
        Bar(
            "refusals that do not say when to come again",
            tally.refused - tally.told_when,
            0.0,
            at_least=False,
        ),
        Bar(
            "accepted and not answered whole",
            tally.accepted - tally.finished,
            0.0,
            at_least=False,
        ),
        Bar("errors", float(tally.errors.total()), 0.0, at_least=False),
        Bar("accepted", tally.accepted, 1.0),
    ]
    if memory is not None:
        wanted = MEMORY_BYTES / 2**20
        bars.append(Bar("growth of memory, MiB", grown / 2**20, wanted, at_least=False))
    figures = {
        "answers_per_s": round(pace, 2),
        "offered": tally.offered,
        "held_back": tally.held_back,
        "accepted": tally.accepted,
        "finished": tally.finished,
        "refused": tally.refused,
        "refused_with_retry_after": tally.told_when,
        "errors": dict(tally.errors),
        "memory_before_mib": round(before / 2**20, 1) if memory is not None else None,
        "memory_peak_mib": round(peak / 2**20, 1) if memory is not None else None,
    }
    return told(
        "overload",
        bars,
        model=target.model,
        seconds=seconds,
        factor=factor,
        concurrency=concurrency,
        max_tokens=target.max_tokens,
        figures=figures,
    )


def _http(connections: int) -> httpx.AsyncClient:
    import httpx

    return httpx.AsyncClient(
        timeout=PATIENCE_S,
        # Given up before the server does so after 5 s: a request on its way just then fails.
        limits=httpx.Limits(max_connections=connections, keepalive_expiry=2.0),
        trust_env=False,
    )


async def _ask(http: httpx.AsyncClient, target: Target, number: int) -> httpx.Response:
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": f"Where is parcel number {number}?"}],
        "max_tokens": target.max_tokens,
        "temperature": 1.0,  # so that none is answered from a cache
        "seed": number,
    }
    key = target.keys[number % len(target.keys)]
    return await http.post(
        f"{target.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}
    )


async def _pace(target: Target, seconds: float) -> float:
    """Requests a second that are answered when callers wait for their answers."""
    import httpx

    over = time.monotonic() + seconds
    ended: list[float] = []

    async def one_after_the_other(http: httpx.AsyncClient, number: int) -> None:
        while time.monotonic() < over:
            number += CLOSED_LOOP
            try:
                response = await _ask(http, target, number)
            except httpx.HTTPError as err:
                raise CoordinatorUnavailable(f"{target.url} does not answer: {err!r}") from err
            if response.status_code == 200:
                ended.append(time.monotonic())
            elif response.status_code in (429, 503):
                await asyncio.sleep(0.1)
            else:
                raise EngineError(f"{response.status_code}: {response.text[:300]}")

    began = time.monotonic()
    async with _http(CLOSED_LOOP) as http:
        await asyncio.gather(*(one_after_the_other(http, n) for n in range(CLOSED_LOOP)))
    if not ended:
        raise EngineError(f"nothing was answered in {seconds:g} s: allow more --seconds")
    return len(ended) / (max(ended) - began)


async def _overload(
    target: Target,
    *,
    rate: float,
    seconds: float,
    concurrency: int,
    memory: Callable[[], int] | None,
) -> tuple[Tally, int]:
    """Send requests at a pace, whatever becomes of them; the tally, and the most memory seen."""
    tally = Tally()
    peak = 0
    under_way: set[asyncio.Task[None]] = set()
    chance = random.Random(1)
    async with AsyncExitStack() as stack:
        # Several pools: a pool looks through all its connections for every request.
        pools = [
            await stack.enter_async_context(_http(POOL)) for _ in range(-(-concurrency // POOL))
        ]
        began = time.monotonic()
        due, number, looked = began, 1_000_000, 0.0
        while (now := time.monotonic()) < began + seconds:
            if memory is not None and now - looked > 0.5:
                looked = now
                peak = max(peak, await asyncio.to_thread(memory))
            while due <= now:
                due += chance.expovariate(rate)  # as from many who know nothing of each other
                number += 1
                if len(under_way) >= concurrency:
                    tally.held_back += 1
                    continue
                tally.offered += 1
                pool = pools[number % len(pools)]
                task = asyncio.create_task(_one(pool, target, number, tally))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            await asyncio.sleep(max(0.0, min(0.05, due - time.monotonic())))
        tally.took_s = time.monotonic() - began
        while under_way:
            await asyncio.wait(under_way, timeout=0.5)
            if memory is not None:
                peak = max(peak, await asyncio.to_thread(memory))
    return tally, peak


async def _one(http: httpx.AsyncClient, target: Target, number: int, tally: Tally) -> None:
    import httpx

    try:
        response = await _ask(http, target, number)
    except httpx.HTTPError as err:
        tally.errors[type(err).__name__] += 1
        return
    if response.status_code == 200:
        tally.accepted += 1
        tally.finished += _is_whole(response.text, target.max_tokens)
    elif response.status_code in (429, 503):
        tally.refused += 1
        after = response.headers.get("retry-after", "")
        tally.told_when += after.isdecimal() and int(after) >= 1
    else:
        tally.errors[f"HTTP {response.status_code}"] += 1


def _is_whole(text: str, max_tokens: int) -> bool:
    try:
        answer = json.loads(text)
        reason = answer["choices"][0]["finish_reason"]
        tokens = answer["usage"]["completion_tokens"]
    except (ValueError, KeyError, IndexError, TypeError):
        return False
    return bool(reason == "stop" or (reason == "length" and tokens == max_tokens))


async def _answers(target: Target) -> bool:
    import httpx

    async with _http(1) as http:
        try:
            return (await _ask(http, target, 0)).status_code == 200
        except httpx.HTTPError:
            return False


# A server of one's own


@contextmanager
def _coordinator(
    folder: Path, model: str, max_tokens: int, progress: Progress
) -> Iterator[tuple[Target, int]]:
    """A coordinator in a process of its own; what to ask it, and its number."""
    home = folder / "coordinator"
    home.mkdir()
    with (folder / "log").open("wb") as log:
        if not model:
            progress("training a stand-in model")
            model = str(folder / "stand-in")
            size = ["--size", "smaller", "--steps", str(STAND_IN_STEPS)]
            made = start_llmos(["model", "make-tiny", "--out", model, *size], log)
            if made.wait(START_S) != 0:
                raise ChildDied(f"no stand-in could be trained:\n{_last_words(folder / 'log')}")
        ports = ["--port", "0", "--broker-port", "0"]
        process = start_llmos(["up", "--home", str(home), *ports, "--model", model], log)
        try:
            progress("starting a coordinator")
            ready = home / "ready.json"
            deadline = time.monotonic() + START_S
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ChildDied(f"no coordinator:\n{_last_words(folder / 'log')}")
                time.sleep(0.05)
            url = json.loads(ready.read_bytes())["url"]
            token = (home / "admin.token").read_text(encoding="ascii").strip()
            name = _model_at(url, token, progress)
            admin = Client(url, token)
            keys = [
                admin.post("/api/v1/keys", {"name": f"bench-{number}"})["key"]
                for number in range(CALLERS)
            ]
            admin.close()
            yield Target(url, keys, name, max_tokens), process.pid
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _model_at(url: str, key: str, progress: Progress) -> str:
    """The name of the model that a server has, once it answers."""
    client = Client(url, key)
    try:
        progress("waiting for the model")
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            models = client.get("/v1/models")["data"]
            if not models:
                raise EngineError(f"{url} serves no model")
            state = models[0].get("state", "ready")
            if state == "failed":
                raise EngineError(f"the model could not be loaded: {models[0].get('reason')}")
            if state == "ready":
                return str(models[0]["id"])
            time.sleep(0.1)
    finally:
        client.close()
    raise EngineError(f"the model was not loaded within {START_S:g} s")


def _last_words(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-8:])


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return resident_bytes(pid) > 0  # one that ended and waits for its parent has none


def resident_bytes(pid: int) -> int:
    """Memory of a process and of all that it started, as Linux tells it; 0 if it is gone."""
    parents: dict[int, list[int]] = {}
    sizes: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(entry.name))
        sizes[int(entry.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    total, left = 0, [pid]
    while left:
        this = left.pop()
        total += sizes.get(this, 0)
        left += parents.get(this, [])
    return total
