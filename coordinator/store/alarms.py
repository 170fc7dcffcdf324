"""Rows of alarms: what a rule found, until somebody has looked at it, and whether it was sent.

    N1  of one rule and subject there is at most one alarm that nobody acknowledged; it counts on
    N2  an alarm that is to be sent stays so until it was, or was given up, whatever ends meanwhile
    N3  of alarms that somebody acknowledged, the last ``MOST_KEPT`` rows' are kept

Written by one thread; read, and acknowledged, by any.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa

from coordinator.store.database import Database
from coordinator.store.tables import alarms as _alarms

MOST_KEPT: Final = 10_000

MOST_WATCHED: Final = 100
"""Of those that nobody acknowledged, so many of the newest are shown as they come."""

UNTOUCHED: Final = "none"
QUARANTINED: Final = "quarantined"
"""What was done by itself."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that somebody should look at.

    Attributes:
        id: Rising with every alarm.
        rule: Code of the rule that found it.
        severity: ``info``, ``warning`` or ``critical``.
        subject_kind: ``device``, ``key``, ``person``, ``address``, ``run`` or ``coordinator``.
        subject: Its name; empty for everybody together.
        detail: What was seen last, for a person.
        count: How often the rule found it since it was acknowledged before.
        first_at: Seconds since the epoch.
        last_at: Of the last time.
        action: What was done by itself: ``none`` or ``quarantined``.
        acknowledged_at: ``None``: nobody did.
        acknowledged_by: Who did; empty: nobody.
        tries: To send it.
        next_try_at: When it is to be sent; ``None``: it is not, or was.
        sent_at: ``None``: it was not.
    """

    id: int
    rule: str
    severity: str
    subject_kind: str
    subject: str
    detail: str
    count: int
    first_at: float
    last_at: float
    action: str = UNTOUCHED
    acknowledged_at: float | None = None
    acknowledged_by: str = ""
    tries: int = 0
    next_try_at: float | None = None
    sent_at: float | None = None


class AlarmRows:
    """Alarms in the store's database."""

    def __init__(self, database: Database) -> None:
        """Keep them in ``database``, whose tables are there."""
        self._database = database

    def unacknowledged(self, rule: str, subject_kind: str, subject: str) -> Alarm | None:
        """The one about this subject that nobody acknowledged (N1)."""
        about = (_alarms.c.rule == rule) & (_alarms.c.subject_kind == subject_kind)
        found = self._where(about & (_alarms.c.subject == subject) & _OPEN, limit=1)
        return found[0] if found else None

    def add(self, alarm: Alarm) -> Alarm:
        """Keep a new one, whatever its id; gives it with the id that it has now."""
        row = {
            column.name: getattr(alarm, column.name)
            for column in _alarms.c
            if column is not _alarms.c.id
        }
        with self._database.writing() as connection:
            made = connection.execute(_alarms.insert().values(row).returning(_alarms.c.id))
            number = int(made.scalar_one())
            connection.execute(_alarms.delete().where(_alarms.c.id <= number - MOST_KEPT, ~_OPEN))
        return replace(alarm, id=number)

    def again(self, number: int, *, times: int, detail: str, at: float, action: str) -> bool:
        """It was found so many times more; False if somebody has acknowledged it meanwhile."""
        values = {"count": _alarms.c.count + times, "last_at": at}
        with self._database.writing() as connection:
            this = _alarms.update().where(_alarms.c.id == number, _OPEN)
            found = connection.execute(this.values(values | {"detail": detail, "action": action}))
            return bool(found.rowcount)

    def acknowledge(self, number: int, by: str, *, now: float) -> Alarm | None:
        """Somebody has seen it; who did first stays. ``None``: there is none of this number."""
        values = {"acknowledged_at": now, "acknowledged_by": by}
        with self._database.writing() as connection:
            connection.execute(_alarms.update().where(_alarms.c.id == number, _OPEN).values(values))
        return self.alarm(number)

    def alarm(self, number: int) -> Alarm | None:
        """One, by its id."""
        found = self._where(_alarms.c.id == number, limit=1)
        return found[0] if found else None

    def alarms(
        self, *, before: int | None = None, limit: int, only_open: bool = False
    ) -> list[Alarm]:
        """The newest, or the newest of those with a smaller id; all, or those nobody acknowledged."""
        of_state: sa.ColumnElement[bool] = _OPEN if only_open else sa.true()
        behind = _alarms.c.id < before if before is not None else sa.true()
        return self._where(of_state & behind, limit=limit)

    def count_open(self, rule: str | None = None) -> int:
        """How many nobody acknowledged, of one rule or of all."""
        condition = _OPEN if rule is None else _OPEN & (_alarms.c.rule == rule)
        query = sa.select(sa.func.count()).select_from(_alarms).where(condition)
        with self._database.reading() as connection:
            return int(connection.scalar(query) or 0)

    # What is to be sent

    def next_to_send(self) -> Alarm | None:
        """The one whose turn comes first (N2)."""
        query = (
            sa.select(_alarms)
            .where(_alarms.c.next_try_at.is_not(None))
            .order_by(_alarms.c.next_try_at, _alarms.c.id)
            .limit(1)
        )
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        return Alarm(**row._mapping) if row is not None else None

    def sent(self, number: int, *, now: float) -> None:
        """It arrived."""
        values = {"sent_at": now, "next_try_at": None, "tries": _alarms.c.tries + 1}
        self._update(number, values)

    def not_sent(self, number: int, *, next_try_at: float | None) -> None:
        """It did not arrive; try again then, or give it up."""
        self._update(number, {"next_try_at": next_try_at, "tries": _alarms.c.tries + 1})

    def _update(self, number: int, values: dict[str, Any]) -> None:
        with self._database.writing() as connection:
            connection.execute(_alarms.update().where(_alarms.c.id == number).values(values))

    def _where(self, condition: sa.ColumnElement[bool], *, limit: int) -> list[Alarm]:
        query = sa.select(_alarms).where(condition).order_by(_alarms.c.id.desc()).limit(limit)
        with self._database.reading() as connection:
            return [Alarm(**row._mapping) for row in connection.execute(query)]


_OPEN: Final = _alarms.c.acknowledged_at.is_(None)
