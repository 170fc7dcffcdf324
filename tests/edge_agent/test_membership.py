"""Joining pins whom the device trusts, out of band, and leaves nothing half-made when it fails."""

from __future__ import annotations

import json
import math
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edge_agent.membership import FILE, Membership, join, read_membership
from shared.crypto.identity import Identity, fingerprint, format_public
from shared.errors import (
    AccessDenied,
    ConfigError,
    CoordinatorUnavailable,
    DataError,
    WrongKey,
)


@dataclass
class FalseCoordinator:
    """An HTTP server that answers as it is told and keeps what it was asked."""

    coordinator: Identity
    holder: Identity
    url: str = ""
    status: int = 200
    answer: dict[str, Any] | bytes = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def token(self) -> str:
        return f"a-secret.{fingerprint(self.coordinator.public)}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FalseCoordinator]:
    coordinator = Identity.create(tmp_path / "coordinator.key")
    holder = Identity.create(tmp_path / "holder.key")
    false = FalseCoordinator(coordinator, holder)
    false.answer = {
        "coordinator": format_public(coordinator.public),
        "key_holder": format_public(holder.public),
        "broker_host": "127.0.0.1",
        "broker_port": 1883,
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            false.asked.append((self.path, json.loads(body)))
            answer = false.answer
            self.send_response(false.status)
            self.end_headers()
            self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        false.url = f"http://127.0.0.1:{http.server_port}"
        yield false
        http.shutdown()


def joined(server: FalseCoordinator, home: Path, **changes: Any) -> Membership:
    arguments: dict[str, Any] = {
        "name": "kitchen",
        "key_holder": fingerprint(server.holder.public),
    } | changes
    return join(home, server.url, arguments.pop("token", server.token), **arguments)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "device"


def test_what_was_agreed_is_on_disk_for_its_owner_only(
    server: FalseCoordinator, home: Path
) -> None:
    membership = joined(server, home, min_devices=5, epsilon_budget=3.0)
    assert read_membership(home) == membership
    assert stat.S_IMODE((home / FILE).stat().st_mode) == 0o600
    assert membership.coordinator == format_public(server.coordinator.public)
    assert membership.key_holder == format_public(server.holder.public)
    assert (membership.min_devices, membership.budget) == (5, 3.0)
    assert (membership.broker_host, membership.broker_port) == ("127.0.0.1", 1883)


def test_what_an_earlier_program_wrote_is_read_with_what_it_could_not_say(
    server: FalseCoordinator, home: Path
) -> None:
    membership = joined(server, home)
    fields = json.loads((home / FILE).read_text())
    del fields["tell_budget"]
    (home / FILE).write_text(json.dumps(fields))
    assert read_membership(home) == membership
    assert not membership.tell_budget


def test_only_the_public_half_of_the_device_s_key_travels(
    server: FalseCoordinator, home: Path
) -> None:
    joined(server, home)
    public = format_public(Identity.load(home / "identity.key").public)
    expected = {"token": "a-secret", "name": "kitchen", "public_key": public}
    assert server.asked == [("/api/v1/devices/join", expected)]


def test_unless_the_owner_says_otherwise_the_promises_are_strict(
    server: FalseCoordinator, home: Path
) -> None:
    membership = joined(server, home)
    assert (membership.min_devices, membership.epsilon_budget, membership.delta) == (16, 10.0, 1e-5)
    assert (membership.clear_runs, membership.simulation_seed) == (False, "")


def test_a_budget_without_limit_is_infinite(server: FalseCoordinator, home: Path) -> None:
    joined(server, home, epsilon_budget=None)
    assert read_membership(home).budget == math.inf


def test_without_a_fingerprint_from_its_owner_no_key_holder_is_pinned(
    server: FalseCoordinator, home: Path
) -> None:
    """What the coordinator offers is no reason to trust it."""
    assert joined(server, home, key_holder="").key_holder == ""


def refused(server: FalseCoordinator, home: Path, kind: type[Exception], **changes: Any) -> str:
    with pytest.raises(kind) as caught:
        joined(server, home, **changes)
    assert not (home / FILE).exists()
    return str(caught.value)


def test_a_coordinator_that_the_token_does_not_name(server: FalseCoordinator, home: Path) -> None:
    token = f"a-secret.{fingerprint(server.holder.public)}"
    assert "not the one the token" in refused(server, home, WrongKey, token=token)


def test_a_key_holder_that_its_owner_did_not_name(server: FalseCoordinator, home: Path) -> None:
    other = fingerprint(server.coordinator.public)
    assert "another key holder" in refused(server, home, WrongKey, key_holder=other)


def test_a_coordinator_without_the_named_key_holder(server: FalseCoordinator, home: Path) -> None:
    assert isinstance(server.answer, dict)
    server.answer["key_holder"] = ""
    refused(server, home, WrongKey)


def test_every_malformed_option_is_named_at_once_and_nothing_is_made(
    server: FalseCoordinator, home: Path
) -> None:
    problems = refused(server, home, ConfigError, name="Kitchen/1", token="", key_holder="abc")
    for option in ("--name", "--token", "--key-holder"):
        assert option in problems
    assert not home.exists()
    assert server.asked == []


def test_a_refused_token_is_told_in_the_coordinator_s_words(
    server: FalseCoordinator, home: Path
) -> None:
    server.status, server.answer = 403, {"detail": "this token was used before"}
    assert "this token was used before" in refused(server, home, AccessDenied)


def test_an_answer_that_is_no_refusal_of_ours_is_quoted(
    server: FalseCoordinator, home: Path
) -> None:
    server.status, server.answer = 502, b"<html>bad gateway</html>"
    assert "bad gateway" in refused(server, home, AccessDenied)


def test_nobody_at_the_address(server: FalseCoordinator, home: Path) -> None:
    with pytest.raises(CoordinatorUnavailable, match="llmos up"):
        join(home, "http://127.0.0.1:1", server.token, name="kitchen", key_holder="")
    assert not (home / FILE).exists()


@pytest.mark.parametrize("url", ["not a url", "ftp://127.0.0.1", "http://llmos.example.org"])
def test_an_address_that_is_none_or_in_clear_elsewhere(
    server: FalseCoordinator, home: Path, url: str
) -> None:
    with pytest.raises(ConfigError, match="https"):
        join(home, url, server.token, name="kitchen", key_holder="")
    assert not home.exists()


def test_an_answer_that_is_not_from_a_coordinator(server: FalseCoordinator, home: Path) -> None:
    server.answer = b"welcome to nginx"
    refused(server, home, CoordinatorUnavailable)
    server.answer = {"hello": "world"}
    refused(server, home, CoordinatorUnavailable)


def test_after_a_failure_the_same_key_joins_at_the_next_attempt(
    server: FalseCoordinator, home: Path
) -> None:
    server.status, answer, server.answer = 403, server.answer, {"detail": "expired"}
    refused(server, home, AccessDenied)
    server.status, server.answer = 200, answer
    joined(server, home)
    first, second = (body["public_key"] for _, body in server.asked)
    assert first == second


def test_a_device_joins_once(server: FalseCoordinator, home: Path) -> None:
    membership = joined(server, home)
    with pytest.raises(DataError, match="has joined already"):
        joined(server, home, name="another")
    assert read_membership(home) == membership
    assert len(server.asked) == 1


def test_a_device_that_has_not_joined_is_told_how(home: Path) -> None:
    with pytest.raises(ConfigError, match="llmos edge join"):
        read_membership(home)


def test_a_damaged_membership_is_refused(server: FalseCoordinator, home: Path) -> None:
    joined(server, home)
    path = home / FILE
    path.write_text(path.read_text().replace('"min_devices": 16', '"min_devices": 1'))
    with pytest.raises(ConfigError, match="min_devices"):
        read_membership(home)
