"""People: who has an account, how they are let in, and how long they stay logged in.

C1  of links and sessions only the SHA-256 of their 256 random bits is kept
C2  a session ends after 12 hours, after one without use, and at once by logging out, by another
    password (the others) and by disabling
C3  a login costs the same whether or not there is such a name, and whoever fails has to wait
C4  every change is written down before it is made, as the audit log wants it; so is every login
C5  links are good once, and for so long; the first of all makes the only account that nobody allowed

Rules are here, rows in :mod:`coordinator.store.people`, HTTP in :mod:`coordinator.api.session`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import structlog

from coordinator.audit.audited_store import person_added
from coordinator.audit.chain import Action, Entry, Facts
from coordinator.audit.sink import AuditSink, NoAudit, acting, recorded
from coordinator.people.failures import FailedLogins
from coordinator.people.oidc import Identity
from coordinator.people.passwords import Passwords, check_choice
from coordinator.people.throttle import Throttle, place_of
from coordinator.people.workers import Workers
from coordinator.store.people import (
    ACTIVE,
    ADMIN_ROLE,
    DISABLED,
    FIRST,
    INVITED,
    Link,
    PeopleRows,
    Person,
    Session,
)
from shared.errors import (
    AccessDenied,
    ConfigError,
    DataError,
    LlmOsError,
    NotPermitted,
    StorageError,
    TooManyTries,
)

ResultT = TypeVar("ResultT")

log = structlog.get_logger()

SESSION_S: Final = 12 * 3600.0
IDLE_S: Final = 3600.0
NOTED_S: Final = 60.0
"""A use is written to disk when the last one there is so old; a session may end so much early."""

LINK_S: Final = {FIRST: 3600.0, "invite": 72 * 3600.0, "reset": 3600.0}
"""Purpose → how long a link is good."""

SECRET_BYTES: Final = 32
SECRET_LENGTH: Final = 43
"""Letters of so many bytes in base64."""

FREE_TRIES: Final = 5
"""Of one name, before there is a wait."""
FREE_TRIES_HERE: Final = 20
"""From one address, which a whole office may share."""

NAME: Final = r"[a-z0-9](?:[a-z0-9._@-]{0,62}[a-z0-9])?"
_NAME: Final = re.compile(NAME)

KIND: Final = "person"
"""Before a person's name, with a colon, where keys, devices and people stand side by side."""


@dataclass(frozen=True, slots=True)
class MadeLink:
    """A new link; its secret is in no other place.

    Attributes:
        secret: That it opens with.
        purpose: ``first``, ``invite`` or ``reset``.
        name: Whose it is; ``None``: of whoever has it.
        role: Of the account that it leads to.
        expires_at: Seconds since the epoch.
    """

    secret: str
    purpose: str
    name: str | None
    role: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A new session: its secret, which is in no other place, and whose it is."""

    secret: str
    person: Person


def acting_name(name: str) -> str:
    """A person's name as no key's, token's or device's can be."""
    return f"{KIND}:{name}"


class People:
    """Accounts, links and sessions. Safe on any thread."""

    def __init__(
        self,
        rows: PeopleRows,
        *,
        roles: Sequence[str],
        audit: AuditSink | None = None,
        passwords: Passwords | None = None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look after ``rows``.

        Args:
            rows: Where they are kept.
            roles: That people may have.
            audit: Where changes and logins are written down; ``None``: nowhere.
            passwords: Hashes them; ``None``: as costly as they should be.
            now: Seconds since the epoch, by which links and sessions end.
            monotonic: Seconds, by which whoever failed has to wait.

        Raises:
            DependencyMissing: passwords cannot be hashed here.
        """
        self._rows = rows
        self._roles = roles
        self._audit = audit or NoAudit()
        self._passwords = passwords or Passwords()
        self._now = now
        self._throttle = Throttle(monotonic=monotonic)
        self._failed = FailedLogins(self._audit, monotonic=monotonic)
        self._workers = Workers()
        self._lock = threading.Lock()
        self._noting: set[str] = set()

    def close(self) -> None:
        """End the threads; what is under way is done first."""
        self._workers.close()

    # For admins

    def people(self, after: str = "", limit: int | None = None) -> list[Person]:
        """Everybody, by name; or the first of those behind ``after``."""
        return self._rows.people(after, limit)

    def has_accounts(self) -> bool:
        """Whether anybody has an account, or had one."""
        return self._rows.has_accounts()

    def invite(self, name: str, role: str) -> MadeLink:
        """Make an account that its link opens.

        Raises:
            ConfigError: name or role cannot be one.
            DataError: there is, or was, somebody of this name.
            StorageError: it could not be written down.
        """
        problems = [*_name_problems(name), *self._role_problems(role)]
        if problems:
            raise ConfigError(problems, source="person")
        if self._rows.person(name) is not None:
            raise DataError(f"there is, or was, somebody called {name}: choose another name")
        person = Person(name, role, INVITED, None, self._now())
        with recorded(self._audit, person_added(person, acting.get())):
            self._rows.add(person)
        return self._link("invite", person)

    def new_link(self, name: str) -> MadeLink | None:
        """Another link for somebody, in place of earlier ones; ``None``: nobody is called so.

        Until it is used, nothing changes; then there is another password, and who was disabled is
        let in again.
        """
        person = self._person(name)
        if person is None:
            return None
        return self._link("reset" if person.state == ACTIVE else "invite", person)

    def first_link(self) -> MadeLink:
        """A link that makes the first account, an admin's, in place of earlier ones.

        Raises:
            DataError: somebody has an account already.
        """
        if self._rows.has_accounts():
            raise DataError("somebody has an account already: 'llmos people link NAME' lets in")
        return self._link(FIRST, None)

    def set_role(self, name: str, role: str) -> Person | None:
        """Give somebody another role, from the next request on; ``None``: nobody is called so.

        Raises:
            ConfigError: there is no such role for people.
            DataError: it is the last active admin.
        """
        if problems := self._role_problems(role):
            raise ConfigError(problems, source="person")
        person = self._person(name)
        if person is None:
            return None
        if person.role != role:
            facts: Facts = {"role": role, "before": person.role}
            with recorded(self._audit, Entry(Action.ROLE_CHANGED, acting.get(), name, facts)):
                self._rows.set_role(name, role)
        return dataclasses.replace(person, role=role)

    def disable(self, name: str) -> bool:
        """Let somebody in no more; False if nobody is called so.

        Raises:
            DataError: it is the last active admin.
        """
        person = self._person(name)
        if person is None:
            return False
        if person.state != DISABLED:
            with recorded(self._audit, Entry(Action.PERSON_DISABLED, acting.get(), name)):
                self._rows.disable(name)
        return True

    # For whoever comes

    def look_at(self, link: str) -> MadeLink:
        """What a link is for; it is not spent. Raises AccessDenied if it opens nothing."""
        found, person = self._found(link)
        role = person.role if person is not None else ADMIN_ROLE
        return MadeLink(link, found.purpose, found.name, role, found.expires_at)

    def log_in(self, name: str, password: str, *, address: str) -> Future[LoggedIn]:
        """Begin a session, on a thread of the few for this (C3).

        The future raises AccessDenied if name or password is wrong, StorageError if it could not
        be written down.

        Raises:
            TooManyTries: this name or this address has to wait, or too many log in.
        """
        return self._tried(name, address, partial(self._log_in, name, password))

    def enter(self, link: str, name: str, password: str, *, address: str) -> Future[LoggedIn]:
        """Spend a link: set the password of its account, and begin a session.

        The future raises as that of :meth:`log_in`, ConfigError if name or password may not be
        chosen, and DataError if the name is taken; the link is good then as before.

        Raises:
            TooManyTries: this address has to wait, or too many log in.
        """
        return self._tried("", address, partial(self._enter, link, name, password))

    def let_in(self, identity: Identity) -> LoggedIn:
        """Begin a session of somebody whom a provider of identities vouches for.

        The account is made at the first login. Its role is what the provider's claims give, each
        time anew. Nobody is taken for somebody else of the same name.

        Raises:
            AccessDenied: the name cannot be one, is another account's, or the account is disabled.
            DataError: the last active admin would get another role.
            StorageError: it could not be written down.
        """
        actor = acting_name(identity.name)
        person = self._rows.person_known_as(identity.subject)
        if person is None:
            if _name_problems(identity.name) or self._rows.person(identity.name) is not None:
                self._failed.record("", by="oidc")
                raise AccessDenied("the provider's name for you is none here, or somebody else's")
            person = Person(
                identity.name,
                identity.role,
                ACTIVE,
                None,
                self._now(),
                subject=identity.subject,
            )
            with recorded(self._audit, person_added(person, actor)):
                self._rows.add(person)
        if person.state != ACTIVE:
            self._failed.record(person.name, by="oidc")
            raise AccessDenied("this account is disabled: ask an admin")
        if person.role != identity.role:
            facts: Facts = {"role": identity.role, "before": person.role}
            actor = acting_name(person.name)
            with recorded(self._audit, Entry(Action.ROLE_CHANGED, actor, person.name, facts)):
                self._rows.set_role(person.name, identity.role)
            person = dataclasses.replace(person, role=identity.role)
        return self._begin(person, "oidc")

    def refused(self, *, by: str) -> None:
        """Write down that somebody was not let in. Raises StorageError."""
        self._failed.record("", by=by)

    def whose(self, secret: str, *, in_use: bool = True) -> Person | None:
        """Who shows the secret of a session that is not over; that is a use of it if ``in_use``."""
        if len(secret) != SECRET_LENGTH:
            return None
        digest, now = _hashed(secret), self._now()
        found = self._rows.session(digest)
        if found is None:
            return None
        session, person = found
        over = now - session.begun_at >= SESSION_S or now - session.used_at >= IDLE_S
        if over or person.state != ACTIVE:
            return None
        if in_use and now - session.used_at >= NOTED_S:
            self._note(digest, now)
        return person

    def log_out(self, secret: str, person: Person) -> None:
        """End a session."""
        name = person.name
        with recorded(self._audit, Entry(Action.LOGGED_OUT, acting_name(name), name)):
            self._rows.end(_hashed(secret))

    def change_password(
        self, person: Person, old: str, new: str, *, secret: str, address: str
    ) -> Future[None]:
        """Set another password; sessions but that of ``secret`` end.

        The future raises NotPermitted if the old one is wrong, and ConfigError if the new one may
        not be chosen.

        Raises:
            TooManyTries: as for :meth:`log_in`.
        """
        change = partial(self._change_password, person, old, new, secret)
        return self._tried(person.name, address, change)

    # What is done on a thread of the few

    def _tried(self, name: str, address: str, task: Callable[[], ResultT]) -> Future[ResultT]:
        here, named = f"at {place_of(address)}", f"as {name}"
        free = {here: FREE_TRIES_HERE} | ({named: FREE_TRIES} if name else {})
        self._throttle.enter(free)

        def take_back() -> None:
            for key in free:
                self._throttle.take_back(key)

        def done() -> ResultT:
            try:
                result = task()
            except LlmOsError as err:
                if not isinstance(err, AccessDenied):  # what was wrong was no secret
                    take_back()
                raise
            self._throttle.take_back(here)
            self._throttle.forget(named)
            return result

        try:
            return self._workers.submit(done)
        except TooManyTries:
            take_back()
            raise

    def _log_in(self, name: str, password: str) -> LoggedIn:
        person = self._person(name)
        fits = self._passwords.fits(password, person.password if person is not None else None)
        if person is None or not fits or person.state != ACTIVE:
            self._failed.record(name if person is not None else "", by="password")
            raise AccessDenied("name or password is wrong")
        return self._begin(person, "password")

    def _enter(self, link: str, name: str, password: str) -> LoggedIn:
        try:
            found, person = self._found(link)
        except AccessDenied:
            self._failed.record("", by="link")
            raise
        if person is None:
            if problems := _name_problems(name):
                raise ConfigError(problems, source="person")
            if self._rows.person(name) is not None:
                raise DataError(f"there is somebody called {name} already: choose another name")
            person = Person(name, ADMIN_ROLE, INVITED, None, self._now())
        elif name != person.name:
            raise ConfigError([f"name: this link is for {person.name}"], source="person")
        check_choice(password, name=name)
        kept = self._passwords.hashed(password)
        entered = dataclasses.replace(person, state=ACTIVE, password=kept)
        actor = acting_name(name)
        entry = Entry(Action.LINK_SPENT, actor, name, {"purpose": found.purpose})
        if found.purpose == FIRST:
            entry = person_added(entered, actor)
        with recorded(self._audit, entry):
            self._rows.spend(found, entered)
        return self._begin(entered, "link")

    def _change_password(self, person: Person, old: str, new: str, secret: str) -> None:
        name = person.name
        if not self._passwords.fits(old, person.password):
            self._failed.record(name, by="old password")
            raise NotPermitted("the old password is wrong")
        check_choice(new, name=name)
        kept = self._passwords.hashed(new)
        with recorded(self._audit, Entry(Action.PASSWORD_CHANGED, acting_name(name), name)):
            self._rows.set_password(name, kept, instead_of=person.password, keep=_hashed(secret))

    def _begin(self, person: Person, by: str) -> LoggedIn:
        secret, now = _new_secret(), self._now()
        session = Session(_hashed(secret), person.name, begun_at=now, used_at=now)
        entry = Entry(Action.LOGGED_IN, acting_name(person.name), person.name, {"by": by})
        with recorded(self._audit, entry):
            self._rows.begin(
                session,
                password=person.password,
                begun_after=now - SESSION_S,
                used_after=now - IDLE_S,
            )
        return LoggedIn(secret, dataclasses.replace(person, last_login_at=now))

    def _note(self, digest: str, now: float) -> None:
        """Write down that a session is used, beside the request."""
        with self._lock:
            if digest in self._noting:
                return
            self._noting.add(digest)

        def note() -> None:
            try:
                self._rows.use(digest, now=now)
            except StorageError as err:
                log.warning("session.not_noted", error=str(err))
            finally:
                with self._lock:
                    self._noting.discard(digest)

        try:
            self._workers.submit(note)
        except TooManyTries:  # the next use is soon enough
            with self._lock:
                self._noting.discard(digest)

    # Links

    def _link(self, purpose: str, person: Person | None) -> MadeLink:
        secret, now = _new_secret(), self._now()
        name = person.name if person is not None else None
        made = MadeLink(
            secret,
            purpose,
            name,
            person.role if person is not None else ADMIN_ROLE,
            now + LINK_S[purpose],
        )
        facts: Facts = {"purpose": purpose, "expires_at": int(made.expires_at)}
        with recorded(self._audit, Entry(Action.PERSON_LINKED, acting.get(), name or "", facts)):
            link = Link(_hashed(secret), purpose, name, made.expires_at)
            self._rows.add_link(link, now=now)
        return made

    def _found(self, link: str) -> tuple[Link, Person | None]:
        """A good link and whose it is; Raises AccessDenied."""
        found = (
            self._rows.link(_hashed(link), now=self._now()) if len(link) == SECRET_LENGTH else None
        )
        if found is None:
            raise AccessDenied(
                "this link is wrong, was used or has expired: ask an admin for another"
            )
        return found, self._rows.person(found.name) if found.name is not None else None

    def _person(self, name: str) -> Person | None:
        # A name that cannot be one is not looked for: not every database takes every text.
        return self._rows.person(name) if _NAME.fullmatch(name) else None

    def _role_problems(self, role: str) -> list[str]:
        if role in self._roles:
            return []
        return [f"role: {role[:40]!r} is none: one of {', '.join(self._roles)}"]


def _name_problems(name: str) -> list[str]:
    if _NAME.fullmatch(name):
        return []
    rule = "1 to 64 of a-z, 0-9, '.', '_', '@' and '-', with a letter or digit at both ends"
    return [f"name: {name[:80]!r} is none: {rule}"]


def _new_secret() -> str:
    return secrets.token_urlsafe(SECRET_BYTES)


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
