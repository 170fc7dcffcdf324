"""An imported reader, ready to answer: windows in, characters out.

Windows are read one at a time: int8 takes its scale from the whole batch, so that an answer would
depend on what was read beside it, and on one thread a batch is no faster (see docs/benchmarks.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from coordinator.inference.encoder import Span
from coordinator.reading.spans import Window, best_spans
from coordinator.registry.reader_import import open_reader
from shared.errors import DataError
from shared.models.graph_session import open_graph, open_tokenizer
from shared.models.manifest import GRAPH, TOKENIZER

MAX_WINDOW_TOKENS: Final = 384
"""Question and passage together, as models are trained on SQuAD."""


class SpanSession:
    """A reader in memory. Any thread may use it."""

    def __init__(self, folder: Path) -> None:
        """Open an imported reader.

        Raises:
            ModelError: it is missing or damaged.
            DependencyMissing: onnxruntime or tokenizers is not installed.
        """
        self.manifest = open_reader(folder).manifest
        self.window_tokens = min(MAX_WINDOW_TOKENS, self.manifest.max_tokens)
        self._questions = open_tokenizer(folder / TOKENIZER, self.window_tokens)
        self._pairs = open_tokenizer(folder / TOKENIZER, self.window_tokens)
        self._pairs.enable_truncation(
            self.window_tokens, stride=self.window_tokens // 3, strategy="only_second"
        )
        self._session = open_graph(folder / GRAPH)

    def read(
        self,
        question: str,
        passages: Sequence[str],
        *,
        answers: int,
        threshold: float | None = 0.0,
    ) -> list[Span]:
        """The best answers over all passages, best first; as ``Encoder.read``.

        Raises:
            DataError: the question has more tokens than half a window, or cannot be tokenised.
        """
        self._check(question)
        spans = []
        for number, passage in enumerate(passages):
            windows = list(self.windows(question, passage))
            for found in best_spans(windows, answers=answers, threshold=threshold):
                text = passage[found.start : found.end]
                spans.append(Span(number, found.start, found.end, text, found.score))
        spans.sort(key=lambda span: (-span.score, span.passage, span.start))
        return spans[:answers]

    def windows(self, question: str, passage: str) -> Iterator[Window]:
        """Read a passage, window by window; neighbours share a third."""
        if re.search("[\ud800-\udfff]", passage):
            raise DataError("the passage holds half a character (a lone surrogate)")
        first = self._pairs.encode(question, passage)
        for encoding in (first, *first.overflowing):
            offsets = np.array(encoding.offsets, np.int64)
            outside = np.array([number != 1 for number in encoding.sequence_ids])
            offsets[outside] = -1
            yield Window(self._logits(encoding), offsets)

    def _logits(self, encoding: Any) -> Any:
        feeds = {
            "input_ids": np.array([encoding.ids], np.int64),
            "attention_mask": np.ones((1, len(encoding.ids)), np.int64),
            "token_type_ids": np.array([encoding.type_ids], np.int64),
        }
        return self._session.run(["spans"], feeds)[0][0]

    def _check(self, question: str) -> None:
        if re.search("[\ud800-\udfff]", question):
            raise DataError("the question holds half a character (a lone surrogate)")
        count = len(self._questions.encode(question).ids)
        if count > self.window_tokens // 2:
            raise DataError(
                f"the question has {count} tokens or more, at most {self.window_tokens // 2} leave "
                "room for passages"
            )
