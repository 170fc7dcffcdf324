"""W1 to W3: what is kept of passwords, what it costs to try one, and which may be chosen."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.people import passwords
from coordinator.people.passwords import COMMONEST, LONGEST, SHORTEST, Passwords, check_choice
from shared.errors import ConfigError

CHEAP = Passwords(memory_kib=8, rounds=1)
GOOD = "a sentence of my own"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_a_password_fits_its_own_hash_and_no_other(password: str, other: str) -> None:
    kept = CHEAP.hashed(password)
    assert CHEAP.fits(password, kept)
    same = passwords._normal(other) == passwords._normal(password)
    assert CHEAP.fits(other, kept) is same


def test_the_hash_is_argon2id_with_a_salt_of_its_own_and_the_cost_that_is_documented() -> None:
    kept = Passwords().hashed(GOOD)
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=1$")
    assert GOOD not in kept
    assert CHEAP.hashed(GOOD) != CHEAP.hashed(GOOD)
    assert len(kept) < 255


def test_a_password_fits_however_the_keyboard_spells_it_and_whatever_json_can_spell() -> None:
    assert CHEAP.fits("Schlüssel zum Tor", CHEAP.hashed("Schlu\u0308ssel zum Tor"))
    assert not CHEAP.fits("schlüssel zum tor", CHEAP.hashed("Schlüssel zum Tor"))
    assert not CHEAP.fits("\ud800", CHEAP.hashed(GOOD))


def test_where_nothing_is_kept_something_is_compared_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []
    verify = CHEAP._hasher.verify

    class Counts:
        def verify(self, kept: str, password: bytes) -> bool:
            compared.append(kept)
            return bool(verify(kept, password))

    monkeypatch.setattr(CHEAP, "_hasher", Counts())
    assert not CHEAP.fits(GOOD, None)
    (kept,) = compared
    assert kept.rpartition("$")[0].startswith("$argon2id$v=19$m=8,t=1,p=1$")


def problems_of(password: str, name: str = "anna") -> list[str]:
    try:
        check_choice(password, name=name)
    except ConfigError as err:
        return err.problems
    return []


def test_length_is_what_counts_and_every_script_and_character_is_taken() -> None:
    assert problems_of("a" * (SHORTEST - 2) + "b") != []
    for good in (
        GOOD,
        "b" + "a" * (SHORTEST - 1),
        "密码是一句只有我自己知道的长话",
        " 'quoted' \t \0 ",
    ):
        assert problems_of(good) == []
    assert problems_of("ab" * (LONGEST // 2)) == []
    assert problems_of("ab" * (LONGEST // 2) + "c") != []


@pytest.mark.parametrize(
    "bad", ["password1234", "PassWord1234", "aaaaaaaaaaaaaaaa", "anna" * 3, "Anna" * 4, ""]
)
def test_names_and_the_commonest_are_refused(bad: str) -> None:
    assert problems_of(bad)
    assert bad.upper() not in "".join(problems_of(bad)) or not bad


def test_a_name_within_a_sentence_is_no_reason() -> None:
    assert problems_of("anna has a red bicycle") == []
    assert problems_of("a-b-c-d-e-f-g-h", name="a") == []


def test_every_reason_is_named_at_once() -> None:
    assert len(problems_of("aaaa", name="a")) == 3


def test_the_list_has_only_what_would_be_long_enough() -> None:
    assert all(len(each) >= SHORTEST and each == each.casefold() for each in COMMONEST)
    assert len(COMMONEST) >= 40
