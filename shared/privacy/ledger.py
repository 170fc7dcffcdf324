"""What was released from which example store: facts on disk, before the release itself.

    L1  a charge that :meth:`Ledger.charge` returned from survives power loss
    L2  charging the same round again changes nothing; charging it differently is refused
    L3  an edited, reordered or spliced ledger is refused, never read as less than it was
    L4  only the record being written when the power failed may be missing its end; such a
        record was never followed by a release, so it is cut off, and said so

The chain of checksums finds accidents and careless edits. It does not stop an owner who
deletes whole records from the end or rewrites the file: the ledger protects the owner,
and nobody can be protected from having the file altered by themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from shared.errors import LedgerDamaged, PrivacyError
from shared.files import append_durably, disk_errors
from shared.privacy import accountant
from shared.privacy.accountant import (
    Fact,
    NonPrivate,
    SampledGaussian,
    SharedDiscreteGaussian,
    Unit,
    alone,
)
from shared.types import RoundNumber, RunId

_KINDS: Final[dict[str, type[Fact]]] = {
    "sampled_gaussian": SampledGaussian,
    "shared_discrete_gaussian": SharedDiscreteGaussian,
    "non_private": NonPrivate,
}
"""Names on disk. They are never reused for another meaning, and an unknown one is refused."""

_NAMES: Final = {kind: name for name, kind in _KINDS.items()}

_GENESIS: Final = hashlib.sha256(b"llmos ledger v1").hexdigest()
"""What the first record is chained to."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What one round may release from one example store."""

    run: RunId
    round: RoundNumber
    store: str
    """The example store's own identifier; the budget belongs to it."""
    facts: tuple[Fact, ...]
    at: str
    """When it was charged, ISO 8601 with a zone; for people, never compared."""


class Ledger:
    """The append-only list of charges in one file. One process, one caller at a time."""

    def __init__(self, path: Path, *, repair: bool = True) -> None:
        """Read the ledger, or start an empty one (nothing is written before a charge).

        Args:
            path: The file.
            repair: Whether a torn last record is cut off. Only the process that owns
                the ledger may: to a mere reader a record that is being written
                looks torn, and is left alone.

        Raises:
            LedgerDamaged: a record is unreadable, altered or out of its place.
            StorageError: a torn record could not be cut off.
        """
        self._path = path
        self._repair = repair
        self._charges: dict[tuple[RunId, RoundNumber], Charge] = {}
        self._last = _GENESIS
        self.repaired = False
        """Whether the end of a torn record was cut off (or completed) when the file was read."""
        with contextlib.suppress(FileNotFoundError):
            self._read(path.read_bytes())

    def charges(self) -> list[Charge]:
        """Every charge, oldest first."""
        return list(self._charges.values())

    def charge(self, charge: Charge) -> None:
        """Write ``charge`` down and wait until it is on disk (L1).

        Raises:
            PrivacyError: the round was charged before, and differently; ``at`` may differ.
            StorageError: the disk refused; the ledger is as it was.
        """
        key = (charge.run, charge.round)
        before = self._charges.get(key)
        if before is not None:
            if (before.store, before.facts) == (charge.store, charge.facts):
                return
            raise PrivacyError(
                f"round {charge.round} of run {charge.run} was already charged as "
                f"{before.facts} on store {before.store}; it cannot become another release"
            )
        record, checksum = _encoded(charge, self._last)
        append_durably(self._path, record)
        self._charges[key] = charge
        self._last = checksum

    def epsilon(self, delta: float, unit: Unit = "record") -> float:
        """ε at ``delta`` of everything charged so far; ``inf`` once something was not private.

        ``unit`` is what is hidden: a record, for which budgets are meant, or the device as a whole.
        """
        charged = [fact for charge in self._charges.values() for fact in charge.facts]
        return accountant.epsilon(charged, delta=delta, unit=unit)

    def epsilon_alone(self, delta: float, unit: Unit = "record") -> float:
        """ε of everything charged against who sees this device's own shares of noise alone.

        That is the key holder, or all other devices of every sum together with whoever
        sees the sums; without distributed noise the same as :meth:`epsilon`.
        """
        charged = [fact for charge in self._charges.values() for fact in charge.facts]
        return accountant.epsilon(alone(charged), delta=delta, unit=unit)

    def epsilon_after(self, facts: Iterable[Fact], delta: float) -> float:
        """ε at ``delta`` if ``facts`` were charged too. Nothing is charged."""
        charged = [fact for charge in self._charges.values() for fact in charge.facts]
        return accountant.epsilon([*charged, *facts], delta=delta)

    def _read(self, data: bytes) -> None:
        *lines, torn = data.split(b"\n")
        for number, line in enumerate(lines, start=1):
            self._accept(line, number)
        if not torn:
            return
        try:
            self._accept(torn, len(lines) + 1)
        except LedgerDamaged:
            if not self._repair:
                return
            with disk_errors(self._path):
                os.truncate(self._path, len(data) - len(torn))
                with self._path.open("rb") as file:
                    os.fsync(file.fileno())
        else:
            if not self._repair:
                return
            # All but the newline arrived. It may have been released: it counts.
            append_durably(self._path, b"\n")
        self.repaired = True

    def _accept(self, line: bytes, number: int) -> None:
        try:
            record = json.loads(line)
            charge = _decoded(record["charge"])
            expected, checksum = _encoded(charge, self._last)
        except (ValueError, KeyError, TypeError) as err:
            raise LedgerDamaged(f"{self._path}, record {number} cannot be read: {err}") from err
        if line + b"\n" != expected:
            raise LedgerDamaged(
                f"{self._path}, record {number} was altered, or does not follow the one before it"
            )
        key = (charge.run, charge.round)
        if key in self._charges:
            raise LedgerDamaged(f"{self._path}, record {number} charges a round a second time")
        self._charges[key] = charge
        self._last = checksum


def _encoded(charge: Charge, previous: str) -> tuple[bytes, str]:
    """Return one record, which has exactly one spelling, and its checksum."""
    content = {
        "run": charge.run,
        "round": charge.round,
        "store": charge.store,
        "facts": [{"kind": _NAMES[type(fact)]} | asdict(fact) for fact in charge.facts],
        "at": charge.at,
    }
    checksum = hashlib.sha256(f"{previous}\n{_canonical(content)}".encode()).hexdigest()
    return (_canonical({"charge": content, "checksum": checksum}) + "\n").encode(), checksum


def _decoded(content: dict[str, Any]) -> Charge:
    return Charge(
        run=RunId(str(content["run"])),
        round=RoundNumber(int(content["round"])),
        store=str(content["store"]),
        facts=tuple(_fact(fields) for fields in _sequence(content["facts"])),
        at=str(content["at"]),
    )


def _fact(fields: dict[str, Any]) -> Fact:
    values = dict(fields)
    kind = values.pop("kind")
    if kind not in _KINDS:
        raise ValueError(f"facts of kind {kind!r} are unknown to this version")
    return _KINDS[kind](**values)


def _sequence(value: object) -> Sequence[Any]:
    if not isinstance(value, list):
        raise TypeError("facts must be a list")
    return value


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
