"""The one command, ``llmos``: a table of sub-commands that load when they are called.

``llmos --help`` reads this table only, so it answers at once and works with
whichever extras are installed.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final

import click

from shared.errors import DependencyMissing, LlmOsError

Table = dict[str, tuple[str, str]]
"""Name → where its Typer application is, and one line of help."""

COMMANDS: Final[Table] = {
    "demo": ("sim.commands:demo", "The whole story on this machine, offline"),
    "sim": ("sim.commands:sim", "Simulate a fleet: sim run SCENARIO"),
    "audit": ("", "Log, installation, models: audit verify, show, security, leak"),
    "bench": ("sim.bench.commands:bench", "Measurements: bench edge"),
    "up": ("coordinator.commands:up", "Start a coordinator with its broker"),
    "run": ("coordinator.commands:run", "Federated runs: submit, ls, show, logs, stop"),
    "device": (
        "coordinator.commands:device",
        "The fleet: token, ls, show, quarantine, release, revoke",
    ),
    "key": (
        "coordinator.commands:key",
        "Keys for the HTTP API: add, ls, rotate, quarantine, revoke",
    ),
    "people": (
        "coordinator.people.commands:people",
        "Who can log in: ls, invite, link, role, disable",
    ),
    "alarms": ("coordinator.watch.commands:alarms", "What the rules found: ls, acknowledge"),
    "backup": ("coordinator.store.commands:backup", "A coordinator into one file"),
    "restore": ("coordinator.store.commands:restore", "A coordinator out of such a file"),
    "model": (
        "coordinator.registry.commands:model",
        "The registry: import, make-tiny, make-reader, ls, show",
    ),
    "edge": (
        "edge_agent.commands:edge",
        "On a device: join, run, ask, data, label, calibrate, doctor",
    ),
    "keyholder": ("shared.key_holder.commands:keyholder", "For whoever holds the keys"),
}
"""What has no place is a group with a table of its own in ``GROUPS``."""

GROUPS: Final[dict[str, Table]] = {
    "audit": {
        "verify": ("coordinator.audit.commands:verify", "Is the coordinator's audit log whole?"),
        "show": ("coordinator.audit.commands:show", "Who did what to the coordinator"),
        "export": ("coordinator.audit.commands:export", "The audit log as JSON lines"),
        "checkpoint": ("coordinator.audit.commands:checkpoint", "A line for an auditor to keep"),
        "security": (
            "coordinator.security.commands:security",
            "Is this installation safe, and what is to be done?",
        ),
        "leak": ("sim.audit.commands:leak", "Look for leaks: audit leak SCENARIO"),
    },
}
"""Groups whose commands live in several packages, so that none of these has to know another."""


class LazyGroup(click.Group):
    """Lists commands from a table and imports one when it is used."""

    def __init__(self, *args: Any, table: Table = COMMANDS, **options: Any) -> None:
        super().__init__(*args, **options)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one sub-command."""
        if self.table is COMMANDS and cmd_name in GROUPS:
            summary = COMMANDS[cmd_name][1]
            return LazyGroup(
                cmd_name, table=GROUPS[cmd_name], help=f"{summary}.", no_args_is_help=True
            )
        entry = self.table.get(cmd_name)
        return _loaded(entry[0], cmd_name) if entry is not None else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table; nothing is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self.table.items()])


def _loaded(place: str, name: str) -> click.Command:
    import typer

    module, _, attribute = place.partition(":")
    try:
        application = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as err:
        raise DependencyMissing(err.name or module, _EXTRA[name]) from err
    command: Any = typer.main.get_command(application)
    command.name = name
    return command  # type: ignore[no-any-return]


_EXTRA: Final = {
    "demo": "demo",
    "sim": "sim",
    "verify": "coordinator",
    "show": "coordinator",
    "export": "coordinator",
    "checkpoint": "coordinator",
    "security": "coordinator",
    "leak": "sim",
    "bench": "sim",
    "up": "coordinator",
    "run": "coordinator",
    "device": "coordinator",
    "key": "coordinator",
    "people": "coordinator",
    "alarms": "coordinator",
    "backup": "coordinator",
    "restore": "coordinator",
    "model": "coordinator",
    "edge": "edge",
    "keyholder": "crypto",
}


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="llmos", prog_name="llmos")
def llmos() -> None:
    """One private AI computer out of a GPU server and many devices."""


def main() -> None:
    """Run the command line; errors of ours are one sentence and exit code 1."""
    try:
        code = llmos.main(standalone_mode=False)
    except LlmOsError as err:
        click.echo(f"llmos: {err}", err=True)
        sys.exit(1)
    except click.exceptions.Abort:
        click.echo("llmos: interrupted", err=True)
        sys.exit(130)
    except click.ClickException as err:
        err.show()
        sys.exit(err.exit_code)
    except click.exceptions.Exit as err:
        sys.exit(err.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
