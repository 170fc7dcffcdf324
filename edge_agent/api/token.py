"""The token that callers of the local API show; whoever can read the file is the owner."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

from shared.files import write_durably

TOKEN: Final = "api.token"  # noqa: S105 - a file's name


def api_token(home: Path) -> str:
    """Return the token in ``home``; made at first use, for the owner's eyes only.

    Raises:
        StorageError: the disk refused.
    """
    path = home / TOKEN
    # An empty file, left by a full disk elsewhere, would let an empty token in.
    if not path.exists() or not path.read_text(encoding="ascii").strip():
        write_durably(path, secrets.token_urlsafe(32).encode(), mode=0o600)
    return path.read_text(encoding="ascii").strip()
