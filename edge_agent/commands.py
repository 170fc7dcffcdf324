"""Commands on a device: ``llmos edge``."""

from __future__ import annotations

import json
import math
import socket
import sys
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import typer

from edge_agent.inference.commands import inference
from edge_agent.options import DEFAULT_HOME, AsJson, Home

if TYPE_CHECKING:
    from shared.enrolment import Enrolled

edge = typer.Typer(help="On a device.", no_args_is_help=True)
data = typer.Typer(help="The device's own examples.", no_args_is_help=True)
budget = typer.Typer(help="What participation has cost in privacy.", no_args_is_help=True)
edge.add_typer(data, name="data")
edge.add_typer(budget, name="budget")
edge.add_typer(inference)


@edge.command("join")
def join_fleet(
    url: Annotated[str, typer.Argument(help="The coordinator's address.")],
    token: Annotated[
        str,
        typer.Option(
            envvar="LLMOS_JOIN_TOKEN",
            help="What 'llmos device token' printed; other users of the machine see options.",
        ),
    ],
    key_holder: Annotated[
        str, typer.Option(help="The key holder's fingerprint, from its owner.")
    ] = "",
    name: Annotated[str, typer.Option(help="The device's name; else the host's.")] = "",
    min_devices: Annotated[
        int, typer.Option(min=2, help="Fewest devices whose sum may be opened.")
    ] = 16,
    epsilon: Annotated[
        float, typer.Option(min=0.01, help="Privacy budget over the life of the examples.")
    ] = 10.0,
    tell_budget: Annotated[
        bool,
        typer.Option(
            "--tell-budget",
            help="Let the coordinator, and whoever listens on the broker, know what is left of it.",
        ),
    ] = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Make a key on this device and join a coordinator."""
    from edge_agent.membership import join

    membership = join(
        home.expanduser(),
        url,
        token,
        name=name or socket.gethostname().split(".")[0].lower(),
        key_holder=key_holder,
        min_devices=min_devices,
        epsilon_budget=epsilon,
        tell_budget=tell_budget,
    )
    typer.echo(f"joined as {membership.device}; start with 'llmos edge run'")


@edge.command("run")
def run(
    port: Annotated[
        int, typer.Option(help="Of the local API on loopback; 0 finds a free one.")
    ] = 0,
    home: Home = DEFAULT_HOME,
) -> None:
    """Take part: answer questions, train when asked, within the owner's budget."""
    from edge_agent.agent import Agent, Trust
    from edge_agent.api.app import create_app
    from edge_agent.api.server import served
    from edge_agent.api.token import api_token
    from edge_agent.conditions import MIB, Sensors, read_conditions
    from edge_agent.coordinator_link import CoordinatorLink
    from edge_agent.inference.answering import Answerer
    from edge_agent.inference.installed import Installation
    from edge_agent.membership import read_membership
    from edge_agent.participate import Home as DeviceHome
    from edge_agent.participate import Owner
    from edge_agent.training.trainer import ChildTrainer
    from shared.actors import ActorLoop
    from shared.crypto.identity import Identity, parse_public
    from shared.enrolment import kept_credentials
    from shared.logs import set_up_logs
    from shared.loopback import LOOPBACK
    from shared.service import announced_ready, home_lock, serve
    from shared.transport.mqtt import MqttTransport
    from shared.types import DeviceId
    from shared.wire.envelope import Post

    set_up_logs(as_json=not sys.stderr.isatty())
    home = home.expanduser()
    membership = read_membership(home)
    with ExitStack() as stack:
        stack.enter_context(home_lock(home))
        identity = Identity.load(home / "identity.key")
        enrolled = membership.enrolled(home)
        credentials = stack.enter_context(kept_credentials(enrolled)) if enrolled else None
        transport = MqttTransport(
            membership.broker_host,
            membership.broker_port,
            f"device-{membership.device}",
            credentials=credentials,
            patient=True,  # questions are answered here, whether or not anybody else answers
        )
        loop = ActorLoop()
        conditions = read_conditions(home)
        limits = conditions.training
        seed = bytes.fromhex(membership.simulation_seed) if membership.simulation_seed else None
        holder = membership.key_holder
        agent = Agent(
            DeviceHome(home),
            owner=Owner(
                DeviceId(membership.device),
                membership.budget,
                membership.delta,
                simulation_seed=seed,
                tells_budget=membership.tell_budget,
            ),
            trust=Trust(
                coordinator=parse_public(membership.coordinator),
                key_holder=parse_public(holder) if holder else None,
                min_devices=membership.min_devices,
                clear_runs=membership.clear_runs,
            ),
            transport=transport,
            post=Post(identity, home),
            trainer=ChildTrainer(
                memory_limit_bytes=limits.memory_mib * MIB,
                nice=limits.nice,
                deadline_s=limits.deadline_s,
            ),
            bench=loop,
            unmet=Sensors(home, conditions).unmet,
        )
        answerer = Answerer(
            Installation(home).current, home, ask_coordinator=CoordinatorLink(agent, loop)
        )
        listening = stack.enter_context(served(create_app(answerer, token=api_token(home)), port))
        facts = {"device": membership.device, "url": f"http://{LOOPBACK}:{listening}"}
        stack.enter_context(announced_ready(home, facts))
        structlog.get_logger().info("edge.ready", **facts)
        serve(agent, transport, loop)


@edge.command("leave")
def leave_fleet(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Wipe this device: keys, examples, ledger, models, and what waits to be sent."""
    from edge_agent.membership import leave, read_membership
    from shared.errors import ConfigError, LlmOsError
    from shared.service import home_lock

    home = home.expanduser()
    try:
        name = read_membership(home).device
    except LlmOsError:  # damaged, or wiped in part; it is to go all the same
        name = "NAME"
    if not yes and not sys.stdin.isatty():
        raise ConfigError(["--yes: is missing, and nobody is there to be asked"], source="options")
    question = f"Wipe {home}, with every example in it? What its ledger knows of ε goes with it"
    if not yes and not typer.confirm(question):
        raise typer.Exit(1)
    with home_lock(home):
        wiped = leave(home)
    typer.echo(
        f"wiped {wiped} files in {home}; the coordinator's operator shuts the key out with "
        f"'llmos device revoke {name}', the key holder's with 'llmos keyholder withdraw {name}'"
    )


def _certificate_until(enrolled: Enrolled | None) -> str:
    """Of the device's certificate; empty where it has none."""
    from datetime import UTC, datetime

    from shared.errors import StorageError

    if enrolled is None:
        return ""
    try:
        ends = enrolled.certified().expires_at
    except StorageError:
        return "damaged"
    return datetime.fromtimestamp(ends, UTC).isoformat(timespec="minutes")


@edge.command("status")
def status(home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """Show who this device is, what it has and what waits to be sent."""
    from edge_agent.examples import ExampleStore
    from edge_agent.membership import read_membership
    from edge_agent.outbox import Outbox
    from edge_agent.participate import Home as DeviceHome
    from shared.crypto.identity import Identity, fingerprint, format_public

    paths = DeviceHome(home.expanduser())
    membership = read_membership(paths.folder)
    identity = Identity.load(paths.folder / "identity.key")
    facts = {
        "device": membership.device,
        "public_key": format_public(identity.public),
        "fingerprint": fingerprint(identity.public),
        "coordinator": membership.url,
        "broker": f"{membership.broker_host}:{membership.broker_port}",
        "certificate_until": _certificate_until(membership.enrolled(paths.folder)),
        "examples": ExampleStore(paths.examples).count,
        "updates_waiting": len(Outbox(paths.outbox).waiting()),
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        typer.echo(f"{name.replace('_', ' ')}: {value}")


@edge.command("conditions")
def show_conditions(home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """Show what this device reads of itself, and which of its owner's conditions do not hold."""
    from dataclasses import asdict

    from edge_agent.conditions import FILE, Sensors, read_conditions

    home = home.expanduser()
    conditions = read_conditions(home)
    sensors = Sensors(home, conditions)
    readings, unmet = asdict(sensors.readings()), sensors.unmet()
    pinned = conditions.pinned.model_dump(exclude_none=True)
    if as_json:
        asked = conditions.model_dump(exclude={"pinned"})
        facts = {"readings": readings, "asked": asked, "pinned": pinned, "unmet": unmet}
        typer.echo(json.dumps(facts))
        return
    for name, value in readings.items():
        shown = f"{value:.0f}" if isinstance(value, float) else value
        shown = "cannot be read" if value is None else shown
        typer.echo(f"{name.replace('_', ' ')}: {shown}{' (pinned)' if name in pinned else ''}")
    for name, sentence in unmet.items():
        typer.echo(f"takes no part: {name}: {sentence}")
    if not unmet:
        typer.echo(f"takes part; {FILE} in its folder says when it does not")


@data.command("add")
def add_data(
    file: Annotated[Path, typer.Argument(help="A .csv or .jsonl file.")],
    text_column: Annotated[str, typer.Option()] = "text",
    label_column: Annotated[str, typer.Option()] = "label",
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Add labelled examples. They never leave this device."""
    from edge_agent.examples import ExampleStore
    from edge_agent.participate import Home as DeviceHome
    from shared.data_files import read_examples

    examples = read_examples(file, text_column=text_column, label_column=label_column)
    store = ExampleStore(DeviceHome(home.expanduser()).examples)
    added = store.add(examples)
    if as_json:
        facts = {"new": added.new, "duplicates": added.duplicates, "total": store.count}
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"added {added.new} examples ({added.duplicates} were there already)")


class Accountant(StrEnum):
    """How ε is computed from what was released."""

    RDP = "rdp"
    PRV = "prv"


@budget.command("show")
def show_budget(
    accountant: Annotated[
        Accountant,
        typer.Option(
            help="rdp is what the budget is held against; prv is Opacus', tighter (extra 'train')."
        ),
    ] = Accountant.RDP,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Show what all runs so far have cost, and what the owner allows."""
    _tell_budget(home.expanduser(), as_json=as_json, accountant=accountant)


@budget.command("set")
def change_budget(
    epsilon: Annotated[
        float | None, typer.Option(min=0.01, help="Most ε over the life of the examples.")
    ] = None,
    unlimited: Annotated[
        bool, typer.Option("--unlimited", help="No limit; also allows runs without noise.")
    ] = False,
    delta: Annotated[float | None, typer.Option(help="The δ at which it is meant.")] = None,
    tell: Annotated[
        bool | None,
        typer.Option(
            "--tell/--keep",
            help="Whether the coordinator, and whoever listens on the broker, know what is left.",
        ),
    ] = None,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Change the budget; what was spent stays spent. The agent must not run meanwhile."""
    from edge_agent.membership import read_membership, set_budget
    from shared.errors import ConfigError
    from shared.service import home_lock

    if unlimited and epsilon is not None:
        raise ConfigError(["give either --epsilon or --unlimited"], source="options")
    changes: dict[str, float | bool | None] = {}
    if unlimited or epsilon is not None:
        changes["epsilon_budget"] = epsilon
    changes |= {"delta": delta} if delta is not None else {}
    changes |= {"tell_budget": tell} if tell is not None else {}
    if not changes:
        raise ConfigError(
            ["give --epsilon or --unlimited, --delta, --tell or --keep"], source="options"
        )
    home = home.expanduser()
    read_membership(home)  # or the lock would make a folder for a device that has not joined
    with home_lock(home):
        set_budget(home, **changes)
    _tell_budget(home, as_json=as_json)


def _tell_budget(home: Path, *, as_json: bool, accountant: Accountant = Accountant.RDP) -> None:
    from edge_agent.membership import read_membership
    from edge_agent.participate import Home as DeviceHome
    from shared.privacy.ledger import Ledger

    paths = DeviceHome(home)
    membership, ledger = read_membership(paths.folder), Ledger(paths.ledger, repair=False)
    delta, allowed = membership.delta, membership.epsilon_budget
    if accountant is Accountant.PRV:
        from edge_agent.prv import epsilon_prv

        released = [fact for charge in ledger.charges() for fact in charge.facts]
        spent = alone = epsilon_prv(released, delta=delta)
    else:
        spent, alone = ledger.epsilon(delta), ledger.epsilon_alone(delta)
    if as_json:
        facts = {
            "accountant": accountant,
            "epsilon": spent if math.isfinite(spent) else None,
            "epsilon_alone": alone if math.isfinite(alone) else None,
            "delta": delta,
            "budget": allowed,
            "told": membership.tell_budget,
            "charges": len(ledger.charges()),
        }
        typer.echo(json.dumps(facts))
        return
    limit = f"of {allowed:g}" if allowed is not None else "without a limit"
    typer.echo(f"ε = {spent:.3f} {limit} at δ = {delta:g}, over {len(ledger.charges())} charges")
    if alone > spent:
        typer.echo(
            f"Noise was shared with other devices: against the key holder, or all of them together, "
            f"this device's own noise comes to ε = {alone:.3f}"
        )
