"""The Ansible role installs and enrols a list of hosts, and a second time changes nothing.

Every host is this machine, everything that is written lies below a folder, and no systemd runs:
the tasks that need one, root or another user are left out by the role's own settings.
"""

from __future__ import annotations

import json
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.installs import LLMOS, ROOT, Coordinator, run, running_coordinator

pytestmark = [
    pytest.mark.install,
    pytest.mark.slow,
    pytest.mark.broker,
    pytest.mark.processes,
]

PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
SITE = ROOT / "deploy" / "ansible" / "site.yml"
NAMES = ("shop-1", "shop-2")
RECAP = re.compile(r"^(\S+) +: ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+)", re.M)


@dataclass(frozen=True)
class Fleet:
    """Hosts that are this machine, and the coordinator they join."""

    folder: Path
    wheel: Path
    coordinator: Coordinator
    offline: dict[str, str]

    def home(self, name: str) -> Path:
        return self.folder / name

    @property
    def prefix(self) -> Path:
        return self.folder / "prefix"

    def play(self, *, check: bool = True, **settings: object) -> tuple[dict[str, int], str]:
        """How many tasks changed something on each host, and what was said."""
        inventory = self.folder / "inventory.json"
        inventory.write_text(json.dumps(self._inventory(settings)), encoding="utf-8")
        quiet = {
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_FORCE_COLOR": "0",
        }
        done = run(
            *(PLAYBOOK, "--inventory", inventory, "--forks", "1", "-v", SITE),
            check=check,
            environment=quiet | self.offline,
        )
        counts = RECAP.findall(done.stdout)
        assert not check or [each for _, _, *each in counts] == [["0", "0"]] * len(NAMES)
        return {host: int(changed) for host, changed, *_ in counts}, done.stdout

    def _inventory(self, settings: dict[str, object]) -> dict[str, object]:
        here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        script = self.folder / "llmos"
        script.write_text(f'#!/bin/sh\ncd {ROOT} && exec {" ".join(LLMOS)} "$@"\n')
        script.chmod(0o755)
        common = {
            "llmos_edge_wheel": str(self.wheel),
            "llmos_edge_python": sys.executable,
            "llmos_edge_pip_arguments": ["--no-compile"],
            "llmos_edge_coordinator_url": self.coordinator.url,
            "llmos_edge_coordinator_api": self.coordinator.url,
            "llmos_edge_coordinator_home": str(self.coordinator.home),
            "llmos_edge_coordinator_program": str(script),
            "llmos_edge_prefix": str(self.prefix),
            "llmos_edge_manage_user": False,
            "llmos_edge_systemd": False,
        }
        devices = {
            "hosts": {name: {"llmos_edge_home": str(self.home(name))} for name in NAMES},
            "vars": common | settings,
        }
        return {
            "all": {"hosts": {"coordinator": {}}, "vars": here, "children": {"devices": devices}}
        }


def test_it_installs_and_enrols_every_host_once_and_then_changes_nothing(
    wheel: Path, offline: dict[str, str], tmp_path: Path
) -> None:
    if not PLAYBOOK.exists():
        pytest.skip("ansible-playbook is not installed: extra dev")
    with running_coordinator(tmp_path) as coordinator:
        fleet = Fleet(tmp_path, wheel, coordinator, offline)
        changed, said = fleet.play(llmos_edge_port=8090)
        assert all(changed[name] > 0 for name in NAMES)
        joined = {each["name"]: each for each in coordinator.llmos("device", "ls")}
        assert set(joined) == set(NAMES)
        for name in NAMES:
            assert stat.S_IMODE(fleet.home(name).stat().st_mode) == 0o700
            assert re.search(rf"llmos keyholder approve {name} llmos-ed25519:", said)
        assert ".LF1-" not in said, "a join token would be in the log"
        program = fleet.prefix / "opt" / "llmos-edge" / "bin" / "llmos"
        assert run(program, "--version", cwd=tmp_path).stdout.startswith("llmos, version ")
        settings = fleet.prefix / "etc" / "default" / "llmos-edge"
        assert settings.read_text(encoding="utf-8") == "LLMOS_PORT=8090\n"
        unit = fleet.prefix / "etc" / "systemd" / "system" / "llmos-edge.service"
        assert unit.read_bytes() == (ROOT / "deploy/systemd/llmos-edge.service").read_bytes()

        again, _ = fleet.play(llmos_edge_port=8090)
        assert again == dict.fromkeys(NAMES, 0)
        assert {each["name"] for each in coordinator.llmos("device", "ls")} == set(NAMES)


def test_settings_that_contradict_each_other_are_refused_before_anything_is_done(
    tmp_path: Path,
) -> None:
    if not PLAYBOOK.exists():
        pytest.skip("ansible-playbook is not installed: extra dev")
    nowhere = Coordinator(tmp_path / "nobody", "http://127.0.0.1:9")
    fleet = Fleet(tmp_path, tmp_path / "a.whl", nowhere, {})
    _, said = fleet.play(check=False, llmos_edge_deb="a.deb")
    assert "Set llmos_edge_wheel or llmos_edge_deb, one of them" in said
    assert not fleet.prefix.exists()
