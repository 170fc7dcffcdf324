"""Requests share rows and steps, and each gets what it would have got alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.inference.prefix_cache import BLOCK, MemoryBlocks, PrefixCache
from coordinator.inference.slots import SlotRuntime
from coordinator.inference.token_runtime import Emitted, TokenRequest
from shared.errors import ModelError, PromptRefused
from shared.models.adapter import Adapter, AdapterShape, Slot
from shared.types import Digest
from tests.support.step_models import END, HashModel, after


class Ticks:
    """A clock that goes on by a hundredth of a second whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


def runtime(
    model: HashModel,
    *,
    slots: int = 4,
    kv_tokens: int = 4096,
    prefixes: PrefixCache | None = None,
) -> SlotRuntime:
    return SlotRuntime(model, slots=slots, kv_tokens=kv_tokens, prefixes=prefixes, clock=Ticks())


def adapter(seed: int) -> Adapter:
    slot = Slot(name="layer.0.query", inputs=4, outputs=4)
    shape = AdapterShape(features=4, method="lora", rank=1, alpha=1.0, slots=(slot,))
    start = Adapter.initial(shape, Digest("0" * 64), seed=seed)
    return start.moved(np.ones(start.parameters))


def alone(request: TokenRequest) -> list[int]:
    """The slow oracle: a greedy answer, token by token, from the definition."""
    tokens = list(request.tokens)
    given: list[int] = []
    digest = request.adapter.digest if request.adapter is not None else ""
    while len(given) < request.max_tokens:
        given.append(int(after(tokens, digest).argmax()))
        tokens.append(given[-1])
        if given[-1] == END:
            break
    return given


def drain(slots: SlotRuntime) -> dict[int, list[Emitted]]:
    """Step until nothing is left to do."""
    out: dict[int, list[Emitted]] = {}
    while slots.load.active or slots.load.waiting:
        for emitted in slots.step():
            out.setdefault(emitted.number, []).append(emitted)
    return out


def tokens(emitted: Sequence[Emitted]) -> list[int]:
    return [each.token for each in emitted]


ADAPTERS = [None, adapter(1), adapter(2)]
requests = st.lists(
    st.tuples(
        st.lists(st.integers(1, 63), min_size=1, max_size=80),
        st.integers(1, 40),
        st.sampled_from(ADAPTERS),
        st.integers(0, 6),  # steps before it comes
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(requests, st.integers(1, 5), st.booleans())
def test_every_answer_is_what_it_would_be_alone(
    asked: list[tuple[list[int], int, Adapter | None, int]], slots: int, shared: bool
) -> None:
    model = HashModel()
    prefixes = PrefixCache(MemoryBlocks(2**20), "model") if shared else None
    running = runtime(model, slots=slots, kv_tokens=1024, prefixes=prefixes)
    made = [
        TokenRequest(number, prompt, most, adapter=who, share="k" if shared else "")
        for number, (prompt, most, who, _) in enumerate(asked)
    ]
    out: dict[int, list[int]] = {number: [] for number in range(len(made))}
    coming = sorted(zip((each[3] for each in asked), made, strict=True), key=lambda pair: pair[0])
    step = 0
    while coming or running.load.active or running.load.waiting:
        while coming and coming[0][0] <= step:
            running.submit(coming.pop(0)[1])
        for emitted in running.step():
            out[emitted.number].append(emitted.token)
        step += 1
    for request in made:
        assert out[request.number] == alone(request)
    assert max(model.decoded_at_once, default=0) <= slots
    assert all(rows * room <= 1024 for rows, room in model.reserved)


def test_an_answer_ends_exactly_once_and_says_why() -> None:
    running = runtime(HashModel())
    running.submit(TokenRequest(7, [5, 6], 3))
    out = drain(running)[7]
    assert [each.finish for each in out[:-1]] == [None] * (len(out) - 1)
    assert out[-1].finish == ("stop" if out[-1].token == END else "length")


def test_a_cancelled_request_gives_no_further_token_and_its_row_is_free() -> None:
    running = runtime(HashModel(), slots=2)
    for number in range(4):
        running.submit(TokenRequest(number, [number + 1] * 5, 30))
    running.step()
    running.cancel(0)  # generates
    running.cancel(3)  # waits
    running.cancel(99)  # was never there
    out = drain(running)
    assert 0 not in out
    assert 3 not in out
    assert tokens(out[2]) == alone(TokenRequest(2, [3] * 5, 30))


def test_a_long_prompt_is_read_in_parts_and_others_go_on_generating() -> None:
    model = HashModel()
    running = runtime(model, slots=2)
    running.submit(TokenRequest(0, [9] * 4, 60))
    running.step()
    running.submit(TokenRequest(1, [8] * 500, 2))
    before = len(model.decoded_at_once)
    parts = 0
    while running.load.active == 1 or parts == 0 or sum(model.read_at_once) < 504:
        running.step()
        parts += 1
    assert parts > 1
    assert len(model.decoded_at_once) - before >= parts


def test_one_that_waits_for_room_is_not_overtaken() -> None:
    model = HashModel()
    running = runtime(model, slots=4, kv_tokens=1024)
    running.submit(TokenRequest(0, [1] * 10, 20))
    running.submit(TokenRequest(1, [2] * 600, 20))  # needs all the room there is
    running.submit(TokenRequest(2, [3] * 10, 20))
    order = list(dict.fromkeys(e.number for _ in range(200) for e in running.step()))
    assert order == [0, 1, 2]


def test_what_would_not_fit_alone_is_refused_at_once() -> None:
    running = runtime(HashModel(), kv_tokens=512)
    with pytest.raises(PromptRefused, match="memory for 512"):
        running.submit(TokenRequest(0, [1] * 500, 20))
    assert running.load.waiting == 0


def test_an_adapter_without_a_place_is_refused_at_once() -> None:
    shape = AdapterShape(labels=("a", "b"), features=2)
    running = runtime(HashModel())
    head = Adapter.initial(shape, Digest("0" * 64), seed=0)
    with pytest.raises(ModelError):
        running.submit(TokenRequest(0, [1], 1, adapter=head))
    assert running.load.waiting == 0


def test_a_schema_is_refused_where_none_can_be_followed() -> None:
    running = runtime(HashModel())
    assert running.lacks == {"schema"}
    with pytest.raises(PromptRefused, match="response_format"):
        running.submit(TokenRequest(0, [1], 1, schema="{}"))


def test_a_prompt_that_was_read_before_is_not_read_again() -> None:
    model = HashModel()
    running = runtime(model, prefixes=PrefixCache(MemoryBlocks(2**20), "model"))
    prompt = [7] * (2 * BLOCK + 3)
    running.submit(TokenRequest(0, prompt, 1, share="key"))
    drain(running)
    model.read_at_once.clear()
    running.submit(TokenRequest(1, prompt, 5, share="key"))
    out = drain(running)[1]
    assert sum(model.read_at_once) == 3
    assert out[0].cached_tokens == 2 * BLOCK
    assert tokens(out) == alone(TokenRequest(1, prompt, 5))
    assert running.load.cached_tokens == 2 * BLOCK


@pytest.mark.parametrize(
    ("share", "who"),
    [("other", None), ("", None), ("key", ADAPTERS[1])],
    ids=["key", "none", "adapter"],
)
def test_nothing_is_found_under_another_key_or_adapter(share: str, who: Adapter | None) -> None:
    model = HashModel()
    running = runtime(model, prefixes=PrefixCache(MemoryBlocks(2**20), "model"))
    prompt = [7] * (2 * BLOCK + 3)
    running.submit(TokenRequest(0, prompt, 1, share="key"))
    drain(running)
    model.read_at_once.clear()
    running.submit(TokenRequest(1, prompt, 1, share=share, adapter=who))
    out = drain(running)[1]
    assert sum(model.read_at_once) == len(prompt)
    assert out[0].cached_tokens == 0


def test_log_probabilities_are_those_of_the_model_not_of_the_draw() -> None:
    running = runtime(HashModel())
    running.submit(TokenRequest(0, [4, 5], 1, temperature=0.7, top_p=0.5, seed=3, logprobs=2))
    (out,) = drain(running)[0]
    logits = after([4, 5]).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    assert out.logprob == pytest.approx(expected[out.token])
    best = np.argsort(-logits)[:2]
    assert [token for token, _ in out.likeliest] == best.tolist()
    assert [value for _, value in out.likeliest] == pytest.approx(expected[best].tolist())
