"""What a device agreed to when it joined: whom it trusts, what its owner allows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from shared.config import Field, Table, read, read_json
from shared.crypto.identity import Identity, fingerprint, format_public, parse_public
from shared.enrolment import (
    Enrolled,
    ask,
    fetch_authorities,
    is_secured,
    keep_certificate,
    read_answer,
)
from shared.errors import (
    ConfigError,
    DataError,
    WrongKey,
)
from shared.files import disk_errors, sync_folder, write_durably
from shared.tls import client_context
from shared.wire import topics

FILE: Final = "membership.json"


class Membership(Table):
    """Written once by ``llmos edge join``, read at every start.

    Attributes:
        device: The name under which the device joined.
        coordinator: The coordinator's public key.
        key_holder: The key holder's public key; empty if there is none.
        broker_host: Where the broker is.
        broker_port: Its TCP port.
        url: The coordinator's address; empty for a device that joined before it was kept.
        secured: Whether coordinator and broker are talked to over TLS.
        min_devices: Fewest devices in an opened sum that the owner accepts.
        epsilon_budget: Most ε over the life of the example store; null allows
            runs without noise.
        delta: The δ at which the budget is meant; keep it below 1 / examples.
        clear_runs: Whether updates may be added in clear.
        tell_budget: Whether the coordinator is told what is left of the budget.
        simulation_seed: Hexadecimal; makes noise repeatable, for demonstrations.
    """

    device: str
    coordinator: str
    key_holder: str
    broker_host: str
    broker_port: int = Field(ge=1, le=65_535)
    url: str = ""
    secured: bool = False
    min_devices: int = Field(16, ge=2)
    epsilon_budget: float | None = Field(10.0, gt=0)
    delta: float = Field(1e-5, gt=0, lt=1)
    clear_runs: bool = False
    tell_budget: bool = False
    simulation_seed: str = ""

    def enrolled(self, home: Path) -> Enrolled | None:
        """Of this device's certificate; ``None`` without TLS."""
        if not self.secured:
            return None
        return Enrolled(home, self.url, fingerprint(parse_public(self.coordinator)), self.device)

    @property
    def budget(self) -> float:
        """The budget as a number that compares."""
        return math.inf if self.epsilon_budget is None else self.epsilon_budget


class _Welcome(Table):
    """What a coordinator answers to a device that joins."""

    coordinator: str
    key_holder: str
    broker_host: str
    broker_port: int
    certificate: str = ""


def read_membership(home: Path) -> Membership:
    """What this device agreed to.

    Raises:
        ConfigError: it has not joined, or the file is damaged.
    """
    path = home / FILE
    if not path.exists():
        raise ConfigError(
            [f"{home} has not joined a coordinator yet: run 'llmos edge join' first"],
            source="device",
        )
    return read_json(Membership, path.read_bytes(), source=str(path))


def join(
    home: Path,
    url: str,
    token: str,
    *,
    name: str,
    key_holder: str,
    min_devices: int = 16,
    epsilon_budget: float | None = 10.0,
    clear_runs: bool = False,
    tell_budget: bool = False,
    simulation_seed: str = "",
) -> Membership:
    """Make a key on this device and register its public half.

    The coordinator is pinned by the fingerprint inside the token, the key holder
    by the one that its owner gave; neither is trusted on first use. Over TLS the
    token is sent only to whom the pinned coordinator vouched for.

    Args:
        home: The device's folder.
        url: The coordinator's address; ``https://``, or ``http://`` on this machine.
        token: What ``llmos device token`` printed.
        name: The name to join under.
        key_holder: The key holder's fingerprint, from its owner; empty without one.
        min_devices: Fewest devices in an opened sum that the owner accepts.
        epsilon_budget: Most ε over the life of the example store; None has no limit.
        clear_runs: Whether updates may be added in clear.
        tell_budget: Whether the coordinator is told what is left of the budget.
        simulation_seed: For simulated devices only.

    Raises:
        DataError: it has joined already.
        ConfigError: the token or name is malformed.
        CoordinatorUnavailable: nobody answers at ``url``.
        AccessDenied: the coordinator refused the token.
        WrongKey: coordinator or key holder are not who they should be.
    """
    if (home / FILE).exists():
        raise DataError(f"{home} has joined already; choose another --home")
    secret, _, coordinator_print = token.partition(".")
    problems = []
    if not topics.is_name(name):
        problems.append(f"--name: {name!r} must be 1 to 48 of a-z, 0-9 and inner hyphens")
    if not secret or not coordinator_print.startswith("LF1-"):
        problems.append("--token: not a join token; 'llmos device token' prints one")
    if key_holder and not key_holder.startswith("LF1-"):
        problems.append("--key-holder: not a fingerprint; 'llmos keyholder init' prints it")
    if problems:
        raise ConfigError(problems, source="options")
    context, authorities = None, ""
    if is_secured(url):
        _, authorities = fetch_authorities(url, coordinator=coordinator_print)
        context = client_context(authorities)
    identity = Identity.load_or_create(home / "identity.key")
    body = {"token": secret, "name": name, "public_key": format_public(identity.public)}
    if context is not None:
        body["request"] = identity.certificate_request(name)
    answered = ask(url, "POST", "/api/v1/devices/join", body=body, context=context)
    answer = read_answer(_Welcome, answered, url)
    if fingerprint(parse_public(answer.coordinator)) != coordinator_print:
        raise WrongKey("the coordinator that answers is not the one the token was made by")
    offered = answer.key_holder
    if key_holder and (not offered or fingerprint(parse_public(offered)) != key_holder):
        raise WrongKey("the coordinator works with another key holder than --key-holder names")
    membership = read(
        Membership,
        {
            "device": name,
            "coordinator": answer.coordinator,
            "key_holder": offered if key_holder else "",
            "broker_host": answer.broker_host,
            "broker_port": answer.broker_port,
            "url": url,
            "secured": context is not None,
            "min_devices": min_devices,
            "epsilon_budget": epsilon_budget,
            "clear_runs": clear_runs,
            "tell_budget": tell_budget,
            "simulation_seed": simulation_seed,
        },
        source="options",
    )
    if context is not None:
        keep_certificate(home, answer.certificate, authorities, name=name, key=identity.public)
    write_durably(home / FILE, membership.model_dump_json(indent=2).encode(), mode=0o600)
    return membership


def leave(home: Path) -> int:
    """Wipe everything in ``home``; gives how many files there were. Call with its lock held.

    Keys go first and are overwritten: whoever ends this in the middle leaves nothing that opens
    anything. A disk may keep what was overwritten all the same; encrypt it if that matters.

    Raises:
        ConfigError: no device lives there.
        StorageError: the disk refused; what is left can be wiped by asking again.
    """
    if not (home / FILE).exists():
        raise ConfigError([f"no device lives in {home}"], source="device")
    with disk_errors(home):
        files = [path for path in home.rglob("*") if path.is_file() or path.is_symlink()]
        secrets_first = sorted(
            files, key=lambda path: (path.suffix not in {".key", ".token"}, path)
        )
        for path in secrets_first:
            if path.parent == home and path.name in {FILE, "lock"}:
                continue
            if path.suffix in {".key", ".token"} and not path.is_symlink():
                path.write_bytes(bytes(path.stat().st_size))
                sync_folder(path)
            path.unlink()
        for folder in sorted((each for each in home.rglob("*") if each.is_dir()), reverse=True):
            folder.rmdir()
        # Last: with it, whoever asks again is told that a device lives there.
        (home / FILE).unlink(missing_ok=True)
        sync_folder(home)
    return len(files)


def set_budget(home: Path, **changes: float | bool | None) -> Membership:
    """Change what the owner allows; what was spent stays spent.

    The agent reads it when it starts: call this with the home's lock held.

    Args:
        home: The device's folder.
        changes: Of ``epsilon_budget``, ``delta`` and ``tell_budget``, those that are to change.

    Raises:
        ConfigError: it has not joined, or a number lies outside its domain.
        StorageError: the disk refused; the budget is as it was.
    """
    after = read(Membership, read_membership(home).model_dump() | changes, source="options")
    write_durably(home / FILE, after.model_dump_json(indent=2).encode(), mode=0o600)
    return after
