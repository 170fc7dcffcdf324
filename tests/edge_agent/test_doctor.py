"""The doctor finds each thing that is wrong, alone, and nothing where nothing is."""

from __future__ import annotations

import os
import socket
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent import doctor
from edge_agent.doctor import Outcome, examine
from edge_agent.inference.installed import Serving, model_folder
from edge_agent.membership import FILE, Membership
from shared.crypto.identity import Identity, format_public
from tests.support import tiny_graph as tiny
from tests.support.answering import calibrated, released


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def broker() -> Iterator[socket.socket]:
    """Something that accepts connections."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


@pytest.fixture
def home(tmp_path: Path, model: Path, broker: socket.socket) -> Path:
    home = tmp_path / "device"
    released(home, model, calibration=calibrated(0.5))
    identity = Identity.create(home / "identity.key")
    membership = Membership(
        device="kitchen",
        coordinator=format_public(identity.public),
        key_holder="",
        broker_host="127.0.0.1",
        broker_port=broker.getsockname()[1],
    )
    (home / FILE).write_text(membership.model_dump_json())
    (home / FILE).chmod(0o600)
    return home


def found(home: Path) -> dict[str, Outcome]:
    return {finding.check: finding.outcome for finding in examine(home)}


def detail(home: Path, check: str) -> str:
    return next(finding.detail for finding in examine(home) if finding.check == check)


def troubles(home: Path) -> dict[str, Outcome]:
    return {check: outcome for check, outcome in found(home).items() if outcome is not Outcome.OK}


def test_a_healthy_device_is_healthy_and_is_left_as_it_is(home: Path) -> None:
    before = sorted(home.rglob("*"))
    assert troubles(home) == {}
    assert sorted(home.rglob("*")) == before
    assert set(found(home)) == {
        *("home", "membership", "broker", "model", "policy", "ledger", "clock", "disk", "software")
    }


def test_a_key_that_others_can_read(home: Path) -> None:
    (home / "identity.key").chmod(0o640)
    assert troubles(home)["home"] is Outcome.FAILED
    assert "identity.key" in detail(home, "home")


def test_a_broker_that_is_gone(home: Path, broker: socket.socket) -> None:
    broker.close()
    assert troubles(home) == {"broker": Outcome.FAILED}


def test_a_model_file_that_changed(home: Path) -> None:
    serving = Serving.load(home)
    assert serving is not None
    (model_folder(home, serving.manifest) / "tokenizer.json").write_text("{}")
    assert troubles(home) == {"model": Outcome.FAILED}
    assert "tokenizer.json" in detail(home, "model")


def test_no_model_yet_and_no_calibration_yet_are_warnings(home: Path, model: Path) -> None:
    released(home, model)
    assert troubles(home) == {"model": Outcome.WARNING}
    (home / "serving.json").unlink()
    assert troubles(home) == {"model": Outcome.WARNING}


@pytest.mark.parametrize(
    ("file", "content", "check"),
    [
        ("policy.toml", "escalate = 3", "policy"),
        ("answers.csv", "label\n", "policy"),
        ("ledger.jsonl", "{}\n{}\n", "ledger"),
    ],
)
def test_a_damaged_file(home: Path, file: str, content: str, check: str) -> None:
    (home / file).write_text(content)
    assert troubles(home) == {check: Outcome.FAILED}


def test_a_clock_that_was_set_back(home: Path) -> None:
    later = time.time() + 400
    os.utime(home / FILE, (later, later))
    assert troubles(home) == {"clock": Outcome.FAILED}


def test_a_disk_that_is_nearly_full(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(doctor.FREE_BYTES))
    assert troubles(home) == {}
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(doctor.FREE_BYTES - 1))
    assert troubles(home) == {"disk": Outcome.FAILED}


@pytest.mark.parametrize(
    ("absent", "outcome"), [("onnxruntime", Outcome.FAILED), ("torch", Outcome.WARNING)]
)
def test_software_that_is_missing(
    home: Path, monkeypatch: pytest.MonkeyPatch, absent: str, outcome: Outcome
) -> None:
    from importlib.util import find_spec

    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == absent else find_spec(name)
    )
    assert troubles(home) == {"software": outcome}
    assert f"{absent} missing: pip install" in detail(home, "software")
