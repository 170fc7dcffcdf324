"""The probe set is embedded once, and judges every adapter from then on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from coordinator.probe import Probe, prepare_probe
from shared.config import read
from shared.errors import ChildDied
from shared.job import Job, plan_run
from shared.models.adapter import Adapter, AdapterShape
from shared.types import FloatMatrix, FloatVector, RunId
from tests.support.coordination import FEATURES, PROBE, FixedFeatures, job_tables, make_base

LABELS = ("cancel_order", "refund-status", "track")


class Counting:
    """Makes embedders, and remembers what they were asked and that they were closed."""

    def __init__(self, *, fails: bool = False) -> None:
        self.asked: list[list[str]] = []
        self.closed = 0
        self._fails = fails

    def __call__(self, base: str, layers: int) -> Counting:
        self.base = base
        return self

    def encode(self, texts: Sequence[str], *, adapter: bytes = b"") -> FloatMatrix:
        self.asked.append(list(texts))
        if self._fails:
            raise ChildDied("out of memory")
        return FixedFeatures(self.base).encode(texts)

    def outcome(
        self, pairs: Sequence[tuple[str, str]], *, adapter: bytes = b""
    ) -> tuple[FloatVector, FloatVector]:
        raise NotImplementedError("no language model is judged here")

    def close(self) -> None:
        self.closed += 1


def embed(embedder: Counting, folder: Path, labels: Sequence[str] = LABELS) -> Probe:
    return probe_of(embedder, make_base(folder / "base"), folder, labels)


def probe_of(embedder: Counting, base: Path, folder: Path, labels: Sequence[str] = LABELS) -> Probe:
    job = read(Job, job_tables(base), source="test")
    shape = AdapterShape(labels=tuple(labels), features=FEATURES)
    plan = plan_run(job, run=RunId("run"), shape=shape, seed=1, simulation=True)
    return prepare_probe(embedder, plan, PROBE, folder / "cache")


def test_labels_are_embedded_as_a_person_would_say_them(tmp_path: Path) -> None:
    embedder = Counting()
    probe = embed(embedder, tmp_path)
    (texts,) = embedder.asked
    assert texts == [*(e.text for e in PROBE), "cancel order", "refund status", "track"]
    assert embedder.closed == 1
    assert probe.features is not None
    assert probe.label_features is not None
    assert probe.features.shape == (len(PROBE), FEATURES)
    assert probe.label_features.shape == (3, FEATURES)
    expected = FixedFeatures("").encode(texts)
    assert np.array_equal(np.vstack([probe.features, probe.label_features]), expected)


def test_the_second_time_nothing_is_embedded(tmp_path: Path) -> None:
    first = embed(Counting(), tmp_path)
    again = Counting()
    second = embed(again, tmp_path)
    assert again.asked == []
    assert first.features is not None
    assert second.features is not None
    assert np.array_equal(first.features, second.features)
    assert first.label_features is not None
    assert second.label_features is not None
    assert np.array_equal(first.label_features, second.label_features)


def test_other_labels_or_another_base_are_embedded_anew(tmp_path: Path) -> None:
    embed(Counting(), tmp_path)
    other_labels = Counting()
    embed(other_labels, tmp_path, ("a", "b", "c"))
    assert len(other_labels.asked) == 1
    other_base = Counting()
    base = make_base(tmp_path / "other")
    (base / "model.safetensors").write_bytes(b"other weights")
    probe_of(other_base, base, tmp_path)
    assert len(other_base.asked) == 1


def test_an_embedder_that_fails_is_closed_and_leaves_no_cache(tmp_path: Path) -> None:
    failing = Counting(fails=True)
    with pytest.raises(ChildDied):
        embed(failing, tmp_path)
    assert failing.closed == 1
    assert list((tmp_path / "cache").glob("*")) == []


def test_an_adapter_is_judged_by_label_and_group(tmp_path: Path) -> None:
    names = ("cancel", "refund", "track")
    probe = embed(Counting(), tmp_path, names)
    shape = AdapterShape(labels=names, features=FEATURES)
    judged = probe.judge(Adapter.initial(shape, probe.base.digest))
    # All logits are equal: the first label is answered, and the loss is that of guessing.
    assert judged.overall == pytest.approx(1 / 3)
    assert judged.by_group == {"en": pytest.approx(1 / 3), "zh": pytest.approx(1 / 3)}
    assert judged.loss == pytest.approx(np.log(3))
