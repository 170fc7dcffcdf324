"""What a language model is to the rest of the coordinator. No framework in here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from shared.types import Digest

Role = Literal["system", "user", "assistant"]


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
        prompt: A conversation, which the model's chat template turns into text, or a text
            that is continued as it stands.
        max_tokens: At most so many tokens are generated, fewer where the context ends.
        temperature: 0 takes the likeliest token each time; otherwise the logits are divided
            by it before one is drawn.
        top_p: Drawn is from the fewest tokens whose probabilities reach this sum, in (0, 1].
        seed: Of the draws. The same request gives the same text on the same machine.
        stop: The text ends before the first of these.
        adapter: Answered with it in place; ``None`` for the base model alone.
    """

    prompt: tuple[ChatMessage, ...] | str
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    adapter: ServedAdapter | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """What the model answered."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    """Tokens that were generated, the one that ended the turn included."""
    finish_reason: Literal["stop", "length"]
    """``stop``: the model ended its turn or came to a stop string; ``length``: it was cut."""


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
    """

    name: str
    stand_in: bool
    state: EngineState
    reason: str = ""
    base: Digest | None = None
    context_tokens: int | None = None


class Engine(Protocol):
    """A language model that answers one request at a time or several, as it can."""

    @property
    def card(self) -> ModelCard:
        """What is served, and whether it answers. Returns at once."""
        ...

    def generate(self, request: GenerationRequest) -> Generation:
        """Answer one request. Blocks; may be called from any thread.

        Raises:
            EngineBusy: the model is still loading, or too many requests wait already.
            EngineError: the model could not be loaded, or the engine was closed.
            PromptRefused: the prompt leaves no room in the model's context, or its chat
                template does not take such a conversation.
            ModelError: the adapter does not belong to this model.
            ProtocolError: the adapter's bytes are none.
            ChildDied: the model's process ended before it answered.
        """
        ...
