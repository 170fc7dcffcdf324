"""How a language model's answers are written for OpenAI's clients: whole, and in pieces.

H3  an answer of a stand-in says that it is one
"""

from __future__ import annotations

import codecs
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from coordinator.inference.engine import (
    Alternative,
    EngineState,
    Finished,
    Generation,
    ModelCard,
    Piece,
    TokenLogprob,
)

_LEAST_LOGPROB: Final = -9999.0
"""What OpenAI writes for a token that is as good as impossible; JSON has no infinity."""


class Dialect(Protocol):
    """How the choices of one request are written. One object per request: it may keep count."""

    kind: str
    """Of a whole answer, as its ``object`` says."""
    chunk_kind: str
    """Of a piece of one."""
    prefix: str
    """Of answers' names."""

    def whole(self, index: int, generation: Generation) -> dict[str, Any]:
        """A choice."""
        ...

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a choice's pieces begin with."""
        ...

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """A part of a choice."""
        ...

    def ending(self, index: int, finished: Finished) -> dict[str, Any]:
        """The last of a choice's pieces."""
        ...


class ChatDialect:
    """``/v1/chat/completions``."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, *, logprobs: bool) -> None:
        """``logprobs``: whether they were asked for."""
        self._logprobs = logprobs

    def whole(self, index: int, generation: Generation) -> dict[str, Any]:
        """A choice."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": generation.text, "refusal": None},
            "logprobs": self._listed(generation.logprobs),
            "finish_reason": generation.finish_reason,
        }

    def opening(self, index: int) -> dict[str, Any]:
        """Who speaks."""
        return self._delta(index, {"role": "assistant", "content": "", "refusal": None})

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """A part of a choice."""
        delta = self._delta(index, {"content": piece.text})
        return delta | {"logprobs": self._listed(piece.logprobs)}

    def ending(self, index: int, finished: Finished) -> dict[str, Any]:
        """The last of a choice's pieces."""
        return self._delta(index, {}) | {"finish_reason": finished.finish_reason}

    def _delta(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _listed(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        rows = [
            _spelt(each.chosen) | {"top_logprobs": [_spelt(other) for other in each.likeliest]}
            for each in logprobs
        ]
        return {"content": rows, "refusal": None}


def _spelt(token: Alternative) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": max(token.logprob, _LEAST_LOGPROB),
        "bytes": [*token.data],
    }


class CompletionDialect:
    """``/v1/completions``."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, echoed: Sequence[str], *, logprobs: int | None) -> None:
        """``echoed`` stands before each choice's text; ``logprobs`` as they were asked for."""
        self._echoed = echoed
        self._logprobs = logprobs
        self._columns = [_Columns(logprobs or 0) for _ in echoed]

    def whole(self, index: int, generation: Generation) -> dict[str, Any]:
        """A choice."""
        text = self._echoed[index] + generation.text
        return self._choice(index, text, generation.logprobs) | {
            "finish_reason": generation.finish_reason
        }

    def opening(self, index: int) -> dict[str, Any] | None:
        """The prompt, if it was to be repeated."""
        return self._choice(index, self._echoed[index]) if self._echoed[index] else None

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """A part of a choice."""
        return self._choice(index, piece.text, piece.logprobs)

    def ending(self, index: int, finished: Finished) -> dict[str, Any]:
        """The last of a choice's pieces."""
        return self._choice(index, "") | {"finish_reason": finished.finish_reason}

    def _choice(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob] = ()
    ) -> dict[str, Any]:
        columns = None
        if self._logprobs is not None and (logprobs or text):
            columns = self._columns[index].of(logprobs)
        return {"index": index, "text": text, "logprobs": columns, "finish_reason": None}


@dataclass
class _Columns:
    """Log probabilities as ``/v1/completions`` writes them, with offsets into the answer."""

    likeliest: int
    _characters: int = 0
    """That the tokens before spelt."""
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def of(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The next tokens' columns."""
        columns: dict[str, Any] = {
            "tokens": [_written(each.chosen) for each in logprobs],
            "token_logprobs": [max(each.chosen.logprob, _LEAST_LOGPROB) for each in logprobs],
            "top_logprobs": [self._table(each) for each in logprobs] if self.likeliest else None,
            "text_offset": [],
        }
        for each in logprobs:
            columns["text_offset"].append(self._characters)
            self._characters += len(self._decoder.decode(each.chosen.data))
        return columns

    def _table(self, token: TokenLogprob) -> dict[str, float]:
        # The chosen one is always among them, as OpenAI promises.
        return {
            _written(each): max(each.logprob, _LEAST_LOGPROB)
            for each in (*token.likeliest, token.chosen)
        }


def _written(token: Alternative) -> str:
    r"""A token's text; one with half a character as OpenAI spells it: ``bytes:\xe4\xbd``.

    All halves would have the same text, and be one key in a table.
    """
    try:
        return token.data.decode() or token.text
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data)


class Usage:
    """What a request cost. A prompt counts once, however many answers it has."""

    def __init__(self, per_prompt: int) -> None:
        """``per_prompt``: choices of each prompt, which come one after the other."""
        self._per_prompt = per_prompt
        self._prompts: dict[int, tuple[int, int]] = {}
        self._completion = 0

    def add(self, index: int, finished: Finished) -> None:
        """A choice has ended."""
        prompt = index // self._per_prompt
        tokens, cached = finished.prompt_tokens, finished.cached_tokens
        # Of the answers to one prompt the later find it cached because the first computed it.
        least = min(cached, self._prompts[prompt][1]) if prompt in self._prompts else cached
        self._prompts[prompt] = tokens, least
        self._completion += finished.completion_tokens

    def table(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        tokens = sum(tokens for tokens, _ in self._prompts.values())
        return {
            "prompt_tokens": tokens,
            "completion_tokens": self._completion,
            "total_tokens": tokens + self._completion,
            "prompt_tokens_details": {
                "cached_tokens": sum(cached for _, cached in self._prompts.values())
            },
        }


def frame(dialect: Dialect, card: ModelCard, model: str, *, chunk: bool) -> dict[str, Any]:
    """What stands around the choices; the same in all pieces of one answer."""
    return {
        "id": f"{dialect.prefix}-{secrets.token_hex(12)}",
        "object": dialect.chunk_kind if chunk else dialect.kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": (card.base or "")[:16],
    } | label(card)


def label(card: ModelCard) -> dict[str, bool]:
    """That it is a stand-in (H3)."""
    return {"stand_in": True} if card.stand_in else {}


def model_entry(card: ModelCard) -> dict[str, Any]:
    """A model in the list of models."""
    entry: dict[str, Any] = {
        "id": card.name,
        "object": "model",
        "created": 0,  # a folder has no date of birth, and clients want a number
        "owned_by": "llmos",
        "state": card.state,
    }
    if card.state is EngineState.READY:
        entry |= {"base": card.base, "context_tokens": card.context_tokens}
    if card.state is EngineState.FAILED:
        entry["reason"] = card.reason
    return entry | label(card)
