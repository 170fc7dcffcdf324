"""Several nodes as processes, of which one is killed while requests run."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path

import httpx
import pytest

from coordinator.inference.engine import (
    ChatMessage,
    EngineState,
    GenerationRequest,
    Piece,
    answered,
)
from coordinator.inference.upstream_engine import UpstreamEngine
from coordinator.inference.upstream_nodes import Patience
from coordinator.inference.upstream_wire import parse_nodes
from shared.errors import ChildDied
from sim.fleet_processes import start_llmos
from tests.support.brokers import eventually, mosquitto_or_skip
from tests.support.fake_nodes import MODEL
from tests.support.language_models import make_model
from tests.support.tiny_encoders import make_encoder, make_reader

pytestmark = [pytest.mark.processes]

ROOT = Path(__file__).parents[3]
ASKED = GenerationRequest((ChatMessage("user", "Where is it?"),), max_tokens=8)
WORDS = 6
WHOLE = " 0 1 2 3 4 5"
LONG_S = 240.0


@contextmanager
def fake_node_process(between_s: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "tests.support.fake_nodes", str(WORDS), str(between_s)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


async def _killed_while_asked(
    engine: UpstreamEngine, victim: subprocess.Popen[str]
) -> list[tuple[str, bool]]:
    """What each of many requests had read, and whether its node was lost within its answer."""
    texts: list[str] = []
    begun = asyncio.Event()

    async def one(index: int) -> bool:
        try:
            async with aclosing(engine.stream(ASKED)) as stream:
                async for event in stream:
                    texts[index] += event.text if isinstance(event, Piece) else ""
                    begun.set()
        except ChildDied:
            return True
        return False

    tasks = []
    for index in range(60):
        texts.append("")
        tasks.append(asyncio.create_task(one(index)))
        await asyncio.sleep(0.01)
        if index == 30:
            await begun.wait()
            victim.kill()
    return list(zip(texts, await asyncio.gather(*tasks), strict=True))


def test_a_killed_node_costs_only_answers_that_had_begun() -> None:
    with ExitStack() as stack:
        nodes = [stack.enter_context(fake_node_process(0.05)) for _ in range(2)]
        engine = UpstreamEngine(
            parse_nodes(",".join(url for _, url in nodes)), MODEL, patience=Patience(check=0.2)
        )
        stack.callback(engine.close)
        engine.start()
        assert eventually(
            lambda: all(each.offer for each in engine.health.values()), within_s=LONG_S
        )
        victim = nodes[0][0]
        results = asyncio.run(_killed_while_asked(engine, victim))
        lost = [text for text, was_lost in results if was_lost]
        assert all(text and text != WHOLE for text in lost)
        assert [text for text, was_lost in results if not was_lost] == [WHOLE] * (60 - len(lost))
        assert len(lost) < 31
        assert [answered(engine, ASKED).text for _ in range(5)] == [WHOLE] * 5


@contextmanager
def _llmos_up(
    homes: Sequence[Path], options: Sequence[str]
) -> Iterator[list[tuple[subprocess.Popen[bytes], str]]]:
    """``llmos up`` in each home, and the address of each."""
    with ExitStack() as stack:
        processes = []
        for home in homes:
            with (home / "log").open("ab") as log:
                process = start_llmos(
                    ["up", "--home", str(home), "--port", "0", "--broker-port", "0", *options], log
                )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        ready = [home / "ready.json" for home in homes]
        eventually(lambda: all(file.exists() for file in ready), within_s=LONG_S)
        assert all(file.exists() for file in ready), [(home / "log").read_text() for home in homes]
        urls = [str(json.loads(file.read_text())["url"]) for file in ready]
        yield list(zip(processes, urls, strict=True))


def _home(folder: Path, name: str) -> tuple[Path, str]:
    """A coordinator's folder with its admin token, which others are to know beforehand."""
    home, token = folder / name, f"token-of-{name}"
    home.mkdir(mode=0o700)
    (home / "admin.token").write_text(token)
    return home, token


@pytest.mark.slow
@pytest.mark.broker
def test_two_coordinators_behind_a_third_share_the_work_and_one_may_be_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mosquitto_or_skip()
    model = make_model(tmp_path / "few-steps")
    name = "few-steps-stand-in"
    homes, tokens = zip(*(_home(tmp_path, each) for each in ("one", "two")), strict=True)
    front, front_token = _home(tmp_path, "front")
    monkeypatch.setenv("NODE_KEYS", ",".join(tokens))
    with (
        _llmos_up(homes, ["--model", str(model.folder)]) as nodes,
        _llmos_up(
            [front],
            [
                *("--upstream", ",".join(url for _, url in nodes)),
                *("--upstream-model", name, "--upstream-key-env", "NODE_KEYS"),
            ],
        ) as [(_, url)],
        httpx.Client(
            base_url=f"{url}/v1",
            headers={"Authorization": f"Bearer {front_token}"},
            trust_env=False,
            timeout=120,
        ) as client,
    ):

        def serving(url: str, token: str) -> bool:
            with httpx.Client(headers={"Authorization": f"Bearer {token}"}, trust_env=False) as own:
                (entry,) = own.get(f"{url}/v1/models", timeout=30).json()["data"]
            return bool(entry["state"] == EngineState.READY)

        where = [*zip([url for _, url in nodes], tokens, strict=True), (url, front_token)]
        assert eventually(lambda: all(serving(*each) for each in where), within_s=LONG_S)

        def ask(_: int = 0) -> tuple[int, str]:
            body = {
                "model": name,
                "messages": [{"role": "user", "content": "Where is my parcel?"}],
                "max_tokens": 24,
                "temperature": 0,
            }
            answer = client.post("/chat/completions", json=body)
            told = answer.json()
            return answer.status_code, str(
                told["choices"][0]["message"]["content"] if "choices" in told else told
            )

        status, right = ask()
        assert status == 200, right
        log = front / "log"
        assert eventually(lambda: log.read_text().count('"serving": true') == 2, within_s=LONG_S)
        with ThreadPoolExecutor(8) as pool:
            running = [pool.submit(ask) for _ in range(16)]
            assert eventually(lambda: any(each.done() for each in running), within_s=LONG_S)
            nodes[0][0].kill()
            # These engines hand an answer on in one piece at its end, so that none had begun.
            assert [each.result() for each in running] == [(200, right)] * 16
        assert [ask() for _ in range(4)] == [(200, right)] * 4


@pytest.mark.slow
@pytest.mark.broker
def test_a_bert_over_two_coordinators_embeds_and_reads_on_when_one_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mosquitto_or_skip()
    encoder, reader = tmp_path / "encoder", tmp_path / "reader"
    make_encoder(encoder)
    make_reader(reader)
    homes, tokens = zip(*(_home(tmp_path, each) for each in ("one", "two")), strict=True)
    front, front_token = _home(tmp_path, "front")
    monkeypatch.setenv("NODE_KEYS", ",".join(tokens))
    texts = [f"a b {number}" for number in range(200)]
    with (
        _llmos_up(homes, ["--encoder", str(encoder), "--reader", str(reader)]) as nodes,
        _llmos_up(
            [front],
            [
                *("--upstream", ",".join(url for _, url in nodes)),
                *("--upstream-encoder", "encoder", "--upstream-reader", "reader"),
                *("--upstream-key-env", "NODE_KEYS"),
            ],
        ) as [(_, url)],
        httpx.Client(trust_env=False, timeout=120) as client,
    ):

        def states(url: str, token: str) -> list[str]:
            heads = {"Authorization": f"Bearer {token}"}
            told = client.get(f"{url}/v1/models", headers=heads).json()["data"]
            return [entry["state"] for entry in told]

        where = [*zip([url for _, url in nodes], tokens, strict=True), (url, front_token)]
        assert eventually(
            lambda: all(states(*each) == [EngineState.READY] * 2 for each in where),
            within_s=LONG_S,
        )

        def ask(path: str, body: Mapping[str, object], at: tuple[str, str] = where[2]) -> object:
            heads = {"Authorization": f"Bearer {at[1]}"}
            answer = client.post(f"{at[0]}/v1{path}", json=body, headers=heads)
            assert answer.status_code == 200, answer.text
            return answer.json()["data"]

        def embed(_: int = 0) -> object:
            return ask("/embeddings", {"model": "encoder", "input": texts})

        alone = ask("/embeddings", {"model": "encoder", "input": texts}, where[0])
        right = embed()
        for mine, own in zip(right, alone, strict=True):  # type: ignore[call-overload]
            assert mine["index"] == own["index"]
            assert mine["embedding"] == pytest.approx(own["embedding"], abs=1e-5)
        question = {"question": "a", "passages": ["a b c", "c b"] * 5, "threshold": None}
        spans = ask("/tasks/answer", question, where[1])
        assert ask("/tasks/answer", question) == spans
        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(embed) for _ in range(12)]
            assert eventually(lambda: any(each.done() for each in running), within_s=LONG_S)
            nodes[0][0].kill()
            assert all(each.result() == right for each in running)
        assert ask("/tasks/answer", question) == spans
        assert states(*where[2]) == [EngineState.READY] * 2
