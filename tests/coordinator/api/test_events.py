"""Server-sent events over a real socket: resumed without a gap, and ended with a word."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.api.events import EventStream
from coordinator.federation import rounds
from coordinator.feed import Told
from shared.loopback import LOOPBACK, served
from shared.types import DeviceId, Digest, RoundNumber, RunId
from tests.support.coordinator_api import HEADERS, TOKEN, Api, problem
from tests.support.coordinator_plans import small_plan

RUN, ADAPTER = RunId("run"), Digest("0" * 64)
PATH = "/api/v1/events"
PATIENCE_S = 60.0


class Stream:
    """One client's connection, read event by event."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()

    def event(self) -> dict[str, Any]:
        """The next event; its fields, with the data read."""
        fields: dict[str, Any] = {}
        for line in self._lines:
            if not line and fields:
                return fields
            name, _, value = line.partition(": ")
            if name:
                fields[name] = json.loads(value) if name == "data" else value
        return {}

    def until(self, kind: str) -> dict[str, Any]:
        while True:
            event = self.event()
            assert event, "the stream ended"
            if event["event"] == kind:
                return event


class Served:
    """An application behind a real server."""

    def __init__(self, api: Api, port: int) -> None:
        self.api = api
        self.port = port
        self.client = httpx.Client(
            base_url=f"http://{LOOPBACK}:{port}", trust_env=False, timeout=PATIENCE_S
        )

    @contextmanager
    def follow(self, last: str = "", headers: dict[str, str] = HEADERS) -> Iterator[Stream]:
        more = {"Last-Event-ID": last} if last else {}
        with self.client.stream("GET", PATH, headers=headers | more) as response:
            yield Stream(response)

    def commit(self, number: int) -> None:
        row = rounds.DeviceDeclined("kitchen", "busy", str(number))
        self.api.store.commit(RUN, RoundNumber(1), row, now=float(number))


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Served]:
    api = Api(folder, **options)
    api.store.add_run(RUN, small_plan().model_dump_json(), ADAPTER, now=1.0)
    with served(api.app, 0, extra="coordinator") as port:
        world = Served(api, port)
        yield world
        world.client.close()
        api.feed.close()
    api.store.close()


def test_a_client_that_returns_with_its_last_id_misses_nothing(tmp_path: Path) -> None:
    """E1."""
    with serving(tmp_path) as world:
        with world.follow() as stream:
            assert stream.response.headers["content-type"].startswith("text/event-stream")
            begin = stream.event()
            assert (begin["event"], begin["id"]) == ("begin", "0-0")
            world.commit(1)
            first = stream.until("run")
            assert first["data"] == {
                "run": RUN,
                "at": 1.0,
                "round": 1,
                "event": "device-declined",
                "device": "kitchen",
                "code": "busy",
                "reason": "1",
            }
        for number in (2, 3):
            world.commit(number)
        world.api.store.add_milestone(RUN, "finished", {}, now=4.0)
        with world.follow(first["id"]) as stream:
            assert stream.event()["data"] == {"resumed": True}
            missed = [stream.until("run") for _ in range(3)]
            world.commit(5)
            missed.append(stream.until("run"))
    assert [each["data"].get("reason") for each in missed] == ["2", "3", None, "5"]
    assert [each["id"] for each in missed] == ["2-0", "3-0", "3-1", "4-1"]


def test_a_device_that_comes_and_an_engine_that_fails_are_told(tmp_path: Path) -> None:
    with serving(tmp_path) as world:
        world.api.join()
        world.api.fleet._refresh()
        with world.follow() as stream:
            stream.event()
            world.api.fleet._stations[DeviceId("kitchen")].heard_at = world.api.clock.now()
            world.api.fleet.set_state(DeviceId("kitchen"), "idle")
            event = stream.until("device")
            assert event["data"] == {"device": "kitchen", "state": "idle"}
            assert "id" not in event


@pytest.mark.parametrize("shut_out", [Api.revoke_key, Api.quarantine_key])
def test_a_key_that_was_revoked_or_quarantined_hears_no_more(
    tmp_path: Path, shut_out: Callable[[Api, str], Any]
) -> None:
    """E2."""
    with serving(tmp_path) as world:
        key = world.api.make_key("eyes", role="viewer")["key"]
        with world.follow(headers={"Authorization": f"Bearer {key}"}) as stream:
            assert stream.event()["event"] == "begin"
            assert shut_out(world.api, "eyes").is_success
            assert "no more" in stream.until("end")["data"]["reason"]
            assert stream.event() == {}, "and the connection ends"


def test_beyond_the_last_place_a_client_is_told_when_to_return(tmp_path: Path) -> None:
    with serving(tmp_path, most_listeners=1) as world, world.follow() as stream:
        stream.event()
        refused = world.client.get(PATH, headers=HEADERS)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert problem(refused)["retryable"] is True
        world.api.feed.close()
        assert stream.until("end")["data"] == {"reason": "the coordinator stops"}


def test_a_client_that_reads_nothing_keeps_nobody_waiting(tmp_path: Path) -> None:
    """A raw socket that never reads, beside a client that does."""
    with (
        serving(tmp_path, room=5) as world,
        socket.create_connection((LOOPBACK, world.port)) as deaf,
    ):
        head = f"GET {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        deaf.sendall(head.encode())
        with world.follow() as stream:
            stream.event()
            for number in range(12):
                world.commit(number)
                assert stream.until("run")["data"]["reason"] == str(number)


@pytest.mark.parametrize("shown", ["x", "1", "1-", "-1-1", "1-1-1", "9" * 20 + "-1", "１-１"])
def test_an_id_of_no_event_here_is_refused(api: Api, shown: str) -> None:
    head = {name.encode(): value.encode() for name, value in HEADERS.items()}
    answer = api.client.get(PATH, headers={**head, b"Last-Event-ID": shown.encode()})
    assert answer.status_code == 422
    assert "Last-Event-ID" in problem(answer)["detail"]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    api = Api(tmp_path)
    yield api
    api.store.close()


# The stream alone


def sent_by(events: list[Told], *, stalls: bool = False, beat_s: float = 0.0) -> bytes:
    """What a stream of these events sends to a client that stays."""
    sent: list[bytes] = []

    async def coming() -> Any:
        for event in events:
            yield event

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if stalls and message.get("body"):
            await asyncio.Event().wait()
        sent.append(message.get("body", b""))

    stream = EventStream(coming(), lambda: True, beat_s=beat_s, stalled_s=0.05)
    asyncio.run(stream({}, receive, send))
    return b"".join(sent)


def test_where_nothing_happens_a_comment_says_that_the_stream_is_there() -> None:
    beat = Told("beat", "")
    assert sent_by([beat, beat]) == b": still here\n\n" * 2
    assert sent_by([beat, beat], beat_s=1000.0) == b""


def test_a_client_that_takes_nothing_is_hung_up_on() -> None:
    """E3."""
    assert sent_by([Told("run", "{}", (1, 0))], stalls=True) == b""
    assert sent_by([Told("run", "{}", (1, 0))]) == b"id: 1-0\nevent: run\ndata: {}\n\n"
