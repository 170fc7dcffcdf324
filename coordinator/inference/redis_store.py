"""Answers and prompts' beginnings in Redis, which several coordinators share. Alone knows redis.

Redis being away, slow or full means a miss and one line in the log; then it is left alone for a
while. Whoever can write to that Redis decides what is answered: give it a password.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import numpy as np
import structlog

from coordinator.inference.answer_cache import MAX_VALUE_BYTES
from coordinator.inference.step_model import KeysAndValues
from shared.errors import ConfigError
from shared.extras import require

TTL_S: Final = 24 * 3600
TIMEOUT_S: Final = 0.25
"""Of connecting and of every answer: computing is seldom so much slower that waiting pays."""
BLOCK_TIMEOUT_S: Final = 0.05
"""Of a block of keys and values, for which every request under way waits: a model of 53 million
parameters computes one in about that time on two cores."""
PAUSE_S: Final = 5.0
"""Without asking, after it failed."""
_WORKERS: Final = 4
_PENDING: Final = 256
"""Values on their way; more are dropped."""
_BLOCKS_PENDING_BYTES: Final = 64 * 2**20

ResultT = TypeVar("ResultT")

log = structlog.get_logger()


class _Redis:
    """A Redis that may be away, asked from any thread."""

    def __init__(
        self, url: str, *, workers: int, timeout_s: float, now: Callable[[], float]
    ) -> None:
        redis = require("redis", extra="redis")
        # The password stays out of every message.
        self._where = urlsplit(url).hostname or urlsplit(url).path
        try:
            self._redis: Any = redis.Redis.from_url(
                url,
                socket_timeout=timeout_s,
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
        self._now = now
        self._lock = threading.Lock()
        self._away_until = -1.0
        self._away = False
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="redis")

    @property
    def is_left_alone(self) -> bool:
        """Whether it failed so lately that it is not asked."""
        return self._now() < self._away_until

    def get(self, name: str, limit_bytes: int) -> bytes | None:
        """The value of a key; ``None`` where there is none, it is longer, or Redis is away."""
        # One byte more than may be there is fetched, however much lies there, and tells.
        value = self._ask(lambda: self._redis.getrange(name, 0, limit_bytes))
        return value if isinstance(value, bytes) and 0 < len(value) <= limit_bytes else None

    def set(self, name: str, value: bytes, ttl_s: int) -> None:
        """Keep a value for a while."""
        self._ask(lambda: self._redis.set(name, value, ex=ttl_s))

    def beside(self, work: Callable[..., ResultT], *arguments: Any) -> Future[ResultT] | None:
        """Do something on a thread; ``None`` after :meth:`close`."""
        try:
            return self._pool.submit(work, *arguments)
        except RuntimeError:
            return None

    def close(self) -> None:
        """Close the connections; what has not begun is left."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._redis.close()

    def _ask(self, question: Callable[[], Any]) -> Any:
        if self.is_left_alone:
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
        # The library's own asynchronous client belongs to one event loop, and there are several.
        self._redis = _Redis(url, workers=_WORKERS, timeout_s=TIMEOUT_S, now=now)
        self._ttl_s = ttl_s
        self._lock = threading.Lock()
        self._pending = 0

    async def get(self, key: bytes) -> bytes | None:
        """The value of a key, or ``None`` where Redis has none or is away."""
        if self._redis.is_left_alone:
            return None
        asked = self._redis.beside(self._redis.get, _name(key), MAX_VALUE_BYTES)
        return None if asked is None else await asyncio.wrap_future(asked)

    def put(self, key: bytes, value: bytes) -> None:
        """Send a value on its way."""
        with self._lock:
            if self._redis.is_left_alone or self._pending >= _PENDING:
                return
            self._pending += 1
        sent = self._redis.beside(self._redis.set, _name(key), value, self._ttl_s)
        if sent is not None:
            sent.add_done_callback(self._sent)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _sent(self, _: Future[None]) -> None:
        with self._lock:
            self._pending -= 1


def _name(key: bytes) -> str:
    return f"llmos:answer:{key.hex()}"


class RedisBlocks:
    """A :class:`~coordinator.inference.prefix_cache.BlockStore` in Redis.

    What is found is waited for, :data:`BLOCK_TIMEOUT_S` at most; what is kept goes its way meanwhile.
    """

    def __init__(
        self,
        url: str,
        shape: tuple[int, ...],
        *,
        ttl_s: int = TTL_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Use the Redis at ``url``, whether it is there yet or not.

        Args:
            url: As :class:`RedisStore`.
            shape: Of every block; whatever else lies there is a miss.
            ttl_s: For how long a block is kept.
            now: Seconds on a clock that does not go back.

        Raises:
            ConfigError: the URL is none.
            DependencyMissing: the library is not installed.
        """
        self._redis = _Redis(url, workers=1, timeout_s=BLOCK_TIMEOUT_S, now=now)
        self._shape = shape
        self._bytes = int(np.prod(shape)) * np.dtype("<f4").itemsize
        self._ttl_s = ttl_s
        self._lock = threading.Lock()
        self._on_their_way: set[bytes] = set()

    def get(self, name: bytes) -> KeysAndValues | None:
        """See :class:`~coordinator.inference.prefix_cache.BlockStore`."""
        value = self._redis.get(_block_name(name), self._bytes)
        if value is None or len(value) != self._bytes:
            return None
        block = np.frombuffer(value, "<f4").reshape(self._shape)
        # One that is no number would spoil every answer that begins with it.
        return block if np.isfinite(block).all() else None

    def has(self, name: bytes) -> bool:
        """Whether it is on its way there; asking Redis would cost as much as putting it twice."""
        with self._lock:
            return name in self._on_their_way

    def put(self, name: bytes, block: KeysAndValues) -> None:
        """See :class:`~coordinator.inference.prefix_cache.BlockStore`."""
        with self._lock:
            full = (len(self._on_their_way) + 1) * self._bytes > _BLOCKS_PENDING_BYTES
            if full or self._redis.is_left_alone or name in self._on_their_way:
                return
            self._on_their_way.add(name)
        self._redis.beside(self._send, name, np.ascontiguousarray(block, "<f4").tobytes())

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _send(self, name: bytes, value: bytes) -> None:
        try:
            self._redis.set(_block_name(name), value, self._ttl_s)
        finally:
            with self._lock:
                self._on_their_way.discard(name)


def _block_name(name: bytes) -> str:
    # The number says how blocks are laid out: another one never meets these.
    return f"llmos:prefix:1:{name.hex()}"
