"""How an answer is judged: exact match and F1, with the official normalisations.

Source:
    English: the evaluation scripts of SQuAD 1.1 and 2.0. Chinese: ``cmrc2018_evaluate.py`` of
    Cui et al., EMNLP 2019 (mixed segmentation, F1 over the longest common substring of segments);
    where that takes a tokenizer of NLTK for what is not Chinese, words and signs are taken apart
    here by a pattern, which differs for contractions only.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Final

from coordinator.reading.squad import Language

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION: Final = frozenset(string.punctuation)
_HAN: Final = re.compile("[\u4e00-\u9fa5]")
_OTHER: Final = re.compile(r"\w+|[^\w\s]")
_CMRC_SIGNS: Final = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』") | {"……"}
"""As the script lists them; its "……" is compared with single characters and so never met."""


def exact_match(said: str, right: Sequence[str], language: Language) -> float:
    """1 if ``said`` is one of the right answers once both are normalised, else 0.

    Args:
        said: Empty for "no answer".
        right: None of them for a question without an answer.
        language: Whose normalisation.
    """
    if not right or not said:
        return float(bool(right) == bool(said))
    normal = _english if language == "en" else _chinese
    return float(any(normal(said) == normal(answer) for answer in right))


def f1(said: str, right: Sequence[str], language: Language) -> float:
    """Harmonic mean of precision and recall with the best of the right answers; as above."""
    if not right or not said:
        return float(bool(right) == bool(said))
    overlap = _english_f1 if language == "en" else _chinese_f1
    return max(overlap(said, answer) for answer in right)


def _english(text: str) -> str:
    kept = "".join(sign for sign in text.lower() if sign not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def _english_f1(said: str, answer: str) -> float:
    ours, theirs = _english(said).split(), _english(answer).split()
    if not ours or not theirs:
        return float(ours == theirs)
    return _harmonic(sum((Counter(ours) & Counter(theirs)).values()), len(ours), len(theirs))


def _chinese(text: str) -> str:
    return "".join(sign for sign in text.lower().strip() if sign not in _CMRC_SIGNS)


def segments(text: str) -> list[str]:
    """Chinese characters one by one, words of other scripts whole, without punctuation.

    >>> segments("在2012年，GPU加速了")
    ['在', '2012', '年', 'gpu', '加', '速', '了']
    """
    found: list[str] = []
    other = ""
    for sign in text.lower().strip():
        if sign in _CMRC_SIGNS:
            continue
        if _HAN.match(sign):
            found += [*_OTHER.findall(other), sign]
            other = ""
        else:
            other += sign
    return found + _OTHER.findall(other)


def _chinese_f1(said: str, answer: str) -> float:
    ours, theirs = segments(said), segments(answer)
    matcher = SequenceMatcher(None, theirs, ours, autojunk=False)
    return _harmonic(matcher.find_longest_match().size, len(ours), len(theirs))


def _harmonic(common: int, ours: int, theirs: int) -> float:
    if not common:
        return 0.0
    precision, recall = common / ours, common / theirs
    return 2 * precision * recall / (precision + recall)
