"""O1 to O3: of what a provider says, only what it signed, for us, for this login, and not over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from joserfc.jwk import KeySet, RSAKey

from coordinator.api.roles import ROLES_OF_PEOPLE
from coordinator.people import oidc
from coordinator.people.oidc import Identity, OidcSettings, Provider, check_settings
from shared.errors import AccessDenied, ConfigError, DataError, ProviderUnavailable
from tests.support.coordinator_api import Api, problem
from tests.support.oidc_provider import (
    CLIENT,
    SECRET,
    Claims,
    OidcProvider,
    key_of,
    signed,
    signed_with_our_own,
    unsigned,
)
from tests.support.people import Accounts

BACK = "http://testserver/api/v1/session/oidc/callback"
ROLES = {"boss": "admin", "ops": "operator", "staff": "viewer"}
OTHERS = RSAKey.generate_key(2048, parameters={"kid": "1"}, auto_kid=False)
"""A key of the same name as the provider's."""


class World:
    """A provider, and what asks it, on one clock."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.provider = OidcProvider(now=lambda: self.now)
        self.settings = OidcSettings(self.provider.issuer, CLIENT, SECRET, ROLES)
        self.ours = self.again()

    def again(self, **changes: Any) -> Provider:
        settings = dataclasses.replace(self.settings, **changes)
        return Provider(settings, now=lambda: self.now, monotonic=lambda: self.now)

    def log_in(self, ours: Provider | None = None, **query: str) -> Identity:
        """Go there and come back, with changes to what is come back with."""
        ours = ours or self.ours
        there, cookie = ours.begin(BACK)
        return ours.finish(self.provider.visited(there) | query, cookie, BACK)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.provider.close()


def test_who_comes_back_is_known_by_issuer_and_subject(world: World) -> None:
    issuer = world.provider.issuer
    assert world.log_in() == Identity(f"{issuer} u-1", "anna", "operator")
    world.provider.user |= {"preferred_username": "Anna.Meier", "groups": "staff"}
    assert world.log_in() == Identity(f"{issuer} u-1", "anna.meier", "viewer")
    world.provider.change = lambda claims: claims | {"aud": ["else", CLIENT], "azp": CLIENT}
    assert world.log_in().name == "anna.meier"
    claims = world.again(role_claim="department", name_claim="email")
    world.provider.user |= {"department": ["boss", "staff"], "email": "anna@firm.example"}
    assert world.log_in(claims) == Identity(f"{issuer} u-1", "anna@firm.example", "admin")


LIES: dict[str, Callable[[Claims, RSAKey], str]] = {
    "wrong nonce": lambda claims, key: signed(claims | {"nonce": "another"}, key),
    "no nonce": lambda claims, key: signed({**claims, "nonce": ""}, key),
    "wrong audience": lambda claims, key: signed(claims | {"aud": "another"}, key),
    "many audiences": lambda claims, key: signed(claims | {"aud": [CLIENT, "another"]}, key),
    "another party": lambda claims, key: signed(claims | {"azp": "another"}, key),
    "wrong issuer": lambda claims, key: signed(claims | {"iss": "https://another"}, key),
    "expired": lambda claims, key: signed(claims | {"exp": claims["iat"] - 61}, key),
    "of tomorrow": lambda claims, key: signed(claims | {"iat": claims["iat"] + 86_400}, key),
    "never expires": lambda claims, key: signed(without(claims, "exp"), key),
    "no time": lambda claims, key: signed(without(claims, "iat"), key),
    "no subject": lambda claims, key: signed(without(claims, "sub"), key),
    "no audience": lambda claims, key: signed(without(claims, "aud"), key),
    "alg none": lambda claims, _: unsigned(claims),
    "a shared secret": signed_with_our_own,
    "another key": lambda claims, _: signed(claims, OTHERS),
    "an unknown key": lambda claims, key: signed(claims, OTHERS, kid="2"),
    "changed": lambda claims, key: changed(signed(claims, key)),
    "no signature": lambda claims, key: signed(claims, key).rpartition(".")[0] + ".",
    "no token": lambda claims, key: "x.y.z",
    "empty": lambda claims, key: "",
    "a long subject": lambda claims, key: signed(claims | {"sub": "a" * 256}, key),
    "a subject of two lines": lambda claims, key: signed(claims | {"sub": "a\nb"}, key),
    "a number for a subject": lambda claims, key: signed(claims | {"sub": 7}, key),
    "no name": lambda claims, key: signed(without(claims, "preferred_username"), key),
    "no group": lambda claims, key: signed(without(claims, "groups"), key),
    "a group without a role": lambda claims, key: signed(claims | {"groups": ["ops2"]}, key),
    "part of a group": lambda claims, key: signed(claims | {"groups": "boss,ops"}, key),
    "groups of another form": lambda claims, key: signed(claims | {"groups": {"ops": 1}}, key),
}


def without(claims: Claims, name: str) -> Claims:
    return {key: value for key, value in claims.items() if key != name}


def changed(token: str) -> str:
    head, body, signature = token.split(".")
    return ".".join([head, body[:-2] + ("AA" if body[-2:] != "AA" else "BB"), signature])


@pytest.mark.parametrize("lie", LIES)
def test_a_token_that_is_not_right_lets_nobody_in(world: World, lie: str) -> None:
    assert world.log_in().name == "anna", "the control"
    world.provider.sign = LIES[lie]
    with pytest.raises(AccessDenied):
        world.log_in()


def test_keys_that_change_are_asked_for_again(world: World) -> None:
    world.log_in()
    world.provider.key = key_of("2")
    world.log_in()
    world.provider.keys = lambda: KeySet([OTHERS]).as_dict(private=False)
    with pytest.raises(AccessDenied):
        world.log_in()


def test_without_a_mapping_nobody_gets_in(world: World) -> None:
    with pytest.raises(AccessDenied, match="nothing lets you in"):
        world.log_in(world.again(roles={}))


def test_a_login_is_bound_to_its_browser_its_time_and_its_process(world: World) -> None:
    there, cookie = world.ours.begin(BACK)
    _, another = world.ours.begin(BACK)
    query = world.provider.visited(there)
    data, _, signature = cookie.partition(".")
    asked = list(world.provider.asked)
    for shown, said in [
        (another, query),
        ("", query),
        ("x.y", query),
        (data, query),
        (f"{data[:-4]}AAA=.{signature}", query),
        (f"ü.{signature}", query),
        (cookie, query | {"state": "another"}),
        (cookie, without(query, "state")),
        (cookie, query | {"state": "ü\ud800"}),
        (cookie, query | {"iss": "https://another"}),
        (cookie, {"state": query["state"], "error": "access_denied"}),
    ]:
        with pytest.raises(AccessDenied):
            world.ours.finish(said, shown, BACK)
    with pytest.raises(AccessDenied):
        world.again().finish(query, cookie, BACK)
    assert world.provider.asked == asked, "the provider is not asked about them"
    assert world.ours.finish(query, cookie, BACK).name == "anna"
    with pytest.raises(AccessDenied, match="does not take this login"):
        world.ours.finish(query, cookie, BACK)
    there, cookie = world.ours.begin(BACK)
    query = world.provider.visited(there)
    world.now += oidc.LOGIN_S
    with pytest.raises(AccessDenied, match="took too long"):
        world.ours.finish(query, cookie, BACK)


def test_the_provider_sees_a_challenge_and_its_secret_and_checks_both(world: World) -> None:
    there, _ = world.ours.begin(BACK)
    assert SECRET not in there
    with pytest.raises(AccessDenied):
        world.log_in(world.again(client_secret=CLIENT))
    there, cookie = world.ours.begin(BACK)
    query = world.provider.visited(there)
    with pytest.raises(AccessDenied):
        world.ours.finish(query, cookie, "http://elsewhere/callback")
    _, nonce, verifier, _ = world.ours._read(cookie)
    assert verifier not in there
    assert nonce in there


@pytest.mark.parametrize(
    "said",
    [
        {"issuer": "https://another"},
        {"issuer": None},
        {"authorization_endpoint": None},
        {"authorization_endpoint": "http://elsewhere.example/authorize"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": "https:///nowhere"},
    ],
)
def test_a_provider_that_sends_people_elsewhere_is_none(world: World, said: Claims) -> None:
    world.provider.discovery = said
    with pytest.raises(ProviderUnavailable):
        world.ours.begin(BACK)


def test_a_provider_that_is_away_is_said_to_be_and_found_again(world: World) -> None:
    away = OidcProvider()
    away.close()
    with pytest.raises(ProviderUnavailable, match="does not answer"):
        world.again(issuer=away.issuer).begin(BACK)
    world.provider.discovery = {"token_endpoint": f"{away.issuer}/token"}
    with pytest.raises(ProviderUnavailable, match="does not answer"):
        world.log_in()
    world.provider.discovery = {"jwks_uri": f"{world.provider.issuer}/nowhere"}
    world.now += oidc.KNOWN_S + 1
    with pytest.raises(ProviderUnavailable, match="answers with 404"):
        world.log_in()
    world.provider.discovery = {}
    world.now += oidc.KNOWN_S + 1
    assert world.log_in().name == "anna"


def test_its_addresses_are_asked_for_once_in_a_while(world: World) -> None:
    for _ in range(5):
        world.ours.begin(BACK)
    assert len(world.provider.asked) == 1


def test_settings_that_cannot_be_right_are_all_named() -> None:
    check_settings(OidcSettings("http://[::1]:80", "a", "b", {"x": "admin"}), roles=ROLES_OF_PEOPLE)
    for issuer in ("", "http://firm.example", "ftp://firm.example", "https://", "firm.example"):
        with pytest.raises(ConfigError) as caught:
            check_settings(OidcSettings(issuer, "", "", {"x": "device"}), roles=ROLES_OF_PEOPLE)
        assert len(caught.value.problems) == 4
    assert "hidden" not in repr(OidcSettings("https://a", "b", "hidden", {}))


# Accounts


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    accounts = Accounts(tmp_path)
    yield accounts
    accounts.close()


def test_an_account_is_made_at_the_first_login_and_has_the_role_of_the_last(
    accounts: Accounts,
) -> None:
    people = accounts.people
    anna = Identity("https://a u-1", "anna", "operator")
    first = people.let_in(anna)
    assert people.has_accounts()
    assert people.whose(first.secret) == first.person
    second = people.let_in(dataclasses.replace(anna, name="renamed", role="viewer"))
    assert (second.person.name, second.person.role) == ("anna", "viewer")
    assert len(people.people()) == 1
    assert accounts.told.short == [
        ("person:anna", "person-added", "anna"),
        ("person:anna", "logged-in", "anna"),
        ("person:anna", "role-changed", "anna"),
        ("person:anna", "logged-in", "anna"),
    ]
    with pytest.raises(AccessDenied, match="name or password is wrong"):
        accounts.log_in("anna", "")


def test_nobody_is_taken_for_somebody_else_of_the_same_name(accounts: Accounts) -> None:
    accounts.add("anna", "admin")
    accounts.people.invite("bert", "admin")
    for name in ("anna", "bert", "Not A Name", ""):
        with pytest.raises(AccessDenied):
            accounts.people.let_in(Identity("https://a u-1", name, "viewer"))
    accounts.people.let_in(Identity("https://a u-2", "carl", "viewer"))
    with pytest.raises(AccessDenied):
        accounts.people.let_in(Identity("https://b u-2", "carl", "admin"))
    assert [person.name for person in accounts.people.people()] == ["anna", "bert", "carl"]


def test_who_is_disabled_stays_out_and_the_last_admin_stays_one(accounts: Accounts) -> None:
    anna = Identity("https://a u-1", "anna", "admin")
    accounts.people.let_in(anna)
    with pytest.raises(DataError, match="last active admin"):
        accounts.people.let_in(dataclasses.replace(anna, role="viewer"))
    accounts.add("bert", "admin")
    accounts.people.disable("anna")
    with pytest.raises(AccessDenied, match="disabled"):
        accounts.people.let_in(anna)
    assert accounts.told.short[-1] == ("stranger", "login-failed", "anna")


# Over HTTP


def test_a_browser_goes_to_the_provider_and_comes_back_logged_in(
    world: World, tmp_path: Path
) -> None:
    api = Api(tmp_path, provider=world.ours)
    client = TestClient(api.app, follow_redirects=False)
    assert client.get("/api/v1/session").json()["oidc"] is True
    answer = client.get("/api/v1/session/oidc")
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"].lower()
    for part in ("httponly", "samesite=lax", "path=/api/v1/session/oidc", "max-age=600"):
        assert part in cookie
    query = world.provider.visited(answer.headers["location"])
    stranger = TestClient(api.app, follow_redirects=False)
    refused = stranger.get("/api/v1/session/oidc/callback", params=query)
    assert problem(refused)["status"] == 401
    back = client.get("/api/v1/session/oidc/callback", params=query)
    assert (back.status_code, back.headers["location"]) == (303, "/console/")
    assert "llmos_oidc" not in client.cookies
    session = next(
        each for each in back.headers.get_list("set-cookie") if each.startswith("llmos_session=")
    )
    assert {"httponly", "samesite=strict"} <= {part.strip().lower() for part in session.split(";")}
    who = client.get("/api/v1/session").json()
    assert (who["name"], who["role"], who["kind"]) == ("anna", "operator", "person")
    assert client.get("/api/v1/runs").status_code == 200
    api.people.close()
    api.store.close()


def test_without_a_provider_there_is_none_to_go_to(tmp_path: Path) -> None:
    api = Api(tmp_path)
    for path in ("/api/v1/session/oidc", "/api/v1/session/oidc/callback"):
        assert problem(api.client.get(path))["status"] == 404
    assert api.client.get("/api/v1/session").json()["oidc"] is False
    api.people.close()
    api.store.close()
