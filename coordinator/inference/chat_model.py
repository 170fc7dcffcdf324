"""The process in which the coordinator's language model lives.

W1  an adapter is in place during its own request and no other: afterwards the base
    model answers bit for bit as before
W2  the same request gives the same text, whatever was asked in between
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from coordinator.inference.engine import Generation
from shared.errors import ModelError, PromptRefused
from shared.extras import require
from shared.models.adapter import Adapter, place_of
from shared.models.encoder import BaseModel
from shared.models.pytorch import FrozenModel, prompt_ids

_PLACES: Final = {"query": "q_proj", "value": "v_proj"}
"""What a slot is called in the attention of the Llama family (Llama, Qwen2, Mistral, Gemma)."""

_CUT_CHARACTER: Final = "\N{REPLACEMENT CHARACTER}"
"""What half a character decodes to: tokens are pieces of bytes."""


class ChatModel(FrozenModel):
    """A causal language model in memory, float32, on the processor."""

    def __init__(self, base: BaseModel, *, threads: int) -> None:
        """Load it from its folder; the network is not asked and no code of it is run.

        Raises:
            DependencyMissing: torch or transformers is not installed.
            ModelError: the folder's files are no causal language model transformers can read.
        """
        super().__init__(base, causal=True, threads=threads, extra="llm")
        self.base = base
        self.context_tokens = int(self._model.config.max_position_embeddings)
        ends = self._model.generation_config.eos_token_id
        if ends is None:
            ends = self._tokenizer.eos_token_id
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])

    def tokens_of(self, prompt: str | Sequence[dict[str, str]]) -> list[int]:
        """Return the tokens of a text, or of a conversation up to where the model's turn begins.

        As :func:`~shared.models.pytorch.prompt_ids`, which adapters are trained with.

        Raises:
            PromptRefused: the template does not take such a conversation.
        """
        if isinstance(prompt, str):
            return list(self._tokenizer(prompt)["input_ids"])
        jinja2: Any = require("jinja2", extra="llm")
        try:
            return prompt_ids(self._tokenizer, prompt)
        except jinja2.TemplateError as err:
            raise PromptRefused(f"the model's chat template refuses this: {err}") from err

    def generate(
        self,
        prompt: str | Sequence[dict[str, str]],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        stop: Sequence[str],
    ) -> Generation:
        """Continue ``prompt``; arguments as in :class:`~coordinator.inference.engine.GenerationRequest`.

        Raises:
            PromptRefused: the prompt leaves no room in the context.
        """
        torch = self.torch
        tokens = self.tokens_of(prompt)
        room = self.context_tokens - len(tokens)
        if not tokens or room < 1:
            raise PromptRefused(
                f"the prompt has {len(tokens)} tokens; the model's maximum context length is "
                f"{self.context_tokens} tokens, the answer included"
            )
        generator = torch.Generator().manual_seed(seed)
        drawn: list[int] = []
        text, finish_reason = "", "length"
        fed, cache = torch.tensor([tokens]), None
        with torch.inference_mode():
            while len(drawn) < min(max_tokens, room) and finish_reason == "length":
                out = self._model(input_ids=fed, cache=cache, use_cache=True, logits_to_keep=1)
                cache = out.cache
                token = self._choose(out.logits[0, -1], temperature, top_p, generator)
                drawn.append(token)
                fed = torch.tensor([[token]])
                if token in self._ends:
                    finish_reason = "stop"
                elif stop:
                    text = self._text(drawn)
                    if cut := [at for at in (text.find(each) for each in stop) if at >= 0]:
                        text, finish_reason = text[: min(cut)], "stop"
                        break
            else:
                text = self._text(drawn)
        return Generation(
            text=text.rstrip(_CUT_CHARACTER) if finish_reason == "length" else text,
            prompt_tokens=len(tokens),
            completion_tokens=len(drawn),
            finish_reason="stop" if finish_reason == "stop" else "length",
        )

    @contextmanager
    def with_adapter(self, adapter: Adapter, name: str) -> Iterator[None]:
        """Answer with low-rank matrices in place: y = W x + b + scale · B A x (W1).

        Nothing of the model is changed: the product is added to what a projection gives.

        Raises:
            ModelError: the adapter was trained on another base, or has no place in this one.
        """
        if adapter.base != self.base.digest:
            raise ModelError(
                f"the adapter of {name} was trained on the base {adapter.base[:12]}…, "
                f"and {self.base.name} is {self.base.digest[:12]}…"
            )
        if adapter.labels or adapter.shape.method not in {"lora", "rslora"}:
            raise ModelError(f"the adapter of {name} is not one of a language model")
        # Found first, so that a refusal leaves nothing behind.
        places = [(self._projection(slot.name, name), slot.name) for slot in adapter.shape.slots]
        handles = []
        try:
            for projection, slot in places:
                a, b = adapter.tensors[f"{slot}.lora_a"], adapter.tensors[f"{slot}.lora_b"]
                if (b.shape[0], a.shape[1]) != tuple(projection.weight.shape):
                    raise ModelError(f"the adapter of {name} has another shape at {slot}")
                down = self.torch.from_numpy(a.T.copy())
                up = self.torch.from_numpy(adapter.shape.scale * b.T)
                handles.append(projection.register_forward_hook(_adding(down, up)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _projection(self, slot: str, adapter: str) -> Any:
        layer, place = place_of(slot)
        try:
            attention = self._model.model.layers[layer].self_attn
            return getattr(attention, _PLACES[place])
        except (AttributeError, IndexError, KeyError) as err:
            raise ModelError(
                f"the adapter of {adapter} has no place in {self.base.name}: there is no {slot}"
            ) from err

    def _choose(self, logits: Any, temperature: float, top_p: float, generator: Any) -> int:
        torch = self.torch
        if temperature == 0.0:
            return int(logits.argmax())
        # Shifted before scaling: a tiny temperature would overflow, and infinity is no probability.
        shifted = (logits.double() - logits.max()) / temperature
        ordered, tokens = torch.softmax(shifted, dim=0).sort(descending=True)
        # Kept while what lies before has not reached the sum: always at least the first.
        kept = ordered.cumsum(0) - ordered < top_p
        place = torch.multinomial(ordered * kept, 1, generator=generator)
        return int(tokens[place])

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


def _adding(down: Any, up: Any) -> Any:
    def hook(_module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        return output + inputs[0] @ down @ up

    return hook
