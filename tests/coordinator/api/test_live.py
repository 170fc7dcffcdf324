"""``W1`` to ``W3`` of :mod:`coordinator.api.live`: a real server and a real client."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from coordinator.api import live
from coordinator.api.live import MALFORMED, NO_CREDENTIAL, NO_PLACE, TOO_SLOW, WEB_SOCKETS
from coordinator.merge_patch import apply_patch
from shared.loopback import LOOPBACK, served
from tests.support.coordinator_api import TOKEN, Api

WAIT_S = 60.0


class Served:
    """An application behind a server."""

    def __init__(self, api: Api, port: int) -> None:
        self.api = api
        self.port = port

    def open(self, key: str = TOKEN, **options: Any) -> Connection:
        return connect(
            f"ws://{LOOPBACK}:{self.port}/api/v1/live",
            additional_headers={"Authorization": f"Bearer {key}"},
            open_timeout=WAIT_S,
            proxy=None,
            **options,
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Served]:
    api = Api(tmp_path)
    with served(api.app, 0, extra="coordinator", **WEB_SOCKETS) as port:
        yield Served(api, port)
        api.live.close()


def watch(socket: Connection, *topics: str) -> None:
    socket.send(json.dumps({"watch": topics}))


def heard_until(
    socket: Connection,
    holds: Callable[[dict[str, Any]], bool],
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What all topics are, as soon as that holds of them."""
    state = {} if before is None else before
    while not holds(state):
        message = json.loads(socket.recv(timeout=WAIT_S))
        if "snapshot" in message:
            state[message["topic"]] = message["snapshot"]
        elif "patch" in message:
            state[message["topic"]] = apply_patch(state[message["topic"]], message["patch"])
        elif "problem" in message:
            state[message["topic"]] = message["problem"]
    return state


def until_nobody_watches(world: Served) -> None:
    """The server hears a moment later that a client has left."""
    while len(world.api.live._watchers) > 0:
        time.sleep(0.01)


def code_of(socket: Connection) -> int:
    """With what the server hangs up."""
    while True:
        try:
            socket.recv(timeout=WAIT_S)
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd is not None else 1006


def test_a_page_sees_a_run_and_a_device_come(world: Served) -> None:
    with world.open() as socket:
        watch(socket, "fleet", "runs", "serving")
        first = heard_until(socket, lambda state: len(state) == 3)
        assert first["fleet"] == {"counts": {}, "devices": {}}
        assert first["runs"] == {"runs": {}}
        assert first["serving"]["models"]["scripted"]["state"] == "ready"
        world.api.join()
        run = world.api.submit().json()["run"]
        watch(socket, "fleet", "runs", f"run/{run}", "serving")
        seen = heard_until(socket, lambda state: f"run/{run}" in state, first)
    assert seen[f"run/{run}"]["summary"]["state"] == "preparing"
    listed = {
        key: value for key, value in world.api.items("/api/v1/runs")[0].items() if value is not None
    }
    assert seen[f"run/{run}"]["summary"] == listed
    card = world.api.get(f"/api/v1/runs/{run}/privacy").json()
    assert seen[f"run/{run}"]["privacy"]["parties"] == card["parties"]


def test_what_cannot_be_watched_says_so_and_harms_nothing_else(world: Served) -> None:
    with world.open() as socket:
        watch(socket, "run/none", "nothing", "fleet")
        seen = heard_until(socket, lambda state: len(state) == 3)
    assert "none" in seen["run/none"]["detail"]
    assert "nothing" in seen["nothing"]["detail"]
    assert seen["fleet"]["devices"] == {}


@pytest.mark.parametrize(
    "said",
    [
        "", "{", "[]", "null", '{"watch": "fleet"}', '{"watch": [1]}', '{"watch": [], "x": 1}',
        '{"watch": ["' + "x" * 65 + '"]}', json.dumps({"watch": ["fleet"] * 17}), b"\xff\xfe",
        "[" * 5000,
    ],
)  # fmt: skip
def test_who_says_what_means_nothing_is_hung_up_on(world: Served, said: str | bytes) -> None:
    with world.open() as socket:
        socket.send(said)
        assert code_of(socket) == MALFORMED
    with world.open() as socket:  # and the next is served
        watch(socket, "fleet")
        assert heard_until(socket, bool)


def test_a_message_that_is_too_long_is_not_read(world: Served) -> None:
    with world.open() as socket:
        socket.send("x" * (live.MESSAGE_BYTES + 1))
        assert code_of(socket) == 1009


def test_who_never_stops_talking_is_hung_up_on(
    world: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MESSAGES_A_MINUTE", 5)
    with world.open() as socket:
        for _ in range(6):
            watch(socket, "fleet")
        assert code_of(socket) == TOO_SLOW


@pytest.mark.parametrize("shut_out", [Api.revoke_key, Api.quarantine_key])
def test_a_socket_ends_when_its_key_is_revoked_or_quarantined(
    world: Served, monkeypatch: pytest.MonkeyPatch, shut_out: Callable[[Api, str], Any]
) -> None:
    monkeypatch.setattr(live, "CHECK_S", 0.05)
    key = world.api.make_key("watcher", role="viewer")["key"]
    with world.open(key) as socket, world.open() as other:
        watch(socket, "fleet")
        heard_until(socket, bool)
        assert shut_out(world.api, "watcher").is_success
        assert code_of(socket) == NO_CREDENTIAL
        watch(other, "fleet")
        assert heard_until(other, bool), "the admin's goes on"


def test_one_principal_has_so_many_sockets_and_leaves_room_for_others(
    world: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MOST_OF_ONE", 2)
    key = world.api.make_key("watcher", role="viewer")["key"]
    with world.open() as first, world.open() as second:
        for socket in (first, second):
            watch(socket, "fleet")
            heard_until(socket, bool)
        with world.open() as third:
            assert code_of(third) == NO_PLACE
        with world.open(key) as other:
            watch(other, "fleet")
            assert heard_until(other, bool)


def test_places_are_given_back(world: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_OF_ONE", 1)
    for _ in range(3):
        with world.open() as socket:
            watch(socket, "fleet")
            heard_until(socket, bool)
        until_nobody_watches(world)


def test_sockets_end_when_the_coordinator_does(world: Served) -> None:
    with world.open() as socket:
        watch(socket, "fleet")
        heard_until(socket, bool)
        world.api.live.close()
        assert code_of(socket) == NO_PLACE


def test_a_socket_outlives_the_time_that_a_request_may_take_for_its_head(
    world: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.http_connections.HEAD_S", 0.2)
    monkeypatch.setattr(live, "BEAT_S", 0.5)
    monkeypatch.setattr(live, "CHECK_S", 0.05)
    with world.open() as socket:
        beats = 0
        while beats < 2:
            beats += "beat" in json.loads(socket.recv(timeout=WAIT_S))


def test_whoever_may_not_watch_is_refused_before_anything_is_opened(world: Served) -> None:
    caller = world.api.make_key("app", role="caller")["key"]
    for key in ("wrong", caller):
        with pytest.raises(InvalidStatus) as caught:
            world.open(key)
        assert caught.value.response.status_code == 403


def test_who_takes_nothing_is_hung_up_on_and_what_waits_for_it_is_dropped(
    world: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W2: a megabyte changes at every look, and the client reads none of it."""
    monkeypatch.setattr(live, "STALLED_S", 0.2)
    monkeypatch.setattr(live, "CHECK_S", 0.1)
    looks = itertools.count()
    monkeypatch.setattr(world.api.live, "_read", lambda _: {"all": f"{next(looks):08}" * 125_000})
    lazy = socket.create_connection((LOOPBACK, world.port), timeout=WAIT_S)
    key = base64.b64encode(b"0" * 16).decode()
    head = [
        "GET /api/v1/live HTTP/1.1",
        "Host: here",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Authorization: Bearer {TOKEN}",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
    ]
    with lazy:
        lazy.sendall("\r\n".join([*head, "", ""]).encode())
        assert lazy.recv(12) == b"HTTP/1.1 101"
        said = json.dumps({"watch": ["fleet"]}).encode()
        mask = bytes(4)  # of zeros: what is said stays as it is
        lazy.sendall(bytes([0x81, 0x80 | len(said)]) + mask + said)
        while next(looks) < 5:  # it is watched
            time.sleep(0.01)
        until_nobody_watches(world)
        sent = 0
        with contextlib.suppress(ConnectionResetError):
            while more := lazy.recv(1_000_000):
                sent += len(more)
        assert sent < 30_000_000
    with world.open(max_size=None) as socket_:
        watch(socket_, "fleet")
        assert heard_until(socket_, bool), "others are served"
