"""Several engines of one model behind one name.

R1  a replica that dies costs the requests that it was answering, and no others
R2  a request goes to another replica while nothing of its answer was handed on
"""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.inference.engine import (
    Engine,
    EngineLoad,
    EngineState,
    GenerationRequest,
    ModelCard,
    Stream,
)
from coordinator.inference.node_pool import Seats, spread
from shared.errors import ChildDied, EngineBusy, EngineError, LlmOsError


class ReplicatedEngine:
    """An :class:`~coordinator.inference.engine.Engine` over several that serve the same model."""

    def __init__(self, replicas: Sequence[Engine]) -> None:
        """``replicas``: at least one, all of the same model and none of them started."""
        if not replicas:
            raise ValueError("no replicas")
        self._replicas = {f"replica {number}": each for number, each in enumerate(replicas, 1)}
        self._seats = Seats(self._replicas)

    @property
    def card(self) -> ModelCard:
        """What is served: that of the readiest replica, which lacks what any lacks."""
        cards = [each.card for each in self._replicas.values()]
        order = (EngineState.READY, EngineState.LOADING, EngineState.FAILED)
        best = min(cards, key=lambda card: order.index(card.state))
        reasons = [
            f"{name}: {card.reason}"
            for name, card in zip(self._replicas, cards, strict=True)
            if card.reason
        ]
        return ModelCard(
            name=best.name,
            stand_in=any(card.stand_in for card in cards),
            state=best.state,
            reason="; ".join(reasons) if best.state is EngineState.FAILED else "",
            base=best.base,
            context_tokens=best.context_tokens,
            lacks=frozenset().union(*(card.lacks for card in cards)),
        )

    @property
    def load(self) -> EngineLoad:
        """Of all replicas together."""
        loads = [each.load for each in self._replicas.values()]
        return EngineLoad(
            **{
                name: sum(getattr(load, name) for load in loads)
                for name in EngineLoad.__dataclass_fields__
            }
        )

    @property
    def outstanding(self) -> dict[str, int]:
        """Unanswered requests by replica."""
        return self._seats.taken

    def start(self) -> None:
        """Begin to load the model in every replica, and return at once."""
        for each in self._replicas.values():
            each.start()

    def close(self) -> None:
        """End all; whoever waits is told."""
        for each in self._replicas.values():
            each.close()

    def stream(self, request: GenerationRequest) -> Stream:
        """Answer one request; contract in :class:`~coordinator.inference.engine.Engine`."""
        return spread(
            self._seats,
            self._ready,
            lambda name: self._replicas[name].stream(request),
            goes_elsewhere=lambda err: isinstance(err, (ChildDied, EngineBusy)),
            nobody=self._nobody,
        )

    def _ready(self) -> list[str]:
        return [
            name for name, each in self._replicas.items() if each.card.state is EngineState.READY
        ]

    def _nobody(self) -> LlmOsError:
        card = self.card
        if card.state is EngineState.FAILED:
            return EngineError(f"{card.name} could not be loaded: {card.reason}")
        return EngineBusy(f"{card.name} is still being loaded: ask again in a moment")
