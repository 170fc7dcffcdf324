"""The comparison of accountants holds ours against every other, and notices what is out of line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.privacy.accountant import SampledGaussian, epsilon
from sim.bench import accountant
from sim.bench.accountant import bars_of
from tests.support.commands import CommandLine


def row(ours: float, opacus: float, google: float) -> dict[str, Any]:
    return {"ours": ours, "opacus_rdp": opacus, "dp_accounting_rdp": google}


def held(*rows: dict[str, Any]) -> list[bool]:
    return [bar.holds for bar in bars_of(list(rows))]


def test_ours_may_be_a_little_above_either_and_hardly_below_both() -> None:
    assert held(row(1.0, 1.0, 1.0), row(1.019, 1.0, 1.0), row(0.996, 1.0, 1.0)) == [True] * 3
    assert held(row(1.0, 1.0, 1.0), row(1.021, 1.0, 1.01)) == [False, True, True]
    assert held(row(1.021, 1.01, 1.0)) == [True, False, True]
    assert held(row(0.994, 1.0, 1.0)) == [True, True, False]


def test_below_one_that_tried_too_few_orders_is_no_understatement() -> None:
    assert held(row(0.5, 1.0, 0.5)) == [True, True, True]


@pytest.fixture
def llmos(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


@pytest.mark.filterwarnings("ignore")  # opacus computes far out in the tails
def test_the_command_tells_five_numbers_for_each_setting(
    llmos: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dp_accounting")
    for name, values in {
        "NOISES": (1.0,),
        "RATES": (0.01, 1.0),
        "STEPS": (10, 2000),
        "DELTAS": (1e-5,),
    }.items():
        monkeypatch.setattr(accountant, name, values)
    monkeypatch.setattr(accountant, "_INTEGERS", list(range(2, 64)))
    assert llmos("bench", "accountant", "--json") == 0
    told = json.loads(llmos.out)
    assert [bar["holds"] for bar in told["bars"]] == [True] * 3
    assert len(told["rows"]) == 4
    for each in told["rows"]:
        fact = SampledGaussian(each["noise_multiplier"], each["sample_rate"], each["steps"])
        assert each["ours"] == epsilon([fact], delta=1e-5)
        followed = each["opacus_prv"], each["dp_accounting_pld"]
        if each["ours"] > 50:
            assert followed == (None, None)
        else:
            assert 0 < min(followed) <= max(followed) < each["ours"]
    assert llmos("bench", "accountant") == 0
    assert "PRV" in llmos.out
