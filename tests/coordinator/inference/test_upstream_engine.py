"""Nodes fail in every way there is, and requests that can be answered elsewhere are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from coordinator.inference.engine import (
    ChatMessage,
    EngineState,
    Finished,
    Generation,
    GenerationRequest,
    Piece,
    ServedAdapter,
    answered,
)
from coordinator.inference.upstream_engine import UpstreamEngine
from coordinator.inference.upstream_nodes import Patience
from coordinator.inference.upstream_wire import Node, parse_nodes
from shared.errors import (
    ChildDied,
    ConfigError,
    EngineBusy,
    EngineError,
    LlmOsError,
    PromptRefused,
    RunNotFound,
)
from tests.support.brokers import eventually
from tests.support.fake_nodes import (
    DONE,
    MODEL,
    Answer,
    Call,
    FakeNode,
    choice,
    counts,
    event,
    says,
    usage,
    whole_answer,
)

# A fake node that ends just when a check of it arrives may leave its own side of that socket to
# the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)

ASKED = GenerationRequest((ChatMessage("user", "Where is it?"),), max_tokens=8)
QUICK = Patience(check=0.1, longest_check=0.2, listing=10.0, first=30.0, silence=30.0)
LONG_S = 30.0


@contextmanager
def engine_over(
    nodes: Sequence[FakeNode], patience: Patience = QUICK, *, key: str = "", **options: Any
) -> Iterator[UpstreamEngine]:
    """An engine that knows all of its nodes."""
    engine = UpstreamEngine(
        parse_nodes(",".join(node.url for node in nodes), key), MODEL, patience=patience, **options
    )
    engine.start()
    try:
        assert eventually(
            lambda: all(each.offer or each.failures for each in engine.health.values()),
            within_s=LONG_S,
        )
        yield engine
    finally:
        engine.close()


@contextmanager
def fakes(*answers: Answer) -> Iterator[list[FakeNode]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FakeNode(answer)) for answer in answers]


def refuses(status: int, message: str = "no", **headers: str) -> Answer:
    async def answer(call: Call) -> None:
        body = {"error": {"message": message}}
        spelt = {name.replace("_", "-"): value for name, value in headers.items()}
        await call.answer(status, body, headers=spelt | {"Connection": "close"})

    return answer


def sends(*parts: bytes, abort: bool = False) -> Answer:
    """A stream of these bytes, and then the end of the connection."""

    async def answer(call: Call) -> None:
        await call.begin()
        for part in parts:
            await call.send(part)
            await asyncio.sleep(0)
        if abort:
            call.abort()

    return answer


async def aborts(call: Call) -> None:
    call.abort()


def hangs(node_of: list[FakeNode]) -> Answer:
    """No byte, for as long as the client waits; then the first node is told."""

    async def answer(call: Call) -> None:
        await call.gone()
        node_of[0].dropped.set()

    return answer


def test_an_answer_comes_in_pieces_with_the_nodes_counts() -> None:
    with fakes(says("Hello", " there")) as nodes, engine_over(nodes) as engine:
        assert engine.card.state is EngineState.READY
        assert engine.card.name == MODEL
        answer = answered(engine, ASKED)
        assert answer == Generation("Hello there", 5, 2, "stop")
        load = engine.load
        assert (load.slots, load.active, load.prompt_tokens, load.completion_tokens) == (
            64,
            0,
            5,
            2,
        )
        (call,) = nodes[0].calls
        assert (call.method, call.path) == ("POST", "/v1/chat/completions")
        assert call.body["messages"] == [{"role": "user", "content": "Where is it?"}]
        assert "authorization" not in call.headers


def test_texts_and_tokens_are_asked_for_at_their_own_place() -> None:
    told = event({"choices": [{"index": 0, "text": "ab", "finish_reason": "length"}]})
    with fakes(sends(told, event(usage(1, 2)), DONE)) as nodes, engine_over(nodes) as engine:
        for prompt in ("Once", (1, 2)):
            assert answered(engine, replace(ASKED, prompt=prompt)).text == "ab"
        assert [call.path for call in nodes[0].calls] == ["/v1/completions"] * 2
        assert [call.body["prompt"] for call in nodes[0].calls] == ["Once", [1, 2]]


def test_bytes_may_come_one_at_a_time() -> None:
    parts = [bytes([byte]) for byte in whole_answer(["für", " €"])]
    with fakes(sends(*parts)) as nodes, engine_over(nodes) as engine:
        assert answered(engine, ASKED).text == "für €"


def test_an_end_without_the_last_marker_is_an_end_if_all_was_told() -> None:
    body = whole_answer(["all"]).removesuffix(DONE)
    with fakes(sends(body)) as nodes, engine_over(nodes) as engine:
        assert answered(engine, ASKED).text == "all"


def test_requests_are_spread_over_the_nodes() -> None:
    async def ask(engine: UpstreamEngine, times: int) -> None:
        async def one() -> None:
            async with aclosing(engine.stream(ASKED)) as stream:
                async for _ in stream:
                    pass

        await asyncio.gather(*(one() for _ in range(times)))

    with fakes(counts(3, 0.05), counts(3, 0.05)) as nodes, engine_over(nodes) as engine:
        asyncio.run(ask(engine, 20))
        assert [len(node.calls) for node in nodes] == [10, 10]
        assert engine.load.active == 0


BAD_BEFORE: dict[str, Answer] = {
    "breaks the connection": aborts,
    "answers 500": refuses(500),
    "answers 502": refuses(502),
    "answers 404": refuses(404),
    "refuses the key": refuses(401),
    "is busy": refuses(503),
    "is too busy for us": refuses(429),
    "sends half a line": sends(b'data: {"choi'),
    "sends half a line and breaks": sends(b'data: {"choi', abort=True),
    "sends a line without end": sends(b"data: " + b"x" * 300_000),
    "sends wrong JSON": sends(b"data: {]\n\n"),
    "sends another JSON": sends(b'data: {"hello": 1}\n\n'),
    "sends an error": sends(event({"error": {"message": "out of memory"}})),
    "sends an empty stream": sends(b""),
    "sends only the end": sends(DONE),
    "sends no usage": sends(event(choice(finish="stop")), DONE),
}


@pytest.mark.parametrize("bad", BAD_BEFORE.values(), ids=BAD_BEFORE.keys())
def test_a_node_that_fails_before_the_first_token_costs_no_request(bad: Answer) -> None:
    with fakes(bad, says("fine")) as nodes, engine_over(nodes) as engine:
        for _ in range(3):
            assert answered(engine, ASKED).text == "fine"
        assert nodes[0].calls
        assert set(engine.outstanding.values()) == {0}


@pytest.mark.parametrize("bad", BAD_BEFORE.values(), ids=BAD_BEFORE.keys())
def test_where_there_is_no_other_node_the_error_names_the_one(bad: Answer) -> None:
    with fakes(bad) as nodes, engine_over(nodes) as engine:
        with pytest.raises((EngineError, ChildDied), match=nodes[0].name) as caught:
            answered(engine, ASKED)
        assert type(caught.value) in (EngineError, EngineBusy, ChildDied)


def test_a_node_whose_answer_is_no_stream_is_told_so() -> None:
    async def answer(call: Call) -> None:
        await call.answer(200, {"choices": []}, headers={"Content-Type": "application/json"})

    with (
        fakes(answer) as nodes,
        engine_over(nodes) as engine,
        pytest.raises(EngineError, match="no stream of events, but 'application/json'"),
    ):
        answered(engine, ASKED)


def test_nothing_is_asked_twice_after_the_first_token() -> None:
    for broken in (
        sends(event(choice("half")), b'data: {"cho'),
        sends(event(choice("half")), abort=True),
        sends(event(choice("half")), b"data: " + b"x" * 300_000),
        sends(event(choice("half")), b"data: {]\n\n"),
    ):
        with fakes(broken, broken) as nodes, engine_over(nodes) as engine:
            pieces: list[object] = []

            async def read(engine: UpstreamEngine = engine, into: list[object] = pieces) -> None:
                async with aclosing(engine.stream(ASKED)) as stream:
                    async for each in stream:
                        into.append(each)  # noqa: PERF401  what came before the error counts

            with pytest.raises((ChildDied, EngineError)):
                asyncio.run(read())
            assert pieces == [Piece("half")]
            assert sum(len(node.calls) for node in nodes) == 1


def test_a_node_that_hangs_before_its_first_byte_is_left_for_another() -> None:
    nodes: list[FakeNode] = []
    patience = replace(QUICK, first=3.0)
    with fakes(hangs(nodes), says("fine")) as both:
        nodes += both
        with engine_over(nodes, patience) as engine:
            assert answered(engine, ASKED).text == "fine"
            assert len(nodes[0].calls) == 1
            assert nodes[0].dropped.wait(LONG_S)


def test_comments_are_no_signs_of_life() -> None:
    async def answer(call: Call) -> None:
        await call.begin()
        while True:
            await call.send(b": still here\n\n")
            await asyncio.sleep(0.02)

    with (
        fakes(answer) as nodes,
        engine_over(nodes, replace(QUICK, first=0.3)) as engine,
        pytest.raises(ChildDied, match=r"nothing came for 0\.3 s"),
    ):
        answered(engine, ASKED)


def test_a_node_that_falls_silent_within_an_answer_ends_it() -> None:
    async def answer(call: Call) -> None:
        await call.begin()
        await call.send(event(choice("one")))
        await call.gone()

    with (
        fakes(answer) as nodes,
        engine_over(nodes, replace(QUICK, silence=0.3)) as engine,
        pytest.raises(ChildDied, match=r"nothing came for 0\.3 s"),
    ):
        answered(engine, ASKED)


def test_a_refused_prompt_is_refused_in_the_nodes_words_and_not_asked_again() -> None:
    bad = refuses(400, "at most 9 tokens")
    with fakes(bad, bad) as nodes, engine_over(nodes) as engine:
        with pytest.raises(PromptRefused, match=r"^at most 9 tokens$"):
            answered(engine, ASKED)
        assert sum(len(node.calls) for node in nodes) == 1


def test_when_all_are_busy_the_shortest_wait_is_told() -> None:
    with (
        fakes(refuses(429, Retry_After="9"), refuses(503, Retry_After="4")) as nodes,
        engine_over(nodes) as engine,
    ):
        with pytest.raises(EngineBusy) as caught:
            answered(engine, ASKED)
        assert vars(caught.value)["retry_after_s"] == 4.0
        assert all(len(node.calls) == 1 for node in nodes)


def test_each_node_is_shown_its_own_key_and_a_refusal_never_shows_it() -> None:
    bad = refuses(401, "Incorrect API key: first-key")
    with fakes(bad, says("fine")) as nodes, engine_over(nodes, key="first-key,other") as engine:
        assert answered(engine, ASKED).text == "fine"
        assert nodes[0].calls[0].headers["authorization"] == "Bearer first-key"
        assert nodes[1].calls[0].headers["authorization"] == "Bearer other"
    with fakes(bad) as nodes, engine_over(nodes, key="first-key") as engine:
        with pytest.raises(EngineError, match=f"{nodes[0].name} refuses the key") as caught:
            answered(engine, ASKED)
        assert "first-key" not in str(caught.value)


def test_nodes_that_refuse_the_key_when_asked_what_they_serve_are_named() -> None:
    with FakeNode(models_status=401) as node, engine_over([node], key="wrong-key") as engine:
        assert engine.card.state is EngineState.FAILED
        assert f"{node.name} refuses the key" in engine.card.reason
        with pytest.raises(EngineError, match="refuses the key") as caught:
            answered(engine, ASKED)
        assert type(caught.value) is EngineError
        assert not node.calls


def test_a_model_that_no_node_serves_is_said_with_what_they_serve() -> None:
    listed = {"data": [{"id": "another"}]}
    with FakeNode(models=listed) as node, engine_over([node]) as engine:
        assert "another" in engine.card.reason
        with pytest.raises(EngineError, match=f"does not serve {MODEL}, but another"):
            answered(engine, ASKED)


def test_only_nodes_that_serve_the_model_are_asked() -> None:
    loading = {"data": [{"id": MODEL, "state": "loading"}]}
    with (
        FakeNode(models=loading) as one,
        FakeNode(says("fine")) as two,
        engine_over([one, two]) as engine,
    ):
        for _ in range(3):
            assert answered(engine, ASKED).text == "fine"
        assert not one.calls
        one.models = {"data": [{"id": MODEL, "state": "ready"}]}
        assert eventually(
            lambda: answered(engine, ASKED).text == "fine" and bool(one.calls), within_s=LONG_S
        )


def test_a_node_goes_and_comes_back_by_itself() -> None:
    with (
        FakeNode(says("one")) as one,
        FakeNode(says("two")) as two,
        engine_over([one, two]) as engine,
    ):
        one.shut()
        # The first to meet the closed port is answered by the other; from then on it is out.
        for _ in range(4):
            assert answered(engine, ASKED).text == "two"
        assert eventually(lambda: engine.health[one.name].offer is None, within_s=LONG_S)
        assert engine.load.slots == 64
        two.shut()
        assert eventually(lambda: engine.card.state is EngineState.FAILED, within_s=LONG_S)
        with pytest.raises(EngineBusy, match=one.name):
            answered(engine, ASKED)
        one.open()
        assert eventually(lambda: engine.card.state is EngineState.READY, within_s=LONG_S)
        assert answered(engine, ASKED).text == "one"


def test_before_any_node_was_asked_callers_are_told_to_come_again() -> None:
    engine = UpstreamEngine([Node("http://127.0.0.1:1/v1")], MODEL)
    assert engine.card.state is EngineState.LOADING
    with pytest.raises(EngineBusy):
        answered(engine, ASKED)
    engine.close()


def test_what_the_nodes_say_of_the_model_is_on_the_card() -> None:
    one = {"id": MODEL, "state": "ready", "context_tokens": 512, "base": "ab", "stand_in": True}
    two = one | {"context_tokens": 256}
    with (
        FakeNode(models={"data": [one]}) as first,
        FakeNode(models={"data": [two]}) as second,
        engine_over([first, second]) as engine,
    ):
        card = engine.card
        assert (card.context_tokens, card.base, card.stand_in) == (256, "ab", True)
        second.models = {"data": [two | {"base": "cd"}]}
        assert eventually(lambda: engine.card.base is None, within_s=LONG_S)


def test_an_adapter_goes_by_its_runs_name() -> None:
    request = replace(ASKED, adapter=ServedAdapter("run-1", b""))
    with fakes(says("ours")) as nodes, engine_over(nodes) as engine:
        answered(engine, request)
        assert nodes[0].calls[0].body["model"] == f"{MODEL}:run-1"
    listed = {"data": [{"id": MODEL}, {"id": "run-1"}]}
    with (
        FakeNode(says("plain")) as without,
        FakeNode(says("plain"), models=listed) as node,
        engine_over([without, node], adapter_names="plain") as engine,
    ):
        answered(engine, request)
        assert [call.body["model"] for call in node.calls] == ["run-1"]
        with pytest.raises(RunNotFound, match="run-2"):
            answered(engine, replace(ASKED, adapter=ServedAdapter("run-2", b"")))
        assert not without.calls


def test_a_run_that_no_node_has_is_not_found() -> None:
    bad = refuses(404, "no run 'run-1'")
    with (
        fakes(bad, bad) as nodes,
        engine_over(nodes) as engine,
        pytest.raises(RunNotFound, match="no run 'run-1'"),
    ):
        answered(engine, replace(ASKED, adapter=ServedAdapter("run-1", b"")))


def endless(nodes: list[FakeNode]) -> Answer:
    """Words until the client has closed the connection; then the first node is told."""

    async def answer(call: Call) -> None:
        await call.begin()
        gone = asyncio.create_task(call.gone())
        try:
            while not gone.done():
                await call.send(event(choice(" word")))
                await asyncio.sleep(0.005)
        finally:
            nodes[0].dropped.set()

    return answer


def test_whoever_stops_reading_closes_the_connection_to_the_node() -> None:
    nodes: list[FakeNode] = []

    async def some(engine: UpstreamEngine) -> None:
        async with aclosing(engine.stream(ASKED)) as stream:
            async for _ in stream:
                assert engine.load.active == 1
                break

    with fakes(endless(nodes)) as both:
        nodes += both
        with engine_over(nodes) as engine:
            asyncio.run(some(engine))
            assert nodes[0].dropped.wait(LONG_S)
            assert eventually(lambda: engine.load.active == 0)


@pytest.mark.parametrize("before_first", [True, False])
def test_a_cancelled_task_closes_it_too(before_first: bool) -> None:
    nodes: list[FakeNode] = []
    begun = threading.Event()

    async def read(engine: UpstreamEngine) -> None:
        async with aclosing(engine.stream(ASKED)) as stream:
            async for _ in stream:
                begun.set()

    async def cancelled(engine: UpstreamEngine) -> None:
        task = asyncio.create_task(read(engine))
        there = (lambda: bool(nodes[0].calls)) if before_first else begun.is_set
        assert await asyncio.to_thread(eventually, there, within_s=LONG_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with fakes(hangs(nodes) if before_first else endless(nodes)) as both:
        nodes += both
        with engine_over(nodes) as engine:
            asyncio.run(cancelled(engine))
            assert nodes[0].dropped.wait(LONG_S)
            assert eventually(lambda: engine.load.active == 0)


def test_several_event_loops_may_ask_at_once() -> None:
    texts: list[str] = []

    async def many(engine: UpstreamEngine) -> None:
        async def one() -> None:
            words = ""
            async with aclosing(engine.stream(ASKED)) as stream:
                async for each in stream:
                    words += each.text if isinstance(each, Piece) else "."
            texts.append(words)

        await asyncio.gather(*(one() for _ in range(12)))

    with fakes(counts(6, 0.002), counts(6, 0.002)) as nodes, engine_over(nodes) as engine:
        threads = [threading.Thread(target=lambda: asyncio.run(many(engine))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == [" 0 1 2 3 4 5."] * 36
        assert set(engine.outstanding.values()) == {0}


def test_a_reader_that_is_far_behind_slows_the_node_down() -> None:
    words = 6000
    node_sent: list[int] = []

    async def answer(call: Call) -> None:
        await call.begin()
        for number in range(words):
            node_sent.append(number)
            await call.send(event(choice("x" * 4000)))
        await call.send(event(choice(finish="stop")) + event(usage(5, words)) + DONE)

    async def slowly(engine: UpstreamEngine) -> Finished:
        last: object = None
        async with aclosing(engine.stream(ASKED)) as stream:
            async for each in stream:
                last = each
                if len(node_sent) < words and not paused:
                    # As many as fit into buffers between are sent, and then no more.
                    before = -1
                    while before != len(node_sent):
                        before = len(node_sent)
                        await asyncio.sleep(0.3)
                    paused.append(before)
        assert isinstance(last, Finished)
        return last

    paused: list[int] = []
    with fakes(answer) as nodes, engine_over(nodes) as engine:
        assert asyncio.run(slowly(engine)).completion_tokens == words
        assert paused[0] < words


def test_closing_tells_whoever_waits_and_ends_the_thread() -> None:
    nodes: list[FakeNode] = []
    failed: list[LlmOsError] = []

    def ask(engine: UpstreamEngine) -> None:
        try:
            answered(engine, ASKED)
        except LlmOsError as err:
            failed.append(err)

    with fakes(hangs(nodes)) as both:
        nodes += both
        with engine_over(nodes) as engine:
            waiting = threading.Thread(target=ask, args=(engine,))
            waiting.start()
            assert eventually(lambda: bool(nodes[0].calls), within_s=LONG_S)
            engine.close()
            waiting.join(LONG_S)
            assert [str(err) for err in failed] == ["the coordinator is shutting down"]
            with pytest.raises(EngineError, match="shutting down"):
                answered(engine, ASKED)
            engine.close()


def test_nothing_happens_before_the_first_piece_is_asked_for() -> None:
    async def unread(engine: UpstreamEngine) -> None:
        await engine.stream(ASKED).aclose()

    with fakes(says("x")) as nodes, engine_over(nodes) as engine:
        asyncio.run(unread(engine))
        assert answered(engine, ASKED).text == "x"
        assert len(nodes[0].calls) == 1


def test_a_host_that_cannot_be_is_an_error_at_once() -> None:
    with pytest.raises(ConfigError, match="upstream"):
        UpstreamEngine([Node("http://a..b\u0130:1/v1")], MODEL)
