"""An audit runs the real thing twice, and can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.errors import ConfigError
from sim.audit.leak import audit_leak
from sim.simulation import Watch
from tests.support.commands import CommandLine
from tests.support.small_fleet import SEED, small_scenario, write_tickets
from tests.support.stories import model_or_skip


def unwatched(_run: str) -> Watch:
    return lambda stage, done, of: None


def test_what_claims_nothing_or_cannot_be_audited_is_refused_before_anything_runs(
    tmp_path: Path,
) -> None:
    for tables, reason in (
        ({"privacy": {"noise": "none"}}, "nothing is claimed"),
        ({"model": {"trainable": "lora"}}, "only heads"),
    ):
        with pytest.raises(ConfigError, match=reason):
            audit_leak(
                small_scenario(tmp_path, **tables),
                canaries=20,
                seed=SEED,
                control=True,
                watch=unwatched,
            )


@pytest.mark.model
@pytest.mark.slow
def test_without_noise_canaries_are_found_and_with_noise_they_are_not(tmp_path: Path) -> None:
    """400 canaries among 72 records; the claim is ε = 8 over 3 rounds."""
    model_or_skip()
    result = audit_leak(
        small_scenario(tmp_path), canaries=400, seed=SEED, control=True, watch=unwatched
    )
    audited, control = result["audited"], result["control"]
    assert result["within_claim"]
    assert audited["epsilon_claimed"] == pytest.approx(8.0, abs=0.01)
    assert audited["epsilon_proved"] < audited["epsilon_claimed"]
    assert control["epsilon_claimed"] == "infinite"
    assert control["right"] >= 0.95 * control["guesses"]
    assert control["epsilon_proved"] > 2
    assert control["epsilon_proved"] > audited["epsilon_proved"] + 1


@pytest.mark.model
@pytest.mark.slow
def test_an_audit_of_too_few_canaries_says_that_it_has_no_teeth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of 20 coins even perfect guesses prove less than 4."""
    model_or_skip()
    data = write_tickets(tmp_path / "tickets.csv")
    scenario = tmp_path / "small.toml"
    scenario.write_text(
        f'name = "small"\n[data]\npath = "{data}"\n[population]\ndevices = 3\n'
        "[training]\nrounds = 2\n[protection]\nmin_devices = 3\n",
        encoding="utf-8",
    )
    llmos = CommandLine(monkeypatch, capsys)
    assert llmos("audit", "leak", scenario, "--canaries", "20", "--json") == 1
    result = json.loads(llmos.out)
    assert not result["passed"]
    assert result["within_claim"]
    assert not result["control_finds_enough"]
