"""Q1 to Q3 on both databases: links, admins and sessions, whoever races."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from functools import partial

import pytest

from coordinator.store.people import FIRST, Link, Person, Session
from coordinator.store.store import Store
from coordinator.store.tables import person_links, person_sessions
from shared.errors import AccessDenied, DataError
from tests.support.stores import Place, rows_in

ANNA = Person("anna", "admin", "active", "hash of anna's", created_at=1.0)
NEW = "hash of another"
BERT = Person("bert@firm.example", "viewer", "invited", None, created_at=2.0)


def sha(number: int) -> str:
    return f"{number:064x}"


def link_of(person: Person | None, number: int = 1, *, expires_at: float = 9.0) -> Link:
    purpose, name = ("invite", person.name) if person is not None else (FIRST, None)
    return Link(sha(number), purpose, name, expires_at)


def begin(store: Store, person: Person, number: int, *, at: float = 5.0) -> None:
    session = Session(sha(number), person.name, begun_at=at, used_at=at)
    store.people.begin(session, password=person.password, begun_after=0.0, used_after=0.0)


def at_once(*tasks: Callable[[], object]) -> list[str]:
    """What became of each, begun at the same moment."""
    barrier = threading.Barrier(len(tasks))
    outcomes: list[str] = []

    def do(task: Callable[[], object]) -> None:
        barrier.wait()
        try:
            task()
        except (AccessDenied, DataError) as err:
            outcomes.append(type(err).__name__)
        else:
            outcomes.append("done")

    threads = [threading.Thread(target=do, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(outcomes)


def test_people_are_kept_as_they_are_and_listed_by_the_letters_of_their_names(
    place: Place, store: Store
) -> None:
    names = ["a", "a-b", "a.b", "a0", "a@b", "a_b", "ab", "b"]
    for name in reversed(names):
        store.people.add(dataclasses.replace(BERT, name=name))
    beside = place.open()
    assert [person.name for person in beside.people.people()] == sorted(names)
    assert [person.name for person in beside.people.people("a0", 3)] == ["a@b", "a_b", "ab"]
    assert beside.people.person("a.b") == dataclasses.replace(BERT, name="a.b")
    assert beside.people.person("a.c") is None
    beside.close()


def test_a_name_is_given_once(store: Store) -> None:
    store.people.add(ANNA)
    with pytest.raises(DataError, match="somebody called anna"):
        store.people.add(dataclasses.replace(BERT, name="anna"))
    assert store.people.people() == [ANNA]


def test_who_is_only_invited_has_no_account(store: Store) -> None:
    assert not store.people.has_accounts()
    store.people.add(BERT)
    store.people.disable(BERT.name)
    assert not store.people.has_accounts()
    store.people.add(dataclasses.replace(ANNA, state="disabled"))
    assert store.people.has_accounts()


# Q1


def test_a_link_is_good_until_it_expires_or_another_takes_its_place(store: Store) -> None:
    store.people.add(BERT)
    store.people.add_link(link_of(BERT, 1), now=1.0)
    assert store.people.link(sha(1), now=8.9) == link_of(BERT, 1)
    assert store.people.link(sha(1), now=9.0) is None
    assert store.people.link(sha(2), now=1.0) is None
    store.people.add_link(link_of(BERT, 2), now=1.0)
    store.people.add_link(link_of(None, 3), now=1.0)
    assert [store.people.link(sha(n), now=1.0) is not None for n in (1, 2, 3)] == [
        False,
        True,
        True,
    ]
    store.people.add_link(link_of(None, 4, expires_at=30.0), now=20.0)
    with store.database.reading() as connection:
        assert len(rows_in(connection)["person_links"]) == 1, "what expired is forgotten"


def test_a_link_is_spent_once_though_two_race_for_it(store: Store) -> None:
    for number in range(10):
        person = dataclasses.replace(BERT, name=f"b{number}")
        store.people.add(person)
        link = link_of(person, number)
        store.people.add_link(link, now=1.0)
        takers = [
            dataclasses.replace(person, state="active", password=password) for password in "xy"
        ]
        spend = [partial(store.people.spend, link, taker) for taker in takers]
        assert at_once(*spend) == ["AccessDenied", "done"]
        assert store.people.person(person.name) in takers


def test_to_spend_a_link_sets_password_and_state_and_ends_every_session(store: Store) -> None:
    store.people.add(ANNA)
    begin(store, ANNA, 7)
    store.people.add_link(link_of(ANNA), now=1.0)
    store.people.spend(
        link_of(ANNA), dataclasses.replace(ANNA, password=NEW, role="viewer", created_at=99.0)
    )
    kept = store.people.person("anna")
    assert kept is not None
    assert (kept.password, kept.role, kept.created_at) == (NEW, "admin", 1.0)
    assert store.people.session(sha(7)) is None
    assert store.people.link(sha(1), now=1.0) is None


def test_the_first_account_is_made_once_and_by_its_link_alone(store: Store) -> None:
    store.people.add(BERT)
    store.people.add_link(link_of(None), now=1.0)
    with pytest.raises(DataError, match="somebody called bert"):
        store.people.spend(link_of(None), dataclasses.replace(ANNA, name=BERT.name))
    assert store.people.link(sha(1), now=1.0) is not None, "it is not spent by that"
    store.people.add_link(link_of(BERT, 2), now=1.0)
    store.people.spend(link_of(None), ANNA)
    assert store.people.person("anna") == ANNA
    with pytest.raises(DataError, match="has an account already"):
        store.people.add_link(link_of(None, 3), now=1.0)


def test_a_link_to_the_first_account_opens_nothing_once_there_is_one(store: Store) -> None:
    store.people.add_link(link_of(None), now=1.0)
    store.people.add(ANNA)
    assert store.people.link(sha(1), now=1.0) is None
    with pytest.raises(AccessDenied):
        store.people.spend(link_of(None), dataclasses.replace(ANNA, name="eve"))
    assert store.people.person("eve") is None


# Q2


@pytest.mark.parametrize("deed", ["disable", "demote"])
def test_the_last_active_admin_stays_one(store: Store, deed: str) -> None:
    def undo(name: str) -> None:
        if deed == "disable":
            store.people.disable(name)
        else:
            store.people.set_role(name, "operator")

    store.people.add(ANNA)
    store.people.add(dataclasses.replace(ANNA, name="eve", state="invited"))
    store.people.add(dataclasses.replace(ANNA, name="carl", state="disabled"))
    begin(store, ANNA, 1)
    with pytest.raises(DataError, match="last active admin"):
        undo("anna")
    assert store.people.person("anna") == dataclasses.replace(ANNA, last_login_at=5.0)
    assert store.people.session(sha(1)) is not None
    store.people.set_role("anna", "admin")
    store.people.add(dataclasses.replace(ANNA, name="dora"))
    undo("anna")
    left = [p.name for p in store.people.people() if (p.role, p.state) == ("admin", "active")]
    assert left == ["dora"]


def test_two_admins_who_disable_each_other_do_not_both_go(store: Store) -> None:
    for number in range(10):
        both = [dataclasses.replace(ANNA, name=f"{each}{number}") for each in "ab"]
        for person in both:
            store.people.add(person)
        deeds = [partial(store.people.disable, person.name) for person in both]
        assert at_once(*deeds) == ["DataError", "done"]
        (left,) = [p.name for p in store.people.people() if p.state == "active"]
        store.people.add(dataclasses.replace(ANNA, name=f"c{number}"))
        store.people.disable(left)
        store.people.set_role(f"c{number}", "admin")
        with store.database.writing() as connection:
            connection.exec_driver_sql("DELETE FROM people")


# Q3


def test_a_session_is_found_with_whose_it_is_until_it_is_ended(store: Store) -> None:
    store.people.add(ANNA)
    begin(store, ANNA, 1, at=5.0)
    begin(store, ANNA, 2, at=6.0)
    found = store.people.session(sha(1))
    assert found is not None
    assert found[0] == Session(sha(1), "anna", begun_at=5.0, used_at=5.0)
    assert found[1] == dataclasses.replace(ANNA, last_login_at=6.0)
    for now, used_at in ((8.0, 8.0), (7.0, 8.0)):
        store.people.use(sha(1), now=now)
        found = store.people.session(sha(1))
        assert found is not None
        assert found[0].used_at == used_at, "a use that comes late takes none back"
    store.people.end(sha(1))
    assert store.people.session(sha(1)) is None
    assert store.people.session(sha(2)) is not None
    store.people.use(sha(1), now=9.0)
    assert store.people.session(sha(1)) is None


def test_who_is_disabled_has_no_session_and_no_link_and_gets_none(store: Store) -> None:
    store.people.add(ANNA)
    active = dataclasses.replace(BERT, state="active", password=NEW)
    store.people.add(active)
    begin(store, active, 1)
    begin(store, ANNA, 2)
    store.people.add_link(link_of(active), now=1.0)
    store.people.disable(active.name)
    with store.database.reading() as connection:
        rows = rows_in(connection)
    assert rows["person_links"] == []
    assert [row[1] for row in rows["person_sessions"]] == ["anna"]
    with pytest.raises(AccessDenied):
        begin(store, active, 3)
    with pytest.raises(AccessDenied):
        store.people.set_password(active.name, "newer", instead_of=NEW, keep="")


def test_another_password_ends_the_other_sessions_and_logins_that_are_under_way(
    store: Store,
) -> None:
    store.people.add(ANNA)
    eve = dataclasses.replace(ANNA, name="eve")
    store.people.add(eve)
    for number in (1, 2):
        begin(store, ANNA, number)
    begin(store, eve, 3)
    store.people.set_password("anna", "new", instead_of=ANNA.password, keep=sha(2))
    alive = [n for n in (1, 2, 3) if store.people.session(sha(n)) is not None]
    assert alive == [2, 3]
    with pytest.raises(AccessDenied, match="changed meanwhile"):
        begin(store, ANNA, 4)  # the old password was right when it was looked at
    with pytest.raises(AccessDenied, match="changed meanwhile"):
        store.people.set_password("anna", "newer", instead_of=ANNA.password, keep="")


def test_a_login_and_a_disabling_at_once_leave_no_session(store: Store) -> None:
    store.people.add(ANNA)
    for number in range(10):
        person = dataclasses.replace(ANNA, name=f"p{number}")
        store.people.add(person)
        outcome = at_once(
            partial(begin, store, person, number), partial(store.people.disable, person.name)
        )
        assert outcome in (["AccessDenied", "done"], ["done", "done"])
        assert store.people.session(sha(number)) is None


def test_sessions_that_are_over_are_forgotten_when_another_begins(store: Store) -> None:
    store.people.add(ANNA)
    for number, (begun_at, used_at) in enumerate([(1.0, 8.0), (5.0, 2.0), (5.0, 8.0)]):
        session = Session(sha(number), "anna", begun_at=begun_at, used_at=used_at)
        store.people.begin(session, password=ANNA.password, begun_after=0.0, used_after=0.0)
    store.people.begin(
        Session(sha(9), "anna", 9.0, 9.0), password=ANNA.password, begun_after=1.0, used_after=2.0
    )
    with store.database.reading() as connection:
        left = connection.execute(person_sessions.select()).all()
        assert connection.execute(person_links.select()).all() == []
    assert sorted(row.secret_sha256 for row in left) == [sha(2), sha(9)]
