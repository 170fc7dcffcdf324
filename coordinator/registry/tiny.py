"""A small causal language model, trained within a minute on questions and answers.

It is a stand-in: it shows how the pieces around a language model work together on a machine
without network, and answers what it was trained on, little else. Its files say so.

S1  the folder is there whole or not at all
S2  a number of steps instead of a time gives the same weights again, on one machine
S3  the measured figures are of questions that were not trained on

It reads the last question of a conversation only: it never saw a conversation.
"""

from __future__ import annotations

import difflib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from coordinator.registry.pairs import Pair, check_intents, digest_of_pairs
from shared.errors import ConfigError, DataError
from shared.extras import require
from shared.files import appearing_folder
from shared.models.encoder import find_base_model
from shared.models.pytorch import prompt_ids
from shared.types import Digest

SizeName = Literal["small", "smaller"]


@dataclass(frozen=True, slots=True)
class Size:
    """A build and how it learns, found by trying on the shipped pairs."""

    hidden: int
    inner: int
    heads: int
    layers: int
    vocabulary: int
    batch: int
    seconds: float
    """Of training, unless told otherwise."""
    matrix_rate: float
    """Muon's step; matrices are orthogonal up to it."""
    other_rate: float
    """AdamW's step, for embeddings and norms."""


SIZES: Final[dict[SizeName, Size]] = {
    "small": Size(128, 384, 4, 2, 1536, 16, 55.0, matrix_rate=0.03, other_rate=5e-3),
    "smaller": Size(96, 256, 2, 1, 1536, 16, 22.0, matrix_rate=0.03, other_rate=6e-3),
}

CONTEXT: Final = 1024
RECIPE: Final = "stand_in.json"

_TURN: Final = "<|im_start|>"
_END: Final = "<|im_end|>"

_TEMPLATE: Final = (
    "{%- set asked = messages | selectattr('role', 'equalto', 'user') | list -%}"
    "{%- if not asked %}{{ raise_exception('there is no question in it') }}{% endif -%}"
    "{{- '<|im_start|>user\\n' + asked[-1].content + '<|im_end|>\\n' -}}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}"
)

_UNSEEN_SHARE: Final = 0.1
_UNSEEN_LIMIT: Final = 200
_ANSWERED: Final = 40
"""Unseen questions that are answered whole; 40 take some seconds."""
_MAX_TOKENS: Final = 384
"""Of one pair in training; what is longer is cut."""
_WHOLE_SHARE: Final = 0.2
_BEGINNING_TOKENS: Final = 10
"""Which answer it is to be shows in its first words, and that is the hard part, while the words
themselves are few and soon known: most sequences end here (measured: with whole answers
throughout, a third of the questions seen in the same time, and 0.43 instead of 0.87)."""
_QUESTION_WEIGHT: Final = 0.1
"""Questions are learnt a little too, so that their words mean something."""
_WARM_UP_STEPS: Final = 10

Progress = Callable[[float, float], None]
"""Told after each step: the share that is done, and the loss per sequence in nats."""


@dataclass(frozen=True, slots=True)
class StandIn:
    """What was made, and what it is worth."""

    name: str
    folder: str
    base: Digest
    parameters: int
    steps: int
    trained_s: float
    loss: float
    """Per sequence, in nats, mean over the last tenth of the steps."""
    left_out: tuple[str, ...]
    """Intents of which it has seen neither questions nor answers."""
    unseen: int
    """How many questions of known intents were kept back for the figures below (S3)."""
    perplexity_unseen: float
    """Of the right answers to them."""
    perplexity_left_out: float | None
    """Of the right answers to questions of the intents that were left out."""
    answered: int
    """So many of them were answered, for the two figures below."""
    similarity: float
    """Mean likeness, 0 to 1, of its answers and the right ones, by characters."""
    exact: float
    """Share of answers that are right to the letter."""
    reused: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides, with the pairs, which model comes out.

    Attributes:
        size: A build in :data:`SIZES`.
        leave_out: Intents that it shall not know.
        seconds: Bound on the training's time; by default the size's, unless ``steps`` is given.
        steps: Bound on the training's steps; without ``seconds`` the result can be repeated (S2).
        seed: Of the first weights, the order, and what is kept back.
    """

    size: SizeName = "small"
    leave_out: Sequence[str] = ()
    seconds: float | None = None
    steps: int | None = None
    seed: int = 0

    @property
    def time_limit_s(self) -> float | None:
        """Seconds of training; None where the steps alone decide."""
        if self.seconds is None and self.steps is None:
            return SIZES[self.size].seconds
        return self.seconds

    def described(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """JSON values that are equal exactly when the same was asked for."""
        return {
            "format": 1,
            "pairs": digest_of_pairs(pairs),
            "left_out": sorted(self.leave_out),
            "build": asdict(SIZES[self.size]),
            "seconds": self.time_limit_s,
            "steps": self.steps,
            "seed": self.seed,
        }


def make_once(
    out: Path,
    pairs: Sequence[Pair],
    recipe: Recipe,
    *,
    threads: int = 1,
    force: bool = False,
    progress: Progress | None = None,
) -> StandIn:
    """Find the stand-in that was made in ``out`` in the same way before, or make it.

    Everything is as for :func:`make_tiny`; ``force`` makes it anew, in the place of whatever
    is there.

    Raises:
        ConfigError: there is something else in ``out``, or as :func:`make_tiny`.
    """
    if not out.exists() or force:
        return make_tiny(out, pairs, recipe, threads=threads, progress=progress)
    try:
        known = json.loads((out / RECIPE).read_text(encoding="utf-8"))
        same = known["recipe"] == recipe.described(pairs)
        made = StandIn(**known["made"] | {"folder": str(out), "reused": True})
        made = replace(made, left_out=tuple(made.left_out))
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ConfigError(
            [f"{out} was made otherwise: give --force to replace it, or another --out"],
            source="options",
        )
    return made


def make_tiny(
    out: Path,
    pairs: Sequence[Pair],
    recipe: Recipe,
    *,
    threads: int = 1,
    progress: Progress | None = None,
) -> StandIn:
    """Train a stand-in and write it to the folder ``out``, replacing what is there (S1).

    Args:
        out: Its name becomes the model's.
        pairs: Questions and answers.
        recipe: What it shall be.
        threads: Arithmetic threads. Matrices this small hardly gain by more than one, and where
            others want the cores too, threads that wait for each other cost six times as much.
        progress: Told after each step.

    Raises:
        ConfigError: an intent is unknown, or nothing is left to learn.
        DataError: there are too few pairs.
        DependencyMissing: the extra ``llm`` is not installed.
        StorageError: the disk refused.
    """
    check_intents(pairs, recipe.leave_out)
    rng = np.random.Generator(np.random.PCG64(recipe.seed))
    known = [pair for pair in pairs if pair.intent not in recipe.leave_out]
    known = [known[index] for index in rng.permutation(len(known))]
    kept_back = min(round(len(known) * _UNSEEN_SHARE), _UNSEEN_LIMIT)
    unseen, seen = known[:kept_back], known[kept_back:]
    if not unseen:
        raise DataError(f"a stand-in needs at least 10 questions with answers, not {len(known)}")
    trainer = _Trainer(SIZES[recipe.size], seen, seed=recipe.seed, threads=threads)
    trained = trainer.train(rng, seconds=recipe.time_limit_s, steps=recipe.steps, progress=progress)
    strangers = [pair for pair in pairs if pair.intent in recipe.leave_out]
    strangers = [strangers[index] for index in rng.permutation(len(strangers))[:_UNSEEN_LIMIT]]
    with appearing_folder(out) as new:
        new.mkdir()
        trainer.save(new)
        similarity, exact = _likeness(trainer, unseen[:_ANSWERED])
        made = StandIn(
            name=out.name,
            folder=str(out),
            base=find_base_model(str(new)).digest,
            parameters=trainer.parameters,
            steps=trained.steps,
            trained_s=round(trained.seconds, 1),
            loss=round(trained.loss, 4),
            left_out=tuple(recipe.leave_out),
            unseen=len(unseen),
            perplexity_unseen=round(trainer.perplexity(unseen), 3),
            perplexity_left_out=round(trainer.perplexity(strangers), 1) if strangers else None,
            answered=len(unseen[:_ANSWERED]),
            similarity=round(similarity, 3),
            exact=round(exact, 3),
        )
        text = json.dumps({"recipe": recipe.described(pairs), "made": asdict(made)}, indent=2)
        (new / RECIPE).write_text(text, encoding="utf-8")
    return made


def _likeness(trainer: _Trainer, pairs: Sequence[Pair]) -> tuple[float, float]:
    """Likeness and exactness of the answers to some questions."""
    likeness = []
    for pair in pairs:
        given = trainer.answer(pair)
        # Without autojunk: it ignores frequent characters in longer texts, which are most.
        matcher = difflib.SequenceMatcher(None, given, pair.answer.strip(), autojunk=False)
        likeness.append(matcher.ratio())
    return float(np.mean(likeness)), float(np.mean([each == 1.0 for each in likeness]))


@dataclass(frozen=True, slots=True)
class _Trained:
    steps: int
    seconds: float
    loss: float


_Tokens = tuple[list[int], list[int]]
"""Of a question, up to where the answer begins, and of the answer with its end."""


class _Trainer:
    def __init__(self, build: Size, pairs: Sequence[Pair], *, seed: int, threads: int) -> None:
        torch: Any = require("torch", extra="llm")
        transformers: Any = require("transformers", extra="llm")
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        self._torch, self._build = torch, build
        self._tokenizer = _train_tokenizer(transformers, pairs, build.vocabulary)
        self._pairs = [self._tokens(pair) for pair in pairs]
        config = transformers.Qwen2Config(
            vocab_size=len(self._tokenizer),
            hidden_size=build.hidden,
            intermediate_size=build.inner,
            num_hidden_layers=build.layers,
            num_attention_heads=build.heads,
            num_key_value_heads=build.heads // 2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=self._tokenizer.eos_token_id,
            pad_token_id=self._tokenizer.pad_token_id,
            stand_in=True,
        )
        self._model = transformers.Qwen2ForCausalLM(config)
        self.parameters = sum(tensor.numel() for tensor in self._model.parameters())

    def train(
        self,
        rng: np.random.Generator,
        *,
        seconds: float | None,
        steps: int | None,
        progress: Progress | None,
    ) -> _Trained:
        """Train until time or steps are used up."""
        torch, build, model = self._torch, self._build, self._model
        model.train()
        matrices = [
            p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name
        ]
        known = {id(tensor) for tensor in matrices}
        others = [p for p in model.parameters() if id(p) not in known]
        adam = torch.optim.AdamW(others, lr=build.other_rate, betas=(0.9, 0.98), weight_decay=0.01)
        muon = _Muon(torch, matrices)
        losses: list[float] = []
        batches, started, done = self._batches(rng), time.monotonic(), 0.0
        while done < 1.0:
            rate = min(1.0, (len(losses) + 1) / _WARM_UP_STEPS)
            rate *= 0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2
            model.zero_grad()
            loss = self._losses(next(batches), question_weight=_QUESTION_WEIGHT).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in adam.param_groups:
                group["lr"] = rate * build.other_rate
            adam.step()
            muon.step(rate * build.matrix_rate)
            losses.append(float(loss.detach()))
            by_time = (time.monotonic() - started) / seconds if seconds is not None else 0.0
            by_steps = len(losses) / steps if steps is not None else 0.0
            done = min(1.0, max(by_time, by_steps))
            if progress is not None:
                progress(done, losses[-1])
        model.eval()
        last = losses[-max(1, len(losses) // 10) :]
        return _Trained(len(losses), time.monotonic() - started, float(np.mean(last)))

    def perplexity(self, pairs: Sequence[Pair]) -> float:
        """Of the answers: exp of the mean over pairs of the mean loss per token."""
        torch, losses = self._torch, []
        with torch.inference_mode():
            for start in range(0, len(pairs), 32):
                batch = [self._tokens(pair) for pair in pairs[start : start + 32]]
                losses.append(self._losses(batch, question_weight=0.0))
        return math.exp(float(torch.cat(losses).mean()))

    def answer(self, pair: Pair) -> str:
        """What it answers to a question, greedily, with a little room to be wrong."""
        torch = self._torch
        asked = torch.tensor(
            [prompt_ids(self._tokenizer, [{"role": "user", "content": pair.question}])]
        )
        with torch.inference_mode():
            out = self._model.generate(
                asked,
                attention_mask=torch.ones_like(asked),
                max_new_tokens=len(self._tokenizer(pair.answer)["input_ids"]) + 8,
                do_sample=False,
            )
        return str(
            self._tokenizer.decode(out[0, asked.shape[1] :], skip_special_tokens=True)
        ).strip()

    def save(self, folder: Path) -> None:
        """Write model, tokenizer and chat template."""
        self._tokenizer.save_pretrained(folder)
        self._model.save_pretrained(folder)

    def _tokens(self, pair: Pair) -> _Tokens:
        turn = {"role": "user", "content": pair.question}
        asked = prompt_ids(self._tokenizer, [turn])[-_MAX_TOKENS // 2 :]
        answered = self._tokenizer(pair.answer + _END)["input_ids"]
        return asked, answered[: _MAX_TOKENS - len(asked)]

    def _batches(self, rng: np.random.Generator) -> Iterator[list[_Tokens]]:
        """All pairs, again and again, each time in another order; alike lengths together."""
        size = self._build.batch
        while True:
            order = rng.permutation(len(self._pairs))
            for start in range(0, len(order), size * 8):
                pool = []
                for index in order[start : start + size * 8]:
                    asked, answered = self._pairs[index]
                    whole = rng.random() < _WHOLE_SHARE
                    pool.append((asked, answered if whole else answered[:_BEGINNING_TOKENS]))
                pool.sort(key=lambda each: len(each[0]) + len(each[1]))
                batches = [pool[at : at + size] for at in range(0, len(pool), size)]
                for place in rng.permutation(len(batches)):
                    yield batches[place]

    def _losses(self, batch: Sequence[_Tokens], *, question_weight: float) -> Any:
        """Return one loss per pair, (n,).

        The mean over the answer's tokens plus, where the answer is whole, the weighted mean
        over the question's.
        """
        torch, model = self._torch, self._model
        longest = max(len(asked) + len(answered) for asked, answered in batch)
        tokens = torch.zeros(len(batch), longest, dtype=torch.int64)
        weights = torch.zeros(len(batch), longest)
        for row, (asked, answered) in enumerate(batch):
            end = len(asked) + len(answered)
            tokens[row, :end] = torch.tensor(asked + answered)
            weights[row, len(asked) : end] = 1 / len(answered)
            if answered[-1] == self._tokenizer.eos_token_id:
                weights[row, : len(asked)] = question_weight / len(asked)
        # No mask is needed: padding stands at the end, where nothing before it can look.
        states = model.model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
        targets, weights = tokens[:, 1:], weights[:, 1:]
        # Logits cost as much as all layers together, so only those that count are taken.
        counting = weights > 0
        losses = torch.nn.functional.cross_entropy(
            model.lm_head(states[counting]), targets[counting], reduction="none"
        )
        rows = counting.nonzero()[:, 0]
        return torch.zeros(len(batch)).index_add(0, rows, losses * weights[counting])


class _Muon:
    """Steps along the momentum's nearest (half-)orthogonal matrix.

    ``torch.optim.Muon`` iterates in bfloat16, which took this machine's processor ten times as
    long as all the rest; here it is float32, all matrices of one shape together. A few hundred
    steps learn as much as three times as many of AdamW (measured on the shipped pairs).

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(self, torch: Any, matrices: Sequence[Any]) -> None:
        self._torch = torch
        by_shape: dict[tuple[int, int], list[Any]] = {}
        for matrix in matrices:
            by_shape.setdefault(tuple(matrix.shape), []).append(matrix)
        self._groups = list(by_shape.values())
        self._momenta = [torch.zeros(len(g), *g[0].shape) for g in self._groups]

    def step(self, rate: float) -> None:
        torch = self._torch
        with torch.no_grad():
            for group, momentum in zip(self._groups, self._momenta, strict=True):
                gradients = torch.stack([matrix.grad for matrix in group])
                momentum.lerp_(gradients, 0.05)
                rows, columns = group[0].shape
                # The smaller side's products are the cheaper ones.
                update = gradients.lerp(momentum, 0.95)
                x = update.mT if rows > columns else update
                x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
                for _ in range(5):  # Newton–Schulz with the source's coefficients
                    product = x @ x.mT
                    product = -4.7750 * product + 2.0315 * (product @ product)
                    x = 3.4445 * x + product @ x
                x = x.mT if rows > columns else x
                scale = math.sqrt(max(1.0, rows / columns))
                for matrix, direction in zip(group, x, strict=True):
                    matrix.mul_(1 - 0.01 * rate).add_(direction, alpha=-rate * scale)


def _train_tokenizer(transformers: Any, pairs: Sequence[Pair], vocabulary: int) -> Any:
    """Byte-level pairs over questions and distinct answers: any text can be written in them."""
    # An answer stands once: repeated for each question it would become one token.
    texts = [pair.question for pair in pairs] + sorted({pair.answer for pair in pairs})
    # Out of Qwen2's own: how it splits words holds for every tokenizer of a Qwen2 model, whatever
    # its file says, so one made otherwise would read questions otherwise than it was trained to.
    tokenizer = transformers.Qwen2Tokenizer().train_new_from_iterator(
        texts, vocabulary, new_special_tokens=[_TURN, _END], show_progress=False
    )
    tokenizer.eos_token = _END
    tokenizer.model_max_length = CONTEXT
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
