"""What OpenAI's clients may ask a language model for, and what an engine is asked then.

A field that is unknown, or can only be spelt as what happens anyway, is refused by its name (H1).
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from coordinator.api.openai_errors import Body, bad
from coordinator.inference.engine import (
    ChatMessage,
    GenerationRequest,
    ModelCard,
    ServedAdapter,
)

MAX_MESSAGES: Final = 200
MAX_CHARACTERS: Final = 100_000
"""In one message or prompt; a model's context ends long before."""
MAX_PROMPT_TOKENS: Final = 100_000
"""In a prompt that comes as tokens."""
MAX_TOKENS: Final = 32_768
"""In one answer; most models' context ends before."""
MAX_N: Final = 8
"""Answers to one prompt."""
MAX_PROMPTS: Final = 16
"""In one request. Each is a place in the queue."""
MAX_CHOICES: Final = 32
"""Prompts times answers."""
MAX_SCHEMA_CHARACTERS: Final = 50_000
MAX_SCHEMA_DEPTH: Final = 64
"""Levels of a JSON schema; whoever compiles it does so recursively."""

CHAT_TOKENS: Final = 512
"""In an answer whose length nobody bounds."""
COMPLETION_TOKENS: Final = 16
"""The same at ``/v1/completions``, as OpenAI has it."""

ANY_OBJECT: Final = '{"type":"object"}'

Text = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Label = Annotated[str, StringConstraints(max_length=512)]
Zero = Annotated[float, Field(ge=0, le=0)]
Prompt = str | tuple[int, ...]


class StreamOptions(Body):
    """How an answer is streamed."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Sampled(Body):
    """What both ways to ask have in common."""

    model: str = Field(max_length=300)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_N)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    user: Label | None = None
    """Taken and not looked at: nothing is kept or limited per end user."""
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with what it cost."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def _check_stream_options(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise bad("stream_options", "only together with stream")

    def _requests(
        self,
        prompts: Sequence[tuple[ChatMessage, ...] | Prompt],
        card: ModelCard,
        *,
        max_tokens: int,
        logprobs: int | None,
        schema: str | None,
        adapter: ServedAdapter | None,
        share: str,
    ) -> list[GenerationRequest]:
        """One request per choice: the first prompt's come first."""
        self._check_stream_options()
        self._check_abilities(card, logprobs=logprobs, schema=schema, adapter=adapter)
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [
            GenerationRequest(
                prompt=prompt,
                max_tokens=max_tokens,
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else self.top_p,
                seed=self._seed(choice),
                stop=tuple(stop),
                logprobs=logprobs,
                schema=schema,
                adapter=adapter,
                share=share,
            )
            for prompt in prompts
            for choice in range(self.n or 1)
        ]

    def _seed(self, choice: int) -> int:
        """The first choice has the seed itself, so that it is the answer to n = 1."""
        if self.seed is None:
            return secrets.randbits(63)
        if choice == 0:
            return self.seed % 2**63
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{choice}".encode()).digest()[:8]) >> 1

    def _check_abilities(
        self,
        card: ModelCard,
        *,
        logprobs: int | None,
        schema: str | None,
        adapter: ServedAdapter | None,
    ) -> None:
        """Refuse what the engine lacks, by the name that OpenAI has for it (H1)."""
        used = {
            "temperature": ("temperature", self.temperature != 0),
            "top_p": ("top_p", self.top_p not in (None, 1)),
            "seed": ("seed", self.seed is not None),
            "stop": ("stop", bool(self.stop)),
            "logprobs": ("logprobs", logprobs is not None),
            "schema": ("response_format", schema is not None),
            "adapter": ("model", adapter is not None),
        }
        for lacked, (field, is_used) in used.items():
            if is_used and lacked in card.lacks:
                what = "an adapter" if lacked == "adapter" else "it"
                raise bad(field, f"{card.name} does not support {what}", code="unsupported_value")


class TextPart(Body):
    """One part of a message; parts of another kind cannot be read."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One turn. ``developer`` is what newer clients call ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=100)]

    # Clients send answers back as they got them, with what is empty in them.
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    audio: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    def turn(self) -> ChatMessage:
        """The turn as an engine takes it."""
        content = self.content
        text = content if isinstance(content, str) else "\n".join(part.text for part in content)
        return ChatMessage("system" if self.role == "developer" else self.role, text)


class FreeText(Body):
    """No form is asked for."""

    type: Literal["text"]


class JsonObject(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """A JSON schema. It is always followed to the letter, whatever ``strict`` says."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: Text | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchema(Body):
    """JSON that satisfies a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class ChatRequest(Sampled):
    """A conversation. The last part can only be spelt as what happens anyway (H1)."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: (
        Annotated[FreeText | JsonObject | JsonSchema, Field(discriminator="type")] | None
    ) = None

    metadata: Annotated[dict[Label, Label], Field(max_length=16)] | None = None
    """Labels for stored answers; no answer is stored."""
    store: Literal[False] | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    tools: None = None
    tool_choice: Literal["none"] | None = None
    parallel_tool_calls: bool | None = None
    """Of no tools."""
    functions: None = None
    function_call: Literal["none"] | None = None
    reasoning_effort: Literal["none"] | None = None

    def requests(
        self, card: ModelCard, adapter: ServedAdapter | None, *, share: str
    ) -> list[GenerationRequest]:
        """The requests as an engine takes them, one per choice, OpenAI's defaults filled in.

        Raises:
            Refused: fields contradict each other, or the engine lacks something.
        """
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise bad("max_completion_tokens", "means the same as max_tokens: send one")
        if self.top_logprobs is not None and not self.logprobs:
            raise bad("top_logprobs", "only together with logprobs: true")
        return self._requests(
            [tuple(message.turn() for message in self.messages)],
            card,
            max_tokens=self.max_tokens or self.max_completion_tokens or CHAT_TOKENS,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            schema=self._schema(),
            adapter=adapter,
            share=share,
        )

    def _schema(self) -> str | None:
        match self.response_format:
            case JsonObject():
                return ANY_OBJECT
            case JsonSchema(json_schema=named):
                return _schema_text(named.schema_)
            case _:
                return None


def _schema_text(schema: dict[str, Any]) -> str:
    name = "response_format"
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        raise bad(name, f"the schema is nested more than {MAX_SCHEMA_DEPTH} levels deep")
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        text.encode()
    except ValueError as err:  # NaN, or a lone surrogate
        raise bad(name, f"the schema cannot be written as JSON: {err}") from err
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise bad(name, f"a schema has at most {MAX_SCHEMA_CHARACTERS} characters")
    return text


def _depth(value: object) -> int:
    """How many levels of lists and objects there are, counted level by level."""
    depth, level = 0, [value]
    while containers := [each for each in level if isinstance(each, (dict, list))]:
        depth += 1
        level = [
            inner
            for each in containers
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


def _read_prompts(value: object) -> tuple[Prompt, ...]:
    """A text, a list of them, tokens, or a list of those.

    By hand: of a union in a list pydantic would name every element that is wrong, for every
    member of the union.
    """
    several = isinstance(value, list) and bool(value) and not isinstance(value[0], int)
    prompts = value if isinstance(value, list) and several else [value]
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"at most {MAX_PROMPTS} prompts are answered at once")
    return tuple(_read_prompt(prompt) for prompt in prompts)


def _read_prompt(prompt: object) -> Prompt:
    if isinstance(prompt, str):
        if not 0 < len(prompt) <= MAX_CHARACTERS:
            raise ValueError(f"a prompt has 1 to {MAX_CHARACTERS} characters")
        try:
            prompt.encode()
        except UnicodeEncodeError as err:
            raise ValueError("a prompt is Unicode text, without lone surrogates") from err
        return prompt
    if isinstance(prompt, list):
        if not 0 < len(prompt) <= MAX_PROMPT_TOKENS:
            raise ValueError(f"a prompt has 1 to {MAX_PROMPT_TOKENS} tokens")
        if all(type(token) is int and 0 <= token < 2**31 for token in prompt):
            return tuple(prompt)
    raise ValueError("a text, a list of texts, a list of token numbers or a list of such lists")


class CompletionRequest(Sampled):
    """Texts that are continued. The last part can only be spelt as what happens anyway (H1)."""

    prompt: Annotated[tuple[Prompt, ...], BeforeValidator(_read_prompts)]
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = Field(default=None, ge=1, le=MAX_N)
    suffix: None = None

    def requests(
        self, card: ModelCard, adapter: ServedAdapter | None, *, share: str
    ) -> list[GenerationRequest]:
        """The requests as an engine takes them: each prompt's choices, one prompt after the other.

        Raises:
            Refused: fields contradict each other, or the engine lacks something.
        """
        n = self.n or 1
        if len(self.prompt) * n > MAX_CHOICES:
            raise bad("n", f"{len(self.prompt)} prompts with {n} answers: at most {MAX_CHOICES}")
        if self.best_of not in (None, n):
            raise bad("best_of", "all answers are returned: leave it out", code="unsupported_value")
        if self.echo and any(not isinstance(prompt, str) for prompt in self.prompt):
            raise bad("echo", "of prompts that are texts only", code="unsupported_value")
        if self.echo and self.logprobs is not None:
            raise bad("echo", "a prompt has no logprobs here", code="unsupported_value")
        return self._requests(
            self.prompt,
            card,
            max_tokens=self.max_tokens or COMPLETION_TOKENS,
            logprobs=self.logprobs,
            schema=None,
            adapter=adapter,
            share=share,
        )

    @property
    def echoed(self) -> list[str]:
        """What stands before each choice's text: its prompt, or nothing."""
        return [
            prompt if self.echo and isinstance(prompt, str) else ""
            for prompt in self.prompt
            for _ in range(self.n or 1)
        ]
