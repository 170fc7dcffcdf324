"""Every question gets one reply, with an answer or with the reason why there is none.

Coordinator and agents are the real ones on virtual time; only the language model is replaced.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from coordinator.inference.engine import (
    ChatMessage,
    EngineLoad,
    EngineState,
    Finished,
    GenerationRequest,
    ModelCard,
    Piece,
    Stream,
)
from coordinator.inference.questions import CHARACTERS_LIMIT, WAITING_LIMIT, WAITING_OF_ONE
from edge_agent.coordinator_link import CoordinatorLink
from edge_agent.inference.answering import CoordinatorAnswer
from shared.actors import ActorLoop
from shared.errors import ChildDied, CoordinatorUnavailable, EngineBusy, LlmOsError
from shared.wire import topics
from shared.wire.envelope import NO_ROUND, NO_RUN, open_sealed
from shared.wire.messages import Question, Reply
from tests.support.coordination import World
from tests.support.releasing import Device

Answer = Future[CoordinatorAnswer]


class Echo:
    """A language model that repeats; it fails where it is told to, and counts who is inside."""

    def __init__(self, *failures: LlmOsError) -> None:
        self.failures = list(failures)
        self.requests: list[GenerationRequest] = []
        self.most_at_once = 0
        self._inside = 0
        self._lock = threading.Lock()

    @property
    def card(self) -> ModelCard:
        return ModelCard("echo", stand_in=True, state=EngineState.READY)

    @property
    def load(self) -> EngineLoad:
        return EngineLoad()

    def start(self) -> None:
        """There is nothing to load."""

    def close(self) -> None:
        """There is nothing to end."""

    async def stream(self, request: GenerationRequest) -> Stream:
        with self._lock:
            self._inside += 1
            self.most_at_once = max(self.most_at_once, self._inside)
        try:
            self.requests.append(request)
            if self.failures:
                raise self.failures.pop(0)
            last = request.prompt[-1]
            assert isinstance(last, ChatMessage)
            yield Piece(f"you said: {last.content}")
            yield Finished("stop", 1, 1)
        finally:
            with self._lock:
                self._inside -= 1


@pytest.fixture
def engine(world: World) -> Echo:
    world.engine = engine = Echo()
    world.work_s = 2.0
    return engine


def started(world: World, *names: str) -> list[Device]:
    world.start()
    devices = [Device(world, name) for name in names]
    world.run_for(1)
    return devices


def ask(device: Device, question: str, text: str) -> Answer:
    answer: Answer = Future()
    device.agent.ask(question, text, answer)
    return answer


def refusal(answer: Answer) -> str:
    error = answer.exception(timeout=0)
    assert isinstance(error, CoordinatorUnavailable)
    return str(error)


def test_a_question_is_answered_with_the_model_s_name(world: World, engine: Echo) -> None:
    (device,) = started(world, "attic")
    answer = ask(device, "q1", "余额多少?")
    world.run(answer.done, for_s=10)
    assert answer.result(0) == CoordinatorAnswer("you said: 余额多少?", "echo", True)
    (request,) = engine.requests
    assert request.temperature == 0.0
    assert request.adapter is None


def test_questions_are_answered_one_at_a_time_in_the_order_they_came(
    world: World, engine: Echo
) -> None:
    first, second = started(world, "attic", "cellar")
    order: list[str] = []
    answers = []
    for number, device in enumerate((first, second, first, second)):
        answer = ask(device, f"q{number}", f"text {number}")
        answer.add_done_callback(lambda done: order.append(done.result().text[-1]))
        answers.append(answer)
    began = world.time.now()
    assert world.run(lambda: len(order) == 4, for_s=60)
    assert order == ["0", "1", "2", "3"]
    assert engine.most_at_once == 1
    assert world.time.now() - began >= 4 * world.work_s - 0.1
    assert [answer.result(0).text for answer in answers] == [
        f"you said: text {number}" for number in range(4)
    ]


def test_one_device_cannot_fill_the_line(world: World, engine: Echo) -> None:
    greedy, other = started(world, "attic", "cellar")
    answers = [ask(greedy, f"q{n}", "text") for n in range(WAITING_OF_ONE + 2)]
    world.run_for(0.5)
    # One is being answered, as many as may wait do, and one is too many.
    assert [answer.done() for answer in answers] == [False] * (WAITING_OF_ONE + 1) + [True]
    assert "too many" in refusal(answers[-1])
    another = ask(other, "q", "text")
    world.run(lambda: all(a.done() for a in (*answers, another)), for_s=100)
    assert [a.exception(0) is None for a in (*answers, another)].count(False) == 1
    again = ask(greedy, "again", "text")
    world.run(again.done, for_s=10)
    assert again.result(0).text == "you said: text"


def test_the_line_of_all_devices_has_an_end(world: World, engine: Echo) -> None:
    world.work_s = 20.0
    devices = WAITING_LIMIT // WAITING_OF_ONE
    names = [f"device-{number}" for number in range(devices + 1)]
    *asking, late = started(world, *names)
    held = ask(late, "q", "text")
    world.run_for(0.1)
    answers = [ask(device, f"q{n}", "text") for device in asking for n in range(WAITING_OF_ONE)]
    world.run_for(0.1)
    assert not any(answer.done() for answer in answers)
    one_more = ask(late, "one more", "text")
    world.run_for(0.1)
    assert "too many" in refusal(one_more)
    assert world.run(lambda: all(a.done() for a in (held, *answers)), for_s=2000)
    assert all(answer.exception(0) is None for answer in (held, *answers))


@pytest.mark.parametrize(
    ("error", "code"),
    [(EngineBusy("still loading"), "engine.busy"), (ChildDied("out of memory"), "child_died")],
)
def test_what_the_model_cannot_do_is_a_refusal_and_the_next_is_answered(
    world: World, engine: Echo, error: LlmOsError, code: str
) -> None:
    (device,) = started(world, "attic")
    replies = overheard(world, device)
    engine.failures = [error]
    first, second = ask(device, "q1", "text"), ask(device, "q2", "text")
    world.run(second.done, for_s=20)
    assert str(error) in refusal(first)
    assert second.result(0).text == "you said: text"
    world.run_for(0.1)
    assert [reply.code for reply in replies] == [code, ""]
    assert (replies[0].text, replies[0].model) == ("", "")


def test_without_a_model_every_question_is_refused_with_what_to_do(world: World) -> None:
    (device,) = started(world, "attic")
    replies = overheard(world, device)
    answer = ask(device, "q1", "text")
    world.run(answer.done, for_s=10)
    assert "--model" in refusal(answer)
    world.run_for(0.1)
    assert [reply.code for reply in replies] == ["coordinator_unavailable"]


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("x", True),
        ("x" * CHARACTERS_LIMIT, True),
        ("", False),
        ("x" * (CHARACTERS_LIMIT + 1), False),
    ],
)
def test_a_question_has_a_length_in_bounds(
    world: World, engine: Echo, text: str, fine: bool
) -> None:
    (device,) = started(world, "attic")
    answer = ask(device, "q1", text)
    world.run(answer.done, for_s=20)
    assert (answer.exception(0) is None) is fine
    assert len(engine.requests) == fine


def test_an_identifier_that_is_too_long_is_refused_and_not_given_back_whole(
    world: World, engine: Echo
) -> None:
    (device,) = started(world, "attic")
    replies = overheard(world, device)
    ask(device, "q" * 65, "text")
    world.run(lambda: bool(replies), for_s=10)
    assert replies[0].question == "q" * 64
    assert engine.requests == []


def test_a_reply_that_comes_too_late_or_to_nothing_is_ignored(world: World, engine: Echo) -> None:
    (device,) = started(world, "attic")
    answer = ask(device, "q1", "text")
    device.agent.forget_question("q1")
    device.agent.forget_question("never asked")
    world.coordinator.fleet.send(
        device.name, Reply("unknown", "text", "echo", 0, "", ""), run=NO_RUN, round_=NO_ROUND
    )
    world.run_for(10)
    assert not answer.done()
    assert device.failures == []
    second = ask(device, "q2", "text")
    world.run(second.done, for_s=10)
    assert second.result(0).text == "you said: text"


def test_a_second_reply_to_the_same_question_changes_nothing(world: World, engine: Echo) -> None:
    (device,) = started(world, "attic")
    answer = ask(device, "q1", "text")
    world.run(answer.done, for_s=10)
    again = Reply("q1", "another", "echo", 0, "", "")
    world.coordinator.fleet.send(device.name, again, run=NO_RUN, round_=NO_ROUND)
    world.run_for(1)
    assert answer.result(0).text == "you said: text"
    assert device.failures == []


def overheard(world: World, device: Device) -> list[Reply]:
    """Every reply to a device, as it arrives on the device's own branch."""
    replies: list[Reply] = []

    def receive(_topic: str, payload: bytes) -> None:
        message = open_sealed(payload, expected=world.identity.public).message
        if isinstance(message, Reply):
            replies.append(message)

    transport = world.network.attach(f"branch of {device.name}")
    transport.open(receive, (topics.down(device.name),))
    return replies


def test_a_reply_travels_on_the_branch_of_the_device_that_asked(world: World, engine: Echo) -> None:
    first, second = started(world, "attic", "cellar")
    own, others = overheard(world, first), overheard(world, second)
    # Both ask under the same identifier: each hears its own answer and no other.
    answers = ask(first, "q", "mine"), ask(second, "q", "yours")
    world.run(lambda: all(answer.done() for answer in answers), for_s=20)
    assert [answer.result(0).text for answer in answers] == ["you said: mine", "you said: yours"]
    world.run_for(0.1)
    assert [reply.text for reply in own] == ["you said: mine"]
    assert [reply.text for reply in others] == ["you said: yours"]


def test_nobody_asks_who_did_not_join(world: World, engine: Echo) -> None:
    world.start()
    stranger = world.add_device("stranger", joins=False)
    stranger.send(Question("q", "text"))
    world.run_for(10)
    assert engine.requests == []


# From the threads of the local API


class Loop(ActorLoop):
    """Keeps what is posted, to be run when a test says so."""

    def __init__(self) -> None:
        super().__init__(workers=1)
        self.posted: list[Callable[[], None]] = []

    def post(self, action: Callable[[], None]) -> None:
        self.posted.append(action)


def test_a_thread_waits_so_long_and_no_longer_and_then_forgets(world: World, engine: Echo) -> None:
    (device,) = started(world, "attic")
    loop = Loop()
    link = CoordinatorLink(device.agent, loop)
    with pytest.raises(TimeoutError):
        link("text", 0.01)
    asked, forgotten = loop.posted
    asked()
    assert len(device.agent._questions) == 1
    forgotten()
    assert device.agent._questions == {}
    world.run_for(10)
    assert device.failures == []


def test_a_thread_gets_its_answer_or_the_refusal(world: World, engine: Echo) -> None:
    (device,) = started(world, "attic")

    class AtOnce(Loop):
        def post(self, action: Callable[[], None]) -> None:
            action()
            world.run_for(10)

    link = CoordinatorLink(device.agent, AtOnce())
    assert link("text", 1.0) == CoordinatorAnswer("you said: text", "echo", True)
    engine.failures = [EngineBusy("still loading")]
    with pytest.raises(CoordinatorUnavailable, match="still loading"):
        link("text", 1.0)
    assert device.agent._questions == {}
