"""A secret opens what it is for, nothing of it is kept, and a revoked one is shut out at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.api.access import FRESH_S, PREFIX_LENGTH, Access
from coordinator.inference.front_desk import Caller
from coordinator.store.store import Store
from shared.errors import ConfigError

ADMIN_TOKEN = "of-the-admin"  # noqa: S105  a test's own


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path / 'store.db'}", tmp_path)
    yield store
    store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(store: Store, clock: Clock) -> Access:
    return another(store, clock)


def another(store: Store, clock: Clock) -> Access:
    """As a second process over the same store."""
    return Access(store, admin_token=ADMIN_TOKEN, now=clock, monotonic=clock)


def test_a_key_is_its_caller(access: Access) -> None:
    secret, key = access.make_key("notes", priority=2, tokens_per_minute=50, public_cache=True)
    assert access.caller(f"Bearer {secret}") == Caller("notes", 2, 50, True)
    assert key.prefix == secret[:PREFIX_LENGTH]
    assert access.caller(f"Bearer {ADMIN_TOKEN}") == Caller("admin")


@pytest.mark.parametrize("change", ["", "x", "llmos_", " ", "ü", "llmos_" + "a" * 43])
def test_what_is_nearly_a_key_opens_nothing(access: Access, change: str) -> None:
    secret, key = access.make_key("notes")
    for shown in (
        f"Bearer {change}",
        f"Bearer {secret}{change or 'a'}",
        f"Bearer {secret[:-1]}",
        f"Bearer {key.prefix}",
        f"Bearer {key.secret_sha256}",
        f"Bearer {secret.upper()}",
    ):
        assert access.caller(shown) is None
        assert not access.is_admin(shown)
        assert not access.may_read_metrics(shown)


def test_a_secret_has_256_bits_and_none_of_them_but_the_prefix_is_on_disk(
    access: Access, store: Store
) -> None:
    secrets = {access.make_key(f"key-{number}")[0] for number in range(20)}
    assert len({secret[PREFIX_LENGTH:] for secret in secrets}) == 20
    assert {len(secret) for secret in secrets} == {len("llmos_") + 43}
    store.close()
    kept = b"".join(path.read_bytes() for path in store.folder.glob("store.db*"))
    for secret in secrets:
        assert secret[:PREFIX_LENGTH].encode() in kept, "the control"
        assert secret[PREFIX_LENGTH : PREFIX_LENGTH + 8].encode() not in kept


def test_a_revoked_key_opens_nothing_at_once_here_and_within_a_second_elsewhere(
    access: Access, store: Store, clock: Clock
) -> None:
    secret, _ = access.make_key("notes")
    elsewhere = another(store, clock)
    assert elsewhere.caller(f"Bearer {secret}") is not None
    assert access.revoke("notes")
    assert access.caller(f"Bearer {secret}") is None
    clock.at += FRESH_S + 0.01
    assert elsewhere.caller(f"Bearer {secret}") is None
    assert FRESH_S < 1


def test_a_new_key_is_known_elsewhere_within_a_second(
    access: Access, store: Store, clock: Clock
) -> None:
    elsewhere = another(store, clock)
    assert elsewhere.caller("Bearer llmos_nothing") is None
    secret, _ = access.make_key("notes")
    clock.at += FRESH_S + 0.01
    assert elsewhere.caller(f"Bearer {secret}") == Caller("notes")


def test_a_key_expires_to_the_second(access: Access, clock: Clock) -> None:
    secret, key = access.make_key("short", days=0.5)
    assert key.expires_at == 1000 + 43_200
    clock.at = 1000 + 43_199.9
    assert access.caller(f"Bearer {secret}") is not None
    clock.at = 1000 + 43_200
    assert access.caller(f"Bearer {secret}") is None


def test_an_empty_token_opens_nothing(store: Store, clock: Clock) -> None:
    open_to_none = Access(store, admin_token="", metrics_token="", now=clock)
    for shown in ("", "Bearer ", "Bearer"):
        assert not open_to_none.is_admin(shown)
        assert not open_to_none.may_read_metrics(shown)
        assert open_to_none.caller(shown) is None


def test_the_token_for_metrics_and_the_admin_s_open_metrics(store: Store, clock: Clock) -> None:
    access = Access(store, admin_token=ADMIN_TOKEN, metrics_token="m", now=clock)  # noqa: S106  a test's own
    assert access.may_read_metrics("Bearer m")
    assert access.may_read_metrics(f"Bearer {ADMIN_TOKEN}")
    assert not access.may_read_metrics("Bearer mm")
    assert not access.is_admin("Bearer m")
    assert access.caller("Bearer m") is None


def test_everything_that_is_wrong_with_a_key_is_said_at_once(access: Access) -> None:
    with pytest.raises(ConfigError) as refused:
        access.make_key("admin", days=-1, priority=99, tokens_per_minute=-1)
    assert len(refused.value.problems) == 4
    assert list(access.api_keys()) == []


def test_what_is_listed_holds_no_secret(access: Access) -> None:
    secret, _ = access.make_key("notes")
    (listed,) = access.api_keys()
    assert secret not in str(dataclasses.asdict(listed))
