"""The wheel that devices get: it needs no Node, brings no torch, answers, and says what it cannot.

What is called here is the installed program, outside the checkout.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tests.support.answering import CONFIDENT, calibrated, released
from tests.support.installs import (
    Installed,
    build_wheel,
    copy_of_the_project,
)
from tests.support.tiny_encoders import make_encoder
from tests.support.tiny_graph import make_tiny_model

pytestmark = [pytest.mark.install, pytest.mark.slow]

FOR_TRAINING = {"torch", "opacus", "peft", "tenseal", "transformers"}

DISTRIBUTIONS = """
import importlib.metadata, json
print(json.dumps(sorted(each.name.lower() for each in importlib.metadata.distributions())))
"""

TRAIN = """
import json, sys
from pathlib import Path
from types import SimpleNamespace as Fields
from edge_agent.training.trainer import ChildTrainer
from shared.errors import DependencyMissing

job = Fields(model=Fields(base=sys.argv[1], layers=0), task="text-classification")
trainer = ChildTrainer()
try:
    trainer.prepare(Fields(job=job, shape=Fields(slots=[])), Path(sys.argv[2]), Path(sys.argv[3]))
except DependencyMissing as err:
    print(json.dumps({"code": err.code, "reason": str(err)}))
finally:
    trainer.close()
"""

ENCRYPT = """
import json
from shared.crypto.public_key import PublicKeyOpener
from shared.crypto.sum_cipher import SumLayout
from shared.errors import DependencyMissing
try:
    PublicKeyOpener(SumLayout(count=1, bits=12, max_devices=2)).new_key_pair()
except DependencyMissing as err:
    print(json.dumps({"code": err.code, "reason": str(err)}))
"""


def files_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_for_devices_is_built_without_node_and_has_no_console(wheel: Path) -> None:
    names = files_in(wheel)
    assert {"edge_agent/commands.py", "shared/command_line.py", "sim/tickets/tickets.csv"} <= names
    assert not [name for name in names if name.startswith(("coordinator/console/", "tests/"))]


def test_a_coordinators_wheel_has_the_console_and_not_what_it_is_built_of(
    wheel: Path, tmp_path: Path
) -> None:
    assert wheel.exists(), "or there is no index to build from"
    project = copy_of_the_project(tmp_path / "project", packages=False)
    console = project / "coordinator" / "console"
    (console / "dist").mkdir(parents=True)
    (console / "dist" / "index.html").touch()
    (console / "source.ts").touch()
    names = files_in(build_wheel(tmp_path / "dist", root=project))
    assert {name for name in names if "console" in name} == {"coordinator/console/dist/index.html"}


def test_the_extra_edge_brings_nothing_that_trains_or_encrypts(device: Installed) -> None:
    there = set(device.tells(DISTRIBUTIONS))
    assert {"llmos", "onnxruntime", "paho-mqtt"} <= there
    assert there.isdisjoint(FOR_TRAINING)


def test_the_command_says_what_it_can_do(device: Installed) -> None:
    assert "edge" in device.llmos("--help")
    assert "doctor" in device.llmos("edge", "--help")


def test_doctor_says_that_it_cannot_train_and_why(device: Installed, tmp_path: Path) -> None:
    found = json.loads(
        device.llmos("edge", "doctor", "--json", "--home", tmp_path / "home", check=False)
    )
    (software,) = [each for each in found if each["check"] == "software"]
    assert software["outcome"] == "warning"
    for name in ("torch", "tenseal", "train"):
        assert name in software["detail"]


def test_it_answers_without_torch(device: Installed, tmp_path: Path) -> None:
    released(tmp_path / "home", make_tiny_model(tmp_path / "model"), calibration=calibrated(0.0))
    said = json.loads(device.llmos("edge", "ask", CONFIDENT, "--json", "--home", tmp_path / "home"))
    assert said["source"] == "device"
    assert said["answer"]


def test_asked_to_train_it_declines_and_names_what_is_missing(
    device: Installed, tmp_path: Path
) -> None:
    make_encoder(tmp_path / "base")
    examples = tmp_path / "examples.csv"
    examples.write_text("text,label\nwhere is my parcel,delivery\n", encoding="utf-8")
    device.llmos("edge", "data", "add", examples, "--home", tmp_path / "home")
    refused = device.tells(TRAIN, tmp_path / "base", tmp_path / "home" / "examples.db", tmp_path)
    assert refused["code"] == "dependency_missing"
    assert "torch" in refused["reason"]


def test_without_tenseal_encryption_is_refused_with_a_reason(device: Installed) -> None:
    refused = device.tells(ENCRYPT)
    assert refused["code"] == "dependency_missing"
    assert "tenseal" in refused["reason"]
