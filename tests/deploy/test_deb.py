"""The Debian package: installed with dpkg into a root of its own, called there, removed again.

The root is made by debootstrap: the distribution of this machine, with nothing but Python.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.answering import CONFIDENT, calibrated, released
from tests.support.installs import ROOT, run
from tests.support.tiny_graph import make_tiny_model

pytestmark = [pytest.mark.install, pytest.mark.slow]

PYTHON = Path("/usr/bin/python3")
HOME = Path("/var/lib/llmos-edge")
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(HOME)}


@dataclass(frozen=True)
class Root:
    """A Debian or Ubuntu in a folder."""

    folder: Path

    def call(self, *command: str, user: str = "", check: bool = True) -> str:
        """Standard output of a program in there."""
        who = (f"--userspec={user}:{user}",) if user else ()
        done = subprocess.run(
            ["/usr/sbin/chroot", *who, str(self.folder), *command],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout

    def path(self, inside: str | Path) -> Path:
        """Where a file of the root is."""
        return self.folder / str(inside).removeprefix("/")


def needed_or_skip() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes a root: chroot, and files of other users")
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not here: not Debian or Ubuntu")
    if shutil.which("debootstrap", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("debootstrap is not installed: sh deploy/install-packaging.sh")
    new_enough = "import sys; sys.exit(sys.version_info < (3, 11))"
    if not PYTHON.exists() or run(PYTHON, "-c", new_enough, check=False).returncode != 0:
        pytest.skip(f"{PYTHON} is not Python 3.11 or newer")


def minor_version() -> str:
    """Of the distribution's Python."""
    tell = "import sys; print('%d.%d' % sys.version_info[:2])"
    return run(PYTHON, "-c", tell).stdout.strip()


@pytest.fixture(scope="module")
def package(wheel: Path, offline: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .deb, for this machine's distribution."""
    needed_or_skip()
    script = ROOT / "deploy" / "deb" / "build.sh"
    pip = f"{sys.executable} -m pip"
    folder = tmp_path_factory.mktemp("deb")
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    fetched = offline if minor_version() == ours else {}
    built = run("sh", script, folder, environment={"WHEEL": str(wheel), "PIP": pip} | fetched)
    return Path(built.stdout.strip())


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A root with Python and no agent."""
    needed_or_skip()
    facts = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    (suite,) = [each.partition("=")[2] for each in facts if each.startswith("VERSION_CODENAME=")]
    folder = tmp_path_factory.mktemp("debian") / "root"
    made = run(
        *("debootstrap", "--variant=minbase", f"--include=python{minor_version()}", suite, folder),
        check=False,
        environment={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )
    if made.returncode != 0:
        pytest.skip(f"debootstrap could not make a {suite}: {made.stderr[-500:]}")
    return Root(folder)


@pytest.fixture(scope="module")
def root(bare: Root, package: Path) -> Root:
    """A root with the package in it."""
    shutil.copy(package, bare.folder)
    bare.call("dpkg", "--install", f"/{package.name}")
    return bare


def test_what_is_in_it_belongs_to_root_and_nobody_else_may_write_it(package: Path) -> None:
    for line in run("dpkg-deb", "--contents", package).stdout.splitlines():
        modes, owner, _size, _day, _time, name = line.split(maxsplit=5)
        assert owner == "root/root", line
        assert "s" not in modes, line
        assert modes[0] == "l" or (modes[5] == "-" and modes[8] == "-"), line
        assert name.startswith(("./opt/", "./usr/", "./etc/")) or name in ("./",), line


def test_nothing_in_it_names_the_place_where_it_was_built(
    root: Root, package: Path, tmp_path: Path
) -> None:
    control = tmp_path / "control"
    control.write_text(str(ROOT), encoding="utf-8")
    places = [word for each in (ROOT, package.parent, sys.prefix) for word in ("-e", str(each))]
    installed = [
        root.path(each) for each in ("/opt/llmos-edge", "/usr/lib/systemd", "/usr/lib/sysusers.d")
    ]
    found = run("grep", "-rlF", *places, *installed, control, check=False).stdout.split()
    assert found == [str(control)]


def test_it_installs_offline_enables_the_service_and_makes_a_home_for_its_user(root: Root) -> None:
    assert root.call("llmos", "--version").startswith("llmos, version ")
    assert root.call("dpkg", "--verify", "llmos-edge") == ""
    links = root.path("/etc/systemd/system/multi-user.target.wants")
    assert (links / "llmos-edge.service").is_symlink()
    home = root.path(HOME).stat()
    user = root.call("id", "-u", "llmos-edge").strip()
    assert (stat.S_IMODE(home.st_mode), str(home.st_uid)) == (0o700, user)
    unit = root.path("/usr/lib/systemd/system/llmos-edge.service").read_text(encoding="utf-8")
    assert unit == (ROOT / "deploy/systemd/llmos-edge.service").read_text(encoding="utf-8")


def test_doctor_says_there_what_it_cannot_do(root: Root) -> None:
    words = ("llmos", "edge", "doctor", "--json", "--home", str(HOME))
    found = {
        each["check"]: each
        for each in json.loads(root.call(*words, user="llmos-edge", check=False))
    }
    assert found["home"]["outcome"] == "ok"
    assert "edge join" in found["membership"]["detail"]
    assert found["software"]["outcome"] == "warning"
    assert "torch" in found["software"]["detail"]


def test_it_answers_there_as_its_own_user(root: Root, tmp_path: Path) -> None:
    home = root.path(HOME)
    released(home, make_tiny_model(tmp_path / "model"), calibration=calibrated(0.0))
    root.call("chown", "-R", "llmos-edge:llmos-edge", str(HOME))
    words = ("llmos", "edge", "ask", CONFIDENT, "--json", "--home", str(HOME))
    assert json.loads(root.call(*words, user="llmos-edge"))["source"] == "device"


def test_removed_it_leaves_state_and_settings_and_purged_nothing(root: Root, package: Path) -> None:
    # The last one: no other test finds the package after it.
    settings = root.path("/etc/default/llmos-edge")
    settings.write_text("LLMOS_PORT=8090\n", encoding="utf-8")
    kept = root.path(HOME / "kept")
    kept.touch()
    root.call("dpkg", "--install", f"/{package.name}")
    assert settings.read_text(encoding="utf-8") == "LLMOS_PORT=8090\n"
    root.call("dpkg", "--remove", "llmos-edge")
    assert kept.exists()
    assert settings.exists()
    assert not root.path("/opt/llmos-edge").exists()
    root.call("dpkg", "--purge", "llmos-edge")
    found = run("find", root.folder, "-name", "*llmos-edge*").stdout.split()
    assert found == [str(root.path(package.name))]
