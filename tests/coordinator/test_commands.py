"""Command lines speak to the coordinator's API, and turn its refusals into one sentence."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import typer
from typer.testing import CliRunner

from coordinator.commands import Client, device, key, run, up
from coordinator.people.oidc import OidcSettings
from shared.errors import AccessDenied, ConfigError, CoordinatorUnavailable, RoundError

Answer = tuple[int, object]


class Server:
    """An HTTP server on loopback that answers as it is told and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str, Any]] = []
        self.answer: Callable[[str, str], Answer] = lambda method, path: (200, {})
        server = self

        class Handler(BaseHTTPRequestHandler):
            def reply(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length)
                token = self.headers.get("Authorization", "")
                asked = json.loads(body) if body else None
                server.asked.append((self.command, self.path, token, asked))
                status, content = server.answer(self.command, self.path)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = reply  # noqa: N815  the library's names

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@contextmanager
def client_of(server: Server, token: str = "token") -> Iterator[Client]:  # noqa: S107
    client = Client(server.url, token)
    try:
        yield client
    finally:
        client.close()


def test_the_token_is_shown_and_json_goes_both_ways(server: Server) -> None:
    server.answer = lambda method, path: (201, {"method": method, "path": path})
    with client_of(server) as client:
        assert client.post("/api/v1/runs", {"a": 1}) == {"method": "POST", "path": "/api/v1/runs"}
        assert client.get("/api/v1/runs") == {"method": "GET", "path": "/api/v1/runs"}
    assert server.asked == [
        ("POST", "/api/v1/runs", "Bearer token", {"a": 1}),
        ("GET", "/api/v1/runs", "Bearer token", None),
    ]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, AccessDenied),
        (403, AccessDenied),
        (404, RoundError),
        (422, RoundError),
        (500, RoundError),
    ],
)
def test_a_refusal_is_raised_with_its_own_words(
    server: Server, status: int, error: type[Exception]
) -> None:
    server.answer = lambda method, path: (status, {"detail": "because of this"})
    with client_of(server) as client, pytest.raises(error, match="because of this"):
        client.get("/")


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b'["a list"]', b'"bad gateway"'])
def test_an_answer_of_somebody_else_is_shown_as_it_is(server: Server, body: bytes) -> None:
    server.answer = lambda method, path: (502, body)
    with client_of(server) as client, pytest.raises(RoundError) as caught:
        client.get("/")
    assert str(caught.value) == body.decode()


def test_where_nobody_answers_the_error_says_what_to_do() -> None:
    server = Server()
    server.close()
    with client_of(server) as client, pytest.raises(CoordinatorUnavailable, match="'llmos up'"):
        client.get("/")


def test_the_token_is_found_in_the_coordinators_folder_or_the_environment(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLMOS_TOKEN", raising=False)
    with pytest.raises(AccessDenied, match="start the coordinator with 'llmos up'"):
        Client.of_home(tmp_path, server.url)
    (tmp_path / "admin.token").write_text("from-the-folder\n")
    shown = []
    for _ in range(2):
        client = Client.of_home(tmp_path, server.url)
        client.get("/")
        client.close()
        shown.append(server.asked[-1][2])
        monkeypatch.setenv("LLMOS_TOKEN", "from-the-environment")
    assert shown == ["Bearer from-the-folder", "Bearer from-the-environment"]


def invoke(app: Any, server: Server, *arguments: str) -> str:
    """What a command prints."""
    result = CliRunner().invoke(
        app, [*arguments, "--url", server.url], env={"LLMOS_TOKEN": "t", "COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    return result.output


def pages_of(items: list[Any], size: int = 50) -> Callable[[str, str], Answer]:
    """Answers with a listing; a cursor is how many items came before."""

    def answer(_method: str, path: str) -> Answer:
        done = int((parse_qs(urlsplit(path).query).get("cursor") or ["0"])[0])
        following = done + size if done + size < len(items) else None
        page = {"items": items[done : done + size], "next": following and str(following)}
        return 200, page

    return answer


ROUND = {
    "round": 1,
    "state": "applied",
    "invited": 4,
    "reported": 3,
    "declined": {"cellar": "no examples"},
    "accuracy": {"": 0.5},
    "loss": 1.25,
    "saturated": 0.0,
    "accepted": True,
    "reason": "",
}
SUMMARY = {"run": "trial", "state": "running", "round": 1, "rounds": 2, "accuracy": {"": 0.5}}
VIEW = {"run": "trial", "state": "running", "reason": "", "rounds": [ROUND]}
JOINED = {
    "name": "kitchen",
    "standing": "trusted",
    "state": "idle",
    "version": "0.1.0",
    "condition": "budget-spent",
    "budget_left": 0.25,
    "fingerprint": "ABCD-EFGH",
}
WITHOUT_RESULT = ROUND | {"accuracy": {}, "loss": None, "saturated": None, "state": "open"}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_runs_and_devices_are_shown_as_tables_or_as_json(server: Server) -> None:
    server.answer = pages_of([SUMMARY])
    assert "0.500" in invoke(run, server, "ls")
    assert json.loads(invoke(run, server, "ls", "--json")) == [SUMMARY]
    server.answer = lambda method, path: (200, VIEW | {"rounds": [ROUND, WITHOUT_RESULT]})
    shown = invoke(run, server, "show", "trial")
    assert "trial: running" in shown
    assert "cellar: no examples" in shown
    assert "out of range" not in shown
    assert server.asked[-1][1] == "/api/v1/runs/trial"
    narrow = ROUND | {"saturated": 0.02}
    server.answer = lambda method, path: (200, VIEW | {"rounds": [narrow]})
    assert "2.0% of the values were out of range" in invoke(run, server, "show", "trial")
    server.answer = pages_of([JOINED])
    listed = invoke(device, server, "ls")
    for word in ("ABCD-EFGH", "0.1.0", "budget-spent", "0.25"):
        assert word in listed
    assert json.loads(invoke(device, server, "ls", "--json")) == [JOINED]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_tokens_and_stops_are_asked_for(server: Server) -> None:
    server.answer = lambda method, path: (201, {"token": "secret.ABCD", "expires_at": 1.0})
    assert invoke(device, server, "token", "--minutes", "2") == "secret.ABCD\n"
    assert server.asked[-1][1:] == ("/api/v1/devices/tokens", "Bearer t", {"valid_s": 120.0})
    invoke(run, server, "stop", "trial")
    assert server.asked[-1][:2] == ("POST", "/api/v1/runs/trial/stop")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_job_is_submitted_with_its_examples(server: Server, tmp_path: Path) -> None:
    job, probe = tmp_path / "job.toml", tmp_path / "probe.csv"
    job.write_text('name = "trial"\n[training]\nrounds = 3\n')
    probe.write_text("text,label,lang\nwhere is it,track,en\n钱呢,refund,zh\n", encoding="utf-8")
    server.answer = lambda method, path: (201, VIEW)
    arguments = (str(job), "--probe", str(probe), "--group-column", "lang", "--seed", "9")
    assert invoke(run, server, "submit", *arguments) == "submitted trial\n"
    _, path, _, body = server.asked[-1]
    assert path == "/api/v1/runs"
    assert body["job"]["training"]["rounds"] == 3
    assert body["probe"] == [["where is it", "track", "en"], ["钱呢", "refund", "zh"]]
    assert body["seed"] == 9


EVENTS: list[dict[str, Any]] = [
    {"at": 0.0, "round": 0, "event": "submitted"},
    {"at": 61.0, "round": 1, "event": "invited", "cohort": ["kitchen", "cellar"]},
    {"at": 62.0, "round": 1, "event": "device-declined", "device": "cellar", "reason": "忙"},
    {"at": 63.5, "round": 1, "event": "adapter-applied", "accuracy": {"": 0.5, "en": 0.6}},
    {"at": 64.0, "round": 0, "event": "finished"},
]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_happened_is_printed_line_by_line(server: Server) -> None:
    server.answer = pages_of(EVENTS, size=2)
    assert invoke(run, server, "logs", "trial").splitlines() == [
        "1970-01-01 00:00:00Z submitted",
        "1970-01-01 00:01:01Z round 1: invited cohort=2",
        "1970-01-01 00:01:02Z round 1: device-declined device=cellar reason=忙",
        "1970-01-01 00:01:03Z round 1: adapter-applied accuracy=0.500",
        "1970-01-01 00:01:04Z finished",
    ]
    asked = [path for _, path, _, _ in server.asked]
    assert asked == [
        "/api/v1/runs/trial/events?limit=200",
        "/api/v1/runs/trial/events?limit=200&cursor=2",
        "/api/v1/runs/trial/events?limit=200&cursor=4",
    ]
    printed = invoke(run, server, "logs", "trial", "--json")
    assert [json.loads(line) for line in printed.splitlines()] == EVENTS
    assert "忙" in printed


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("end", ["finished", "failed", "stopped"])
def test_a_run_is_followed_to_its_end_and_nothing_is_printed_twice(
    server: Server, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    story = [*EVENTS[:-1], EVENTS[-1] | {"event": end}]
    lengths = iter([1, 1, 3, 3, 4, 5, 5])

    def grows(method: str, path: str) -> Answer:
        return pages_of(story[: next(lengths)], size=2)(method, path)

    server.answer = grows
    printed = invoke(run, server, "logs", "trial", "--follow", "--json")
    assert [json.loads(line) for line in printed.splitlines()] == story
    assert len(naps) == 4
    server.answer = pages_of(story[:2])
    assert len(invoke(run, server, "logs", "trial").splitlines()) == 2
    assert len(naps) == 4, "without --follow nothing is waited for"


# Keys

A_KEY = {
    "name": "notes",
    "role": "caller",
    "models": [],
    "tasks": [],
    "collections": [],
    "prefix": "llmos_abcdef",
    "created_at": 1.0,
    "expires_at": None,
    "revoked_at": None,
    "quarantined_at": None,
    "priority": 2,
    "tokens_per_minute": 500,
    "public_cache": True,
}


def test_a_new_key_is_printed_once_and_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOS_TOKEN", "token")
    server.answer = lambda method, path: (201, A_KEY | {"key": "llmos_abcdef-the-rest"})
    options = ["--days", "7", "--priority", "2", "--tokens-per-minute", "500", "--public-cache"]
    options += ["--role", "operator", "--models", "qwen, llama*,", "--tasks", "classify"]
    options += ["--collections", "manuals-*"]
    result = CliRunner().invoke(key, ["add", "notes", *options, "--url", server.url])
    assert result.output == "llmos_abcdef-the-rest\n"
    result = CliRunner().invoke(key, ["add", "notes", "--json", "--url", server.url])
    assert json.loads(result.output)["key"] == "llmos_abcdef-the-rest"
    full = {
        "name": "notes",
        "role": "operator",
        "models": ["qwen", "llama*"],
        "tasks": ["classify"],
        "collections": ["manuals-*"],
        "days": 7.0,
        "priority": 2,
        "tokens_per_minute": 500,
        "public_cache": True,
    }
    plain: dict[str, Any] = {
        "name": "notes",
        "role": "caller",
        "models": [],
        "tasks": [],
        "collections": [],
        "days": None,
        "priority": 0,
        "tokens_per_minute": 0,
        "public_cache": False,
    }
    assert [(method, path, body) for method, path, _, body in server.asked] == [
        ("POST", "/api/v1/keys", full),
        ("POST", "/api/v1/keys", plain),
    ]


def test_keys_are_listed_with_what_they_may(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOS_TOKEN", "token")
    monkeypatch.setenv("COLUMNS", "200")
    keys = [
        A_KEY | {"role": "viewer", "models": ["qwen", "llama*"], "tasks": ["classify"]},
        A_KEY | {"name": "gone", "revoked_at": 2.0, "quarantined_at": 1.0},
        A_KEY | {"name": "out", "quarantined_at": 0.0},
        A_KEY | {"name": "old", "expires_at": 0.0},
        A_KEY | {"name": "soon", "expires_at": 4e9, "tokens_per_minute": 0},
    ]
    server.answer = pages_of(keys, size=3)
    shown = CliRunner().invoke(key, ["ls", "--url", server.url]).output
    for word in ("notes", "llmos_abcdef…", "valid", "revoked", "expired 1970", "until 2096", "500"):
        assert word in shown
    assert "in quarantine since 1970-01-01" in shown
    for word in ("viewer", "caller", "models qwen, llama*; tasks classify"):
        assert word in shown
    listed = CliRunner().invoke(key, ["ls", "--json", "--url", server.url]).output
    assert json.loads(listed) == keys


def test_a_key_is_revoked_by_its_name(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_TOKEN", "token")
    result = CliRunner().invoke(key, ["revoke", "no/tes", "--url", server.url])
    assert result.output == "revoked no/tes\n"
    assert server.asked[0][:2] == ("DELETE", "/api/v1/keys/no%2Ftes")
    server.answer = lambda method, path: (404, {"detail": "there is no key called 'x'"})
    result = CliRunner().invoke(key, ["revoke", "x", "--url", server.url])
    assert isinstance(result.exception, RoundError)
    assert "no key called" in str(result.exception)


def test_one_device_is_shown_with_what_it_told_and_did(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [{"run": "trial", "invited": 3, "took_part": 2, "declined": [[3, "data", "none"]]}]
    view = JOINED | {"joined_at": 0.0, "heard_at": None, "answers_with": None, "runs": runs}
    server.answer = lambda method, path: (200, view)
    shown = invoke(device, server, "show", "kit/chen")
    for words in ("standing: trusted", "version: 0.1.0", "would decline: budget-spent"):
        assert words in shown
    for words in ("ε left: 0.25", "joined: 1970", "heard: not since", "trial", "round 3: data"):
        assert words in shown
    assert json.loads(invoke(device, server, "show", "kit/chen", "--json")) == view
    silent = view | {"version": None, "condition": None, "budget_left": None, "heard_at": 60.0}
    server.answer = lambda method, path: (200, silent | {"runs": []})
    shown = invoke(device, server, "show", "kitchen")
    for words in ("version: not told", "ε left: not told", "heard: 1970-01-01 00:01Z"):
        assert words in shown
    assert server.asked[0][1] == "/api/v1/devices/kit%2Fchen"


@pytest.mark.parametrize(
    ("group", "deed", "options", "method", "path", "said"),
    [
        (key, "quarantine", ["--reason", "odd"], "POST", "keys/a%2Fb/quarantine", "in quarantine"),
        (key, "release", [], "DELETE", "keys/a%2Fb/quarantine", "valid again"),
        (device, "quarantine", ["--reason", "odd"], "POST", "devices/a%2Fb/quarantine", "quarant"),
        (device, "release", [], "DELETE", "devices/a%2Fb/quarantine", "trusted again"),
        (device, "revoke", [], "DELETE", "devices/a%2Fb", "is revoked"),
    ],
)
def test_what_is_kept_out_is_named_and_told_to_people_and_machines(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    group: typer.Typer,
    deed: str,
    options: list[str],
    method: str,
    path: str,
    said: str,
) -> None:
    monkeypatch.setenv("LLMOS_TOKEN", "token")
    server.answer = lambda method, path: (200, {"name": "a/b"})
    for_people = CliRunner().invoke(group, [deed, "a/b", *options, "--url", server.url]).output
    assert for_people.startswith("a/b ")
    assert said in for_people
    told = CliRunner().invoke(group, [deed, "a/b", *options, "--json", "--url", server.url])
    assert json.loads(told.output) == {"name": "a/b"}
    body = {"reason": "odd"} if options else None
    asked = [(method, path, body) for method, path, _, body in server.asked]
    assert asked == [(method, f"/api/v1/{path}", body)] * 2


def test_a_rotated_keys_new_secret_is_alone_on_standard_output(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOS_TOKEN", "token")
    made = A_KEY | {"key": "llmos_another", "former_ends_at": 0.0}
    server.answer = lambda method, path: (200, made)
    plain = CliRunner().invoke(key, ["rotate", "no/tes", "--url", server.url])
    assert plain.stdout == "llmos_another\n"
    assert "the old secret ends 1970-01-01 00:00Z" in plain.stderr
    options = ["--overlap", "0.5", "--json", "--url", server.url]
    assert json.loads(CliRunner().invoke(key, ["rotate", "notes", *options]).stdout) == made
    assert [(method, path, body) for method, path, _, body in server.asked] == [
        ("POST", "/api/v1/keys/no%2Ftes/rotate", {"overlap_hours": 24.0}),
        ("POST", "/api/v1/keys/notes/rotate", {"overlap_hours": 0.5}),
    ]


# A provider of identities


def test_a_provider_is_named_by_options_and_its_secret_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(
        "coordinator.process.run_coordinator", lambda home, **options: given.append(options["oidc"])
    )
    monkeypatch.setattr("shared.logs.set_up_logs", lambda **_: None)
    monkeypatch.setenv("LLMOS_OIDC_SECRET", "by the environment")
    options = ["--oidc-issuer", "https://a", "--oidc-client-id", "b"]
    options += ["--oidc-roles", "cn=x=admin, y = viewer ,"]
    assert CliRunner().invoke(up, options).exit_code == 0
    (tmp_path / "secret").write_text("by a file\n")
    monkeypatch.setenv("LLMOS_OIDC_SECRET_FILE", str(tmp_path / "secret"))
    assert CliRunner().invoke(up, [*options, "--oidc-name", "email"]).exit_code == 0
    assert CliRunner().invoke(up, []).exit_code == 0
    first, second, none = given
    assert first == OidcSettings(
        "https://a", "b", "by the environment", {"cn=x": "admin", "y": "viewer"}
    )
    assert (second.client_secret, second.name_claim) == ("by a file", "email")
    assert none is None
    for wrong, problem in [
        (["--oidc-client-id", "b"], "--oidc-issuer: is missing"),
        ([*options, "--oidc-roles", "x,=admin,y=viewer"], "expected VALUE=ROLE, not 'x'"),
    ]:
        refused = CliRunner().invoke(up, wrong)
        assert isinstance(refused.exception, ConfigError)
        assert problem in str(refused.exception)
    monkeypatch.setenv("LLMOS_OIDC_SECRET_FILE", str(tmp_path / "nowhere"))
    refused = CliRunner().invoke(up, options)
    assert "LLMOS_OIDC_SECRET_FILE" in str(refused.exception)
