"""Exact answers of deterministic requests, given again without asking the model.

C1  an answer is given again only to the very same request: same weights, same adapter, same
    prompt, same options, and the same scope, which is one caller or all that said "public"
C2  whatever the store holds, a value that is not exactly such an answer is a miss
C3  a store that fails costs a computation, never a request
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final, Protocol

from coordinator.inference.engine import (
    Alternative,
    ChatMessage,
    Finished,
    GenerationRequest,
    Piece,
    TokenLogprob,
)
from shared.errors import UndecodableMessage
from shared.types import Digest
from shared.wire import codec

MAX_VALUE_BYTES: Final = 1_000_000
"""Of one answer as it is kept; 4096 tokens with twenty alternatives each have more and are not."""

MEMORY_BYTES: Final = 64 * 2**20

_FORMAT: Final = 1
_DEPTH: Final = 8
"""Answer, pieces, piece, log probabilities, token, alternatives, alternative, value."""
_OVERHEAD_BYTES: Final = 200
"""Of an entry in the dictionary, roughly."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered, as it came."""

    pieces: tuple[Piece, ...]
    finished: Finished


class AnswerStore(Protocol):
    """Where values lie. Safe on any thread; never raises for what goes wrong behind it."""

    async def get(self, key: bytes) -> bytes | None:
        """The value of a key, if there is one and it can be had."""
        ...

    def put(self, key: bytes, value: bytes) -> None:
        """Keep a value, soon, if that can be done. Returns at once."""
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...


class MemoryStore:
    """Values in this process; the one that was asked for least lately goes first."""

    def __init__(self, max_bytes: int = MEMORY_BYTES) -> None:
        """``max_bytes`` of keys and values together."""
        self._max_bytes = max_bytes
        self._values: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    async def get(self, key: bytes) -> bytes | None:
        """The value of a key."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: bytes, value: bytes) -> None:
        """Keep a value, and let others go for it."""
        size = _size(key, value)
        if size > self._max_bytes:
            return
        with self._lock:
            before = self._values.pop(key, None)
            if before is not None:
                self.bytes -= _size(key, before)
            self._values[key] = value
            self.bytes += size
            while self.bytes > self._max_bytes:
                self.bytes -= _size(*self._values.popitem(last=False))

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()
            self.bytes = 0


def _size(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + _OVERHEAD_BYTES


class AnswerCache:
    """Finds and keeps answers. Safe on any thread and event loop."""

    def __init__(self, store: AnswerStore) -> None:
        self._store = store

    def key(self, base: Digest | None, scope: str, request: GenerationRequest) -> bytes | None:
        """What an answer is found by (C1): 32 bytes; ``None`` for requests that draw by chance.

        Also ``None`` where the digest of the weights is not known.
        """
        if request.temperature != 0 or base is None:
            return None
        adapter = request.adapter
        parts = {
            "format": _FORMAT,
            "base": base,
            "scope": scope,
            "adapter": None if adapter is None else hashlib.sha256(adapter.data).digest(),
            "prompt": _prompt(request),
            "max_tokens": request.max_tokens,
            "temperature": 0.0,  # -0.0 is equal, and encoded otherwise
            "top_p": float(request.top_p),
            "seed": request.seed,
            "stop": list(request.stop),
            "logprobs": request.logprobs,
            "schema": request.schema,
            "share": request.share,
        }
        try:
            return hashlib.sha256(codec.encode(parts)).digest()
        except UnicodeEncodeError:  # a lone surrogate: for the engine to refuse
            return None

    async def get(self, key: bytes, request: GenerationRequest) -> Answer | None:
        """The answer to ``request``, whose key this is."""
        value = await self._store.get(key)
        if value is None:
            return None
        try:
            return _decoded(value, key, request)
        except (UndecodableMessage, ValueError, TypeError, KeyError):
            return None

    def put(self, key: bytes, answer: Answer) -> None:
        """Keep an answer, unless it is too long."""
        try:
            value = _encoded(answer, key)
        except UnicodeEncodeError:
            return
        if len(value) <= MAX_VALUE_BYTES:
            self._store.put(key, value)

    def close(self) -> None:
        """Give back what is held."""
        self._store.close()


def _prompt(request: GenerationRequest) -> list[Any]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return ["text", prompt]
    kind = "chat" if any(isinstance(part, ChatMessage) for part in prompt) else "tokens"
    return [
        kind,
        *(part if isinstance(part, int) else [part.role, part.content] for part in prompt),
    ]


def _encoded(answer: Answer, key: bytes) -> bytes:
    end = answer.finished
    return codec.encode(
        [
            _FORMAT,
            key,  # so that a value that got to another place is a miss
            end.finish_reason,
            end.prompt_tokens,
            end.completion_tokens,
            [
                [
                    piece.text,
                    [
                        [_alternative(t.chosen), [_alternative(a) for a in t.likeliest]]
                        for t in piece.logprobs
                    ],
                ]
                for piece in answer.pieces
            ],
        ]
    )


def _alternative(alternative: Alternative) -> list[Any]:
    return [alternative.text, alternative.data, alternative.logprob]


def _decoded(value: bytes, key: bytes, request: GenerationRequest) -> Answer:
    """Read a value that anybody may have written (C2); raises where it is no such answer."""
    found = codec.decode(value, limit=MAX_VALUE_BYTES, depth=_DEPTH)
    format_, written_for, reason, prompt_tokens, completion_tokens, pieces = _list(found)
    if format_ != _FORMAT or written_for != key or reason not in ("stop", "length"):
        raise ValueError("another format or request")
    if _count(completion_tokens) > request.max_tokens:
        raise ValueError("more tokens than were asked for")
    finished = Finished(reason, max(1, _count(prompt_tokens)), completion_tokens)
    read = tuple(_piece(_list(piece), request.logprobs) for piece in _list(pieces))
    return Answer(read, finished)


def _piece(piece: list[Any], likeliest: int | None) -> Piece:
    text, tokens = piece
    read = tuple(_token(_list(token)) for token in _list(tokens))
    if likeliest is None and read:
        raise ValueError("log probabilities that were not asked for")
    if any(len(token.likeliest) > (likeliest or 0) for token in read):
        raise ValueError("more alternatives than were asked for")
    return Piece(_typed(text, str), read)


def _token(token: list[Any]) -> TokenLogprob:
    chosen, likeliest = token
    return TokenLogprob(_read_alternative(chosen), tuple(map(_read_alternative, _list(likeliest))))


def _read_alternative(value: Any) -> Alternative:
    text, data, logprob = _list(value)
    if math.isnan(_typed(logprob, float)) or logprob > 0:
        raise ValueError("no log probability")
    return Alternative(_typed(text, str), _typed(data, bytes), logprob)


def _list(value: Any) -> list[Any]:
    return _typed(value, list)  # type: ignore[no-any-return]


def _count(value: Any) -> int:
    if _typed(value, int) < 0 or isinstance(value, bool):
        raise ValueError("no count")
    return value  # type: ignore[no-any-return]


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"no {kind.__name__}")
    return value
