"""Transformers' batching gives every request what it would get alone, whatever stands beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.inference.token_runtime import Emitted, TokenRequest
from coordinator.inference.transformers_runtime import (
    TransformersRuntime,
    open_transformers_runtime,
)
from shared.errors import ModelError, PromptRefused
from shared.models.adapter import Adapter
from shared.models.encoder import BaseModel
from shared.types import Digest, FloatMatrix
from tests.support.causal_models import TorchOracle, make_causal
from tests.support.tiny_models import tiny_adapter

pytestmark = pytest.mark.slow

ENDS = (1,)
PROMPTS = [[5 + (7 * row + 3 * at) % 290 for at in range(4 + 9 * row)] for row in range(6)]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return make_causal(tmp_path_factory.mktemp("bases") / request.param, request.param)


@pytest.fixture(scope="module")
def runtime(base: BaseModel) -> TransformersRuntime:
    return opened(base)


def opened(base: BaseModel, *, slots: int = 4, kv_tokens: int = 2048) -> TransformersRuntime:
    return TransformersRuntime(
        *(base,), device="cpu", precision="fp32", threads=1, slots=slots, kv_tokens=kv_tokens
    )


def lora(base: BaseModel, seed: int, *, top: int = 2) -> Adapter:
    return tiny_adapter(base, "lora", labels=(), seed=seed, top=top)


def drained(runtime: TransformersRuntime) -> dict[int, list[Emitted]]:
    out: dict[int, list[Emitted]] = {}
    while runtime.load.active or runtime.load.waiting:
        for emitted in runtime.step():
            out.setdefault(emitted.number, []).append(emitted)
    for given in out.values():
        assert [each.finish is None for each in given] == [True] * (len(given) - 1) + [False]
    return out


def tokens(given: list[Emitted]) -> list[int]:
    return [each.token for each in given]


def test_requests_in_company_get_the_tokens_that_torch_gives_them_alone(
    base: BaseModel, runtime: TransformersRuntime
) -> None:
    adapters = [None, lora(base, 1), None, lora(base, 2, top=1), lora(base, 1), None]
    for row, (prompt, adapter) in enumerate(zip(PROMPTS, adapters, strict=True)):
        runtime.submit(TokenRequest(row, prompt, 12 + row, adapter=adapter))
    out = drained(runtime)
    for row, (prompt, adapter) in enumerate(zip(PROMPTS, adapters, strict=True)):
        expected = TorchOracle(base, adapter).greedy(prompt, 12 + row, ends=ENDS)
        assert tokens(out[row]) == expected
        assert out[row][-1].finish == ("stop" if expected[-1] in ENDS else "length")


def test_where_memory_is_too_small_for_all_at_once_all_are_answered_all_the_same(
    base: BaseModel,
) -> None:
    small = opened(base, kv_tokens=96)
    assert small.context_tokens == 96
    for row, prompt in enumerate(PROMPTS[:4]):
        small.submit(TokenRequest(row, prompt, 40, adapter=lora(base, row) if row % 2 else None))
    out = drained(small)
    for row, prompt in enumerate(PROMPTS[:4]):
        oracle = TorchOracle(base, lora(base, row) if row % 2 else None)
        assert tokens(out[row]) == oracle.greedy(prompt, 40, ends=ENDS)
    with pytest.raises(PromptRefused, match="memory for 96"):
        small.submit(TokenRequest(9, [5] * 90, 7))


def test_a_prompt_longer_than_one_step_is_read_in_several(base: BaseModel) -> None:
    prompt = [5 + at % 290 for at in range(480)]
    runtime = opened(base, slots=3)
    for number in range(3):
        runtime.submit(TokenRequest(number, prompt, 4, adapter=lora(base, 5) if number else None))
    out = drained(runtime)
    plain = TorchOracle(base).greedy(prompt, 4, ends=ENDS)
    adapted = TorchOracle(base, lora(base, 5)).greedy(prompt, 4, ends=ENDS)
    assert tokens(out[0]) == plain != adapted
    assert tokens(out[1]) == tokens(out[2]) == adapted


def test_what_one_adapter_computed_for_a_prompt_is_used_under_no_other(base: BaseModel) -> None:
    prompt = [5 + at % 290 for at in range(200)]
    runtime = opened(base)
    for number, adapter in enumerate((None, lora(base, 5), lora(base, 6), None)):
        runtime.submit(TokenRequest(number, prompt, 8, adapter=adapter))
        given = drained(runtime)[number]
        assert tokens(given) == TorchOracle(base, adapter).greedy(prompt, 8, ends=ENDS)
        assert given[0].cached_tokens == 0


def test_a_seed_draws_the_same_in_any_company(runtime: TransformersRuntime) -> None:
    def drawn(numbers: range, seed_of: Callable[[int], int]) -> dict[int, list[int]]:
        for number in numbers:
            runtime.submit(
                *(TokenRequest(number, PROMPTS[2], 16, 1.3, 0.95, seed=seed_of(number)),)
            )
        return {number: tokens(given) for number, given in drained(runtime).items()}

    alone = drawn(range(1), lambda _: 7)[0]
    crowd = drawn(range(4), lambda number: 7 + number)
    assert crowd[0] == alone
    assert len({tuple(each) for each in crowd.values()}) == 4


def softmax(logits: FloatMatrix, temperature: float) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    chances = np.exp(scaled - scaled.max())
    return np.asarray(chances / chances.sum())


def test_draws_follow_temperature_and_top_p(base: BaseModel) -> None:
    runtime, draws, prompt = opened(base, slots=100, kv_tokens=8192), 600, PROMPTS[1]
    logits = TorchOracle(base).logits(prompt)[-1]
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.6)):
        for seed in range(draws):
            runtime.submit(TokenRequest(seed, prompt, 1, temperature, top_p, seed))
        found = np.bincount(
            [given[0].token for given in drained(runtime).values()], minlength=len(logits)
        )
        chances = softmax(logits, temperature)
        order = np.argsort(-chances, kind="stable")
        before = np.cumsum(chances[order]) - chances[order]
        kept = order[before < top_p]
        assert set(np.flatnonzero(found)) <= set(kept.tolist())
        expected = np.zeros_like(chances)
        expected[kept] = chances[kept] / chances[kept].sum()
        # Half the sum of differences; of 600 right draws from these it is some 0.05 to 0.15.
        likely = np.random.default_rng(0).multinomial(draws, expected, size=200) / draws
        usual = np.abs(likely - expected).sum(axis=1).max()
        assert np.abs(found / draws - expected).sum() <= 1.3 * usual


def test_a_tiny_top_p_or_temperature_takes_the_likeliest(
    base: BaseModel, runtime: TransformersRuntime
) -> None:
    runtime.submit(TokenRequest(0, PROMPTS[3], 10, temperature=1.0, top_p=1e-9))
    runtime.submit(TokenRequest(1, PROMPTS[3], 10, temperature=1e-30))
    runtime.submit(TokenRequest(2, PROMPTS[3], 10, temperature=2.0, top_p=0.5, seed=3))
    out = drained(runtime)
    expected = TorchOracle(base).greedy(PROMPTS[3], 10, ends=ENDS)
    assert tokens(out[0]) == tokens(out[1]) == expected


def test_log_probabilities_are_those_of_the_model_at_temperature_1(
    base: BaseModel, runtime: TransformersRuntime
) -> None:
    prompt = PROMPTS[2]
    runtime.submit(TokenRequest(0, prompt, 6, temperature=1.5, seed=2, logprobs=4))
    runtime.submit(TokenRequest(1, prompt, 6))
    runtime.submit(TokenRequest(2, prompt, 6, logprobs=0))
    out = drained(runtime)
    given = out[0]
    logits = TorchOracle(base).logits([*prompt, *tokens(given)])
    for at, emitted in enumerate(given):
        logprobs = np.log(softmax(logits[len(prompt) - 1 + at], 1.0))
        assert emitted.logprob == pytest.approx(logprobs[emitted.token], abs=1e-3)
        assert [each for each, _ in emitted.likeliest] == np.argsort(-logprobs)[:4].tolist()
        for token, logprob in emitted.likeliest:
            assert logprob == pytest.approx(logprobs[token], abs=1e-3)
    assert all(each.logprob == 0.0 and not each.likeliest for each in out[1])
    assert all(each.logprob < 0.0 and not each.likeliest for each in out[2])


SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "北京"]}, "open": {"type": "boolean"}},
    "required": ["city", "open"],
    "additionalProperties": False,
}


def test_an_answer_follows_its_schema_and_the_one_beside_it_is_free(
    base: BaseModel, runtime: TransformersRuntime
) -> None:
    from tokenizers import Tokenizer

    for number in range(3):
        request = TokenRequest(
            *(number, [9, 10], 200, 1.0), seed=number, schema=json.dumps(SCHEMA), logprobs=1
        )
        runtime.submit(request)
    runtime.submit(TokenRequest(3, [9, 10], 12))
    out = drained(runtime)
    tokenizer: Any = Tokenizer.from_file(str(base.folder / "tokenizer.json"))
    for number in range(3):
        answer = json.loads(tokenizer.decode(tokens(out[number])))
        assert answer["city"] in {"Bern", "北京"}
        assert isinstance(answer["open"], bool)
        assert out[number][-1].finish == "stop"
    assert tokens(out[3]) == TorchOracle(base).greedy([9, 10], 12, ends=ENDS)
    with pytest.raises(PromptRefused, match="response_format"):
        runtime.submit(TokenRequest(4, [9], 5, schema="[1]"))


def test_who_is_cancelled_gives_room_at_once_and_no_token_more(base: BaseModel) -> None:
    runtime = opened(base, slots=2)
    for number in range(4):
        runtime.submit(TokenRequest(number, PROMPTS[1], 100, temperature=1.0, seed=number))
    seen = {each.number for each in runtime.step()}
    assert seen == {0, 1}
    assert (runtime.load.active, runtime.load.waiting) == (2, 2)
    runtime.cancel(0)
    runtime.cancel(3)
    runtime.cancel(77)
    assert (runtime.load.active, runtime.load.waiting) == (1, 1)
    assert {each.number for each in runtime.step()} == {1, 2}
    runtime.cancel(1)
    runtime.cancel(2)
    load = runtime.load
    assert (load.active, load.waiting, load.kv_tokens_used) == (0, 0, 0)
    assert runtime.step() == ()
    runtime.submit(TokenRequest(1, PROMPTS[0], 5))  # a number may come again
    assert tokens(drained(runtime)[1]) == TorchOracle(base).greedy(PROMPTS[0], 5, ends=ENDS)


def test_what_cannot_be_answered_is_refused_and_costs_nobody_else(
    base: BaseModel, runtime: TransformersRuntime
) -> None:
    own = lora(base, 1)
    foreign = Adapter(own.shape, Digest("0" * 64), own.tensors)
    slot = own.shape.slots[0]
    nowhere = own.shape.model_copy(
        update={"slots": (slot.model_copy(update={"name": "layer.99.query"}),)}
    )
    misplaced = Adapter.initial(nowhere, base.digest)
    narrow = own.shape.model_copy(update={"slots": (slot.model_copy(update={"inputs": 8}),)})
    for adapter, reason in (
        (foreign, "trained on the base"),
        (tiny_adapter(base, "none"), "not one of a language model"),
        (misplaced, "there is no layer.99.query"),
        (Adapter.initial(narrow, base.digest), "another shape"),
    ):
        with pytest.raises(ModelError, match=reason):
            runtime.submit(TokenRequest(1, [5], 5, adapter=adapter))
    with pytest.raises(PromptRefused, match="numbers below"):
        runtime.submit(TokenRequest(2, [10**6], 5))
    assert runtime.step() == ()


def test_what_is_counted_is_what_was_read_and_written(base: BaseModel) -> None:
    runtime = opened(base)
    for number, prompt in enumerate(PROMPTS[:3]):
        runtime.submit(TokenRequest(number, prompt, 7))
    given = sum(len(each) for each in drained(runtime).values())
    load = runtime.load
    assert load.prompt_tokens == sum(len(prompt) for prompt in PROMPTS[:3])
    assert load.completion_tokens == given
    assert (load.kv_tokens, load.cached_tokens) == (2048, 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_is_what_the_operator_gives(base: BaseModel, precision: str) -> None:
    # Two layers, two heads of 16 for keys and as many for values.
    a_token = 2 * 2 * 2 * 16 * {"fp32": 4, "bf16": 2}[precision]
    made = {"device": "cpu", "precision": precision, "threads": 1, "slots": 2}
    runtime = open_transformers_runtime(base, **made, kv_bytes=320 * a_token)  # type: ignore[arg-type]
    assert runtime.load.kv_tokens == runtime.context_tokens == 320
    cache = runtime._batches.cache
    assert cache.num_sectors * cache.bytes_per_sector == 320 * a_token
    runtime.submit(TokenRequest(0, PROMPTS[3], 5))
    assert len(drained(runtime)[0]) <= 5
    with pytest.raises(ModelError, match=f"give at least {256 * a_token}"):
        open_transformers_runtime(base, **made, kv_bytes=255 * a_token)  # type: ignore[arg-type]


def test_a_folder_without_a_language_model_is_named(base: BaseModel, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text((base.folder / "config.json").read_text())
    with pytest.raises(ModelError, match="no causal language model"):
        opened(BaseModel("empty", empty, base.digest))
