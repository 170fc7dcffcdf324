"""Commands for whoever holds the keys: ``llmos keyholder``."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

keyholder = typer.Typer(help="For whoever holds the keys.", no_args_is_help=True)

Home = Annotated[Path, typer.Option(envvar="LLMOS_KEYHOLDER_HOME", help="The key holder's folder.")]
DEFAULT_HOME = Path("~/.llmos/key-holder")


@keyholder.command("init")
def init(
    home: Home = DEFAULT_HOME,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Make the key holder's identity and print what others need to know of it."""
    from shared.crypto.identity import Identity, fingerprint, format_public

    identity = Identity.load_or_create(home.expanduser() / "identity.key")
    facts = {
        "public_key": format_public(identity.public),
        "fingerprint": fingerprint(identity.public),
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"for the coordinator:  llmos up --key-holder {facts['public_key']}")
    typer.echo(f"for every device:     llmos edge join … --key-holder {facts['fingerprint']}")


@keyholder.command("run")
def run(
    coordinator: Annotated[str, typer.Option(help="The coordinator's public key.")],
    url: Annotated[
        str, typer.Option(help="The coordinator's address, https://…; it names the broker.")
    ] = "",
    broker: Annotated[
        str, typer.Option(help="HOST:PORT of a broker on this machine, without TLS.")
    ] = "",
    min_devices: Annotated[
        int, typer.Option(min=2, help="Fewest devices in a sum that is opened.")
    ] = 16,
    home: Home = DEFAULT_HOME,
) -> None:
    """Hold keys: open sums over enough approved devices, and nothing else."""
    from shared.actors import ActorLoop
    from shared.config import parse_address
    from shared.crypto.identity import Identity, fingerprint, parse_public
    from shared.crypto.sum_worker import SumWorker
    from shared.enrolment import Enrolled, kept_credentials
    from shared.errors import ConfigError
    from shared.key_holder.holder import KeyHolder
    from shared.logs import set_up_logs
    from shared.service import announced_ready, home_lock, serve
    from shared.transport.mqtt import MqttTransport
    from shared.wire.envelope import Post
    from shared.wire.topics import KEY_HOLDER

    set_up_logs(as_json=not sys.stderr.isatty())
    home = home.expanduser()
    if bool(url) == bool(broker):
        raise ConfigError(["give either --url or --broker"], source="options")
    place = parse_address(broker) if broker else None
    trusted = parse_public(coordinator)
    with ExitStack() as stack:
        stack.enter_context(home_lock(home))
        identity = Identity.load_or_create(home / "identity.key")
        credentials = None
        if place is None:
            enrolled = Enrolled(home, url, fingerprint(trusted), KEY_HOLDER)
            answer = enrolled.renew()
            place = answer.broker_host, answer.broker_port
            credentials = stack.enter_context(kept_credentials(enrolled))
        transport = MqttTransport(
            *place, f"key-holder-{fingerprint(identity.public)}", credentials=credentials
        )
        loop, adder = ActorLoop(), SumWorker()
        stack.callback(adder.close)
        holder = KeyHolder(
            home,
            transport=transport,
            post=Post(identity, home),
            coordinator=trusted,
            min_devices=min_devices,
            bench=loop,
            adder=adder,
        )
        stack.enter_context(announced_ready(home, {"key_holder": fingerprint(identity.public)}))
        serve(holder, transport, loop)


@keyholder.command("approve")
def approve(name: str, public_key: str, home: Home = DEFAULT_HOME) -> None:
    """Count this device's contributions from now on ('llmos edge status' prints its key)."""
    from shared.crypto.identity import parse_public
    from shared.key_holder.approvals import Approvals

    Approvals(home.expanduser() / "approvals.json").approve(name, parse_public(public_key))
    typer.echo(f"approved {name}")


@keyholder.command("withdraw")
def withdraw(name: str, home: Home = DEFAULT_HOME) -> None:
    """Count this device's contributions no more."""
    from shared.key_holder.approvals import Approvals

    Approvals(home.expanduser() / "approvals.json").withdraw(name)
    typer.echo(f"withdrew {name}")


@keyholder.command("log")
def log(
    home: Home = DEFAULT_HOME,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Show every sum that was opened."""
    path = home.expanduser() / "openings.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError:  # torn by a power cut: the opening's record was written again after it
            typer.echo(f"{path}, line {number}: not whole", err=True)
    if as_json:
        typer.echo(json.dumps(records))
        return
    for record in records:
        typer.echo(
            f"{record['at']}  {record['run']} round {record['round']}: "
            + "; ".join(
                f"{len(group['devices'])} devices ({', '.join(group['devices'])})"
                for group in record["groups"]
            )
        )
