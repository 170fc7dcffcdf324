"""Commands about answers: ``llmos edge ask``, ``calibrate``, ``label``, ``answers``, ``doctor``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_agent.options import DEFAULT_HOME, AsJson, Home

if TYPE_CHECKING:
    from edge_agent.inference.answering import LocalModel
    from shared.models.calibration import Calibration, CurvePoint

inference = typer.Typer(no_args_is_help=True)
answers = typer.Typer(help="What the device says for each label.", no_args_is_help=True)
inference.add_typer(answers, name="answers")

_ASK_TIMEOUT_S = 700.0
"""Longer than any time-out that a policy may set: the agent always answers first."""

_ROWS_SHOWN = 12


@inference.command("ask")
def ask(
    question: Annotated[str, typer.Argument(help="Any text.")],
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Ask the device; it answers itself, or asks the coordinator if that is better and allowed."""
    home = home.expanduser()
    url = _running(home)
    facts = _asked_agent(url, home, question) if url is not None else None
    if facts is None:
        facts = _asked_here(home, question)
        typer.echo(
            "no agent runs: answered in this process, the coordinator was not asked", err=True
        )
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    typer.echo(facts["answer"])
    stand_in = ", a stand-in" if facts["stand_in"] else ""
    where = f"{facts['source']} ({facts['model']}{stand_in}), {facts['milliseconds']:.0f} ms"
    typer.echo(f"— {where}: {facts['reason']} [{facts['code']}]", err=True)


@inference.command("calibrate")
def calibrate_device(
    file: Annotated[
        Path | None, typer.Argument(help="A .csv or .jsonl file that was not trained on.")
    ] = None,
    target_error: Annotated[
        float | None,
        typer.Option(min=0.0001, max=0.5, help="Most errors; else what the policy says."),
    ] = None,
    text_column: Annotated[str, typer.Option()] = "text",
    label_column: Annotated[str, typer.Option()] = "label",
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Find out from labelled examples from which confidence on answers may stay here."""
    from edge_agent.examples import ExampleStore
    from edge_agent.inference.installed import Installation, write_own_calibration
    from edge_agent.participate import Home as DeviceHome
    from shared.data_files import read_examples
    from shared.files import write_durably
    from shared.models.calibration import calibrate
    from shared.models.classification import positions

    home = home.expanduser()
    if file is not None:
        examples = read_examples(file, text_column=text_column, label_column=label_column)
    else:
        examples = ExampleStore(DeviceHome(home).examples).examples()
        typer.echo(
            "warning: these are the device's own examples; where it trained on them, the "
            "device looks better than it is: name a FILE that it has not seen",
            err=True,
        )
    model = _opened(home)
    allowed = Installation(home).current().policy.target_error
    found = calibrate(
        _logits(model, [example.text for example in examples]),
        positions([example.label for example in examples], model.adapter.labels),
        target_error=target_error if target_error is not None else allowed,
    )
    write_own_calibration(home, model.adapter.digest, found)
    curve = home / "calibration-curve.csv"
    write_durably(curve, _as_csv(found.curve))
    if found.target_error > allowed:
        typer.echo(
            f"warning: the policy allows {allowed:.1%} errors, so that nothing is answered "
            "here under this calibration; set target_error in policy.toml",
            err=True,
        )
    if as_json:
        facts = found.model_dump() | {"local_share": found.local_share, "curve_file": str(curve)}
        typer.echo(json.dumps(facts))
        return
    _show(found)
    typer.echo(f"the whole curve: {curve}")


@inference.command("label")
def label_texts(
    given: Annotated[str, typer.Argument(help="A text, or a .csv, .jsonl or .txt file.")],
    label: Annotated[str, typer.Option(help="The label of all of them.")] = "",
    accept_above: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Accept suggestions from this confidence on."),
    ] = None,
    text_column: Annotated[str, typer.Option()] = "text",
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Label texts by hand, with the device's own suggestion, and add them to its examples."""
    from edge_agent.examples import ExampleStore
    from edge_agent.participate import Home as DeviceHome
    from shared.data_files import Example

    home = home.expanduser()
    texts = _texts(given, text_column)
    counts = {"accepted": 0, "asked": 0, "skipped": 0}
    labelled: list[Example] = []
    model = None if label else _opened(home)
    try:
        for position, text in enumerate(texts, start=1):
            if model is None:
                labelled.append(Example(text, label))
                continue
            opinion = model.classify(text)
            if accept_above is not None and opinion.confidence >= accept_above:
                counts["accepted"] += 1
                labelled.append(Example(text, opinion.label))
                continue
            typer.echo(f"[{position}/{len(texts)}] {text}", err=True)
            chosen = typer.prompt(
                f"label ('-' skips; the model is {opinion.confidence:.0%} sure)",
                default=opinion.label,
                err=True,
            ).strip()
            counts["skipped" if chosen == "-" else "asked"] += 1
            if chosen != "-":
                if chosen not in model.adapter.labels:
                    typer.echo(f"note: the model does not know the label '{chosen}'", err=True)
                labelled.append(Example(text, chosen))
    except typer.Abort:
        typer.echo("stopped; what was labelled so far is kept", err=True)
    added = ExampleStore(DeviceHome(home).examples).add(labelled)
    if as_json:
        facts = counts | {"new": added.new, "duplicates": added.duplicates}
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"added {added.new} examples ({added.duplicates} were there already)")


@answers.command("add")
def add_answers(
    file: Annotated[Path, typer.Argument(help="Columns label, answer and perhaps language.")],
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Take over what is to be said for each label; new texts replace older ones."""
    from edge_agent.inference.answering import Templates
    from edge_agent.inference.installed import ANSWERS
    from shared.files import write_durably

    path = home.expanduser() / ANSWERS
    new = Templates.read(file)
    merged = Templates.read(path).merged(new) if path.exists() else new
    write_durably(path, merged.to_csv())
    if as_json:
        typer.echo(json.dumps({"new": len(new), "total": len(merged)}))
        return
    typer.echo(f"took {len(new)} answers; there are {len(merged)}")


@inference.command("doctor")
def doctor(
    port: Annotated[int, typer.Option(help="Of the local API, to see whether it is free.")] = 0,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Check what could keep this device from working; exit code 1 if anything does."""
    from edge_agent.doctor import Outcome, examine

    findings = list(examine(home.expanduser(), port=port))
    if as_json:
        listed = [
            {"check": each.check, "outcome": each.outcome, "detail": each.detail}
            for each in findings
        ]
        typer.echo(json.dumps(listed, ensure_ascii=False))
    else:
        for each in findings:
            typer.echo(f"{each.outcome:<8} {each.check}: {each.detail}")
    if any(each.outcome is Outcome.FAILED for each in findings):
        raise typer.Exit(1)


def _running(home: Path) -> str | None:
    """The address of the agent that works in ``home``, as it wrote it down."""
    try:
        url = json.loads((home / "ready.json").read_bytes()).get("url")
    except (OSError, ValueError, AttributeError):
        return None
    return url if isinstance(url, str) else None


def _asked_agent(url: str, home: Path, question: str) -> dict[str, Any] | None:
    """What the running agent answers; None if nobody is there after all.

    Raises:
        DataError, ModelError: it refused.
    """
    import httpx

    from edge_agent.api.token import TOKEN
    from shared.errors import DataError, ModelError

    try:
        token = (home / TOKEN).read_text(encoding="ascii").strip()
    except OSError as err:
        raise DataError(f"cannot read {home / TOKEN}: {err.strerror}") from err
    try:
        response = httpx.post(
            f"{url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": question}]},
            headers={"Authorization": f"Bearer {token}"},
            timeout=_ASK_TIMEOUT_S,
            trust_env=False,
        )
    except httpx.ConnectError:
        return None  # it ended without being able to take ready.json away
    except (httpx.HTTPError, UnicodeEncodeError) as err:
        raise DataError(f"the agent at {url} gave no answer ({type(err).__name__})") from err
    try:
        body = response.json()
        if response.is_success:
            return {"answer": body["choices"][0]["message"]["content"], **body["llmos"]}
        sentence = str(body["error"]["message"])
    except (ValueError, KeyError, TypeError, IndexError) as err:
        raise DataError(f"what answers at {url} is not the agent: start it again") from err
    kind = ModelError if response.is_server_error else DataError
    raise kind(sentence)


def _asked_here(home: Path, question: str) -> dict[str, Any]:
    from edge_agent.inference.answering import Answerer
    from edge_agent.inference.installed import Installation

    answer = Answerer(Installation(home).current, home, ask_coordinator=None).answer(question)
    return {"answer": answer.text, **answer.facts()}


def _opened(home: Path) -> LocalModel:
    from edge_agent.inference.installed import open_model
    from shared.errors import ModelError

    try:
        return open_model(home)
    except ModelError as err:
        raise ModelError(f"this device has no model: {err}") from err


def _logits(model: LocalModel, texts: Sequence[str]) -> Any:
    import numpy as np

    return np.array([model.encoder.answer(text, model.adapter)[1] for text in texts])


def _texts(given: str, column: str) -> list[str]:
    """The texts of a file, or the one text that ``given`` is."""
    from shared.data_files import read_examples
    from shared.errors import DataError

    path = Path(given)
    if path.suffix.lower() in {".csv", ".jsonl"}:
        # No label yet: the text's own column stands in for that of the label.
        rows = read_examples(path, text_column=column, label_column=column)
        return [row.text for row in rows]
    if path.suffix.lower() == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as err:
            raise DataError(f"cannot read {path}: {err}") from err
        lines = [line.strip() for line in lines if line.strip()]
        if not lines:
            raise DataError(f"there are no texts in {path}")
        return lines
    if not given.strip():
        raise DataError("the text is empty")
    return [given.strip()]


def _as_csv(curve: Sequence[CurvePoint]) -> bytes:
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow(["threshold", "local_share", "accuracy", "error_bound"])
    writer.writerows((p.threshold, p.local_share, p.accuracy, p.error_bound) for p in curve)
    return lines.getvalue().encode()


def _show(found: Calibration) -> None:
    typer.echo("threshold  answered here  right   error at most")
    step = max(1, len(found.curve) // _ROWS_SHOWN)
    for number, point in enumerate(found.curve):
        chosen = point.threshold == found.threshold
        if chosen or number % step == 0 or number == len(found.curve) - 1:
            mark = "  ← chosen" if chosen else ""
            typer.echo(
                f"{point.threshold:>9.3f}  {point.local_share:>13.1%}  {point.accuracy:>6.1%}  "
                f"{point.error_bound:>13.1%}{mark}"
            )
    if found.threshold is None:
        typer.echo(
            f"nothing can be certified for at most {found.target_error:.1%} errors with "
            f"{found.examples} examples: every question will be asked elsewhere"
        )
        return
    typer.echo(
        f"{found.local_share:.1%} of such questions stay here, with at most "
        f"{found.target_error:.1%} errors ({found.certified_with:.0%} confidence, "
        f"{found.examples} examples)"
    )
