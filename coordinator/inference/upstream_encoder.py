"""A model of texts that other machines serve: ours, vLLM, and others that speak OpenAI's API.

V1  texts are given out piece by piece to the least busy node, so that one request uses them all
V2  a piece whose node fails goes to another; embeddings have no beginning that could be lost

U2 and U4 are in :mod:`~coordinator.inference.upstream_nodes`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from itertools import pairwise
from typing import Any, Final, TypeVar

import numpy as np

from coordinator.inference.encoder import Encoded, EncoderCard, Span
from coordinator.inference.engine import ServedAdapter
from coordinator.inference.node_pool import spread
from coordinator.inference.upstream_nodes import OverNodes, Patience, bounded, patient
from coordinator.inference.upstream_wire import Node, refusal
from shared.errors import DataError, EngineBusy, EngineError, ModelError, PromptRefused
from shared.models.adapter import Adapter
from shared.types import FloatMatrix

MAX_WAITING: Final = 4096
"""Texts and passages that are under way together; two requests as long as they may be."""

PIECE: Final = 32
"""Texts that a node is given at a time: enough that the network does not count, few enough that
nodes of different speed are done at the same time."""

PASSAGES: Final = 4
"""Of a question's, likewise; a passage takes as long as some ten texts."""

_MAX_BODY_BYTES: Final = 32 * 2**20
"""Of one piece's answer: 32 embeddings of 8192 numbers written out are some 6 MB."""

T = TypeVar("T")


class UpstreamEncoder(OverNodes):
    """An :class:`~coordinator.inference.encoder.Encoder` over OpenAI's API."""

    def __init__(
        self,
        nodes: Sequence[Node],
        model: str,
        *,
        reads: bool = False,
        patience: Patience | None = None,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """Describe it; :meth:`start` begins to watch the nodes.

        Args:
            nodes: At least one; addresses differ.
            model: As all of them call it.
            reads: Whether it finds answers in passages, which only coordinators serve
                (``/v1/tasks/answer``), and does not embed.
            patience: Other waits than usual.
            max_waiting: Texts or passages that may be under way.

        Raises:
            ConfigError: an address names no host that there could be.
        """
        super().__init__(nodes, model, patience)
        self._model, self._reads = model, reads
        self._max_waiting, self._waiting = max_waiting, 0
        self._gate = threading.Lock()

    @property
    def card(self) -> EncoderCard:
        """What is served, as the nodes tell it; vLLM does not tell how wide an embedding is."""
        serving = self._nodes.serving
        state, reason = self._nodes.state
        widths = {offer.features for offer in serving}
        lengths = [each.max_tokens for each in serving if each.max_tokens is not None]
        return EncoderCard(
            name=self._model,
            state=state,
            reason=reason,
            base=self._nodes.base,
            features=widths.pop() if len(widths) == 1 else None,
            max_tokens=min(lengths, default=None),
            reads_answers=self._reads,
        )

    async def embed(self, texts: Sequence[str]) -> Encoded:
        """Features of texts; contract in :class:`~coordinator.inference.encoder.Encoder`.

        Raises:
            ModelError: it is a reader, which has none.
            ChildDied: all nodes that were tried were lost.
        """
        if self._reads:
            raise ModelError(f"{self._model} finds answers, and does not embed")
        body = {"model": self._model, "encoding_format": "base64"}
        with self._admitted(len(texts)):
            parts = await self._in_pieces(
                "/embeddings",
                [body | {"input": piece} for piece in _pieces(texts, PIECE)],
                lambda sent, told: _embeddings(told, len(sent["input"])),
            )
        if len({part.values.shape[1] for part in parts}) != 1:
            raise EngineError(f"the nodes of {self._model} serve embeddings of different widths")
        return Encoded(
            np.concatenate([part.values for part in parts]), sum(part.tokens for part in parts)
        )

    async def classify(self, texts: Sequence[str], adapter: ServedAdapter) -> Encoded:
        """Logits of texts; contract in :class:`~coordinator.inference.encoder.Encoder`.

        The nodes embed, and the adapter's head is computed here: they need not have the run.

        Raises:
            ModelError: also where the adapter changes the model inside, which nodes do not do.
        """
        head = await asyncio.to_thread(Adapter.from_bytes, adapter.data)
        card = self.card
        if not head.labels:
            raise ModelError(f"the adapter of {adapter.name} has no labels")
        if head.shape.slots:
            raise ModelError(
                f"the adapter of {adapter.name} changes the model inside ({head.shape.method}), "
                "which is not served over nodes: ask a node that has the run"
            )
        if card.base is not None and head.base != card.base:
            raise ModelError(
                f"the adapter of {adapter.name} was trained on the base {head.base[:12]}…, "
                f"and {self._model} is {card.base[:12]}…"
            )
        encoded = await self.embed(texts)
        if encoded.values.shape[1] != head.features:
            raise ModelError(
                f"the adapter of {adapter.name} expects {head.features} features, "
                f"and {self._model} has {encoded.values.shape[1]}"
            )
        return Encoded(head.logits(encoded.values), encoded.tokens)

    async def read(
        self,
        question: str,
        passages: Sequence[str],
        *,
        answers: int,
        threshold: float | None = 0.0,
    ) -> list[Span]:
        """The best spans; contract in :class:`~coordinator.inference.encoder.Encoder`."""
        if not self._reads:
            raise ModelError(f"{self._model} does not find answers in passages")
        asked = {
            "model": self._model,
            "question": question,
            "answers": answers,
            "threshold": threshold,
        }
        bounds = list(_bounds(len(passages), PASSAGES))
        with self._admitted(len(passages)):
            found = await self._in_pieces(
                "/tasks/answer",
                [asked | {"passages": list(passages[start:end])} for start, end in bounds],
                lambda sent, told: _spans(told, sent["passages"]),
            )
        spans = [
            Span(start + each.passage, each.start, each.end, each.text, each.score)
            for (start, _), part in zip(bounds, found, strict=True)
            for each in part
        ]
        spans.sort(key=lambda span: (-span.score, span.passage, span.start))
        return spans[:answers]

    @contextmanager
    def _admitted(self, count: int) -> Iterator[None]:
        if not count:
            raise DataError("there is no text")
        with self._gate:
            if self._waiting + count > self._max_waiting:
                raise EngineBusy(
                    f"{self._waiting} texts wait for {self._model} already: ask again later"
                )
            self._waiting += count
        try:
            yield
        finally:
            with self._gate:
                self._waiting -= count

    async def _in_pieces(
        self,
        path: str,
        bodies: Sequence[Mapping[str, Any]],
        read: Callable[[Mapping[str, Any], Any], T],
    ) -> list[T]:
        """Give out all pieces at once; what was given out is taken back when one fails (V1)."""
        futures = [self._nodes.run(self._answered(path, body, read)) for body in bodies]
        try:
            return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
        finally:
            for future in futures:
                future.cancel()

    # From here on everything runs on the nodes' loop.

    async def _answered(
        self, path: str, body: Mapping[str, Any], read: Callable[[Mapping[str, Any], Any], T]
    ) -> T:
        """One piece's answer, from one of the nodes (V2)."""
        answers = spread(
            self._nodes.seats,
            lambda: self._nodes.candidates(self._model),
            lambda name: self._ask(name, path, body, read),
            goes_elsewhere=lambda err: not isinstance(err, PromptRefused),
            nobody=lambda: self._nodes.nobody(self._model),
        )
        try:
            async with aclosing(answers):
                return await anext(answers)
        except PromptRefused as err:
            raise DataError(str(err)) from err

    async def _ask(
        self,
        name: str,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[Mapping[str, Any], Any], T],
    ) -> AsyncGenerator[T, None]:
        """Give a piece to one node; its answer is the only event."""
        node, limit = self._nodes.by_name[name], self._nodes.patience.first
        headers = node.headers | {"Accept-Encoding": "identity"}
        with self._nodes.blamed(name):
            async with (
                patient(asyncio.get_running_loop().time() + limit, limit),
                self._nodes.client.stream(
                    "POST", node.url + path, json=body, headers=headers
                ) as response,
            ):
                data = await bounded(response, _MAX_BODY_BYTES + 1)
            if response.status_code != 200:
                raise refusal(node, response.status_code, response.headers, data, run=None)
            if len(data) > _MAX_BODY_BYTES:
                raise EngineError(f"it sent an answer of more than {_MAX_BODY_BYTES} bytes")
            try:
                # Not on this loop, which all nodes' answers come in on.
                answer = await asyncio.to_thread(lambda: read(body, json.loads(data)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
                raise EngineError(f"it sent what is no answer: {data[:100]!r}") from err
        yield answer


def _bounds(count: int, size: int) -> Iterator[tuple[int, int]]:
    return pairwise([*range(0, count, size), count])


def _pieces(texts: Sequence[str], size: int) -> list[list[str]]:
    return [list(texts[start:end]) for start, end in _bounds(len(texts), size)]


def _embeddings(told: Any, count: int) -> Encoded:
    """Read embeddings, as base64 of little-endian float32 or written out.

    Raises:
        ValueError, KeyError, TypeError: there is another number of them, or they are none.
    """
    rows: list[FloatMatrix | None] = [None] * count
    for entry in told["data"]:
        given = entry["embedding"]
        row = (
            np.frombuffer(base64.b64decode(given, validate=True), "<f4")
            if isinstance(given, str)
            else np.asarray(given, np.float32)
        )
        index = int(entry["index"])
        if row.ndim != 1 or not 0 <= index < count or rows[index] is not None:
            raise ValueError(index)
        rows[index] = row
    values = np.stack([row for row in rows if row is not None]).astype(np.float32)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    if len(values) != count or not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError(len(values))
    return Encoded(values / lengths, int(told["usage"]["prompt_tokens"]))


def _spans(told: Any, passages: Sequence[str]) -> list[Span]:
    """Read where answers stand.

    Raises:
        ValueError, KeyError, TypeError: a place is in no passage.
    """
    found = []
    for row in told["data"]:
        number, start, end = int(row["passage"]), int(row["start"]), int(row["end"])
        if not (0 <= number < len(passages) and 0 <= start <= end <= len(passages[number])):
            raise ValueError(number)
        score = float(row["score"])
        found.append(Span(number, start, end, passages[number][start:end], score))
    return found
