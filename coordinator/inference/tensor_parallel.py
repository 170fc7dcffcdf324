"""A causal model cut over several processes: each holds a part of every layer, one leads.

D1  all processes do the same steps in the same order; what the first is asked it tells the others
D2  the whole logits are on the first, so that tokens are chosen there alone
D3  a process that fails ends all, and whoever watches them starts them again

Source: Shoeybi et al., "Megatron-LM", 2019, section 3: columns of the first matrix, rows of the
second, one sum behind each pair. Which matrices of a model these are says its plan in transformers
(``base_model_tp_plan``). Rows of keys and values are ours; each process holds its own heads'.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import cbor2
import numpy as np

from coordinator.inference.step_model import KeysAndValues, Logits
from shared.errors import ModelError
from shared.extras import require
from shared.models.adapter import Adapter, place_of
from shared.models.encoder import BaseModel
from shared.types import Digest, FloatMatrix

DTYPES: Final = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

_EXTRA: Final = "llm"
_PLACES: Final = {"query": "q_proj", "value": "v_proj"}
"""What a slot is called in the attention of the Llama family (Llama, Qwen2, Mistral, Gemma)."""

_ATTENTION: Final = frozenset({"full_attention", "sliding_attention"})
"""Layers that keep keys and values and nothing else."""

_FOR_EVER: Final = timedelta(days=3650)
"""Who follows waits for the next step, which on a quiet server may be tomorrow's."""


_Pairs = list[dict[str, tuple[Any, Any]]]
"""An adapter's matrices by layer and place, of B the rows whose outputs are this process's:
(A^T, scale · B^T)."""


class Group:
    """The processes that hold one model, and what the first tells the others."""

    def __init__(self, *, rank: int, size: int, meeting: str, cuda: bool) -> None:
        """Meet the others; returns when all are there.

        Args:
            rank: Which of them this is, from 0.
            size: How many there are.
            meeting: A file of their own, empty, which all of them can write.
            cuda: Whether the model lies on GPUs, of which each process has one.

        Raises:
            DependencyMissing: torch is not installed.
        """
        self.torch: Any = require("torch", extra=_EXTRA)
        self._distributed: Any = require("torch.distributed", extra=_EXTRA)
        if cuda:
            self.torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
        self._distributed.init_process_group(
            "nccl" if cuda else "gloo",
            init_method=f"file://{meeting}",
            rank=rank,
            world_size=size,
            timeout=_FOR_EVER,
        )
        # What is told are bytes in memory, wherever the model lies.
        self._line = self._distributed.new_group(backend="gloo", timeout=_FOR_EVER)
        self.rank, self.size = rank, size

    @property
    def leads(self) -> bool:
        """Whether this is the one that is asked."""
        return self.rank == 0

    def tell(self, message: Any) -> None:
        """Tell the others something. The first only."""
        data = self.torch.frombuffer(bytearray(cbor2.dumps(message)), dtype=self.torch.uint8)
        self._distributed.broadcast(self.torch.tensor([len(data)]), 0, group=self._line)
        self._distributed.broadcast(data, 0, group=self._line)

    def hear(self) -> Any:
        """Wait for what the first tells next. The others only."""
        length = self.torch.zeros(1, dtype=self.torch.int64)
        self._distributed.broadcast(length, 0, group=self._line)
        data = self.torch.empty(int(length), dtype=self.torch.uint8)
        self._distributed.broadcast(data, 0, group=self._line)
        return cbor2.loads(data.numpy().tobytes())

    def collected(self, part: Any) -> list[Any] | None:
        """Tensors of the same shape, one of each process, on the first; ``None`` on the others."""
        found = [self.torch.empty_like(part) for _ in range(self.size)] if self.leads else None
        self._distributed.gather(part, found, dst=0, group=self._line)
        return found

    def agreed(self, problem: str) -> str:
        """The first problem that any process has; empty where none has one."""
        found: list[str | None] = [None] * self.size
        self._distributed.all_gather_object(found, problem, group=self._line)
        return next((each for each in found if each), "")

    def close(self) -> None:
        """Part from the others."""
        self._distributed.destroy_process_group()


class _Rows:
    """Keys and values of this process's heads; the model's attention writes and reads here.

    transformers hands the keys and values of a step to ``update`` and computes with what comes back.
    """

    def __init__(self, torch: Any, *, layers: int, heads: int, size: int, like: Any) -> None:
        self._torch = torch
        self._shape = (heads, size)
        self._like = like
        self.kept = [self._empty(0, 0) for _ in range(2 * layers)]
        self._places: Any = None
        self._first = self._past = self._longest = 0

    def _empty(self, rows: int, tokens: int) -> Any:
        heads, size = self._shape
        return self._like.new_zeros((rows, heads, tokens, size))

    def reserve(self, rows: int, tokens: int) -> None:
        for index, old in enumerate(self.kept):
            new = self._empty(rows, tokens)
            some, length = min(rows, old.shape[0]), min(tokens, old.shape[2])
            new[:some, :, :length] = old[:some, :, :length]
            self.kept[index] = new

    def expect_one(self, row: int, past: int) -> None:
        """The next step puts tokens behind the ``past`` ones of one row."""
        self._places, self._first, self._past = None, row, past

    def expect_each(self, past: Any, longest: int) -> None:
        """The next step puts one token into each of the first rows."""
        self._places, self._longest = past, longest

    def update(self, keys: Any, values: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Keep a step's keys and values, (B, H, n, S); gives all that its rows hold."""
        found = []
        for index, new in ((2 * layer, keys), (2 * layer + 1, values)):
            kept = self.kept[index]
            if self._places is None:
                row, end = self._first, self._past + new.shape[2]
                kept[row, :, self._past : end] = new[0]
                found.append(kept[row : row + 1, :, :end])
            else:
                rows = len(new)
                kept[self._torch.arange(rows, device=kept.device), :, self._places] = new[:, :, 0]
                found.append(kept[:rows, :, : self._longest])
        return found[0], found[1]


class _Part:
    """What one process holds of the model."""

    def __init__(self, group: Group, base: BaseModel, *, precision: str, cuda: bool) -> None:
        """Load it; a collective act.

        Raises:
            ModelError: on all processes alike, if one of them cannot.
        """
        self._torch = group.torch
        self._group = group
        self._base = base
        problem = ""
        try:
            self._load(precision, cuda=cuda)
        except ModelError as err:
            problem = str(err)
        if problem := group.agreed(problem):
            raise ModelError(problem)

    def _load(self, precision: str, *, cuda: bool) -> None:
        library: Any = require("transformers", extra=_EXTRA)
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
        folder, size = self._base.folder, self._group.size
        try:
            config = library.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            self._measure(config)
            spread = require("transformers.distributed", extra=_EXTRA).DistributedConfig(
                tp_plan="auto", tp_size=size
            )
            self._model = library.AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=getattr(self._torch, DTYPES[precision]),
                attn_implementation="sdpa",
                distributed_config=spread if size > 1 else None,
                local_files_only=True,
                trust_remote_code=False,
            ).eval()
        except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as err:
            raise ModelError(
                f"{self._base.name} is no causal language model that can be cut into {size}: "
                f"{str(err)[:300]}"
            ) from err
        if size > 1 and not self._model.tp_plan:
            raise ModelError(
                f"{self._base.name} carries no plan for tensor parallelism in transformers "
                f"({type(self._model).__name__})"
            )
        self.device = "cpu"
        if cuda:
            self.device = f"cuda:{self._torch.cuda.current_device()}"
            self._model = self._model.to(self.device)
        dtype = getattr(self._torch, DTYPES[precision])
        like = self._torch.empty(0, dtype=dtype, device=self.device)
        self.rows = _Rows(
            self._torch,
            layers=self.layers,
            heads=self.heads // size,
            size=self.head_size,
            like=like,
        )
        self.bytes_per_token = 2 * self.layers * self.heads * self.head_size * like.itemsize
        ends = self._model.generation_config.eos_token_id
        self.ends = tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)
        self._placed: list[_Pairs | None] = []
        self._at_work: list[tuple[_Pairs, Any]] = []
        self._hook_in()

    def _measure(self, config: Any) -> None:
        """Read the shape, and refuse what a step with keys and values alone does not compute."""
        name, size = self._base.name, self._group.size
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds - _ATTENTION:
            others = ", ".join(sorted(kinds - _ATTENTION))
            raise ModelError(f"{name} has layers that no process can hold a part of here: {others}")
        if getattr(config, "attn_logit_softcapping", None):
            raise ModelError(f"{name} bounds its attention's logits, which is not computed here")
        queries, self.heads = config.num_attention_heads, config.num_key_value_heads
        if queries % size or self.heads % size:
            raise ModelError(
                f"{name} has {queries} heads of queries and {self.heads} of keys: they cannot be "
                f"dealt out evenly to {size} processes"
            )
        self.layers = config.num_hidden_layers
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // queries
        self.features, self.vocabulary = config.hidden_size, config.vocab_size
        self.outputs = {
            "query": queries * self.head_size,
            "value": self.heads * self.head_size,
        }
        self.context_tokens = int(config.max_position_embeddings)
        window = getattr(config, "sliding_window", None)
        if window is not None and "sliding_attention" in (
            getattr(config, "layer_types", None) or ["sliding_attention"]
        ):
            # Up to the window's length such a layer sees everything, as the others do.
            self.context_tokens = min(self.context_tokens, int(window))

    # Adapters: y = W x + b + scale · B A x, beside the weights.

    def place(self, row: int, adapter: Adapter | None) -> None:
        self._placed[row] = self._mine_of(adapter) if adapter is not None else None

    def copy(self, source: int, target: int) -> None:
        self._placed[target] = self._placed[source]

    def _mine_of(self, adapter: Adapter) -> _Pairs:
        found: _Pairs = [{} for _ in range(self.layers)]
        like = self.rows.kept[0]
        for slot in adapter.shape.slots:
            layer, place = place_of(slot.name)
            a, b = adapter.tensors[f"{slot.name}.lora_a"], adapter.tensors[f"{slot.name}.lora_b"]
            width = self.outputs[place] // self._group.size
            mine = slice(self._group.rank * width, (self._group.rank + 1) * width)
            down = self._torch.from_numpy(a.T.copy()).to(like)
            up = self._torch.from_numpy((adapter.shape.scale * b[mine]).T.copy()).to(like)
            found[layer][place] = (down, up)
        return found

    def _hook_in(self) -> None:
        # A model without places for adapters still answers without them.
        for index, layer in enumerate(getattr(self._model.model, "layers", ())):
            attention = getattr(layer, "self_attn", None)
            for place, name in _PLACES.items():
                if (projection := getattr(attention, name, None)) is not None:
                    projection.register_forward_hook(self._adding(index, place))

    def _adding(self, layer: int, place: str) -> Callable[..., Any]:
        def hook(_module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
            for pairs, rows in self._at_work:
                if (pair := pairs[layer].get(place)) is not None:
                    output[rows] = output[rows] + inputs[0][rows] @ pair[0] @ pair[1]
            return output

        return hook

    def _with(self, placed: Sequence[_Pairs | None]) -> None:
        """Which rows of the next step have which adapter."""
        rows: dict[int, tuple[_Pairs, list[int]]] = {}
        for row, pairs in enumerate(placed):
            if pairs is not None:
                rows.setdefault(id(pairs), (pairs, []))[1].append(row)
        self._at_work = [
            (pairs, self._torch.tensor(each, device=self.device)) for pairs, each in rows.values()
        ]

    # Steps.

    def reserve(self, rows: int, tokens: int) -> None:
        self.rows.reserve(rows, tokens)
        self._placed = [*self._placed[:rows], *[None] * (rows - len(self._placed))]

    def move(self, source: int, target: int, tokens: int) -> None:
        for kept in self.rows.kept:
            kept[target, :, :tokens] = kept[source, :, :tokens]
        self.copy(source, target)

    def read(self, row: int, tokens: Sequence[int], past: int) -> Any:
        """Logits behind the last of them, (V,)."""
        torch, count = self._torch, len(tokens)
        self.rows.expect_one(row, past)
        self._with([self._placed[row]])
        seen = torch.ones((count, past + count), dtype=torch.bool, device=self.device)
        places = torch.arange(past, past + count, device=self.device)[None]
        return self._run([list(tokens)], places, seen.tril(past)[None, None])[0]

    def decode(self, tokens: Sequence[int], past: Sequence[int]) -> Any:
        """Logits, (B, V)."""
        torch, longest = self._torch, max(past) + 1
        places = torch.tensor(list(past), device=self.device)
        self.rows.expect_each(places, longest)
        self._with(self._placed[: len(tokens)])
        seen = torch.arange(longest, device=self.device) <= places[:, None]
        return self._run([[token] for token in tokens], places[:, None], seen[:, None, None])

    def _run(self, ids: list[list[int]], places: Any, seen: Any) -> Any:
        with self._torch.no_grad():
            out = self._model(
                input_ids=self._torch.tensor(ids, device=self.device),
                position_ids=places,
                attention_mask=seen,
                cache=self.rows,
                use_cache=True,
                logits_to_keep=1,
            )
        return out.logits[:, -1].float().cpu()

    def take(self, row: int, start: int, end: int) -> KeysAndValues | None:
        mine = self._torch.stack([kept[row, :, start:end] for kept in self.rows.kept])
        parts = self._group.collected(mine.float().cpu().contiguous())
        if parts is None:
            return None
        whole: KeysAndValues = self._torch.cat(parts, dim=1).numpy()
        return whole

    def put(self, row: int, start: int, kept: bytes, shape: Sequence[int]) -> None:
        whole = np.frombuffer(kept, np.float32).reshape(shape)
        width = self.heads // self._group.size
        mine = slice(self._group.rank * width, (self._group.rank + 1) * width)
        for buffer, part in zip(self.rows.kept, whole[:, mine], strict=True):
            buffer[row, :, start : start + part.shape[1]] = self._torch.from_numpy(part.copy())


class TensorParallelModel:
    """A :class:`~coordinator.inference.step_model.StepModel` on the first process of a group."""

    def __init__(self, group: Group, base: BaseModel, *, precision: str, cuda: bool) -> None:
        """Load the model here and, with :func:`follow`, on the other processes.

        Args:
            group: Of which this is the first.
            base: From its folder alone; the network is not asked and no code of it is run.
            precision: A name in :data:`DTYPES`.
            cuda: Whether it lies on GPUs.

        Raises:
            ModelError: the folder holds no causal language model, it carries no plan, or its heads
                cannot be dealt out evenly.
            DependencyMissing: torch or transformers is not installed.
        """
        group.tell([base.name, str(base.folder), base.digest, precision, cuda])
        self._group, self._base = group, base
        self._part = part = _Part(group, base, precision=precision, cuda=cuda)
        self.context_tokens, self.vocabulary = part.context_tokens, part.vocabulary
        self.ends, self.bytes_per_token = part.ends, part.bytes_per_token
        self._placed: list[Adapter | None] = []

    def reserve(self, rows: int, tokens: int) -> None:
        """See :class:`~coordinator.inference.step_model.StepModel`."""
        self._group.tell(["reserve", rows, tokens])
        self._placed = [*self._placed[:rows], *[None] * (rows - len(self._placed))]
        self._part.reserve(rows, tokens)

    def check(self, adapter: Adapter) -> None:
        """See :class:`~coordinator.inference.step_model.StepModel`."""
        if adapter.base != self._base.digest:
            raise ModelError(
                f"the adapter was trained on the base {adapter.base[:12]}…, "
                f"and {self._base.name} is {self._base.digest[:12]}…"
            )
        if adapter.labels or adapter.shape.method not in {"lora", "rslora"}:
            raise ModelError("the adapter is not one of a language model")
        for slot in adapter.shape.slots:
            layer, place = place_of(slot.name)
            wanted = (self._part.features, self._part.outputs.get(place))
            if layer >= self._part.layers or (slot.inputs, slot.outputs) != wanted:
                raise ModelError(f"the adapter's {slot.name} has no place in {self._base.name}")

    def place(self, row: int, adapter: Adapter | None) -> None:
        """See :class:`~coordinator.inference.step_model.StepModel`."""
        if adapter is self._placed[row]:
            return
        same = [at for at, each in enumerate(self._placed) if each is adapter]
        self._placed[row] = adapter
        if same:
            self._group.tell(["copy", same[0], row])
            self._part.copy(same[0], row)
        else:
            data = adapter.to_bytes() if adapter is not None else None
            self._group.tell(["place", row, data])
            self._part.place(row, adapter)

    def move(self, source: int, target: int, tokens: int) -> None:
        """See :class:`~coordinator.inference.step_model.StepModel`."""
        self._group.tell(["move", source, target, tokens])
        self._placed[target] = self._placed[source]
        self._part.move(source, target, tokens)

    def read(self, row: int, tokens: Sequence[int], past: int) -> Logits:
        """See :class:`~coordinator.inference.step_model.StepModel`."""
        self._group.tell(["read", row, list(tokens), past])
        logits: Logits = self._part.read(row, tokens, past).numpy()
        return logits

    def decode(self, tokens: Sequence[int], past: Sequence[int]) -> FloatMatrix:
        """See :class:`~coordinator.inference.step_model.StepModel`."""
        self._group.tell(["decode", list(tokens), list(past)])
        logits: FloatMatrix = self._part.decode(tokens, past).numpy()
        return logits

    def take(self, row: int, start: int, end: int) -> KeysAndValues:
        """See :class:`~coordinator.inference.step_model.StepModel`."""
        self._group.tell(["take", row, start, end])
        taken = self._part.take(row, start, end)
        assert taken is not None
        return taken

    def put(self, row: int, start: int, kept: KeysAndValues) -> None:
        """See :class:`~coordinator.inference.step_model.StepModel`."""
        whole = np.ascontiguousarray(kept, np.float32)
        message = [row, start, whole.tobytes(), list(whole.shape)]
        self._group.tell(["put", *message])
        self._part.put(row, start, whole.tobytes(), whole.shape)

    def close(self) -> None:
        """Let the other processes end."""
        self._group.tell(["end"])


def follow(group: Group) -> None:
    """Hold a part of a model and do what the first process does (D1), until it says it is over.

    Raises:
        ModelError: it cannot be loaded; the first process has the same error.
    """
    name, folder, digest, precision, cuda = group.hear()
    base = BaseModel(name, Path(folder), Digest(digest))
    part = _Part(group, base, precision=precision, cuda=cuda)
    steps: Mapping[str, Callable[..., Any]] = {
        "reserve": part.reserve,
        "place": lambda row, data: part.place(row, data and Adapter.from_bytes(data)),
        "copy": part.copy,
        "move": part.move,
        "read": part.read,
        "decode": part.decode,
        "take": part.take,
        "put": part.put,
    }
    while True:
        step, *arguments = group.hear()
        if step == "end":
            return
        steps[step](*arguments)
