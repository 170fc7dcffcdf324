"""The table of passes counts what is there and compares like with like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coordinator.registry.graph import fused_graph, plain_graph
from coordinator.registry.passes import Stage, agreement, measure
from coordinator.registry.samples import TOPICS
from coordinator.registry.weights import read_encoder
from shared.errors import ModelError
from tests.support.tiny_encoders import MAX_TOKENS, WORDS, make_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnx

    folder = tmp_path_factory.mktemp("encoder")
    make_encoder(folder)
    encoder = read_encoder(folder)
    onnx.save(plain_graph(encoder), folder / "plain.onnx")
    onnx.save(fused_graph(encoder, adapter_layers=None), folder / "fused.onnx")
    onnx.save(plain_graph(encoder.first_layers(1)), folder / "other.onnx")
    return folder


def test_the_samples_are_as_many_for_every_topic_and_none_twice() -> None:
    assert {len(texts) for texts in TOPICS.values()} == {8}
    texts = [text for topic in TOPICS.values() for text in topic]
    assert len(set(texts)) == len(texts) == 16 * 8


def test_a_row_says_what_is_in_the_file(folder: Path) -> None:
    import onnx

    names = ("plain", "fused", "other")
    stages = [Stage(name, folder / f"{name}.onnx", "plain") for name in names]
    rows = measure(
        stages,
        folder / "tokenizer.json",
        vocabulary=WORDS,
        max_tokens=MAX_TOKENS,
        effort="quick",
    )
    assert [row.name for row in rows] == list(names)
    for row in rows:
        path = folder / f"{row.name}.onnx"
        assert row.bytes == path.stat().st_size
        assert row.nodes == len(onnx.load(path).graph.node)
        assert row.p50_ms_32 > 0
    assert rows[0].agreement == rows[1].agreement == 1.0
    assert rows[2].agreement < 1.0


def test_agreement_is_the_share_of_texts_with_the_same_nearest_topic() -> None:
    east, north = [1.0, 0.0], [0.0, 1.0]
    reference = np.array([east, east, north, north], np.float32)
    assert agreement(reference, reference, texts=2) == 1.0
    one_turned = np.array([east, north, north, north], np.float32)
    assert agreement(one_turned, reference, texts=2) == 0.75
    assert agreement(reference[::-1].copy(), reference, texts=2) == 0.0
    # Topics are where the reference has them, so that drifting together is noticed.
    drifted = np.array([[0.6, 0.8], [0.6, 0.8], north, north], np.float32)
    assert agreement(drifted, reference, texts=2) == 0.5


def test_a_damaged_tokenizer_or_graph_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("{}")
    good = Stage("plain", folder / "plain.onnx", "plain")
    with pytest.raises(ModelError, match="no tokenizer"):
        measure([good], broken, vocabulary=WORDS, max_tokens=MAX_TOKENS, effort="quick")
    with pytest.raises(ModelError, match="no graph"):
        measure(
            [Stage("broken", broken, "broken")],
            folder / "tokenizer.json",
            vocabulary=WORDS,
            max_tokens=MAX_TOKENS,
            effort="quick",
        )
