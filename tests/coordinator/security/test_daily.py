"""New findings are raised once, whatever happens to the check, and nothing waits for it."""

from __future__ import annotations

import functools
import json
import threading
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from coordinator import process
from coordinator.audit.chain import Action, Entry
from coordinator.audit.log import AuditLog
from coordinator.security.daily import REMEMBERED, DailyCheck, LookInChild, raise_finding
from coordinator.security.findings import Finding
from coordinator.store.store import Store
from coordinator.watch.settings import Watching
from shared.crypto.identity import Identity
from shared.errors import ChildDied, StorageError
from tests.support.brokers import eventually
from tests.support.people import Told

OLD = Finding("backup-old", "backup", "the last one is 9 days old")
OPEN = Finding("secret-open", "admin.token", "its mode is 644, and not 600")


class Looking:
    """A check whose looks are given."""

    def __init__(self, home: Path, *looks: list[Finding]) -> None:
        self.looks = list(looks)
        self.raised: list[Finding] = []
        self.check = DailyCheck(
            home, look=lambda: self.looks.pop(0), raise_one=self.raised.append
        ).check


def test_a_finding_is_raised_when_it_is_new_and_when_it_comes_back(tmp_path: Path) -> None:
    """C2."""
    later = Finding(OLD.code, OLD.subject, "the last one is 10 days old")
    daily = Looking(tmp_path, [OLD], [later], [OPEN, later], [], [OLD])
    counts = []
    while daily.looks:
        daily.check()
        counts.append(len(daily.raised))
    assert counts == [1, 1, 2, 2, 3]
    assert daily.raised == [OLD, OPEN, OLD]


def test_what_was_raised_is_remembered_across_restarts(tmp_path: Path) -> None:
    Looking(tmp_path, [OLD]).check()
    again = Looking(tmp_path, [OLD, OPEN])
    again.check()
    assert again.raised == [OPEN]
    assert (tmp_path / REMEMBERED).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damaged", [b"\xff", b"{}", b"[1]", b'[["a"]]'])
def test_a_memory_that_was_damaged_is_as_good_as_none(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / REMEMBERED).write_bytes(damaged)
    daily = Looking(tmp_path, [OLD])
    daily.check()
    assert daily.raised == [OLD]


def test_what_could_not_be_raised_is_raised_the_next_time(tmp_path: Path) -> None:
    """C3."""
    book = Told()
    book.full = True
    check = DailyCheck(tmp_path, look=lambda: [OLD], raise_one=lambda f: raise_finding(f, book))
    with pytest.raises(StorageError):
        check.check()
    book.full = False
    check.check()
    assert [entry.subject for entry in book.entries] == ["backup"]


def test_it_is_raised_as_a_record_and_a_line() -> None:
    book = Told()
    with capture_logs() as lines:
        raise_finding(OPEN, book)
        raise_finding(Finding("key-old", "ke\ny" * 99, "old"), book)
    assert book.entries[0] == Entry(
        Action.SECURITY_FINDING,
        "coordinator",
        "admin.token",
        {"code": "secret-open", "severity": "critical"},
    )
    assert [(line["event"], line["finding"], line["log_level"]) for line in lines] == [
        ("security.finding", "secret-open", "error"),
        ("security.finding", "key-old", "warning"),
    ]


@pytest.mark.parametrize("failure", [ChildDied("gone"), ZeroDivisionError()])
def test_whatever_becomes_of_a_check_the_next_one_comes(tmp_path: Path, failure: Exception) -> None:
    """C1."""
    given: list[Exception | list[Finding]] = [failure, [OLD]]
    looks, raised = iter(given), threading.Event()

    def look() -> list[Finding]:
        what = next(looks, [OLD])
        if isinstance(what, Exception):
            raise what
        return what

    daily = DailyCheck(
        tmp_path, look=look, raise_one=lambda _: raised.set(), first_s=0.0, every_s=0.01
    )
    with capture_logs() as lines:
        daily.start()
        assert raised.wait(60)
        daily.close()
    assert lines[0]["event"] == "security.not_checked"


def test_closing_ends_a_look_and_nothing_of_it_is_raised(tmp_path: Path) -> None:
    begun, stopped = threading.Event(), threading.Event()
    raised: list[Finding] = []

    def look() -> list[Finding]:
        begun.set()
        stopped.wait(60)
        return [OLD]

    daily = DailyCheck(
        tmp_path, look=look, raise_one=raised.append, stop_looking=stopped.set, first_s=0.0
    )
    daily.start()
    assert begun.wait(60)
    daily.close()
    assert raised == []
    assert not (tmp_path / REMEMBERED).exists()


def test_one_that_was_never_due_closes_at_once(tmp_path: Path) -> None:
    daily = DailyCheck(tmp_path, look=list, raise_one=lambda _: None)
    daily.start()
    daily.close()


@pytest.mark.processes
def test_the_child_finds_what_is_to_be_acted_on(tmp_path: Path) -> None:
    (tmp_path / "admin.token").write_text("short")
    (tmp_path / "admin.token").chmod(0o644)
    found = LookInChild(tmp_path, store_at="")()
    assert {finding.code for finding in found} >= {"secret-open", "admin-token-weak"}
    assert all(finding.is_to_be_acted_on for finding in found)
    json.dumps([finding.to_json() for finding in found])


@pytest.mark.processes
def test_in_a_coordinator_what_is_new_is_in_its_audit_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "DailyCheck", functools.partial(DailyCheck, first_s=0.0))
    identity = Identity.create(tmp_path / "identity.key")
    (tmp_path / "admin.token").write_text("short")

    def found() -> list[tuple[str, object]]:
        records = audit.page(after=0, limit=100)
        return [
            (one.entry.subject, one.entry.facts["code"])
            for one in records
            if one.entry.action is Action.SECURITY_FINDING
        ]

    with (
        AuditLog(tmp_path / "audit", identity) as audit,
        closing(Store(f"sqlite:///{tmp_path / 'store.db'}", tmp_path)) as store,
        process._watched(Watching(), tmp_path, store, audit) as watch,
        process._checked_daily(tmp_path, "", audit, watch),
    ):
        assert eventually(lambda: ("admin.token", "admin-token-weak") in found(), within_s=300)
        assert eventually((tmp_path / REMEMBERED).exists, within_s=300)
        assert eventually(
            lambda: "admin-token-weak" in {each.subject for each in store.alarms.alarms(limit=99)}
        )
    assert len(found()) == len(set(found()))
