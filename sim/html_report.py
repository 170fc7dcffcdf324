"""A run's report as one page that a person opens: no script, no network, nothing to install.

H1  the page is one file: nothing is fetched, and its own policy forbids that and every script
H2  whatever a person or a device named (labels, devices, answers, reasons) is text, never markup
H3  a part of the report that is absent is a section that is absent
H4  every number in a plot is also in a table beside it

Plots are drawn here as SVG (:mod:`sim.charts`). Plotly would add 4.8 MB of script to each report,
and a policy that lets scripts run; the same plots take some tens of kilobytes, print, follow the
reader's light or dark setting, and are read out as a table.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shared.crypto.sum_cipher import Scheme
from shared.extras import require
from shared.files import write_durably
from sim.charts import Chart, device_chart, progress_chart, stack_chart, threshold_chart
from sim.tables import NAMES

PANELS: Final = 9
"""Of more groups than this, the first are plotted and all are in the table."""

EXAMPLES: Final = 24
"""So many answers are shown in full."""

LONGEST: Final = 600
"""Characters of a question or answer that are shown."""

_INFINITE: Final = "infinite"


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: the first column names the row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page."""

    key: str
    """Its anchor, and how the template finds what else belongs to it."""
    title: str
    lead: str
    charts: tuple[Chart, ...] = ()
    summary: Grid | None = None
    """What the plots come to, in a few rows."""
    grid: Grid | None = None
    open: bool = False
    """Whether the table is the point, rather than the numbers behind a plot."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the numbers at the top."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a whole, as a bar."""

    name: str
    value: str
    share: float
    style: int


@dataclass(frozen=True, slots=True)
class Told:
    """One question and what became of it."""

    question: str
    answer: str
    local: bool
    source: str
    stand_in: bool
    """Whether the model that answered only stands in for a real one."""
    reason: str
    confidence: float | None


def write_html(report: Mapping[str, Any], folder: Path) -> Path:
    """Write ``report.html`` into ``folder``, whole or not at all.

    Raises:
        DependencyMissing: the extra ``sim`` is not installed.
        StorageError: the disk refused.
    """
    path = folder / "report.html"
    # A lone surrogate, which JSON can spell, has no bytes in UTF-8.
    write_durably(path, render_html(report).encode("utf-8", "replace"))
    return path


def render_html(report: Mapping[str, Any]) -> str:
    """The page for a report as :func:`sim.report.build_report` makes it.

    Raises:
        DependencyMissing: the extra ``sim`` is not installed.
    """
    jinja2 = require("jinja2", extra="sim")
    files = importlib.resources.files("sim")
    style = (files / "report.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((files / "report.html.j2").read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    sections = tuple(_sections(report))
    page: str = template.render(
        style=style,
        style_digest=digest,
        title=_title(report),
        summary=_summary(report),
        figures=tuple(_figures(report)),
        warnings=tuple(_warnings(report)),
        sections=sections,
        split=_split(report.get("answers", {})),
        reasons=_reasons(report.get("answers", {})),
        decided=tuple(_decided(report.get("answers", {}))),
        told=_told(report.get("answers", {})),
        stages=_stages(report.get("stages", {})),
        privacy=tuple(_privacy_facts(report)),
        facts=tuple(_facts(report)),
    )
    return page


def _title(report: Mapping[str, Any]) -> str:
    name = report.get("scenario", {}).get("name") or report.get("run") or "Report"
    return f"LLM OS: {name}"


def _summary(report: Mapping[str, Any]) -> str:
    texts = sum(report.get("examples", {}).get("by_device", {}).values())
    learnt = f" from {texts:,} examples that stayed where they were" if texts else ""
    transport = {"mqtt": "over MQTT", "memory": "on virtual time"}.get(
        report.get("transport", ""), ""
    )
    return (
        f"{_count(report.get('devices', 0), 'device')} learned together{learnt}: "
        f"{_count(report.get('rounds', 0), 'round')} {transport}".rstrip()
        + (f", seed {report['seed']}." if "seed" in report else ".")
    )


def _figures(report: Mapping[str, Any]) -> Iterator[Figure]:
    perplexity = _perplexity(report)
    if perplexity is not None:
        levels, by_round = perplexity
        after = by_round[max(by_round)]
        yield Figure("perplexity", _perplexed(after), _compared(levels, _perplexed))
    elif "accuracy" in report:
        accuracy = report["accuracy"]
        levels = {
            kind: accuracy[kind]["all"]
            for kind in ("before", "central")
            if "all" in accuracy.get(kind, {})
        }
        yield Figure(
            "accuracy on held-out examples",
            _percent(accuracy["after"]["all"]),
            _compared(levels, _percent),
        )
    if report.get("epsilon"):
        privacy = report.get("privacy", {})
        spent = [_number(value) for value in report["epsilon"].values()]
        promised = f"of {privacy['epsilon_asked']:g} allowed" if _noised(report) else "no noise"
        yield Figure(
            "ε spent, at most",
            _epsilon(max(spent)),
            f"{promised}, δ = {privacy['delta']:g}" if "delta" in privacy else promised,
        )
    sent = [count for rounds in report.get("bytes_out", {}).values() for count in rounds.values()]
    if sent:
        yield Figure(
            "left a device per round", _size(sum(sent) / len(sent)), f"{_size(sum(sent))} together"
        )
    history = report.get("history", [])
    invited = sum(entry["invited"] for entry in history)
    if invited:
        arrived = sum(entry["reported"] for entry in history)
        yield Figure("updates arrived", _percent(arrived / invited), f"{arrived} of {invited}")
    answers = report.get("answers", {})
    asked = answers.get("local", 0) + answers.get("cloud", 0)
    if asked:
        yield Figure(
            "answered on the device",
            _percent(answers["local"] / asked),
            f"{answers['cloud']} of {asked} went to the coordinator",
        )


def _warnings(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    privacy = report.get("privacy", {})
    if privacy and privacy["noise"] == "none":
        yield (
            "This run made no promise of privacy",
            (
                "It trained without noise, so ε is infinite: what a device sent may tell about "
                "single examples."
            ),
        )
    elif privacy.get("repeatable_noise"):
        yield (
            "The noise of this run can be repeated",
            (
                "It follows from the seed, since this is a demonstration or simulation, and so it "
                "protects nobody who knows the seed. A real device draws its noise from its "
                "operating system, and refuses a run like this one."
            ),
        )
    if _scheme(report) == Scheme.CLEAR:
        yield (
            "Updates travelled in clear",
            "Coordinator and broker could read each device's update, not only their sum.",
        )


def _sections(report: Mapping[str, Any]) -> Iterator[Section]:
    history = report.get("history", [])
    if history and "accuracy" in report:
        yield _accuracy(report, history)
    perplexity = _perplexity(report)
    if perplexity is not None:
        yield _perplexity_section(report, *perplexity)
    answers = report.get("answers", {})
    if answers.get("local", 0) + answers.get("cloud", 0):
        yield _answers(answers)
    if report.get("who_could_see"):
        yield Section(
            "privacy",
            "Who could see what",
            "What existed during the run, and who was in a place to look at it.",
            grid=Grid(
                "Who could see what",
                ("what", "who could see it"),
                tuple((row["what"], row["who"]) for row in report["who_could_see"]),
            ),
            open=True,
        )
    if _noised(report) and any(report.get("epsilon_by_round", {}).values()):
        yield _epsilon_section(report)
    if any(report.get("bytes_out", {}).values()):
        yield _bytes_section(report["bytes_out"], _scheme(report))
    if any(entry["invited"] for entry in history):
        yield _participation(history)
    if report.get("model", {}).get("passes"):
        yield _passes(report["model"]["passes"])
    if report.get("stages"):
        yield Section("stages", "Where the time went", "Wall-clock time of each stage.")
    yield Section("facts", "What exactly ran", "Enough to run it again and to know the result.")


def _accuracy(report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Section:
    accuracy = report["accuracy"]
    groups = list(accuracy["after"])
    groups.sort(key=lambda group: group != "all")
    judged = {entry["round"]: entry["accuracy"] for entry in history if "accuracy" in entry}
    levels = {
        group: {
            kind: accuracy[kind][group]
            for kind in ("before", "central")
            if group in accuracy.get(kind, {})
        }
        for group in groups
    }
    every = [value for by_group in judged.values() for value in by_group.values()]
    every += [value for by_kind in levels.values() for value in by_kind.values()]
    causal = _task(report) == "causal-lm"
    charts = [
        progress_chart(
            {number: by_group[group] for number, by_group in judged.items() if group in by_group},
            title=NAMES.get(group, group),
            metric="accuracy",
            levels=levels[group],
            low=0.0,
            high=max(every),
            rounds=report.get("rounds", len(history)),
            refused=_refused(history),
            text=_percent,
            tick=lambda share: f"{share:.0%}",
        )
        for group in groups[:PANELS]
    ]
    names = tuple(NAMES.get(group, group) for group in groups)
    rows = [("before", *(_cell(levels[g].get("before"), _percent) for g in groups), "")]
    rows += [
        (
            str(entry["round"]),
            *(_cell(entry.get("accuracy", {}).get(g), _percent) for g in groups),
            _result(entry),
        )
        for entry in history
    ]
    rows.append(("central", *(_cell(levels[g].get("central"), _percent) for g in groups), ""))
    what = "the share of words foretold in" if causal else "the share answered right of"
    lead = (
        f"After each round the coordinator judges the shared model: {what} examples that no "
        "device trained on. "
    )
    if any("central" in by_kind for by_kind in levels.values()):
        lead += "Central is the same training on everything in one place, without privacy."
    return Section(
        "accuracy",
        "Accuracy over the rounds",
        lead,
        tuple(charts),
        Grid(
            "Before and after",
            ("", "before", "after", "central"),
            tuple(
                (
                    NAMES.get(group, group),
                    _cell(levels[group].get("before"), _percent),
                    _percent(accuracy["after"][group]),
                    _cell(levels[group].get("central"), _percent),
                )
                for group in groups
            ),
        ),
        Grid("Accuracy by round", ("round", *names, "result"), tuple(rows)),
    )


def _perplexity(
    report: Mapping[str, Any],
) -> tuple[dict[str, float], dict[int, float]] | None:
    """What a language model's perplexity is compared with, and what it was after each round."""
    losses = {
        entry["round"]: entry["loss"] for entry in report.get("history", []) if "loss" in entry
    }
    if _task(report) != "causal-lm" or not losses:
        return None
    known = report.get("loss", {})
    levels = {kind: _exp(known[kind]) for kind in ("before", "central") if kind in known}
    return levels, {number: _exp(loss) for number, loss in losses.items()}


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0))


def _perplexity_section(
    report: Mapping[str, Any], levels: Mapping[str, float], by_round: Mapping[int, float]
) -> Section:
    every = [*by_round.values(), *levels.values()]
    chart = progress_chart(
        by_round,
        title="all",
        metric="perplexity",
        levels=levels,
        low=0.0,
        high=max(every),
        rounds=report.get("rounds", max(by_round)),
        refused=_refused(report["history"]),
        text=_perplexed,
        tick=lambda value: f"{value:,g}",
    )
    rows = [(kind, _perplexed(value)) for kind, value in levels.items() if kind == "before"]
    rows += [(str(number), _perplexed(value)) for number, value in by_round.items()]
    rows += [(kind, _perplexed(value)) for kind, value in levels.items() if kind == "central"]
    return Section(
        "perplexity",
        "Perplexity over the rounds",
        "Among how many words, in effect, the model hesitates at each word of a held-out answer. "
        "Less is better.",
        (chart,),
        grid=Grid("Perplexity by round", ("round", "perplexity"), tuple(rows)),
    )


def _answers(answers: Mapping[str, Any]) -> Section:
    curve = [
        (float(row["threshold"]), float(row["local_share"]), float(row["accuracy"]))
        for row in answers.get("curve", [])
        if row["local_share"] > 0  # of no answers none is right or wrong
    ]
    charts: tuple[Chart, ...] = ()
    grid = None
    if curve:
        charts = (threshold_chart(curve, title="What a higher threshold buys"),)
        grid = Grid(
            "Share and accuracy by threshold",
            ("threshold", "answered on the device", "of those right"),
            tuple((f"{t:.2f}", _percent(share), _percent(right)) for t, share, right in curve),
        )
    return Section(
        "answers",
        "Who answered",
        "A device answers by itself when it is sure enough. Otherwise it asks the coordinator's "
        "larger model, and personal data is taken out first.",
        charts,
        grid=grid,
    )


def _epsilon_section(report: Mapping[str, Any]) -> Section:
    by_round = report["epsilon_by_round"]
    privacy = report["privacy"]
    finite = {
        device: {int(number): float(e) for number, e in rounds.items() if e != _INFINITE}
        for device, rounds in by_round.items()
        if rounds
    }
    numbers = sorted({number for rounds in finite.values() for number in rounds})
    chart = device_chart(
        finite,
        title="ε spent by each device",
        y_name="ε",
        asked=float(privacy["epsilon_asked"]),
        text=lambda value: f"{value:g}" if value == int(value) else f"{value:.2f}",
    )
    return Section(
        "epsilon",
        "Privacy spent",
        "What each device's own ledger says after every round it took part in; a device that sits "
        "a round out spends nothing. Smaller is more private. The dashed line is what the job was "
        "allowed.",
        (chart,),
        grid=Grid(
            "ε by device and round",
            ("device", *(str(number) for number in numbers), "in the end"),
            tuple(
                (
                    device,
                    *(_cell(rounds.get(str(number)), _epsilon) for number in numbers),
                    _cell(report.get("epsilon", {}).get(device), _epsilon),
                )
                for device, rounds in by_round.items()
            ),
        ),
    )


def _bytes_section(bytes_out: Mapping[str, Mapping[str, int]], scheme: str) -> Section:
    numbers = sorted({int(number) for rounds in bytes_out.values() for number in rounds})
    chart = stack_chart(
        {
            number: [
                ("sent", device, float(rounds[str(number)]))
                for device, rounds in bytes_out.items()
                if str(number) in rounds
            ]
            for number in numbers
        },
        title="Bytes out of all devices",
        y_name="bytes out",
        text=_size,
        whole=False,
    )
    return Section(
        "bytes",
        "What left the devices",
        "Bytes that each device sent in each round, one block per device."
        + (
            " An encrypted update is as long whatever is in it, so its size tells nothing."
            if scheme == Scheme.PUBLIC_KEY
            else ""
        ),
        (chart,),
        grid=Grid(
            "Bytes out by device and round",
            ("device", *(str(number) for number in numbers), "together"),
            tuple(
                (
                    device,
                    *(_cell(rounds.get(str(number)), lambda n: f"{n:,.0f}") for number in numbers),
                    f"{sum(rounds.values()):,}",
                )
                for device, rounds in bytes_out.items()
            ),
        ),
    )


def _participation(history: Sequence[Mapping[str, Any]]) -> Section:
    kinds = (
        ("arrived", "update arrived"),
        ("declined", "declined"),
        ("missing", "dropped out or too late"),
    )
    columns, rows = {}, []
    for entry in history:
        declined = sum(entry.get("declined", {}).values())
        missing = max(0, entry["invited"] - entry["reported"] - declined)
        counts = (entry["reported"], declined, missing)
        columns[entry["round"]] = [
            (kind, name, float(count))
            for (kind, name), count in zip(kinds, counts, strict=True)
            if count
        ]
        codes = ", ".join(
            f"{code} ({count})" for code, count in sorted(entry.get("declined", {}).items())
        )
        rows.append(
            (
                str(entry["round"]),
                str(entry["invited"]),
                *map(str, counts),
                codes,
                _result(entry),
            )
        )
    chart = stack_chart(
        columns,
        title="Invited devices",
        y_name="devices",
        text=lambda count: f"{count:.0f}",
        whole=True,
        legend=[
            kind for kind in kinds if any(kind[0] == b[0] for c in columns.values() for b in c)
        ],
    )
    return Section(
        "devices",
        "Who took part",
        "Of the devices invited to each round. The coordinator invites more than it needs, by the "
        "drop-out it has seen, and closes a round once enough have arrived.",
        (chart,),
        grid=Grid(
            "Devices by round",
            ("round", "invited", "arrived", "declined", "missing", "why declined", "result"),
            tuple(rows),
        ),
    )


def _passes(passes: Sequence[Mapping[str, Any]]) -> Section:
    columns: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
        ("name", "pass", str),
        ("nodes", "graph nodes", lambda n: f"{n:,}"),
        ("bytes", "size", _size),
        ("p50_ms_32", "p50, 32 tokens", lambda ms: f"{ms:.2f} ms"),
        ("p50_ms_128", "p50, 128 tokens", lambda ms: f"{ms:.2f} ms"),
        ("agreement", "agrees with fp32", lambda share: f"{share:.2%}"),
    )
    return Section(
        "passes",
        "The model on the device",
        "What each step made of the base model: a smaller graph, a smaller file, a faster answer, "
        "and how often it still says what the original says.",
        grid=Grid(
            "Passes over the model",
            tuple(title for _, title, _ in columns),
            tuple(tuple(_cell(row.get(key), text) for key, _, text in columns) for row in passes),
        ),
        open=True,
    )


def _split(answers: Mapping[str, Any]) -> tuple[Share, ...]:
    local, cloud = answers.get("local", 0), answers.get("cloud", 0)
    if not local + cloud:
        return ()
    return tuple(
        Share(name, f"{count:,}", count / (local + cloud), style)
        for style, (name, count) in enumerate(
            (("on the device", local), ("by the coordinator", cloud)), start=1
        )
    )


def _reasons(answers: Mapping[str, Any]) -> tuple[Share, ...]:
    reasons = answers.get("reasons", {})
    most = max(reasons.values(), default=0)
    ordered = sorted(reasons.items(), key=lambda pair: -pair[1])
    return tuple(
        Share(_cut(name).replace("-", " "), f"{n:,}", n / most, 1) for name, n in ordered if n
    )


def _decided(answers: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """By what it was decided who answers, and what was kept back from the question."""
    if "threshold" in answers:
        known = answers["threshold"]
        yield (
            "least confidence of a local answer",
            f"{known:.2f}" if known is not None else "none could be certified: all are passed on",
        )
    if "target_error" in answers:
        yield "errors allowed among local answers", _percent(answers["target_error"])
    if "redacted" in answers:
        yield "pieces of personal data taken out", f"{answers['redacted']:,}"


def _told(answers: Mapping[str, Any]) -> tuple[Told, ...]:
    return tuple(
        Told(
            _cut(example["question"]),
            _cut(example["answer"]),
            example["source"] == "device",
            {"device": "on the device", "coordinator": "by the coordinator"}.get(
                example["source"], _cut(example["source"])
            ),
            bool(example.get("stand_in", False)),
            _cut(example.get("reason", "")),
            example.get("confidence"),
        )
        for example in answers.get("examples", [])[:EXAMPLES]
    )


def _stages(stages: Mapping[str, float]) -> tuple[Share, ...]:
    longest = max(stages.values(), default=0.0) or 1.0
    return tuple(
        Share(name.replace("_", " "), f"{seconds:.1f} s", seconds / longest, 1)
        for name, seconds in stages.items()
    )


def _privacy_facts(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    privacy, protection = report.get("privacy", {}), report.get("protection", {})
    if _noised(report):
        how = {
            "local": "each device adds all of its own",
            "distributed": "the devices of a sum share it",
        }
        yield "noise", f"{privacy['noise']}: {how[privacy['noise']]}"
        yield "noise multiplier σ/C", f"{privacy['noise_multiplier']:.3f}"
        yield "protects", f"one {privacy.get('level', 'record')}"
        yield "ε allowed", f"{privacy['epsilon_asked']:g}"
    elif privacy:
        yield "noise", "none"
    spent = [_number(value) for value in report.get("epsilon", {}).values()]
    if spent:
        least, most = _epsilon(min(spent)), _epsilon(max(spent))
        yield "ε spent", most if least == most else f"{least} to {most}, by device"
    if privacy.get("noise") == "distributed":
        alone = [_number(value) for value in report.get("epsilon_alone", {}).values()]
        if alone:
            yield "ε against the key holder, or all other devices", _epsilon(max(alone))
    if "delta" in privacy:
        yield "δ", f"{privacy['delta']:g}"
    if protection:
        yield "sums", f"{protection['scheme']}, {protection['parameters']}"
        yield "opened over", f"at least {protection['min_devices']} devices"
        yield "bytes per value", f"{protection['bytes_per_value']:.2f}"


def _facts(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    base, examples = report.get("base_model", {}), report.get("examples", {})
    trainable, language = report.get("trainable", {}), report.get("language_model", {})
    adversary = report.get("adversary", {})
    hostile = ", ".join(adversary.get("devices", []))
    for name, value in (
        ("run", report.get("run")),
        ("task", _task(report)),
        ("seed", report.get("seed")),
        ("adapter, SHA-256", report.get("adapter_hash")),
        ("base model", base.get("name")),
        ("base weights, SHA-256", base.get("sha256")),
        (
            "coordinator's language model",
            language.get("name", "") + (" (a stand-in)" if language.get("stand_in") else ""),
        ),
        ("adapter method", trainable.get("method")),
        ("trained parameters", trainable.get("parameters")),
        ("adversary", f"{adversary['kind']} by {hostile}" if hostile else ""),
        ("labels", examples.get("labels")),
        ("held-out examples", examples.get("held_out")),
        ("transport", report.get("transport")),
    ):
        if value not in (None, ""):
            yield name, str(value)
    for package, version in report.get("versions", {}).items():
        yield package, str(version)


def _task(report: Mapping[str, Any]) -> str:
    return str(report.get("task") or report.get("scenario", {}).get("task") or "")


def _scheme(report: Mapping[str, Any]) -> str:
    return str(report.get("protection", {}).get("scheme", ""))


def _noised(report: Mapping[str, Any]) -> bool:
    return bool(report.get("privacy", {}).get("noise", "none") != "none")


def _refused(history: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    return {e["round"]: e.get("reason", "") for e in history if e.get("accepted") is False}


def _result(entry: Mapping[str, Any]) -> str:
    if "failed" in entry:
        return f"failed: {entry['failed']}"
    if entry.get("accepted") is False:
        return f"refused: {entry.get('reason', '')}"
    return "taken over" if entry.get("accepted") else ""


def _compared(levels: Mapping[str, float], text: Callable[[float], str]) -> str:
    words = {"before": "{} before", "central": "{} centrally, without privacy"}
    return "; ".join(words[kind].format(text(value)) for kind, value in levels.items())


def _number(epsilon: float | str) -> float:
    return math.inf if epsilon == _INFINITE else float(epsilon)


def _epsilon(epsilon: float | str) -> str:
    value = _number(epsilon)
    return f"{value:.2f}" if math.isfinite(value) else "∞"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _perplexed(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def _size(count: float) -> str:
    """Bytes in decimal units.

    >>> _size(118_539)
    '119 kB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _cell(value: Any, text: Callable[[Any], str]) -> str:
    return "–" if value is None else text(value)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST].rstrip() + " …"
