"""A language model: a prompt is continued. The example's label is the continuation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

from shared.data_files import Example


class CausalLm:
    """An example's text is the prompt, its label the wanted continuation."""

    name: Final = "causal-lm"
    base: Final[Literal["causal"]] = "causal"
    has_head: Final = False

    def labels(self, _: Sequence[Example]) -> tuple[str, ...]:
        """None: the words are the base model's own."""
        return ()

    def problems(self, examples: Sequence[Example]) -> Iterator[str]:
        """Something must be continued."""
        if not examples:
            yield "the probe set is empty"

    def outcome(self, torch: Any, logits: Any, targets: Any) -> tuple[Any, Any]:
        """Mean cross-entropy over an example's own tokens, and the share foretold.

        The mean is per sequence, so that a long answer does not weigh more and every example has
        one gradient to clip.
        """
        asked = targets != -100
        counts = asked.sum(dim=1).clamp(min=1)
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, reduction="none", ignore_index=-100
        )
        right = (logits.argmax(dim=-1) == targets) & asked
        return losses.sum(dim=1) / counts, right.sum(dim=1) / counts


TASK: Final = CausalLm()
