"""Alarms: listed, and acknowledged by whoever has looked at them."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query
from pydantic import BaseModel, Field

from coordinator.api.pages import ITEMS, Cursor, Limit, Page, Places
from coordinator.audit.chain import Action, Entry, Facts
from coordinator.audit.sink import acting, recorded
from coordinator.store.alarms import Alarm

if TYPE_CHECKING:
    from coordinator.api.app import Services

MOST_NUMBER = 2**31 - 1
"""What a row's number may be in every database."""


class AlarmSubject(BaseModel):
    """What an alarm is about."""

    kind: str = Field(description="device, key, person, address, run or coordinator")
    name: str = Field(description="Empty for everybody together")


class AlarmView(BaseModel):
    """Something that somebody should look at."""

    id: int
    rule: str = Field(examples=["bad-signatures"])
    severity: str = Field(description="info, warning or critical", examples=["warning"])
    subject: AlarmSubject
    detail: str = Field(description="What was seen last")
    count: int = Field(description="How often the rule found it", examples=[1])
    first_at: float = Field(description="Seconds since the epoch")
    last_at: float = Field(description="Seconds since the epoch")
    action: str = Field(description="none or quarantined: what was done by itself")
    acknowledged_at: float | None = Field(description="null: nobody has acknowledged it")
    acknowledged_by: str = Field(description="Empty: nobody")


def alarm_view(alarm: Alarm) -> AlarmView:
    """An alarm as it is listed, watched and sent."""
    same = {name: getattr(alarm, name) for name in AlarmView.model_fields if name != "subject"}
    return AlarmView(subject=AlarmSubject(kind=alarm.subject_kind, name=alarm.subject), **same)


def alarm_routes(services: Services) -> APIRouter:
    """``/alarms``."""
    router = APIRouter(tags=["alarms"])
    rows = services.store.alarms
    places_by = {only: Places(f"alarms-{'open' if only else 'all'}", int) for only in (True, False)}

    @router.get("/alarms", summary="List alarms")
    def list_alarms(
        limit: Limit = ITEMS,
        cursor: Cursor = "",
        only_open: Annotated[
            bool, Query(alias="open", description="Only those that nobody has acknowledged")
        ] = False,
    ) -> Page[AlarmView]:
        """What the rules found, newest first."""
        places = places_by[only_open]
        place: Any = places.read(cursor)
        before = place[0] if place else None
        found = rows.alarms(before=before, limit=limit + 1, only_open=only_open)
        items, following = places.page(found, limit, lambda alarm: (alarm.id,))
        return Page(items=[alarm_view(each) for each in items], next=following)

    @router.post("/alarms/{number}/acknowledge", summary="Acknowledge an alarm")
    def acknowledge(number: Annotated[int, Path(ge=1, le=MOST_NUMBER)]) -> AlarmView:
        """Somebody has looked at it. What is seen again afterwards is another alarm."""
        alarm = rows.alarm(number)
        if alarm is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"there is no alarm {number}")
        if alarm.acknowledged_at is None:
            facts: Facts = {"number": number, "rule": alarm.rule}
            entry = Entry(Action.ALARM_ACKNOWLEDGED, acting.get(), alarm.subject, facts)
            with recorded(services.audit, entry):
                alarm = rows.acknowledge(number, acting.get(), now=services.now())
            assert alarm is not None  # only acknowledged ones are ever removed
        return alarm_view(alarm)

    return router
