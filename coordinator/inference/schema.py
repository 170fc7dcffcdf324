"""Answers that satisfy a JSON schema: which tokens may come next. The only module that knows llguidance.

Source: Koo, Liu, He, "Automata-based constraints for language model decoding", 2024, for masks from
grammars; the library walks the tokenizer's trie beside an Earley parser.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shared.errors import ModelError, PromptRefused
from shared.extras import require

_EXTRA: Final = "llm"
_QUIET: Final = 0


class Follower:
    """Where one answer stands in its schema."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, shape (V,); those that end the turn where it may end."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[: self._vocabulary]
        mask = np.zeros(self._vocabulary, np.bool_)
        mask[: len(bits)] = bits
        return mask

    def accept(self, token: int) -> None:
        """Take the token that was chosen; it must have been allowed."""
        self._matcher.consume_token(token)

    @property
    def is_over(self) -> bool:
        """Whether nothing but the end of the turn may come."""
        return bool(self._matcher.is_stopped())


class Schemas:
    """Follows schemas with the tokens of one model."""

    def __init__(self, tokenizer: Path, ends: Sequence[int], vocabulary: int) -> None:
        """Read the tokenizer; a second for 150,000 tokens.

        Args:
            tokenizer: Its ``tokenizer.json``.
            ends: Tokens that end a turn.
            vocabulary: V, the width of the logits, which may be more than the tokenizer knows.

        Raises:
            ModelError: it is no tokenizer that can be used.
            DependencyMissing: the extra ``llm`` is not installed.
        """
        self._library: Any = require("llguidance", extra=_EXTRA)
        self._vocabulary = vocabulary
        try:
            text = tokenizer.read_text(encoding="utf-8")
            self._tokenizer = self._library.LLTokenizer(
                text, n_vocab=vocabulary, eos_token=list(ends)
            )
        except Exception as err:  # the library raises bare Exception and ValueError alike
            raise ModelError(f"{tokenizer} does not serve for JSON schemas: {err}") from err

    def follow(self, schema: str) -> Follower:
        """Begin an answer.

        Args:
            schema: A JSON schema as text. The answer is written without optional white space, so
                that no model fills its room with it.

        Raises:
            PromptRefused: it is no JSON schema, or asks for what cannot be followed.
        """
        matching = self._library.LLMatcher
        try:
            table = json.loads(schema)
            if not isinstance(table, dict):
                raise PromptRefused("response_format: a JSON schema is an object")
            grammar = matching.grammar_from_json_schema(
                json.dumps(table), overrides={"whitespace_flexible": False}
            )
        except (ValueError, RecursionError) as err:
            raise PromptRefused(f"response_format: this is no JSON schema: {err}") from err
        matcher = matching(self._tokenizer, grammar, log_level=_QUIET)
        if matcher.is_error():
            reason = str(matcher.get_error())[:300]
            raise PromptRefused(f"response_format: the schema cannot be followed: {reason}")
        return Follower(matcher, self._vocabulary)
