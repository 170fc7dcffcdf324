"""S1 to S3: whatever happens to the coordinator is in its log, and nothing that did not happen."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.audit.audited_store import AuditedStore, Written, catch_up
from coordinator.audit.chain import Action, Entry
from coordinator.audit.sink import NoAudit, acting, recorded
from coordinator.audit.verify import LOG, records_of
from coordinator.federation.rounds import (
    AdapterApplied,
    Invited,
    Planned,
    RoundFailed,
    SumOpened,
    Transition,
)
from coordinator.store.people import Person
from coordinator.store.store import ApiKey, Store
from shared.crypto.sum_worker import SumWorker
from shared.errors import AccessDenied, DataError, StorageError
from shared.types import DeviceId, Digest, PublicKey, RoundNumber
from tests.support.audited import DEEDS, DEVICE, DEVICE_KEY, KEY, PLAN, RUN, Refuses, Trail, die_in
from tests.support.coordination import RUN as TRIAL
from tests.support.coordination import World

DIGEST = Digest("d" * 64)
ALL = [
    ("admin", "token-made", ""),
    ("device:kitchen", "device-joined", "kitchen"),
    ("admin", "key-made", "notes"),
    ("admin", "key-rotated", "notes"),
    ("admin", "key-quarantined", "notes"),
    ("admin", "key-released", "notes"),
    ("admin", "key-revoked", "notes"),
    ("admin", "run-submitted", "run"),
    ("coordinator", "run-stopped", "run"),
]
"""What is told of all deeds."""
PASSED = ("token-made", "key-rotated", "key-quarantined", "key-released")


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[Trail]:
    trail = Trail(tmp_path)
    yield trail
    trail.kill()


@pytest.fixture(autouse=True)
def _as_admin() -> Iterator[None]:
    token = acting.set("admin")
    yield
    acting.reset(token)


def open_store(trail: Trail) -> AuditedStore:
    return trail.open(f"sqlite:///{trail.folder / 'store.db'}", trail.folder)


def facts_of(trail: Trail, action: Action) -> list[dict[str, object]]:
    return [
        dict(record.entry.facts)
        for record in records_of(trail.folder / "audit" / LOG)
        if record.entry.action is action
    ]


def full_disk(store: AuditedStore) -> Refuses:
    refuses = Refuses(store._audit)
    store._audit = refuses
    refuses.full = True
    return refuses


def test_everything_is_written_down_with_who_did_it(trail: Trail) -> None:
    with closing(open_store(trail)) as store:
        for do in DEEDS.values():
            do(store)
    assert trail.told() == ALL
    (made,) = facts_of(trail, Action.KEY_MADE)
    assert made == {"begins": "llmos_abcdef", "expires_at": 99}
    (submitted,) = facts_of(trail, Action.RUN_SUBMITTED)
    assert submitted["epsilon"] == "infinite"
    assert (submitted["noise"], submitted["scheme"], submitted["simulation"]) == (
        "none",
        "clear",
        True,
    )
    with closing(open_store(trail)):
        assert trail.caught_up == [0, 0]
    assert trail.told() == ALL


def test_a_round_is_written_down_without_what_single_devices_did(trail: Trail) -> None:
    with closing(open_store(trail)) as store:
        DEEDS["add run"](store)
        first, second = RoundNumber(1), RoundNumber(2)
        result = AdapterApplied(DIGEST, True, "", {"": 0.5}, 0.7, DIGEST, saturated=0.25)
        steps: list[tuple[RoundNumber, Transition]] = [
            (first, Planned(DIGEST)),
            (first, Invited(("attic", "kitchen"), 2.0)),
            (first, SumOpened(DIGEST, 2)),
            (first, result),
            (second, RoundFailed("\x00" + "long" * 99, "of a peer")),
        ]
        for number, transition in steps:
            store.commit(RUN, number, transition, now=2.0)
        store.add_milestone(RUN, "finished", {"adapter": DIGEST}, now=3.0)
        store.add_milestone(RUN, "finished", {"adapter": DIGEST}, now=4.0)
        facts = {"folder": "/home/of/it", "manifest": DIGEST, "calibration": "{}", "accuracy": 0.5}
        store.add_milestone(RUN, "released", facts, now=5.0)
    assert trail.told()[1:] == [
        ("coordinator", "round-opened", "run/1"),
        ("coordinator", "sum-opened", "run/1"),
        ("coordinator", "round-applied", "run/1"),
        ("coordinator", "round-failed", "run/2"),
        ("coordinator", "run-finished", "run"),
        ("coordinator", "release-made", "run"),
    ]
    assert facts_of(trail, Action.ROUND_OPENED) == [{"devices": 2, "epsilon": "infinite"}]
    assert facts_of(trail, Action.SUM_OPENED) == [{"devices": 2, "digest": DIGEST}]
    assert facts_of(trail, Action.ROUND_APPLIED) == [{"adapter": DIGEST, "accepted": True}]
    assert facts_of(trail, Action.ROUND_FAILED) == [{"code": ("long" * 99)[:128]}]
    assert facts_of(trail, Action.RELEASE_MADE) == [{"manifest": DIGEST}]
    text = (trail.folder / "audit" / LOG).read_text(encoding="utf-8")
    for kept_out in ("attic", "of a peer", "/home", "0.25", "calibration"):
        assert kept_out not in text


def test_what_is_refused_leaves_no_record(trail: Trail) -> None:
    with closing(open_store(trail)) as store:
        for do in DEEDS.values():
            do(store)
        with pytest.raises(DataError):
            store.add_key(ApiKey(KEY.name, "llmos_other1", "1" * 64, created_at=2.0))
        with pytest.raises(DataError):
            store.add_run(RUN, PLAN.model_dump_json(), DIGEST, now=2.0)
        with pytest.raises(AccessDenied):
            store.join("a guess", DeviceId("attic"), PublicKey(bytes([1]) * 32), now=1.0)
        assert store.revoke_key(KEY.name, now=9.0), "it was revoked before"
        assert not store.revoke_key("nobody's", now=9.0)
        assert not store.quarantine_key(KEY.name, "odd", now=9.0)
        assert not store.release_key(KEY.name)
    assert trail.told() == ALL


@pytest.mark.parametrize("deed", ["token", "add key", "quarantine", "release", "revoke", "add run"])
def test_what_cannot_be_written_down_does_not_happen(trail: Trail, deed: str) -> None:
    with closing(open_store(trail)) as store:
        for name, do in DEEDS.items():
            if name == deed:
                disk = full_disk(store)
                with pytest.raises(StorageError):
                    do(store)
                assert store.runs() == []
                keys = [(key.quarantined_at, key.revoked_at) for key in store.api_keys()]
                is_left: dict[str, tuple[float | None, float | None]] = {
                    "quarantine": (None, None),
                    "release": (4.0, None),
                    "revoke": (None, None),
                    "add run": (None, 5.0),
                }
                assert keys == ([is_left[deed]] if deed in is_left else [])
                disk.full = False
            do(store)
    assert trail.told() == ALL


def test_what_was_written_down_and_cannot_be_done_is_said_not_to_be_done(
    trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise StorageError("the store refused")

    with closing(open_store(trail)) as store:
        with monkeypatch.context() as patched:
            patched.setattr(Store, "add_key", refuses)
            with pytest.raises(StorageError, match="the store refused"):
                store.add_key(KEY)
        store.add_key(KEY)
    assert [action for _, action, _ in trail.told()] == ["key-made", "not-done", "key-made"]
    assert facts_of(trail, Action.NOT_DONE) == [{"of": 2, "code": "storage"}]
    with closing(open_store(trail)):
        assert trail.caught_up == [0, 0]


def test_what_was_said_not_to_be_done_and_was_is_found_by_the_next_start(
    trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_key = Store.add_key

    def fails_late(store: Store, key: ApiKey) -> None:
        add_key(store, key)
        raise StorageError("the row is there, but the answer is lost")

    with closing(open_store(trail)) as store:
        with monkeypatch.context() as patched:
            patched.setattr(Store, "add_key", fails_late)
            with pytest.raises(StorageError):
                store.add_key(KEY)
        trail.kill()
    for _ in range(2):
        with closing(open_store(trail)):
            pass
    assert trail.caught_up == [0, 1, 0]
    assert [action for _, action, _ in trail.told()] == ["key-made", "not-done", "key-made"]


def test_a_store_that_was_put_back_to_an_older_state_undoes_nothing_in_the_log(
    trail: Trail,
) -> None:
    """What was asked for before the last start had been compared then."""
    with closing(open_store(trail)) as store:
        for do in DEEDS.values():
            do(store)
    with closing(open_store(trail)):
        pass
    for file in trail.folder.glob("store.db*"):
        file.unlink()
    with closing(open_store(trail)):
        assert trail.caught_up == [0, 0, 0]
    assert trail.told() == ALL


def test_a_bug_in_what_is_done_is_written_down_too() -> None:
    written: list[Entry] = []

    class Sink(NoAudit):
        def record(self, entry: Entry) -> int:
            written.append(entry)
            return len(written)

    with (
        pytest.raises(ZeroDivisionError),
        recorded(Sink(), Entry(Action.KEY_MADE, "admin", "notes")),
    ):
        _ = 1 // 0
    assert [entry.action for entry in written] == [Action.KEY_MADE, Action.NOT_DONE]
    assert written[1].facts == {"of": 1, "code": "internal"}


def test_a_join_is_not_acknowledged_before_it_is_written_down(trail: Trail) -> None:
    with closing(open_store(trail)) as store:
        token = store.new_token(expires_at=9.0)
        disk = full_disk(store)
        for _ in range(2):
            with pytest.raises(StorageError):
                store.join(token, DEVICE, DEVICE_KEY, now=1.0)
        disk.full = False
        for _ in range(2):
            store.join(token, DEVICE, DEVICE_KEY, now=1.0)
    assert trail.told() == ALL[:2]


def test_the_log_is_never_more_than_one_row_behind(trail: Trail) -> None:
    with closing(open_store(trail)) as store:
        DEEDS["add run"](store)
        number = RoundNumber(1)
        store.commit(RUN, number, Planned(DIGEST), now=1.0)
        disk = full_disk(store)
        store.commit(RUN, number, Invited((), 1.0), now=1.0)  # its row is there: it has happened
        assert len(store.transitions(RUN)) == 2
        for _ in range(2):
            with pytest.raises(StorageError):
                store.commit(RUN, number, SumOpened(DIGEST, 2), now=1.0)
            with pytest.raises(StorageError):
                store.add_milestone(RUN, "failed", {}, now=1.0)
        assert len(store.transitions(RUN)) == 2
        assert store.milestones(RUN) == {}
        disk.full = False
        store.commit(RUN, number, SumOpened(DIGEST, 2), now=1.0)
    assert [action for _, action, _ in trail.told()] == [
        "run-submitted",
        "round-opened",
        "sum-opened",
    ]


def test_a_store_from_before_there_was_a_log_is_written_down_once(trail: Trail) -> None:
    url = f"sqlite:///{trail.folder / 'store.db'}"
    with closing(AuditedStore(url, trail.folder, audit=NoAudit())) as old:
        for do in DEEDS.values():
            do(old)
        old.commit(RUN, RoundNumber(1), RoundFailed("storage", ""), now=2.0)
    for _ in range(2):
        with closing(open_store(trail)):
            pass
    assert trail.caught_up == [6, 0]
    there = trail.told()
    # Of these the store does not tell when they were.
    known = [told for told in ALL if told[1] not in PASSED]
    assert sorted(there) == sorted([*known, ("coordinator", "round-failed", "run/1")])
    (joined,) = facts_of(trail, Action.DEVICE_JOINED)
    assert (joined["late"], joined["happened_at"]) == (True, 1)


def test_catching_up_goes_on_where_it_was_interrupted(trail: Trail) -> None:
    url = f"sqlite:///{trail.folder / 'store.db'}"
    with closing(AuditedStore(url, trail.folder, audit=NoAudit())) as old:
        for do in DEEDS.values():
            do(old)
    with closing(open_store(trail)):
        pass
    expected = trail.told()
    for number in range(len(expected)):
        folder = trail.folder / str(number)
        again = Trail(folder)
        folder.mkdir()
        (folder / "store.db").write_bytes((trail.folder / "store.db").read_bytes())
        with closing(open_store_after(again, number)):
            assert again.told() == expected
        again.kill()


def test_what_was_asked_for_of_people_and_not_done_is_found_by_the_next_start(
    trail: Trail,
) -> None:
    names = ["added", "missing", "promoted", "kept", "disabled", "let-in", "active"]
    with closing(open_store(trail)) as store:
        assert trail.log is not None

        def tell(action: Action, name: str, **facts: str) -> None:
            assert trail.log is not None
            trail.log.record(Entry(action, "person:anna", name, facts))

        for name in names:
            tell(Action.PERSON_ADDED, name, role="viewer")
            if name != "missing":
                store.people.add(Person(name, "viewer", "active", None, created_at=1.0))
        for name in ("promoted", "kept"):
            tell(Action.ROLE_CHANGED, name, role="operator", before="viewer")
            tell(Action.ROLE_CHANGED, name, role="auditor", before="operator")
        store.people.set_role("promoted", "auditor")
        for name in ("disabled", "let-in", "active"):
            tell(Action.PERSON_DISABLED, name)
        tell(Action.LINK_SPENT, "let-in", purpose="invite")
        store.people.disable("disabled")
        trail.kill()
    before = len(trail.told())
    for _ in range(2):
        with closing(open_store(trail)):
            pass
    assert trail.told()[before:] == [
        ("person:anna", "not-done", name) for name in ("missing", "kept", "active")
    ]


def test_people_that_the_log_lacks_are_written_down_once(trail: Trail) -> None:
    """As after a backup, whose log was copied before the rows."""
    folder = trail.folder
    with closing(Store(f"sqlite:///{folder / 'store.db'}", folder)) as store:
        for name, state in (("anna", "active"), ("bert", "disabled")):
            store.people.add(Person(name, "viewer", state, "x", created_at=7.5))
    for _ in range(2):
        with closing(open_store(trail)):
            pass
    assert trail.told() == [
        ("admin", "person-added", "anna"),
        ("admin", "person-added", "bert"),
        ("admin", "person-disabled", "bert"),
    ]
    assert facts_of(trail, Action.PERSON_ADDED)[0] == {
        "role": "viewer",
        "late": True,
        "happened_at": 7,
    }


def open_store_after(trail: Trail, number: int) -> AuditedStore:
    """Let the first catching up end after ``number`` records, and start again."""
    from coordinator.audit.log import AuditLog
    from tests.support.audit_logs import IDENTITY

    class Full(Exception):
        pass

    url = f"sqlite:///{trail.folder / 'store.db'}"
    with AuditLog(trail.folder / "audit", IDENTITY) as log:

        class Ends(NoAudit):
            left = number

            def record(self, entry: Entry) -> int:
                if self.left == 0:
                    raise Full
                self.left -= 1
                return log.record(entry)

        with (
            closing(AuditedStore(url, trail.folder, audit=log)) as store,
            pytest.raises(Full),
        ):
            catch_up(store, Written(), Ends())
    return open_store(trail)


@pytest.mark.processes
@pytest.mark.parametrize("written", ["written", "unwritten"])
@pytest.mark.parametrize("deed", DEEDS)
def test_a_coordinator_killed_between_row_and_record_finds_out_when_it_starts(
    trail: Trail, deed: str, written: str
) -> None:
    """By SIGKILL, just before or just after the record is on disk."""
    assert die_in(trail.folder, deed, written=written == "written") == -signal.SIGKILL
    for _ in range(2):
        with closing(open_store(trail)) as store:
            rows = {
                "join": [device.name for device in store.devices()] == [DEVICE],
                "add key": bool(store.api_keys()),
                "quarantine": any(key.quarantined_at is not None for key in store.api_keys()),
                "release": all(key.quarantined_at is None for key in store.api_keys()),
                "revoke": any(key.revoked_at is not None for key in store.api_keys()),
                "add run": bool(store.runs()),
                "stop": bool(store.runs()) and "stopped" in store.milestones(RUN),
            }
    assert trail.caught_up[1:] == [0]
    told = [(action, subject) for _, action, subject in trail.told()]
    last = ALL[list(DEEDS).index(deed)][1:]
    count = told.count(last)
    undone = [one for one in told if one[0] == "not-done"]
    if deed in ("join", "stop"):  # done first
        assert rows[deed]
        assert (count, undone) == (1, [])
    else:  # written down first
        assert not rows.get(deed, False)
        assert count == (written == "written")
        # That a token was made and told nobody cannot be seen in the store.
        expected = written == "written" and deed != "token"
        assert undone == ([("not-done", last[1])] if expected else [])


def test_a_coordinator_that_crashes_all_the_time_leaves_the_log_of_one_that_did_not(
    make_world: Callable[[], World], adders: tuple[SumWorker, SumWorker]
) -> None:
    """After every commit, before it could be written down; with rounds that a key holder opens."""
    logs = []
    for crashes in (False, True):
        world = make_world()
        trail = Trail(world.home)
        world.store.close()
        world.make_store = trail.open
        world.store = world._open_store()
        world.add_key_holder(adders[1])
        world.submit(
            training={"rounds": 2},
            protection={"scheme": "public-key", "min_devices": 3},
            privacy={"noise": "local", "epsilon": 8.0},
        )
        world.add_devices("abc")
        world.crash_at = lambda _, crashes=crashes: crashes  # type: ignore[misc]
        world.start()
        assert world.run()
        trail.kill()
        if crashes:
            assert world.restarts > 10
            world.store.close()
            trail.open(f"sqlite:///{world.home / 'store.db'}", world.home).close()
            trail.kill()
            assert sum(trail.caught_up) >= 6
        logs.append([one for one in trail.told() if one[1] != "token-made"])
        (submitted,) = facts_of(trail, Action.RUN_SUBMITTED)
        assert 7.5 < float(str(submitted["epsilon"])) <= 8
        opened = facts_of(trail, Action.ROUND_OPENED)
        assert [facts["devices"] for facts in opened] == [3, 3]
        assert all(0 < float(str(facts["epsilon"])) < 8 for facts in opened)
    assert logs[0] == logs[1]
    assert ("key-holder", "sum-opened", f"{TRIAL}/2") in logs[0]
    assert logs[0][-1] == ("coordinator", "run-finished", TRIAL)


def test_every_change_of_a_devices_standing_is_written_down_and_no_refused_one(
    trail: Trail,
) -> None:
    with closing(open_store(trail)) as store:
        store.join(store.new_token(expires_at=9.0), DEVICE, DEVICE_KEY, now=1.0)
        for standing in ("quarantined", "trusted", "revoked", "trusted"):
            store.set_standing(DEVICE, standing, "", now=2.0)
    told = [record.entry.action for record in records_of(trail.folder / "audit" / LOG)]
    assert [action for action in told if action.startswith("device-")] == [
        "device-joined",
        "device-quarantined",
        "device-released",
        "device-revoked",
    ]
