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

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "demo": ("sim.commands:demo", "The whole story on this machine, offline"),
    "sim": ("sim.commands:sim", "Simulate a fleet: sim run SCENARIO"),
    "audit": ("sim.audit.commands:audit", "Look for leaks: audit leak SCENARIO"),
    "bench": ("sim.bench.commands:bench", "Measurements: bench edge"),
    "up": ("coordinator.commands:up", "Start a coordinator with its broker"),
    "run": ("coordinator.commands:run", "Federated runs: submit, ls, show, logs, stop"),
    "device": ("coordinator.commands:device", "The fleet: token, ls"),
    "key": ("coordinator.commands:key", "Keys for the language model's API: add, ls, revoke"),
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
"""Name → where its Typer application is, and one line of help."""


class LazyGroup(click.Group):
    """Lists commands from the table and imports one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one sub-command."""
        entry = COMMANDS.get(cmd_name)
        return _loaded(entry[0], cmd_name) if entry is not None else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table; nothing is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


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
    "audit": "sim",
    "bench": "sim",
    "up": "coordinator",
    "run": "coordinator",
    "device": "coordinator",
    "key": "coordinator",
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
