"""A fleet over TLS, as its commands make it: joined, renewed, examined, revoked, left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.commands import Client
from edge_agent.doctor import Outcome, examine
from edge_agent.membership import FILE, join, read_membership
from shared.crypto.identity import Identity, fingerprint, format_public
from shared.enrolment import CERTIFICATE
from shared.errors import AccessDenied, ConfigError, CoordinatorUnavailable, WrongKey
from tests.support.brokers import eventually, mosquitto_or_skip

pytestmark = [pytest.mark.broker, pytest.mark.processes]

ROOT = Path(__file__).parents[2]


@contextmanager
def running(home: Path, *command: str) -> Iterator[dict[str, Any]]:
    """``llmos`` from the moment it says that it is ready, until it is told to end."""
    with (home.parent / f"{home.name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "shared.command_line", *command, "--home", str(home)],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        assert eventually(
            lambda: (home / "ready.json").exists() or process.poll() is not None, within_s=120
        )
        assert process.poll() is None, (home.parent / f"{home.name}.log").read_text()
        yield json.loads((home / "ready.json").read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


class Site:
    """A coordinator with TLS, and whoever asks it."""

    def __init__(self, home: Path, ready: dict[str, Any], folder: Path) -> None:
        self.home, self.ready, self.folder = home, ready, folder
        self.url: str = ready["url"]
        self.client = Client.of_home(home, "")

    def token(self) -> str:
        return str(self.client.post("/api/v1/devices/tokens", {})["token"])

    def joined(self, name: str) -> Path:
        home = self.folder / name
        join(home, self.url, self.token(), name=name, key_holder="", min_devices=2)
        return home

    def state(self, name: str) -> str:
        return str(self.client.get(f"/api/v1/devices/{name}")["state"])

    def revoke(self, name: str) -> None:
        self.client.delete(f"/api/v1/devices/{name}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    mosquitto_or_skip()
    folder = tmp_path_factory.mktemp("site")
    home, holder = folder / "coordinator", Identity.create(folder / "holder" / "identity.key")
    options = ["--tls", "--port", "0", "--broker-port", "0", "--encoder", "none"]
    options += ["--key-holder", format_public(holder.public)]
    with running(home, "up", *options) as ready:
        site = Site(home, ready, folder)
        yield site
        site.client.close()


def outcomes(home: Path, **options: Any) -> dict[str, Outcome]:
    return {each.check: each.outcome for each in examine(home, **options)}


def detail(home: Path, check: str) -> str:
    return next(each.detail for each in examine(home) if each.check == check)


def test_a_device_joins_is_there_and_a_key_holder_too(site: Site) -> None:
    assert site.ready["tls"] is True
    assert site.url.startswith("https://")
    home = site.joined("kitchen")
    membership = read_membership(home)
    assert membership.secured
    assert membership.url == site.url
    holder = ["keyholder", "run", "--url", site.url, "--coordinator", site.ready["public_key"]]
    with ExitStack() as stack:
        stack.enter_context(running(home, "edge", "run"))
        stack.enter_context(running(site.folder / "holder", *holder))
        assert eventually(lambda: site.state("kitchen") == "idle")
        assert eventually(lambda: bool(site.client.get("/readyz")["ready"]))
        llmos = [sys.executable, "-m", "shared.command_line", "edge", "status", "--json"]
        said = subprocess.run([*llmos, "--home", home], cwd=ROOT, capture_output=True, check=True)
        status = json.loads(said.stdout)
        assert status["coordinator"] == site.url
        assert status["certificate_until"] > datetime.now(UTC).isoformat()
        found = outcomes(home)
        assert {found[each] for each in ("certificate", "coordinator", "broker")} == {Outcome.OK}


def test_without_knowing_the_authority_nobody_asks_it_anything(site: Site) -> None:
    with (
        closing(Client(site.url, "token")) as stranger,
        pytest.raises(CoordinatorUnavailable),
    ):
        stranger.get("/healthz")


def test_a_token_of_another_coordinator_is_not_sent(site: Site) -> None:
    secret = site.token().partition(".")[0]
    other = fingerprint(Identity.create(site.folder / "other.key").public)
    home = site.folder / "lured"
    with pytest.raises(WrongKey):
        join(home, site.url, f"{secret}.{other}", name="lured", key_holder="")
    assert not home.exists()


def test_in_clear_it_is_not_asked(site: Site) -> None:
    home = site.folder / "clear"
    with pytest.raises(CoordinatorUnavailable, match="https"):
        join(home, site.url.replace("https", "http"), site.token(), name="clear", key_holder="")
    with pytest.raises(ConfigError, match="https"):
        join(home, "http://192.0.2.7:8443", site.token(), name="clear", key_holder="")
    assert not (home / FILE).exists()


@pytest.mark.parametrize("name", ["coordinator", "key-holder"])
def test_nobody_joins_under_a_name_of_ours(site: Site, name: str) -> None:
    with pytest.raises(AccessDenied, match="is not a device name"):
        join(site.folder / f"as-{name}", site.url, site.token(), name=name, key_holder="")


def test_a_revoked_device_is_out_on_every_way(site: Site) -> None:
    home = site.joined("stolen")
    with running(home, "edge", "run"):
        assert eventually(lambda: site.state("stolen") == "idle")
        site.revoke("stolen")
        enrolled = read_membership(home).enrolled(home)
        assert enrolled is not None
        with pytest.raises(AccessDenied, match="revoked"):
            enrolled.renew()
        assert eventually(lambda: outcomes(home)["broker"] is Outcome.FAILED, within_s=60)
        assert "revoked" in detail(home, "broker")
        assert "revoked" in detail(home, "coordinator")
    with pytest.raises(AccessDenied, match="revoked"):
        join(site.folder / "again", site.url, site.token(), name="stolen", key_holder="")


def test_a_device_answers_although_nobody_is_there_and_comes_back_by_itself(site: Site) -> None:
    home = site.joined("shed")
    membership = read_membership(home)
    away = membership.model_copy(update={"broker_port": 1})
    (home / FILE).write_text(away.model_dump_json())
    with running(home, "edge", "run") as ready:
        headers = {"Authorization": f"Bearer {(home / 'api.token').read_text()}"}
        answer = httpx.get(f"{ready['url']}/v1/models", headers=headers, trust_env=False)
        assert answer.status_code == 200
    said = (home.parent / "shed.log").read_text()
    assert "transport.waiting" in said
    assert "127.0.0.1:1" in said
    (home / FILE).write_text(membership.model_dump_json())
    with running(home, "edge", "run"):
        assert eventually(lambda: site.state("shed") == "idle")


def test_a_certificate_that_is_damaged_is_found_and_asked_for_anew(site: Site) -> None:
    home = site.joined("attic")
    (home / CERTIFICATE).write_text("rubbish")
    found = outcomes(home)
    assert found["certificate"] is Outcome.FAILED
    assert found["coordinator"] is Outcome.OK
    enrolled = read_membership(home).enrolled(home)
    assert enrolled is not None
    enrolled.renew()
    assert outcomes(home)["certificate"] is Outcome.OK


def later(by_s: float) -> float:
    return time.time() + by_s


@pytest.mark.parametrize(("off_s", "way"), [(-4000.0, "behind"), (4000.0, "ahead of")])
def test_a_clock_that_differs_from_the_coordinators_is_found(
    site: Site, off_s: float, way: str
) -> None:
    home = site.joined(f"garage-{way[:2]}")
    found = {each.check: each for each in examine(home, now=partial(later, off_s))}
    assert found["coordinator"].outcome is Outcome.FAILED
    assert f"s {way} the coordinator's: set it" in found["coordinator"].detail


def test_leaving_wipes_keys_and_data_and_only_when_nobody_works_there(site: Site) -> None:
    home = site.joined("porch")
    key = (home / "identity.key").read_bytes()
    leave = [sys.executable, "-m", "shared.command_line", "edge", "leave", "--home", str(home)]

    def left(*options: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"NO_COLOR": "1"}
        return subprocess.run(
            [*leave, *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment,
        )

    with running(home, "edge", "run"):
        refused = left("--yes")
        assert refused.returncode == 1
        assert "another process works in" in refused.stderr
        assert (home / "identity.key").read_bytes() == key
    assert "--yes" in left().stderr  # nobody was there to say yes
    assert (home / "identity.key").exists()
    done = left("--yes")
    assert done.returncode == 0, done.stderr
    assert "llmos device revoke porch" in done.stdout
    assert [path.name for path in home.rglob("*")] == ["lock"]
    again = left("--yes")
    assert again.returncode == 1
    assert "no device lives in" in again.stderr
