"""Under which conditions this device takes part, by its owner's settings and what it reads of itself.

C1  what cannot be read stops nothing: a server without a battery is on mains, a virtual machine
    without a thermometer is not hot
C2  of what was read only the condition's name leaves the device, never the reading
C3  looking is cheap, and done at most every ``AGAIN_S`` seconds

The one importer of psutil, which reads sysfs and procfs on Linux and their like elsewhere.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from shared.config import Field, Table, read_toml
from shared.extras import require

FILE: Final = "conditions.toml"

AGAIN_S: Final = 10.0
"""A reading is as good as new for so long."""

METERED_S: Final = 120.0
"""And the answer to what sort of link this is, which takes a program to ask."""

BATTERY: Final = "battery"
BUSY: Final = "busy"
HOT: Final = "hot"
METERED: Final = "metered"
WINDOW: Final = "window"
DISK: Final = "disk"
MEMORY: Final = "memory"

MIB: Final = 2**20

_WINDOW: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_HOTTEST_C: Final = 150.0
"""Above it, and below zero, a thermometer is broken or not there."""
_ASK_S: Final = 2.0


class Pinned(Table):
    """Readings that are taken as given, for tests and virtual machines; what is left out is read."""

    on_mains: bool | None = None
    battery_percent: float | None = Field(None, ge=0, le=100)
    cpu_percent: float | None = Field(None, ge=0, le=100)
    temperature_c: float | None = Field(None, ge=-50, le=150)
    metered: bool | None = None
    free_disk_mib: float | None = Field(None, ge=0)
    free_memory_mib: float | None = Field(None, ge=0)


class TrainingLimits(Table):
    """What the training child may take.

    Attributes:
        deadline_s: It is ended when one call takes longer; the round is tried again, then declined.
        nice: Added to its niceness, 0 to 19.
        memory_mib: Beyond it its allocations fail.
    """

    deadline_s: float = Field(3600.0, gt=0)
    nice: int = Field(10, ge=0, le=19)
    memory_mib: int = Field(6 * 1024, ge=64)


class Conditions(Table):
    """``conditions.toml``: under which conditions the owner lets this device take part.

    Attributes:
        mains: Only while it is plugged in.
        min_battery_percent: On battery, only with so much left.
        max_cpu_percent: Only while other programs use at most this of all cores; 100 does not ask.
            Devices that share a machine are others to each other.
        max_temperature_c: Only while its hottest sensor is cooler than this.
        metered: Whether a link that costs by the byte is used; ``refuse`` or ``allow``.
        window: Only between these times of the local day, ``HH:MM-HH:MM``; may pass midnight.
        min_free_disk_mib: Only with so much free where the device's folder is.
        min_free_memory_mib: Only with so much memory that programs could have.
        training: What the training child may take.
        pinned: Readings that are taken as given.
    """

    mains: bool = False
    min_battery_percent: float = Field(50.0, ge=0, le=100)
    max_cpu_percent: float = Field(100.0, ge=0, le=100)
    max_temperature_c: float = Field(90.0, ge=0, le=150)
    metered: Literal["refuse", "allow"] = "refuse"
    window: str = ""
    min_free_disk_mib: float = Field(200.0, ge=0)
    min_free_memory_mib: float = Field(300.0, ge=0)
    training: TrainingLimits = TrainingLimits()
    pinned: Pinned = Pinned()

    def contradictions(self) -> Iterator[str]:
        """A window that is none."""
        if self.window and _WINDOW.fullmatch(self.window) is None:
            yield f"window: expected HH:MM-HH:MM, such as 22:00-06:00, not {self.window!r}"


@dataclass(frozen=True, slots=True)
class Readings:
    """What a device reads of itself; ``None``: it cannot.

    Attributes:
        on_mains: Whether it is plugged in; without a battery it is.
        battery_percent: What is left.
        cpu_percent: Of all cores, what other programs used since the last look.
        temperature_c: Of its hottest sensor.
        metered: Whether the link costs by the byte.
        free_disk_mib: Where its folder is.
        free_memory_mib: That programs could have.
        minute: Of the local day, 0 to 1439.
    """

    on_mains: bool | None
    battery_percent: float | None
    cpu_percent: float | None
    temperature_c: float | None
    metered: bool | None
    free_disk_mib: float | None
    free_memory_mib: float | None
    minute: int


def read_conditions(home: Path) -> Conditions:
    """The owner's settings; the defaults if there are none.

    Raises:
        ConfigError: the file cannot be read, with every problem.
    """
    path = home / FILE
    return read_toml(Conditions, path) if path.exists() else Conditions()


def unmet(asked: Conditions, found: Readings) -> dict[str, str]:
    """Conditions that do not hold: name, and a sentence for the owner (C1, C2)."""
    problems: dict[str, str] = {}
    if found.on_mains is False:
        left = found.battery_percent
        shown = "an unknown charge" if left is None else f"{left:.0f} %"
        if asked.mains:
            problems[BATTERY] = f"on battery ({shown}), and mains is asked for"
        elif left is not None and left < asked.min_battery_percent:
            problems[BATTERY] = f"on battery with {shown}, of {asked.min_battery_percent:g} % asked"
    checks = (
        (BUSY, found.cpu_percent, asked.max_cpu_percent, 1, "other programs use {:.0f} %"),
        (HOT, found.temperature_c, asked.max_temperature_c, 1, "{:.0f} °C"),
        (DISK, found.free_disk_mib, asked.min_free_disk_mib, -1, "{:.0f} MiB of disk free"),
        (MEMORY, found.free_memory_mib, asked.min_free_memory_mib, -1, "{:.0f} MiB of memory free"),
    )
    for name, value, limit, sign, words in checks:
        if value is not None and sign * value > sign * limit:
            bound = "at most" if sign > 0 else "at least"
            problems[name] = f"{words.format(value)}, {bound} {limit:g} is asked for"
    if found.metered and asked.metered == "refuse":
        problems[METERED] = "the link costs by the byte"
    if asked.window and not _is_within(asked.window, found.minute):
        at = f"{found.minute // 60:02}:{found.minute % 60:02}"
        problems[WINDOW] = f"it is {at}, outside {asked.window}"
    return problems


class Sensors:
    """Reads this device, with what is pinned in place of what there is."""

    def __init__(
        self,
        home: Path,
        asked: Conditions,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """Read from now on; what processors do is counted between looks.

        Raises:
            DependencyMissing: psutil is not installed.
        """
        self._psutil = require("psutil", extra="edge")
        self._home = home
        self._asked = asked
        self._monotonic = monotonic
        self._now = now
        self._read_at = float("-inf")
        self._metered: tuple[float, bool | None] = (float("-inf"), None)
        self._processors = self._processor_seconds()
        self._cpu_percent: float | None = None
        self._last: Readings | None = None

    def readings(self) -> Readings:
        """What there is now, or was less than ``AGAIN_S`` ago (C3)."""
        at = self._monotonic()
        if self._last is None or at - self._read_at >= AGAIN_S:
            self._last = self._pinned(self._read(at))
            self._read_at = at
        return self._last

    def unmet(self) -> dict[str, str]:
        """Conditions that do not hold now, as :func:`unmet`."""
        return unmet(self._asked, self.readings())

    def _read(self, at: float) -> Readings:
        psutil = self._psutil
        battery = _quietly(psutil, "sensors_battery")
        plugged = True if battery is None else battery.power_plugged
        try:
            disk = shutil.disk_usage(self._home).free / MIB
        except OSError:
            disk = None
        memory = psutil.virtual_memory().available / MIB
        now = self._now()
        return Readings(
            on_mains=plugged,
            battery_percent=None if battery is None else float(battery.percent),
            cpu_percent=self._others_percent(),
            temperature_c=_hottest(_quietly(psutil, "sensors_temperatures") or {}),
            metered=self._is_metered(at),
            free_disk_mib=disk,
            free_memory_mib=memory,
            minute=now.hour * 60 + now.minute,
        )

    def _pinned(self, found: Readings) -> Readings:
        return replace(found, **self._asked.pinned.model_dump(exclude_none=True))

    def _processor_seconds(self) -> tuple[float, float, float]:
        """Of all cores: all, idle, and this agent's with its children's."""
        psutil = self._psutil
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Guests are in user time already (proc_stat(5)).
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        own = 0.0
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                spent = process.cpu_times()
                own += spent.user + spent.system
        return sum(times) - guests, idle, own

    def _others_percent(self) -> float | None:
        """Since the last look; ``None`` at the first, which was just now."""
        before, after = self._processors, self._processor_seconds()
        total, idle, own = (now - then for now, then in zip(after, before, strict=True))
        # Counted in hundredths of a second: less says nothing.
        if total >= 1.0:
            busy = max(0.0, total - idle - max(0.0, own))
            self._cpu_percent = min(100.0, 100.0 * busy / total)
            self._processors = after
        return self._cpu_percent

    def _is_metered(self, at: float) -> bool | None:
        asked_at, metered = self._metered
        if at - asked_at >= METERED_S:
            metered = _asked_network_manager()
            self._metered = at, metered
        return metered


def low_priority() -> None:
    """Let this process give way: to others' reads and writes, and first of all when memory ends.

    What the system does not offer is left out.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800", encoding="ascii")
    psutil = require("psutil", extra="edge")
    if hasattr(psutil, "IOPRIO_CLASS_IDLE"):
        with contextlib.suppress(psutil.Error, OSError):
            psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def _quietly(psutil: Any, name: str) -> Any:
    """Ask for what not every system has (C1)."""
    function = getattr(psutil, name, None)
    if function is None:
        return None
    try:
        return function()
    except (OSError, RuntimeError, ValueError, AttributeError):
        return None


def _hottest(sensors: Mapping[str, Any]) -> float | None:
    degrees = [
        float(each.current)
        for chip in sensors.values()
        for each in chip
        if each.current is not None and 0 < each.current < _HOTTEST_C
    ]
    return max(degrees, default=None)


def _asked_network_manager() -> bool | None:
    """What NetworkManager thinks of the link; ``None`` where there is none."""
    program = shutil.which("nmcli")
    if program is None:
        return None
    try:
        answer = subprocess.run(  # noqa: S603  a program we looked up, no shell
            [program, "-t", "-f", "GENERAL.STATE,GENERAL.METERED", "device", "show"],
            capture_output=True,
            text=True,
            timeout=_ASK_S,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return metered_in(answer)


def metered_in(answer: str) -> bool | None:
    """Read what ``nmcli`` says of the devices that are connected; ``None``: it does not know."""
    connected, known = False, []
    for line in answer.splitlines():
        key, _, value = line.partition(":")
        if key == "GENERAL.STATE":
            connected = value.startswith("100")
        elif key == "GENERAL.METERED" and connected and not value.startswith("unknown"):
            known.append("yes" in value)
    return any(known) if known else None


def _is_within(window: str, minute: int) -> bool:
    found = _WINDOW.fullmatch(window)
    assert found is not None
    from_hour, from_minute, to_hour, to_minute = map(int, found.groups())
    begin, end = from_hour * 60 + from_minute, to_hour * 60 + to_minute
    if begin <= end:
        return begin <= minute < end
    return minute >= begin or minute < end
