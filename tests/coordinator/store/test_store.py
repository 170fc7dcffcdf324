"""T1 to T3 on both databases: what the store has accepted is there for everybody, once, and stays as it was."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.federation import rounds
from coordinator.federation.rounds import Closed, Planned, Transition, UpdateStored
from coordinator.store.store import ApiKey, Store, by_round
from coordinator.store.tables import key_roles
from shared.errors import AccessDenied, DataError, LlmOsError, RunNotFound
from shared.files import digest_of
from shared.types import DeviceId, PublicKey, RoundNumber, RunId
from tests.support.processes_beside import in_a_process_of_its_own
from tests.support.random_stores import any_transition
from tests.support.stores import DIGEST, RUN, Place, rows_in

KEY = ApiKey("notes", "llmos_abcdef", "0" * 64, created_at=1.0)


def key(number: int) -> PublicKey:
    return PublicKey(number.to_bytes(32))


# Rows


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


def test_a_reader_beside_sees_what_was_committed(place: Place, store: Store) -> None:
    store.commit(RUN, RoundNumber(1), Planned(DIGEST), now=1.0)
    beside = place.open()
    assert [row.transition for row in beside.transitions(RUN)] == [Planned(DIGEST)]
    store.commit(RUN, RoundNumber(1), Closed(("a", "b")), now=2.0)
    assert beside.transitions(RUN)[-1].transition == Closed(("a", "b"))
    beside.close()


def test_another_process_sees_what_was_committed_though_this_one_goes_on(
    place: Place, store: Store
) -> None:
    store.commit(RUN, RoundNumber(1), UpdateStored("a", DIGEST), now=1.0)
    code = (
        "import sys; from pathlib import Path; from coordinator.store.store import Store;"
        "s = Store(sys.argv[1], Path(sys.argv[2]));"
        "print(*s.transitions('run'))"
    )
    assert "UpdateStored(device='a'" in in_a_process_of_its_own(code, place.url, str(place.folder))


def test_nothing_is_committed_for_a_run_that_does_not_exist(store: Store) -> None:
    with pytest.raises(Exception, match=r"(?i)foreign key"):
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


def test_names_are_ordered_alike_on_every_database(store: Store) -> None:
    """One that orders them as a language does would have other cohorts drawn from them."""
    names = ["b", "A", "a", "Z", "é", "-a", "a-b", "ab"]
    for number, name in enumerate(names):
        store.add_run(RunId(name), "{}", DIGEST, now=1.0)
        store.add_key(dataclasses.replace(KEY, name=name, secret_sha256=f"{number:064}"))
        token = store.new_token(expires_at=9.0)
        store.join(token, DeviceId(name), key(number), now=1.0)
    assert [row.run for row in store.runs()] == sorted([*names, RUN])
    assert [row.name for row in store.api_keys()] == sorted(names)
    assert [device.name for device in store.devices()] == sorted(names)


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
    with store.database.reading() as connection:
        rows = rows_in(connection)
    assert len(rows["join_tokens"]) == 1
    assert token not in repr(rows)


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


# API keys


def test_keys_from_before_there_were_roles_are_callers_and_can_be_rotated(store: Store) -> None:
    store.add_key(KEY)
    with store.database.writing() as connection:
        connection.execute(key_roles.delete())
    assert store.api_keys() == [KEY]
    assert (KEY.role, KEY.scopes) == ("caller", {})
    assert store.rotate_key("notes", prefix="p", secret_sha256="5" * 64, former_ends_at=9.0)
    assert store.api_keys()[0].former_sha256 == KEY.secret_sha256


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


def test_a_key_in_quarantine_opens_nothing_and_stays_as_it_is(place: Place, store: Store) -> None:
    store.add_key(KEY)
    assert store.quarantine_key("notes", "odd", now=5.0)
    assert store.quarantine_key("notes", "again", now=6.0)
    (kept,) = store.api_keys()
    assert kept == dataclasses.replace(KEY, quarantined_at=5.0)
    assert not kept.opens(5.0)
    beside = place.open()
    assert beside.api_keys() == [kept]
    beside.close()
    for _ in range(2):
        assert store.release_key("notes")
        assert store.api_keys() == [KEY]
    assert not store.quarantine_key("nobody", "odd", now=5.0)
    assert not store.release_key("nobody")


def test_a_key_that_was_revoked_is_not_let_out_of_quarantine(store: Store) -> None:
    store.add_key(KEY)
    assert store.quarantine_key("notes", "odd", now=5.0)
    assert store.revoke_key("notes", now=6.0)
    assert not store.release_key("notes")
    assert not store.quarantine_key("notes", "odd", now=7.0)
    (kept,) = store.api_keys()
    assert (kept.revoked_at, kept.quarantined_at) == (6.0, 5.0)


# Pages of what there is


NAMES = ["a", "a-b", "ab", "b", "a0", "z-", "0"]


def test_names_come_in_pages_in_the_order_of_their_letters(store: Store) -> None:
    for number, name in enumerate(NAMES):
        token = store.new_token(expires_at=9.0)
        store.join(token, DeviceId(name), key(number), now=1.0)
        store.add_key(dataclasses.replace(KEY, name=name, secret_sha256=f"{number:064}"))
    for limit in (1, 3, 7):
        devices: list[str] = []
        while some := store.devices_after(devices[-1] if devices else "", limit=limit):
            devices += [device.name for device in some]
        keys: list[str] = []
        while page := store.api_keys(keys[-1] if keys else "", limit):
            keys += [each.name for each in page]
        assert devices == keys == sorted(NAMES)
    assert store.count_devices() == len(NAMES)
    found = store.device("a-b")
    assert found is not None
    assert found.name == "a-b"
    assert store.device("a-c") is None


def test_runs_come_in_pages_of_either_order_and_open_ones_alone(store: Store) -> None:
    for number, name in enumerate(NAMES):
        store.add_run(RunId(name), "{}", DIGEST, now=float(number // 2))
    store.add_milestone(RunId("ab"), "finished", {"adapter": DIGEST}, now=9.0)
    every = sorted((row.submitted_at, row.run) for row in store.runs())
    for newest in (False, True):
        found: list[tuple[float, str]] = []
        while page := store.runs_after(found[-1] if found else None, limit=3, newest=newest):
            found += [(row.submitted_at, str(row.run)) for row in page]
        assert found == sorted(every, reverse=newest)
    assert {row.run for row in store.open_runs(limit=100)} == {run for _, run in every} - {"ab"}


def test_what_was_committed_is_read_from_a_place_on(store: Store) -> None:
    begin = store.last_ids()
    first, second = RoundNumber(1), RoundNumber(2)
    store.add_milestone(RUN, "started", {"adapter": DIGEST}, now=1.0)
    store.commit(RUN, first, Planned(DIGEST), now=2.0)
    store.commit(RUN, second, Planned(DIGEST), now=3.0)
    store.commit(RUN, first, UpdateStored("kitchen", DIGEST), now=4.0)
    rows = store.committed_after(begin, limit=10)
    assert [row.what.at for row in rows] == [1.0, 2.0, 3.0, 4.0]
    assert store.committed_after(store.last_ids(), limit=10) == []
    one, two, three = (row for row in store.transitions_after(RUN, limit=10))
    assert [each.what.at for each in (one, two, three)] == [2.0, 4.0, 3.0]
    assert store.transitions_after(RUN, (1, one.id), limit=1) == [two]
    assert store.count_transitions(RUN, 1)["Planned"].rows == 1
    (started,) = store.milestones_of_kind("started", limit=5)
    assert started.run == RUN
    assert store.milestones_of_kind("started", started.id, limit=5) == []
    assert store.progress([RUN])[RUN].round == 2


def test_a_device_is_trusted_until_it_is_quarantined_and_again_when_let_out(store: Store) -> None:
    a = DeviceId("a")
    assert not store.set_standing(a, "quarantined", "odd", now=1.0)
    store.join(store.new_token(expires_at=9.0), a, key(1), now=1.0)
    seen = [store.devices()[0].standing]
    for standing in ("quarantined", "trusted"):
        assert store.set_standing(a, standing, "odd", now=2.0)
        seen.append(store.devices()[0].standing)
    assert seen == ["trusted", "quarantined", "trusted"]


def test_a_revoked_device_never_comes_back_under_its_name_or_its_key(store: Store) -> None:
    first = store.new_token(expires_at=9.0)
    store.join(first, DeviceId("a"), key(1), now=1.0)
    assert store.set_standing(DeviceId("a"), "revoked", "", now=2.0)
    assert not store.set_standing(DeviceId("a"), "trusted", "", now=3.0)
    for token, name, public in (
        (first, "a", key(1)),
        (store.new_token(expires_at=9.0), "b", key(1)),
        (store.new_token(expires_at=9.0), "a", key(2)),
    ):
        with pytest.raises(AccessDenied, match="revoked"):
            store.join(token, DeviceId(name), public, now=4.0)
    assert [(d.name, d.standing) for d in store.devices()] == [("a", "revoked")]
