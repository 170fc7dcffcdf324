"""``llmos up`` is ready when it says so, and leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from coordinator.audit.verify import LOG, Verdict, records_of, verify_log
from coordinator.store.backup import FOLDERS, LEFT_OUT, SMALL_FILES
from coordinator.watch.rules import RULES
from shared.crypto.identity import parse_public
from shared.loopback import served
from tests.support.brokers import eventually, mosquitto_or_skip
from tests.support.postgres import empty_schema
from tests.support.proc import Process, descendants
from tests.support.tiny_encoders import make_encoder, make_reader
from tests.support.webhooks import fits, listening

pytestmark = [pytest.mark.broker, pytest.mark.processes]

ROOT = Path(__file__).parents[2]


class Up:
    """A running coordinator and the processes below it."""

    def __init__(self, child: subprocess.Popen[bytes], home: Path) -> None:
        self.process = child
        self.home = home
        self.ready: dict[str, Any] = json.loads((home / "ready.json").read_text())

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.ready["url"] + path, trust_env=False, timeout=60)

    @property
    def children(self) -> list[Process]:
        return descendants(self.process.pid)


def command(home: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "shared.command_line", "up", "--home", str(home)),
        *("--port", "0", "--broker-port", "0"),
        *options,
    ]


@contextmanager
def running(home: Path, *options: str) -> Iterator[Up]:
    """``llmos up`` from the moment it says that it is ready."""
    mosquitto_or_skip()
    with (home.parent / "log").open("ab") as log, (home.parent / "said").open("ab") as said:
        child = subprocess.Popen(command(home, *options), cwd=ROOT, stdout=said, stderr=log)
    try:
        there = eventually(
            lambda: (home / "ready.json").exists() or child.poll() is not None, within_s=60
        )
        assert there, "it was not ready in time"
        assert child.poll() is None, (home.parent / "log").read_text()
        yield Up(child, home)
    finally:
        child.kill()
        child.wait()


def test_it_answers_as_soon_as_it_says_that_it_is_ready(tmp_path: Path) -> None:
    with running(tmp_path / "home") as up:
        # No second try: whoever waited for the file may connect.
        assert up.get("/healthz").json() == {"status": "ok"}
        assert eventually(lambda: bool(up.get("/readyz").json()["ready"]))
        assert up.get("/api/v1/runs").status_code == 401
        token = (up.home / "admin.token").read_text()
        headers = {"Authorization": f"Bearer {token}"}
        answer = httpx.get(up.ready["url"] + "/api/v1/runs", headers=headers, trust_env=False)
        assert answer.json() == {"items": [], "next": None}
        for secret in ("admin.token", "metrics.token", "identity.key"):
            assert stat.S_IMODE((up.home / secret).stat().st_mode) == 0o600
        assert up.get("/metrics").status_code == 401
        scraper = {"Authorization": f"Bearer {(up.home / 'metrics.token').read_text()}"}
        url = up.ready["url"]
        answer = httpx.get(f"{url}/metrics", headers=scraper, trust_env=False)
        assert "# TYPE llmos_queue_depth gauge" in answer.text
        assert httpx.get(f"{url}/v1/models", headers=scraper, trust_env=False).status_code == 403
        assert up.ready["pid"] == up.process.pid
        second = subprocess.run(
            command(up.home), cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
        )
        assert second.returncode == 1
        assert "another process works in" in second.stderr
        assert up.get("/healthz").status_code == 200


def test_it_says_where_to_make_the_first_account_until_there_is_one(tmp_path: Path) -> None:
    home, said = tmp_path / "home", tmp_path / "said"
    with running(home) as up:
        assert eventually(lambda: said.read_text().endswith("\n"))
        (line,) = said.read_text().splitlines()
        before, _, link = line.partition("/console/#/login/")
        assert before == f"make the first account: {up.ready['url']}"
        body = {"link": link, "name": "anna", "password": "a sentence of mine"}
        url = up.ready["url"] + "/api/v1/session"
        with httpx.Client(trust_env=False, timeout=60) as browser:
            answer = browser.post(url, json=body)
            assert answer.json()["name"] == "anna"
            assert browser.get(up.ready["url"] + "/api/v1/runs").status_code == 200
            secret = browser.cookies["llmos_session"]
        os.kill(up.process.pid, signal.SIGTERM)
        assert eventually(lambda: up.process.poll() is not None)
        assert up.process.returncode == 0
    with running(home) as up:
        shown = {"Cookie": f"llmos_session={secret}"}
        answer = httpx.get(up.ready["url"] + "/api/v1/runs", headers=shown, trust_env=False)
        assert answer.status_code == 200, "a session outlives the process"
    assert said.read_text().splitlines() == [line]
    held = (tmp_path / "log").read_bytes() + (home / "audit" / LOG).read_bytes()
    held += b"".join(path.read_bytes() for path in home.glob("store.db*"))
    assert b'"subject":"anna"' in held, "the control"
    for each in (link, secret, body["password"]):
        assert each.encode() not in held


@pytest.mark.postgres
def test_rows_may_be_kept_in_postgresql_and_its_password_is_kept_to_ourselves(
    tmp_path: Path, postgres_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with empty_schema(postgres_server) as url:
        secret = "not-for-everybody"  # noqa: S105
        monkeypatch.setenv("LLMOS_STORE", url.replace("postgres:@", f"postgres:{secret}@"))
        home = tmp_path / "home"
        for number in (1, 2):
            (home / "ready.json").unlink(missing_ok=True)  # of the one that was killed
            with running(home) as up:
                headers = {"Authorization": f"Bearer {(home / 'admin.token').read_text()}"}
                with httpx.Client(
                    base_url=up.ready["url"], headers=headers, trust_env=False, timeout=60
                ) as api:
                    body = {"name": f"key-{number}", "days": None, "priority": 0}
                    assert api.post("/api/v1/keys", json=body).is_success
                    listed = api.get("/api/v1/keys").json()["items"]
                assert [key["name"] for key in listed] == ["key-1", "key-2"][:number]
                shown = [process.command for process in up.children]
                shown += [json.dumps(up.ready), (tmp_path / "log").read_text()]
                assert not any(secret in text for text in shown)
        assert not list(home.glob("store.db*"))


def test_it_is_backed_up_while_it_runs_and_restored_as_itself(tmp_path: Path) -> None:
    llmos = [sys.executable, "-m", "shared.command_line"]
    home, new, file = tmp_path / "home", tmp_path / "new", tmp_path / "backup.tar"
    with running(home) as up:
        there = {path.name for path in home.iterdir() if not path.name.startswith("store.db")}
        known = {*SMALL_FILES, *FOLDERS, *LEFT_OUT}
        assert there <= known, "is it to be in a backup, or not?"
        headers = {"Authorization": f"Bearer {(home / 'admin.token').read_text()}"}
        url = up.ready["url"] + "/api/v1/keys"
        body = {"name": "notes", "days": None, "priority": 0}
        assert httpx.post(url, json=body, headers=headers, trust_env=False).is_success
        subprocess.run([*llmos, "backup", file, "--home", home], cwd=ROOT, check=True, timeout=120)
        public = up.ready["public_key"]
        refused = subprocess.run(
            [*llmos, "restore", file, "--home", home],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert "another process works in" in refused.stderr
    subprocess.run([*llmos, "restore", file, "--home", new], cwd=ROOT, check=True, timeout=120)
    with running(new) as up:
        assert up.ready["public_key"] == public
        url = up.ready["url"] + "/api/v1/keys"  # and the token is the same
        listed = httpx.get(url, headers=headers, trust_env=False).json()["items"]
        assert [key["name"] for key in listed] == ["notes"]


def test_models_of_texts_answer_and_end_with_it(tmp_path: Path) -> None:
    encoder, reader = tmp_path / "encoder", tmp_path / "reader"
    make_encoder(encoder)
    make_reader(reader)
    options = ("--encoder", str(encoder), "--reader", str(reader))
    with running(tmp_path / "home", *options) as up:
        token = (up.home / "admin.token").read_text()
        ask = httpx.Client(
            base_url=up.ready["url"] + "/v1",
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
            timeout=120,
        )
        # While they are still being imported: whoever asks waits.
        asked = {"model": "encoder", "input": ["a b", "c"]}
        assert len(ask.post("/embeddings", json=asked).json()["data"]) == 2
        documents = {"documents": [{"id": "1", "text": "a b c"}]}
        added = ask.post("/collections/letters/documents", json=documents)
        assert added.json()["documents"] == 1, added.text
        question = {"question": "a", "collection": "letters", "threshold": None}
        answer = ask.post("/tasks/answer", json=question).json()
        assert answer["data"][0]["document"] == "1"
        states = {entry["id"]: entry["state"] for entry in ask.get("/models").json()["data"]}
        assert states == {"encoder": "ready", "reader": "ready"}
        ask.close()
        children = up.children
        assert sum("encoder_worker" in child.command for child in children) >= 2
        os.kill(up.process.pid, signal.SIGTERM)
        assert eventually(lambda: up.process.poll() is not None)
        assert eventually(lambda: not any(child.alive for child in children)), children
        assert up.process.returncode == 0
    with running(tmp_path / "home", "--encoder", str(encoder)) as up:
        head = {"Authorization": f"Bearer {(up.home / 'admin.token').read_text()}"}
        url = up.ready["url"] + "/v1/collections/letters/search"
        found = httpx.post(url, json={"query": "a"}, headers=head, trust_env=False, timeout=120)
        assert found.json()["data"][0]["text"] == "a b c"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_its_children_end_with_it(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path / "home") as up:
        assert eventually(lambda: bool(up.get("/readyz").json()["ready"]))
        children = up.children
        assert any("mosquitto" in child.command for child in children)
        assert all(child.alive for child in children)
        os.kill(up.process.pid, number)
        assert eventually(lambda: up.process.poll() is not None)
        assert eventually(lambda: not any(child.alive for child in children)), children
        assert up.process.returncode == (0 if number != signal.SIGKILL else -number)
        assert (up.home / "ready.json").exists() == (number == signal.SIGKILL)


def test_its_audit_log_is_whole_while_it_works_after_a_kill_and_after_it_ended(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"

    def post(up: Up, path: str, body: dict[str, Any]) -> httpx.Response:
        headers = {"Authorization": f"Bearer {(home / 'admin.token').read_text()}"}
        url = up.ready["url"] + "/api/v1" + path
        return httpx.post(url, json=body, headers=headers, trust_env=False, timeout=60)

    def verify() -> Verdict:
        return verify_log(home / "audit" / LOG, key=parse_public(up.ready["public_key"]))

    with running(home) as up:
        assert post(up, "/keys", {"name": "notes"}).status_code == 201
        assert verify().whole
        up.process.kill()
        up.process.wait()
    (home / "ready.json").unlink()
    with running(home) as up:
        assert post(up, "/devices/tokens", {"valid_s": 60}).status_code == 201
        headers = {"Authorization": f"Bearer {(home / 'admin.token').read_text()}"}
        url = up.ready["url"] + "/api/v1/audit"
        page = httpx.get(url, headers=headers, trust_env=False, timeout=60).json()
        shown = [record["action"] for record in page["items"]]
        os.kill(up.process.pid, signal.SIGTERM)
        assert eventually(lambda: up.process.poll() is not None)
        assert up.process.returncode == 0
    verdict = verify()
    assert verdict.whole
    assert verdict.uncovered == 0, "an orderly end is signed"
    told = [str(record.entry.action) for record in records_of(home / "audit" / LOG)]
    assert told[: len(shown)] == shown
    actions = [action for action in told if action != "audit-checkpoint"]
    assert actions == [
        *("coordinator-started", "person-linked", "key-made"),
        *("coordinator-started", "person-linked", "token-made", "coordinator-stopped"),
    ]
    # What was changed meanwhile keeps it from starting, and stays as it is.
    path = home / "audit" / LOG
    path.write_bytes(changed := path.read_bytes().replace(b'"notes"', b'"mouse"'))
    refused = subprocess.run(
        command(home), cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert refused.returncode == 1
    assert "record 4 of the audit log" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert path.read_bytes() == changed


def test_whoever_follows_its_events_is_told_that_it_ends(tmp_path: Path) -> None:
    with running(tmp_path / "home") as up:
        head = {"Authorization": f"Bearer {(up.home / 'admin.token').read_text()}"}
        url = up.ready["url"] + "/api/v1/events"
        with httpx.stream("GET", url, headers=head, trust_env=False, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("id: ")
            os.kill(up.process.pid, signal.SIGTERM)
            assert 'data: {"reason":"the coordinator stops"}' in list(lines)
        assert eventually(lambda: up.process.poll() is not None)
        assert up.process.returncode == 0


def test_a_broker_that_dies_is_started_again_on_the_same_port(tmp_path: Path) -> None:
    with running(tmp_path / "home") as up:
        assert eventually(lambda: bool(up.get("/readyz").json()["ready"]))
        (broker,) = [child for child in up.children if "mosquitto" in child.command]
        os.kill(broker.pid, signal.SIGKILL)
        assert eventually(lambda: not up.get("/readyz").json()["ready"])
        assert eventually(lambda: bool(up.get("/readyz").json()["ready"]), within_s=60)
        (again,) = [child for child in up.children if "mosquitto" in child.command]
        assert again.pid != broker.pid


def test_after_a_kill_it_starts_on_the_same_folder_with_the_same_key_and_token(
    tmp_path: Path,
) -> None:
    keys = []
    for _ in range(2):
        with running(tmp_path / "home") as up:
            keys.append((up.ready["public_key"], (up.home / "admin.token").read_text()))
        (tmp_path / "home" / "ready.json").unlink()  # it was killed
    assert keys[0] == keys[1]


def test_requests_wait_for_the_server_from_the_moment_its_port_is_known() -> None:
    app = FastAPI()
    app.get("/here")(lambda: {"here": True})
    for _ in range(3):
        with served(app, 0, extra="coordinator") as port:
            answer = httpx.get(f"http://127.0.0.1:{port}/here", trust_env=False)
            assert answer.status_code == 200


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    mosquitto_or_skip()
    with running(tmp_path / "home") as up:
        port = up.ready["url"].rpartition(":")[2]
        answer = subprocess.run(
            [*command(tmp_path / "other"), "--port", port],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert answer.returncode == 1
        assert f"--port: cannot listen on 127.0.0.1:{port}: " in answer.stderr
        assert "Traceback" not in answer.stderr


def test_a_cache_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    answer = subprocess.run(
        [*command(tmp_path / "home"), "--cache", "somewhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert answer.returncode == 1
    assert "--cache: must be memory, none, or like redis://" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_who_shows_credentials_that_open_nothing_is_told_to_the_operator(tmp_path: Path) -> None:
    """A real coordinator: an alarm by HTTP, on the command line, in metrics and at the webhook."""
    home = tmp_path / "home"
    home.mkdir()
    with listening() as listener:
        (home / "watch.toml").write_text(f'[watch]\nwebhook = "{listener.url}"\n')
        with running(home) as up:
            for number in range(RULES["credentials-refused"].count):
                wrong = {"Authorization": f"Bearer llmos_{number:043}"}
                url = up.ready["url"] + "/api/v1/runs"
                assert httpx.get(url, headers=wrong, trust_env=False).status_code == 401
            assert eventually(lambda: bool(listener.received))
            ((headers, body),) = listener.received
            assert fits((home / "webhook.secret").read_text(), headers, body)
            (alarm,) = listener.alarms()
            assert alarm["subject"] == {"kind": "address", "name": "127.0.0.1"}
            shown = {"Authorization": f"Bearer {(home / 'admin.token').read_text()}"}
            metrics = httpx.get(up.ready["url"] + "/metrics", headers=shown, trust_env=False).text
            assert 'llmos_alarms_total{rule="credentials-refused"} 1.0' in metrics
            assert "llmos_alarms_open 1.0" in metrics
            llmos = [sys.executable, "-m", "shared.command_line", "alarms"]
            where = ["--home", str(home), "--url", up.ready["url"]]
            subprocess.run(
                [*llmos, "acknowledge", str(alarm["id"]), *where], cwd=ROOT, check=True, timeout=120
            )
            listed = subprocess.run(
                [*llmos, "ls", "--all", "--json", *where],
                cwd=ROOT,
                check=True,
                timeout=120,
                capture_output=True,
            )
            (kept,) = json.loads(listed.stdout)
            assert (kept["id"], kept["acknowledged_by"]) == (alarm["id"], "admin")
        actions = [str(record.entry.action) for record in records_of(home / "audit" / LOG)]
        assert actions.count("alarm-raised") == actions.count("alarm-acknowledged") == 1


def test_a_file_of_rules_with_mistakes_is_one_message_and_nothing_is_made(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "rules.toml"
    file.write_text('[watch]\nwebhook = "http://10.0.0.1"\n[watch.rules]\nnone = {}\n')
    ended = subprocess.run(
        command(home, "--watch", str(file)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 1
    assert "rules.none: there is no such rule" in ended.stderr
    assert "webhook: must begin with https://" in ended.stderr
    assert not home.exists()
