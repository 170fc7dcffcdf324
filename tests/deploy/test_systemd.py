"""The unit is one that systemd understands, closes what can be closed, and lets the agent work.

No systemd runs where these tests do: what it says of the files is asked of systemd-analyze, and
what it would forbid to the process is imposed by ``tests/support/sandbox.py``.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.answering import CONFIDENT, calibrated, released
from tests.support.brokers import eventually
from tests.support.installs import ROOT, Installed, run, running, running_coordinator
from tests.support.sandbox import allowed_calls, settings_of
from tests.support.tiny_graph import make_tiny_model

pytestmark = [pytest.mark.install, pytest.mark.slow]

UNIT = ROOT / "deploy" / "systemd" / "llmos-edge.service"
TRAIN = UNIT.with_name("llmos-edge.service.d") / "train.conf"
SANDBOX = (sys.executable, ROOT / "tests" / "support" / "sandbox.py")

MOST_EXPOSURE = 15
"""In tenths. What is left is mostly the network, without which there is no fleet."""

BACKOFF = ("RestartSteps", "RestartMaxDelaySec")
"""Known from systemd 254 on; older ones say that they ignore them."""

TRY = """
import json, mmap, os, resource, socket

def outcome(step):
    try:
        step()
    except OSError as err:
        return err.strerror
    return "done"

print(json.dumps({
    "machine code": outcome(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)),
    "packets": outcome(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "root": outcome(lambda: os.chroot("/")),
    "owner": outcome(lambda: os.chown("/dev/null", -1, -1)),
    "pinning": outcome(lambda: os.sched_setaffinity(0, os.sched_getaffinity(0))),
    "tcp": outcome(lambda: socket.socket().close()),
    "nicer": outcome(lambda: os.nice(1)),
    "limit": outcome(lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0))),
}))
"""


@pytest.fixture(autouse=True)
def _analyser() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: sh deploy/install-packaging.sh")


def complaints(folder: Path, *, unit: str, drop_in: str = "") -> list[str]:
    """What systemd says of a unit whose program is there."""
    (folder / "llmos-edge.service.d").mkdir(parents=True)
    (folder / "llmos-edge.service").write_text(
        unit.replace("/opt/llmos-edge/bin/llmos", "/bin/true"), encoding="utf-8"
    )
    (folder / "llmos-edge.service.d" / "more.conf").write_text(drop_in, encoding="utf-8")
    done = run("systemd-analyze", "verify", folder / "llmos-edge.service", check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if not any(f"'{key}'" in line for key in BACKOFF)]


def exposure_is_small(unit: Path) -> bool:
    options = ("--offline=true", "--no-pager", f"--threshold={MOST_EXPOSURE}")
    return run("systemd-analyze", "security", *options, unit, check=False).returncode == 0


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    unit = UNIT.read_text(encoding="utf-8")
    assert complaints(tmp_path / "alone", unit=unit) == []
    drop_in = TRAIN.read_text(encoding="utf-8")
    assert complaints(tmp_path / "both", unit=unit, drop_in=drop_in) == []
    wrong = unit.replace("ProtectSystem=", "ProtektSystem=")
    assert complaints(tmp_path / "wrong", unit=wrong), "the control"


def test_little_is_left_open(tmp_path: Path) -> None:
    assert exposure_is_small(UNIT)
    control = tmp_path / "llmos-edge.service"
    unit = UNIT.read_text(encoding="utf-8")
    control.write_text(unit.replace("SystemCallFilter=", "#"), encoding="utf-8")
    assert not exposure_is_small(control)


def test_training_opens_nothing_but_machine_code() -> None:
    assert settings_of(TRAIN.read_text(encoding="utf-8")) == {"MemoryDenyWriteExecute": ["no"]}


def test_what_the_unit_forbids_is_refused_and_what_the_agent_needs_is_not() -> None:
    found = json.loads(run(*SANDBOX, UNIT, sys.executable, "-c", TRY).stdout)
    refused = {name for name, outcome in found.items() if outcome != "done"}
    assert refused == {"machine code", "packets", "root", "owner", "pinning"}
    found = json.loads(run(*SANDBOX, f"{UNIT}:{TRAIN}", sys.executable, "-c", TRY).stdout)
    assert found["machine code"] == "done"
    free = json.loads(run(sys.executable, "-c", TRY).stdout)
    assert free["machine code"] == "done", "the control"


def test_a_list_of_calls_is_read_line_by_line() -> None:
    assert {"openat", "setpriority"} <= allowed_calls(["@system-service"])
    assert "setpriority" not in allowed_calls(["@system-service", "~@resources"])
    both = allowed_calls(["@system-service", "~@resources @privileged", "setpriority"])
    assert "setpriority" in both
    assert both.isdisjoint({"chroot", "setrlimit"})


@pytest.mark.broker
@pytest.mark.processes
def test_the_agent_joins_answers_and_ends_in_order_under_the_unit(
    device: Installed, tmp_path: Path
) -> None:
    home = tmp_path / "device"
    with running_coordinator(tmp_path) as coordinator:
        token = coordinator.llmos("device", "token")["token"]
        joining = ("--token", token, "--name", "shop-1", "--home", home)
        device.llmos("edge", "join", coordinator.url, *joining)
        released(home, make_tiny_model(tmp_path / "model"), calibration=calibrated(0.0))
        words = (*SANDBOX, UNIT, device.program, "edge", "run", "--home", home)
        with running(home, *words, cwd=tmp_path, log=tmp_path / "log") as agent:
            ready = json.loads((home / "ready.json").read_text())
            assert confined(agent)
            assert eventually(lambda: coordinator.llmos("device", "ls")[0]["state"] == "idle")
            answer = httpx.post(
                f"{ready['url']}/v1/chat/completions",
                json={"model": "llmos", "messages": [{"role": "user", "content": CONFIDENT}]},
                headers={"Authorization": f"Bearer {(home / 'api.token').read_text()}"},
                trust_env=False,
                timeout=120,
            )
            assert answer.status_code == 200, answer.text
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(timeout=120) == 0
        assert not (home / "ready.json").exists()


def confined(process: subprocess.Popen[bytes]) -> bool:
    """Whether the kernel filters what the process calls."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return "\nSeccomp:\t2\n" in status
