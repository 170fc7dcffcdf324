"""The server's end of a web socket that does not let a client that takes nothing cost memory.

    K1  who sends waits while the client's share of what was sent has not left for the network
    K2  a connection that ends while something still waits for it is cut off, and what waits dropped

The server's own (uvicorn 0.49) writes whatever it is given, and closes a connection only when all of it
has been taken.
"""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class BoundedSocket(WebSocketsSansIOProtocol):
    """One web socket of the server."""

    def pause_writing(self) -> None:
        """More waits than there should (K1)."""
        self.writable.clear()

    def resume_writing(self) -> None:
        """The client has taken most of it (K1)."""
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go whoever waits to send."""
        super().connection_lost(exc)
        self.writable.set()

    def keepalive_timeout(self) -> None:
        """The client does not answer any more (K2)."""
        super().keepalive_timeout()
        self._cut_off()

    async def run_asgi(self) -> None:
        """Serve the socket, to its end (K2)."""
        await super().run_asgi()
        self._cut_off()

    def _cut_off(self) -> None:
        if not self.writable.is_set():
            self.transport.abort()
