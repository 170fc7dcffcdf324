"""Who could see what of a run, what it cost, and what was checked: out of its plan and its rows.

Said as docs/threat-model.md says it, each party by itself. Codes are words that never change; a
console says them in its reader's language.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Final

from coordinator.federation.rounds import Closed, Committed, UpdateStored
from coordinator.releases import NOT_RELEASED, RELEASED
from coordinator.store.store import Store, TransitionRow
from shared.crypto.sum_cipher import Scheme
from shared.job import RunPlan
from shared.privacy.accountant import epsilon
from shared.types import RunId
from shared.wire.envelope import claimed_sender, open_sealed
from shared.wire.messages import Contribution

_ANYBODY: Final = ("adapter", "participation", "sizes")
"""What whoever listens on the broker can see of any run."""


class PrivacyCard:
    """Adds up a run's rows, each of which is taken once."""

    def __init__(self, plan: RunPlan) -> None:
        """Begin before the first row of the run with this plan."""
        self.plan = plan
        self._sizes: dict[tuple[int, str], int] = {}
        self._bytes: Counter[int] = Counter()
        self._charged: set[int] = set()
        self._fewest: int | None = None
        self._spent: tuple[int, float | None] = (-1, None)

    def take(self, row: TransitionRow) -> None:
        """Count one row."""
        number = int(row.round)
        match row.transition:
            case Committed(device=device, record=record):
                # A device charges its ledger before it commits.
                self._charged.add(number)
                self._sizes[number, device] = _declared_size(record)
            case UpdateStored(device=device):
                self._bytes[number] += self._sizes.get((number, device), 0)
            case Closed(devices=devices):
                fewest = len(devices)
                self._fewest = fewest if self._fewest is None else min(self._fewest, fewest)
                self._sizes.clear()
            case _:
                pass

    def spent(self) -> float | None:
        """ε so far of a device that took part in every round; ``None``: nothing bounds it."""
        rounds = len(self._charged)
        if self._spent[0] != rounds:
            plan, privacy = self.plan, self.plan.job.privacy
            facts = (plan.count_facts() if rounds else ()) + plan.round_facts() * rounds
            found = epsilon(facts, delta=privacy.delta, unit=privacy.level) if facts else 0.0
            self._spent = (rounds, found if math.isfinite(found) else None)
        return self._spent[1]

    def view(self) -> dict[str, Any]:
        """All but what milestones say."""
        privacy, protection = self.plan.job.privacy, self.plan.job.protection
        noised = privacy.noise != "none"
        return {
            "parties": _parties(self.plan),
            "epsilon": {
                "spent": self.spent(),
                "planned": privacy.epsilon if noised else None,
                "delta": privacy.delta,
                "unit": privacy.level,
            },
            "bytes": {
                "received": self._bytes.total(),
                "by_round": {str(number): count for number, count in sorted(self._bytes.items())},
            },
            "gates": self._gates(),
            "scheme": protection.scheme,
            "min_devices": protection.min_devices,
        }

    def _gates(self) -> list[dict[str, Any]]:
        plan = self.plan
        protection, privacy = plan.job.protection, plan.job.privacy
        fewest = self._fewest
        return [
            _gate(
                "min_devices",
                fewest is None or fewest >= protection.fewest,
                f"{'none yet' if fewest is None else fewest} of {protection.fewest}",
            ),
            _gate("separate_key_holder", plan.scheme is Scheme.PUBLIC_KEY, protection.scheme),
            _gate(
                "noise",
                plan.noise_multiplier > 0 and not plan.simulation,
                "repeatable, in a simulation" if plan.simulation else privacy.noise,
            ),
            _gate("robust_rule", plan.job.server.is_robust, plan.job.server.rule),
        ]


def privacy_card(card: PrivacyCard, store: Store, run: RunId) -> dict[str, Any]:
    """The card as it is now, with what became of the release."""
    view = card.view()
    milestones = store.milestones(run)
    if RELEASED in milestones:
        view["gates"].append(_gate("release", True, "released"))
    elif NOT_RELEASED in milestones:
        facts = milestones[NOT_RELEASED].facts
        view["gates"].append(_gate("release", False, str(facts.get("reason", ""))))
    return view


def read_card(store: Store, run: RunId, plan: RunPlan) -> dict[str, Any]:
    """The card of a run whose rows were not read yet."""
    card = PrivacyCard(plan)
    for row in store.transitions(run):
        card.take(row)
    return privacy_card(card, store, run)


def _declared_size(record: bytes) -> int:
    # Its signature was checked before it was committed, and the sizes of what came too.
    message = open_sealed(record, expected=claimed_sender(record)).message
    assert isinstance(message, Contribution)
    return message.size


def _gate(gate: str, passed: bool, detail: str) -> dict[str, Any]:
    return {"gate": gate, "passed": passed, "detail": detail}


def _parties(plan: RunPlan) -> list[dict[str, Any]]:
    """By party what it sees when it is alone, and what it never does."""
    single = "single_update" if plan.noise_multiplier == 0 else "noised_update"
    hidden = plan.scheme is Scheme.PUBLIC_KEY
    sums = "group_sums" if plan.job.protection.groups > 1 else "sum"
    update = "encrypted_update" if hidden else single
    never = ["records", single] if hidden else ["records"]
    parties = [
        _party("device", ["records", "adapter"], []),
        _party("coordinator", [update, sums, *_ANYBODY, "probe"], never),
        # Sums pass on the broker, signed and not encrypted, and so do adapters.
        _party("broker", [update, sums, *_ANYBODY], never),
        # One that listens on the broker is a broker.
        _party("other_devices", ["adapter"], never),
    ]
    if hidden:
        parties.insert(2, _party("key_holder", ["round_key", sums, "participation"], ["records"]))
    return parties


def _party(party: str, sees: list[str], never: list[str]) -> dict[str, Any]:
    return {"party": party, "sees": sees, "never": never}
