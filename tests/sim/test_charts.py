"""Plots: what lies where, for few rounds and for a thousand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.charts import (
    BLOCKS,
    HEIGHT,
    LINES,
    WIDTH,
    Chart,
    device_chart,
    progress_chart,
    stack_chart,
    threshold_chart,
    ticks,
)

shares = st.floats(0, 1, allow_nan=False)


def plain(value: float) -> str:
    return f"{value:g}"


def progress(values: dict[int, float], **changes: object) -> Chart:
    given_: dict[str, object] = {
        "title": "all",
        "metric": "accuracy",
        "levels": {"before": 0.2, "central": 0.9},
        "low": 0.0,
        "high": 1.0,
        "rounds": 4,
        "refused": {},
        "text": plain,
        "tick": plain,
    }
    return progress_chart(values, **(given_ | changes))  # type: ignore[arg-type]


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9), st.booleans())
def test_ticks_cover_the_range_in_few_equal_steps(low: float, span: float, whole: bool) -> None:
    high = low + span
    places = ticks(low, high, whole=whole)
    slack = 1e-6 * max(abs(low), abs(high), 1.0)
    assert places[0] <= low + slack
    assert places[-1] >= high - slack
    assert 2 <= len(places) <= 7
    if whole:
        assert all(place == int(place) for place in places)


@given(st.dictionaries(st.integers(1, 30), shares, min_size=1), shares, shares)
def test_everything_lies_inside_the_plot(
    values: dict[int, float], before: float, central: float
) -> None:
    chart = progress(values, levels={"before": before, "central": central}, rounds=30)
    for mark in chart.lines[0].marks:
        assert 0 <= mark.x <= WIDTH
        assert 0 <= mark.y <= HEIGHT
    for y in [*(note.y for note in chart.notes), *(rule.text_y for rule in chart.rules)]:
        assert 0 < y <= HEIGHT


@given(st.lists(shares, min_size=2, max_size=8))
def test_larger_values_lie_higher(values: list[float]) -> None:
    marks = progress(dict(enumerate(values, start=1)), rounds=8, levels={}).lines[0].marks
    for (one, mark), (other, next_mark) in zip(
        zip(values, marks, strict=True), list(zip(values, marks, strict=True))[1:], strict=False
    ):
        assert mark.x < next_mark.x
        if one < other:
            assert mark.y >= next_mark.y


def test_a_line_starts_at_what_was_before_the_first_round() -> None:
    marks = progress({1: 0.5, 2: 0.6}).lines[0].marks
    assert [mark.text for mark in marks] == [
        "before the first round: 0.2",
        "round 1: 0.5",
        "round 2: 0.6",
    ]


@pytest.mark.parametrize(("last", "marks"), [(39, 40), (40, 1)])
def test_many_rounds_are_a_line_with_only_what_was_refused_marked(last: int, marks: int) -> None:
    chart = progress(dict.fromkeys(range(1, last + 1), 0.5), rounds=last, refused={7: "worse"})
    assert len(chart.lines[0].marks) == marks
    hollow = [mark.text for mark in chart.lines[0].marks if mark.hollow]
    assert hollow == ["round 7: 0.5 (refused: worse)"]


def test_devices_that_spent_the_same_share_a_line() -> None:
    chart = device_chart(
        {"a": {1: 1.0}, "b": {1: 1.0}, "c": {1: 2.0}}, title="", y_name="ε", asked=8, text=plain
    )
    assert [line.name for line in chart.lines] == ["2 devices alike", "c"]
    assert [rule.text for rule in chart.rules] == ["asked 8"]


@pytest.mark.parametrize(("devices", "band"), [(LINES, False), (LINES + 1, True)])
def test_many_devices_are_a_band_around_their_median(devices: int, band: bool) -> None:
    series = {f"d{n}": {1: float(n), 3: float(2 * n)} for n in range(1, devices + 1)}
    chart = device_chart(series, title="", y_name="ε", asked=None, text=plain)
    assert bool(chart.band) is band
    assert len(chart.lines) == (1 if band else devices)


def test_a_device_that_sat_a_round_out_stays_where_it_was_in_the_band() -> None:
    series = {f"d{n}": {1: 1.0 + n / 100, 2: 2.0 + n / 100} for n in range(LINES)}
    chart = device_chart(series | {"idle": {1: 1.0}}, title="", y_name="ε", asked=4.0, text=plain)
    levels = {tick.text: tick.at for tick in chart.y_ticks}
    lowest_at_2 = next(
        float(point.split(",")[1]) for point in chart.band.split()[-3:] if point.startswith("466")
    )
    assert lowest_at_2 == levels["1"]


@pytest.mark.parametrize(("devices", "blocks"), [(BLOCKS, BLOCKS), (BLOCKS + 1, 1)])
def test_more_blocks_than_can_be_told_apart_become_one(devices: int, blocks: int) -> None:
    column = [("sent", f"d{n}", 1.0) for n in range(devices)]
    chart = stack_chart({1: column}, title="", y_name="", text=plain, whole=False)
    assert len(chart.bars) == blocks


def test_blocks_stand_on_one_another() -> None:
    column = {3: [("arrived", "x", 3.0), ("declined", "z", 4.0), ("missing", "y", 2.0)]}
    chart = stack_chart(column, title="", y_name="", text=plain, whole=True)
    lower, middle, upper = chart.bars
    for below, above in ((lower, middle), (middle, upper)):
        assert above.y + above.height + 1 == pytest.approx(below.y, abs=0.11)
    assert lower.text == "x, round 3: 3"


def test_a_curve_over_thresholds_has_both_its_lines() -> None:
    chart = threshold_chart([(0.5, 0.4, 0.9), (0.0, 1.0, 0.7)], title="")
    assert [len(line.points.split()) for line in chart.lines] == [2, 2]
    assert chart.lines[0].marks[0].text == "share answered on the device, threshold 0.00: 100.0%"
