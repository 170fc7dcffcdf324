"""Run amqtt on one loopback address: the broker of last resort, as a program.

Run by the interpreter of amqtt's own small environment, which holds none of our
packages; nothing but amqtt and the standard library may be imported here.
"""

from __future__ import annotations

import asyncio
import signal
import sys


async def serve(host: str, port: int) -> None:
    """Answer on ``host:port`` until SIGTERM."""
    # Here, so that tools which import every module of ours can import this one too.
    from amqtt.broker import Broker

    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}},
            "plugins": {
                "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}
            },
        }
    )
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await broker.start()
    await ended.wait()
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
