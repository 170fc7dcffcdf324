"""Servers that speak OpenAI's API as well or as badly as a test wants; also as a process.

    python -m tests.support.fake_nodes WORDS SECONDS_BETWEEN

prints its port, and answers every request with so many words.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

MODEL = "the-model"


@dataclass
class Call:
    """One request, and the way to answer it byte by byte."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(
        self, status: int, body: Any, *, headers: dict[str, str] | None = None
    ) -> None:
        """A whole answer: JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"{name}: {value}" for name, value in (headers or {}).items()]
        head = "\r\n".join([f"HTTP/1.1 {status} So", f"Content-Length: {len(data)}", *lines])
        await self.send(head.encode() + b"\r\n\r\n" + data)

    async def begin(self) -> None:
        """The head of a stream, whose end is the connection's."""
        await self.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        )

    async def gone(self) -> None:
        """Return when the client has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(1024):
                pass

    def abort(self) -> None:
        """Break the connection, as a killed process does."""
        self.writer.transport.abort()


Answer = Callable[[Call], Awaitable[None]]


def event(value: Any) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def choice(text: str | None = None, *, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk of a conversation's answer."""
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, **more}]}


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {"choices": [], "usage": counts | {"prompt_tokens_details": {"cached_tokens": cached}}}


DONE = b"data: [DONE]\n\n"


def whole_answer(words: Sequence[str]) -> bytes:
    """A well-formed stream."""
    opening = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    pieces = [event(opening), *(event(choice(word)) for word in words)]
    return b"".join([*pieces, event(choice(finish="stop")), event(usage(5, len(words)))]) + DONE


def says(*words: str) -> Answer:
    async def answer(call: Call) -> None:
        await call.begin()
        await call.send(whole_answer(words))

    return answer


@dataclass
class FakeNode:
    """A server on loopback, on a thread and loop of its own."""

    answer: Answer = field(default_factory=lambda: says("Hello", " there"))
    models: Any = None
    models_status: int = 200
    port: int = 0
    calls: list[Call] = field(default_factory=list)
    checks: int = 0
    dropped: threading.Event = field(default_factory=threading.Event)
    """Set when a client left before it was answered; for answers that wait with ``gone``."""

    def __post_init__(self) -> None:
        if self.models is None:
            self.models = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.shut()

    def open(self) -> None:
        """Listen: at the port it had, if it had one."""
        started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(started)), daemon=True, name="fake-node"
        )
        self._thread.start()
        started.wait()

    def shut(self) -> None:
        """Listen no more, and break what is open."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join()

    async def _run(self, started: threading.Event) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()

        def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # Known before its task has run: one that is cancelled first would leave it open.
            self._writers.add(writer)
            self._tasks.add(asyncio.create_task(self._serve(reader, writer)))

        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(taken, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._over.wait()
        server.close()
        # A connection that was taken just now has a task that does not run yet: cancelled before
        # its first step, it would leave its socket open.
        await asyncio.sleep(0.05)
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=1.0)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0.05)  # in which the sockets are closed

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._one(reader, writer)
            writer.close()
            await writer.wait_closed()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        call = Call(method, path, headers, json.loads(body) if body else None, reader, writer)
        close = {"Connection": "close"}
        if path == "/v1/models":
            self.checks += 1
            await call.answer(self.models_status, self.models, headers=close)
            return
        self.calls.append(call)
        await self.answer(call)


def counts(words: int, between_s: float) -> Answer:
    """So many words, one after the other."""

    async def answer(call: Call) -> None:
        await call.begin()
        for number in range(words):
            await asyncio.sleep(between_s)
            await call.send(event(choice(f" {number}")))
        await call.send(event(choice(finish="stop")) + event(usage(5, words)) + DONE)

    return answer


def main() -> None:
    """Serve until killed."""
    node = FakeNode(answer=counts(int(sys.argv[1]), float(sys.argv[2])))
    node.open()
    sys.stdout.write(f"{node.port}\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main()
