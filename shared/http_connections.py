"""How long a connection may take to say what it wants, and how many there may be.

    C1  a connection whose request's head is not whole in ``HEAD_S`` is closed, also one that sends a
        letter now and then; a request under way is never cut off
    C2  of connections there are at most as many as files leave room for: one more takes the place of
        the oldest that owes its request's head, or else the rest of its body

The server itself waits for a head for ever. Its limit on concurrency counts connections that say
nothing, and would then turn everybody away, whoever asks for health too.
"""

from __future__ import annotations

import asyncio
import itertools
import resource
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

HEAD_S: Final = 10.0
KEEP_ALIVE_S: Final = 5
HEAD_BYTES: Final = 32 * 1024
"""Of a request's line and headers, while they are not whole."""
MOST_CONNECTIONS: Final = 4096
BACKLOG: Final = 64
"""Connections that the event loop takes in one go.

Four times as many are open before the first of them is counted and the one whose place it takes is
closed, and there have to be files for them: asyncio does not come back from a lack of files while
clients wait (Python 3.11 schedules 256 new attempts for each that failed, which starves all else).
"""
_SHARE_OF_FILES: Final = 0.5

_numbers = itertools.count()


def room() -> int:
    """How many connections there may be: each is a file, and a process may have so many open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MOST_CONNECTIONS, max(1, int(files * _SHARE_OF_FILES)))


class BoundedConnection(H11Protocol):
    """One connection of the server."""

    _number = 0
    _upgraded = False
    _head_timer: asyncio.TimerHandle | None = None

    @property
    def owes_head(self) -> bool:
        """Whether it is at a request's head, and nothing of it is being answered."""
        # Until the first request there is none, whatever the server's own annotation says.
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    @property
    def owes_body(self) -> bool:
        """Whether a request is under way of which not all has come."""
        return not self.owes_head and self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give it a place (C2), and start the clock (C1)."""
        super().connection_made(transport)
        self._number = next(_numbers)
        self._start_timer()
        self._make_room()

    def data_received(self, data: bytes) -> None:
        """Take what has come; the clock stands while a request is answered (C1)."""
        super().data_received(data)
        if self._upgraded or not self.owes_head:
            self._stop_timer()
        elif self._head_timer is None:
            self._start_timer()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over: its head is whole, and nobody here waits for another."""
        self._upgraded = True
        self._stop_timer()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock."""
        self._stop_timer()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        if self.owes_head:
            self.transport.close()

    def _make_room(self) -> None:
        """Let somebody go if this one is too many (C2)."""
        if len(self.connections) <= room():
            return
        # Who was told to go is still among them until the loop comes round.
        open_now = [
            each
            for each in self.connections
            if isinstance(each, BoundedConnection) and not each.transport.is_closing()
        ]
        if len(open_now) <= room():
            return
        owing = [
            each for each in open_now if (each.owes_head or each.owes_body) and each is not self
        ]
        if owing:
            min(owing, key=lambda each: (each.owes_body, each._number)).transport.close()
        else:
            self.limit_concurrency = 0  # it is told 503

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._give_up)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
