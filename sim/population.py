"""Examples dealt out to devices: who has what, and what is held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shared.data_files import Example, read_examples, read_splits
from shared.errors import ConfigError, DataError
from shared.types import DeviceId
from sim.scenario import DataTable


@dataclass(frozen=True, slots=True)
class Population:
    """The devices' examples, and the public held-out set."""

    devices: dict[DeviceId, list[Example]]
    probe: list[Example]


def load(table: DataTable) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples; the latter empty if they must be held out of the former.

    Raises:
        ConfigError: no file is named.
        DataError: a file is missing or unusable.
    """
    if not table.path:
        raise ConfigError(
            ["data.path: missing; name a file here or with --data"], source="scenario"
        )
    path = Path(table.path)
    kind = table.format
    if kind == "auto":
        kind = "splits" if path.suffix.lower() == ".json" else "csv"
    if kind == "splits":
        splits = read_splits(path)
        return splits["train"], splits["test"]
    test = _read(table, Path(table.test)) if table.test else []
    return _read(table, path), test


def _read(table: DataTable, path: Path) -> list[Example]:
    return read_examples(
        path,
        text_column=table.text_column,
        label_column=table.label_column,
        group_column=table.group_column or None,
    )


def deal(table: DataTable, devices: int, *, seed: int) -> Population:
    """Hold a probe set out and deal the rest to devices.

    The same table, number and seed give the same population. Every device gets
    at least one example.

    Raises:
        ConfigError, DataError: as :func:`load`, or there are too few examples.
    """
    examples, probe = load(table)
    if table.answers:
        answers = _answers(Path(table.answers))
        examples, probe = (_answered(part, answers) for part in (examples, probe))
    rng = np.random.default_rng([seed, 0x9E3779B9])
    if not probe:
        examples, probe = _hold_out(examples, table.test_share, rng)
    if len(examples) < devices:
        raise DataError(f"{len(examples)} examples cannot be dealt to {devices} devices")
    if table.split == "iid":
        parts = [list(part) for part in np.array_split(rng.permutation(len(examples)), devices)]
    else:
        parts = _dirichlet([e.label for e in examples], devices, table.alpha, rng)
    for part in parts:
        if not part:
            richest = max(parts, key=len)
            part.append(richest.pop())
    width = len(str(devices))
    return Population(
        {
            DeviceId(f"device-{number:0{width}d}"): [examples[index] for index in sorted(part)]
            for number, part in enumerate(parts, start=1)
        },
        probe,
    )


def _answers(path: Path) -> dict[tuple[str, str], str]:
    """Answers by label and group."""
    rows = read_examples(path, text_column="answer", label_column="label", group_column="language")
    return {(row.label, row.group): row.text for row in rows}


def _answered(examples: Sequence[Example], answers: Mapping[tuple[str, str], str]) -> list[Example]:
    """Put each example's answer in the place of its label.

    Raises:
        DataError: naming the labels that have none.
    """
    lacking = {example.label for example in examples} - {label for label, _ in answers}
    if lacking:
        raise DataError(f"data.answers: no answer to {', '.join(sorted(lacking)[:5])}")
    of_any = {label: text for (label, _), text in sorted(answers.items(), reverse=True)}
    return [
        replace(each, label=answers.get((each.label, each.group), of_any[each.label]))
        for each in examples
    ]


def _dirichlet(
    labels: Sequence[str], devices: int, alpha: float, rng: np.random.Generator
) -> list[list[int]]:
    """Deal each label's examples in proportions drawn from Dirichlet(alpha).

    Source:
        Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data
        Distribution for Federated Visual Classification", 2019, section 3.
    """
    parts: list[list[int]] = [[] for _ in range(devices)]
    names = np.array(labels)
    for label in sorted(set(labels)):
        members = rng.permutation(np.flatnonzero(names == label))
        shares = rng.dirichlet(np.full(devices, alpha))
        cuts = np.floor(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for part, dealt in zip(parts, np.split(members, cuts), strict=True):
            part.extend(int(index) for index in dealt)
    return parts


def _hold_out(
    examples: Sequence[Example], share: float, rng: np.random.Generator
) -> tuple[list[Example], list[Example]]:
    """Hold out ``share`` of every label and group, at least one where there are two."""
    strata: dict[tuple[str, str], list[int]] = {}
    for index, example in enumerate(examples):
        strata.setdefault((example.label, example.group), []).append(index)
    held: set[int] = set()
    for _, members in sorted(strata.items()):
        count = max(round(share * len(members)), 1) if len(members) > 1 else 0
        held.update(int(index) for index in rng.permutation(members)[:count])
    if not held:
        raise DataError("no label has two examples, so none can be held out: name a test file")
    kept = [example for index, example in enumerate(examples) if index not in held]
    return kept, [examples[index] for index in sorted(held)]
