"""Failed logins are written down, and strangers cannot fill the disk with them."""

from __future__ import annotations

from coordinator.audit.chain import Action, Entry
from coordinator.people.failures import AT_ONCE, EACH_S, FailedLogins


class Remembers:
    """A log in memory."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def record(self, entry: Entry) -> int:
        self.entries.append(entry)
        return len(self.entries)


def test_in_a_flood_some_are_written_down_and_of_the_rest_how_many() -> None:
    now = 0.0
    told = Remembers()
    failed = FailedLogins(told, monotonic=lambda: now)
    for _ in range(AT_ONCE + 1000):
        failed.record("anna", by="password")
    assert len(told.entries) == AT_ONCE
    assert set(map(repr, told.entries)) == {
        repr(Entry(Action.LOGIN_FAILED, "stranger", "anna", {"by": "password"}))
    }
    now = EACH_S
    for _ in range(3):
        failed.record("", by="link")
    assert told.entries[AT_ONCE:] == [
        Entry(Action.LOGIN_FAILED, "stranger", "", {"by": "link", "left_out": 1000})
    ]
    now = 10 * EACH_S
    failed.record("", by="link")
    failed.record("", by="link")
    assert [entry.facts.get("left_out") for entry in told.entries[AT_ONCE + 1 :]] == [2, None]
