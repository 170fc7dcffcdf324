"""Experiment trackers get the report's numbers, whole, and nobody else hears of them."""

from __future__ import annotations

import importlib
import json
import math
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ChildDied, DependencyMissing, StorageError
from sim import trackers
from sim.trackers import Trackers, _confined, hparams, scalars, write_tensorboard, write_wandb
from tests.support.reports import a_whole_report

NAME = "demo-9c9c9c9c"


def events(folder: Path) -> list[Any]:
    """Every event in a folder, from the records as TFRecord has them: length, crc, data, crc."""
    event = importlib.import_module("tensorboardX.proto.event_pb2").Event
    (path,) = folder.iterdir()
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_each_round_has_what_was_measured_after_it() -> None:
    report = a_whole_report(devices=2)
    report["epsilon_by_round"]["device-2"]["2"] = "infinite"
    rounds = scalars(report)
    assert rounds[0] == {
        "accuracy/all": 0.519,
        "accuracy/en": 0.731,
        "accuracy/demo": 0.095,
        "loss": 2.1,
    }
    assert rounds[2] == {
        "invited": 2.0,
        "reported": 2.0,
        "loss": 1.5,
        "accuracy/all": 0.6,
        "accuracy/en": 0.8,
        "accuracy/demo": 0.2,
        "epsilon/device-1": 7.5,
        "epsilon/device-2": math.inf,
        "bytes_out/device-1": 118539.0,
        "bytes_out/device-2": 118539.0,
    }


def test_choices_are_flat_and_hold_no_measurement() -> None:
    chosen = hparams(a_whole_report() | {"scenario": {"training": {"rounds": 7}}})
    assert chosen["privacy.noise"] == "local"
    assert chosen["scenario.training.rounds"] == 7
    assert not any(name.startswith(("accuracy", "history", "answers")) for name in chosen)


def test_event_files_hold_every_scalar_and_the_settings(tmp_path: Path) -> None:
    report = a_whole_report()
    folder = write_tensorboard(report, tmp_path / "tb")
    assert folder == tmp_path / "tb" / NAME
    found: dict[int, dict[str, float]] = {}
    texts = []
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(event.step, {})[value.tag] = value.simple_value
            else:
                texts.append(value.tensor.string_val[0].decode())
    expected = scalars(report)
    assert found.keys() == expected.keys()
    for number, values in expected.items():
        assert found[number] == pytest.approx(values)
    assert len(texts) == 1
    assert "| `privacy.noise` | `local` |" in texts[0]


def test_what_people_named_cannot_break_out_of_its_cell(tmp_path: Path) -> None:
    report = a_whole_report(name="a | b `x`\n# <b>")
    folder = write_tensorboard(report, tmp_path)
    texts = [
        value.tensor.string_val[0].decode()
        for event in events(folder)
        for value in event.summary.value
        if not value.HasField("simple_value")
    ]
    row = next(line for line in texts[0].splitlines() if "base_model.name" in line)
    assert row.count("|") == 3
    assert row.count("`") == 4
    assert not any(line.startswith("#") for line in texts[0].splitlines())


@pytest.mark.parametrize("name", ["../../etc", "/abs", "..", "a/b"])
def test_a_run_s_name_leads_to_no_other_folder(tmp_path: Path, name: str) -> None:
    report = a_whole_report() | {"run": name}
    assert write_tensorboard(report, tmp_path / "tb").parent == tmp_path / "tb"


def test_the_same_result_replaces_itself_and_another_stands_beside_it(tmp_path: Path) -> None:
    first = write_tensorboard(a_whole_report(), tmp_path)
    assert write_tensorboard(a_whole_report(), tmp_path) == first
    assert len(list(first.iterdir())) == 1
    write_tensorboard(a_whole_report() | {"adapter_hash": "77" * 32}, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["demo-77777777", NAME]


def test_what_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    report = a_whole_report()
    report["history"][1]["loss"] = "not a number"
    with pytest.raises(ValueError, match="not a number"):
        write_tensorboard(report, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("chosen", "extra"),
    [(Trackers(tensorboard=Path("tb")), "sim"), (Trackers(wandb=Path("wb")), "wandb")],
)
def test_a_missing_library_is_told_before_the_work_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: Trackers, extra: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(DependencyMissing) as caught:
        chosen.check()
    assert caught.value.extra == extra
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match="there is a file where a folder should be"):
        Trackers(tensorboard=tmp_path / "taken").check()


def test_nothing_asked_is_nothing_written() -> None:
    Trackers().check()
    assert Trackers().write(a_whole_report()) == []


@pytest.mark.slow
def test_an_offline_run_is_readable_and_nothing_else_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    home, temporary = tmp_path / "home", tmp_path / "t"
    home.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_TAGS", "of-another-run")
    report = a_whole_report(devices=2)
    folder = write_wandb(report, tmp_path / "wb")
    assert folder == tmp_path / "wb" / NAME
    assert [file.name for file in (tmp_path / "wb").iterdir()] == [NAME]
    assert list(home.iterdir()) == []
    assert list(temporary.iterdir()) == []
    history, config = read_offline_run(folder)
    for number, values in scalars(report).items():
        assert {name: history[number][name] for name in values} == pytest.approx(values)
    assert '"local"' in config["privacy.noise"]
    everything = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    assert b"k" * 40 not in everything
    assert b"of-another-run" not in everything
    # Where and by whom it was computed, with what beside, is nobody's business.
    assert list((folder / "files").iterdir()) == []
    assert b"hostname" not in everything.replace(b"x_disable", b"")


def test_the_environment_knows_no_home_but_the_temporary_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("WANDB_RUN_ID", "of-another-run")
    confined = _confined("/temporary")
    assert "/home/somebody" not in [v for k, v in confined.items() if k != "PWD"]
    assert confined["HOME"] == confined["WANDB_DIR"] == "/temporary"
    assert "WANDB_RUN_ID" not in confined
    assert confined["WANDB_MODE"] == "offline"


def read_offline_run(folder: Path) -> tuple[dict[int, dict[str, float]], dict[str, str]]:
    """History by step, and the configuration as JSON texts, out of wandb's own file."""
    datastore = importlib.import_module("wandb.sdk.internal.datastore")
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    (path,) = folder.glob("*.wandb")
    store = datastore.DataStore()
    store.open_for_scan(str(path))
    history: dict[int, dict[str, float]] = {}
    config: dict[str, str] = {}
    while (data := store.scan_data()) is not None:
        one = record.FromString(data)
        if one.WhichOneof("record_type") == "history":
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in one.history.item
            }
            history[int(items["_step"])] = items
        elif one.WhichOneof("record_type") == "run":
            config |= {item.key: item.value_json for item in one.run.config.update}
    store.close()
    return history, config


def test_if_wandb_fails_its_words_are_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "wandb: no room\n")

    monkeypatch.setattr(trackers, "find_spec", lambda _: object())
    monkeypatch.setattr("subprocess.run", fails)
    with pytest.raises(ChildDied, match="did not write the run: wandb: no room"):
        write_wandb(a_whole_report(), tmp_path / "wb")
    assert list((tmp_path / "wb").iterdir()) == []
