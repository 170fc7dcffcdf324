"""A device takes part by its owner's conditions; what it cannot read stops nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import conditions as module
from edge_agent.conditions import (
    AGAIN_S,
    Conditions,
    Readings,
    Sensors,
    metered_in,
    read_conditions,
    unmet,
)
from shared.config import read
from shared.errors import ConfigError
from shared.wire.messages import PASSING

UNKNOWN = Readings(None, None, None, None, None, None, None, minute=0)
GOOD = Readings(True, 80.0, 5.0, 40.0, False, 9000.0, 4000.0, minute=12 * 60)


def asked(**settings: Any) -> Conditions:
    return read(Conditions, settings, source="test")


def test_what_cannot_be_read_stops_nothing() -> None:
    strict = asked(
        mains=True,
        min_battery_percent=100.0,
        max_cpu_percent=0.0,
        max_temperature_c=0.0,
        min_free_disk_mib=1e9,
        min_free_memory_mib=1e9,
    )
    assert unmet(strict, UNKNOWN) == {}


@pytest.mark.parametrize(
    ("settings", "found", "name", "words"),
    [
        ({"mains": True}, {"on_mains": False}, "battery", "on battery (80 %)"),
        ({}, {"on_mains": False, "battery_percent": 49.0}, "battery", "49 %, of 50 % asked"),
        ({"max_cpu_percent": 90.0}, {"cpu_percent": 91.0}, "busy", "other programs use 91 %"),
        ({}, {"temperature_c": 90.6}, "hot", "91 °C, at most 90"),
        ({}, {"metered": True}, "metered", "costs by the byte"),
        ({"window": "22:00-06:00"}, {}, "window", "it is 12:00, outside"),
        ({}, {"free_disk_mib": 199.0}, "disk", "199 MiB of disk free, at least 200"),
        ({}, {"free_memory_mib": 299.0}, "memory", "299 MiB of memory free, at least 300"),
    ],
)
def test_each_condition_stops_it_alone_and_says_why(
    settings: dict[str, Any], found: dict[str, Any], name: str, words: str
) -> None:
    assert unmet(asked(**settings), replace(GOOD, **found)).keys() == {name}
    assert words in unmet(asked(**settings), replace(GOOD, **found))[name]
    assert name in PASSING


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, {}),
        ({"mains": True}, {}),
        ({}, {"on_mains": False, "battery_percent": 50.0}),
        ({}, {"on_mains": False, "battery_percent": None}),
        ({"metered": "allow"}, {"metered": True}),
        ({}, {"cpu_percent": 100.0}),
        ({"window": "06:00-22:00"}, {}),
    ],
)
def test_where_they_hold_it_takes_part(settings: dict[str, Any], found: dict[str, Any]) -> None:
    assert unmet(asked(**settings), replace(GOOD, **found)) == {}


@given(begin=st.integers(0, 1439), length=st.integers(1, 1439), minute=st.integers(0, 1439))
def test_a_window_is_the_minutes_that_follow_its_beginning(
    begin: int, length: int, minute: int
) -> None:
    end = (begin + length) % 1440
    window = f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
    inside = minute in {(begin + step) % 1440 for step in range(length)}
    assert ("window" not in unmet(asked(window=window), replace(GOOD, minute=minute))) is inside


@pytest.mark.parametrize(
    "window", ["22-6", "24:00-06:00", "22:00", "22:60-23:00", "a", "22:00-6:00"]
)
def test_a_window_that_is_none_is_refused(window: str) -> None:
    with pytest.raises(ConfigError, match="HH:MM-HH:MM"):
        asked(window=window)


def test_every_mistake_in_the_file_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / module.FILE).write_text('mians = true\nmetered = "no"\n[training]\nnice = 40\n')
    with pytest.raises(ConfigError) as refused:
        read_conditions(tmp_path)
    for word in ("mians", "did you mean mains", "metered", "training.nice"):
        assert word in str(refused.value)


def test_without_a_file_a_plain_machine_takes_part(tmp_path: Path) -> None:
    assert read_conditions(tmp_path) == Conditions()
    assert unmet(Conditions(), GOOD) == {}


def test_this_machine_is_read(tmp_path: Path) -> None:
    found = Sensors(tmp_path, Conditions()).readings()
    assert found.free_disk_mib is not None
    assert found.free_disk_mib > 0
    assert found.free_memory_mib is not None
    assert found.free_memory_mib > 0
    assert 0 <= found.minute < 1440


def test_pinned_readings_take_the_place_of_what_is_there(tmp_path: Path) -> None:
    pinned = {"on_mains": False, "battery_percent": 10.0, "metered": True, "temperature_c": -5.0}
    found = Sensors(tmp_path, asked(pinned=pinned)).readings()
    assert (found.on_mains, found.battery_percent, found.metered) == (False, 10.0, True)
    assert found.temperature_c == -5.0
    assert found.free_disk_mib is not None


class FakePsutil:
    """What psutil says on a laptop, without its processes."""

    Error = OSError
    Times = namedtuple("Times", "user system idle iowait guest")

    def __init__(self) -> None:
        self.busy, self.idle, self.own = 0.0, 0.0, 0.0
        self.battery: Any = SimpleNamespace(percent=33.4, power_plugged=False)
        self.looks = 0

    def cpu_times(self) -> Any:
        self.looks += 1
        return self.Times(self.busy, 0.0, self.idle, 0.0, 0.0)

    def Process(self) -> Any:  # noqa: N802  psutil's own name
        spent = SimpleNamespace(user=self.own, system=0.0)
        return SimpleNamespace(cpu_times=lambda: spent, children=lambda recursive: [])

    def sensors_battery(self) -> Any:
        return self.battery

    def sensors_temperatures(self) -> Any:
        chip = [SimpleNamespace(current=degrees) for degrees in (41.0, 0.0, 65261.8, 55.5, None)]
        return {"cpu": chip}

    def virtual_memory(self) -> Any:
        return SimpleNamespace(available=512 * 2**20)


@pytest.fixture
def laptop(monkeypatch: pytest.MonkeyPatch) -> FakePsutil:
    fake = FakePsutil()
    monkeypatch.setattr(module, "require", lambda *_, **__: fake)
    monkeypatch.setattr(module, "_asked_network_manager", lambda: True)
    return fake


def sensors(folder: Path, clock: list[float]) -> Sensors:
    at = datetime(2026, 1, 1, 23, 59, tzinfo=UTC)
    return Sensors(folder, Conditions(), monotonic=lambda: clock[0], now=lambda: at)


def test_a_laptop_on_battery_is_read_as_one(laptop: FakePsutil, tmp_path: Path) -> None:
    found = sensors(tmp_path, [0.0]).readings()
    assert (found.on_mains, found.battery_percent) == (False, 33.4)
    assert found.temperature_c == 55.5  # of thermometers that work
    assert found.metered is True
    assert found.free_memory_mib == 512
    assert found.minute == 1439
    assert found.cpu_percent is None  # there is nothing to compare with yet
    laptop.battery = None
    assert sensors(tmp_path, [0.0]).readings().on_mains is True


def test_what_this_agent_itself_computes_does_not_make_it_busy(
    laptop: FakePsutil, tmp_path: Path
) -> None:
    clock = [0.0]
    reader = sensors(tmp_path, clock)
    laptop.busy, laptop.own, laptop.idle = 60.0, 50.0, 40.0
    assert reader.readings().cpu_percent == 10.0
    clock[0] += AGAIN_S
    laptop.busy, laptop.own, laptop.idle = 160.0, 50.0, 40.0
    assert reader.readings().cpu_percent == 100.0


def test_looking_often_reads_seldom(laptop: FakePsutil, tmp_path: Path) -> None:
    clock = [0.0]
    reader = sensors(tmp_path, clock)
    before = laptop.looks
    for _ in range(100):
        reader.unmet()
        clock[0] += AGAIN_S / 100
    assert laptop.looks == before + 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", None),
        ("GENERAL.STATE:100 (connected)\nGENERAL.METERED:yes (guessed)\n", True),
        ("GENERAL.STATE:100 (connected)\nGENERAL.METERED:no (guessed)\n", False),
        ("GENERAL.STATE:100 (connected)\nGENERAL.METERED:unknown\n", None),
        ("GENERAL.STATE:20 (unavailable)\nGENERAL.METERED:yes\n", None),
        (
            (
                "GENERAL.STATE:100 (connected)\nGENERAL.METERED:no\n\n"
                "GENERAL.STATE:100 (connected (externally))\nGENERAL.METERED:yes\n"
            ),
            True,
        ),
    ],
)
def test_what_networkmanager_says_of_links(answer: str, expected: bool | None) -> None:
    assert metered_in(answer) is expected


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_a_training_process_is_the_first_to_go_and_the_last_to_read() -> None:
    code = """
from edge_agent.conditions import low_priority
low_priority()
import psutil
print(open("/proc/self/oom_score_adj").read().strip(), int(psutil.Process().ionice().ioclass))
"""
    root = Path(__file__).parents[2]
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    ).stdout.split()
    assert said == ["800", "3"]
