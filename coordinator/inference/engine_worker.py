"""The process in which a language model lives: texts come in, pieces of answers go out.

W1  what one request does wrong is told to it and to no other
W2  between two steps everything that was told meanwhile is heeded, and a sign of life goes out; a
    process that says nothing while there is work hangs
"""

from __future__ import annotations

import os
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from coordinator.inference.engine import ChatMessage, Finished, Piece
from coordinator.inference.engine_text import TextModel, TextStream
from coordinator.inference.token_runtime import Emitted, TokenRequest, TokenRuntime
from shared.errors import LlmOsError, PromptRefused
from shared.logs import set_up_logs
from shared.models.adapter import Adapter
from shared.models.encoder import BaseModel, find_base_model
from shared.processes import Line

ADAPTERS_KEPT: Final = 64
"""In memory, those that were used last; of others the parent is asked for the bytes again."""

BEAT_S: Final = 1.0
"""How often an idle process tells how it is."""

Event = list[Any]


@dataclass(slots=True)
class _Answer:
    """What is known of a request under way."""

    text: TextStream
    prompt_tokens: int
    given: int = 0
    cached: int = 0


class EngineWorker:
    """One model, its texts, and the requests under way."""

    def __init__(self, text: TextModel, runtime: TokenRuntime) -> None:
        self._text = text
        self._runtime = runtime
        self._answers: dict[int, _Answer] = {}
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do until something is told."""
        return not self._answers

    def hear(self, message: Mapping[str, Any]) -> list[Event]:
        """Take a message; what it brought about at once (W1)."""
        number = int(message["number"])
        if message.get("cancel"):
            self._answers.pop(number, None)
            self._runtime.cancel(number)
            return []
        try:
            return self._ask(number, message)
        except LlmOsError as err:
            return [[number, "error", type(err).__name__, str(err)]]
        except Exception as err:  # noqa: BLE001  a fault of ours; the others' answers go on (W1)
            traceback.print_exc()
            self._runtime.cancel(number)
            return [[number, "error", type(err).__name__, str(err)]]

    def _ask(self, number: int, message: Mapping[str, Any]) -> list[Event]:
        adapter = None
        if (digest := message["adapter"]) is not None:
            adapter = self._adapter(digest, message.get("data"))
            if adapter is None:
                return [[number, "missing", digest]]
        options = message["options"]
        prompt = message["prompt"]
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
            prompt = [ChatMessage(**turn) for turn in prompt]
        tokens = self._text.tokens_of(prompt)
        room = self._runtime.context_tokens - len(tokens)
        if not tokens or room < 1:
            raise PromptRefused(
                f"the prompt has {len(tokens)} tokens; the model's maximum context length is "
                f"{self._runtime.context_tokens} tokens, the answer included"
            )
        self._runtime.submit(
            TokenRequest(
                number=number,
                tokens=tokens,
                max_tokens=min(options["max_tokens"], room),
                temperature=options["temperature"],
                top_p=options["top_p"],
                seed=options["seed"],
                logprobs=options["logprobs"],
                schema=options["schema"],
                adapter=adapter,
                share=options["share"],
            )
        )
        text = self._text.stream(
            stop=options["stop"],
            ends=self._runtime.ends,
            logprobs=options["logprobs"] is not None,
        )
        self._answers[number] = _Answer(text, len(tokens))
        return []

    def _adapter(self, digest: str, data: bytes | None) -> Adapter | None:
        if (known := self._adapters.get(digest)) is not None:
            self._adapters.move_to_end(digest)
            return known
        if data is None:
            return None
        self._adapters[digest] = adapter = Adapter.from_bytes(data)
        if len(self._adapters) > ADAPTERS_KEPT:
            self._adapters.popitem(last=False)
        return adapter

    def step(self) -> list[Event]:
        """Let the model take a step."""
        events: list[Event] = []
        for emitted in self._runtime.step():
            answer = self._answers.get(emitted.number)
            if answer is not None:  # else its stop string came earlier in this very step
                events += self._told(answer, emitted)
        return events

    def _told(self, answer: _Answer, emitted: Emitted) -> list[Event]:
        number, events = emitted.number, []
        answer.given += 1
        answer.cached += emitted.cached_tokens
        if (piece := answer.text.feed(emitted)) is not None:
            events.append(_as_event(number, piece))
        reason = emitted.finish
        if answer.text.stopped:
            self._runtime.cancel(number)
            reason = "stop"
        if reason is not None:
            if (rest := answer.text.finish()) is not None:
                events.append(_as_event(number, rest))
            ended = Finished(reason, answer.prompt_tokens, answer.given, answer.cached)
            events.append([number, "end", asdict(ended)])
            del self._answers[number]
        return events

    @property
    def load(self) -> dict[str, int]:
        """How busy the model is."""
        return asdict(self._runtime.load)


def _as_event(number: int, piece: Piece) -> Event:
    return [number, "piece", piece.text, [asdict(each) for each in piece.logprobs]]


def _onnx(base: BaseModel, settings: Mapping[str, Any]) -> TokenRuntime:
    from coordinator.inference.onnx_runtime import OnnxSettings, open_onnx_runtime

    return open_onnx_runtime(
        base,
        Path(settings["models"]),
        OnnxSettings(
            precision=settings["precision"],
            threads=settings["threads"],
            slots=settings["slots"],
            kv_bytes=settings["kv_bytes"],
            prefixes=settings["prefixes"],
        ),
    )


def _transformers(base: BaseModel, settings: Mapping[str, Any]) -> TokenRuntime:
    from coordinator.inference.transformers_runtime import open_transformers_runtime

    return open_transformers_runtime(
        base,
        device=settings["device"],
        precision=settings["precision"],
        threads=settings["threads"],
        slots=settings["slots"],
        kv_bytes=settings["kv_bytes"],
    )


OpenRuntime = Callable[[BaseModel, Mapping[str, Any]], TokenRuntime]

RUNTIMES: Final[Mapping[str, OpenRuntime]] = {"onnx": _onnx, "transformers": _transformers}
"""What can run a model, by the name that an engine's settings give it."""


def run(line: Line, text: TextModel, runtime: TokenRuntime) -> None:
    """Answer until the line is closed (W2)."""
    worker = EngineWorker(text, runtime)
    while True:
        events: list[Event] = []
        try:
            heard: Sequence[Any] = line.heard(wait_s=BEAT_S if worker.is_idle else 0.0)
        except EOFError:
            return
        for message in heard:
            events += worker.hear(message)
        if not worker.is_idle:
            events += worker.step()
        line.tell({"events": events, "load": worker.load})


def main(runtimes: Mapping[str, OpenRuntime] = RUNTIMES) -> None:
    """Load what the first message names, then answer."""
    line = Line()
    set_up_logs(as_json=not sys.stderr.isatty())
    # Read when torch is loaded. Threads that spin while they wait for each other take six times
    # as long as soon as another process wants the cores (measured on two).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    settings: Mapping[str, Any] = {}
    try:
        while not settings:
            for message in line.heard(wait_s=BEAT_S):
                settings = message
    except EOFError:
        return
    try:
        base = find_base_model(settings["model"])
        text = TextModel(base.folder)
        runtime = runtimes[settings["runtime"]](base, settings)
    except LlmOsError as err:
        line.tell({"failed": str(err)})
        return
    line.tell(
        {
            "ready": {
                "base": base.digest,
                "context_tokens": runtime.context_tokens,
                "lacks": sorted(runtime.lacks),
            },
            "load": asdict(runtime.load),
        }
    )
    run(line, text, runtime)


if __name__ == "__main__":
    main()
