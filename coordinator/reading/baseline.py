"""What a reader must beat: the sentence that shares most with the question."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from coordinator.reading.metrics import segments

_SENTENCE: Final = re.compile(r"[^。！？；.!?;\n]+[。！？；.!?;\n]?")


def best_sentence(question: str, passage: str) -> str:
    """Return the passage's sentence with the best overlap; of equals the first.

    Overlap is the F1 of the bags of characters (Chinese) or words (other scripts).
    """
    asked = Counter(segments(question))
    best, best_score = "", -1.0
    for match in _SENTENCE.finditer(passage):
        there = Counter(segments(match.group()))
        common = sum((asked & there).values())
        score = 2 * common / max(1, sum(asked.values()) + sum(there.values()))
        if there and score > best_score:
            best, best_score = match.group().strip(" \n。！？；.!?;"), score
    return best
