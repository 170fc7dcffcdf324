"""The token that callers of the local API show; whoever can read the file is the owner."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from shared.service import secret_token

TOKEN: Final = "api.token"  # noqa: S105 - a file's name


def api_token(home: Path) -> str:
    """Return the token in ``home``; made at first use, for the owner's eyes only.

    Raises:
        StorageError: the disk refused.
    """
    return secret_token(home / TOKEN)
