"""A scenario: a job, and the world it is tried in."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from shared.config import Field, Table, read, read_toml
from shared.errors import ConfigError
from shared.job import CohortTable, Job


class DataTable(Table):
    """Where examples come from and how they are dealt out.

    Attributes:
        path: Training examples; relative to the working directory.
        test: Held-out examples; without it a share of ``path`` is held out.
        format: ``csv`` and ``jsonl`` have a text and a label column; ``splits``
            is one JSON object with ``train`` and ``test``, lists of [text, label].
            ``auto`` goes by the file's ending, ``.json`` being splits.
        text_column: Name of the column with the text.
        label_column: Name of the column with the label.
        group_column: Results are shown apart by it, e.g. the language.
        answers: A file with the columns label, answer and perhaps language: each
            example's answer takes the place of its label, as a language model wants it.
        test_share: Share held out per label (and group) when there is no test.
        split: ``dirichlet``: each label's examples are dealt in proportions
            drawn from Dirichlet(alpha); ``iid``: evenly at random.
        alpha: Smaller is more unequal.
    """

    path: str = ""
    test: str = ""
    format: Literal["auto", "csv", "jsonl", "splits"] = "auto"
    text_column: str = "text"
    label_column: str = "label"
    group_column: str = ""
    answers: str = ""
    test_share: float = Field(0.2, gt=0, lt=1)
    split: Literal["dirichlet", "iid"] = "dirichlet"
    alpha: float = Field(0.5, gt=0)


class PopulationTable(Table):
    """The virtual devices.

    Attributes:
        devices: How many.
        slowest: How many times longer the slowest device trains than the fastest.
        train_s: Virtual seconds that the fastest device trains per round.
    """

    devices: int = Field(10, ge=2, le=200)
    slowest: float = Field(4.0, ge=1)
    train_s: float = Field(5.0, gt=0)


class NetworkTable(Table):
    """The links between devices and broker.

    Attributes:
        latency_s: One way, in seconds.
        loss: Share of messages that do not arrive.
    """

    latency_s: float = Field(0.02, ge=0)
    loss: float = Field(0.0, ge=0, lt=0.5)


class AdversaryTable(Table):
    """Devices that mean harm and keep to the form: their updates are well-formed, signed and in time.

    Attributes:
        kind: ``label-flip``: they learn every label as its mirror image in the
            sorted list of labels. ``scaled-update``: what they learnt is
            multiplied by ``factor`` before it is weighted, clipped, quantised
            and encrypted as everybody's is.
        share: Share of all devices, rounded to whole devices, a half upwards.
            Which ones is drawn by the seed; a larger share adds to a smaller.
        factor: Below 0 turns the update around.
    """

    kind: Literal["none", "label-flip", "scaled-update"] = "none"
    share: float = Field(0.0, ge=0, le=0.5)
    factor: float = Field(-10.0, ge=-1e6, le=1e6)

    def contradictions(self) -> Iterator[str]:
        """Nobody can be hostile in no way."""
        if self.kind == "none" and self.share > 0:
            yield f"share: {self.share:g} of the devices would mean harm, but kind is 'none'"


class Scenario(Job):
    """What ``llmos sim run`` reads: a job's tables, and the world it is tried in."""

    seed: int = Field(1, ge=0)
    data: DataTable = DataTable()
    population: PopulationTable = PopulationTable()
    network: NetworkTable = NetworkTable()
    adversary: AdversaryTable = AdversaryTable()

    def contradictions(self) -> Iterator[str]:
        """Enough devices must exist for any sum to be opened."""
        yield from super().contradictions()
        devices, protection = self.population.devices, self.protection
        if devices < protection.fewest:
            groups = f" times {protection.groups} groups" if protection.groups > 1 else ""
            yield (
                f"population.devices: {devices} is fewer than protection.min_devices{groups} "
                f"({protection.fewest}), so no sum could ever be opened"
            )
        if self.cohort.devices > devices:
            yield f"cohort.devices: {self.cohort.devices} is more than population.devices ({devices})"

    def job(self) -> Job:
        """The job alone; without a stated cohort, every device is wanted in every round."""
        tables = {name: getattr(self, name) for name in Job.model_fields}
        if self.cohort.devices == 0:
            cohort = self.cohort.model_dump() | {"devices": self.population.devices}
            tables["cohort"] = CohortTable(**cohort)
        return Job(**tables)


def read_scenario(
    path: Path, settings: Sequence[str] = (), *, data: Mapping[str, Any] | None = None
) -> Scenario:
    """Read a scenario file, with other values for some of its keys.

    Args:
        path: A TOML file.
        settings: Each ``table.key=value``; a value is TOML, or else plain text.
        data: Other values for keys of the table ``data``.

    Raises:
        ConfigError: naming every problem of the file and of the settings.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return read_toml(Scenario, path)  # says what is wrong with the file
    malformed = [text for text in settings if "=" not in text]
    if malformed:
        raise ConfigError(
            [f"--set {text}: must be KEY=VALUE" for text in malformed], source="options"
        )
    for text in settings:
        key, _, value = text.partition("=")
        *tables, last = key.strip().split(".")
        place = table
        for name in tables:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ConfigError([f"--set {key}: {name} is not a table"], source="options")
        place[last] = _value(value.strip())
    if data:
        given = table.get("data", {})
        table["data"] = (given if isinstance(given, dict) else {}) | dict(data)
    return read(Scenario, table, source=str(path))


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
