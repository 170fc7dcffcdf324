"""What a language model is to the rest of the coordinator. No framework in here.

G1  a stream is pieces of text and then exactly one :class:`Finished`, or an error of ours
G2  closing a stream cancels the request; its slot is free again within a second
G3  a request that is alone and one among others get the same tokens (greedy, float32)
G4  what was computed for one adapter, or under one ``share``, is never used under another
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from shared.types import Digest

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter that one request is answered with."""

    name: str
    """Whose it is, for messages: a run's name."""
    data: bytes
    """As :meth:`shared.models.adapter.Adapter.to_bytes` writes it."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One question to the model.

    Attributes:
        prompt: A conversation, which the model's chat template turns into text; a text that is
            continued as it stands; or its tokens.
        max_tokens: At most so many tokens are generated, fewer where the context ends.
        temperature: 0 takes the likeliest token each time; otherwise the logits are divided
            by it before one is drawn.
        top_p: Drawn is from the fewest tokens whose probabilities reach this sum, in (0, 1].
        seed: Of the draws. The same request gives the same text on the same machine.
        stop: The text ends before the first of these.
        logprobs: ``None``: none. Otherwise pieces carry the log probability of each token, and
            of so many of the likeliest in its place; 0 to 20.
        schema: A JSON schema as JSON text, which the answer satisfies; ``None`` for free text.
        adapter: Answered with it in place; ``None`` for the base model alone.
        share: What was computed for this prompt may be used again by requests with the same
            non-empty word here (G4). Empty: by nobody.
    """

    prompt: tuple[ChatMessage, ...] | str | tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    schema: str | None = None
    adapter: ServedAdapter | None = None
    share: str = ""


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could stand in a place, and how likely the model found it."""

    text: str
    """What it decodes to; half a character becomes the replacement character."""
    data: bytes
    """Its bytes, from which halves can be put together."""
    logprob: float
    """Natural logarithm of its probability at temperature 1."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that was chosen, beside the likeliest in its place, likeliest first."""

    chosen: Alternative
    likeliest: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the answer: whole characters, behind which no stop string may still begin."""

    text: str
    """May be empty while log probabilities come in."""
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """How an answer ended."""

    finish_reason: FinishReason
    """``stop``: the model ended its turn or came to a stop string; ``length``: it was cut."""
    prompt_tokens: int
    completion_tokens: int
    """Tokens that were generated, the one that ended the turn included."""
    cached_tokens: int = 0
    """Of the prompt's, those that were not computed again."""


Stream = AsyncGenerator[Piece | Finished, None]


@dataclass(frozen=True, slots=True)
class Generation:
    """What the model answered, whole."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


class EngineState(StrEnum):
    """Whether questions are answered."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is served.

    Attributes:
        name: As requests call it.
        stand_in: A model made for demonstrations out of shipped texts; answers carry this label.
        state: Whether it answers.
        reason: Why it failed; empty otherwise.
        base: SHA-256 of its weights, which adapters name; ``None`` until it is loaded.
        context_tokens: Prompt and answer together; ``None`` until it is loaded.
        lacks: Fields of :class:`GenerationRequest` that this engine cannot serve; a request
            that uses one is refused by that name.
    """

    name: str
    stand_in: bool
    state: EngineState
    reason: str = ""
    base: Digest | None = None
    context_tokens: int | None = None
    lacks: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy an engine is, now and since it was started.

    Attributes:
        slots: Requests that can be worked on at the same moment.
        active: Requests that are.
        waiting: Requests that were accepted and wait for a slot or for room.
        kv_tokens: Tokens, of prompts and answers, whose keys and values can be kept; 0: unknown.
        kv_tokens_used: Those that are spoken for.
        prompt_tokens: Read since the start.
        cached_tokens: Of these, found computed already.
        completion_tokens: Generated since the start.
        restarts: How often a stuck or dead model process was replaced.
    """

    slots: int = 1
    active: int = 0
    waiting: int = 0
    kv_tokens: int = 0
    kv_tokens_used: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    restarts: int = 0


class Engine(Protocol):
    """A language model that answers one request at a time or several, as it can."""

    @property
    def card(self) -> ModelCard:
        """What is served, and whether it answers. Returns at once."""
        ...

    @property
    def load(self) -> EngineLoad:
        """How busy it is. Returns at once."""
        ...

    def start(self) -> None:
        """Begin to load the model, or to watch those who serve it, and return at once."""
        ...

    def close(self) -> None:
        """End it; whoever waits is told. Harmless if it runs no more."""
        ...

    def stream(self, request: GenerationRequest) -> Stream:
        """Answer one request (G1, G2). May be called on any event loop.

        Nothing happens before the first piece is asked for.

        Raises:
            EngineBusy: the model is still loading, or too many requests wait already.
            EngineError: the model could not be loaded, or the engine was closed.
            PromptRefused: the prompt leaves no room in the model's context or memory, its chat
                template does not take such a conversation, or the schema cannot be followed.
            ModelError: the adapter does not belong to this model.
            ProtocolError: the adapter's bytes are none.
            ChildDied: the model's process ended, or was stuck, before it had answered.
        """
        ...


async def collect(stream: Stream) -> Generation:
    """Read a stream to its end.

    Raises:
        LlmOsError: as :meth:`Engine.stream`.
    """
    texts: list[str] = []
    logprobs: list[TokenLogprob] = []
    async with aclosing(stream):
        async for event in stream:
            if isinstance(event, Finished):
                return Generation(
                    text="".join(texts),
                    prompt_tokens=event.prompt_tokens,
                    completion_tokens=event.completion_tokens,
                    finish_reason=event.finish_reason,
                    cached_tokens=event.cached_tokens,
                    logprobs=tuple(logprobs),
                )
            texts.append(event.text)
            logprobs += event.logprobs
    raise AssertionError("a stream without an end")


def answered(engine: Engine, request: GenerationRequest) -> Generation:
    """Answer one request whole. Blocks; for threads without an event loop.

    Raises:
        LlmOsError: as :meth:`Engine.stream`.
    """
    return asyncio.run(collect(engine.stream(request)))
