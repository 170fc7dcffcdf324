"""C1 to C5: who is let in, for how long, what is written down, and what failing costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.audit.chain import Action
from coordinator.audit.sink import acting
from coordinator.people.people import (
    FREE_TRIES,
    FREE_TRIES_HERE,
    IDLE_S,
    LINK_S,
    NOTED_S,
    SESSION_S,
    acting_name,
)
from coordinator.people.throttle import LONGEST_S
from coordinator.store.people import Person
from shared.errors import (
    AccessDenied,
    ConfigError,
    DataError,
    LlmOsError,
    NotPermitted,
    StorageError,
    TooManyTries,
)
from shared.wire import topics
from tests.support.people import HERE, PASSWORD, Accounts

OTHER = "another sentence of mine"


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    accounts = Accounts(tmp_path)
    yield accounts
    accounts.close()


@pytest.fixture(autouse=True)
def _as_admin() -> Iterator[None]:
    token = acting.set("admin")
    yield
    acting.reset(token)


def wrong(accounts: Accounts, name: str = "anna", address: str = HERE) -> None:
    with pytest.raises(AccessDenied, match="name or password is wrong"):
        accounts.log_in(name, "not her password", address)


# The first account, invitations and new passwords


def test_the_first_account_is_an_admins_and_its_name_is_chosen(accounts: Accounts) -> None:
    people = accounts.people
    assert not people.has_accounts()
    made = people.first_link()
    assert (made.purpose, made.name, made.role) == ("first", None, "admin")
    assert people.look_at(made.secret) == made
    entered = accounts.enter(made.secret, "anna")
    assert people.has_accounts()
    assert people.whose(entered.secret) == entered.person
    assert (entered.person.name, entered.person.role) == ("anna", "admin")
    with pytest.raises(DataError, match="has an account already"):
        people.first_link()


def test_a_new_first_link_takes_the_place_of_the_last(accounts: Accounts) -> None:
    old, new = accounts.people.first_link(), accounts.people.first_link()
    with pytest.raises(AccessDenied):
        accounts.enter(old.secret, "anna")
    assert accounts.enter(new.secret, "anna").person.role == "admin"


def test_who_is_invited_sets_a_password_and_is_in(accounts: Accounts) -> None:
    made = accounts.people.invite("bert@firm.example", "operator")
    shown = accounts.people.look_at(made.secret)
    assert (shown.purpose, shown.name, shown.role) == ("invite", "bert@firm.example", "operator")
    (before,) = accounts.people.people()
    assert (before.state, before.password) == ("invited", None)
    wrong(accounts, "bert@firm.example")
    entered = accounts.enter(made.secret, "bert@firm.example")
    assert accounts.people.whose(entered.secret) is not None
    assert accounts.log_in("bert@firm.example").person.last_login_at == 1000.0


@pytest.mark.parametrize("purpose", ["first", "invite", "reset"])
def test_a_link_is_good_once_and_for_its_time(accounts: Accounts, purpose: str) -> None:
    def make() -> Any:
        if purpose == "first":
            return accounts.people.first_link()
        if purpose == "invite":
            return accounts.people.invite(f"p{accounts.now:.0f}", "viewer")
        return accounts.people.new_link("anna")

    if purpose == "reset":
        accounts.add("anna")
    late = make()
    assert late.expires_at == accounts.now + LINK_S[purpose]
    accounts.now += LINK_S[purpose] - 1
    assert accounts.people.look_at(late.secret).purpose == purpose
    accounts.now += 1
    with pytest.raises(AccessDenied, match="has expired"):
        accounts.people.look_at(late.secret)
    with pytest.raises(AccessDenied):
        accounts.enter(late.secret, late.name or "anna")
    made = make()
    accounts.enter(made.secret, made.name or "anna")
    for _ in range(2):
        with pytest.raises(AccessDenied):
            accounts.enter(made.secret, made.name or "anna", OTHER)
    accounts.log_in(made.name or "anna")


def test_what_may_not_be_chosen_costs_the_link_nothing_and_leaves_no_trace(
    accounts: Accounts,
) -> None:
    accounts.people.invite("bert", "viewer")
    made = accounts.people.first_link()
    before = accounts.told.short
    refused: list[tuple[str, str, type[LlmOsError]]] = [
        ("anna", "short", ConfigError),
        ("anna", "anna" * 3, ConfigError),
        ("Anna", PASSWORD, ConfigError),
        ("", PASSWORD, ConfigError),
        ("a\0", PASSWORD, ConfigError),
        ("bert", PASSWORD, DataError),
    ]
    for name, password, kind in refused:
        with pytest.raises(kind):
            accounts.enter(made.secret, name, password)
    assert accounts.told.short == before
    assert [person.name for person in accounts.people.people()] == ["bert"]
    accounts.enter(made.secret, "anna")


def test_a_link_is_for_whom_it_was_made(accounts: Accounts) -> None:
    made = accounts.people.invite("bert", "viewer")
    accounts.people.invite("eve", "admin")
    with pytest.raises(ConfigError, match="this link is for bert"):
        accounts.enter(made.secret, "eve")
    assert accounts.enter(made.secret, "bert").person.role == "viewer"


def test_with_a_new_link_there_is_another_password_and_no_session_of_before(
    accounts: Accounts,
) -> None:
    before = accounts.add("anna")
    made = accounts.people.new_link("anna")
    assert made is not None
    assert made.purpose == "reset"
    assert accounts.people.whose(before.secret) is not None, "nothing changes until it is used"
    entered = accounts.enter(made.secret, "anna", OTHER)
    assert accounts.people.whose(before.secret) is None
    assert accounts.people.whose(entered.secret) is not None
    wrong(accounts)
    accounts.log_in("anna", OTHER)
    assert accounts.people.new_link("nobody") is None
    assert accounts.people.new_link("a\0") is None


def test_who_was_disabled_is_let_in_again_by_a_new_link_alone(accounts: Accounts) -> None:
    anna = accounts.add("anna")
    waiting = accounts.people.new_link("anna")
    assert waiting is not None
    assert accounts.people.disable("anna")
    assert accounts.people.disable("anna"), "it is so already"
    assert accounts.people.whose(anna.secret) is None
    with pytest.raises(AccessDenied, match="name or password is wrong"):
        accounts.log_in("anna")
    with pytest.raises(AccessDenied):
        accounts.enter(waiting.secret, "anna")
    made = accounts.people.new_link("anna")
    assert made is not None
    assert made.purpose == "invite"
    accounts.enter(made.secret, "anna", OTHER)
    accounts.log_in("anna", OTHER)
    assert not accounts.people.disable("nobody")


def test_names_and_roles_that_cannot_be_are_all_named_at_once(accounts: Accounts) -> None:
    with pytest.raises(ConfigError) as caught:
        accounts.people.invite("Anna Meier", "device")
    assert [each.partition(":")[0] for each in caught.value.problems] == ["name", "role"]
    for name in ("", "-a", "a-", ".", "..", "a" * 65, "a/b", "a:b", "ä", "a\n", "a b"):
        with pytest.raises(ConfigError):
            accounts.people.invite(name, "viewer")
    for name in ("a", "a" * 64, "anna.meier_2@firm-x.example"):
        accounts.people.invite(name, "viewer")
        with pytest.raises(DataError, match="somebody called"):
            accounts.people.invite(name, "viewer")
    for role in ("stranger", "metrics", "device", "root", ""):
        with pytest.raises(ConfigError, match="role"):
            accounts.people.set_role("a", role)


def test_a_persons_name_is_no_keys_tokens_or_devices() -> None:
    for name in ("admin", "metrics", "device", "anna"):
        assert not topics.is_name(acting_name(name))
        assert not acting_name(name).startswith("device:")
    assert len(acting_name("a" * 64)) <= 80, "it fits the audit log"


# Sessions


def test_a_session_ends_after_its_time_however_much_it_is_used(accounts: Accounts) -> None:
    secret = accounts.add("anna").secret
    end = accounts.now + SESSION_S
    while accounts.now + IDLE_S / 2 < end:
        accounts.now += IDLE_S / 2
        assert accounts.people.whose(secret) is not None
        accounts.noted()
    accounts.now = end - 0.1
    assert accounts.people.whose(secret) is not None
    accounts.now = end
    assert accounts.people.whose(secret) is None


def test_a_session_that_is_not_used_ends_after_an_hour(accounts: Accounts) -> None:
    secret = accounts.add("anna").secret
    accounts.now += IDLE_S - 0.1
    assert accounts.people.whose(secret, in_use=False) is not None
    accounts.noted()
    accounts.now += 0.1
    assert accounts.people.whose(secret) is None, "to look is no use"


def test_a_use_is_on_disk_within_a_minute_and_outlives_the_process(accounts: Accounts) -> None:
    secret = accounts.add("anna").secret
    accounts.now += NOTED_S - 0.1
    accounts.people.whose(secret)
    accounts.noted()
    accounts.now += 0.1
    accounts.people.whose(secret)
    accounts.noted()
    accounts.now += IDLE_S - 0.1
    again = accounts.again()
    assert again.whose(secret, in_use=False) is not None
    accounts.now += 0.1
    assert again.whose(secret) is None
    again.close()


def test_logging_out_ends_this_session_and_no_other(accounts: Accounts) -> None:
    first = accounts.add("anna")
    second = accounts.log_in("anna")
    accounts.people.log_out(first.secret, first.person)
    assert accounts.people.whose(first.secret) is None
    assert accounts.people.whose(second.secret) is not None


def test_what_is_no_session_opens_nothing(accounts: Accounts) -> None:
    secret = accounts.add("anna").secret
    for shown in ("", "x", secret[:-1], secret + "x", secret.swapcase(), "ü" * 43, "\ud800" * 43):
        assert accounts.people.whose(shown) is None


def test_a_role_holds_from_the_next_request_on(accounts: Accounts) -> None:
    secret = accounts.add("anna", "viewer").secret
    changed = accounts.people.set_role("anna", "operator")
    assert changed is not None
    assert changed.role == "operator"
    person = accounts.people.whose(secret)
    assert person is not None
    assert person.role == "operator"
    assert accounts.people.set_role("nobody", "operator") is None


def test_the_last_active_admin_stays(accounts: Accounts) -> None:
    accounts.enter(accounts.people.first_link().secret, "anna")
    accounts.people.invite("bert", "admin")
    for deed in (
        lambda: accounts.people.disable("anna"),
        lambda: accounts.people.set_role("anna", "viewer"),
    ):
        with pytest.raises(DataError, match="last active admin"):
            deed()
    assert [entry.action for entry in accounts.told.entries[-2:]] == [
        Action.ROLE_CHANGED,
        Action.NOT_DONE,
    ]


def test_another_password_takes_the_old_one_and_ends_the_other_sessions(
    accounts: Accounts,
) -> None:
    first, second = accounts.add("anna"), accounts.log_in("anna")

    def change(old: str, new: str, person: Person = second.person) -> None:
        accounts.people.change_password(
            person, old, new, secret=second.secret, address=HERE
        ).result(60)

    with pytest.raises(NotPermitted, match="old password is wrong"):
        change(OTHER, OTHER)
    with pytest.raises(ConfigError):
        change(PASSWORD, "short")
    assert accounts.people.whose(first.secret) is not None
    change(PASSWORD, OTHER)
    assert accounts.people.whose(first.secret) is None
    assert accounts.people.whose(second.secret) is not None
    wrong(accounts)
    accounts.log_in("anna", OTHER)


# What is kept and written down


def test_no_secret_is_in_the_files(accounts: Accounts) -> None:
    made = accounts.people.invite("bert", "viewer")
    secrets = [made.secret, accounts.add("anna").secret, PASSWORD]
    accounts.store.close()
    held = b"".join(path.read_bytes() for path in accounts.folder.glob("store.db*"))
    assert b"bert" in held, "the control"
    assert not any(secret.encode() in held for secret in secrets)
    assert not any(secret in repr(accounts.told.entries) for secret in secrets)


def test_everything_is_written_down_with_who_did_it(accounts: Accounts) -> None:
    people = accounts.people
    accounts.enter(people.first_link().secret, "anna")
    acting.set("person:anna")
    bert = accounts.add("bert")
    wrong(accounts, "bert")
    wrong(accounts, "nobody")
    people.set_role("bert", "operator")
    people.set_role("bert", "operator")  # changes nothing
    people.change_password(bert.person, PASSWORD, OTHER, secret="", address=HERE).result(60)
    people.log_out(accounts.log_in("bert", OTHER).secret, bert.person)
    people.disable("bert")
    people.new_link("bert")
    assert accounts.told.short == [
        ("admin", "person-linked", ""),
        ("person:anna", "person-added", "anna"),
        ("person:anna", "logged-in", "anna"),
        ("person:anna", "person-added", "bert"),
        ("person:anna", "person-linked", "bert"),
        ("person:bert", "link-spent", "bert"),
        ("person:bert", "logged-in", "bert"),
        ("stranger", "login-failed", "bert"),
        ("stranger", "login-failed", ""),
        ("person:anna", "role-changed", "bert"),
        ("person:bert", "password-changed", "bert"),
        ("person:bert", "logged-in", "bert"),
        ("person:bert", "logged-out", "bert"),
        ("person:anna", "person-disabled", "bert"),
        ("person:anna", "person-linked", "bert"),
    ]
    facts = [dict(entry.facts) for entry in accounts.told.entries]
    assert facts[9] == {"role": "operator", "before": "viewer"}
    assert facts[5] == {"purpose": "invite"}


def test_what_cannot_be_written_down_does_not_happen(accounts: Accounts) -> None:
    anna = accounts.add("anna")
    link = accounts.people.invite("bert", "viewer").secret
    deeds: list[Callable[[], object]] = [
        lambda: accounts.people.invite("carl", "viewer"),
        lambda: accounts.people.new_link("anna"),
        lambda: accounts.people.set_role("anna", "operator"),
        lambda: accounts.people.disable("anna"),
        lambda: accounts.people.log_out(anna.secret, anna.person),
        lambda: accounts.log_in("anna"),
        lambda: accounts.log_in("anna", "wrong password"),
        lambda: accounts.enter(link, "bert"),
        lambda: accounts.people.change_password(
            anna.person, PASSWORD, OTHER, secret="", address=HERE
        ).result(60),
    ]
    before = accounts.people.people()
    accounts.told.full = True
    for deed in deeds:
        with pytest.raises(StorageError):
            deed()
    accounts.told.full = False
    assert accounts.people.people() == before
    assert accounts.people.whose(anna.secret) is not None
    accounts.log_in("anna")
    accounts.enter(link, "bert")


# What failing costs


def test_who_fails_has_to_wait_by_name_wherever_it_comes_from(accounts: Accounts) -> None:
    accounts.add("anna")
    accounts.add("bert")
    for number in range(FREE_TRIES):
        wrong(accounts, "anna", f"10.1.0.{number}")
    with pytest.raises(TooManyTries) as caught:
        accounts.log_in("anna", address="10.2.0.1")
    assert caught.value.retry_after_s == 1.0
    accounts.log_in("bert")
    accounts.now += 1
    accounts.log_in("anna")
    for _ in range(FREE_TRIES):
        wrong(accounts, "anna")


def test_names_that_there_are_not_wait_as_others_do(accounts: Accounts) -> None:
    accounts.add("anna")
    for name in ("anna", "nobody"):
        for _ in range(FREE_TRIES):
            wrong(accounts, name)
        with pytest.raises(TooManyTries):
            accounts.log_in(name)


def test_who_fails_has_to_wait_by_address_whatever_the_name(accounts: Accounts) -> None:
    accounts.add("anna")
    for number in range(FREE_TRIES_HERE):
        wrong(accounts, f"name-{number}")
    with pytest.raises(TooManyTries):
        accounts.log_in("anna")
    accounts.log_in("anna", address="10.0.0.2")
    accounts.now += 1
    accounts.log_in("anna")
    accounts.now += 1
    wrong(accounts, "another")
    accounts.now += 1
    with pytest.raises(TooManyTries):
        accounts.log_in("anna", address=HERE)


def test_at_the_longest_it_is_some_minutes_and_a_link_lets_in_meanwhile(
    accounts: Accounts,
) -> None:
    accounts.add("anna")
    waited = 0.0
    for number in range(20):
        address = f"10.1.0.{number}"
        try:
            accounts.log_in("anna", "wrong password", address)
        except TooManyTries as err:
            waited = err.retry_after_s or 0.0
            accounts.now += waited
            wrong(accounts, "anna", address)
        except AccessDenied:
            continue
    assert waited == LONGEST_S
    with pytest.raises(TooManyTries):
        accounts.log_in("anna")
    made = accounts.people.new_link("anna")
    assert made is not None
    assert accounts.enter(made.secret, "anna", OTHER).person.name == "anna"


def test_tries_at_once_get_no_further_than_one_by_one(accounts: Accounts) -> None:
    accounts.add("anna")
    futures, refused = [], 0
    for _ in range(3 * FREE_TRIES):
        try:
            futures.append(accounts.people.log_in("anna", "wrong password", address=HERE))
        except TooManyTries:
            refused += 1
    assert len(futures) == FREE_TRIES
    assert refused == 2 * FREE_TRIES
    for future in futures:
        assert isinstance(future.exception(60), AccessDenied)


def test_a_guessed_old_password_costs_as_much_as_a_login(accounts: Accounts) -> None:
    anna = accounts.add("anna")
    for _ in range(FREE_TRIES):
        with pytest.raises(NotPermitted):
            accounts.people.change_password(
                anna.person, "wrong", OTHER, secret="", address=HERE
            ).result(60)
    with pytest.raises(TooManyTries):
        accounts.people.change_password(anna.person, PASSWORD, OTHER, secret="", address=HERE)


def test_every_login_compares_one_hash_whoever_it_is_for(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts.add("anna")
    accounts.add("dora")
    accounts.people.disable("dora")
    accounts.people.invite("bert", "viewer")
    compared: list[str | None] = []
    fits = accounts.people._passwords.fits

    def counts(password: str, kept: str | None) -> bool:
        compared.append(kept)
        return fits(password, kept)

    monkeypatch.setattr(accounts.people._passwords, "fits", counts)
    for name in ("anna", "dora", "bert", "nobody", "a\0", "Not A Name"):
        wrong(accounts, name)
    assert len(compared) == 6
    assert [kept is not None for kept in compared] == [True, True, False, False, False, False]
    failed = [entry for entry in accounts.told.entries if entry.action is Action.LOGIN_FAILED]
    assert len(failed) == 6, "that it is written down takes time too"
