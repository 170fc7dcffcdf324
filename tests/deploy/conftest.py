"""One wheel and one environment for all tests of installations."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.installs import (
    Installed,
    build_wheel,
    copy_of_the_project,
    fetch,
    index_or_skip,
    install_wheel,
)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel for devices, from a checkout without a built console. Mark tests ``install``.

    A Node that is called fails, and the build with it.
    """
    scratch = tmp_path_factory.mktemp("wheel")
    index_or_skip(scratch / "index")
    project = copy_of_the_project(scratch / "project")
    path = f"{broken_node(scratch / 'programs')}{os.pathsep}{os.environ['PATH']}"
    return build_wheel(scratch / "dist", root=project, PATH=path, LLMOS_CONSOLE="no")


def broken_node(folder: Path) -> Path:
    """Node's programs, as programs that fail."""
    folder.mkdir()
    for name in ("node", "npm", "npx"):
        (folder / name).write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def offline(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which pip has all that the wheel needs, and no index. Mark tests ``install``."""
    return fetch(wheel, tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="session")
def device(
    wheel: Path, offline: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Installed:
    """The wheel with its extra ``edge`` in an environment of its own. Mark tests ``install``."""
    return install_wheel(wheel, tmp_path_factory.mktemp("device") / "venv", offline)
