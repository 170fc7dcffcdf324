"""Every route, as every kind of asker, by every spelling: what the table of roles does not allow is refused.

Routes are those that the application has, so one that is added tomorrow is swept without being
named here. What each role may do is said here a second time, in other words than in the table.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.types import Message

from coordinator.api import roles
from coordinator.api.access import SESSION_COOKIE
from coordinator.api.roles import (
    PERMISSIONS,
    ROLES_OF_KEYS,
    ROLES_OF_PEOPLE,
    WEB_SOCKET,
    Role,
    routes_of,
    unlisted,
)
from tests.support.coordinator_api import SCRAPER, TOKEN, Api

OPEN = {("GET", "/healthz"), ("GET", "/readyz"), ("POST", "/api/v1/devices/join")}
OPEN |= {("GET", "/api/v1/trust"), ("POST", "/api/v1/certificates")}
SESSION = "/api/v1/session"
OPEN |= {("GET", SESSION), ("POST", SESSION), ("POST", f"{SESSION}/link")}
OPEN |= {("GET", f"/{path}") for path in ("", "console/", "console/{name}")}
OPEN |= {("GET", "/console/assets/{name}")}
OPEN |= {("GET", f"{SESSION}/oidc"), ("GET", f"{SESSION}/oidc/callback")}
OPEN |= {
    ("GET", f"/api/v1/docs{file}")
    for file in ("", "/page.js", "/swagger-ui-bundle.js", "/swagger-ui.css")
}
"""What answers without a credential. A device that joins has only its one-time secret, and one that
renews its certificate a request that its key has signed; whom to trust it asks before. A page
in a browser cannot send any; what it shows it reads with one. Whoever logs in has none yet."""

OWN = {("DELETE", SESSION), ("PUT", f"{SESSION}/password")}
"""What everybody may who can log in; a key or token is told that it has no session."""

KEYS, AUDIT, PEOPLE = "/api/v1/keys", "/api/v1/audit", "/api/v1/people"
ALARMS = "/api/v1/alarms"
ADMINS = (KEYS, AUDIT, PEOPLE, f"{SESSION}/first")
KEPT_OUT = "/api/v1/keys/{name}/quarantine"
MAY: dict[Role, Callable[[str, str], bool]] = {
    Role.ADMIN: lambda method, path: True,
    Role.OPERATOR: lambda method, path: (
        (not path.startswith((*ADMINS, "/metrics")) or (method, path) == ("POST", KEPT_OUT))
        and (method, path) != ("DELETE", "/api/v1/devices/{name}")
    ),
    Role.VIEWER: lambda method, path: (
        (method == "GET" and not path.startswith((*ADMINS, "/metrics", "/v1/collections")))
        or (method, path) in OWN
    ),
    Role.AUDITOR: lambda method, path: (
        (method == "GET" and path in {KEYS, AUDIT, PEOPLE, ALARMS, "/api/v1/openapi.json"})
        or (method, path) in OWN
    ),
    Role.CALLER: lambda method, path: (
        path.startswith("/v1/") or path == "/api/v1/usage" or (method, path) in OWN
    ),
    Role.DEVICE: lambda method, path: False,
    Role.METRICS: lambda method, path: path == "/metrics",
}
"""What opens to a role besides ``OPEN``."""


@dataclass(frozen=True)
class Got:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class World:
    """An application, keys of every kind, and what they were refused or given."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.runner = asyncio.Runner()
        every = sorted(routes_of(api.app))
        self.routes = [each for each in every if each[0] != WEB_SOCKET]
        self.sockets = [path for method, path in every if method == WEB_SOCKET]
        made = {role: api.make_key(role + "-key", role=role)["key"] for role in ROLES_OF_KEYS[:-1]}
        self.roles: dict[Role, str] = {role: f"Bearer {made[role]}" for role in made}
        self.roles[Role.ADMIN] = f"Bearer {TOKEN}"
        self.roles[Role.METRICS] = f"Bearer {SCRAPER}"
        second = f"Bearer {api.make_key('second-admin', role='admin')['key']}"
        self.admins = [self.roles[Role.ADMIN], second]
        revoked = api.make_key("revoked", role="admin")["key"]
        assert api.client.delete(f"{KEYS}/revoked", headers={"Authorization": second}).is_success
        expired = api.make_key("expired", role="admin", days=1)["key"]
        former = api.make_key("rotated", role="admin")["key"]
        assert api.post(f"{KEYS}/rotated/rotate", {"overlap_hours": 1}).status_code == 200
        alive = [f"Bearer {each}" for each in (expired, former)]
        before = [self.ask("GET", KEYS, shown).status for shown in alive]
        assert before == [200, 200], "the control"
        api.clock.run(until_s=api.clock.now() + 2 * 86_400)
        caller = made[Role.CALLER]
        self.strangers: dict[str, str | None] = {
            "none": None,
            "empty": "",
            "wrong": "Bearer wrong",
            "nearly": f"Bearer {TOKEN}x",
            "cut": f"Bearer {TOKEN[:-1]}",
            "a key that there is not": "Bearer llmos_" + "a" * 43,
            "revoked": f"Bearer {revoked}",
            "expired": f"Bearer {expired}",
            "former": f"Bearer {former}",
            "no scheme": TOKEN,
            "no credential": "Bearer",
            "two spaces": f"Bearer  {TOKEN}",
            "another scheme": f"Token {TOKEN}",
            "basic": "Basic " + base64.b64encode(f"admin:{TOKEN}".encode()).decode(),
            "two": f"Bearer {TOKEN}, Bearer {caller}",
            "in a list": f"Bearer wrong, Bearer {TOKEN}",
            "not ASCII": "Bearer ü",
            "long": "Bearer llmos_" + "a" * 10_000,
        }

    def log_in(self, role: Role) -> str:
        """The cookie of somebody who has this role, with a session of its own."""
        name = f"somebody-{role}"
        made = self.api.people.new_link(name) or self.api.people.invite(name, role)
        entered = self.api.people.enter(made.secret, name, "a sentence of mine", address="x")
        return entered.result(60).secret

    def opens(
        self,
        path: str,
        shown: str | None,
        *,
        cookie: str | None = None,
        origin: str | None = "http://llmos",
    ) -> bool:
        """Whether a web socket is accepted."""
        sent: list[str] = []
        said: Iterator[Message] = iter(
            [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]
        )

        async def receive() -> Message:
            return next(said)

        async def send(message: Message) -> None:
            sent.append(message["type"])

        head = [(b"host", b"llmos")]
        if shown is not None:
            head.append((b"authorization", shown.encode()))
        if cookie is not None:
            head.append((b"cookie", f"{SESSION_COOKIE}={cookie}".encode()))
        if origin is not None:
            head.append((b"origin", origin.encode()))
        scope: dict[str, Any] = {"type": "websocket", "scheme": "ws", "path": path}
        scope |= {"headers": head, "query_string": b"", "subprotocols": []}
        self.runner.run(self.api.app(scope, receive, send))
        return sent[0] == "websocket.accept"

    def ask(
        self,
        method: str,
        target: str,
        shown: str | None,
        *,
        cookie: str | None = None,
        origin: str | None = "http://llmos",
    ) -> Got:
        """Ask as the server does, whose paths are unquoted and otherwise as they came.

        With ``cookie`` it is asked as a browser does that shows a page of ``origin``.
        """
        headers = [(b"host", b"llmos"), (b"content-type", b"application/json")]
        if shown is not None:
            headers.append((b"authorization", shown.encode("latin-1")))
        if cookie is not None:
            headers.append((b"cookie", cookie.encode("latin-1")))
            if origin is not None:
                headers.append((b"origin", origin.encode()))
        return self.runner.run(self._ask(method, target, headers))

    async def _ask(self, method: str, target: str, headers: list[tuple[bytes, bytes]]) -> Got:
        sent: list[Message] = []

        async def receive() -> Message:
            # Whoever has said all it has to say leaves: a stream would go on for ever.
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        body = [b"{}"]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(target),
            "raw_path": target.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8443),
        }
        await self.api.app(scope, receive, send)
        nothing: Message = {"status": 499, "headers": []}
        start = sent[0] if sent else nothing
        given = {name.decode().lower(): value.decode() for name, value in start["headers"]}
        return Got(start["status"], given, b"".join(each.get("body", b"") for each in sent))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    api = Api(tmp_path_factory.mktemp("routes"))
    world = World(api)
    yield world
    world.runner.close()
    api.store.close()


def filled(path: str) -> str:
    """A route's path with something in every place."""
    return re.sub(r"\{\w+(:path)?\}", "some", path)


def refused(got: Got, path: str, code: str) -> dict[str, Any]:
    """The body of a refusal, in the words of the part of the API that was asked."""
    body: dict[str, Any] = json.loads(got.body)
    if path == "/v1" or path.startswith("/v1/"):
        assert body["error"]["code"] == code
    else:
        assert got.headers["content-type"] == "application/problem+json"
        assert body["type"] == f"urn:llmos:{code}"
        assert body["status"] == got.status
    return body


def test_the_sweep_sees_every_route(world: World) -> None:
    found = set(world.routes)
    assert found > OPEN
    assert {("GET", "/metrics"), ("GET", "/api/v1/openapi.json")} < found
    assert len(found) + len(world.sockets) == len(PERMISSIONS)
    documented = {
        (method.upper(), path)
        for path, item in world.api.app.openapi()["paths"].items()
        for method in item
    }
    assert {(method, path.replace(":path}", "}")) for method, path in found} > documented


def test_without_a_valid_credential_nothing_is_open_but_what_is_named_here(world: World) -> None:
    for method, path in world.routes:
        told = set()
        for kind, shown in world.strangers.items():
            got = world.ask(method, filled(path), shown)
            if (method, path) in OPEN:
                assert got.status != 403, (method, path, kind)
                continue
            assert got.status == 401, (method, path, kind)
            assert got.headers["www-authenticate"] == "Bearer"
            refused(got, path, "access_denied")
            told.add(got.body)
            assert TOKEN.encode() not in got.body
        assert len(told) <= 1, f"{path} tells wrong, expired and revoked credentials apart"


@pytest.mark.parametrize("role", MAY)
def test_a_role_may_do_what_is_said_here_and_nothing_else(world: World, role: Role) -> None:
    shown = world.roles[role]
    for method, path in world.routes:
        got = world.ask(method, filled(path), shown)
        if (method, path) in OPEN or MAY[role](method, path):
            assert got.status < 500 or path.startswith("/v1/"), (method, path)
            if (method, path) not in OPEN:
                assert got.status not in (401, 403), (method, path)
        else:
            assert got.status == 403, (method, path)
            body = refused(got, path, "access_denied.not_permitted")
            taken = [each for each in MAY if each in ROLES_OF_KEYS and MAY[each](method, path)]
            if "roles" in body:
                assert set(body["roles"]) == set(taken)
            assert all(each in got.body.decode() for each in taken)


@pytest.mark.parametrize("role", ROLES_OF_PEOPLE)
def test_a_person_may_what_the_role_may(world: World, role: Role) -> None:
    for method, path in world.routes:
        # A new one for each: there is a route that ends it, and one that ends everybody's.
        cookie = f"{SESSION_COOKIE}={world.log_in(role)}"
        got = world.ask(method, filled(path), None, cookie=cookie)
        if (method, path) in OPEN or MAY[role](method, path):
            assert got.status < 500 or path.startswith("/v1/"), (method, path)
            if (method, path) not in OPEN:
                assert got.status not in (401, 403), (method, path, got)
        else:
            assert got.status == 403, (method, path)
            refused(got, path, "access_denied.not_permitted")


FOREIGN = ["http://elsewhere", "https://llmos", "http://llmos:81", "http://llmos.elsewhere", "null"]
FOREIGN += ["", "HTTP://LLMOS/", "http://llmos http://elsewhere"]


def test_to_a_page_of_another_origin_nothing_is_open_that_changes_anything(world: World) -> None:
    for method, path in world.routes:
        # Logged in anew for each route, so that a failure names the first route alone.
        cookie = f"{SESSION_COOKIE}={world.log_in(Role.ADMIN)}"
        if method == "GET":
            got = world.ask(method, filled(path), None, cookie=cookie, origin="http://elsewhere")
            assert got.status != 403, (method, path)
            continue
        for origin in FOREIGN:
            got = world.ask(method, filled(path), None, cookie=cookie, origin=origin)
            assert got.status == 403, (method, path, origin)
            refused(got, path, "access_denied.not_permitted")
        got = world.ask(method, filled(path), None, cookie=cookie, origin=None)
        assert (got.status == 403) is ((method, path) not in OPEN), (method, path)


def test_what_is_no_session_of_now_opens_nothing(world: World) -> None:
    clock, people = world.api.clock, world.api.people
    person = people.whose(world.log_in(Role.ADMIN))
    assert person is not None
    reset = world.log_in(Role.ADMIN)
    good = world.log_in(Role.ADMIN)  # for which there was a new link, which ends what was before
    ended = people.log_in(person.name, "a sentence of mine", address="x").result(60).secret
    people.log_out(ended, person)
    expired = people.log_in(person.name, "a sentence of mine", address="x").result(60).secret
    name = SESSION_COOKIE
    cookies = {
        "another name": f"session={good}",
        "wrong": f"{name}={'a' * 43}",
        "cut": f"{name}={good[:-1]}",
        "longer": f"{name}={good}x",
        "two": f"{name}={good}; {name}={good}",
        "the admin token": f"{name}={TOKEN}",
        "a key": f"{name}={world.roles[Role.OPERATOR].removeprefix('Bearer ')}",
        "quoted": f'{name}="{good}"',
        "empty": f"{name}=",
        "no value": name,
        "ended": f"{name}={ended}",
        "ended by a new link": f"{name}={reset}",
        "another case": f"{name.upper()}={good}",
        "not ASCII": f"{name}=ü",
        "long": f"{name}={'a' * 10_000}",
    }
    control = world.ask("GET", KEYS, None, cookie=f"a=b; {name}={good} ; c=d")
    assert control.status == 200, "the control"
    beside = world.ask("GET", KEYS, "Bearer wrong", cookie=f"{name}={good}")
    assert beside.status == 401, "a cookie beside a header is not looked at"
    clock.run(until_s=clock.now() + 3600)
    cookies["expired"] = f"{name}={expired}"
    cookies["idle"] = f"{name}={good}"
    for method, path in world.routes:
        told = set()
        for kind, cookie in cookies.items():
            got = world.ask(method, filled(path), None, cookie=cookie)
            if (method, path) in OPEN:
                assert got.status != 403, (method, path, kind)
                continue
            assert got.status == 401, (method, path, kind)
            refused(got, path, "access_denied")
            told.add(got.body)
        assert len(told) <= 1, f"{path} tells wrong and ended sessions apart"


def test_a_key_or_token_has_no_session_to_end(world: World) -> None:
    for role in ROLES_OF_PEOPLE:
        assert world.ask("DELETE", SESSION, world.roles[role]).status == 409


def test_an_admins_key_is_as_good_as_the_token(world: World) -> None:
    for method, path in world.routes:
        answers = {world.ask(method, filled(path), shown).status for shown in world.admins}
        assert len(answers) == 1 or path == KEYS, (method, path, answers)


def test_a_joins_answer_is_the_routes_own_whatever_is_shown(world: World) -> None:
    """The table opens it; without a join token it is refused for its body."""
    for shown in (None, "Bearer wrong", *world.roles.values()):
        assert world.ask("POST", "/api/v1/devices/join", shown).status == 422


METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "get")


def spellings(path: str) -> list[str]:
    """Targets that a router may take for ``path``, or for something below it."""
    return [
        path,
        f"{path}/",
        f"{path}//",
        f"/{path}",
        f"//{path}",
        f"/.{path}",
        f"/x/..{path}",
        f"{path}/.",
        f"{path}/..",
        f"{path}/x",
        f"{path}%2F",
        f"{path}%00",
        f"{path}%0A",
        f"{path};x=1",
        f"{path}%3Fx",
        f"{path}.json",
        f"{path}%20",
        path.upper(),
        path.title(),
        path.replace("/", "%2F"),
        path.replace("/", "%2f").replace("%2f", "/", 1),
        path.replace("/", "\\"),
        path.replace("/", "//"),
        path.replace("a", "%61"),
        path.replace("e", "%2565"),
        path[:-1],
    ]


NOWHERE = ["", "*", "/api", "/v1", "/api/v1", "/api/v2/runs", "/docs", "/redoc"]
NOWHERE += ["/openapi.json", "/static/x", "/favicon.ico", "/.env", "/%2e%2e/etc/passwd", "/v1x"]


def is_a_file(method: str, path: str) -> bool:
    """Whether a stranger may ask for it: the console's files, by any name."""
    return method == "GET" and re.fullmatch(r"/console/(assets/)?[^/]*", path) is not None


def test_by_any_method_and_spelling_a_stranger_is_refused(world: World) -> None:
    targets = {each for _, path in world.routes for each in spellings(filled(path))}
    asked = 0
    for target in sorted(targets | set(NOWHERE)):
        for method in METHODS:
            if (method, unquote(target)) in OPEN or is_a_file(method, unquote(target)):
                continue
            asked += 1
            shown = world.strangers["revoked"] if method == "GET" else None
            assert world.ask(method, target, shown).status == 401, (method, target)
    assert asked > 3000


@pytest.mark.parametrize("role", [Role.DEVICE, Role.CALLER, Role.METRICS])
def test_by_any_method_and_spelling_a_role_gets_no_further(world: World, role: Role) -> None:
    for target in sorted({each for _, path in world.routes for each in spellings(filled(path))}):
        path = unquote(target)
        for method in ("GET", "POST", "DELETE"):
            if (method, path) in OPEN or MAY[role](method, path) or is_a_file(method, path):
                continue
            assert world.ask(method, target, world.roles[role]).status in {403, 404, 405}, (
                method,
                target,
            )


def test_an_admin_learns_that_there_is_nothing_or_which_methods_there_are(world: World) -> None:
    admin = world.roles[Role.ADMIN]
    for target in (*NOWHERE, "/healthz/", "//healthz", "/HEALTHZ"):
        got = world.ask("GET", target, admin)
        assert got.status == 404, target
        refused(got, target, "request")
    for method in ("HEAD", "OPTIONS", "PUT"):
        got = world.ask(method, KEYS, admin)
        assert (got.status, got.headers["allow"]) == (405, "GET, POST")


def test_what_was_refused_left_no_trace(world: World) -> None:
    for method, path in world.routes:
        for shown in (*world.strangers.values(), world.roles[Role.DEVICE]):
            world.ask(method, filled(path), shown)
    before = len(world.api.store.api_keys())
    assert world.api.engine.served == []
    assert world.api.store.runs() == []
    assert world.api.stopped == []
    assert world.api.store.devices() == []
    assert before == len(world.api.store.api_keys()) == len(ROLES_OF_KEYS) - 1 + 4


# The table


def test_the_table_names_no_route_twice_and_none_that_there_is_not(world: World) -> None:
    named = [(each.method, each.route) for each in PERMISSIONS]
    assert len(named) == len(set(named))
    assert set(named) == {*world.routes, *((WEB_SOCKET, path) for path in world.sockets)}
    assert all(each.roles for each in PERMISSIONS)


def test_a_route_without_a_line_answers_nobody(world: World) -> None:
    app = world.api.app
    before = list(app.router.routes)
    hidden, inner = APIRouter(), Starlette()
    hidden.add_api_route("/secret", lambda: "secret", include_in_schema=False)
    app.add_api_route("/secret", lambda: "secret", methods=["GET", "POST"])
    app.include_router(hidden, prefix="/api/v9")
    app.mount("/inner", inner)
    app.add_api_websocket_route("/socket", lambda socket: socket.accept())
    try:
        assert ("GET", "/api/v9/secret") in unlisted(app)
        assert {("GET", "/secret"), ("POST", "/secret"), ("*", "/inner")} < unlisted(app)
        assert len(unlisted(app)) == 5
        for path in ("/secret", "/api/v9/secret", "/inner", "/inner/x"):
            assert world.ask("GET", path, world.roles[Role.ADMIN]).status == 404
            assert world.ask("GET", path, None).status == 401
    finally:
        app.router.routes[:] = before


def test_an_application_with_a_route_that_has_no_line_is_not_made(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    without = tuple(each for each in PERMISSIONS if each.route != "/api/v1/devices")
    monkeypatch.setattr(roles, "PERMISSIONS", without)
    with pytest.raises(RuntimeError, match=r"'/api/v1/devices'"):
        Api(tmp_path)


def test_where_two_lines_fit_both_must_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        roles.Permission("GET", "/a/{x}", frozenset({Role.VIEWER, Role.ADMIN}), 10),
        roles.Permission("GET", "/a/b", frozenset({Role.CALLER, Role.ADMIN}), 20),
        roles.Permission("PUT", "/a/b", frozenset({Role.CALLER}), 5),
    )
    for order in (lines, lines[::-1]):
        monkeypatch.setattr(roles, "PERMISSIONS", order)
        found = roles.allowance("GET", "/a/b")
        assert (set(found.roles), found.body_bytes) == ({Role.ADMIN}, 10)
        assert found.methods == ("GET", "PUT")
        assert roles.allowance("GET", "/a/c").roles == {Role.VIEWER, Role.ADMIN}
        assert not roles.allowance("DELETE", "/a/b").roles
        assert not roles.allowance("GET", "/b").roles


def test_a_socket_opens_to_whom_the_table_names_and_nobody_else(world: World) -> None:
    assert world.sockets == ["/api/v1/live"]
    for path in world.sockets:
        for kind, shown in world.strangers.items():
            assert not world.opens(path, shown), kind
            assert not world.opens(path, shown, origin=None), kind
        for role, shown in world.roles.items():
            reads = role in {Role.VIEWER, Role.OPERATOR, Role.ADMIN}
            assert world.opens(path, shown) == reads, role
            assert world.opens(path, shown, origin=None) == reads, role
    admin = world.roles[Role.ADMIN]
    for path in ("/", "/healthz", "/api/v1/live/", "/api/v1/events", "//api/v1/live", "/v1/models"):
        assert not world.opens(path, admin), path


def test_a_page_of_another_origin_opens_no_socket(world: World) -> None:
    """A browser sends the cookie with a socket that any page opens."""
    for role in ROLES_OF_PEOPLE:
        cookie, reads = world.log_in(role), role in {Role.VIEWER, Role.OPERATOR, Role.ADMIN}
        assert world.opens("/api/v1/live", None, cookie=cookie) == reads, role
        assert not world.opens("/api/v1/live", None, cookie=cookie + "x")
        for origin in (None, "http://evil", "https://llmos", "http://llmos:81", "null", ""):
            assert not world.opens("/api/v1/live", None, cookie=cookie, origin=origin), origin
    assert not world.opens("/api/v1/live", world.roles[Role.ADMIN], origin="http://evil")


def test_older_frameworks_list_their_routes_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    app = FastAPI(openapi_url=None)
    app.add_api_route("/here", lambda: "here")
    found = routes_of(app)
    monkeypatch.delattr("fastapi.routing.iter_route_contexts", raising=False)
    assert routes_of(app) == found == {("GET", "/here")}
