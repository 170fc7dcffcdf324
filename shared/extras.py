"""Heavy libraries arrive when they are used, and their absence becomes advice."""

from __future__ import annotations

import importlib
from types import ModuleType

from shared.errors import DependencyMissing


def require(module: str, *, extra: str) -> ModuleType:
    """Import ``module`` now, or say which extra brings it.

    A *broken* installation (the module is there but one of its own imports
    fails) is not mistaken for a missing one: that error passes through.

    Raises:
        DependencyMissing: ``module`` itself is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as err:
        if err.name is not None and (module == err.name or module.startswith(err.name + ".")):
            raise DependencyMissing(module, extra) from err
        raise
