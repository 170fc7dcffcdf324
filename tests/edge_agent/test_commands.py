"""What an owner types on a device: each command says what it did, or in a sentence why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_agent.examples import ExampleStore
from edge_agent.membership import FILE, Membership, read_membership
from edge_agent.outbox import Outbox
from edge_agent.participate import Home
from shared.crypto.identity import Identity, fingerprint, format_public
from shared.data_files import Example
from shared.privacy.accountant import NonPrivate, SampledGaussian, epsilon
from shared.privacy.ledger import Charge, Ledger
from shared.service import home_lock
from shared.types import RoundNumber, RunId
from tests.support.commands import CommandLine


@pytest.fixture
def llmos(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A device that has joined; nobody listens at its broker's port."""
    home = Home(tmp_path / "device")
    identity = Identity.create(home.folder / "identity.key")
    membership = Membership(
        device="kitchen",
        coordinator=format_public(identity.public),
        key_holder="",
        broker_host="127.0.0.1",
        broker_port=1,
    )
    (home.folder / FILE).write_text(membership.model_dump_json())
    return home


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    path = tmp_path / "tickets.csv"
    path.write_text("body,intent\nwhere is it,delivery\nmoney back,refund\n")
    return path


def test_examples_are_added_once(llmos: CommandLine, home: Home, tickets: Path) -> None:
    words = ("edge", "data", "add", tickets, "--text-column", "body", "--label-column", "intent")
    assert llmos(*words, "--home", home.folder) == 0
    assert "added 2 examples (0 were there already)" in llmos.out
    assert llmos(*words, "--home", home.folder, "--json") == 0
    assert json.loads(llmos.out) == {"new": 0, "duplicates": 2, "total": 2}
    assert ExampleStore(home.examples).examples()[0] == Example("where is it", "delivery")


def test_a_file_without_the_column_adds_nothing(
    llmos: CommandLine, home: Home, tickets: Path
) -> None:
    assert llmos("edge", "data", "add", tickets, "--home", home.folder) == 1
    for name in ("'text'", "'label'", "'body'", "'intent'", str(tickets)):
        assert name in llmos.err
    assert not home.examples.exists()


def test_status_is_who_it_is_what_it_has_and_what_waits(llmos: CommandLine, home: Home) -> None:
    ExampleStore(home.examples).add([Example("text", "label")])
    Outbox(home.outbox).put(
        RunId("run"), RoundNumber(1), b"frame", scheme="clear", key_id="", draw=""
    )
    assert llmos("edge", "status", "--home", home.folder, "--json") == 0
    identity = Identity.load(home.folder / "identity.key")
    assert json.loads(llmos.out) == {
        "device": "kitchen",
        "public_key": format_public(identity.public),
        "fingerprint": fingerprint(identity.public),
        "coordinator": "",
        "broker": "127.0.0.1:1",
        "certificate_until": "",
        "examples": 1,
        "updates_waiting": 1,
    }
    assert llmos("edge", "status", "--home", home.folder) == 0
    assert "updates waiting: 1" in llmos.out


def test_the_budget_is_what_the_ledger_comes_to(llmos: CommandLine, home: Home) -> None:
    fact = SampledGaussian(noise_multiplier=2.0, sample_rate=1.0, steps=3)
    ledger = Ledger(home.ledger)
    ledger.charge(Charge(RunId("run"), RoundNumber(1), "store", (fact,), "2026-01-01T00:00:00Z"))
    assert llmos("edge", "budget", "show", "--home", home.folder, "--json") == 0
    shown = json.loads(llmos.out)
    assert shown["epsilon"] == pytest.approx(epsilon([fact], delta=1e-5))
    assert (shown["budget"], shown["delta"], shown["charges"]) == (10.0, 1e-5, 1)
    assert llmos("edge", "budget", "show", "--home", home.folder) == 0
    assert f"{shown['epsilon']:.3f} of 10 at δ = 1e-05, over 1 charges" in llmos.out
    no_noise = NonPrivate(reason="no noise")
    ledger.charge(Charge(RunId("run"), RoundNumber(2), "store", (no_noise,), "2026-01-02T00:00Z"))
    assert llmos("edge", "budget", "show", "--home", home.folder, "--json") == 0
    assert json.loads(llmos.out)["epsilon"] is None


@pytest.mark.filterwarnings("ignore")  # opacus computes far out in the tails
def test_the_budget_by_the_other_accountant_is_lower(llmos: CommandLine, home: Home) -> None:
    fact = SampledGaussian(noise_multiplier=2.0, sample_rate=1.0, steps=3)
    charge = Charge(RunId("run"), RoundNumber(1), "store", (fact,), "2026-01-01T00:00:00Z")
    Ledger(home.ledger).charge(charge)
    show = ("edge", "budget", "show", "--home", home.folder, "--json")
    assert llmos(*show) == 0
    ours = json.loads(llmos.out)
    assert llmos(*show, "--accountant", "prv") == 0
    theirs = json.loads(llmos.out)
    assert (ours["accountant"], theirs["accountant"]) == ("rdp", "prv")
    assert 0.9 * ours["epsilon"] < theirs["epsilon"] < ours["epsilon"]


def test_a_changed_budget_is_kept_and_what_was_spent_stays_spent(
    llmos: CommandLine, home: Home
) -> None:
    fact = SampledGaussian(noise_multiplier=2.0, sample_rate=1.0, steps=3)
    charge = Charge(RunId("run"), RoundNumber(1), "store", (fact,), "2026-01-01T00:00:00Z")
    Ledger(home.ledger).charge(charge)
    change = ("edge", "budget", "set", "--home", home.folder, "--json")
    assert llmos(*change, "--epsilon", "3", "--delta", "1e-6") == 0
    shown = json.loads(llmos.out)
    assert (shown["budget"], shown["delta"], shown["charges"]) == (3.0, 1e-6, 1)
    assert shown["epsilon"] == pytest.approx(epsilon([fact], delta=1e-6))
    assert llmos(*change, "--unlimited") == 0
    membership = read_membership(home.folder)
    assert membership.epsilon_budget is None
    assert membership.delta == 1e-6


def test_whether_the_budget_is_told_is_the_owners_choice_and_changes_nothing_else(
    llmos: CommandLine, home: Home
) -> None:
    before = read_membership(home.folder)
    assert not before.tell_budget
    change = ("edge", "budget", "set", "--home", home.folder, "--json")
    assert llmos(*change, "--tell") == 0
    assert json.loads(llmos.out)["told"]
    assert read_membership(home.folder) == before.model_copy(update={"tell_budget": True})
    assert llmos(*change, "--keep") == 0
    assert read_membership(home.folder) == before


@pytest.mark.parametrize(
    "wrong",
    [[], ["--epsilon", "3", "--unlimited"], ["--epsilon", "3", "--delta", "2"], ["--epsilon", "0"]],
)
def test_a_budget_that_makes_no_sense_changes_nothing(
    llmos: CommandLine, home: Home, wrong: list[str]
) -> None:
    before = (home.folder / FILE).read_bytes()
    assert llmos("edge", "budget", "set", "--home", home.folder, *wrong) != 0
    assert (home.folder / FILE).read_bytes() == before


def test_the_budget_of_a_running_agent_is_not_changed_behind_its_back(
    llmos: CommandLine, home: Home
) -> None:
    before = (home.folder / FILE).read_bytes()
    with home_lock(home.folder):
        assert llmos("edge", "budget", "set", "--epsilon", "3", "--home", home.folder) == 1
    assert "another process works in" in llmos.err
    assert (home.folder / FILE).read_bytes() == before


@pytest.mark.parametrize(
    "command", [["run"], ["status"], ["budget", "show"], ["budget", "set", "--epsilon", "1"]]
)
def test_a_device_that_has_not_joined_is_told_how(
    llmos: CommandLine, tmp_path: Path, command: list[str]
) -> None:
    assert llmos("edge", *command, "--home", tmp_path / "new") == 1
    assert "llmos edge join" in llmos.err


def test_joining_an_absent_coordinator_says_what_to_check(
    llmos: CommandLine, tmp_path: Path
) -> None:
    token = f"secret.{fingerprint(Identity.create(tmp_path / 'key').public)}"
    options = ("--token", token, "--name", "kitchen", "--home", tmp_path / "new")
    assert llmos("edge", "join", "http://127.0.0.1:1", *options) == 1
    assert "llmos up" in llmos.err
    assert not (tmp_path / "new" / FILE).exists()
