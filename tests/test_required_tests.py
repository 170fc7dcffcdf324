"""Where LLMOS_REQUIRE_ALL=1, a test that should have run cannot pass by being skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = """
import pytest

@pytest.mark.broker
def test_marked_and_skipped_inside():
    pytest.skip("no mosquitto")

@pytest.fixture
def absent():
    pytest.skip("no weights")

@pytest.mark.model
def test_marked_and_skipped_by_a_fixture(absent):
    pass

@pytest.mark.processes
@pytest.mark.skipif(True, reason="not here")
def test_marked_and_skipped_by_a_condition():
    pass

def test_unmarked_and_skipped():
    pytest.skip("an optional thing")

@pytest.mark.broker
@pytest.mark.xfail(reason="known")
def test_marked_and_known_to_fail():
    raise AssertionError

@pytest.mark.broker
def test_marked_and_passing():
    pass
"""

MODULE_SKIP = "import pytest\npytest.importorskip('a_library_that_does_not_exist')\n"


def outcome(folder: Path, content: str, *, require_all: bool) -> str:
    """What pytest prints about a test file with ``content``, under our conftest."""
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "test_it.py").write_text(content, encoding="utf-8")
    (folder / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n  broker\n  model\n  processes\n", encoding="utf-8"
    )
    environment = {k: v for k, v in os.environ.items() if k != "LLMOS_REQUIRE_ALL"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"],
        cwd=folder,
        env=environment | ({"LLMOS_REQUIRE_ALL": "1"} if require_all else {}),
        capture_output=True,
        text=True,
        check=False,
    ).stdout


def test_on_a_developers_machine_skips_are_skips(tmp_path: Path) -> None:
    assert "1 passed, 4 skipped, 1 xfailed" in outcome(tmp_path, TESTS, require_all=False)
    assert "1 skipped" in outcome(tmp_path, MODULE_SKIP, require_all=False)


def test_in_ci_skipping_a_required_test_is_a_failure_that_says_why(tmp_path: Path) -> None:
    out = outcome(tmp_path, TESTS, require_all=True)
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed, 2 errors" in out
    assert "LLMOS_REQUIRE_ALL=1, but this was skipped: Skipped: no mosquitto" in out


def test_in_ci_a_module_that_skips_itself_whole_is_an_error(tmp_path: Path) -> None:
    out = outcome(tmp_path, MODULE_SKIP, require_all=True)
    assert "1 error" in out
    assert "a_library_that_does_not_exist" in out
