"""Log lines say which request or run they are of, and nothing says what was asked or learnt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
from structlog.testing import capture_logs

from coordinator.audit.verify import LOG, records_of
from coordinator.federation.rounds import Transition
from shared.crypto.identity import Identity, format_public
from shared.transport.mqtt import MqttTransport
from shared.types import RoundNumber, RunId
from shared.wire import topics
from shared.wire.envelope import Post
from shared.wire.messages import Answering, Question
from tests.support.brokers import eventually, mosquitto_or_skip
from tests.support.coordination import World
from tests.support.fake_nodes import MODEL, FakeNode, says
from tests.support.trace_receivers import receiving

ROOT = Path(__file__).parents[2]
TENSOR = np.arange(64, dtype="<f4").tobytes() + b"quoll-tensor"
MARKS = {
    "prompt": "quokka-of-the-prompt",
    "password": "numbat-Passw0rd!",
    "answer": "wombat-of-the-answer",
    "probe": "bilby-of-the-probe",
    "question": "dingo-of-the-question",
    "schema": "potoroo-of-the-schema",
    "wrong credential": "llmos_" + "z" * 43,
    "node's key": "galah-of-the-node",
    "tensor": "quoll-tensor",
}


@contextmanager
def coordinator(home: Path, node: FakeNode, traces: str, log: Path) -> Iterator[dict[str, Any]]:
    """``llmos up`` before one node, with spans; its ready.json."""
    mosquitto_or_skip()
    words = [
        *(sys.executable, "-m", "shared.command_line", "up", "--home", home),
        *("--port", "0", "--broker-port", "0", "--encoder", "none"),
        *("--upstream", node.url, "--upstream-model", MODEL, "--upstream-key-env", "NODE_KEY"),
        *("--otel-endpoint", traces),
    ]
    environment = os.environ | {"NODE_KEY": MARKS["node's key"], "NO_PROXY": "127.0.0.1"}
    with log.open("wb") as output:
        child = subprocess.Popen(
            [str(word) for word in words], cwd=ROOT, stdout=output, stderr=output, env=environment
        )
        try:
            there = eventually(
                lambda: (home / "ready.json").exists() or child.poll() is not None, within_s=120
            )
            assert there
            assert child.poll() is None, log.read_text()
            yield json.loads((home / "ready.json").read_text())
            child.send_signal(signal.SIGTERM)
            assert child.wait(120) == 0, log.read_text()
        finally:
            child.kill()
            child.wait()


def ask_everything(api: httpx.Client, ready: dict[str, Any], home: Path) -> list[str]:
    """Requests with every mark in them, good and bad. Gives the secrets that were made."""

    def chat(**more: Any) -> httpx.Response:
        content = f"{MARKS['prompt']} my password is {MARKS['password']}"
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **more}
        return api.post("/v1/chat/completions", json=body)

    assert eventually(lambda: chat().status_code == 200, within_s=120)
    assert MARKS["answer"] in chat().text
    chat(max_tokens=-1)
    chat(response_format={"type": "json_schema", "json_schema": {"schema": MARKS["schema"]}})
    chat(model=MARKS["prompt"])
    api.post("/v1/embeddings", json={"model": "none", "input": [MARKS["prompt"]]})
    api.post("/v1/tasks/classify", json={"text": MARKS["prompt"], "run": "none"})
    api.post("/v1/chat/completions", content=b"{" + MARKS["prompt"].encode())
    key = api.post("/api/v1/keys", json={"name": "notes", "days": None, "priority": 0}).json()
    # What was taken for a name: by an admin, and by a caller who may not.
    caller = {"Authorization": f"Bearer {key['key']}"}
    for name in (key["key"], MARKS["prompt"]):
        assert api.delete(f"/api/v1/keys/{name}").status_code == 404
        assert api.get(f"/api/v1/runs/{name}").status_code == 404
        assert api.get(f"/api/v1/runs/{name}", headers=caller).status_code == 403
        assert api.get(f"/v1/collections/{name}").status_code >= 400
    token = api.post("/api/v1/devices/tokens", json={"valid_s": 600}).json()["token"]
    wrong = {"Authorization": f"Bearer {MARKS['wrong credential']}"}
    assert api.get("/api/v1/runs", headers=wrong).status_code == 401
    refused = api.post(
        "/api/v1/runs",
        json={"job": {"name": "x"}, "probe": [[MARKS["probe"], "a", ""]], "seed": 1},
        headers={"X-Request-Id": "the-refused-one"},
    )
    assert refused.status_code == 422
    device = Identity.create(home.parent / "device.key")
    joining = {
        "token": token.partition(".")[0],
        "name": "phone",
        "public_key": format_public(device.public),
    }
    assert api.post("/api/v1/devices/join", json=joining).is_success
    talk(ready, Post(device, home.parent / "device"), api)
    files = [home / name for name in ("admin.token", "metrics.token")]
    return [key["key"], joining["token"], *(path.read_text() for path in files)]


def talk(ready: dict[str, Any], post: Post, api: httpx.Client) -> None:
    """A device's question, and what is no message at all."""
    transport = MqttTransport(ready["broker_host"], ready["broker_port"], "phone")
    answers: list[bytes] = []
    transport.open(lambda _, payload: answers.append(payload), [topics.down("phone")])
    try:
        for payload in (
            TENSOR,
            post.seal(Question(MARKS["question"], MARKS["question"])),
            post.seal(Answering("", "")),
        ):
            assert transport.publish(topics.up("phone"), payload)
        assert eventually(
            lambda: any(MARKS["answer"].encode() in each for each in answers), within_s=120
        )
    finally:
        transport.close()


@pytest.mark.broker
@pytest.mark.processes
def test_what_was_asked_is_in_no_log_span_metric_or_record(tmp_path: Path) -> None:
    home, log = tmp_path / "home", tmp_path / "log"
    (tmp_path / "device").mkdir()
    with FakeNode(says(MARKS["answer"])) as node, receiving() as traces:
        with coordinator(home, node, traces.url, log) as ready:
            headers = {"Authorization": f"Bearer {(home / 'admin.token').read_text()}"}
            with httpx.Client(
                base_url=ready["url"], headers=headers, trust_env=False, timeout=120
            ) as api:
                made = ask_everything(api, ready, home)
                metrics = api.get("/metrics").text
            checked = subprocess.run(
                [
                    *(sys.executable, "-m", "shared.command_line", "audit", "security"),
                    *("--home", str(home), "--json"),
                ],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
        assert any(MARKS["prompt"] in json.dumps(call.body) for call in node.calls)
        assert any(MARKS["question"] in json.dumps(call.body) for call in node.calls)
    lines = log.read_text()
    kept = {
        "log": lines.encode(),
        "spans": b"".join(traces.bodies),
        "metrics": metrics.encode(),
        "audit": b"".join(path.read_bytes() for path in (home / "audit").iterdir()),
        "usage": b"".join(path.read_bytes() for path in (home / "usage").iterdir()),
        "ready": json.dumps(ready).encode(),
        "check": checked.stdout.encode() + checked.stderr.encode(),
    }
    assert all(kept.values())
    secrets = [*MARKS.items(), *((f"secret {number}", one) for number, one in enumerate(made))]
    # A part of each is enough, since what was cut was told; how a key begins is in the audit log.
    marks = {name: text[: 20 if text.startswith("llmos_") else 12] for name, text in secrets}
    found = {
        (place, name)
        for place, data in kept.items()
        for name, mark in marks.items()
        if mark.encode() in data
    }
    assert found == set()
    _are_about_their_request(lines)
    _are_what_was_asked_for(traces.spans, home)
    _knows_what_runs(json.loads(checked.stdout)["findings"])


def _are_about_their_request(lines: str) -> None:
    """Every line that tells of a request names it."""
    told = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    refused = [each for each in told if each["event"] == "request.refused"]
    assert refused
    assert all(each.get("request") for each in refused)
    assert [each["path"] for each in refused if each["request"] == "the-refused-one"] == [
        "/api/v1/runs"
    ]


def _are_what_was_asked_for(spans: list[Any], home: Path) -> None:
    names = {span.name for span in spans}
    assert names >= {"POST /v1/chat/completions", "POST /api/v1/keys", "engine"}
    assert all(span.facts["llmos.request"] for span in spans if "/" in span.name)
    assert [record.entry.subject for record in records_of(home / "audit" / LOG)].count("notes") == 1


def _knows_what_runs(findings: list[dict[str, Any]]) -> None:
    """The check of a running coordinator on loopback: nothing listens beyond, all was read."""
    codes = {finding["code"] for finding in findings}
    assert codes.isdisjoint({"listens-beyond-loopback", "connection-without-tls", "audit-damaged"})
    assert [each["detail"] for each in findings if each["code"] == "not-checked"] == []
    assert "no-key-holder" in codes


def test_every_line_while_a_run_moves_names_the_run(world: World) -> None:
    log = structlog.get_logger()

    def moved(run: RunId, number: RoundNumber, _: Transition) -> None:
        log.info("seen", of=run, number=number)

    world.store.follow(moved)
    plan = world.submit(training={"rounds": 2})
    devices = world.add_devices("abc")
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        world.start()
        assert world.run()
    seen = [line for line in lines if line["event"] == "seen"]
    assert len(seen) > 10
    assert [line for line in seen if line.get("run") != line["of"]] == []
    about = [line for line in lines if line["event"].startswith(("round.", "run.", "update."))]
    assert about
    assert all(line["run"] for line in about)
    # What devices trained is in none of them, as a list of numbers or as bytes.
    told = repr(lines)
    for device in devices:
        values = device.values(plan, 1)
        assert str(values.tolist()[:4])[1:-1] not in told
        assert repr(values.tobytes()[:16])[2:-1] not in told
