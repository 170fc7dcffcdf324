"""Rules: how many sightings of one kind, about one subject, are an alarm.

R1  an alarm is given when, within the rule's window, its count is reached; then counting begins anew
R2  what is remembered has a bound, however many names and addresses somebody uses
R3  subjects that are forgotten for R2 still count together: a rule's sightings about everybody are
    an alarm of their own when there are ``EVERYBODY`` times as many

Nothing here knows clocks, rows or threads.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

MOST_SUBJECTS: Final = 1024
"""Of one rule, so many subjects are counted apart."""
EVERYBODY: Final = 25
MOST_COUNT: Final = 10_000


class Severity(StrEnum):
    """How soon somebody should look."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class About(StrEnum):
    """What a subject is."""

    DEVICE = "device"
    KEY = "key"
    PERSON = "person"
    ADDRESS = "address"
    RUN = "run"
    COORDINATOR = "coordinator"


@dataclass(frozen=True, slots=True)
class Subject:
    """What an alarm is about.

    Attributes:
        kind: What it is.
        name: Its name; empty for everybody together.
    """

    kind: About
    name: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """When what was seen is an alarm.

    Attributes:
        code: Its name, which never means something else.
        says: What has been seen then, for a person.
        severity: Of its alarms, where a sighting does not say.
        count: So many sightings about one subject,
        window_s: within so many seconds.
        quarantines: The kind of subject that may be put in quarantine for it, where the operator
            wants that; ``None``: what is seen could have been made by somebody else.
    """

    code: str
    says: str
    severity: Severity
    count: int
    window_s: float
    quarantines: About | None = None


RULES: Final[Mapping[str, Rule]] = {
    rule.code: rule
    for rule in (
        Rule(
            "bad-signatures",
            "somebody sends messages in this device's name without its key",
            Severity.WARNING,
            count=5,
            window_s=600.0,
        ),
        # A broker gives what was not confirmed once more after every break of a connection.
        Rule(
            "replays",
            "recorded messages are sent again",
            Severity.WARNING,
            count=30,
            window_s=600.0,
        ),
        Rule(
            "undecodable",
            "what is sent is no message of ours",
            Severity.WARNING,
            count=20,
            window_s=600.0,
        ),
        Rule(
            "device-refused",
            "this device signs messages or updates that are refused",
            Severity.WARNING,
            count=3,
            window_s=3600.0,
            quarantines=About.DEVICE,
        ),
        Rule(
            "sum-out-of-range",
            "an opened sum holds values that no honest cohort can reach",
            Severity.CRITICAL,
            count=1,
            window_s=3600.0,
        ),
        Rule(
            "credentials-refused",
            "credentials are shown from there that open nothing",
            Severity.WARNING,
            count=20,
            window_s=600.0,
        ),
        Rule(
            "requests-refused",
            "it asks for what its role may not do",
            Severity.WARNING,
            count=20,
            window_s=600.0,
        ),
        Rule(
            "key-new-place",
            "this key is used from a place from which it never was before",
            Severity.WARNING,
            count=1,
            window_s=3600.0,
            quarantines=About.KEY,
        ),
        Rule(
            "key-tokens",
            "this key uses far more tokens in an hour than it ever does",
            Severity.WARNING,
            count=1,
            window_s=3600.0,
            quarantines=About.KEY,
        ),
        Rule(
            "security",
            "the daily security check found something",
            Severity.WARNING,
            count=1,
            window_s=1.0,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Sighting:
    """Something that was seen once.

    Attributes:
        rule: Code of the rule that counts it.
        subject: About what.
        at: Seconds since the epoch.
        detail: More about it, for a person; never content of a message.
        severity: Where it is known better than by the rule.
    """

    rule: str
    subject: Subject
    at: float
    detail: str = ""
    severity: Severity | None = None


@dataclass(slots=True)
class _Counted:
    """One rule's sightings that may still become an alarm."""

    by_subject: OrderedDict[Subject, deque[float]] = field(default_factory=OrderedDict)
    of_all: deque[float] = field(default_factory=deque)


class Counts:
    """Counts sightings. Driven by one thread."""

    def __init__(self, rules: Mapping[str, Rule], *, most_subjects: int = MOST_SUBJECTS) -> None:
        """Count by ``rules``; ``most_subjects`` of each apart (R2)."""
        self._rules = rules
        self._most = most_subjects
        self._counted = {code: _Counted() for code in rules}

    def take(self, sighting: Sighting) -> list[Sighting]:
        """Count one; gives the sightings that are an alarm by it: this one, everybody's, or none."""
        rule = self._rules.get(sighting.rule)
        if rule is None:  # the operator turned it off
            return []
        counted, at = self._counted[rule.code], sighting.at
        times = counted.by_subject.setdefault(sighting.subject, deque())
        counted.by_subject.move_to_end(sighting.subject)
        while len(counted.by_subject) > self._most:
            counted.by_subject.popitem(last=False)
        raised = [sighting] if _reached(times, at, rule.count, rule.window_s) else []
        if _reached(counted.of_all, at, rule.count * EVERYBODY, rule.window_s):
            detail = (
                f"{rule.count * EVERYBODY} within {rule.window_s:g} s, about everybody together"
            )
            raised.append(Sighting(rule.code, Subject(About.COORDINATOR), at, detail))
        return raised


def _reached(times: deque[float], at: float, count: int, window_s: float) -> bool:
    """Remember a time, and whether so many are in the window now; if so, begin anew (R1)."""
    times.append(at)
    while times and times[0] <= at - window_s:
        times.popleft()
    if len(times) < count:
        return False
    times.clear()
    return True
