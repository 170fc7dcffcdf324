"""Several processes share beginnings of prompts through a Redis, as whoever asks allows it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import redis

from coordinator.inference.engine import Engine, EngineState, GenerationRequest, answered
from coordinator.inference.engines import EngineSettings, make_engine
from coordinator.inference.prefix_cache import BLOCK
from tests.support.brokers import eventually
from tests.support.language_models import make_model
from tests.support.redis_servers import free_port, running_redis

QUESTION = "where is the parcel that I ordered " * 12


def started(model: str, graphs: Path, prefixes: str) -> Engine:
    settings = EngineSettings(graphs, device="cpu", threads=1, prefixes=prefixes)
    assert "secret" not in repr(settings)
    engine = make_engine(model, settings)
    engine.start()
    assert eventually(lambda: engine.card.state is not EngineState.LOADING, within_s=120)
    assert engine.card.state is EngineState.READY, engine.card.reason
    return engine


@pytest.mark.model
@pytest.mark.redis
@pytest.mark.slow
def test_what_one_process_computed_another_finds_and_answers_the_same(tmp_path: Path) -> None:
    model = str(make_model(tmp_path / "model").folder)
    asked = GenerationRequest(QUESTION, 8, share="one")
    with running_redis(tmp_path, free_port()) as url:
        with closing(started(model, tmp_path / "graphs", url)) as first:
            computed = answered(first, asked)
            with redis.Redis.from_url(url) as client:  # blocks go their way beside the answer
                whole = computed.prompt_tokens // BLOCK
                assert eventually(lambda: client.dbsize() == whole, within_s=30)
        with closing(started(model, tmp_path / "graphs", url)) as second:
            found = answered(second, asked)
            other = answered(second, GenerationRequest(QUESTION, 8, share="other"))
    assert (computed.cached_tokens, other.cached_tokens) == (0, 0)
    assert found.cached_tokens >= BLOCK
    assert computed.text == found.text == other.text


@pytest.mark.model
@pytest.mark.slow
def test_a_redis_that_is_away_costs_nothing_but_its_help(tmp_path: Path) -> None:
    model = str(make_model(tmp_path / "model").folder)
    url = f"redis://:secret@127.0.0.1:{free_port()}/0"
    with closing(started(model, tmp_path / "graphs", url)) as engine:
        asked = GenerationRequest(QUESTION, 8, share="one")
        first, again = answered(engine, asked), answered(engine, asked)
    assert again.cached_tokens >= BLOCK
    assert first.text == again.text
