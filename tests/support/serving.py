"""An application behind a real server on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from coordinator.api.app import Services, create_app
from coordinator.inference.front_desk import FrontDesk
from coordinator.inference.text_services import TextServices
from shared.errors import RunNotFound
from shared.types import RunId

TOKEN = "secret"  # noqa: S105  of tests


def text_app(texts: TextServices) -> Any:
    """The coordinator's application with nothing behind it but services about texts."""
    nothing: Any = None

    def adapter_of(run: RunId) -> bytes:
        raise RunNotFound(f"no run named {run}")

    return create_app(
        Services(
            store=nothing,
            fleet=nothing,
            coordinator=nothing,
            key_holder=None,
            broker=("127.0.0.1", 1883),
            admin_token=TOKEN,
            now=time.time,
            stop_run=nothing,
            is_ready=lambda: True,
            desk=FrontDesk({}),
            adapter_of=adapter_of,
            texts=texts,
        )
    )


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an application; its base URL, with ``/v1``."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(10)
