"""A language model in transformers, with its own continuous batching.

For one GPU, and on the processor for causal models that no graph can be made of.

F1  blocks of keys and values are never shared between requests: the library shares them by their
    tokens alone, whatever adapter computed them (measured: right answers for 2 of 8)
F2  requests of one adapter are answered together; those of another wait until these are through

Implements :class:`~coordinator.inference.token_runtime.TokenRuntime`. The library draws with a
generator of its own for the whole batch and gives no more than a token: seeds, log probabilities and
schemas are not served here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from coordinator.inference.engine import EngineLoad
from coordinator.inference.token_runtime import Emitted, TokenRequest
from shared.errors import ModelError, PromptRefused
from shared.extras import require
from shared.models.adapter import Adapter, place_of
from shared.models.encoder import BaseModel

LACKS: Final = frozenset({"logprobs", "schema", "seed"})

DTYPES: Final = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

_EXTRA: Final = "llm"
_PLACES: Final = {"query": "q_proj", "value": "v_proj"}
"""What a slot is called in the attention of the Llama family (Llama, Qwen2, Mistral, Gemma)."""

_PAGE: Final = 32
"""Tokens of one block on the processor; on a GPU the library chooses."""

_WAIT_S: Final = 0.02
"""So long a step waits for the library's thread, which does the work; longer would keep new
requests and cancellations waiting."""


@dataclass(slots=True)
class _Work:
    request: TokenRequest
    given: int = 0


class TransformersRuntime:
    """Slots that transformers manages."""

    ends: tuple[int, ...]

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
        """Load the model and start its batching.

        Args:
            base: From its folder alone; the network is not asked and no code of it is run.
            device: ``cpu`` or ``cuda``.
            precision: A name in :data:`DTYPES`.
            threads: Arithmetic threads on the processor.
            slots: Most requests at once.
            kv_tokens: Most tokens whose keys and values are kept on the processor; on a GPU the
                library takes what is left of its memory.

        Raises:
            DependencyMissing: torch or transformers is not installed.
            ModelError: the folder's files are no causal language model transformers can read.
        """
        self._torch: Any = require("torch", extra=_EXTRA)
        library: Any = require("transformers", extra=_EXTRA)
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
        self._torch.set_num_threads(threads)
        try:
            model = library.AutoModelForCausalLM.from_pretrained(
                base.folder,
                dtype=getattr(self._torch, DTYPES[precision]),
                attn_implementation="sdpa",
                local_files_only=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as err:
            raise ModelError(f"{base.name} is no causal language model: {str(err)[:300]}") from err
        self._model = model.to(device).eval()
        self._base = base
        self._slots, self._kv_tokens = slots, kv_tokens
        self.context_tokens = int(model.config.max_position_embeddings)
        self.lacks = LACKS
        ends = model.generation_config.eos_token_id
        self.ends = tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)
        on_cpu = device == "cpu"
        batching = library.ContinuousBatchingConfig(
            allow_block_sharing=False,  # F1
            num_blocks=kv_tokens // _PAGE if on_cpu else None,
            page_size=_PAGE if on_cpu else 256,
            max_batch_tokens=512 if on_cpu else None,
            max_requests_per_batch=slots,
            per_request_processors=True,
        )
        # Each of these is given anew with every request; here they only say that there are such.
        sampling = library.GenerationConfig(
            do_sample=True, temperature=0.5, top_k=50, top_p=0.5, max_new_tokens=1
        )
        self._manager = self._model.init_continuous_batching(
            generation_config=sampling, continuous_batching_config=batching
        )
        if not on_cpu:
            self._manager.warmup()
        self._manager.start()
        self._waiting: deque[_Work] = deque()
        self._active: dict[int, _Work] = {}
        self._adapter: Adapter | None = None
        self._hooks: list[Any] = []
        self._prompt_tokens = 0
        self._completion_tokens = 0

    @property
    def load(self) -> EngineLoad:
        """See :class:`~coordinator.inference.token_runtime.TokenRuntime`."""
        used = sum(len(w.request.tokens) + w.request.max_tokens for w in self._active.values())
        return EngineLoad(
            slots=self._slots,
            active=len(self._active),
            waiting=len(self._waiting),
            kv_tokens=self._kv_tokens,
            kv_tokens_used=used,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
        )

    def submit(self, request: TokenRequest) -> None:
        """See :class:`~coordinator.inference.token_runtime.TokenRuntime`."""
        if request.logprobs is not None or request.schema is not None:
            raise PromptRefused("this engine serves neither log probabilities nor schemas")
        needed = len(request.tokens) + request.max_tokens
        if self._kv_tokens and needed > self._kv_tokens:
            raise PromptRefused(
                f"prompt and answer have up to {needed} tokens; this server has memory for "
                f"{self._kv_tokens} at once"
            )
        if request.adapter is not None:
            self._projections(request.adapter)
        self._waiting.append(_Work(request))

    def cancel(self, number: int) -> None:
        """See :class:`~coordinator.inference.token_runtime.TokenRuntime`."""
        if self._active.pop(number, None) is not None:
            # The library says nothing about it any more, not even that it is over.
            self._manager.cancel_request(str(number))
        for work in self._waiting:
            if work.request.number == number:
                self._waiting.remove(work)
                return

    def step(self) -> Sequence[Emitted]:
        """See :class:`~coordinator.inference.token_runtime.TokenRuntime`."""
        while self._waiting and len(self._active) < self._slots:
            if self._waiting[0].request.adapter is not self._adapter:
                if self._active:
                    break  # F2
                self._put_in_place(self._waiting[0].request.adapter)
            self._ask(self._waiting.popleft())
        if not self._active:
            return ()
        return list(self._answers())

    def close(self) -> None:
        """See :class:`~coordinator.inference.token_runtime.TokenRuntime`."""
        self._manager.stop(block=True, timeout=5.0)

    def _ask(self, work: _Work) -> None:
        request = work.request
        greedy = request.temperature == 0.0
        self._active[request.number] = work
        self._prompt_tokens += len(request.tokens)
        self._manager.add_request(
            list(request.tokens),
            request_id=str(request.number),
            max_new_tokens=request.max_tokens,
            streaming=True,
            eos_token_id=list(self.ends),
            temperature=1.0 if greedy else float(request.temperature),
            top_k=1 if greedy else int(self._model.config.vocab_size),
            top_p=float(request.top_p),
        )

    def _answers(self) -> Iterator[Emitted]:
        """What the library's thread has brought since, after a short wait for the first of it."""
        deadline = time.monotonic() + _WAIT_S
        while (result := self._manager.get_result(timeout=_WAIT_S)) is not None:
            work = self._active.get(int(result.request_id))
            if work is not None:
                if result.error is not None:
                    raise RuntimeError(f"transformers' batching failed: {result.error}")
                yield from self._new_tokens(work, result.generated_tokens)
            if time.monotonic() > deadline:
                return
        if not self._manager.is_running():
            raise RuntimeError("transformers' batching has ended")

    def _new_tokens(self, work: _Work, tokens: Sequence[int]) -> Iterator[Emitted]:
        request = work.request
        for token in tokens[work.given :]:
            work.given += 1
            self._completion_tokens += 1
            ended = int(token) in self.ends
            last = ended or work.given >= request.max_tokens
            if last:
                del self._active[request.number]
            yield Emitted(
                number=request.number,
                token=int(token),
                finish=("stop" if ended else "length") if last else None,
            )
            if last:
                return

    def _put_in_place(self, adapter: Adapter | None) -> None:
        """Answer with an adapter from now on: y = W x + b + scale · B A x, beside the weights."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._adapter = [], adapter
        if adapter is None:
            return
        for projection, slot in self._projections(adapter):
            a, b = adapter.tensors[f"{slot}.lora_a"], adapter.tensors[f"{slot}.lora_b"]
            weight = projection.weight
            down = self._torch.from_numpy(a.T.copy()).to(weight)
            up = self._torch.from_numpy(adapter.shape.scale * b.T).to(weight)
            self._hooks.append(projection.register_forward_hook(_adding(down, up)))

    def _projections(self, adapter: Adapter) -> list[tuple[Any, str]]:
        """Where an adapter's matrices go, with their slots.

        Raises:
            ModelError: it was trained on another base, or has no place in this one.
        """
        if adapter.base != self._base.digest:
            raise ModelError(
                f"the adapter was trained on the base {adapter.base[:12]}…, "
                f"and {self._base.name} is {self._base.digest[:12]}…"
            )
        if adapter.labels or adapter.shape.method not in {"lora", "rslora"}:
            raise ModelError("the adapter is not one of a language model")
        found = []
        for slot in adapter.shape.slots:
            layer, place = place_of(slot.name)
            try:
                attention = self._model.model.layers[layer].self_attn
                projection = getattr(attention, _PLACES[place])
            except (AttributeError, IndexError, KeyError) as err:
                raise ModelError(
                    f"the adapter has no place in {self._base.name}: there is no {slot.name}"
                ) from err
            if (slot.outputs, slot.inputs) != tuple(projection.weight.shape):
                raise ModelError(f"the adapter has another shape at {slot.name}")
            found.append((projection, slot.name))
        return found


def _adding(down: Any, up: Any) -> Any:
    def hook(_module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        return output + inputs[0] @ down @ up

    return hook
