"""Text classification: a text has one of a run's labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

from shared.data_files import Example


class TextClassification:
    """An example's label is one of the head's."""

    name: Final = "text-classification"
    base: Final[Literal["encoder"]] = "encoder"
    has_head: Final = True

    def labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """The distinct labels, sorted."""
        return tuple(sorted({example.label for example in examples}))

    def problems(self, examples: Sequence[Example]) -> Iterator[str]:
        """At least two labels are needed to tell anything apart."""
        found = len(self.labels(examples))
        if found < 2:
            yield f"the probe set has {found} label(s), at least 2 are needed"

    def outcome(self, torch: Any, logits: Any, targets: Any) -> tuple[Any, Any]:
        """Cross-entropy, and whether the likeliest label is the right one."""
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        return losses, (logits.argmax(dim=-1) == targets).to(losses.dtype)


TASK: Final = TextClassification()
