"""Options that all commands on a device share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

DEFAULT_HOME: Final = Path("~/.llmos/edge")

Home = Annotated[Path, typer.Option(envvar="LLMOS_EDGE_HOME", help="The device's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
