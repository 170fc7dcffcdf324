"""Answers in Redis, which several coordinators share. The only module that knows redis.

Redis being away, slow or full means a miss and one line in the log; then it is left alone for a
while. Whoever can write to that Redis decides what is answered: give it a password.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import urlsplit

import structlog

from coordinator.inference.answer_cache import MAX_VALUE_BYTES
from shared.errors import ConfigError
from shared.extras import require

TTL_S: Final = 24 * 3600
TIMEOUT_S: Final = 0.25
"""Of connecting and of every answer: computing is seldom so much slower that waiting pays."""
PAUSE_S: Final = 5.0
"""Without asking, after it failed."""
_WORKERS: Final = 4
_PENDING: Final = 256
"""Values on their way; more are dropped."""

log = structlog.get_logger()


class RedisStore:
    """An :class:`~coordinator.inference.answer_cache.AnswerStore` in Redis."""

    def __init__(
        self, url: str, *, ttl_s: int = TTL_S, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Use the Redis at ``url``, whether it is there yet or not.

        Args:
            url: ``redis://``, ``rediss://`` or ``unix://``, as the library takes it.
            ttl_s: For how long a value is kept.
            now: Seconds on a clock that does not go back.

        Raises:
            ConfigError: the URL is none.
            DependencyMissing: the library is not installed.
        """
        redis = require("redis", extra="redis")
        # The password stays out of every message.
        self._where = urlsplit(url).hostname or urlsplit(url).path
        try:
            self._redis: Any = redis.Redis.from_url(
                url,
                socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                retry=None,
                decode_responses=False,
            )
        except ValueError as err:
            raise ConfigError(
                ["--cache: must be memory, none, or like redis://HOST:PORT/0"], source="options"
            ) from err
        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        # Redis is there and says no: it is full, or something else lies under a key.
        self._refusal: type[Exception] = redis.ResponseError
        self._ttl_s = ttl_s
        self._now = now
        # The library's own asynchronous client belongs to one event loop, and there are several.
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="redis")
        self._lock = threading.Lock()
        self._pending = 0
        self._away_until = -1.0
        self._away = False

    async def get(self, key: bytes) -> bytes | None:
        """The value of a key, or ``None`` where Redis has none or is away."""
        if self._now() < self._away_until:
            return None
        try:
            asked = self._pool.submit(self._ask, lambda: self._redis.getrange(*_all(key)))
        except RuntimeError:  # closed
            return None
        value = await asyncio.wrap_future(asked)
        return value if isinstance(value, bytes) and 0 < len(value) <= MAX_VALUE_BYTES else None

    def put(self, key: bytes, value: bytes) -> None:
        """Send a value on its way."""
        with self._lock:
            if self._now() < self._away_until or self._pending >= _PENDING:
                return
            self._pending += 1
        try:
            sent = self._pool.submit(
                self._ask, lambda: self._redis.set(_name(key), value, ex=self._ttl_s)
            )
        except RuntimeError:  # closed
            return
        sent.add_done_callback(lambda _: self._sent())

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._redis.close()

    def _sent(self) -> None:
        with self._lock:
            self._pending -= 1

    def _ask(self, question: Callable[[], Any]) -> Any:
        if self._now() < self._away_until:
            return None
        try:
            answer = question()
        except self._errors as err:
            with self._lock:
                if not isinstance(err, self._refusal):
                    self._away_until = self._now() + PAUSE_S
                first, self._away = not self._away, True
            if first:
                log.warning("cache.away", host=self._where, error=str(err)[:200])
            return None
        with self._lock:
            back, self._away = self._away, False
        if back:
            log.info("cache.back", host=self._where)
        return answer


def _name(key: bytes) -> str:
    return f"llmos:answer:{key.hex()}"


def _all(key: bytes) -> tuple[str, int, int]:
    """No more than a value may have is fetched, however much lies there; one byte more tells."""
    return _name(key), 0, MAX_VALUE_BYTES
