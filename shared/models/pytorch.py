"""The one place where ``shared`` touches torch: frozen base models, and adapters inside them.

    T1  without inner matrices a text's features are what they always were, to the byte
    T2  with them the layers below the lowest slot run once for a list of texts, and the layers
        above as often as the matrices change
    T3  a base is frozen and in evaluation mode: nothing but an adapter's tensors is trainable,
        and no dropout is drawn

Importing this module is light; torch, transformers and peft arrive with the first model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shared.errors import ModelError
from shared.extras import require
from shared.models.adapter import FEATURE_SCALE, Adapter, AdapterShape, Slot
from shared.models.architecture import Architecture, read_architecture
from shared.models.encoder import BaseModel
from shared.models.task import find_task
from shared.types import FloatMatrix, FloatVector

Rows = NDArray[np.int64]
"""Positions in a list of texts."""

MAX_TOKENS: Final = 128
"""Of a text for an encoder, its own first and last token among them."""

MAX_PAIR_TOKENS: Final = 256
"""Of a prompt with its continuation; the continuation has at most half of it."""

KEPT_BYTES: Final = 256 * 2**20
"""Most that is kept of what the frozen layers made of one list of texts: some 8,000 texts of 20
tokens with MiniLM. A longer list is put through them again each time."""

_BATCH_ROWS: Final = 64
_BATCH_CELLS: Final = 2**22
"""Rows · tokens · width · layers of one training pass; the backward pass keeps some thirty
floats for each (half a GiB)."""
_BATCH_GRADIENTS: Final = 2**25
"""Rows · parameters: one gradient for each example (128 MiB)."""
_BATCH_LOGITS: Final = 2**24
"""Rows · tokens · vocabulary, a few times over (64 MiB each)."""


@dataclass(frozen=True, slots=True)
class _Names:
    """What a family of models calls the parts that matter here."""

    layers: str
    query: str
    value: str
    output: str


_BERT: Final = _Names(
    "encoder.layer", "attention.self.query", "attention.self.value", "output.dense"
)
_LLAMA: Final = _Names("layers", "self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
_NAMES: Final = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "distilbert": _Names("transformer.layer", "attention.q_lin", "attention.v_lin", "ffn.lin2"),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
}


def prompt_ids(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the tokens after which an answer begins: the same in training and in serving.

    Args:
        tokenizer: Of transformers. With a chat template that is followed; without one the
            messages' texts are put one behind the other.
        messages: Each with ``role`` and ``content``.
    """
    if tokenizer.chat_template:
        found = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return [int(token) for token in found]
    ids: list[int] = tokenizer("".join(message["content"] for message in messages))["input_ids"]
    end = tokenizer.eos_token_id
    if ids and ids[-1] == end:  # some tokenizers end every text, but this one goes on
        ids = ids[:-1]
    return ids or [end]


@dataclass(frozen=True, slots=True)
class Tokens:
    """A list of texts as their model reads it."""

    ids: list[list[int]]
    asked: list[int]
    """How many of a text's last tokens are to be foretold; none for an encoder."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, (n,)."""
        return np.array([len(one) for one in self.ids], np.int64)


class Prefix:
    """A list of texts behind the frozen layers below an adapter's lowest slot."""

    def __init__(
        self, model: FrozenModel, tokens: Tokens, depth: int, states: FloatMatrix | None = None
    ) -> None:
        """Describe it.

        Args:
            model: Whose layers they are.
            tokens: n texts.
            depth: How many layers lie below.
            states: What :meth:`FrozenModel.states` gave for just these, to be used instead of
                the layers; ``None`` puts each batch through them.
        """
        self.tokens = tokens
        self._lengths = tokens.lengths
        self._asked = np.array(tokens.asked, np.int64)
        self._model = model
        self._depth = depth
        self._states = states
        self._ends = np.cumsum(self._lengths)

    def inputs(self, rows: Rows) -> tuple[Any, Any]:
        """Return what the layers above are called with for some of the texts.

        Tensors: states (rows, tokens, F), padded at the end; and for an encoder where they are
        real (rows, tokens), for a language model which of them foretell what is asked.
        """
        hidden, real = self._padded(rows)
        if not self._model.is_causal:
            return hidden, real
        asked = self._asked[rows]
        # The state before a token foretells it.
        places = (self._lengths[rows] - asked - 1)[:, None] + np.arange(asked.max())
        return hidden, self._model.torch.from_numpy(np.minimum(places, hidden.shape[1] - 1))

    def targets(self, rows: Rows) -> Any:
        """Tokens that are to be foretold, int64 (rows, most of them), -100 where none is."""
        torch = self._model.torch
        table = torch.full((len(rows), int(self._asked[rows].max())), -100)
        for place, row in enumerate(rows):
            asked = int(self._asked[row])
            table[place, :asked] = torch.tensor(self.tokens.ids[row][-asked:])
        return table

    def split(self, rows: Rows, *, parameters: int = 1) -> list[Rows]:
        """Return rows in batches of similar length that fit into memory; none for no rows.

        Args:
            rows: Positions of texts.
            parameters: Length of a gradient that each row will have.
        """
        width = self._model.features * (len(self._model.layers) - self._depth)
        batches: list[list[int]] = []
        most_asked = 1
        for row in sorted(rows.tolist(), key=lambda row: (self._lengths[row], row)):
            most_asked = max(most_asked, int(self._asked[row]))
            limit = min(
                _BATCH_ROWS,
                _BATCH_CELLS // (width * int(self._lengths[row])),
                _BATCH_GRADIENTS // parameters,
                _BATCH_LOGITS // (self._model.vocabulary * most_asked),
            )
            if not batches or len(batches[-1]) >= limit:
                batches.append([])
                most_asked = max(1, int(self._asked[row]))
            batches[-1].append(row)
        return [np.array(batch, np.int64) for batch in batches]

    def _padded(self, rows: Rows) -> tuple[Any, Any]:
        torch, lengths = self._model.torch, self._lengths[rows]
        if self._states is None:
            return self._model.run_below([self.tokens.ids[row] for row in rows], self._depth)
        hidden = torch.zeros(len(rows), int(lengths.max()), self._states.shape[1])
        for place, (end, length) in enumerate(zip(self._ends[rows], lengths, strict=True)):
            hidden[place, :length] = torch.from_numpy(self._states[end - length : end])
        return hidden, _real(torch, lengths)


class FrozenModel:
    """A base model in memory, of which nothing is trainable (T3)."""

    def __init__(
        self, base: BaseModel, *, causal: bool, threads: int, extra: str = "train"
    ) -> None:
        """Load the base from its folder; the network is not asked and no code of it is run.

        ``extra`` is the one of ours that brings what is missing, for the advice.

        Raises:
            DependencyMissing: torch or transformers is not installed.
            ModelError: the folder's files are not such a model.
        """
        self.torch: Any = require("torch", extra=extra)
        transformers: Any = require("transformers", extra=extra)
        self.torch.set_num_threads(threads)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        local = {"local_files_only": True, "trust_remote_code": False}
        kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(base.folder, **local)
            self._model: Any = kind.from_pretrained(
                base.folder, use_safetensors=True, dtype=self.torch.float32, **local
            ).eval()
        except (OSError, ValueError, KeyError, RuntimeError) as err:
            wanted = "a language model" if causal else "an encoder"
            raise ModelError(f"{base.folder} is not {wanted} that can be used: {err}") from err
        self._model.requires_grad_(False)
        self._base = base
        self._trunk: Any = self._model.get_decoder() if causal else self._model
        self.features = int(self._model.config.hidden_size)
        """F, the width of the base."""
        self.is_causal = causal
        self.vocabulary = int(self._model.config.vocab_size) if causal else 1
        """How many logits each token takes."""
        if base.layers:
            holder, _, name = self._names.layers.rpartition(".")
            parent = self._trunk.get_submodule(holder)
            setattr(parent, name, self.layers[: self.architecture.layers])
            self._model.config.num_hidden_layers = self.architecture.layers

    @cached_property
    def architecture(self) -> Architecture:
        """How the base is built.

        Raises:
            ModelError: it is of a kind that takes no matrices inside.
        """
        return read_architecture(self._base)

    @property
    def layers(self) -> Any:
        """The layers, from the bottom up."""
        return self._trunk.get_submodule(self._names.layers)

    @property
    def _names(self) -> _Names:
        return _NAMES[self.architecture.kind]

    def states(self, tokens: Tokens, depth: int, *, batch_size: int = 32) -> FloatMatrix:
        """Return (tokens of all texts, F) float32: what the first ``depth`` layers make of them.

        Text by text, without padding; the same list gives the same bytes on one machine.
        """
        lengths = tokens.lengths
        ends = np.cumsum(lengths)
        states = np.zeros((int(lengths.sum()), self.features), np.float32)
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            hidden, _ = self.run_below([tokens.ids[row] for row in rows], depth)
            for place, row in enumerate(rows):
                length = lengths[row]
                states[ends[row] - length : ends[row]] = hidden[place, :length].numpy()
        return states

    def run_below(self, ids: Sequence[Sequence[int]], depth: int) -> tuple[Any, Any]:
        """Put token lists through the embeddings and the first ``depth`` layers.

        Returns:
            Tensors: states (n, tokens, F), padded at the end, and where they are real (n, tokens).
        """
        torch = self.torch
        lengths = np.array([len(one) for one in ids])
        pad = self._tokenizer.pad_token_id or 0
        table = torch.full((len(ids), int(lengths.max())), pad)
        for place, one in enumerate(ids):
            table[place, : len(one)] = torch.tensor(one)
        real = _real(torch, lengths)
        with torch.no_grad():
            embed = self._trunk.embed_tokens if self.is_causal else self._trunk.embeddings
            return self.run(self.layers[:depth], embed(table), real), real

    def run(self, layers: Any, hidden: Any, real: Any) -> Any:
        """Put (n, tokens, F) states through some of the layers."""
        if self.is_causal:
            # Padding stands at the end, where no real token looks: no mask is needed.
            places = self.torch.arange(hidden.shape[1])[None]
            turned = self._trunk.rotary_emb(hidden, position_ids=places)
            for layer in layers:
                hidden = layer(hidden, position_ids=places, position_embeddings=turned)
            return hidden
        mask = None if bool(real.all()) else real[:, None, None, :]
        for layer in layers:
            hidden = layer(hidden, attention_mask=mask)
        return hidden

    @contextlib.contextmanager
    def adapted(self, adapter: Adapter) -> Iterator[Adapted]:
        """Put an adapter's matrices in place; the base is as before afterwards.

        One at a time.

        Raises:
            ModelError: a slot does not exist in this base, or has another size.
            DependencyMissing: peft is not installed and low-rank pairs are asked for.
        """
        holder = self.top(lowest_layer(adapter.shape)).layers
        paths = {slot.name: self._path(slot) for slot in adapter.shape.slots}
        for slot in adapter.shape.slots:
            self._check(holder, paths[slot.name], slot)
        replaced = {path: holder.get_submodule(path) for path in paths.values()}
        try:
            _put_in_place(self.torch, holder, list(replaced), adapter.shape)
            yield Adapted(self, paths, adapter)
        finally:
            for path, original in replaced.items():
                holder.set_submodule(path, original)

    def top(self, depth: int, head: Any = None) -> Any:
        """Return the layers above the first ``depth`` and what comes behind them, as a module.

        Called with :meth:`Prefix.inputs` it gives logits, and its ``features`` a text's features.
        """
        found = {str(index): layer for index, layer in enumerate(self.layers) if index >= depth}
        return _classes().Top(self, self.torch.nn.ModuleDict(found), head)

    def head_of(self, hidden: Any) -> Any:
        """Logits (…, vocabulary) of a language model's last states."""
        return self._model.lm_head(self._trunk.norm(hidden))

    def _path(self, slot: Slot) -> str:
        layer, part = slot.place
        return f"{layer}.{getattr(self._names, part)}"

    def _check(self, holder: Any, path: str, slot: Slot) -> None:
        try:
            dense = holder.get_submodule(path)
        except AttributeError as err:
            raise ModelError(f"{self._base.name} has no place {slot.name}") from err
        # A bottleneck stands behind its dense layer.
        inputs = dense.out_features if slot.name.endswith("output") else dense.in_features
        if (inputs, dense.out_features) != (slot.inputs, slot.outputs):
            raise ModelError(
                f"{slot.name} of {self._base.name} turns {inputs} numbers into "
                f"{dense.out_features}, the adapter {slot.inputs} into {slot.outputs}"
            )


class Adapted:
    """A base's upper layers with an adapter in place, ready to be trained or asked."""

    def __init__(self, model: FrozenModel, paths: Mapping[str, str], adapter: Adapter) -> None:
        """Gather what is trainable, and give it the adapter's values."""
        torch, shape = model.torch, adapter.shape
        head = torch.nn.Linear(shape.features, len(shape.labels)) if shape.labels else None
        self.module: Any = model.top(lowest_layer(shape), head)
        """Its call on :meth:`Prefix.inputs` gives logits."""
        trained = {} if head is None else {"head.weight": head.weight, "head.bias": head.bias}
        for slot, path in paths.items():
            inner = self.module.layers.get_submodule(path)
            if shape.method == "bottleneck":
                for name, part in (("down", inner.down), ("up", inner.up)):
                    trained |= {f"{slot}.{name}": part.weight, f"{slot}.{name}_bias": part.bias}
            else:
                (down,), (up,) = inner.lora_A.values(), inner.lora_B.values()
                trained |= {f"{slot}.lora_a": down.weight, f"{slot}.lora_b": up.weight}
        self.parameters: list[Any] = [trained[name] for name in shape.tensors]
        """In the order of ``AdapterShape.tensors``."""
        with torch.no_grad():
            for name, parameter in zip(shape.tensors, self.parameters, strict=True):
                parameter.copy_(torch.tensor(adapter.tensors[name]))
        # Opacus overlooks a layer in evaluation mode. Only ours leave it, and only those that
        # hold parameters: nothing of a base, and no dropout, behaves otherwise for it (T3).
        self.module.eval()
        for part in self.module.modules():
            own = list(part.parameters(recurse=False))
            if own and all(parameter.requires_grad for parameter in own):
                part.train()


class TextEncoder(FrozenModel):
    """A frozen sentence encoder: mean over the tokens of its last layer, length 1.

    The same list of texts gives the same bytes every time on one machine. A text's features
    differ in the last bits with the texts it shares a batch with, so features are cached
    and compared per list, never per text.
    """

    def __init__(self, base: BaseModel, *, threads: int = 1) -> None:
        """Load the encoder, or its first ``base.layers`` layers where that is not 0.

        Args:
            base: Where the files are.
            threads: Arithmetic threads of torch, for the whole process.

        Raises:
            DependencyMissing: torch or transformers is not installed.
            ModelError: the folder's files are not an encoder that transformers can read, or
                it has fewer layers.
        """
        super().__init__(base, causal=False, threads=threads)
        self._kept: tuple[object, Prefix] | None = None

    def tokens(self, texts: Sequence[str], *, max_tokens: int = MAX_TOKENS) -> Tokens:
        """Return n texts as the encoder reads them; of a longer one the first tokens count."""
        if not texts:
            return Tokens([], [])
        ids = self._tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
        return Tokens(ids, [0] * len(ids))

    def encode(
        self,
        texts: Sequence[str],
        *,
        max_tokens: int = MAX_TOKENS,
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
        adapter: Adapter | None = None,
    ) -> FloatMatrix:
        """Return (n, F) features: mean-pooled over the tokens, each row of L2 length 1.

        Args:
            texts: n texts; of a longer one the first ``max_tokens`` tokens count.
            max_tokens: Including the encoder's own first and last token.
            batch_size: Texts per pass, of similar length so that little is padded.
            progress: Told after each batch how many texts are done.
            adapter: Its inner matrices, if it has some, are in place. What the layers below
                them made of the last list of texts is kept, up to :data:`KEPT_BYTES`.

        Raises:
            ModelError: the adapter's matrices do not fit into this encoder.
        """
        features = np.zeros((len(texts), self.features), np.float32)
        if not texts:
            return features
        with contextlib.ExitStack() as stack:
            if adapter is None or not adapter.shape.slots:
                tokens = self.tokens(texts, max_tokens=max_tokens)
                features_of = self._bare_features(tokens)
            else:
                adapted = stack.enter_context(self.adapted(adapter))
                prefix = self._prefix(texts, max_tokens, lowest_layer(adapter.shape))
                tokens = prefix.tokens
                features_of = _adapted_features(adapted, prefix)
            stack.enter_context(self.torch.inference_mode())
            order = np.argsort(tokens.lengths, kind="stable")
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                features[rows] = features_of(rows).numpy()
                if progress is not None:
                    progress(start + len(rows))
        return features

    def _bare_features(self, tokens: Tokens) -> Callable[[Rows], Any]:
        def features_of(rows: Rows) -> Any:
            batch = self._tokenizer.pad(
                {"input_ids": [tokens.ids[row] for row in rows]}, return_tensors="pt"
            )
            states = self._model(**batch).last_hidden_state
            return pooled(self.torch, states, batch["attention_mask"])

        return features_of

    def _prefix(self, texts: Sequence[str], max_tokens: int, depth: int) -> Prefix:
        key = (tuple(texts), max_tokens, depth)
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # its memory is needed
            tokens = self.tokens(texts, max_tokens=max_tokens)
            states = self.states(tokens, depth) if worth_keeping(tokens, self.features) else None
            self._kept = (key, Prefix(self, tokens, depth, states))
        return self._kept[1]


class CausalModel(FrozenModel):
    """A frozen language model of the Llama or Qwen2 build, asked how well it continues texts."""

    def __init__(self, base: BaseModel, *, threads: int = 1) -> None:
        """Load the model; see :class:`TextEncoder`.

        Raises:
            DependencyMissing: torch or transformers is not installed.
            ModelError: the folder holds no language model of a known build, or its tokenizer
                has no end of text.
        """
        if not read_architecture(base).is_causal:
            raise ModelError(f"{base.name} is not a language model")
        super().__init__(base, causal=True, threads=threads)
        if self._tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer of {base.name} has no end of text")
        self._task = find_task("causal-lm")

    def tokens(
        self, pairs: Sequence[tuple[str, str]], *, max_tokens: int = MAX_PAIR_TOKENS
    ) -> Tokens:
        """Return n prompts, as a user's turn, with their continuations and the end of text.

        Asked are the continuation and the end. Of a long continuation the first tokens
        count, up to half of ``max_tokens``; of a long prompt the last ones that still fit.
        """
        ids: list[list[int]] = []
        asked: list[int] = []
        for prompt, continuation in pairs:
            said = self._tokenizer(continuation, add_special_tokens=False)["input_ids"]
            answer = [*said[: max_tokens // 2 - 1], self._tokenizer.eos_token_id]
            before = prompt_ids(self._tokenizer, [{"role": "user", "content": prompt}])
            ids.append([*before[-(max_tokens - len(answer)) :], *answer])
            asked.append(len(answer))
        return Tokens(ids, asked)

    def outcome(
        self, pairs: Sequence[tuple[str, str]], adapter: Adapter | None = None
    ) -> tuple[FloatVector, FloatVector]:
        """Return scores and losses, (n,) each, as the task ``causal-lm`` defines them.

        Args:
            pairs: n prompts with the continuations that are wanted.
            adapter: Its matrices are in place.

        Raises:
            ModelError: the adapter's matrices do not fit into this model.
        """
        scores, losses = np.zeros(len(pairs)), np.zeros(len(pairs))
        prefix = Prefix(self, self.tokens(pairs), 0)
        with contextlib.ExitStack() as stack:
            if adapter is not None:
                stack.enter_context(self.adapted(adapter))
            stack.enter_context(self.torch.inference_mode())
            top = self.top(0)
            for rows in prefix.split(np.arange(len(pairs))):
                logits = top(*prefix.inputs(rows))
                lost, right = self._task.outcome(self.torch, logits, prefix.targets(rows))
                losses[rows], scores[rows] = lost.numpy(), right.numpy()
        return scores, losses


def lowest_layer(shape: AdapterShape) -> int:
    """The lowest layer with matrices of an adapter that has some; below it all is frozen."""
    return min(layer for layer, _ in (slot.place for slot in shape.slots))


def worth_keeping(tokens: Tokens, features: int) -> bool:
    """Whether the states of these texts, float32, are at most :data:`KEPT_BYTES`."""
    return int(tokens.lengths.sum()) * features * 4 <= KEPT_BYTES


def _adapted_features(adapted: Adapted, prefix: Prefix) -> Callable[[Rows], Any]:
    return lambda rows: adapted.module.features(*prefix.inputs(rows))


def pooled(torch: Any, states: Any, real: Any) -> Any:
    """Return (n, F) features of length 1: means over the real tokens of (n, tokens, F) states."""
    mask = real.unsqueeze(-1).to(states.dtype)
    means = (states * mask).sum(dim=1) / mask.sum(dim=1)
    return torch.nn.functional.normalize(means, dim=1)


def _real(torch: Any, lengths: NDArray[np.int64]) -> Any:
    return torch.arange(int(lengths.max()))[None] < torch.from_numpy(lengths)[:, None]


def _put_in_place(torch: Any, holder: Any, paths: list[str], shape: AdapterShape) -> None:
    """Replace the dense layers at ``paths`` by ones with trainable matrices beside them."""
    if shape.method == "bottleneck":
        for path in paths:
            dense = holder.get_submodule(path)
            holder.set_submodule(path, _classes().Bottleneck(dense, shape.rank))
        return
    peft: Any = require("peft", extra="train")
    config = peft.LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        use_rslora=shape.method == "rslora",
        target_modules=paths,
        lora_dropout=0.0,
    )
    peft.inject_adapter_in_model(config, holder)


@cache
def _classes() -> SimpleNamespace:
    """Modules of our own; made late, because their base class is torch's."""
    torch: Any = require("torch", extra="train")

    class Bottleneck(torch.nn.Module):  # type: ignore[misc]  # torch is not imported
        """A dense layer with h + up(gelu(down(h))) behind it."""

        def __init__(self, base_layer: Any, rank: int) -> None:
            super().__init__()
            self.base_layer = base_layer
            self.down = torch.nn.Linear(base_layer.out_features, rank)
            self.up = torch.nn.Linear(rank, base_layer.out_features)

        def forward(self, states: Any) -> Any:
            hidden = self.base_layer(states)
            return hidden + self.up(torch.nn.functional.gelu(self.down(hidden)))

    class Top(torch.nn.Module):  # type: ignore[misc]
        """A base's upper layers and what comes behind them."""

        def __init__(self, model: FrozenModel, layers: Any, head: Any) -> None:
            super().__init__()
            self.layers = layers
            self.head = head
            self._model = model

        def features(self, hidden: Any, real: Any) -> Any:
            states = self._model.run(self.layers.values(), hidden, real)
            return pooled(torch, states, real)

        def forward(self, hidden: Any, where: Any) -> Any:
            if self.head is not None:
                return self.head(self.features(hidden, where) * FEATURE_SCALE)
            states = self._model.run(self.layers.values(), hidden, where)
            places = where[:, :, None].expand(-1, -1, states.shape[2])
            return self._model.head_of(states.gather(1, places))

    return SimpleNamespace(Bottleneck=Bottleneck, Top=Top)
