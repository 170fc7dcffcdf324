"""Questions with their answers: the shipped ones, or a file's."""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.data_files import read_examples
from shared.errors import ConfigError
from shared.types import Digest

LEFT_OUT = 6
"""So many intents of the shipped pairs are left out unless others are named."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and its answer."""

    question: str
    answer: str
    intent: str = ""
    """What the question wants; empty where nobody said."""


def shipped_pairs() -> list[Pair]:
    """Every shipped support ticket with the best answer to its intent in its language."""
    with importlib.resources.as_file(importlib.resources.files("sim") / "tickets") as folder:
        answers = read_examples(
            folder / "answers.csv",
            text_column="answer",
            label_column="label",
            group_column="language",
        )
        tickets = read_examples(folder / "tickets.csv", group_column="language")
    best = {(each.label, each.group): each.text for each in answers}
    return [Pair(each.text, best[each.label, each.group], each.label) for each in tickets]


def read_pairs(path: Path) -> list[Pair]:
    """Read a CSV or JSON lines file with the columns ``question`` and ``answer``.

    Raises:
        DataError: as :func:`~shared.data_files.read_examples`.
    """
    examples = read_examples(path, text_column="question", label_column="answer")
    return [Pair(each.text, each.label) for each in examples]


def last_intents(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """The last intents of the alphabet, which are left out unless others are named."""
    return tuple(sorted({pair.intent for pair in pairs if pair.intent})[-LEFT_OUT:])


def check_intents(pairs: Sequence[Pair], leave_out: Sequence[str]) -> None:
    """Refuse to leave out what is not there, or everything.

    Raises:
        ConfigError: an intent is not one of the pairs', or nothing would be left.
    """
    known = {pair.intent for pair in pairs}
    unknown = sorted(set(leave_out) - known)
    problems = [f"--leave-out: there is no intent {name!r}" for name in unknown]
    if known <= set(leave_out):
        problems.append("--leave-out: nothing would be left to learn")
    if problems:
        raise ConfigError(problems, source="options")


def digest_of_pairs(pairs: Sequence[Pair]) -> Digest:
    """SHA-256 of all pairs in their order."""
    running = hashlib.sha256()
    for pair in pairs:
        for part in (pair.question, pair.answer, pair.intent):
            running.update(f"{len(part)}:{part}".encode())
    return Digest(running.hexdigest())
