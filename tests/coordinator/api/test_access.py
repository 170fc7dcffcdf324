"""A secret opens what it is for, nothing of it is kept, and a revoked one is shut out at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.api.access import FRESH_S, PREFIX_LENGTH, Access, Principal
from coordinator.api.roles import ROLES_OF_KEYS, Role, Scopes
from coordinator.inference.front_desk import Caller
from coordinator.store.store import Store
from shared.errors import ConfigError, DataError

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


def test_a_key_is_its_caller_with_a_role_and_scopes(access: Access) -> None:
    secret, key = access.make_key(
        "notes",
        role="operator",
        scopes={"models": ["qwen", "llama*"], "tasks": []},
        priority=2,
        tokens_per_minute=50,
        public_cache=True,
    )
    assert access.principal(f"Bearer {secret}") == Principal(
        Caller("notes", 2, 50, True), Role.OPERATOR, Scopes(models=("qwen", "llama*"))
    )
    assert key.prefix == secret[:PREFIX_LENGTH]


def test_a_key_of_which_nothing_is_said_is_a_callers(access: Access) -> None:
    secret, _ = access.make_key("notes")
    assert access.principal(f"Bearer {secret}") == Principal(Caller("notes"), Role.CALLER)


def test_the_tokens_of_the_folder_are_the_admins_and_the_scrapers(
    store: Store, clock: Clock
) -> None:
    access = Access(store, admin_token=ADMIN_TOKEN, metrics_token="m", now=clock)  # noqa: S106  a test's own
    assert access.principal(f"Bearer {ADMIN_TOKEN}") == Principal(Caller("admin"), Role.ADMIN)
    assert access.principal("Bearer m") == Principal(Caller("metrics"), Role.METRICS)
    assert access.principal("Bearer mm") is None


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_bearer_however_it_is_written(access: Access, scheme: str) -> None:
    assert access.principal(f"{scheme} {ADMIN_TOKEN}") is not None


@pytest.mark.parametrize(
    "written", ["{}", " {}", "Bearer{}", "Bearer  {}", "Basic {}", "{} Bearer"]
)
def test_a_credential_that_is_written_otherwise_is_none(access: Access, written: str) -> None:
    secret, _ = access.make_key("notes")
    for shown in (secret, ADMIN_TOKEN):
        assert access.principal(written.format(shown)) is None


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
        assert access.principal(shown) is None


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
    assert elsewhere.principal(f"Bearer {secret}") is not None
    assert access.revoke("notes")
    assert access.principal(f"Bearer {secret}") is None
    clock.at += FRESH_S + 0.01
    assert elsewhere.principal(f"Bearer {secret}") is None
    assert FRESH_S < 1


def test_a_key_in_quarantine_opens_nothing_until_it_is_let_out(
    access: Access, store: Store, clock: Clock
) -> None:
    secret, _ = access.make_key("notes")
    elsewhere = another(store, clock)
    for opens in (False, True):
        assert (elsewhere.principal(f"Bearer {secret}") is None) is opens
        assert access.release("notes") if opens else access.quarantine("notes", "odd")
        for each in (access, elsewhere):
            assert (each.principal(f"Bearer {secret}") is not None) is opens
            clock.at += FRESH_S + 0.01
    assert not access.quarantine("nobody", "odd")
    assert not access.release("no/body")


def test_a_secret_that_leaked_is_replaced_while_it_opens_nothing(access: Access) -> None:
    leaked, _ = access.make_key("notes")
    assert access.quarantine("notes", "leaked")
    rotated = access.rotate("notes", overlap_hours=0)
    assert rotated is not None
    assert access.principal(f"Bearer {rotated[0]}") is None, "it is still in quarantine"
    assert access.release("notes")
    assert access.principal(f"Bearer {rotated[0]}") is not None
    assert access.principal(f"Bearer {leaked}") is None


def test_a_new_key_is_known_elsewhere_within_a_second(
    access: Access, store: Store, clock: Clock
) -> None:
    elsewhere = another(store, clock)
    assert elsewhere.principal("Bearer llmos_nothing") is None
    secret, _ = access.make_key("notes")
    clock.at += FRESH_S + 0.01
    assert elsewhere.principal(f"Bearer {secret}") is not None


def test_a_key_expires_to_the_second(access: Access, clock: Clock) -> None:
    secret, key = access.make_key("short", days=0.5)
    assert key.expires_at == 1000 + 43_200
    clock.at = 1000 + 43_199.9
    assert access.principal(f"Bearer {secret}") is not None
    clock.at = 1000 + 43_200
    assert access.principal(f"Bearer {secret}") is None


def test_an_empty_token_opens_nothing(store: Store, clock: Clock) -> None:
    open_to_none = Access(store, admin_token="", metrics_token="", now=clock)
    for shown in ("", "Bearer ", "Bearer", "bearer  "):
        assert open_to_none.principal(shown) is None


# Rotation


def test_after_a_rotation_both_secrets_open_until_the_overlap_is_over(
    access: Access, store: Store, clock: Clock
) -> None:
    old, _ = access.make_key("notes", role="viewer", scopes={"models": ["a"]}, priority=1)
    rotated = access.rotate("notes", overlap_hours=1)
    assert rotated is not None
    new, kept = rotated
    assert kept.prefix == new[:PREFIX_LENGTH]
    elsewhere = another(store, clock)
    for place in (access, elsewhere):
        assert place.principal(f"Bearer {old}") == place.principal(f"Bearer {new}") is not None
    clock.at += 3599.9
    assert access.principal(f"Bearer {old}") is not None
    clock.at += 0.1
    for place in (access, elsewhere):
        assert place.principal(f"Bearer {old}") is None
        assert place.principal(f"Bearer {new}") is not None


def test_without_overlap_the_old_secret_ends_at_once(access: Access) -> None:
    old, _ = access.make_key("notes")
    rotated = access.rotate("notes", overlap_hours=0)
    assert rotated is not None
    assert access.principal(f"Bearer {old}") is None
    assert access.principal(f"Bearer {rotated[0]}") is not None


def test_a_second_rotation_ends_the_oldest_secret(access: Access) -> None:
    secrets = [access.make_key("notes")[0]]
    for _ in range(2):
        rotated = access.rotate("notes", overlap_hours=5)
        assert rotated is not None
        secrets.append(rotated[0])
    opens = [access.principal(f"Bearer {each}") is not None for each in secrets]
    assert opens == [False, True, True]


def test_revoking_and_expiring_end_both_secrets(access: Access, clock: Clock) -> None:
    for name, days in (("revoked", None), ("expired", 0.01)):
        old, _ = access.make_key(name, days=days)
        rotated = access.rotate(name, overlap_hours=5)
        assert rotated is not None
        if days is None:
            access.revoke(name)
        else:
            clock.at += 865
        for shown in (old, rotated[0]):
            assert access.principal(f"Bearer {shown}") is None


def test_what_opens_nothing_is_not_rotated(access: Access, clock: Clock) -> None:
    assert access.rotate("nobody", overlap_hours=1) is None
    access.make_key("revoked")
    access.revoke("revoked")
    access.make_key("expired", days=1)
    clock.at += 86_401
    before = access.api_keys()
    for name in ("revoked", "expired"):
        with pytest.raises(DataError, match=name):
            access.rotate(name, overlap_hours=1)
    assert access.api_keys() == before


@pytest.mark.parametrize("hours", [-1, 721, float("nan"), float("inf")])
def test_an_overlap_has_bounds(access: Access, hours: float) -> None:
    access.make_key("notes")
    with pytest.raises(ConfigError, match="overlap_hours"):
        access.rotate("notes", overlap_hours=hours)


# What is no key


@pytest.mark.parametrize("role", ROLES_OF_KEYS)
def test_every_role_of_keys_can_be_given(access: Access, role: Role) -> None:
    secret, _ = access.make_key("notes", role=role)
    principal = access.principal(f"Bearer {secret}")
    assert principal is not None
    assert principal.role is role


@pytest.mark.parametrize("role", ["", "root", "Admin", "stranger", "metrics"])
def test_no_other_role_can(access: Access, role: str) -> None:
    with pytest.raises(ConfigError, match="role"):
        access.make_key("notes", role=role)


@pytest.mark.parametrize(
    ("scopes", "named"),
    [
        ({"models": [""]}, "models"),
        ({"models": ["a*b"]}, "models"),
        ({"models": ["**"]}, "models"),
        ({"collections": ["x" * 301]}, "collections"),
        ({"collections": ["x"] * 101}, "collections"),
        ({"tasks": ["clasify"]}, "tasks"),
        ({"tasks": ["*"]}, "tasks"),
        ({"runs": ["x"]}, "runs"),
    ],
)
def test_a_scope_that_cannot_be_is_refused_by_its_kind(
    access: Access, scopes: dict[str, list[str]], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        access.make_key("notes", scopes=scopes)
    assert list(access.api_keys()) == []


def test_everything_that_is_wrong_with_a_key_is_said_at_once(access: Access) -> None:
    with pytest.raises(ConfigError) as refused:
        access.make_key(
            "admin",
            role="root",
            scopes={"tasks": ["x"]},
            days=-1,
            priority=99,
            tokens_per_minute=-1,
        )
    assert len(refused.value.problems) == 6
    assert list(access.api_keys()) == []


def test_what_is_listed_holds_no_secret(access: Access) -> None:
    secret, _ = access.make_key("notes")
    (listed,) = access.api_keys()
    assert secret not in str(dataclasses.asdict(listed))
