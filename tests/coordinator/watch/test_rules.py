"""R1 to R3: what is an alarm, held against counting everything again."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from coordinator.watch.rules import (
    EVERYBODY,
    RULES,
    About,
    Counts,
    Rule,
    Severity,
    Sighting,
    Subject,
)

RULE = Rule("r", "something", Severity.WARNING, count=3, window_s=10.0)
DEVICES = [Subject(About.DEVICE, f"d{number}") for number in range(3)]


def seen(subject: Subject, at: float) -> Sighting:
    return Sighting("r", subject, at, detail=f"at {at}")


def slowly(
    sightings: list[tuple[int, float]], count: int, window_s: float
) -> list[tuple[int, int]]:
    """Index and subject of every alarm, by looking at everything since the last one."""
    since: dict[int, list[float]] = defaultdict(list)
    found = []
    for index, (subject, at) in enumerate(sightings):
        since[subject].append(at)
        if sum(each > at - window_s for each in since[subject]) >= count:
            found.append((index, subject))
            since[subject] = []
    return found


@given(
    st.lists(
        # Whole seconds: what happens at the window's very edge is then tried too.
        st.tuples(st.integers(0, 2), st.integers(0, 6)),
        max_size=60,
    ),
    st.integers(1, 5),
)
def test_an_alarm_is_given_whenever_the_count_is_reached_in_the_window(
    steps: list[tuple[int, int]], count: int
) -> None:
    counts = Counts({"r": Rule("r", "", Severity.INFO, count=count, window_s=10.0)})
    at, sightings = 0.0, []
    for subject, later in steps:
        at += later
        sightings.append((subject, at))
    found = [
        (index, DEVICES.index(alarm.subject))
        for index, (subject, when) in enumerate(sightings)
        for alarm in counts.take(seen(DEVICES[subject], when))
        if alarm.subject in DEVICES
    ]
    assert found == slowly(sightings, count, 10.0)


def test_an_alarm_tells_what_was_seen_last() -> None:
    counts = Counts({"r": RULE})
    assert counts.take(seen(DEVICES[0], 1.0)) == []
    assert counts.take(seen(DEVICES[0], 2.0)) == []
    assert counts.take(seen(DEVICES[0], 3.0)) == [seen(DEVICES[0], 3.0)]


def test_who_changes_names_is_found_all_together_and_takes_no_more_room() -> None:
    counts = Counts({"r": RULE}, most_subjects=10)
    raised = []
    for number in range(EVERYBODY * 3):
        raised += counts.take(seen(Subject(About.ADDRESS, f"10.0.0.{number}"), number * 0.01))
        assert len(counts._counted["r"].by_subject) <= 10
    assert [alarm.subject for alarm in raised] == [Subject(About.COORDINATOR)]


def test_the_sightings_of_one_rule_do_not_push_out_those_of_another() -> None:
    other = Rule("other", "", Severity.INFO, count=2, window_s=1e6)
    counts = Counts({"r": RULE, "other": other}, most_subjects=2)
    counts.take(Sighting("other", DEVICES[0], 0.0))
    for number in range(50):
        counts.take(seen(Subject(About.ADDRESS, str(number)), 1.0))
    assert counts.take(Sighting("other", DEVICES[0], 2.0))


def test_a_rule_that_is_off_counts_nothing() -> None:
    counts = Counts({})
    assert all(counts.take(seen(DEVICES[0], 1.0)) == [] for _ in range(100))


def test_only_what_the_subject_itself_made_may_put_it_into_quarantine() -> None:
    """ADR 29: a stranger can send rubbish, bad signatures and replays in anybody's name."""
    assert {rule.code: rule.quarantines for rule in RULES.values() if rule.quarantines} == {
        "device-refused": About.DEVICE,
        "key-new-place": About.KEY,
        "key-tokens": About.KEY,
    }
