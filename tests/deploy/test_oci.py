"""What can be said of the container file without building it: no container tool is here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from shared.loopback import served
from tests.support.installs import BUILT_OF, OURS, ROOT, clean_environment

FILE = ROOT / "deploy" / "oci" / "Containerfile"
KNOWN = {
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "FROM",
    "HEALTHCHECK",
    "RUN",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
}


class Instruction(NamedTuple):
    """One instruction and what follows it."""

    name: str
    rest: str


def instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines()]


@pytest.fixture
def stages() -> list[list[Instruction]]:
    """The instructions of each stage, ``FROM`` first."""
    found: list[list[Instruction]] = []
    for each in instructions(FILE.read_text(encoding="utf-8")):
        assert each.name in KNOWN, each
        if each.name == "FROM":
            found.append([])
        if found:
            found[-1].append(each)
    return found


def values(stage: list[Instruction], name: str) -> list[str]:
    return [each.rest for each in stage if each.name == name]


def test_what_is_copied_is_what_the_tests_build_a_wheel_of(
    stages: list[list[Instruction]],
) -> None:
    copied = [source for each in values(stages[0], "COPY") for source in each.split()[:-1]]
    assert sorted(each.rstrip("/") for each in copied) == sorted(
        [*BUILT_OF, "deploy/wheel.sh", *OURS]
    )
    assert all((ROOT / each).exists() for each in copied)
    ignored = (ROOT / ".containerignore").read_text(encoding="utf-8").split()
    assert not {each.rstrip("/") for each in copied} & set(ignored)


def test_the_base_is_named_by_its_tag_and_both_stages_have_the_same(
    stages: list[list[Instruction]],
) -> None:
    first, last = (stage[0].rest for stage in stages)
    assert first == f"{last} AS build"
    (tag,) = values(instructions(FILE.read_text(encoding="utf-8")), "ARG")
    assert re.fullmatch(r"PYTHON=3\.\d+-slim-[a-z]+", tag)


def test_the_wheel_is_built_and_installed_as_the_tests_do_it(
    stages: list[list[Instruction]],
) -> None:
    build, environment, install = values(stages[0], "RUN")
    assert build == "LLMOS_CONSOLE=no sh deploy/wheel.sh /wheel"
    assert environment.startswith("python -m venv --without-pip ")
    assert "[edge]" in install


def test_it_does_not_run_as_root_and_stops_on_sigterm(stages: list[list[Instruction]]) -> None:
    last = stages[-1]
    assert values(last, "USER") == ["10001:10001"]
    names = [each.name for each in last]
    assert max(at for at, name in enumerate(names) if name in ("RUN", "COPY")) < names.index("USER")
    assert values(last, "STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(values(last, "ENTRYPOINT")[0]) == ["llmos"]
    assert json.loads(values(last, "CMD")[0]) == ["edge", "run"]


def test_the_health_check_asks_the_agent_that_runs(
    stages: list[list[Instruction]], tmp_path: Path
) -> None:
    (check,) = values(stages[-1], "HEALTHCHECK")
    program, *words = json.loads(check.partition("CMD ")[2])
    assert program == "python"

    def code() -> int:
        return subprocess.run(
            [sys.executable, *words],
            env=clean_environment({"HOME": str(tmp_path)}),
            stderr=subprocess.DEVNULL,
            check=False,
        ).returncode

    assert code() != 0, "no agent has said that it is ready"
    app = Starlette(routes=[Route("/healthz", lambda _: PlainTextResponse("ok"))])
    with served(app, 0, extra="edge") as port:
        ready = {"url": f"http://127.0.0.1:{port}"}
        (tmp_path / "ready.json").write_text(json.dumps(ready), encoding="utf-8")
        assert code() == 0
    assert code() != 0, "it has ended"
