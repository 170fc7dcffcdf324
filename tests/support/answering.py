"""A device's home with the tiny model installed, and a coordinator that says what it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.inference.answering import CoordinatorAnswer
from edge_agent.inference.installed import Serving, install, install_model
from shared.models.adapter import Adapter
from shared.models.calibration import Calibration
from tests.support import tiny_graph as tiny

CONFIDENT = "what is my balance"
"""Under :func:`calibrated` with a threshold of 0, this is answered on the device."""


def calibrated(threshold: float | None, *, target_error: float = 0.02) -> Calibration:
    """A calibration with a threshold as wished."""
    return Calibration(
        temperature=1.0,
        threshold=threshold,
        target_error=target_error,
        certified_with=0.95,
        examples=500,
    )


def released(
    home: Path,
    model: Path,
    *,
    adapter: Adapter | None = None,
    calibration: Calibration | None = None,
) -> Adapter:
    """Install ``model`` and an adapter in ``home``, as a release does."""
    adapter = adapter or tiny.tiny_adapter()
    serving = Serving(
        manifest=install_model(home, model),
        adapter=adapter.digest,
        calibration=calibration,
        released_at=1.0,
        run="run",
        task="text-classification",
    )
    install(home, serving, adapter.to_bytes())
    return adapter


@dataclass
class FakeCoordinator:
    """Answers with ``text``, or raises what it is told to; keeps what it was asked."""

    text: str = "the coordinator's answer"
    error: Exception | None = None
    asked: list[tuple[str, float]] = field(default_factory=list)

    def __call__(self, text: str, timeout_s: float) -> CoordinatorAnswer:
        self.asked.append((text, timeout_s))
        if self.error is not None:
            raise self.error
        return CoordinatorAnswer(self.text, "large", stand_in=True)
