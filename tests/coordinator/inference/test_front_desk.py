"""The desk is fair in time, bounded in room, and gives back what callers let go of."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing

import pytest

from coordinator.inference.answer_cache import AnswerCache, MemoryStore
from coordinator.inference.engine import (
    ChatMessage,
    EngineState,
    Finished,
    Generation,
    GenerationRequest,
    Piece,
    collect,
)
from coordinator.inference.front_desk import Caller, FrontDesk, Served, estimated_prompt_tokens
from coordinator.inference.waiting_line import DeskLimits, Place, WaitingLine
from shared.errors import ChildDied, EngineBusy, ModelError, PromptRefused, QuotaExceeded
from tests.support.scripted_engines import ScriptedEngine
from tests.support.virtual_loops import VirtualLoop, run_virtually

MODEL = "scripted"
GREEDY, POLITE = Caller("greedy"), Caller("polite")


def request(tokens: int, prompt: str = "x" * 40, temperature: float = 1.0) -> GenerationRequest:
    return GenerationRequest(prompt=prompt, max_tokens=tokens, temperature=temperature)


class Counts:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.all: list[Served] = []
        self.hits: list[bool] = []

    def served(self, what: Served) -> None:
        self.all.append(what)

    def looked_up(self, model: str, *, hit: bool) -> None:
        self.hits.append(hit)

    @property
    def outcomes(self) -> list[str]:
        return [what.outcome for what in self.all]


class Virtual:
    """A desk before a scripted engine, on virtual time."""

    def __init__(self, engine: ScriptedEngine, limits: DeskLimits | None = None) -> None:
        self.loop = VirtualLoop()
        self.engine = engine
        self.counts = Counts()
        self.desk = FrontDesk({MODEL: engine}, limits=limits, meter=self.counts, now=self.loop.time)

    async def ask(self, caller: Caller, what: GenerationRequest) -> Generation:
        return await collect(self.desk.stream(caller, MODEL, what))


def per_token(active: int) -> float:
    """A batch costs more than one, as on a processor: 16 together take 2.4 times one's step."""
    return 0.040 * (1 + 0.1 * (active - 1))


def p99(latencies: Sequence[float]) -> float:
    ordered = sorted(latencies)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def polite_latencies(
    slots: int, *, greedy_tokens: Callable[[random.Random], int] | None, cap: int = 0
) -> list[float]:
    """Seconds that a caller waits whole, who asks for 8 to 16 tokens now and then."""
    virtual = Virtual(ScriptedEngine(slots=slots, token_s=per_token))
    chance = random.Random(7)
    latencies: list[float] = []

    async def greedy_one() -> None:
        assert greedy_tokens is not None
        while True:
            tokens = greedy_tokens(chance)
            try:
                await virtual.ask(GREEDY, request(cap or tokens, prompt=str(tokens)))
            except EngineBusy as err:
                await asyncio.sleep(err.retry_after_s or 0)

    async def story() -> None:
        # Known to the desk before the flood, as somebody who asks regularly is.
        await virtual.ask(POLITE, request(8))
        flood = []
        if greedy_tokens is not None:
            flood = [asyncio.create_task(greedy_one()) for _ in range(100)]
        for _ in range(120):
            await asyncio.sleep(chance.uniform(0.2, 1.0))
            if flood:
                assert virtual.engine.active >= (slots + 1) // 2, "the flood goes on"
            began = virtual.loop.time()
            await virtual.ask(POLITE, request(chance.randint(8, 16)))
            latencies.append(virtual.loop.time() - began)
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
        assert virtual.desk.serving(MODEL) == virtual.desk.waiting(MODEL) == 0

    run_virtually(story(), virtual.loop)
    return latencies


@pytest.mark.parametrize(
    ("slots", "tokens", "cap"),
    [
        (16, 12, 0),  # a hundred requests of the usual length at once
        (16, 250, 0),  # twenty times as long as the polite caller's
        (16, 12, 4096),  # which may be long, and are not: estimates are corrected
        (4, 250, 0),
        (2, 250, 0),
    ],
)
def test_a_greedy_caller_cannot_raise_another_s_p99_more_than_twofold(
    slots: int, tokens: int, cap: int
) -> None:
    alone = p99(polite_latencies(slots, greedy_tokens=None))
    beside = p99(polite_latencies(slots, greedy_tokens=lambda _: tokens, cap=cap))
    assert beside <= 2 * alone, (alone, beside)


def test_with_a_single_slot_that_holds_for_answers_of_the_same_length() -> None:
    alone = p99(polite_latencies(1, greedy_tokens=None))
    beside = p99(polite_latencies(1, greedy_tokens=lambda chance: chance.randint(8, 15)))
    assert beside <= 2 * alone, (alone, beside)


def test_the_measure_sees_what_a_first_come_first_served_line_does() -> None:
    """The control: under the greedy caller's name the polite one waits behind the flood."""
    alone = p99(polite_latencies(4, greedy_tokens=None))
    virtual = Virtual(ScriptedEngine(slots=4, token_s=per_token))

    async def story() -> float:
        flood = [asyncio.create_task(virtual.ask(GREEDY, request(12))) for _ in range(60)]
        await asyncio.sleep(0.01)
        began = virtual.loop.time()
        await virtual.ask(GREEDY, request(12))
        took_s = virtual.loop.time() - began
        await asyncio.gather(*flood)
        return took_s

    assert run_virtually(story(), virtual.loop) > 5 * alone


def test_the_engine_is_never_given_more_than_it_has_slots_and_new_slots_are_used() -> None:
    virtual = Virtual(ScriptedEngine(slots=2, token_s=lambda _: 1.0))

    async def story() -> None:
        asked = [asyncio.create_task(virtual.ask(GREEDY, request(10))) for _ in range(8)]
        await asyncio.sleep(5)
        assert (virtual.engine.active, virtual.desk.waiting(MODEL)) == (2, 6)
        virtual.engine.slots = 5
        await asyncio.sleep(1)
        assert (virtual.engine.active, virtual.desk.waiting(MODEL)) == (5, 3)
        await asyncio.gather(*asked)

    run_virtually(story(), virtual.loop)
    assert virtual.engine.most_active == 5
    assert virtual.counts.outcomes == ["length"] * 8


def test_too_many_that_wait_are_refused_at_once_and_told_when_to_return() -> None:
    limits = DeskLimits(waiting=6, waiting_of_one=4, waiting_bytes=10_000)
    virtual = Virtual(ScriptedEngine(slots=1, token_s=lambda _: 0.1), limits)

    async def story() -> None:
        asked = [asyncio.create_task(virtual.ask(GREEDY, request(10))) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(EngineBusy, match="4 of your requests wait") as own:
            await virtual.ask(GREEDY, request(1))
        assert own.value.retry_after_s is not None
        asked += [asyncio.create_task(virtual.ask(POLITE, request(10))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(EngineBusy, match="6 requests wait") as all_of_them:
            await virtual.ask(Caller("third"), request(1))
        assert all_of_them.value.retry_after_s is not None
        await asyncio.gather(*asked)
        # With a pace to go by: ten tokens take a second, so four that wait take four.
        asked = [asyncio.create_task(virtual.ask(GREEDY, request(10))) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(EngineBusy) as paced:
            await virtual.ask(GREEDY, request(1))
        assert paced.value.retry_after_s == pytest.approx(4, rel=0.5)
        with pytest.raises(EngineBusy, match="requests wait"):
            await virtual.ask(POLITE, request(1, prompt="x" * 10_001))
        await asyncio.gather(*asked)

    run_virtually(story(), virtual.loop)
    assert virtual.counts.outcomes.count("busy") == 4


def test_who_has_waited_too_long_is_sent_away_and_leaves_no_trace() -> None:
    virtual = Virtual(ScriptedEngine(slots=1, token_s=lambda _: 1.0), DeskLimits(timeout_s=20))

    async def story() -> None:
        first = asyncio.create_task(virtual.ask(GREEDY, request(30)))
        await asyncio.sleep(0)
        began = virtual.loop.time()
        with pytest.raises(EngineBusy, match="within 20 s") as late:
            await virtual.ask(Caller("polite", tokens_per_minute=1000), request(30))
        assert late.value.retry_after_s is not None
        assert virtual.loop.time() - began == pytest.approx(20)
        assert virtual.desk.waiting(MODEL) == 0
        await first

    run_virtually(story(), virtual.loop)
    assert virtual.counts.outcomes == ["timeout", "length"]
    assert len(virtual.engine.served) == 1


def test_a_stream_that_is_closed_while_it_waits_leaves_the_line_at_once() -> None:
    virtual = Virtual(ScriptedEngine(slots=1, token_s=lambda _: 1.0))

    async def story() -> None:
        first = asyncio.create_task(virtual.ask(GREEDY, request(30)))
        await asyncio.sleep(0)
        waits = asyncio.create_task(virtual.ask(POLITE, request(30)))
        await asyncio.sleep(2)
        assert virtual.desk.waiting(MODEL) == 1
        waits.cancel()
        await asyncio.wait({waits})
        assert virtual.desk.waiting(MODEL) == 0
        await first

    run_virtually(story(), virtual.loop)
    assert virtual.counts.outcomes == ["cancelled", "length"]
    assert len(virtual.engine.served) == 1


def test_a_stream_that_is_closed_midway_ends_the_engine_s_work_and_the_next_is_served() -> None:
    virtual = Virtual(ScriptedEngine(slots=1, token_s=lambda _: 1.0))

    async def story() -> None:
        async with aclosing(virtual.desk.stream(GREEDY, MODEL, request(100))) as stream:
            assert await anext(stream) == Piece("0 ")
            waits = asyncio.create_task(virtual.ask(POLITE, request(2)))
            await asyncio.sleep(0.1)
        assert virtual.engine.closed_early == 1
        began = virtual.loop.time()
        await waits
        assert virtual.loop.time() - began == pytest.approx(2)

    run_virtually(story(), virtual.loop)


def test_a_reader_that_is_slow_holds_no_slot() -> None:
    virtual = Virtual(ScriptedEngine(slots=1, token_s=lambda _: 0.1))

    async def story() -> None:
        async with aclosing(virtual.desk.stream(GREEDY, MODEL, request(10))) as slow:
            await anext(slow)
            await asyncio.sleep(1)
            assert virtual.desk.serving(MODEL) == 0
            await virtual.ask(POLITE, request(1))
            rest = [event async for event in slow]
        assert len(rest) == 10
        assert isinstance(rest[-1], Finished)

    run_virtually(story(), virtual.loop)


def test_a_quota_is_reserved_by_estimate_and_settled_by_use() -> None:
    virtual = Virtual(ScriptedEngine(slots=4, token_s=lambda _: 0.0, prompt_tokens=10))
    caller = Caller("metered", tokens_per_minute=100)

    async def story() -> None:
        # 10 + 80 tokens may be needed and 10 + 20 are, so 70 are left.
        await virtual.ask(caller, request(80, prompt="20".rjust(40, "0")))
        with pytest.raises(QuotaExceeded, match="100 a minute") as refused:
            await virtual.ask(caller, request(80))
        assert refused.value.retry_after_s == pytest.approx(20 * 60 / 100)
        await asyncio.sleep(refused.value.retry_after_s or 0)
        await virtual.ask(caller, request(80))
        await virtual.ask(POLITE, request(80))

    run_virtually(story(), virtual.loop)
    assert virtual.counts.outcomes == ["length", "quota", "length", "length"]


def test_hanging_up_is_not_free_and_an_engine_s_failure_is() -> None:
    virtual = Virtual(ScriptedEngine(slots=1, token_s=lambda _: 0.0))
    caller = Caller("metered", tokens_per_minute=100)

    async def story() -> None:
        virtual.engine.failure = ChildDied("out of memory")
        for _ in range(5):
            with pytest.raises(ChildDied):
                await virtual.ask(caller, request(60))
        virtual.engine.failure = None
        async with aclosing(virtual.desk.stream(caller, MODEL, request(60))) as stream:
            for _ in range(30):
                await anext(stream)
        with pytest.raises(QuotaExceeded):  # 10 + 30 are gone, 10 + 60 are wanted
            await virtual.ask(caller, request(60))

    run_virtually(story(), virtual.loop)
    assert virtual.counts.outcomes == ["failed"] * 5 + ["cancelled", "quota"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (EngineBusy("loading"), "busy"),
        (PromptRefused("too long"), "refused"),
        (ModelError("another base"), "refused"),
        (ChildDied("gone"), "failed"),
    ],
)
def test_an_engine_s_refusal_reaches_the_caller_and_frees_the_slot(
    error: Exception, outcome: str
) -> None:
    virtual = Virtual(ScriptedEngine(slots=1))
    virtual.engine.failure = error  # type: ignore[assignment]

    async def story() -> None:
        with pytest.raises(type(error)) as raised:
            await virtual.ask(GREEDY, request(1))
        assert raised.value is error
        virtual.engine.failure = None
        await virtual.ask(GREEDY, request(1))

    run_virtually(story(), virtual.loop)
    assert virtual.counts.outcomes == [outcome, "length"]


def test_who_comes_while_the_model_is_loaded_is_told_when_to_return() -> None:
    virtual = Virtual(ScriptedEngine(slots=1))
    virtual.engine.state = EngineState.LOADING
    virtual.engine.failure = EngineBusy("loading")
    with pytest.raises(EngineBusy) as busy:
        run_virtually(virtual.ask(GREEDY, request(1)), virtual.loop)
    assert busy.value.retry_after_s == 5


def test_an_unknown_model_is_a_key_error_at_once() -> None:
    with pytest.raises(KeyError):
        FrontDesk({}).stream(GREEDY, "nothing", request(1))


def test_what_is_computed_is_shared_as_the_caller_wants_and_never_between_two_that_do_not() -> None:
    engine = ScriptedEngine()
    desk = FrontDesk({MODEL: engine})
    callers = [
        Caller("a"),
        Caller("b"),
        Caller("public"),
        Caller("c", public_cache=True),
        Caller("d", public_cache=True),
    ]
    for caller in callers:
        asyncio.run(collect(desk.stream(caller, MODEL, request(1))))
    shares = [served.share for served in engine.served]
    assert all(shares)
    assert len(set(shares[:4])) == 4
    assert shares[3] == shares[4]


def test_a_deterministic_answer_is_given_again_without_asking_and_costs_no_quota() -> None:
    engine = ScriptedEngine(slots=1)
    counts = Counts()
    desk = FrontDesk({MODEL: engine}, cache=AnswerCache(MemoryStore()), meter=counts)
    caller = Caller("metered", tokens_per_minute=20)

    async def events(caller: Caller, what: GenerationRequest) -> list[Piece | Finished]:
        return [event async for event in desk.stream(caller, MODEL, what)]

    exact = request(5, temperature=0.0)
    first = asyncio.run(events(caller, exact))
    for _ in range(10):
        again = asyncio.run(events(caller, exact))
        assert again[:-1] == first[:-1]
        assert again[-1] == Finished("length", 10, 5, cached_tokens=10)
    assert len(engine.served) == 1
    assert counts.outcomes == ["length"] + ["cached"] * 10
    assert counts.hits == [False] + [True] * 10
    asyncio.run(events(POLITE, exact))
    assert len(engine.served) == 2, "another caller's answers are its own"
    asyncio.run(events(POLITE, request(5, temperature=0.5)))
    asyncio.run(events(POLITE, request(5, temperature=0.5)))
    assert len(engine.served) == 4, "what is drawn by chance is drawn again"


def test_threads_with_event_loops_of_their_own_share_the_slots() -> None:
    engine = ScriptedEngine(slots=3, token_s=lambda _: 0.001)
    desk = FrontDesk({MODEL: engine})
    failures: list[BaseException] = []
    entered: list[int] = []

    def ask(number: int) -> None:
        async def many() -> None:
            caller = Caller(f"caller {number % 4}")
            for _ in range(5):
                await collect(desk.stream(caller, MODEL, request(3)))
                entered.append(desk.serving(MODEL))

        try:
            asyncio.run(many())
        except BaseException as err:  # noqa: BLE001  of another thread
            failures.append(err)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(engine.served) == 60
    assert max(entered) <= 3
    assert desk.serving(MODEL) == desk.waiting(MODEL) == 0


def test_a_loop_that_was_closed_over_a_waiting_request_does_not_hold_a_slot() -> None:
    line = WaitingLine(MODEL, ScriptedEngine(slots=1), DeskLimits(), time.monotonic)

    async def enter() -> Place:
        return line.enter("a", priority=0, cost=1, size=1)

    async def enter_and_be_let_in() -> Place:
        place = await enter()
        await line.let_in(place)
        return place

    first = asyncio.run(enter_and_be_let_in())
    asyncio.run(enter())  # nobody is left who could be woken
    assert (line.serving, line.waiting) == (1, 1)
    line.leave(first, cost=1)
    assert (line.serving, line.waiting) == (0, 0)


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("x" * 400, 100),
        ((ChatMessage("user", "四个汉字"), ChatMessage("assistant", "x" * 4)), 4),
        ((1, 2, 3), 3),
        ("", 1),
    ],
)
def test_a_prompt_s_tokens_are_guessed(
    prompt: str | tuple[ChatMessage, ...] | tuple[int, ...], tokens: int
) -> None:
    assert estimated_prompt_tokens(GenerationRequest(prompt=prompt, max_tokens=1)) == tokens
