"""Answers and blocks lie in a real Redis; when it is away nothing fails, and one line says so."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
import redis
from structlog.testing import capture_logs

from coordinator.inference import redis_store
from coordinator.inference.answer_cache import (
    MAX_VALUE_BYTES,
    Answer,
    AnswerCache,
)
from coordinator.inference.engine import Finished, GenerationRequest, Piece
from coordinator.inference.redis_store import PAUSE_S, RedisBlocks, RedisStore
from shared.errors import ConfigError
from shared.types import Digest
from tests.support.brokers import eventually
from tests.support.redis_servers import free_port, running_redis

BASE = Digest("a" * 64)
ASKED = GenerationRequest(prompt="hi", max_tokens=8)
ANSWER = Answer((Piece("you "), Piece("too")), Finished("stop", 1, 3))
KEY = b"k" * 32


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.at = 100.0

    def now(self) -> float:
        return self.at


def arrives(store: RedisStore, key: bytes, value: bytes) -> bool:
    return eventually(lambda: asyncio.run(store.get(key)) == value, within_s=30)


@pytest.mark.redis
def test_what_one_coordinator_computed_another_gives_again_for_a_while(tmp_path: Path) -> None:
    with running_redis(tmp_path, free_port()) as url:
        first, second = RedisStore(url, ttl_s=1000), RedisStore(url)
        key = AnswerCache(first).key(BASE, "public", ASKED)
        assert key is not None
        AnswerCache(first).put(key, ANSWER)
        cache = AnswerCache(second)
        assert eventually(lambda: asyncio.run(cache.get(key, ASKED)) == ANSWER, within_s=30)
        with redis.Redis.from_url(url) as client:
            (name,) = client.keys()
            assert 990 <= client.ttl(name) <= 1000
        first.close()
        second.close()


@pytest.mark.redis
def test_what_somebody_else_wrote_there_is_a_miss(tmp_path: Path) -> None:
    with running_redis(tmp_path, free_port()) as url:
        store = RedisStore(url)
        cache = AnswerCache(store)
        key = cache.key(BASE, "public", ASKED)
        assert key is not None
        name = f"llmos:answer:{key.hex()}"
        with redis.Redis.from_url(url) as client:
            for value in (b"", b"\xff" * 100, b"x" * (MAX_VALUE_BYTES + 1)):
                client.set(name, value)
                assert asyncio.run(cache.get(key, ASKED)) is None
            client.delete(name)
            client.lpush(name, "a list")
            with capture_logs() as logs:
                assert asyncio.run(cache.get(key, ASKED)) is None
                assert asyncio.run(cache.get(key, ASKED)) is None
            assert [line["event"] for line in logs] == ["cache.away"]
            client.delete(name)
        cache.put(key, ANSWER)
        assert eventually(lambda: asyncio.run(cache.get(key, ASKED)) == ANSWER, within_s=30)
        cache.close()


@pytest.mark.redis
def test_redis_may_go_and_come_back(tmp_path: Path) -> None:
    port, clock = free_port(), Clock()
    with capture_logs() as logs:
        store = RedisStore(f"redis://127.0.0.1:{port}/0", now=clock.now)
        assert asyncio.run(store.get(KEY)) is None
        clock.at += PAUSE_S / 2
        assert asyncio.run(store.get(KEY)) is None  # not even asked
        clock.at += PAUSE_S
        assert asyncio.run(store.get(KEY)) is None  # asked, and silent about it
        assert [line["event"] for line in logs] == ["cache.away"]
        with running_redis(tmp_path, port):
            clock.at += PAUSE_S + 1
            store.put(KEY, b"value")
            assert arrives(store, KEY, b"value")
        clock.at += PAUSE_S + 1
        assert asyncio.run(store.get(KEY)) is None
        store.put(KEY, b"value")
        store.close()
    assert [line["event"] for line in logs] == ["cache.away", "cache.back", "cache.away"]


def test_a_url_that_is_none_is_refused_and_a_password_is_not_told() -> None:
    with pytest.raises(ConfigError, match="--cache") as refused:
        RedisStore("http://user:secret@host/")
    assert "secret" not in str(refused.value)
    with capture_logs() as logs:
        store = RedisStore(f"redis://:secret@127.0.0.1:{free_port()}/0")
        assert asyncio.run(store.get(KEY)) is None
        store.close()
        assert asyncio.run(store.get(KEY)) is None
        store.put(KEY, b"value")
    assert "secret" not in str(logs)


SHAPE = (4, 2, 32, 8)
BLOCK = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)


def has_come(blocks: RedisBlocks, name: bytes) -> bool:
    return eventually(lambda: blocks.get(name) is not None, within_s=30)


@pytest.mark.redis
def test_a_block_comes_back_to_the_bit_for_a_while(tmp_path: Path) -> None:
    with running_redis(tmp_path, free_port()) as url:
        first, second = RedisBlocks(url, SHAPE, ttl_s=1000), RedisBlocks(url, SHAPE)
        assert second.get(KEY) is None
        # As a step model takes it out of a row: not in one piece.
        first.put(KEY, np.asarray(BLOCK[:, :, ::-1])[:, :, ::-1])
        assert has_come(second, KEY)
        found = second.get(KEY)
        assert found is not None
        assert np.array_equal(found, BLOCK)
        with redis.Redis.from_url(url) as client:
            (name,) = client.keys()
            assert 990 <= client.ttl(name) <= 1000
        first.close()
        second.close()


@pytest.mark.redis
def test_what_is_no_block_of_this_shape_is_a_miss(tmp_path: Path) -> None:
    spoilt = BLOCK.copy()
    spoilt[3, 1, 31, 7] = np.nan
    with running_redis(tmp_path, free_port()) as url:
        blocks = RedisBlocks(url, SHAPE)
        with redis.Redis.from_url(url) as client:
            whole = BLOCK.tobytes()
            for value in (b"", whole[:-1], whole + b"x", whole[:4], spoilt.tobytes()):
                client.set(f"llmos:prefix:1:{KEY.hex()}", value)
                assert blocks.get(KEY) is None
            client.set(f"llmos:prefix:1:{KEY.hex()}", whole)
            assert blocks.get(KEY) is not None
        blocks.close()


def test_blocks_on_their_way_are_few_and_none_is_sent_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[str] = []
    go = threading.Event()

    def slow(_: object, name: str, _value: bytes, _ttl_s: int) -> None:
        go.wait(30)
        sent.append(name)

    monkeypatch.setattr(redis_store._Redis, "set", slow)
    wide = np.zeros(16 * 2**20 // 4, np.float32)
    blocks = RedisBlocks("redis://127.0.0.1:1/0", wide.shape)
    for number in [*range(10), 0]:
        blocks.put(bytes([number]), wide)
    assert [blocks.has(bytes([number])) for number in range(10)] == [True] * 4 + [False] * 6
    go.set()
    assert eventually(lambda: len(sent) == 4 and not blocks.has(b"\x03"), within_s=30)
    blocks.close()


def test_without_redis_blocks_are_computed() -> None:
    clock = Clock()
    with capture_logs() as logs:
        url = f"redis://127.0.0.1:{free_port()}/0"
        blocks = RedisBlocks(url, SHAPE, now=clock.now)
        assert blocks.get(KEY) is None
        blocks.put(KEY, BLOCK)
        assert not blocks.has(KEY)
        clock.at += PAUSE_S + 1
        blocks.put(KEY, BLOCK)
        assert eventually(lambda: not blocks.has(KEY), within_s=30)
        blocks.close()
        clock.at += PAUSE_S + 1
        blocks.put(KEY, BLOCK)
    assert [line["event"] for line in logs] == ["cache.away"]
