"""W1 to W3: what a device tells of itself, and what only if its owner said so."""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path

import pytest

from edge_agent.about import SelfDescription
from edge_agent.examples import ExampleStore
from edge_agent.participate import Home, Owner
from shared.data_files import Example
from shared.privacy.accountant import NonPrivate, SampledGaussian
from shared.privacy.ledger import Charge, Ledger
from shared.types import DeviceId, RoundNumber, RunId
from shared.wire.messages import About

VERSION = version("llmos")
FACT = SampledGaussian(noise_multiplier=1.0, sample_rate=0.1, steps=10)


def described(home: Home, *, budget: float = 10.0, tells: bool = True) -> SelfDescription:
    return SelfDescription(home, Owner(DeviceId("kitchen"), budget, tells_budget=tells))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path)
    ExampleStore(found.examples).add([Example("a text", "refund")])
    return found


def charge(home: Home, number: int, *facts: SampledGaussian | NonPrivate) -> None:
    made = Charge(RunId("run"), RoundNumber(number), "store", facts, at="2026-01-01T00:00:00Z")
    Ledger(home.ledger).charge(made)


def test_without_examples_it_says_so_and_makes_no_store(tmp_path: Path) -> None:
    assert described(Home(tmp_path)).now() == About(VERSION, "no-examples", "10.00")
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_is_the_budget_less_what_the_ledger_comes_to(home: Home) -> None:
    description = described(home)
    assert description.now() == About(VERSION, "", "10.00")
    for number in (1, 2, 3):
        charge(home, number, FACT)
        spent = Ledger(home.ledger).epsilon(1e-5)
        assert description.now() == About(VERSION, "", f"{10.0 - spent:.2f}")


@pytest.mark.parametrize("fact", [FACT, NonPrivate("in clear")])
def test_a_budget_that_is_spent_is_a_condition(
    home: Home, fact: SampledGaussian | NonPrivate
) -> None:
    charge(home, 1, fact)
    assert described(home, budget=0.01).now() == About(VERSION, "budget-spent", "0.00")


@pytest.mark.parametrize(("budget", "tells"), [(0.01, False), (math.inf, True), (math.inf, False)])
def test_nothing_of_a_budget_is_told_where_the_owner_does_not_or_there_is_none(
    home: Home, budget: float, tells: bool
) -> None:
    charge(home, 1, FACT)
    assert described(home, budget=budget, tells=tells).now() == About(VERSION, "", "")


def test_nothing_more_is_told_of_examples_than_that_there_are_any(home: Home) -> None:
    description = described(home)
    before = description.now()
    ExampleStore(home.examples).add([Example(f"text {n}", "cancel") for n in range(50)])
    assert description.now() == before


def test_files_that_cannot_be_read_are_a_condition_until_they_can(home: Home) -> None:
    description = described(home)
    home.ledger.write_text("no ledger\n")
    assert description.now() == About(VERSION, "storage", "")
    home.ledger.unlink()
    assert description.now() == About(VERSION, "", "10.00")


def test_files_that_did_not_change_are_not_read_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = described(home)
    told = description.now()

    def fails(*_: object, **__: object) -> None:
        raise AssertionError("the ledger was read again")

    monkeypatch.setattr("edge_agent.about.Ledger", fails)
    assert description.now() == told
