"""OpenAI's API from the client's side: bodies, events and errors. No network in here.

W1  events are the same however the bytes are cut; neither a line nor an event is unbounded
W2  what is no answer of this API is an error that names the node, never half an answer
W3  no message holds the key
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from coordinator.inference.engine import (
    Alternative,
    Finished,
    FinishReason,
    GenerationRequest,
    Piece,
    TokenLogprob,
)
from coordinator.inference.node_pool import Offer
from shared.errors import (
    ChildDied,
    ConfigError,
    EngineBusy,
    EngineError,
    LlmOsError,
    PromptRefused,
    RunNotFound,
)
from shared.types import Digest

AdapterNames = Literal["llmos", "plain"]
"""``llmos``: nodes call a run's adapter ``MODEL:RUN``; ``plain``: by the run's name alone."""

MAX_EVENT_BYTES: Final = 256 * 1024
"""A token with twenty alternatives has some three thousand."""

MAX_MESSAGE: Final = 500
"""Characters of a node's own words that are handed on."""

DONE: Final = "[DONE]"

_FINISH: Final[Mapping[str, FinishReason]] = {"stop": "stop", "length": "length"}
_LONGEST_RETRY_S: Final = 3600.0

_OUR_ERRORS: Final[Mapping[str, type[LlmOsError]]] = {
    kind.code: kind for kind in (PromptRefused, EngineBusy, ChildDied)
}
"""A node of ours that fails within a stream says so by these codes."""


@dataclass(frozen=True, slots=True)
class Node:
    """Where a model is served.

    Attributes:
        url: Of the API, ``/v1`` included, without a slash at its end.
        key: Shown as a bearer token; empty for none.
    """

    url: str
    key: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        """For messages: the address without what is the same everywhere."""
        return self.url.partition("://")[2].removesuffix("/v1")

    @property
    def headers(self) -> dict[str, str]:
        """Of every request to it."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


def parse_nodes(urls: str, keys: str = "") -> tuple[Node, ...]:
    """Read addresses, separated by commas.

    Args:
        urls: ``http://HOST:PORT``, with or without ``/v1``.
        keys: Nothing, one key for all, or as many as there are addresses, separated by commas.

    Raises:
        ConfigError: an address is malformed or there twice, or the keys do not fit. The message
            does not show the keys.
    """
    addresses = [each.strip() for each in urls.split(",") if each.strip()]
    each_key = [key.strip() for key in keys.split(",")]
    problems = [] if addresses else ["--upstream: it names no address"]
    if len(each_key) == 1:
        each_key *= len(addresses)
    if len(each_key) != len(addresses):
        problems.append(
            f"--upstream-key-env: {len(each_key)} keys for {len(addresses)} addresses: "
            "name one key for all, or one for each"
        )
        each_key = [""] * len(addresses)
    if not all(key.isascii() and key.isprintable() and " " not in key for key in each_key):
        problems.append("--upstream-key-env: a key has printable ASCII letters only")
    found: list[Node] = []
    for address, key in zip(addresses, each_key, strict=True):
        try:
            node = Node(_api_url(address), key)
        except ValueError as err:
            problems.append(f"--upstream: {err}")
            continue
        if node.url in {other.url for other in found}:
            problems.append(f"--upstream: {node.name} is named twice")
        found.append(node)
    if problems:
        raise ConfigError(problems, source="options")
    return tuple(found)


def _api_url(address: str) -> str:
    try:
        parts = urlsplit(address)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        right = False
        parts = urlsplit("")
    if not right:
        raise ValueError(f"{address[:200]!r} is no address such as http://127.0.0.1:8000")
    if "@" in parts.netloc:
        raise ValueError("an address holds no password: use --upstream-key-env")
    if parts.query or parts.fragment:
        raise ValueError(f"{address[:200]!r} ends with ? or #, which an API's address does not")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc}{path}/v1"


class EventReader:
    """Server-sent events out of bytes, however they are cut (W1)."""

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        """``limit``: bytes of an event, and of a line."""
        self._limit = limit
        self._line = bytearray()
        self._data: list[bytes] = []
        self._held = 0
        self._after_return = False

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Read more; gives the data of every event that ends in it.

        Raises:
            EngineError: a line or an event is too long, or not UTF-8.
        """
        if self._after_return and chunk:
            # A line may end with both, and the two may come apart.
            self._after_return = False
            chunk = chunk.removeprefix(b"\n")
        if chunk.endswith(b"\r"):
            self._after_return = True
        *ended, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for part in ended:
            self._extend(part)
            line = bytes(self._line)
            self._line.clear()
            if line:
                self._take(line)
            elif self._data:
                yield self._event()
        self._extend(rest)

    def _extend(self, part: bytes) -> None:
        if len(self._line) + len(part) + self._held > self._limit:
            raise EngineError(f"it sent an event of more than {self._limit} bytes")
        self._line += part

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":  # other fields, and comments, say nothing here
            self._data.append(value.removeprefix(b" "))
            self._held += len(value)

    def _event(self) -> str:
        data = b"\n".join(self._data)
        self._data.clear()
        self._held = 0
        try:
            return data.decode()
        except UnicodeDecodeError as err:
            raise EngineError("it sent an event that is not UTF-8") from err


def model_name(model: str, request: GenerationRequest, names: AdapterNames) -> str:
    """What a node calls the model, with the adapter of the request."""
    if request.adapter is None:
        return model
    return request.adapter.name if names == "plain" else f"{model}:{request.adapter.name}"


def body_of(request: GenerationRequest, model: str, *, salted: bool) -> tuple[str, bytes]:
    """Path below ``/v1``, and the JSON body.

    Raises:
        PromptRefused: the schema is not JSON.
    """
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.temperature:
        body["seed"] = request.seed
    if request.top_p != 1.0:
        body["top_p"] = request.top_p
    if request.stop:
        body["stop"] = list(request.stop)
    if request.schema is not None:
        try:
            schema = json.loads(request.schema)
        except ValueError as err:
            raise PromptRefused(f"the schema is not JSON: {err}") from err
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        }
    if salted:
        # vLLM keeps prefixes apart by it; a word of no one else's: nobody shares this one.
        share = request.share or secrets.token_hex(16)
        body["cache_salt"] = hashlib.sha256(share.encode(errors="replace")).hexdigest()
    if isinstance(request.prompt, str) or _is_tokens(request.prompt):
        prompt = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
        body["prompt"] = prompt
        if request.logprobs is not None:
            body["logprobs"] = request.logprobs
        return "/completions", json.dumps(body).encode()
    body["messages"] = [
        {"role": turn.role, "content": turn.content}
        for turn in request.prompt
        if not isinstance(turn, int)
    ]
    if request.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.logprobs}
    return "/chat/completions", json.dumps(body).encode()


def _is_tokens(prompt: tuple[Any, ...] | str) -> bool:
    return bool(prompt) and all(isinstance(each, int) for each in prompt)


class AnswerReader:
    """Pieces and an end out of the events of one answer (W2)."""

    def __init__(self, logprobs: int | None) -> None:
        """``logprobs`` as the request has it."""
        self._logprobs = logprobs
        self._reason: FinishReason | None = None
        self._usage: Mapping[str, Any] | None = None

    def read(self, data: str) -> Piece | None:
        """Read one event; ``None`` if there is nothing to hand on.

        Raises:
            EngineError: it is no part of an answer, or says that the node failed.
            PromptRefused: it says so.
            ChildDied: it says so.
        """
        try:
            chunk = json.loads(data)
            if chunk.get("error") is not None:
                raise _said_within(chunk["error"])
            if chunk.get("usage") is not None:
                self._usage = dict(chunk["usage"])
            for choice in chunk["choices"][:1]:
                return self._piece(choice)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
            raise EngineError(f"it sent what is no part of an answer: {data[:100]!r}") from err
        return None

    def _piece(self, choice: Mapping[str, Any]) -> Piece | None:
        reason = choice.get("finish_reason")
        if reason is not None:
            if reason not in _FINISH:
                raise EngineError(f"its answer ended for an unknown reason, {reason!r:.60}")
            self._reason = _FINISH[reason]
        delta = choice.get("delta")
        text = (delta.get("content") if delta is not None else choice["text"]) or ""
        if not isinstance(text, str):
            raise TypeError
        told: tuple[TokenLogprob, ...] = ()
        if self._logprobs is not None and choice.get("logprobs") is not None:
            told = tuple(_logprobs(choice["logprobs"], self._logprobs))
        return Piece(_clean(text), told) if text or told else None

    def end(self) -> Finished | None:
        """How it ended; ``None`` as long as that was not told.

        Raises:
            EngineError: the end is there, and no count of tokens.
        """
        if self._reason is None:
            return None
        if self._usage is None:
            raise EngineError("it told no usage: it has to know stream_options.include_usage")
        details = self._usage.get("prompt_tokens_details") or {}
        try:
            return Finished(
                self._reason,
                int(self._usage["prompt_tokens"]),
                int(self._usage["completion_tokens"]),
                int(details.get("cached_tokens") or 0),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise EngineError("it told a usage that is none") from err


def _logprobs(told: Mapping[str, Any], most: int) -> Iterator[TokenLogprob]:
    if told.get("content") is not None:
        for token in told["content"]:
            others = [_alternative(each) for each in token.get("top_logprobs") or []]
            yield TokenLogprob(_alternative(token), _likeliest(others, most))
        return
    # The older form: lists side by side, and no bytes.
    tops = told.get("top_logprobs") or [None] * len(told["tokens"])
    for text, logprob, top in zip(told["tokens"], told["token_logprobs"], tops, strict=True):
        others = [_named(name, value) for name, value in (top or {}).items()]
        yield TokenLogprob(_named(text, logprob), _likeliest(others, most))


def _likeliest(others: list[Alternative], most: int) -> tuple[Alternative, ...]:
    return tuple(sorted(others, key=lambda each: -each.logprob)[:most])


def _alternative(token: Mapping[str, Any]) -> Alternative:
    told = token.get("bytes")
    plain = _named(token["token"], token["logprob"])
    return plain if told is None else Alternative(plain.text, bytes(told), plain.logprob)


def _named(text: str, logprob: float) -> Alternative:
    clean = _clean(text)
    return Alternative(clean, clean.encode(), float(logprob))


def _clean(text: str) -> str:
    """Without halves of characters, which JSON can spell and nobody can send on."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _said_within(error: Any) -> LlmOsError:
    code = error.get("code") if isinstance(error, dict) else None
    kind = _OUR_ERRORS.get(code, EngineError) if isinstance(code, str) else EngineError
    words = _words(error)
    return kind(words if kind is PromptRefused else f"it broke off: {words}")


def refusal(
    node: Node, status: int, headers: Mapping[str, str], body: bytes, *, run: str | None
) -> LlmOsError:
    """What an answer that is none means (W3).

    Args:
        node: Whose it is.
        status: HTTP status, not 200.
        headers: Of the answer, of which ``retry-after`` is read.
        body: As much of it as was read.
        run: Of the adapter that was asked for.
    """
    said = _message(body.replace(node.key.encode(), b"...") if node.key else body)
    text = f"{node.name} answered {status}: {said}" if said else f"{node.name} answered {status}"
    if status in (401, 403):
        # Some servers repeat the key, or a part of it, in what they say.
        return EngineError(f"{node.name} refuses the key that it is shown ({status})")
    if status == 404:
        return EngineError(text) if run is None else RunNotFound(text)
    if status in (429, 503):
        busy = EngineBusy(text)
        vars(busy)["retry_after_s"] = _seconds(headers.get("retry-after", ""))
        return busy
    if status in (400, 409, 413, 422):
        return PromptRefused(said or text)
    return EngineError(text)


def _seconds(text: str) -> float | None:
    """Of a ``Retry-After``; one that is a date says nothing without a common clock."""
    try:
        value = float(text)
    except ValueError:
        return None
    return min(value, _LONGEST_RETRY_S) if value >= 0 else None


def _message(body: bytes) -> str:
    text = body.decode(errors="replace")
    try:
        return _words(json.loads(text))
    except (ValueError, RecursionError):
        return _words(text)


def _words(said: Any) -> str:
    """The sentence in an error body: OpenAI's, a problem document, or plain text."""
    for key in ("error", "detail", "message"):
        if isinstance(said, dict) and said.get(key):
            return _words(said[key])
    text = said if isinstance(said, str) else json.dumps(said)
    line = " ".join(_clean(text).split())
    return "".join(each for each in line if each.isprintable())[:MAX_MESSAGE]


def offer_of(body: bytes, model: str) -> Offer:
    """Read what ``/v1/models`` lists.

    Raises:
        EngineError: it is no such list.
    """
    try:
        entries = [dict(entry) for entry in json.loads(body)["data"]]
        names = {str(entry["id"]): entry for entry in entries}
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise EngineError("it lists no models in the way of this API") from err
    entry = names.get(model, {})
    state = entry.get("state", "ready")  # of ours: loading, ready or failed
    if state != "ready":
        del names[model]
    base = entry.get("base")
    return Offer(
        models=frozenset(names),
        not_yet="" if state == "ready" else f"{state} {entry.get('reason', '')!s:.200}".strip(),
        context_tokens=_count(entry.get("context_tokens", entry.get("max_model_len"))),
        base=Digest(base) if isinstance(base, str) else None,
        stand_in=entry.get("stand_in") is True,
        salted=entry.get("owned_by") == "vllm",
        features=_count(entry.get("features")),
        max_tokens=_count(entry.get("max_tokens", entry.get("max_model_len"))),
    )


def _count(told: Any) -> int | None:
    return told if isinstance(told, int) and told > 0 else None
