"""Who answers a question: this device, or the coordinator's model. Always with the reason.

A1  a question leaves the device only if the owner's policy allows it, and then only with
    personal data replaced by placeholders
A2  what leaves is on disk here first, word for word as it leaves
A3  a coordinator that is slow, away or refusing never costs the answer: the device's own
    comes instead, and says that it is second best
A4  a question is answered with one model, adapter, calibration and policy from beginning to
    end, also when new ones arrive meanwhile
"""

from __future__ import annotations

import csv
import io
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import structlog

from shared.config import Field, Table
from shared.data_files import read_examples
from shared.errors import CoordinatorUnavailable, DataError, LlmOsError, ModelError, StorageError
from shared.files import append_durably, write_durably
from shared.models.calibration import Calibration, confidence
from shared.models.graph_session import LoadedAdapter
from shared.types import Digest, FloatMatrix, FloatVector

QUESTIONS: Final = "questions.jsonl"
MAX_WAITING: Final = 16
"""Questions that wait for the coordinator at a time; each holds a thread of the local API."""

_CJK: Final = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")

log = structlog.get_logger()


class Policy(Table):
    """What the device's owner allows, in ``policy.toml``.

    Attributes:
        escalate: ``redacted`` replaces personal data, then asks the coordinator;
            ``only-clean`` keeps every text with personal data here; ``never`` asks nobody.
        timeout_s: How long the coordinator may take.
        target_error: Most errors among local answers, as a share.
        out_of_scope: Labels that mean that none of the others fits.
    """

    escalate: Literal["redacted", "only-clean", "never"] = "redacted"
    timeout_s: float = Field(20.0, gt=0, le=600)
    target_error: float = Field(0.05, gt=0, lt=1)
    # Not strict: TOML has no tuples.
    out_of_scope: tuple[str, ...] = Field(("oos", "out_of_scope", "out-of-scope"), strict=False)


class Source(StrEnum):
    """Who answered."""

    DEVICE = "device"
    COORDINATOR = "coordinator"


class Code(StrEnum):
    """Why an answer came from where it came from. Stable and public."""

    CONFIDENT = "confident"
    # Reasons to ask the coordinator.
    NOT_CONFIDENT = "not-confident"
    OUT_OF_SCOPE = "out-of-scope"
    UNCALIBRATED = "uncalibrated"
    NO_TEMPLATE = "no-template"
    NO_MODEL = "no-model"
    # Reasons why it was not asked, or did not answer.
    POLICY_NEVER = "policy-never"
    POLICY_PERSONAL_DATA = "policy-personal-data"
    NOT_CONNECTED = "not-connected"
    COORDINATOR_BUSY = "coordinator-busy"
    COORDINATOR_TIMEOUT = "coordinator-timeout"
    COORDINATOR_FAILED = "coordinator-failed"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, where it came from and why.

    Attributes:
        text: What is said to whoever asked.
        label: What the device takes the question for; None without a model.
        confidence: Its calibrated probability; None without a model.
        source: Who answered.
        code: Why, for machines.
        reason: Why, as a short sentence.
        redacted: How many pieces of personal data were replaced, by kind, in what left.
        adapter: Of the device's own opinion.
        model: Name of the model that answered.
        milliseconds: From question to answer.
        stand_in: Whether the model that answered only stands in for a real one.
    """

    text: str
    label: str | None
    confidence: float | None
    source: Source
    code: Code
    reason: str
    redacted: Mapping[str, int]
    adapter: Digest | None
    model: str
    milliseconds: float
    stand_in: bool = False

    def facts(self) -> dict[str, Any]:
        """Everything but the text, as the local API and the command line tell it."""
        return {
            "source": str(self.source),
            "code": str(self.code),
            "reason": self.reason,
            "label": self.label,
            "confidence": self.confidence,
            "redacted": dict(self.redacted),
            "milliseconds": self.milliseconds,
            "model": self.model,
            "adapter": self.adapter,
            "stand_in": self.stand_in,
        }


@dataclass(frozen=True, slots=True)
class CoordinatorAnswer:
    """What the coordinator's model said."""

    text: str
    model: str
    stand_in: bool = False


class AskCoordinator(Protocol):
    """The way to the coordinator's model."""

    def __call__(self, text: str, timeout_s: float) -> CoordinatorAnswer:
        """Ask; answers or raises within ``timeout_s``.

        Raises:
            TimeoutError: there was no answer in time.
            LlmOsError: it refused, or cannot be reached.
        """
        ...


class Encoder(Protocol):
    """The part of a :class:`~shared.models.graph_session.GraphSession` that answering needs."""

    def answer(self, text: str, adapter: LoadedAdapter) -> tuple[FloatMatrix, FloatMatrix]:
        """Features and logits of one text."""
        ...

    def embed(self, text: str) -> FloatMatrix:
        """The base model's features of one text."""
        ...

    def tokens(self, text: str) -> int:
        """How many tokens of a text are read."""
        ...


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the device takes a text for."""

    label: str
    confidence: float
    probabilities: FloatVector
    """Of all labels, in the adapter's order."""


@dataclass(frozen=True, slots=True)
class LocalModel:
    """Base, adapter and calibration that belong together."""

    name: str
    encoder: Encoder
    adapter: LoadedAdapter
    calibration: Calibration | None

    def classify(self, text: str) -> Opinion:
        """Return the likeliest label. Uncalibrated confidence is the plain softmax.

        Raises:
            DataError: the text cannot be read.
        """
        _, logits = self.encoder.answer(text, self.adapter)
        temperature = self.calibration.temperature if self.calibration is not None else 1.0
        probabilities = confidence(logits, temperature)
        best = int(probabilities.argmax())
        return Opinion(self.adapter.labels[best], float(probabilities[best]), probabilities)


class Templates:
    """What is said for each label, per language; empty if the owner gave nothing."""

    def __init__(self, texts: Mapping[tuple[str, str], str] | None = None) -> None:
        """Take texts by (label, language); the language may be empty."""
        self._texts = dict(texts or {})
        self._any: dict[str, str] = {}
        for (label, _), text in self._texts.items():
            self._any.setdefault(label, text)

    def __len__(self) -> int:
        return len(self._texts)

    @classmethod
    def read(cls, path: Path) -> Templates:
        """Read a file with the columns ``label`` and ``answer``, and perhaps ``language``.

        Raises:
            DataError: as :func:`~shared.data_files.read_examples`, or two rows answer the
                same label in the same language.
        """
        rows = read_examples(
            path,
            text_column="answer",
            label_column="label",
            group_column="language" if _has_language(path) else None,
        )
        texts: dict[tuple[str, str], str] = {}
        for row in rows:
            key = (row.label, _primary(row.group))
            if texts.setdefault(key, row.text) != row.text:
                raise DataError(f"{path}: two answers for '{row.label}' in '{row.group or 'any'}'")
        return cls(texts)

    def merged(self, other: Templates) -> Templates:
        """Return both, ``other`` where they differ."""
        return Templates(self._texts | other._texts)

    def to_csv(self) -> bytes:
        """Return the table as :meth:`read` reads it."""
        lines = io.StringIO(newline="")
        writer = csv.writer(lines)
        writer.writerow(["label", "language", "answer"])
        writer.writerows((label, language, text) for (label, language), text in self._texts.items())
        return lines.getvalue().encode()

    def find(self, label: str, question: str) -> str | None:
        """Return the text in the question's language, else in any."""
        language = "zh" if _CJK.search(question) else "en"
        for key in ((label, language), (label, "")):
            if key in self._texts:
                return self._texts[key]
        return self._any.get(label)


@dataclass(frozen=True, slots=True)
class Equipment:
    """Everything that one question is answered with (A4)."""

    model: LocalModel | None = None
    policy: Policy = field(default_factory=Policy)
    templates: Templates = field(default_factory=Templates)
    problem: str = "no model was released to it yet"
    """Why there is no model, if there is none."""


@dataclass(frozen=True, slots=True)
class _Because:
    code: Code
    sentence: str


class _Unanswered(Exception):
    """The coordinator did not answer, or was not asked."""

    def __init__(self, because: _Because, redacted: Mapping[str, int] | None = None) -> None:
        super().__init__(because.sentence)
        self.because = because
        self.redacted = redacted or {}


class Answerer:
    """Answers questions. Any number of threads may ask at a time."""

    def __init__(
        self,
        equipment: Callable[[], Equipment],
        home: Path,
        *,
        ask_coordinator: AskCoordinator | None,
    ) -> None:
        """Answer with whatever ``equipment()`` gives at the moment of each question.

        Args:
            equipment: What the device has.
            home: The device's folder, where questions that leave are written down.
            ask_coordinator: The way to the coordinator; None where there is none.
        """
        self._equipment = equipment
        self._questions = home / QUESTIONS
        self._ask_coordinator = ask_coordinator
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)
        self._writing = threading.Lock()

    @property
    def equipment(self) -> Equipment:
        """What the next question would be answered with."""
        return self._equipment()

    def answer(self, question: str) -> Answer:
        """Answer here if that is good enough, else ask the coordinator, else here all the same.

        Raises:
            DataError: the question cannot be read.
            ModelError: there is no model here, and the policy forbids asking or nobody is there.
            CoordinatorUnavailable: there is no model here, and the coordinator did not answer.
        """
        started = time.perf_counter()
        equipment = self._equipment()
        model = equipment.model
        opinion = model.classify(question) if model is not None else None
        template = equipment.templates.find(opinion.label, question) if opinion else None

        def finished(
            text: str,
            source: Source,
            because: _Because,
            *,
            redacted: Mapping[str, int],
            name: str,
            stand_in: bool = False,
        ) -> Answer:
            return Answer(
                text=text,
                label=opinion.label if opinion is not None else None,
                confidence=opinion.confidence if opinion is not None else None,
                source=source,
                code=because.code,
                reason=because.sentence,
                redacted=redacted,
                adapter=model.adapter.digest if model is not None else None,
                model=name,
                milliseconds=round((time.perf_counter() - started) * 1000, 2),
                stand_in=stand_in,
            )

        doubt = _doubt(equipment, opinion, template)
        redacted: Mapping[str, int] = {}
        if doubt is not None:
            try:
                said, redacted = self._asked(question, equipment.policy, doubt)
            except _Unanswered as failure:
                because, redacted = failure.because, failure.redacted
                if opinion is None or model is None:
                    raise _nobody(because) from failure
                doubt = _Because(because.code, f"{doubt.sentence}; {because.sentence}")
            else:
                return finished(
                    said.text,
                    Source.COORDINATOR,
                    doubt,
                    redacted=redacted,
                    name=said.model,
                    stand_in=said.stand_in,
                )
        assert opinion is not None  # or there would have been a doubt, and no way out of it
        assert model is not None
        because = doubt or _Because(
            Code.CONFIDENT, f"confidence {opinion.confidence:.3f} reaches the threshold"
        )
        # Without a text of the owner's, the label is the best answer there is.
        return finished(
            template or opinion.label, Source.DEVICE, because, redacted=redacted, name=model.name
        )

    def _asked(
        self, question: str, policy: Policy, doubt: _Because
    ) -> tuple[CoordinatorAnswer, Mapping[str, int]]:
        """Ask the coordinator as the policy allows (A1, A2).

        Raises:
            _Unanswered: with the reason.
        """
        if policy.escalate == "never":
            raise _Unanswered(
                _Because(Code.POLICY_NEVER, "the owner's policy never asks the coordinator")
            )
        if self._ask_coordinator is None:
            raise _Unanswered(
                _Because(Code.NOT_CONNECTED, "there is no connection to the coordinator here")
            )
        from shared.privacy.redaction import redact

        clean = redact(question)
        kinds = dict(Counter(str(finding.kind) for finding in clean.findings))
        if kinds and policy.escalate == "only-clean":
            raise _Unanswered(
                _Because(
                    Code.POLICY_PERSONAL_DATA,
                    "the owner's policy keeps texts with personal data on the device",
                )
            )
        if not self._waiting.acquire(blocking=False):
            raise _Unanswered(
                _Because(Code.COORDINATOR_BUSY, f"{MAX_WAITING} questions wait for it already")
            )
        try:
            self._write_down(clean.text, doubt.code, kinds)
            return self._ask_coordinator(clean.text, policy.timeout_s), kinds
        except TimeoutError as err:
            sentence = f"the coordinator gave no answer within {policy.timeout_s:g} s"
            raise _Unanswered(_Because(Code.COORDINATOR_TIMEOUT, sentence), kinds) from err
        except StorageError as err:
            sentence = f"the question could not be written down, so it was not asked ({err})"
            raise _Unanswered(_Because(Code.COORDINATOR_FAILED, sentence)) from err
        except LlmOsError as err:
            log.warning("question.failed", code=err.code, error=str(err))
            sentence = f"the coordinator could not answer ({err.code})"
            raise _Unanswered(_Because(Code.COORDINATOR_FAILED, sentence), kinds) from err
        finally:
            self._waiting.release()

    def _write_down(self, text: str, code: Code, kinds: Mapping[str, int]) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {"at": at, "text": text, "code": code, "redacted": kinds}
        # One at a time: an append that fails takes back everything behind its own beginning.
        with self._writing:
            if not self._questions.exists():
                write_durably(self._questions, b"", mode=0o600)
            line = json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace")
            append_durably(self._questions, line + b"\n")


def _doubt(equipment: Equipment, opinion: Opinion | None, template: str | None) -> _Because | None:
    """Why the device's own answer is not good enough; None if it is."""
    model, policy = equipment.model, equipment.policy
    if model is None or opinion is None:
        return _Because(Code.NO_MODEL, f"the device has no model: {equipment.problem}")
    untrusted = _untrusted(model.calibration, policy)
    if untrusted is not None:
        return _Because(Code.UNCALIBRATED, untrusted)
    assert model.calibration is not None
    assert model.calibration.threshold is not None
    if opinion.label in policy.out_of_scope:
        return _Because(Code.OUT_OF_SCOPE, "the question is about none of the known intents")
    if opinion.confidence < model.calibration.threshold:
        return _Because(
            Code.NOT_CONFIDENT,
            f"confidence {opinion.confidence:.3f} is below {model.calibration.threshold:.3f}",
        )
    if len(equipment.templates) and template is None:
        return _Because(Code.NO_TEMPLATE, f"the device has no text for '{opinion.label}'")
    return None


def _untrusted(calibration: Calibration | None, policy: Policy) -> str | None:
    """Why confidence says nothing here; None if it does."""
    if calibration is None:
        return "nothing is known about how far the device's answers can be trusted"
    if calibration.target_error > policy.target_error:
        return (
            f"the threshold was certified for {calibration.target_error:.1%} errors, the owner's "
            f"policy allows {policy.target_error:.1%}"
        )
    if calibration.threshold is None:
        return f"no threshold could be certified for at most {calibration.target_error:.1%} errors"
    return None


def _nobody(because: _Because) -> LlmOsError:
    kind = (
        ModelError
        if because.code in {Code.POLICY_NEVER, Code.POLICY_PERSONAL_DATA, Code.NOT_CONNECTED}
        else CoordinatorUnavailable
    )
    return kind(f"this device has no model yet, and {because.sentence}")


def _has_language(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            first = file.readline()
    except OSError:
        return False  # whoever reads it next says what is wrong
    return bool(re.search(r"\blanguage\b", first))


def _primary(tag: str) -> str:
    """The language of a tag: ``zh`` of ``zh-CN``."""
    return tag.replace("_", "-").partition("-")[0].lower()
