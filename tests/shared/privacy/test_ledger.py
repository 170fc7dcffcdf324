"""A charge is on disk before anyone releases anything, and a damaged ledger is not believed."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import LedgerDamaged, PrivacyError, StorageError
from shared.privacy import ledger as ledger_module
from shared.privacy.accountant import NonPrivate, SampledGaussian, epsilon
from shared.privacy.ledger import Charge, Ledger
from shared.types import RoundNumber, RunId

ROUND_COST = SampledGaussian(2.85, 1.0, 1)


def charge(number: int, *facts: SampledGaussian | NonPrivate, run: str = "run-a") -> Charge:
    return Charge(
        RunId(run),
        RoundNumber(number),
        "store-1",
        facts or (ROUND_COST,),
        f"2026-01-01T00:00:{number:02}+00:00",
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device" / "ledger.jsonl"


@pytest.fixture
def three(path: Path) -> bytes:
    """The content of a ledger of three charges."""
    ledger = Ledger(path)
    for number in (1, 2, 3):
        ledger.charge(charge(number))
    return path.read_bytes()


def test_an_empty_ledger_costs_nothing_and_writes_nothing(path: Path) -> None:
    assert Ledger(path).epsilon(1e-5) == 0
    assert not path.exists()


facts = st.one_of(
    st.builds(
        SampledGaussian,
        st.floats(0.5, 20),
        st.floats(0, 1),
        st.integers(0, 5000),
    ),
    st.builds(NonPrivate, st.text(max_size=20)),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    charges=st.lists(
        st.builds(
            Charge,
            st.text(max_size=8).map(RunId),
            st.integers(1, 99).map(RoundNumber),
            st.text(max_size=8),
            st.lists(facts, max_size=3).map(tuple),
            st.text(max_size=8),
        ),
        max_size=5,
        unique_by=lambda one: (one.run, one.round),
    )
)
def test_what_was_charged_is_read_back_after_a_restart(charges: list[Charge], path: Path) -> None:
    path.unlink(missing_ok=True)
    ledger = Ledger(path)
    for one in charges:
        ledger.charge(one)
    again = Ledger(path)
    assert again.charges() == charges
    assert not again.repaired


def size_of(path: Path) -> int:
    """Bytes in a file; none before it exists, when only its folder is synced."""
    return path.stat().st_size if path.exists() else 0


def test_a_charge_is_on_disk_when_charge_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(size_of(path)))
    Ledger(path).charge(charge(1))
    assert path.stat().st_size in synced


def test_charging_the_same_round_again_changes_nothing(path: Path, three: bytes) -> None:
    ledger = Ledger(path)
    later = Charge(RunId("run-a"), RoundNumber(2), "store-1", (ROUND_COST,), "another time")
    ledger.charge(later)
    assert path.read_bytes() == three
    assert len(ledger.charges()) == 3


@pytest.mark.parametrize(
    "other",
    [
        charge(2, SampledGaussian(2.8, 1.0, 1)),
        charge(2, ROUND_COST, ROUND_COST),
        Charge(RunId("run-a"), RoundNumber(2), "store-2", (ROUND_COST,), ""),
    ],
)
def test_a_round_cannot_become_another_release(path: Path, three: bytes, other: Charge) -> None:
    ledger = Ledger(path)
    with pytest.raises(PrivacyError, match="already charged"):
        ledger.charge(other)
    assert path.read_bytes() == three


def test_epsilon_composes_over_every_run_that_touched_the_data(path: Path) -> None:
    ledger = Ledger(path)
    ledger.charge(charge(1))
    ledger.charge(charge(1, run="run-b"))
    assert ledger.epsilon(1e-5) == epsilon([ROUND_COST] * 2, delta=1e-5)
    assert ledger.epsilon_after([ROUND_COST], 1e-5) == epsilon([ROUND_COST] * 3, delta=1e-5)
    assert len(ledger.charges()) == 2, "asking what a charge would cost charges nothing"


def test_a_release_without_privacy_is_never_forgotten(path: Path) -> None:
    Ledger(path).charge(charge(1, NonPrivate("protection = none")))
    assert Ledger(path).epsilon(1e-5) == math.inf


def test_a_torn_last_record_is_cut_off_wherever_it_tore(path: Path, three: bytes) -> None:
    *_, last, _ = three.split(b"\n")
    whole = three[: len(three) - len(last) - 1]
    for kept in range(1, len(last)):
        path.write_bytes(whole + last[:kept])
        ledger = Ledger(path)
        assert ledger.repaired
        assert [one.round for one in ledger.charges()] == [1, 2]
        assert path.read_bytes() == whole
    assert not Ledger(path).repaired


def test_a_record_that_lacks_only_its_line_end_still_counts(path: Path, three: bytes) -> None:
    path.write_bytes(three[:-1])
    ledger = Ledger(path)
    assert ledger.repaired
    assert len(ledger.charges()) == 3
    assert path.read_bytes() == three


def test_after_a_repair_charging_goes_on(path: Path, three: bytes) -> None:
    path.write_bytes(three[:-5])
    Ledger(path).charge(charge(3))
    assert path.read_bytes() == three


def test_every_changed_byte_is_noticed(path: Path, three: bytes) -> None:
    """Up to and including the last line end; one bit is enough."""
    for position in range(0, len(three), 3):
        path.write_bytes(three[:position] + bytes([three[position] ^ 1]) + three[position + 1 :])
        try:
            ledger = Ledger(path)
        except LedgerDamaged:
            continue
        # The changed byte was the line end of the last record, or made a torn tail of it.
        assert ledger.repaired
        assert position >= len(three) - 1


@pytest.mark.parametrize("order", [(0, 2), (1, 0, 2), (1, 2), (0, 1, 1, 2), (0, 1, 2, 2)], ids=str)
def test_removed_reordered_and_repeated_records_are_noticed(
    path: Path, three: bytes, order: tuple[int, ...]
) -> None:
    lines = three.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[index] for index in order))
    with pytest.raises(LedgerDamaged):
        Ledger(path)


def test_a_second_charge_for_a_round_is_damage_even_when_chained(path: Path, three: bytes) -> None:
    ledger = Ledger(path)
    record, _ = ledger_module._encoded(charge(2), ledger._last)
    path.write_bytes(three + record)
    with pytest.raises(LedgerDamaged, match="second time"):
        Ledger(path)


def test_a_kind_of_fact_from_the_future_is_refused_not_skipped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ledger_module._NAMES, SampledGaussian, "discrete_gaussian")
    Ledger(path).charge(charge(1))
    monkeypatch.undo()
    with pytest.raises(LedgerDamaged, match="discrete_gaussian"):
        Ledger(path)


def test_a_full_disk_leaves_the_ledger_as_it_was(
    path: Path, three: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(path)

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(ledger_module, "append_durably", full)
    with pytest.raises(StorageError):
        ledger.charge(charge(4))
    assert len(ledger.charges()) == 3
    monkeypatch.undo()
    ledger.charge(charge(4))
    assert [one.round for one in Ledger(path).charges()] == [1, 2, 3, 4]
