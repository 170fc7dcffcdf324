"""People over a store of their own, on a clock that is set."""

from __future__ import annotations

from pathlib import Path

from coordinator.api.roles import ROLES_OF_PEOPLE
from coordinator.audit.chain import Entry
from coordinator.people.passwords import Passwords
from coordinator.people.people import LoggedIn, People
from coordinator.store.store import Store
from shared.errors import StorageError
from tests.support.brokers import eventually

PASSWORD = "a sentence of my own"  # noqa: S105  a test's own
HERE = "10.0.0.1"
CHEAP = Passwords(memory_kib=8, rounds=1)


class Told:
    """An audit log in memory, on a disk that may be full."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.full = False

    def record(self, entry: Entry) -> int:
        if self.full:
            raise StorageError("the disk is full")
        self.entries.append(entry)
        return len(self.entries)

    @property
    def short(self) -> list[tuple[str, str, str]]:
        """Actor, action and subject of each."""
        return [(entry.actor, str(entry.action), entry.subject) for entry in self.entries]


class Accounts:
    """People, their store and what was written down."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.told = Told()
        self.folder = folder
        self.store = Store(f"sqlite:///{folder / 'store.db'}", folder)
        self.people = self.again()

    def again(self) -> People:
        """People over the same store, who remember nothing else."""
        return People(
            self.store.people,
            roles=ROLES_OF_PEOPLE,
            audit=self.told,
            passwords=CHEAP,
            now=lambda: self.now,
            monotonic=lambda: self.now,
        )

    def close(self) -> None:
        self.people.close()
        self.store.close()

    def log_in(self, name: str, password: str = PASSWORD, address: str = HERE) -> LoggedIn:
        return self.people.log_in(name, password, address=address).result(60)

    def enter(self, link: str, name: str, password: str = PASSWORD) -> LoggedIn:
        return self.people.enter(link, name, password, address=HERE).result(60)

    def add(self, name: str, role: str = "viewer") -> LoggedIn:
        """Somebody with an account, who is logged in."""
        return self.enter(self.people.invite(name, role).secret, name)

    def noted(self) -> None:
        """Wait until what is done beside requests is done."""
        assert eventually(lambda: not self.people._noting)
