"""A small reader, trained within minutes on the questions of one file.

It is a stand-in: it shows how the pieces around a reader work together on a machine without
network, on questions it has not seen, and its files say what it is and what it reaches.

S1  the folder is there whole or not at all
S2  a number of steps instead of a time gives the same weights again, on one machine
S3  articles are kept back whole: nothing of them is seen, and the figures are of their questions

What makes minutes enough: the first weights let a token look at equal tokens (queries and keys
start out equal) and at near ones (positions start out as waves), for finding the place that a
question is about is mostly that; and half of what is trained on are made-up questions, a
sentence less one of its parts, whose answer is the part.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from coordinator.reading.baseline import best_sentence
from coordinator.reading.evaluation import Figures, evaluate
from coordinator.reading.squad import Answer, Question, language_of
from shared.errors import DataError
from shared.extras import require
from shared.files import appearing_folder

RECIPE: Final = "stand_in.json"

WINDOW: Final = 256
"""Tokens of question and passage in training and answering alike."""
QUESTION_TOKENS: Final = 48

_VOCABULARY: Final = 8000
_HIDDEN: Final = 128
_INNER: Final = 256
_HEADS: Final = 4
_LAYERS: Final = 4
_BATCH: Final = 16
_RATE: Final = 1e-3
_WARM_UP: Final = 0.05
_MADE_UP: Final = 0.5
_ELSEWHERE: Final = 0.15
"""Share of windows that do not hold the answer, so that "no answer" is learnt."""
_HELD_OUT_LIMIT: Final = 400
_MARKS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")

_SENTENCE: Final = re.compile(r"[^。！？!?\n]+")
_PART: Final = re.compile(r"[^，、；：。！？,;:!?\n《》“”（）()]+")

Progress = Callable[[float, float], None]
"""Told after each step: the share that is done, and the loss."""


@dataclass(frozen=True, slots=True)
class MadeReader:
    """What was made, and what it is worth (S3)."""

    name: str
    folder: str
    language: str
    parameters: int
    steps: int
    trained_s: float
    loss: float
    trained_on: int
    """Questions."""
    held_out: Figures
    """Of the reader, always answering, on at most 400 questions of articles that were kept back."""
    baseline: Figures
    """Of the sentence that shares most with the question, on the same ones."""


def make_reader(
    out: Path,
    questions: Sequence[Question],
    *,
    seconds: float | None = None,
    steps: int | None = None,
    held_out: float = 0.2,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> MadeReader:
    """Train a reader and write it to the folder ``out``, replacing what is there (S1).

    Args:
        out: Its name becomes the model's.
        questions: Of one file.
        seconds: Bound on the training's time.
        steps: Bound on the training's steps; without ``seconds`` the result can be repeated.
        held_out: Share of the articles that is kept back.
        seed: Of the split, the first weights and the order.
        threads: Arithmetic threads.
        progress: Told after each step.

    Raises:
        DataError: there are too few articles or answers.
        DependencyMissing: the extra ``llm`` is not installed.
        StorageError: the disk refused.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    known, unknown = _split(questions, held_out, rng)
    language = language_of(questions)
    trainer = _Trainer(known, seed=seed, threads=threads)
    ran, seconds_taken, loss = trainer.train(rng, seconds=seconds, steps=steps, progress=progress)
    judged = [unknown[at] for at in sorted(rng.permutation(len(unknown))[:_HELD_OUT_LIMIT])]
    with appearing_folder(out) as new:
        new.mkdir()
        trainer.save(new)
        figures = evaluate(_answerer(new), judged, language)
        made = MadeReader(
            name=out.name,
            folder=str(out),
            language=language,
            parameters=trainer.parameters,
            steps=ran,
            trained_s=round(seconds_taken, 1),
            loss=round(loss, 4),
            trained_on=len(known),
            held_out=figures,
            baseline=evaluate(lambda q: best_sentence(q.text, q.passage), judged, language),
        )
        about = {
            "format": 1,
            "seed": seed,
            "held_out": [question.id for question in unknown],
            "made": asdict(made),
        }
        text = json.dumps(about, indent=1, ensure_ascii=False)
        (new / RECIPE).write_text(text, encoding="utf-8")
    return made


def held_out_ids(folder: Path) -> frozenset[str]:
    """The questions that a reader from :func:`make_reader` was not trained on.

    Raises:
        DataError: the folder holds no such reader.
    """
    try:
        about = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        return frozenset(about["held_out"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DataError(
            f"{folder} does not say what was kept back: it was not made by 'llmos model make-reader'"
        ) from err


def _split(
    questions: Sequence[Question], share: float, rng: np.random.Generator
) -> tuple[list[Question], list[Question]]:
    articles = sorted({question.article for question in questions})
    count = round(share * len(articles))
    if not 0 < count < len(articles):
        raise DataError(f"{len(articles)} articles cannot be divided: a reader needs some of each")
    back = {articles[at] for at in rng.permutation(len(articles))[:count]}
    known = [question for question in questions if question.article not in back]
    unknown = [question for question in questions if question.article in back]
    if not any(question.answers for question in known):
        raise DataError("none of the questions to learn from has an answer")
    return known, unknown


def _answerer(folder: Path) -> Callable[[Question], str]:
    """Answer as the coordinator would with this folder."""
    import tempfile

    from coordinator.reading.session import SpanSession
    from coordinator.registry.reader_import import import_reader

    with tempfile.TemporaryDirectory(prefix="llmos-reader-") as models:
        session = SpanSession(import_reader(str(folder), Path(models)).folder)

    def answer(question: Question) -> str:
        found = session.read(question.text, [question.passage], answers=1, threshold=None)
        return found[0].text if found else ""

    return answer


@dataclass(frozen=True, slots=True)
class _Example:
    """Tokens of one window, and where the answer is; 0 for none."""

    ids: list[int]
    kinds: list[int]
    start: int
    end: int


class _Trainer:
    def __init__(self, questions: Sequence[Question], *, seed: int, threads: int) -> None:
        torch: Any = require("torch", extra="llm")
        transformers: Any = require("transformers", extra="llm")
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        self._torch = torch
        self._tokenizer = _train_tokenizer(questions)
        self._questions = [question for question in questions if question.answers]
        self._passages = sorted({question.passage for question in questions})
        config = transformers.BertConfig(
            vocab_size=self._tokenizer.get_vocab_size(),
            hidden_size=_HIDDEN,
            intermediate_size=_INNER,
            num_hidden_layers=_LAYERS,
            num_attention_heads=_HEADS,
            max_position_embeddings=WINDOW,
            type_vocab_size=2,
            pad_token_id=0,
            hidden_dropout_prob=0.0,  # drawing it takes half of a step; made-up questions do as well
            attention_probs_dropout_prob=0.0,
            stand_in=True,
        )
        self._model = transformers.BertForQuestionAnswering(config)
        self._prepare_weights()
        self.parameters = sum(tensor.numel() for tensor in self._model.parameters())

    def train(
        self,
        rng: np.random.Generator,
        *,
        seconds: float | None,
        steps: int | None,
        progress: Progress | None,
    ) -> tuple[int, float, float]:
        """Train until time or steps are used up: steps, seconds, loss of the last tenth."""
        torch, model = self._torch, self._model
        model.train()
        adam = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.98), weight_decay=0.01)
        losses: list[float] = []
        batches, started, done = self._batches(rng), time.monotonic(), 0.0
        while done < 1.0:
            rate = min(1.0, (done + 1e-3) / _WARM_UP) * (1 + math.cos(math.pi * done)) / 2
            for group in adam.param_groups:
                group["lr"] = _RATE * rate
            loss = self._loss(next(batches))
            model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            losses.append(float(loss.detach()))
            by_time = (time.monotonic() - started) / seconds if seconds is not None else 0.0
            by_steps = len(losses) / steps if steps is not None else 0.0
            done = min(1.0, max(by_time, by_steps))
            if progress is not None:
                progress(done, losses[-1])
        model.eval()
        last = losses[-max(1, len(losses) // 10) :]
        return len(losses), time.monotonic() - started, float(np.mean(last))

    def save(self, folder: Path) -> None:
        """Write the model as transformers would, and its tokenizer."""
        self._model.save_pretrained(folder)
        self._tokenizer.no_truncation()
        self._tokenizer.save(str(folder / "tokenizer.json"))

    def _prepare_weights(self) -> None:
        """Let tokens look for equal tokens of the other text, and at near ones, from the start.

        Features are divided: words have 92 of them, positions 32 (as waves), and one each says
        which text a token is of, and that it was looked for in vain. Even layers look for equal
        words on the other side, and at [CLS], which carries the latter mark, where there is none;
        odd ones look one token ahead, one back, and around.
        """
        torch, bert = self._torch, self._model.bert
        wide = _HIDDEN // _HEADS
        with torch.no_grad():
            basis = torch.nn.init.orthogonal_(torch.empty(_HIDDEN, _HIDDEN))
            places, side, mark = basis[:wide], basis[wide : wide + 1], basis[wide + 1 : wide + 2]
            words = basis[wide + 4 :]
            table = bert.embeddings
            drawn = torch.randn(len(table.word_embeddings.weight), len(words)) @ words
            drawn *= math.sqrt(_HIDDEN / len(words))
            drawn[2] = math.sqrt(_HIDDEN) * mark[0]
            table.word_embeddings.weight.copy_(drawn)
            rates = 1000.0 ** (-torch.arange(wide // 2) / (wide // 2))
            angles = torch.arange(WINDOW)[:, None] * rates
            waves = torch.cat([torch.sin(angles), torch.cos(angles)], 1)
            table.position_embeddings.weight.copy_(1.2 * waves @ places)
            table.token_type_embeddings.weight.copy_(3.0 * torch.cat([side, -side]))
            for number, layer in enumerate(bert.encoder.layer):
                attention = layer.attention.self
                queries, keys, values, bias = [], [], [], torch.zeros(_HIDDEN)
                for head, (ahead, gain) in enumerate(((-1, 1.6), (1, 1.6), (0, 1.3), (0, 0.9))):
                    chosen = torch.nn.init.orthogonal_(torch.empty(wide - 2, len(words))) @ words
                    values.append(torch.cat([chosen, side, 0.5 * mark]))
                    if number % 2 == 0:
                        keys.append(1.2 * torch.cat([chosen, 1.3 * side, mark]))
                        queries.append(1.2 * torch.cat([chosen, -1.3 * side, 0 * mark]))
                        bias[(head + 1) * wide - 1] = 2.8
                    else:
                        turn, count = ahead * rates, wide // 2
                        turned = torch.zeros(wide, wide)
                        at = torch.arange(count)
                        turned[at, at] = turned[at + count, at + count] = torch.cos(turn)
                        turned[at, at + count], turned[at + count, at] = (
                            torch.sin(turn),
                            -torch.sin(turn),
                        )
                        keys.append(gain * places)
                        queries.append(gain * turned @ places)
                attention.query.weight.copy_(torch.cat(queries))
                attention.query.bias.copy_(bias)
                attention.key.weight.copy_(torch.cat(keys))
                attention.value.weight.copy_(torch.cat(values))
                layer.attention.output.dense.weight.copy_(0.5 * torch.cat(values).T)

    def _loss(self, batch: Sequence[_Example]) -> Any:
        torch = self._torch
        longest = max(len(example.ids) for example in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        kinds, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, example in enumerate(batch):
            count = len(example.ids)
            ids[row, :count] = torch.tensor(example.ids)
            kinds[row, :count] = torch.tensor(example.kinds)
            mask[row, :count] = 1
        answer = self._model(input_ids=ids, attention_mask=mask, token_type_ids=kinds)
        total = 0.0
        outside = mask == 0
        for logits, places in (
            (answer.start_logits, [example.start for example in batch]),
            (answer.end_logits, [example.end for example in batch]),
        ):
            counted = logits.masked_fill(outside, -1e4)
            total = total + torch.nn.functional.cross_entropy(counted, torch.tensor(places))
        return total / 2

    def _batches(self, rng: np.random.Generator) -> Iterator[list[_Example]]:
        """Real questions again and again, each time in another order, and made-up ones between."""
        order: list[int] = []
        while True:
            batch: list[_Example] = []
            while len(batch) < _BATCH:
                if rng.random() < _MADE_UP:
                    question = _made_up(self._passages[rng.integers(len(self._passages))], rng)
                else:
                    order = order or rng.permutation(len(self._questions)).tolist()
                    question = self._questions[order.pop()]
                example = self._example(question, rng) if question is not None else None
                if example is not None:
                    batch.append(example)
            yield batch

    def _example(self, question: Question, rng: np.random.Generator) -> _Example | None:
        """A window of the passage, mostly one that holds the answer, at a place that is drawn."""
        answer = question.answers[rng.integers(len(question.answers))]
        first, behind = answer.start, answer.start + len(answer.text)
        asked = self._tokenizer.encode(question.text, add_special_tokens=False)
        passage = self._tokenizer.encode(question.passage, add_special_tokens=False)
        asked_ids = asked.ids[:QUESTION_TOKENS]
        room = WINDOW - len(asked_ids) - 3
        within = [n for n, (a, b) in enumerate(passage.offsets) if a < behind and b > first]
        if not within or len(within) > room:
            return None
        count = len(passage.ids)
        lowest, highest = max(0, within[-1] + 1 - room), min(within[0], max(0, count - room))
        lowest = min(lowest, highest)
        at = int(rng.integers(lowest, highest + 1))
        if count > room and rng.random() < _ELSEWHERE:
            at = int(rng.integers(0, count - room + 1))
        head = [2, *asked_ids, 3]
        part = passage.ids[at : at + room]
        start, end = within[0] - at, within[-1] - at
        there = start >= 0 and end < len(part)
        return _Example(
            ids=[*head, *part, 3],
            kinds=[0] * len(head) + [1] * (len(part) + 1),
            start=len(head) + start if there else 0,
            end=len(head) + end if there else 0,
        )


def _made_up(passage: str, rng: np.random.Generator) -> Question | None:
    """A sentence less one of its parts, some of the rest left out, as a question for the part."""
    sentences = [match for match in _SENTENCE.finditer(passage) if len(match.group()) > 12]
    if not sentences:
        return None
    sentence = sentences[rng.integers(len(sentences))]
    parts = [match for match in _PART.finditer(sentence.group()) if len(match.group().strip()) > 1]
    if len(parts) < 2:
        return None
    chosen = int(rng.integers(len(parts)))
    kept = [
        part.group()
        for number, part in enumerate(parts)
        if number != chosen and abs(number - chosen) <= 2 and rng.random() < 0.8
    ]
    words = re.findall(
        r"\w+\s*|\W" if " " in sentence.group() else r"[A-Za-z0-9]+|.", "".join(kept)
    )
    words = [word for word in words if rng.random() < 0.7]
    if len(words) < 3:
        return None
    answer = parts[chosen].group()
    text = answer.strip()
    start = sentence.start() + parts[chosen].start() + answer.index(text)
    return Question("", "", passage, "".join(words), (Answer(text, start),))


def _train_tokenizer(questions: Sequence[Question]) -> Any:
    """Chinese characters one by one, words of other scripts in pieces."""
    tokenizers: Any = require("tokenizers", extra="llm")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=True
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=_VOCABULARY, special_tokens=list(_MARKS), show_progress=False
    )
    texts = sorted({q.passage for q in questions}) + [q.text for q in questions]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(mark, _MARKS.index(mark)) for mark in ("[CLS]", "[SEP]")],
    )
    return tokenizer
