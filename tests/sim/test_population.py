"""Examples are dealt out whole, the same way for the same seed, and as unequally as was asked."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.data_files import Example
from shared.errors import ConfigError, DataError
from sim.population import Population, deal, load
from sim.scenario import DataTable


def written(folder: Path, examples: Sequence[Example], name: str = "data.csv") -> Path:
    path = folder / name
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "group"])
        rows.writerows([e.text, e.label, e.group] for e in examples)
    return path


def numbered(per_label: dict[str, int], group: str = "en") -> list[Example]:
    return [Example(f"{x} {n}", x, group) for x, count in per_label.items() for n in range(count)]


def dealt(examples: Sequence[Example], devices: int, *, seed: int = 1, **table: Any) -> Population:
    with TemporaryDirectory() as folder:
        path = written(Path(folder), examples)
        return deal(DataTable(path=str(path), group_column="group", **table), devices, seed=seed)


label_counts = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]), st.integers(1, 12), min_size=1
).filter(lambda counts: max(counts.values()) > 1)


@settings(max_examples=60, deadline=None)
@given(
    counts=label_counts,
    devices=st.integers(2, 8),
    split=st.sampled_from(["iid", "dirichlet"]),
    alpha=st.sampled_from([0.01, 0.5, 100.0]),
    seed=st.integers(0, 5),
)
def test_every_example_is_dealt_or_held_out_exactly_once_and_nobody_gets_nothing(
    counts: dict[str, int], devices: int, split: str, alpha: float, seed: int
) -> None:
    examples = numbered(counts)
    held = sum(max(round(0.2 * n), 1) for n in counts.values() if n > 1)
    arguments: dict[str, Any] = {"split": split, "alpha": alpha}
    if len(examples) - held < devices:
        with pytest.raises(DataError, match=f"cannot be dealt to {devices}"):
            dealt(examples, devices, seed=seed, **arguments)
        return
    population = dealt(examples, devices, seed=seed, **arguments)
    parts = list(population.devices.values())
    everything = [example for part in parts for example in part] + population.probe
    assert Counter(everything) == Counter(examples)
    assert len(parts) == devices
    assert all(parts)
    assert len(population.probe) == held
    assert population == dealt(examples, devices, seed=seed, **arguments)


def test_as_many_devices_as_examples_get_one_each_and_one_more_is_refused() -> None:
    examples = numbered({"a": 5, "b": 5})  # of which two are held out
    population = dealt(examples, 8, alpha=0.01)
    assert [len(part) for part in population.devices.values()] == [1] * 8
    with pytest.raises(DataError, match="8 examples cannot be dealt to 9 devices"):
        dealt(examples, 9)


def test_another_seed_deals_otherwise() -> None:
    examples = numbered({"a": 40, "b": 40})
    one, other = dealt(examples, 4, seed=1), dealt(examples, 4, seed=2)
    assert one.devices != other.devices
    assert one.probe != other.probe


def test_devices_are_numbered_so_that_their_names_sort() -> None:
    assert list(dealt(numbered({"a": 9}), 3).devices) == ["device-1", "device-2", "device-3"]
    names = list(dealt(numbered({"a": 30}), 12).devices)
    assert names[0] == "device-01"
    assert names == sorted(names)


def skew(population: Population, labels: Sequence[str]) -> float:
    """Mean total variation distance of the devices' label shares from the pooled ones."""
    tables = np.array(
        [
            [sum(e.label == label for e in part) for label in labels]
            for part in population.devices.values()
        ],
        dtype=float,
    )
    pooled = tables.sum(axis=0) / tables.sum()
    shares = tables / tables.sum(axis=1, keepdims=True)
    return float(np.abs(shares - pooled).sum(axis=1).mean() / 2)


def test_dirichlet_is_unequal_in_size_and_labels_and_less_so_with_a_larger_alpha() -> None:
    examples = numbered(dict.fromkeys("abcdef", 200))

    def measured(**table: Any) -> tuple[float, float]:
        populations = [dealt(examples, 8, seed=seed, **table) for seed in range(3)]
        sizes = [[len(part) for part in p.devices.values()] for p in populations]
        return (
            float(np.mean([skew(p, "abcdef") for p in populations])),
            float(np.mean([np.std(each) / np.mean(each) for each in sizes])),
        )

    iid, mild, strong = measured(split="iid"), measured(alpha=10.0), measured(alpha=0.1)
    assert iid[0] < mild[0] < strong[0]
    assert iid[1] < mild[1] < strong[1]
    assert iid[1] < 0.01
    assert strong[0] > 0.5


def test_every_label_and_group_is_held_out_by_its_share_and_at_least_once() -> None:
    examples = [*numbered({"a": 20, "b": 3, "c": 2}), *numbered({"a": 10}, group="zh")]
    population = dealt(examples, 2, test_share=0.25)
    held = Counter((e.label, e.group) for e in population.probe)
    assert held == {("a", "en"): 5, ("b", "en"): 1, ("c", "en"): 1, ("a", "zh"): 2}


def test_a_label_with_one_example_is_kept_for_training() -> None:
    population = dealt(numbered({"a": 4, "rare": 1}), 2)
    assert "rare" not in {example.label for example in population.probe}


def test_where_nothing_can_be_held_out_a_test_file_is_asked_for() -> None:
    with pytest.raises(DataError, match="name a test file"):
        dealt(numbered({"a": 1, "b": 1}), 2)


def test_with_a_test_file_everything_is_for_training(tmp_path: Path) -> None:
    train, test = numbered({"a": 5, "b": 5}), [Example("held", "a", "en")]
    table = DataTable(
        path=str(written(tmp_path, train)),
        test=str(written(tmp_path, test, "test.csv")),
        group_column="group",
    )
    population = deal(table, 2, seed=1)
    assert population.probe == test
    assert sum(map(len, population.devices.values())) == 10


def test_splits_bring_their_own_test_set(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    splits = {"train": [["x", "a"], ["y", "b"]], "val": [], "test": [["z", "a"]], "oos_test": []}
    path.write_text(json.dumps(splits))
    expected = ([Example("x", "a"), Example("y", "b")], [Example("z", "a")])
    assert load(DataTable(path=str(path))) == expected
    assert load(DataTable(path=str(path), format="splits")) == expected


def test_without_a_file_it_says_where_to_name_one() -> None:
    with pytest.raises(ConfigError, match="--data"):
        load(DataTable())


def test_a_missing_label_column_is_named_with_the_columns_there_are(tmp_path: Path) -> None:
    path = written(tmp_path, numbered({"a": 3}))
    with pytest.raises(DataError) as refused:
        load(DataTable(path=str(path), label_column="intent"))
    for name in ("'intent'", "'text'", "'label'", "'group'", str(path)):
        assert name in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        load(DataTable(path=str(tmp_path / "nowhere.csv")))
