"""Where the lines, bars and labels of a plot lie: geometry alone, for a template to draw.

Nothing here knows HTML. What people named (devices, groups) passes through as plain text, and
whoever draws escapes it. Coordinates are those of an SVG: x grows to the right, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

WIDTH: Final = 480
HEIGHT: Final = 270
"""Drawn a little larger on a screen and three quarters as large on a phone, so text stays legible."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 14.0, 26.0, 34.0
_LABEL_GAP: Final = 5.0

MARKED_ROUNDS: Final = 40
"""More rounds than this get a line without marks."""

BLOCKS: Final = 600
"""More blocks than this in a stack of bars are drawn as one bar per round."""

LINES: Final = 6
"""More different lines than this are drawn as a band from least to most, and their median."""

Format = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Mark:
    """One value on a line; hollow ones were refused."""

    x: float
    y: float
    text: str
    hollow: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A series; ``points`` is written as SVG has it: ``x,y x,y``."""

    name: str
    style: int
    points: str
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """A level to compare with, drawn across the plot."""

    kind: str
    y: float
    text: str
    text_x: float
    text_y: float
    anchor: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle that stands for a quantity."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """A few words inside the plot."""

    x: float
    y: float
    text: str
    anchor: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A plot that only needs to be drawn."""

    title: str
    alt: str
    x_name: str
    y_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    rules: tuple[Rule, ...] = ()
    bars: tuple[Bar, ...] = ()
    notes: tuple[Note, ...] = ()
    band: str = ""
    legend: tuple[tuple[str, str], ...] = ()
    """Pairs of a kind, which gives the look, and what it stands for."""


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to places: linear, and never of zero length."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where ``value`` lies."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def ticks(low: float, high: float, *, most: int = 6, whole: bool = False) -> list[float]:
    """Round numbers that cover ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten.

    >>> ticks(0.0, 0.83)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(1, 8, whole=True)
    [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    # What differs by less than rounding is one value, shown on a scale from nothing to it.
    largest = max(abs(low), abs(high), 1.0)
    span = high - low if high - low > 1e-9 * largest else largest
    magnitude = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 5, 10, 20):
        step = factor * magnitude
        if whole:
            step = max(1.0, float(math.ceil(step)))
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first < most:
            break
    if last == first:
        last += 1
    return [round(number * step, 12) for number in range(first, last + 1)]


def progress_chart(
    values: Mapping[int, float],
    *,
    title: str,
    metric: str,
    levels: Mapping[str, float],
    low: float,
    high: float,
    rounds: int,
    refused: Mapping[int, str],
    text: Format,
    tick: Format,
) -> Chart:
    """One group's quality after every round, beside what it is compared with.

    Args:
        values: The metric by round; it has no value for a round that failed.
        title: The group.
        metric: What is measured.
        levels: ``before`` and ``central``, where known.
        low: The least value that all groups' plots must show.
        high: The largest.
        rounds: How many rounds were asked for.
        refused: Rounds whose result was not taken over, and why.
        text: How a value is written.
        tick: How a number on the axis is written.
    """
    marks_y = ticks(low, high)
    x, y = _across(0, max(rounds, 1)), _up(marks_y)
    points = dict(values)
    if "before" in levels:
        points[0] = levels["before"]
    rising = not points or points[max(points)] >= points[min(points)]
    marks = [
        Mark(x(n), y(v), _at_round(n, text(v), refused.get(n, "")), hollow=n in refused)
        for n, v in sorted(points.items())
    ]
    few = len(marks) <= MARKED_ROUNDS
    notes = []
    if values:
        last = max(values)
        notes.append(
            Note(
                x(last),
                _clear_of(y(values[last]), below=rising, levels=[y(v) for v in levels.values()]),
                text(values[last]),
                "end",
            )
        )
    rules = [
        _rule(kind, level, text, y, above=(kind == "central") == rising)
        for kind, level in levels.items()
    ]
    said = [f"{kind} {text(level)}" for kind, level in levels.items()]
    if values:
        said.append(f"after round {max(values)} {text(values[max(values)])}")
    return Chart(
        title=title,
        alt=f"{metric} of {title} over {rounds} rounds: {', '.join(said)}.",
        x_name="round",
        y_name=metric,
        x_ticks=_round_ticks(x, 0, max(rounds, 1)),
        y_ticks=tuple(Tick(y(v), tick(v)) for v in marks_y),
        lines=(
            Line(
                title,
                1,
                _points(points, x, y),
                tuple(marks) if few else tuple(mark for mark in marks if mark.hollow),
            ),
        ),
        rules=tuple(rules),
        notes=tuple(notes),
    )


def device_chart(
    series: Mapping[str, Mapping[int, float]],
    *,
    title: str,
    y_name: str,
    asked: float | None,
    text: Format,
) -> Chart:
    """What each device came to after every round; equal devices share a line.

    Args:
        series: By device, the value by round.
        title: What is plotted, for people who cannot see it.
        y_name: The quantity.
        asked: A level that was asked for.
        text: How a value is written.
    """
    alike: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for device, values in series.items():
        alike.setdefault(tuple(sorted(values.items())), []).append(device)
    every = [value for values in series.values() for value in values.values()]
    last = max((number for values in series.values() for number in values), default=1)
    marks_y = ticks(0.0, max([*every, asked or 0.0], default=1.0))
    x, y = _across(0, last), _up(marks_y)
    band, legend = "", []
    lines: list[Line] = []
    if len(alike) <= LINES:
        for style, (shared, devices) in enumerate(alike.items(), start=1):
            points = {0: 0.0} | dict(shared)
            name = devices[0] if len(devices) == 1 else f"{len(devices)} devices alike"
            few = len(points) <= MARKED_ROUNDS
            marks = [Mark(x(n), y(v), f"{name}, {_at_round(n, text(v))}") for n, v in shared]
            lines.append(Line(name, style, _points(points, x, y), tuple(marks) if few else ()))
            legend.append((f"line s{style}", name))
    else:
        columns = _by_round(series)
        least, most = (
            {0: 0.0} | {n: pick(values) for n, values in columns.items()} for pick in (min, max)
        )
        middle = {0: 0.0} | {n: float(median(values)) for n, values in columns.items()}
        outline = [*sorted(most.items()), *sorted(least.items(), reverse=True)]
        band = " ".join(f"{x(n)},{y(v)}" for n, v in outline)
        lines.append(Line("median", 1, _points(middle, x, y)))
        legend = [
            ("line s1", f"median of {len(series)} devices"),
            ("area band", "from least to most"),
        ]
    rules = [] if asked is None else [_rule("asked", asked, text, y, above=True)]
    top = f"; at most {text(max(every))}" if every else ""
    return Chart(
        title=title,
        alt=f"{title}, {len(series)} devices, {last} rounds{top}.",
        x_name="round",
        y_name=y_name,
        x_ticks=_round_ticks(x, 0, last),
        y_ticks=tuple(Tick(y(v), text(v)) for v in marks_y),
        lines=tuple(lines),
        rules=tuple(rules),
        band=band,
        legend=tuple(legend),
    )


def stack_chart(
    columns: Mapping[int, Sequence[tuple[str, str, float]]],
    *,
    title: str,
    y_name: str,
    text: Format,
    whole: bool,
    legend: Sequence[tuple[str, str]] = (),
) -> Chart:
    """One bar per round, made of blocks on top of one another.

    Args:
        columns: By round, blocks from the bottom: kind, whose it is, how much.
        title: What is plotted, for people who cannot see it.
        y_name: The quantity.
        text: How a value is written.
        whole: Whether only whole numbers make sense on the axis.
        legend: What the kinds stand for.
    """
    totals = {n: sum(amount for _, _, amount in blocks) for n, blocks in columns.items()}
    first, last = min(columns, default=1), max(columns, default=1)
    marks_y = ticks(0.0, max([*totals.values()], default=1.0), whole=whole)
    x, y = _across(first - 0.5, last + 0.5), _up(marks_y)
    step = x(first + 0.5) - x(first - 0.5)
    width = max(0.3, min(30.0, step * (0.72 if step > 3 else 1.0)))
    if sum(map(len, columns.values())) > BLOCKS:
        columns = {n: _merged(blocks) for n, blocks in columns.items()}
    bars = []
    for number, blocks in columns.items():
        base = 0.0
        for kind, whose, amount in blocks:
            top, bottom = y(base + amount), y(base)
            base += amount
            # A line of background between blocks, where there is room for one.
            height = bottom - top - (1.0 if bottom - top > 3 else 0.0)
            name = f"{whose}, {_at_round(number, text(amount))}"
            bars.append(
                Bar(
                    kind,
                    round(x(number) - width / 2, 1),
                    top,
                    round(width, 1),
                    round(max(height, 0.0), 1),
                    name,
                )
            )
    most = f" at most {text(max(totals.values()))} in a round." if totals else ""
    return Chart(
        title=title,
        alt=f"{title}, rounds {first} to {last}:{most}",
        x_name="round",
        y_name=y_name,
        x_ticks=_round_ticks(x, first, last),
        y_ticks=tuple(Tick(y(v), text(v)) for v in marks_y),
        bars=tuple(bars),
        legend=tuple(legend),
    )


def threshold_chart(curve: Sequence[tuple[float, float, float]], *, title: str) -> Chart:
    """How many answers stay local, and how many of those are right, by confidence threshold.

    Args:
        curve: Threshold, share answered locally, accuracy of those; all in [0, 1].
        title: What is plotted.
    """
    marks = ticks(0.0, 1.0)
    x, y = _across(0.0, 1.0), _up(marks)
    names = ("share answered on the device", "accuracy of those")
    lines = []
    for style, name in enumerate(names, start=1):
        points = {row[0]: row[style] for row in sorted(curve)}
        seen = [Mark(x(t), y(v), f"{name}, threshold {t:.2f}: {v:.1%}") for t, v in points.items()]
        few = len(seen) <= MARKED_ROUNDS
        lines.append(Line(name, style, _points(points, x, y), tuple(seen) if few else ()))
    return Chart(
        title=title,
        alt=f"{title}: {names[0]}, and {names[1]}, at {len(curve)} thresholds.",
        x_name="confidence threshold",
        y_name="share",
        x_ticks=tuple(Tick(x(v), f"{v:.1f}") for v in marks),
        y_ticks=tuple(Tick(y(v), f"{v:.0%}") for v in marks),
        lines=tuple(lines),
        legend=tuple((f"line s{style}", name) for style, name in enumerate(names, start=1)),
    )


def _across(low: float, high: float) -> Scale:
    return Scale(low, max(high, low + 1e-9), _LEFT, WIDTH - _RIGHT)


def _up(marks: Sequence[float]) -> Scale:
    return Scale(marks[0], marks[-1], HEIGHT - _BOTTOM, _TOP)


def _round_ticks(x: Scale, first: int, last: int) -> tuple[Tick, ...]:
    """Whole rounds only."""
    numbers = [n for n in ticks(first, last, most=9, whole=True) if first <= n <= last]
    return tuple(Tick(x(n), f"{n:.0f}") for n in numbers)


def _points(points: Mapping[float, float] | Mapping[int, float], x: Scale, y: Scale) -> str:
    return " ".join(f"{x(n)},{y(v)}" for n, v in sorted(points.items()))


def _rule(kind: str, level: float, text: Format, y: Scale, *, above: bool) -> Rule:
    """A level; what is known beforehand is written at the end that the curve leaves free."""
    at = y(level)
    early = kind != "before"
    above = above or at + 15.0 > HEIGHT - _BOTTOM
    return Rule(
        kind,
        at,
        f"{kind} {text(level)}",
        _LEFT + _LABEL_GAP if early else WIDTH - _RIGHT,
        at - _LABEL_GAP if above else at + 12.0 + _LABEL_GAP / 2,
        "start" if early else "end",
    )


def _clear_of(y: float, *, below: bool, levels: Sequence[float]) -> float:
    """Where a value's text goes: on the free side of the curve, not on a level's own text."""
    offset = 18.0 if below else -9.0
    crowded = any(
        abs(y + offset - 5.0 - (level + 8.0 * (1 if below else -1))) < 12 for level in levels
    )
    return y - 9.0 if crowded and below else y + 18.0 if crowded else y + offset


def _at_round(number: int, value: str, why: str = "") -> str:
    when = "before the first round" if number == 0 else f"round {number}"
    return f"{when}: {value}" + (f" (refused: {why})" if why else "")


def _by_round(series: Mapping[str, Mapping[int, float]]) -> dict[int, list[float]]:
    """The values by round; a device that took no part stays where it was."""
    numbers = sorted({number for values in series.values() for number in values})
    columns: dict[int, list[float]] = {number: [] for number in numbers}
    for values in series.values():
        value = 0.0
        for number in numbers:
            value = values.get(number, value)
            columns[number].append(value)
    return columns


def _merged(blocks: Sequence[tuple[str, str, float]]) -> list[tuple[str, str, float]]:
    """One block per kind."""
    totals: dict[str, list[float]] = {}
    for kind, _, amount in blocks:
        totals.setdefault(kind, []).append(amount)
    return [(kind, f"{len(amounts)} together", sum(amounts)) for kind, amounts in totals.items()]
