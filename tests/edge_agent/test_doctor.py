"""The doctor finds each thing that is wrong, alone, and nothing where nothing is."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import namedtuple
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from edge_agent import doctor
from edge_agent.doctor import Outcome, examine
from edge_agent.examples import ExampleStore
from edge_agent.inference.installed import Serving, model_folder
from edge_agent.membership import FILE, Membership, read_membership, set_budget
from edge_agent.outbox import Outbox
from edge_agent.participate import Home
from shared.crypto.identity import Identity, format_public
from shared.data_files import Example
from shared.enrolment import CERTIFICATE
from shared.privacy.accountant import SampledGaussian
from shared.privacy.ledger import Charge, Ledger
from shared.types import RoundNumber, RunId
from tests.support import tiny_graph as tiny
from tests.support.answering import calibrated, released
from tests.support.tls_sites import TlsSite, tls_site


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


@pytest.fixture(autouse=True)
def without_loading_libraries(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading what is compiled takes a second, and is looked at in tests of its own."""
    if "machine" not in request.node.name:
        monkeypatch.setattr(doctor, "_NATIVE", ())


@pytest.fixture
def home(tmp_path: Path, model: Path, broker: socket.socket) -> Path:
    home = tmp_path / "device"
    released(home, model, calibration=calibrated(0.5))
    ExampleStore(Home(home).examples).add([Example("where is it?", "parcel")])
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
    # Whatever else this machine does meanwhile.
    (home / "conditions.toml").write_text("min_free_memory_mib = 0\nmin_free_disk_mib = 0\n")
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
        *("home", "membership", "certificate", "coordinator", "broker", "port", "examples"),
        *(
            "outbox",
            "conditions",
            "model",
            "policy",
            "ledger",
            "clock",
            "disk",
            "memory",
            "machine",
            "software",
        ),
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
        ("conditions.toml", "mians = true", "conditions"),
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


def test_a_port_that_somebody_else_has(home: Path, broker: socket.socket) -> None:
    port = broker.getsockname()[1]
    assert {each.check: each.outcome for each in examine(home, port=port)}["port"] is Outcome.FAILED
    (home / "ready.json").write_text(json.dumps({"url": f"http://127.0.0.1:{port}"}))
    assert {each.check: each.outcome for each in examine(home, port=port)}["port"] is Outcome.OK


def test_no_examples_and_a_store_of_them_that_is_damaged(home: Path) -> None:
    path = Home(home).examples
    path.write_bytes(b"rubbish" * 1000)
    assert found(home)["examples"] is Outcome.FAILED
    path.unlink()
    assert troubles(home) == {"examples": Outcome.WARNING}
    assert not path.exists()


def test_conditions_that_do_not_hold(home: Path) -> None:
    (home / "conditions.toml").write_text("[pinned]\non_mains = false\nbattery_percent = 3\n")
    assert troubles(home) == {"conditions": Outcome.WARNING}
    assert "on battery with 3 %" in detail(home, "conditions")


def test_a_budget_that_is_spent(home: Path) -> None:
    fact = SampledGaussian(1.0, 0.1, 400)
    store = ExampleStore(Home(home).examples).store_id
    ledger = Ledger(Home(home).ledger)
    ledger.charge(Charge(RunId("r"), RoundNumber(1), store, (fact,), "2026-01-01T00:00:00+00:00"))
    membership = read_membership(home)
    spent = ledger.epsilon(membership.delta)
    for budget, expected in ((spent * 1.01, {}), (spent * 0.99, {"ledger": Outcome.WARNING})):
        set_budget(home, epsilon_budget=budget)
        assert troubles(home) == expected
    assert "edge budget set" in detail(home, "ledger")


def test_an_update_that_waits_for_days_and_an_outbox_that_is_damaged(home: Path) -> None:
    box = Outbox(Home(home).outbox)
    box.put(RunId("r"), RoundNumber(1), b"frame", scheme="clear", key_id="", draw="")
    assert troubles(home) == {}
    (frame,) = Home(home).outbox.glob("*.frame")
    long_ago = time.time() - 5 * 86_400
    os.utime(frame, (long_ago, long_ago))
    assert troubles(home) == {"outbox": Outcome.WARNING}
    assert "5 days" in detail(home, "outbox")
    frame.with_suffix(".json").write_text("{")
    assert found(home)["outbox"] is Outcome.FAILED


def test_a_library_compiled_for_another_machine(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(home)["machine"] is Outcome.OK
    (tmp_path / "foreign.py").write_text("raise ImportError('wrong ELF class: ELFCLASS32')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_NATIVE", ("numpy", "foreign"))
    assert troubles(home) == {"machine": Outcome.FAILED}
    assert "foreign does not run" in detail(home, "machine")
    assert "wrong ELF class" in detail(home, "machine")


def test_a_machine_that_nobody_tried(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert troubles(home) == {"machine": Outcome.WARNING}


def test_little_memory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MEMORY_BYTES", 2**60)
    assert troubles(home) == {"memory": Outcome.WARNING}


def test_a_membership_and_a_key_that_are_damaged(home: Path) -> None:
    (home / "identity.key").write_text("rubbish")
    assert troubles(home) == {"membership": Outcome.FAILED}
    (home / FILE).write_text("{")
    failed = {check for check, outcome in troubles(home).items() if outcome is Outcome.FAILED}
    assert {"membership", "certificate", "coordinator", "broker", "ledger"} <= failed


def test_a_coordinator_that_is_gone(home: Path) -> None:
    away = read_membership(home).model_copy(update={"url": "http://127.0.0.1:1"})
    (home / FILE).write_text(away.model_dump_json())
    assert troubles(home) == {"coordinator": Outcome.FAILED}
    assert "llmos up" in detail(home, "coordinator")


def secured(home: Path, site: TlsSite, broker: socket.socket) -> None:
    """Give the device a certificate of this coordinator's."""
    membership = read_membership(home).model_copy(
        update={
            "url": site.url,
            "secured": True,
            "coordinator": format_public(site.identity.public),
            "broker_port": broker.getsockname()[1],
        }
    )
    (home / FILE).write_text(membership.model_dump_json())
    enrolled = membership.enrolled(home)
    assert enrolled is not None
    enrolled.renew()


def test_certificates_that_ended_were_not_renewed_or_do_not_hold_yet(
    home: Path, tmp_path: Path, broker: socket.socket
) -> None:
    with tls_site(tmp_path / "site", now=time.time()) as site:
        secured(home, site, broker)
        now = time.time()
        for at, expected in (
            (now, Outcome.OK),
            (now + 5 * 86_400, Outcome.WARNING),
            (now + 8 * 86_400, Outcome.FAILED),
            (now - 4 * 86_400, Outcome.FAILED),
        ):
            checks = {each.check: each for each in examine(home, now=partial(float, at))}
            assert checks["certificate"].outcome is expected, checks["certificate"].detail
        site.refusal = (401, "this device was revoked")
        assert found(home)["coordinator"] is Outcome.FAILED
        assert "edge leave" in detail(home, "coordinator")
        # What accepts connections there is no broker with TLS.
        assert found(home)["broker"] is Outcome.FAILED
        (home / CERTIFICATE).write_text("rubbish")
        assert found(home)["certificate"] is Outcome.FAILED


def test_a_coordinator_that_is_not_the_one_it_joined(
    home: Path, tmp_path: Path, broker: socket.socket
) -> None:
    with tls_site(tmp_path / "site", now=time.time()) as site:
        secured(home, site, broker)
        site.identity = Identity.create(tmp_path / "another.key")
        assert found(home)["coordinator"] is Outcome.FAILED
        assert "not the one that was pinned" in detail(home, "coordinator")
