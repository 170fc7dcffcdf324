"""T1 to T3: what the store has accepted is there for everybody, once, and stays as it was."""

from __future__ import annotations

import ctypes
import dataclasses
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.federation import rounds
from coordinator.federation.rounds import Closed, Committed, Planned, Transition, UpdateStored
from coordinator.store.store import ApiKey, Store, by_round
from shared.errors import AccessDenied, DataError, LlmOsError, RunNotFound, StorageError
from shared.files import digest_of
from shared.types import DeviceId, Digest, PublicKey, RoundNumber, RunId

RUN, DIGEST = RunId("run"), Digest("a" * 64)
KEY = ApiKey("notes", "llmos_abcdef", "0" * 64, created_at=1.0)
ROOT = Path(__file__).parents[3]


def open_store(folder: Path) -> Store:
    return Store(f"sqlite:///{folder / 'store.db'}", folder)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(tmp_path)
    store.add_run(RUN, "{}", DIGEST, now=1.0)
    yield store
    store.close()


def key(number: int) -> PublicKey:
    return PublicKey(number.to_bytes(32))


def in_a_process_of_its_own(code: str, *arguments: str, may_override: bool = True) -> str:
    """Run Python code beside this process, if need be without root's right to write anywhere."""

    def obey_modes() -> None:
        # PR_CAPBSET_DROP of CAP_DAC_OVERRIDE: root then obeys file modes like everybody else.
        ctypes.CDLL(None).prctl(24, 1)

    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=None if may_override else obey_modes,
    ).stdout


# Rows

TEXT = st.text(max_size=20)
VALUES: dict[object, st.SearchStrategy[Any]] = {
    str: TEXT,
    Digest: TEXT,
    bytes: st.binary(max_size=40),
    float: st.floats(allow_nan=False),
    int: st.integers(0, 2**62),
    bool: st.booleans(),
    tuple[str, ...]: st.lists(TEXT, max_size=4).map(tuple),
    tuple[int, ...]: st.lists(st.integers(0, 2**31), max_size=4).map(tuple),
    dict[str, float]: st.dictionaries(TEXT, st.floats(allow_nan=False), max_size=3),
}


def any_transition(kind: type) -> st.SearchStrategy[Transition]:
    """A strategy for one class of transitions; KeyError if it has a field of a new type."""
    hints = get_type_hints(kind)
    fields = {field.name: VALUES[hints[field.name]] for field in dataclasses.fields(kind)}
    return st.builds(kind, **fields)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = open_store(tmp_path_factory.mktemp("store"))
    yield store
    store.close()


@pytest.mark.parametrize("kind", get_args(Transition), ids=lambda kind: kind.__name__)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_transition_comes_back_as_it_was(
    shared_store: Store, kind: type, data: st.DataObject
) -> None:
    transition = data.draw(any_transition(kind))
    run = RunId(f"run-{time.monotonic_ns()}")
    shared_store.add_run(run, "{}", DIGEST, now=0.0)
    shared_store.commit(run, RoundNumber(2), transition, now=1.5)
    (row,) = shared_store.transitions(run)
    assert row.transition == transition
    assert type(row.transition) is type(transition)
    assert (row.round, row.at) == (2, 1.5)


def test_every_class_that_a_round_knows_is_a_transition() -> None:
    """A class that was forgotten in the union would be tested, and stored, by nobody."""
    assert set(rounds._NEXT) | {Planned} == set(get_args(Transition))


def test_rows_come_back_in_the_order_they_were_committed(store: Store) -> None:
    for number in (2, 1, 2):
        store.commit(RUN, RoundNumber(number), Planned(DIGEST), now=float(number))
    assert [row.round for row in store.transitions(RUN)] == [2, 1, 2]
    grouped = {number: len(rows) for number, rows in by_round(store.transitions(RUN))}
    assert list(grouped.items()) == [(1, 1), (2, 2)]


def test_a_reader_beside_sees_what_was_committed(store: Store) -> None:
    store.commit(RUN, RoundNumber(1), Planned(DIGEST), now=1.0)
    beside = open_store(store.folder)
    assert [row.transition for row in beside.transitions(RUN)] == [Planned(DIGEST)]
    store.commit(RUN, RoundNumber(1), Closed(("a", "b")), now=2.0)
    assert beside.transitions(RUN)[-1].transition == Closed(("a", "b"))
    beside.close()


def test_another_process_sees_what_was_committed_though_this_one_goes_on(store: Store) -> None:
    store.commit(RUN, RoundNumber(1), UpdateStored("a", DIGEST), now=1.0)
    code = (
        "import sys; from pathlib import Path; from coordinator.store.store import Store;"
        "s = Store(f'sqlite:///{sys.argv[1]}/store.db', Path(sys.argv[1]));"
        "print(*s.transitions('run'))"
    )
    assert "UpdateStored(device='a'" in in_a_process_of_its_own(code, str(store.folder))


def test_every_connection_waits_for_the_disk(store: Store) -> None:
    """T1 rests on these two settings; SQLite forgets the second with every connection."""

    def settings_of_a_thread() -> None:
        with store._engine.connect() as connection:
            for pragma in ("journal_mode", "synchronous", "foreign_keys"):
                found[pragma] = connection.exec_driver_sql(f"PRAGMA {pragma}").scalar()

    found: dict[str, Any] = {}
    thread = threading.Thread(target=settings_of_a_thread)
    thread.start()
    thread.join()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_nothing_is_committed_for_a_run_that_does_not_exist(store: Store) -> None:
    with pytest.raises(Exception, match="FOREIGN KEY"):
        store.commit(RunId("other"), RoundNumber(1), Planned(DIGEST), now=1.0)


def test_listeners_hear_of_a_row_after_it_was_committed(store: Store) -> None:
    heard: list[tuple[object, int]] = []
    store.subscribe(lambda what: heard.append((what, len(store.transitions(RUN)))))
    store.commit(RUN, RoundNumber(1), Planned(DIGEST), now=1.0)
    store.add_milestone(RUN, "started", {"adapter": DIGEST}, now=2.0)
    store.add_milestone(RUN, "started", {"adapter": "another"}, now=3.0)
    assert heard == [(Planned(DIGEST), 1), ("started", 1)]


def test_a_milestone_happens_once(store: Store) -> None:
    store.add_milestone(RUN, "finished", {"adapter": "first"}, now=1.0)
    store.add_milestone(RUN, "finished", {"adapter": "second"}, now=2.0)
    (milestone,) = store.milestones(RUN).values()
    assert (milestone.kind, milestone.facts, milestone.at) == ("finished", {"adapter": "first"}, 1)


def test_which_update_was_counted_depends_on_run_round_and_device(store: Store) -> None:
    store.add_run(RunId("other"), "{}", DIGEST, now=2.0)
    store.commit(RUN, RoundNumber(2), UpdateStored("a", DIGEST), now=1.0)
    device = DeviceId("a")
    assert store.counted(RUN, RoundNumber(2), device) == DIGEST
    assert store.counted(RUN, RoundNumber(1), device) is None
    assert store.counted(RUN, RoundNumber(2), DeviceId("b")) is None
    assert store.counted(RunId("other"), RoundNumber(2), device) is None


def test_a_run_has_a_name_of_its_own(store: Store) -> None:
    with pytest.raises(DataError, match="a run named run exists"):
        store.add_run(RUN, "other", DIGEST, now=2.0)
    assert store.run(RUN).plan == "{}"
    with pytest.raises(RunNotFound, match="no run named other"):
        store.run(RunId("other"))


# Blobs


def test_a_blob_is_named_by_its_digest_and_kept_once(store: Store) -> None:
    digest = store.keep(b"bytes")
    assert digest == digest_of(b"bytes")
    assert store.blob(digest).read_bytes() == b"bytes"
    written = store.blob(digest).stat().st_mtime_ns
    assert store.keep(b"bytes") == digest
    assert store.blob(digest).stat().st_mtime_ns == written


def test_a_blob_that_is_forgotten_is_gone_and_no_other(store: Store) -> None:
    gone, kept = store.keep(b"single updates"), store.keep(b"an adapter")
    store.forget(gone)
    assert not store.blob(gone).exists()
    assert store.blob(kept).read_bytes() == b"an adapter"
    store.forget(gone)
    assert store.keep(b"single updates") == gone
    assert store.blob(gone).exists()


def test_updates_of_a_round_are_forgotten_and_no_others(store: Store) -> None:
    files = {
        number: store.update_file(RUN, RoundNumber(number), DeviceId("a"), DIGEST)
        for number in (1, 11)
    }
    for path in files.values():
        path.parent.mkdir(parents=True)
        path.write_bytes(b"frame")
    store.forget_updates(RUN, RoundNumber(1))
    store.forget_updates(RUN, RoundNumber(1))
    assert [number for number, path in files.items() if path.exists()] == [11]


# Joining


def test_a_token_lets_one_device_join_and_may_be_shown_again_by_it(store: Store) -> None:
    token = store.new_token(expires_at=100.0)
    store.join(token, DeviceId("a"), key(1), now=100.0)
    store.join(token, DeviceId("a"), key(1), now=500.0)
    assert [(d.name, d.public_key, d.joined_at) for d in store.devices()] == [("a", key(1), 100.0)]
    for name, public in (("b", key(2)), ("a", key(2)), ("b", key(1))):
        with pytest.raises(AccessDenied, match="already used"):
            store.join(token, DeviceId(name), public, now=50.0)


def test_an_expired_or_unknown_token_lets_nobody_join(store: Store) -> None:
    token = store.new_token(expires_at=100.0)
    with pytest.raises(AccessDenied):
        store.join(token, DeviceId("a"), key(1), now=100.1)
    with pytest.raises(AccessDenied):
        store.join(token[:-1], DeviceId("a"), key(1), now=1.0)
    assert store.devices() == []


@pytest.mark.parametrize(("name", "public"), [("a", key(2)), ("b", key(1))])
def test_a_taken_name_or_key_is_refused_and_does_not_cost_the_token(
    store: Store, name: str, public: PublicKey
) -> None:
    store.join(store.new_token(expires_at=9.0), DeviceId("a"), key(1), now=1.0)
    token = store.new_token(expires_at=9.0)
    with pytest.raises(DataError, match="already joined"):
        store.join(token, DeviceId(name), public, now=1.0)
    store.join(token, DeviceId("c"), key(3), now=1.0)
    assert [device.name for device in store.devices()] == ["a", "c"]


def test_secrets_are_not_in_the_database(store: Store) -> None:
    token = store.new_token(expires_at=9.0)
    store.close()
    files = [path.read_bytes() for path in store.folder.glob("store.db*")]
    assert files
    assert not any(token.encode() in data for data in files)


def test_a_token_is_spent_once_though_two_threads_race_for_it(store: Store) -> None:
    # When reading and spending were two steps, one of the first few attempts gave it to both.
    for attempt in range(20):
        token = store.new_token(expires_at=9.0)
        barrier = threading.Barrier(2)
        outcomes: list[LlmOsError | None] = []

        def join(
            number: int,
            token: str = token,
            barrier: threading.Barrier = barrier,
            outcomes: list[LlmOsError | None] = outcomes,
        ) -> None:
            barrier.wait()
            try:
                store.join(token, DeviceId(f"d{number}"), key(number), now=1.0)
            except LlmOsError as err:
                outcomes.append(err)
            else:
                outcomes.append(None)

        threads = [
            threading.Thread(target=join, args=(2 * attempt + i + 1,), daemon=True) for i in (0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(type(outcome).__name__ for outcome in outcomes) == [
            "AccessDenied",
            "NoneType",
        ]
        assert len(store.devices()) == attempt + 1


# A disk or a database that is not as it should be


def test_a_database_of_another_version_is_refused(store: Store) -> None:
    store.close()
    with sqlite3.connect(store.folder / "store.db") as database:
        database.execute("UPDATE schema_version SET version = 1")
    database.close()
    with pytest.raises(StorageError, match="has schema 1, this program knows 5"):
        open_store(store.folder)


def test_a_store_from_before_there_were_keys_gets_their_table(store: Store) -> None:
    store.close()
    database = sqlite3.connect(store.folder / "store.db")
    with database:
        database.execute("DROP TABLE api_key_roles")
        database.execute("DROP TABLE api_keys")
        database.execute("UPDATE schema_version SET version = 3")
    database.close()
    for _ in range(2):
        again = open_store(store.folder)
        assert [row.run for row in again.runs()] == [RUN]
        assert again.api_keys() == []
        again.close()
    again.add_key(KEY)
    assert again.api_keys() == [KEY]
    again.close()


def test_keys_from_before_there_were_roles_are_callers_and_can_be_rotated(store: Store) -> None:
    store.add_key(KEY)
    store.close()
    database = sqlite3.connect(store.folder / "store.db")
    with database:
        database.execute("DROP TABLE api_key_roles")
        database.execute("UPDATE schema_version SET version = 4")
    database.close()
    again = open_store(store.folder)
    assert again.api_keys() == [KEY]
    assert (KEY.role, KEY.scopes) == ("caller", {})
    assert again.rotate_key("notes", prefix="p", secret_sha256="5" * 64, former_ends_at=9.0)
    assert again.api_keys()[0].former_sha256 == KEY.secret_sha256
    again.close()


def test_a_rotated_key_has_two_secrets_for_a_time_and_never_three(store: Store) -> None:
    key = dataclasses.replace(KEY, role="operator", scopes={"models": ["a*"]}, priority=2)
    store.add_key(key)
    for number, former in ((1, "0" * 64), (2, "1" * 64)):
        digest = str(number) * 64
        assert store.rotate_key("notes", prefix="new", secret_sha256=digest, former_ends_at=7.0)
        assert store.api_keys() == [
            dataclasses.replace(
                key, prefix="new", secret_sha256=digest, former_sha256=former, former_ends_at=7.0
            )
        ]
    before = store.api_keys()
    assert not store.rotate_key("nobody", prefix="x", secret_sha256="8" * 64, former_ends_at=7.0)
    store.revoke_key("notes", now=5.0)
    assert not store.rotate_key("notes", prefix="x", secret_sha256="8" * 64, former_ends_at=7.0)
    assert store.api_keys() == [dataclasses.replace(before[0], revoked_at=5.0)]


def test_a_key_is_kept_as_it_is_and_once(store: Store) -> None:
    other = dataclasses.replace(
        KEY,
        name="a",
        secret_sha256="1" * 64,
        expires_at=9.0,
        priority=-3,
        public_cache=True,
        role="auditor",
        scopes={"models": ["a", "b*"], "tasks": ["classify"]},
    )
    store.add_key(KEY)
    store.add_key(other)
    assert store.api_keys() == [other, KEY]
    for taken in (KEY, dataclasses.replace(KEY, secret_sha256="2" * 64)):
        with pytest.raises(DataError, match="choose another name"):
            store.add_key(taken)
    assert store.revoke_key("notes", now=5.0)
    assert store.revoke_key("notes", now=6.0)
    assert not store.revoke_key("nobody", now=6.0)
    revoked = dataclasses.replace(KEY, revoked_at=5.0)
    assert store.api_keys() == [other, revoked]
    assert not revoked.opens(1.0)
    assert [other.opens(now) for now in (8.9, 9.0)] == [True, False]


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"x" * 5000)
    with pytest.raises(StorageError, match="cannot open the store"):
        open_store(tmp_path)


def test_a_read_only_folder_is_a_storage_error(store: Store) -> None:
    code = """
import os, sys
from pathlib import Path
from coordinator.store.store import Store
from coordinator.federation.rounds import Planned
from shared.errors import StorageError
folder = Path(sys.argv[1])
store = Store(f"sqlite:///{folder / 'store.db'}", folder)
store.keep(b"written while it was possible")
store.close()
for path in (*folder.rglob("*"), folder):
    path.chmod(0o500 if path.is_dir() else 0o400)
def refused(action):
    try:
        action()
    except StorageError as err:
        print("refused:", str(err).splitlines()[0])
def commit():
    again = Store(f"sqlite:///{folder / 'store.db'}", folder)
    again.commit("run", 1, Planned("a" * 64), now=1.0)
refused(commit)
refused(lambda: store.keep(b"new"))
refused(lambda: Store(f"sqlite:///{folder / 'new' / 'store.db'}", folder / "new"))
"""
    store.close()
    out = in_a_process_of_its_own(code, str(store.folder), may_override=False)
    for path in (store.folder, *store.folder.rglob("*")):
        path.chmod(0o700)
    lines = out.splitlines()
    assert len(lines) == 3, out
    assert "readonly" in lines[0] or "cannot open" in lines[0]
    assert "permission denied" in lines[1]
    assert "permission denied" in lines[2]
    again = open_store(store.folder)
    assert again.transitions(RUN) == []
    again.close()


def test_a_full_disk_is_a_storage_error_and_leaves_no_row(store: Store) -> None:
    row = Committed("a", DIGEST, b"x" * 3_000_000)
    with store._engine.connect() as connection:
        # SQLite's own notion of a full disk, for the connection that the pool hands out next.
        connection.exec_driver_sql("PRAGMA max_page_count = 60")
    with pytest.raises(StorageError, match="disk is full"):
        store.commit(RUN, RoundNumber(1), row, now=1.0)
    assert store.transitions(RUN) == []
    with store._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 100000")
    store.commit(RUN, RoundNumber(1), row, now=1.0)
    assert [row.transition for row in store.transitions(RUN)] == [row]
