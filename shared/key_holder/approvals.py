"""The devices whose contributions the key holder counts; its own operator's list.

Never the coordinator's: a coordinator that could name the devices could invent
all but one of them, and a "sum" over them would be that one device's update.
"""

from __future__ import annotations

import json
from pathlib import Path

from shared.errors import DataError, StorageError
from shared.files import write_durably
from shared.types import PublicKey
from shared.wire import topics


class Approvals:
    """Public keys by device name, in one file that is read anew at every use."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[PublicKey, str]:
        """Names by public key.

        Raises:
            StorageError: the file is damaged or not ours; nothing counts as approved then.
        """
        try:
            by_name = json.loads(self._path.read_text(encoding="utf-8"))
            return {PublicKey(bytes.fromhex(key)): name for name, key in by_name.items()}
        except FileNotFoundError:
            return {}
        except OSError as err:
            raise StorageError(f"cannot read {self._path}: {err.strerror}") from err
        except (ValueError, AttributeError, TypeError) as err:
            raise StorageError(f"{self._path} is damaged; approve the devices again") from err

    def approve(self, name: str, key: PublicKey) -> None:
        """Count this device from now on.

        Raises:
            DataError: not a name, or the name or key belongs to another entry.
        """
        if not topics.is_name(name):
            raise DataError(f"{name!r} is not a device name: 1 to 48 of a-z, 0-9 and hyphens")
        approved = self.read()
        if approved.get(key) == name:
            return
        if key in approved or name in approved.values():
            raise DataError(f"{name}, or this key, is approved already under another name or key")
        approved[key] = name
        self._write(approved)

    def withdraw(self, name: str) -> None:
        """Count this device no more. Raises DataError if it was not approved."""
        approved = self.read()
        left = {key: known for key, known in approved.items() if known != name}
        if len(left) == len(approved):
            raise DataError(f"no device named {name} is approved")
        self._write(left)

    def _write(self, approved: dict[PublicKey, str]) -> None:
        by_name = {name: key.hex() for key, name in sorted(approved.items(), key=lambda kv: kv[1])}
        write_durably(self._path, json.dumps(by_name, indent=2).encode(), mode=0o600)
