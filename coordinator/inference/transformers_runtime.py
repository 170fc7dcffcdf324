"""A language model in transformers, with its own continuous batching.

For one GPU, and on the processor for causal models that no graph can be made of.

F1  blocks of keys and values are never shared between requests: the library knows them by their
    tokens alone, whatever adapter computed them (measured: right answers for 2 of 8)
F2  a token depends on its own request alone: every request has its own adapter, temperature, seed
    and schema, whatever stands beside it in a batch
F3  a step is computed by whoever calls for it, not by the library's thread: one that hangs is
    noticed, and a cancelled request is gone at once

Implements :class:`~coordinator.inference.token_runtime.TokenRuntime`. Adapters, samplers and schemas
differ from row to row and from step to step, so CUDA graphs are off.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np

from coordinator.inference.engine import EngineLoad, FinishReason
from coordinator.inference.schema import Follower, Schemas
from coordinator.inference.token_runtime import Emitted, TokenRequest
from shared.errors import ModelError, PromptRefused
from shared.extras import require
from shared.models.adapter import Adapter, place_of
from shared.models.encoder import BaseModel

DTYPES: Final = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_WIDTHS: Final = {"fp32": 4, "bf16": 2, "fp16": 2}

_EXTRA: Final = "llm"

_PLACES: Final = {"query": "q_proj", "value": "v_proj"}
"""What a slot is called in the attention of the Llama family (Llama, Qwen2, Mistral, Gemma)."""

_PAGE_ON_CPU: Final = 32
"""Tokens of one block; a block is the least that a request takes."""

_READ_ON_CPU: Final = 512
"""Most tokens of one step, of prompts nearly all; whoever generates waits for them."""

_KV_SHARE_ON_CPU: Final = 1 / 8
_KV_TOKENS_ON_CPU: Final = 65_536
"""Unless told otherwise: a share of the machine's memory, and no more tokens than these, since a
step's mask is as wide."""

_MEMORY_ON_GPU: Final = 0.8
"""Of what a GPU has left beside the model: sampling needs some more, a vocabulary wide."""

_ADAPTERS_KEPT: Final = 16
"""On the device, beside those in use."""

_Pair = tuple[Any, Any]
"""A low-rank pair as right factors, the scale multiplied in: (inputs, r) and (r, outputs)."""

_Pairs = Mapping[tuple[int, str], _Pair]
"""By layer and what the projection is called."""


@dataclass(slots=True)
class _Work:
    """A request under way."""

    request: TokenRequest
    pairs: _Pairs
    follower: Follower | None
    rng: np.random.Generator
    given: int = 0

    @property
    def key(self) -> str:
        """What the library calls it."""
        return str(self.request.number)


def open_transformers_runtime(
    base: BaseModel, *, device: str, precision: str, threads: int, slots: int, kv_bytes: int
) -> TransformersRuntime:
    """Load a model and give its keys and values so many bytes.

    Args:
        base: From its folder alone.
        device: ``cpu`` or ``cuda``.
        precision: A name in :data:`DTYPES`.
        threads: Arithmetic threads on the processor.
        slots: Most requests at once.
        kv_bytes: 0 is a share of the machine's memory, or what a GPU has left.

    Raises:
        DependencyMissing: torch or transformers is not installed.
        ModelError: it is no causal language model, or not even one short request would fit.
    """
    a_token, context = _measures(base, precision)
    kv_tokens = kv_bytes // a_token
    if not kv_bytes and device == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        kv_tokens = min(_KV_TOKENS_ON_CPU, int(memory * _KV_SHARE_ON_CPU) // a_token)
    if kv_tokens < min(256, context) and (kv_bytes or device == "cpu"):
        raise ModelError(
            f"{kv_bytes} bytes hold keys and values of {kv_tokens} tokens of {base.name}: "
            f"give at least {256 * a_token}"
        )
    return TransformersRuntime(
        *(base,),
        device=device,
        precision=precision,
        threads=threads,
        slots=slots,
        kv_tokens=kv_tokens,
    )


def _measures(base: BaseModel, precision: str) -> tuple[int, int]:
    """Bytes of one token's keys and values in all layers, and most tokens of a request."""
    library: Any = require("transformers", extra=_EXTRA)
    try:
        config = library.AutoConfig.from_pretrained(
            base.folder, local_files_only=True, trust_remote_code=False
        ).get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        a_token = 2 * config.num_hidden_layers * heads * width * _WIDTHS[precision]
        return int(a_token), int(config.max_position_embeddings)
    except (OSError, ValueError, KeyError, AttributeError) as err:
        raise ModelError(f"{base.name} is no causal language model: {str(err)[:300]}") from err


class TransformersRuntime:
    """Slots that transformers manages."""

    lacks: frozenset[str] = frozenset()

    def __init__(
        self,
        base: BaseModel,
        *,
        device: str,
        precision: str,
        threads: int,
        slots: int,
        kv_tokens: int,
    ) -> None:
        """Load the model and make room for its keys and values.

        Args:
            base: From its folder alone; the network is not asked and no code of it is run.
            device: ``cpu`` or ``cuda``.
            precision: A name in :data:`DTYPES`.
            threads: Arithmetic threads on the processor.
            slots: Most requests at once.
            kv_tokens: Most tokens whose keys and values are kept; 0, on a GPU alone, lets the
                library take what is left of its memory.

        Raises:
            DependencyMissing: torch or transformers is not installed.
            ModelError: the folder's files are no causal language model transformers can read.
        """
        self._torch: Any = require("torch", extra=_EXTRA)
        library: Any = require("transformers", extra=_EXTRA)
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
        self._torch.set_num_threads(threads)
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            model = library.AutoModelForCausalLM.from_pretrained(
                base.folder,
                dtype=getattr(self._torch, DTYPES[precision]),
                use_safetensors=True,
                attn_implementation="sdpa",
                **local,
            )
            self._model: Any = model.to(device).eval()
        except (OSError, ValueError, KeyError, RuntimeError) as err:
            raise ModelError(f"{base.name} is no causal language model: {str(err)[:300]}") from err
        self._model.requires_grad_(False)
        self._base, self._slots = base, slots
        ends = self._model.generation_config.eos_token_id
        if ends is None:
            ends = library.AutoTokenizer.from_pretrained(base.folder, **local).eos_token_id
        self.ends = tuple(ends) if isinstance(ends, list) else () if ends is None else (int(ends),)
        on_cpu = device == "cpu"
        batching = library.ContinuousBatchingConfig(
            allow_block_sharing=False,  # F1
            page_size=_PAGE_ON_CPU if on_cpu else 256,
            max_batch_tokens=_READ_ON_CPU if on_cpu else None,
            max_requests_per_batch=slots,
            max_memory_percent=_MEMORY_ON_GPU,
            # Everything that would run ahead of us, or fetch kernels from a hub.
            use_async_batching=False,
            use_cuda_graph=False,
            auto_switch_to_flash=False,
        )
        if kv_tokens:
            batching.num_blocks = -(-kv_tokens // batching.page_size)
        self._manager: Any = self._model.init_continuous_batching(
            # Greedy: what is drawn, we draw.
            generation_config=library.GenerationConfig(
                do_sample=False, eos_token_id=list(self.ends) or [-1]
            ),
            continuous_batching_config=batching,
        )
        self._batch = _Batch()
        self._manager.logit_processor = _Chooser(self)
        with self._torch.no_grad():
            self._manager.warmup()  # makes the batches; with graphs off that is all
        self._batches: Any = self._manager.batch_processor
        self._page = batching.page_size
        self._kv_tokens = int(self._batches.cache.num_blocks) * self._page
        self.context_tokens = min(
            int(self._model.config.get_text_config().max_position_embeddings), self._kv_tokens
        )
        self._waiting: deque[_Work] = deque()
        self._active: dict[str, _Work] = {}
        self._adapters: OrderedDict[int, tuple[Adapter, _Pairs]] = OrderedDict()
        self._hooked: set[tuple[int, str]] = set()
        self._prompt_tokens = self._completion_tokens = 0

    @property
    def load(self) -> EngineLoad:
        """See :class:`~coordinator.inference.token_runtime.TokenRuntime`."""
        lengths = (len(work.request.tokens) + work.given for work in self._active.values())
        return EngineLoad(
            slots=self._slots,
            active=len(self._active),
            waiting=len(self._waiting),
            kv_tokens=self._kv_tokens,
            kv_tokens_used=sum(-(-length // self._page) * self._page for length in lengths),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
        )

    def submit(self, request: TokenRequest) -> None:
        """See :class:`~coordinator.inference.token_runtime.TokenRuntime`."""
        needed = len(request.tokens) + request.max_tokens
        if needed > self._kv_tokens:
            raise PromptRefused(
                f"prompt and answer have up to {needed} tokens; this server has memory for "
                f"{self._kv_tokens} at once"
            )
        if max(request.tokens) >= self._vocabulary:
            raise PromptRefused(f"the model's tokens are the numbers below {self._vocabulary}")
        pairs = self._pairs(request.adapter) if request.adapter is not None else {}
        follower = self._schemas.follow(request.schema) if request.schema is not None else None
        rng = np.random.Generator(np.random.PCG64(request.seed))
        self._waiting.append(_Work(request, pairs, follower, rng))

    def cancel(self, number: int) -> None:
        """See :class:`~coordinator.inference.token_runtime.TokenRuntime`."""
        for work in self._waiting:
            if work.request.number == number:
                self._waiting.remove(work)
                return
        if self._active.pop(str(number), None) is not None:
            scheduler = self._batches.scheduler
            scheduler.set_request_cancellation(str(number))
            scheduler.clear_cancelled_requests()

    def step(self) -> Sequence[Emitted]:
        """See :class:`~coordinator.inference.token_runtime.TokenRuntime`."""
        while self._waiting and len(self._active) < self._slots:
            work = self._waiting.popleft()
            self._active[work.key] = work
            self._manager.add_request(
                list(work.request.tokens),
                request_id=work.key,
                max_new_tokens=work.request.max_tokens,
            )
        if not self._active:
            return ()
        with self._torch.no_grad():
            # What the library's own thread does between two looks at its queues (F3).
            if not self._batches.prepare_next_batch():
                raise RuntimeError("transformers' batching found nothing to do among its requests")
            inputs, runner = self._batches.inputs_and_outputs, self._batches.model_runner
            runner.compute_batch(
                self._model, inputs.get_model_kwargs(use_padding=runner.pad_inputs)
            )
            inputs.retrieve_device_outputs()
            self._batches.update_batch()
        while (result := self._manager.get_result(timeout=0.0)) is not None:
            if result.error is not None:
                raise RuntimeError(f"transformers' batching failed: {result.error}")
        return [self._told(*each) for each in self._batch.chosen]

    def close(self) -> None:
        """See :class:`~coordinator.inference.token_runtime.TokenRuntime`."""
        self._waiting.clear()
        self._active.clear()
        self._manager.destroy()

    @property
    def _vocabulary(self) -> int:
        return int(self._model.config.get_text_config().vocab_size)

    @cached_property
    def _schemas(self) -> Schemas:
        # The tokenizer is read at the first schema: most servers never see one.
        return Schemas(self._base.folder / "tokenizer.json", self.ends, self._vocabulary)

    def _told(self, work: _Work, token: int, likeliest: Sequence[tuple[int, float]]) -> Emitted:
        """What a chosen token means for its request."""
        request = work.request
        work.given += 1
        self._completion_tokens += 1
        if work.given == 1:
            self._prompt_tokens += len(request.tokens)
        if work.follower is not None:
            work.follower.accept(token)
        over = work.follower is not None and work.follower.is_over
        finish: FinishReason | None = "stop" if token in self.ends or over else None
        if finish is None and work.given >= request.max_tokens:
            finish = "length"
        if finish is not None:
            self.cancel(request.number)  # the library has let go of most already
        logprob = likeliest[0][1] if likeliest else 0.0
        return Emitted(request.number, token, logprob, likeliest[1:], finish)

    def lay_out(self, requests: Sequence[Any]) -> None:
        """Hear from the library which requests the next batch holds, one behind the other.

        Args:
            requests: Each with its state, how many tokens of it are read, and whether one follows.
        """
        works = [self._active[each.state.request_id] for each in requests]
        self._batch = _Batch(
            rows=[work for work, each in zip(works, requests, strict=True) if each.has_new_token]
        )
        groups: dict[int, tuple[_Pairs, list[int]]] = {}
        start = 0
        for work, each in zip(works, requests, strict=True):
            end = start + each.query_length
            if work.pairs:
                groups.setdefault(id(work.pairs), (work.pairs, []))[1].extend(range(start, end))
            start = end
        for pairs, places in groups.values():
            where = None
            if len(places) < start:
                where = self._torch.tensor(places, device=self._model.device)
            self._batch.adapted.append((pairs, where))

    def choose(self, logits: Any) -> Any:
        """Choose every row's next token.

        Args:
            logits: Float32, shape (n or more, V), in the order of the batch's rows.

        Returns:
            Tokens, shape (n,).
        """
        torch, works = self._torch, self._batch.rows
        scores = logits = logits[: len(works)]
        if any(work.follower is not None for work in works):
            scores = logits.clone()
            for row, work in enumerate(works):
                if work.follower is not None:
                    allowed = torch.from_numpy(work.follower.allowed()).to(scores.device)
                    scores[row].masked_fill_(~allowed, -torch.inf)
        tokens = scores.argmax(dim=1)
        if drawing := [row for row, work in enumerate(works) if work.request.temperature > 0.0]:
            tokens[drawing] = self._drawn(scores[drawing], [works[row] for row in drawing])
        chosen = tokens.tolist()
        likeliest: list[list[tuple[int, float]]] = [[] for _ in works]
        for row, work in enumerate(works):
            if (count := work.request.logprobs) is not None:
                likeliest[row] = _likeliest(logits[row], chosen[row], count)
        self._batch.chosen = list(zip(works, chosen, likeliest, strict=True))
        return tokens

    def _drawn(self, scores: Any, works: Sequence[_Work]) -> Any:
        """Draw a token for each row, shape (n,), with one number of its request's generator."""
        torch = self._torch

        def column(values: list[float]) -> Any:
            return torch.tensor(values, dtype=torch.float64, device=scores.device)[:, None]

        temperature = column([work.request.temperature for work in works])
        top_p = column([work.request.top_p for work in works])
        at = column([work.rng.random() for work in works])
        # Shifted before scaling: a tiny temperature would overflow, and infinity is no probability.
        shifted = scores.double() - scores.amax(dim=1, keepdim=True)
        chances = (shifted / temperature).softmax(dim=1)
        order = None
        if any(work.request.top_p < 1.0 for work in works):
            # Stable, so that of equals the lower token goes first and runs repeat.
            chances, order = chances.sort(dim=1, descending=True, stable=True)
            # Kept while what lies before has not reached the sum: always at least the first.
            chances = chances * (chances.cumsum(dim=1) - chances < top_p)
        ends = chances.cumsum(dim=1)
        place = torch.searchsorted(ends, at * ends[:, -1:], right=True)
        # Rounding may carry the very last place beyond the end, where chances can be 0.
        last = (chances > 0).to(torch.int32).cumsum(dim=1).argmax(dim=1, keepdim=True)
        place = torch.minimum(place, last)
        return (place if order is None else order.gather(1, place))[:, 0]

    def _pairs(self, adapter: Adapter) -> _Pairs:
        """An adapter's matrices on the device.

        Raises:
            ModelError: it was trained on another base, or has no place in this one.
        """
        if (kept := self._adapters.get(id(adapter))) is not None:
            self._adapters.move_to_end(id(adapter))
            return kept[1]
        if adapter.base != self._base.digest:
            raise ModelError(
                f"the adapter was trained on the base {adapter.base[:12]}…, "
                f"and {self._base.name} is {self._base.digest[:12]}…"
            )
        if adapter.labels or adapter.shape.method not in {"lora", "rslora"}:
            raise ModelError("the adapter is not one of a language model")
        pairs: dict[tuple[int, str], _Pair] = {}
        for slot in adapter.shape.slots:
            projection = self._projection(slot.name)
            if (slot.outputs, slot.inputs) != tuple(projection.weight.shape):
                raise ModelError(f"the adapter has another shape at {slot.name}")
            a, b = adapter.tensors[f"{slot.name}.lora_a"], adapter.tensors[f"{slot.name}.lora_b"]
            scaled = np.float32(adapter.shape.scale) * b
            pairs[place_of(slot.name)] = (
                self._torch.tensor(a.T.copy()).to(projection.weight),
                self._torch.tensor(scaled.T.copy()).to(projection.weight),
            )
        for place in pairs.keys() - self._hooked:
            layer, part = place
            self._projection(f"layer.{layer}.{part}").register_forward_hook(self._adding(place))
            self._hooked.add(place)
        self._adapters[id(adapter)] = (adapter, pairs)  # held, so that its id is no other's
        if len(self._adapters) > _ADAPTERS_KEPT:
            self._adapters.popitem(last=False)
        return pairs

    def _projection(self, slot: str) -> Any:
        layer, place = place_of(slot)
        try:
            return getattr(self._model.model.layers[layer].self_attn, _PLACES[place])
        except (AttributeError, IndexError, KeyError) as err:
            raise ModelError(
                f"the adapter has no place in {self._base.name}: there is no {slot}"
            ) from err

    def _adding(self, place: tuple[int, str]) -> Any:
        """What adds to a projection's outcome, token by token: y = W x + b + scale · B A x."""

        def hook(_module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
            for pairs, where in self._batch.adapted:
                if (pair := pairs.get(place)) is None:
                    continue
                down, up = pair
                if where is None:
                    output = output + inputs[0] @ down @ up
                else:
                    output = output.index_add(1, where, inputs[0][:, where] @ down @ up)
            return output

        return hook


@dataclass(slots=True)
class _Batch:
    """What is computed in one step."""

    rows: list[_Work] = field(default_factory=list)
    """Those that get a token."""
    adapted: list[tuple[_Pairs, Any]] = field(default_factory=list)
    """Adapters, each with the places of its tokens in the batch; ``None``: all."""
    chosen: list[tuple[_Work, int, list[tuple[int, float]]]] = field(default_factory=list)
    """Tokens, and log probabilities of these and of the likeliest."""


class _Chooser:
    """Stands where the library has its list of logits processors, and has its methods.

    Its own list applies one parameter to all requests or one number to each, and draws for all
    with one generator. This one hears what each batch holds and leaves, of every row, the token
    that was chosen: the library then takes the likeliest.
    """

    do_processing: Final = True
    tensors_required: Final = 0

    def __init__(self, runtime: TransformersRuntime) -> None:
        self._runtime = runtime

    def check_kwargs(self, kwargs: Mapping[str, Any]) -> None:
        """Requests have none: they are known by their number."""
        assert not kwargs

    def fill_defaults(self, tensor: Any) -> None:
        """There are no tensors of parameters."""

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: Any) -> Any:
        """Hear what the next batch holds."""
        self._runtime.lay_out(requests_in_batch)
        return arg_storage

    def __call__(self, _input_ids: Any, scores: Any, _arguments: Any) -> Any:
        """Leave one token of every row that gets one; rows behind these are padding."""
        tokens = self._runtime.choose(scores)
        scores[: len(tokens)].scatter_(1, tokens[:, None], float("inf"))
        return scores


def _likeliest(logits: Any, token: int, count: int) -> list[tuple[int, float]]:
    """The token and then so many of the likeliest, with log probabilities at temperature 1."""
    logprobs = logits.double().log_softmax(dim=0)
    values, tokens = logprobs.topk(min(count, len(logprobs)))
    return [(token, float(logprobs[token])), *zip(tokens.tolist(), values.tolist(), strict=True)]
