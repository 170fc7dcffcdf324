"""Watches: counts what is seen, raises alarms, and puts into quarantine where the operator wants that.

    V1  whoever tells of a sighting neither waits nor fails; of what comes faster than it is
        counted, some is dropped, and how much is known
    V2  an alarm is in the audit log and a row before it is told to anybody or remembered: after a
        crash one may be raised twice, and none is lost
    V3  of one rule and subject nobody is told twice until somebody acknowledged it; it counts on,
        and is written at most once a second, so that a flood does not become one of writes.
        Of one rule there are at most ``MOST_OPEN`` open alarms; further subjects share one
    V4  quarantine follows only from what nobody but the device or the key's owner, or who has
        their secret, can have made

Everything is done on one thread, but for what :class:`Sightings` says.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from coordinator.audit.chain import MAX_TEXT, Action, Entry
from coordinator.audit.sink import COORDINATOR, AuditSink
from coordinator.federation.rounds import RoundFailed, Transition
from coordinator.inference.front_desk import Served
from coordinator.people.people import KIND
from coordinator.people.throttle import place_of
from coordinator.store.alarms import QUARANTINED, UNTOUCHED, Alarm, AlarmRows
from coordinator.usage import DEVICES
from coordinator.watch.rules import About, Counts, Rule, Severity, Sighting, Subject
from coordinator.watch.usual_hours import UsualHours
from shared.errors import (
    BadSignature,
    LlmOsError,
    NotPermitted,
    ReplayedMessage,
    SumOutOfRange,
)
from shared.files import write_durably
from shared.types import RoundNumber, RunId

log = structlog.get_logger()

MOST_WAITING: Final = 10_000
MOST_OPEN: Final = 50
MOST_PLACES: Final = 64
"""Of one key: from further ones it may come again as if it were new."""
MOST_KEYS: Final = 2000
KEEP_S: Final = 60.0
"""Between two writings of what is usual."""
AGAIN_S: Final = 1.0
"""Between two writings of one alarm."""
USUAL: Final = "usual.json"
"""In the coordinator's home: from where keys are used, and how much."""

Quarantine = Callable[[str, str], bool]
"""Puts the subject of this name into quarantine for this reason; False: it is not one that can be,
or it is there already."""


class Watch:
    """Counts sightings and raises alarms. A context manager's worth of thread: start and close."""

    def __init__(
        self,
        rows: AlarmRows,
        *,
        home: Path,
        audit: AuditSink,
        rules: Mapping[str, Rule],
        is_device: Callable[[str], bool],
        told: Callable[[Alarm], None] = lambda _: None,
        deliver: bool = False,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch by ``rules``.

        Args:
            rows: Where alarms are kept.
            home: The coordinator's, where it is kept what is usual.
            audit: Where alarms are written down first.
            rules: By code; what has none does not count.
            is_device: Whether a device of this name joined.
            told: Of every new alarm, on the thread that watches.
            deliver: Whether new alarms are to be sent.
            now: Seconds since the epoch.
            monotonic: Seconds, by which what is usual is written now and then.
        """
        self._rows = rows
        self._path = home / USUAL
        self._audit = audit
        self._rules = rules
        self._is_device = is_device
        self._quarantine: dict[About, Quarantine] = {}
        self._told = told
        self._deliver = deliver
        self._now = now
        self._monotonic = monotonic
        self._counts = Counts(rules)
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._places: OrderedDict[str, list[str]] = OrderedDict()
        self._hours = UsualHours()
        self._known: set[tuple[str, str]] = set()
        """Keys with addresses that need no second look; read by any thread."""
        self._written_at = monotonic()
        self._changed = False
        self._let_go_at = float("-inf")
        self._raised_at: dict[tuple[str, Subject], float] = {}
        self._held: dict[tuple[str, Subject], tuple[Sighting, int]] = {}
        """Found again within a second: the last sighting, and how often (V3)."""
        self.dropped = 0
        """Sightings that came too fast (V1)."""
        self.raised: Counter[str] = Counter()
        """New alarms since the beginning, by rule."""
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def start(self) -> None:
        """Begin; what was told before is counted now."""
        self._read()
        self._thread.start()

    def close(self) -> None:
        """Count what was told, and write what is usual."""
        self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def let_quarantine(self, kind: About, put: Quarantine) -> None:
        """From now on, subjects of this kind are put into quarantine by rules that may; else none is."""
        self._quarantine[kind] = put

    # Sightings, on any thread (V1)

    def message_refused(self, peer: str | None, err: LlmOsError, *, by_itself: bool) -> None:
        """See :class:`~coordinator.watch.sightings.Sightings`."""
        if isinstance(err, NotPermitted):  # of a device that is kept out already
            return
        rule = "device-refused" if by_itself else _rule_for(err)
        self._post(partial(self._of_device, rule, peer, f"{err.code}: {err}"))

    def update_refused(self, device: str, err: LlmOsError) -> None:
        """See :class:`~coordinator.watch.sightings.Sightings`."""
        self._post(partial(self._of_device, "device-refused", device, f"{err.code}: {err}"))

    def credential_refused(self, address: str) -> None:
        """See :class:`~coordinator.watch.sightings.Sightings`."""
        subject = Subject(About.ADDRESS, place_of(address))
        self._post(partial(self._take, "credentials-refused", subject))

    def request_refused(self, caller: str) -> None:
        """See :class:`~coordinator.watch.sightings.Sightings`."""
        self._post(partial(self._take, "requests-refused", _subject_of(caller)))

    def key_used(self, key: str, address: str) -> None:
        """See :class:`~coordinator.watch.sightings.Sightings`."""
        if (key, address) not in self._known:
            self._post(partial(self._look_at_place, key, address))

    def served(self, what: Served) -> None:
        """A request to a language model is over; as a meter, see :mod:`coordinator.usage`."""
        end = what.finished
        of_key = not what.caller.startswith((f"{DEVICES}:", f"{KIND}:"))
        if end is not None and of_key:
            tokens = end.prompt_tokens + end.completion_tokens
            self._post(partial(self._look_at_hour, what.caller, tokens))

    def looked_up(self, model: str, *, hit: bool) -> None:
        """Answers from a cache are served like others."""

    def committed(self, run: RunId, number: RoundNumber, transition: Transition) -> None:
        """A row was committed; as the store's follower."""
        if isinstance(transition, RoundFailed) and transition.code == SumOutOfRange.code:
            subject = Subject(About.RUN, run)
            detail = f"round {number}: {transition.reason}"
            self._post(partial(self._take, "sum-out-of-range", subject, detail))

    def found(self, code: str, severity: Severity, detail: str) -> None:
        """The daily security check found something new."""
        take = partial(self._take, "security", Subject(About.COORDINATOR, code), detail)
        self._post(partial(take, severity))

    def _post(self, step: Callable[[], None]) -> None:
        if self._waiting.qsize() < MOST_WAITING:
            self._waiting.put(step)
        else:
            self.dropped += 1

    # What follows, on one thread

    def _run(self) -> None:
        while (step := self._next()) is not None:
            try:
                step()
            except LlmOsError as err:
                log.error("watch.failed", code=err.code, error=str(err))
            except Exception:  # a mistake in one sighting must not end the watch
                log.exception("watch.failed")
        self._let_go(everything=True)
        self._write()

    def _next(self) -> Callable[[], None] | None:
        """The next step, ``None`` at the end; writes now and then."""
        while True:
            if self._changed and self._monotonic() - self._written_at >= KEEP_S:
                self._write()
            self._let_go()
            try:
                return self._waiting.get(timeout=AGAIN_S if self._held else KEEP_S)
            except queue.Empty:
                continue

    def _of_device(self, rule: str, peer: str | None, detail: str) -> None:
        # Of a name that never joined there are as many as somebody likes.
        known = peer is not None and self._is_device(peer)
        subject = Subject(About.DEVICE, peer or "") if known else Subject(About.COORDINATOR)
        self._take(rule, subject, detail)

    def _take(
        self, rule: str, subject: Subject, detail: str = "", severity: Severity | None = None
    ) -> None:
        for found in self._counts.take(Sighting(rule, subject, self._now(), detail, severity)):
            about, now = (found.rule, found.subject), self._monotonic()
            _, times = self._held.get(about, (found, 0))
            self._held[about] = found, times + 1
            if now - self._raised_at.get(about, float("-inf")) >= AGAIN_S:
                self._let_go_one(about)

    def _let_go(self, *, everything: bool = False) -> None:
        """Write what was held back long enough, and what could not be written before."""
        now = self._monotonic()
        if not everything and now - self._let_go_at < AGAIN_S:
            return
        self._let_go_at = now
        for about in list(self._held):
            if everything or now - self._raised_at.get(about, float("-inf")) >= AGAIN_S:
                try:
                    self._let_go_one(about)
                except LlmOsError as err:
                    log.error("watch.failed", code=err.code, error=str(err))
                except Exception:
                    log.exception("watch.failed")
        self._raised_at = {about: at for about, at in self._raised_at.items() if now - at < AGAIN_S}

    def _let_go_one(self, about: tuple[str, Subject]) -> None:
        found, times = self._held.pop(about)
        self._raised_at[about] = self._monotonic()
        try:
            self._raise(found, times)
        except LlmOsError:
            self._held[about] = found, times  # the disk may take it later
            raise

    def _raise(self, found: Sighting, times: int) -> None:
        rule, subject = self._rules[found.rule], found.subject
        detail = _plain(found.detail, 500)
        name = _plain(subject.name, MAX_TEXT)
        action = self._quarantined(rule, subject)
        before = self._rows.unacknowledged(rule.code, subject.kind, name)
        if before is None and name and self._rows.count_open(rule.code) >= MOST_OPEN:
            subject, name = Subject(About.COORDINATOR), ""
            before = self._rows.unacknowledged(rule.code, subject.kind, name)
        if before is not None:
            then = action if action == QUARANTINED else before.action
            if self._rows.again(before.id, times=times, detail=detail, at=found.at, action=then):
                return
        severity = str(found.severity or rule.severity)
        facts = {"rule": rule.code, "severity": severity, "about": str(subject.kind)}
        self._audit.record(Entry(Action.ALARM_RAISED, COORDINATOR, name, facts))
        alarm = Alarm(
            id=0,
            rule=rule.code,
            severity=severity,
            subject_kind=str(subject.kind),
            subject=name,
            detail=detail,
            count=times,
            first_at=found.at,
            last_at=found.at,
            action=action,
            next_try_at=found.at if self._deliver else None,
        )
        kept = self._rows.add(alarm)
        self.raised[rule.code] += 1
        log.warning("alarm.raised", rule=rule.code, severity=severity, about=name, says=rule.says)
        self._told(kept)

    def _quarantined(self, rule: Rule, subject: Subject) -> str:
        """Put the subject into quarantine if the rule and the operator want that (V4)."""
        put = self._quarantine.get(subject.kind) if rule.quarantines is subject.kind else None
        if put is None or not subject.name:
            return UNTOUCHED
        try:
            return QUARANTINED if put(subject.name, f"{rule.code}: {rule.says}") else UNTOUCHED
        except LlmOsError as err:
            log.error("watch.not_quarantined", about=subject.name, code=err.code, error=str(err))
            return UNTOUCHED

    # What is usual

    def _look_at_place(self, key: str, address: str) -> None:
        place = place_of(address)
        places = self._places.setdefault(key, [])
        self._places.move_to_end(key)
        if place not in places:
            if places:  # else nobody knows what is usual
                subject = Subject(About.KEY, key)
                self._take("key-new-place", subject, f"from {place}, until now from {places[-1]}")
            places.append(place)
            del places[:-MOST_PLACES]
            while len(self._places) > MOST_KEYS:
                self._places.popitem(last=False)
            self._changed = True
        if len(self._known) >= MOST_WAITING:
            self._known.clear()
        self._known.add((key, address))

    def _look_at_hour(self, key: str, tokens: int) -> None:
        self._changed = True
        if detail := self._hours.add(key, tokens, self._now()):
            self._take("key-tokens", Subject(About.KEY, key), detail)

    def _read(self) -> None:
        """What was usual; a file that says nothing sensible is as good as none."""
        try:
            kept = json.loads(self._path.read_bytes())
            places = {str(key): [str(each) for each in of] for key, of in kept["places"].items()}
            hours = {
                str(key): {int(hour): int(tokens) for hour, tokens in of.items()}
                for key, of in kept["hours"].items()
            }
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as err:
            log.warning("watch.forgotten", path=str(self._path), error=str(err))
            return
        self._places, self._hours = OrderedDict(places), UsualHours(hours)

    def _write(self) -> None:
        self._written_at = self._monotonic()
        if not self._changed:
            return
        kept: dict[str, Any] = {"places": self._places, "hours": self._hours.kept()}
        try:
            write_durably(self._path, json.dumps(kept).encode(), mode=0o600)
        except LlmOsError as err:
            log.error("watch.not_written", code=err.code, error=str(err))
        else:
            self._changed = False


def _rule_for(err: LlmOsError) -> str:
    match err:
        case BadSignature():
            return "bad-signatures"
        case ReplayedMessage():
            return "replays"
        case _:
            return "undecodable"


def _subject_of(caller: str) -> Subject:
    kind, _, name = caller.rpartition(":")
    return Subject(About.PERSON, name) if kind == KIND else Subject(About.KEY, caller)


def _plain(text: str, most: int) -> str:
    """What may stand in rows, records and on pages: somebody else may have chosen it."""
    return "".join(letter for letter in text if letter.isprintable())[:most]
