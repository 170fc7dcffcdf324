"""Rows of people, of their links and of their sessions.

    Q1  a link is spent once, whoever races for it
    Q2  the last active admin stays one
    Q3  whoever is not active has no session, and where the password changes no other one

Nothing here is written down in the audit log: :mod:`coordinator.people.people` does that, and is
the only one who writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from coordinator.store.database import Database
from coordinator.store.tables import people as _people
from coordinator.store.tables import person_links as _links
from coordinator.store.tables import person_sessions as _sessions
from shared.errors import AccessDenied, DataError

INVITED: Final = "invited"
ACTIVE: Final = "active"
DISABLED: Final = "disabled"

ADMIN_ROLE: Final = "admin"
FIRST: Final = "first"
"""The purpose of a link that makes the first account."""


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with an account, or with a link that leads to one.

    Attributes:
        name: For ever: of somebody who was disabled it is not given again.
        role: What he or she may do; see :mod:`coordinator.api.roles`.
        state: ``invited``, ``active`` or ``disabled``.
        password: What is kept of it; ``None``: there is none yet.
        created_at: Seconds since the epoch.
        last_login_at: ``None``: never.
        subject: Who that is at a provider of identities: its address, a space, and the name it
            never gives to another; ``None``: nobody.
    """

    name: str
    role: str
    state: str
    password: str | None = field(repr=False)
    created_at: float
    last_login_at: float | None = None
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A one-time link, without its secret.

    Attributes:
        secret_sha256: Of the secret, as hexadecimal digits.
        purpose: ``first``, ``invite`` or ``reset``.
        name: Whose it is; ``None`` for ``first``.
        expires_at: From then on it opens nothing.
    """

    secret_sha256: str
    purpose: str
    name: str | None
    expires_at: float


@dataclass(frozen=True, slots=True)
class Session:
    """That somebody is logged in, without the secret that shows it.

    Attributes:
        secret_sha256: Of the secret, as hexadecimal digits.
        name: Whose it is.
        begun_at: Seconds since the epoch.
        used_at: When it was last seen to be used; it may have been used since.
    """

    secret_sha256: str
    name: str
    begun_at: float
    used_at: float


class PeopleRows:
    """People, links and sessions in the store's database. Safe to use from several threads."""

    def __init__(self, database: Database) -> None:
        """Keep them in ``database``, whose tables are there."""
        self._database = database

    # People

    def person(self, name: str) -> Person | None:
        """One, by name."""
        found = self._where(_people.c.name == name)
        return found[0] if found else None

    def person_known_as(self, subject: str) -> Person | None:
        """One, by what a provider of identities calls him or her."""
        found = self._where(_people.c.subject == subject)
        return found[0] if found else None

    def people(self, after: str = "", limit: int | None = None) -> list[Person]:
        """All, by name; or the first of those behind ``after``."""
        return self._where(self._spelt() > after, limit)

    def has_accounts(self) -> bool:
        """Whether anybody has an account, or had one."""
        with self._database.reading() as connection:
            return _has_accounts(connection)

    def add(self, person: Person) -> None:
        """Keep a new one.

        Raises:
            DataError: there is, or was, somebody of this name.
        """
        try:
            with self._database.writing() as connection:
                connection.execute(_people.insert().values(_row(person, _people)))
        except sa.exc.IntegrityError:
            raise _name_is_taken(person.name) from None

    def set_role(self, name: str, role: str) -> None:
        """Give somebody another role. Raises DataError for the last active admin (Q2)."""
        with self._database.writing() as connection:
            if role != ADMIN_ROLE:
                _check_others(connection, name)
            connection.execute(_people.update().where(_people.c.name == name).values(role=role))

    def disable(self, name: str) -> None:
        """Let somebody in no more. Raises DataError for the last active admin (Q2, Q3)."""
        with self._database.writing() as connection:
            _check_others(connection, name)
            connection.execute(
                _people.update().where(_people.c.name == name).values(state=DISABLED)
            )
            for table in (_links, _sessions):
                connection.execute(table.delete().where(table.c.name == name))

    def set_password(self, name: str, password: str, *, instead_of: str | None, keep: str) -> None:
        """Give somebody another password; of the sessions the one with hash ``keep`` stays (Q3).

        Raises:
            AccessDenied: the password is no longer ``instead_of``, or the account not active.
        """
        with self._database.writing() as connection:
            found = connection.execute(
                _people.update().where(*_is_as_before(name, instead_of)).values(password=password)
            ).rowcount
            if not found:
                raise AccessDenied("the account was changed meanwhile: log in again")
            connection.execute(
                _sessions.delete().where(
                    _sessions.c.name == name, _sessions.c.secret_sha256 != keep
                )
            )

    # Links

    def add_link(self, link: Link, *, now: float) -> None:
        """Keep a new link, in place of an earlier one for the same, and forget expired ones.

        Raises:
            DataError: it is to make the first account, and there is one.
        """
        with self._database.writing() as connection:
            if link.purpose == FIRST and _has_accounts(connection):
                raise DataError("somebody has an account already: ask an admin for a link")
            same = _links.c.name.is_(None) if link.name is None else _links.c.name == link.name
            connection.execute(_links.delete().where(same | (_links.c.expires_at <= now)))
            connection.execute(_links.insert().values(_row(link, _links)))

    def link(self, secret_sha256: str, *, now: float) -> Link | None:
        """One that is still good."""
        query = sa.select(_links).where(
            _links.c.secret_sha256 == secret_sha256, _links.c.expires_at > now
        )
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
            if row is None or (row.purpose == FIRST and _has_accounts(connection)):
                return None
            return Link(**row._mapping)

    def spend(self, link: Link, person: Person) -> None:
        """Spend a link: ``person`` is as given from now on, and all sessions so far end (Q1).

        Raises:
            AccessDenied: it was spent meanwhile.
            DataError: it makes the first account, and the name is taken.
        """
        try:
            with self._database.writing() as connection:
                spent = connection.execute(
                    _links.delete().where(_links.c.secret_sha256 == link.secret_sha256)
                ).rowcount
                if not spent or (link.purpose == FIRST and _has_accounts(connection)):
                    raise AccessDenied("this link was used already: ask for another")
                values = _row(person, _people)
                if link.purpose == FIRST:
                    connection.execute(_people.insert().values(values))
                    return
                new = {name: values[name] for name in ("state", "password")}
                connection.execute(
                    _people.update().where(_people.c.name == person.name).values(new)
                )
                connection.execute(_sessions.delete().where(_sessions.c.name == person.name))
        except sa.exc.IntegrityError:
            raise _name_is_taken(person.name) from None

    # Sessions

    def begin(
        self, session: Session, *, password: str | None, begun_after: float, used_after: float
    ) -> None:
        """Keep a new session of somebody who is active and whose password is still this (Q3).

        Those that were begun or used before the times given are over, and forgotten.

        Raises:
            AccessDenied: the account was changed meanwhile.
        """
        with self._database.writing() as connection:
            found = connection.execute(
                _people.update()
                .where(*_is_as_before(session.name, password))
                .values(last_login_at=session.begun_at)
            ).rowcount
            if not found:
                raise AccessDenied("the account was changed meanwhile: log in again")
            over = (_sessions.c.begun_at <= begun_after) | (_sessions.c.used_at <= used_after)
            connection.execute(_sessions.delete().where(over))
            connection.execute(_sessions.insert().values(_row(session, _sessions)))

    def session(self, secret_sha256: str) -> tuple[Session, Person] | None:
        """A session that nobody ended, and whose it is."""
        query = (
            sa.select(_sessions, _people)
            .join(_people, _people.c.name == _sessions.c.name)
            .where(_sessions.c.secret_sha256 == secret_sha256)
        )
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            return (
                Session(*(row._mapping[column] for column in _sessions.c)),
                Person(*(row._mapping[column] for column in _people.c)),
            )

    def use(self, secret_sha256: str, *, now: float) -> None:
        """See that a session is used."""
        with self._database.writing() as connection:
            connection.execute(
                _sessions.update()
                .where(_sessions.c.secret_sha256 == secret_sha256, _sessions.c.used_at < now)
                .values(used_at=now)
            )

    def end(self, secret_sha256: str) -> None:
        """End a session, if there is one."""
        with self._database.writing() as connection:
            connection.execute(_sessions.delete().where(_sessions.c.secret_sha256 == secret_sha256))

    def _where(self, condition: sa.ColumnElement[bool], limit: int | None = None) -> list[Person]:
        query = sa.select(_people).where(condition).order_by(self._spelt()).limit(limit)
        with self._database.reading() as connection:
            return [Person(**row._mapping) for row in connection.execute(query)]

    def _spelt(self) -> sa.ColumnElement[str]:
        """Names in the order of their letters: PostgreSQL might order by those of a language."""
        name = _people.c.name
        return name if self._database.is_sqlite else sa.collate(name, "C")


def _row(what: Any, table: sa.Table) -> dict[str, Any]:
    return {column.name: getattr(what, column.name) for column in table.c}


def _has_accounts(connection: sa.Connection) -> bool:
    had_one = _people.c.password.is_not(None) | _people.c.last_login_at.is_not(None)
    query = sa.select(_people.c.name).where(had_one).limit(1)
    return connection.scalar(query) is not None


def _is_as_before(name: str, password: str | None) -> tuple[sa.ColumnElement[bool], ...]:
    """That somebody is active, and the password what it was when it was looked at."""
    same = _people.c.password == password if password is not None else _people.c.password.is_(None)
    return _people.c.name == name, _people.c.state == ACTIVE, same


def _check_others(connection: sa.Connection, name: str) -> None:
    """Refuse what would leave nobody who may let others in (Q2)."""
    # Locked in PostgreSQL, so that of two admins who disable each other the second waits, and is
    # then the last; in SQLite writers take turns anyway.
    admins = connection.scalars(
        sa.select(_people.c.name)
        .where(_people.c.role == ADMIN_ROLE, _people.c.state == ACTIVE)
        .order_by(_people.c.name)
        .with_for_update()
    ).all()
    if list(admins) == [name]:
        raise DataError(f"{name} is the last active admin: make another one first")


def _name_is_taken(name: str) -> DataError:
    return DataError(f"there is, or was, somebody called {name}: choose another name")
