"""A reader's graph gives transformers' logits, and its import is whole or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coordinator.registry.graph import span_graph
from coordinator.registry.reader_import import READER, import_reader, open_reader
from coordinator.registry.weights import read_encoder, read_span_head
from shared.errors import ModelError
from tests.support.tiny_encoders import (
    ARCHITECTURES,
    FEATURES,
    MAX_TOKENS,
    make_encoder,
    make_reader,
    open_graph,
    ragged,
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_graph_gives_transformers_logits(tmp_path: Path, architecture: str) -> None:
    import torch

    segments = 2 if architecture == "bert" else 1
    changes = {} if architecture == "distilbert" else {"type_vocab_size": segments}
    model = make_reader(tmp_path, architecture, **changes)
    encoder = read_encoder(tmp_path)
    session = open_graph(span_graph(encoder, read_span_head(tmp_path, FEATURES)))
    ids, mask = ragged((MAX_TOKENS, 17, 4))
    kinds = np.zeros_like(ids)
    kinds[:, 3:] = 1
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}
    (spans,) = session.run(None, feeds)
    given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if segments == 2:
        given["token_type_ids"] = torch.tensor(kinds)
    with torch.no_grad():
        wanted = model(**given)
    real = mask.astype(bool)
    assert np.abs(spans[..., 0] - wanted.start_logits.numpy())[real].max() < 1e-4
    assert np.abs(spans[..., 1] - wanted.end_logits.numpy())[real].max() < 1e-4
    assert spans.std() > 0.1  # a graph that gives nothing would agree with nothing


def test_segments_show_in_the_logits(tmp_path: Path) -> None:
    make_reader(tmp_path)
    session = open_graph(span_graph(read_encoder(tmp_path), read_span_head(tmp_path, FEATURES)))
    ids, mask = ragged((9,))
    feeds = {"input_ids": ids, "attention_mask": mask}
    (zeros,) = session.run(None, feeds | {"token_type_ids": np.zeros_like(ids)})
    (ones,) = session.run(None, feeds | {"token_type_ids": np.ones_like(ids)})
    assert np.abs(zeros - ones).max() > 1e-2


@pytest.mark.parametrize("quantise", ["int8", "none"])
def test_a_reader_is_imported_once_and_known_again(tmp_path: Path, quantise: str) -> None:
    source = tmp_path / "source"
    make_reader(source)
    first = import_reader(str(source), tmp_path / "models", quantise=quantise)  # type: ignore[arg-type]
    written = (first.folder / READER).stat().st_mtime_ns
    again = import_reader(str(source), tmp_path / "models", quantise=quantise)  # type: ignore[arg-type]
    assert again == first
    assert (first.folder / READER).stat().st_mtime_ns == written
    assert first.manifest.quantise == quantise
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "model.onnx",
        "reader.json",
        "tokenizer.json",
    ]


def test_an_encoder_without_a_head_for_spans_is_refused(tmp_path: Path) -> None:
    make_encoder(tmp_path / "source")
    with pytest.raises(ModelError, match=r"finds answers.*qa_outputs.weight"):
        import_reader(str(tmp_path / "source"), tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_damaged_reader_is_refused(tmp_path: Path) -> None:
    make_reader(tmp_path / "source")
    imported = import_reader(str(tmp_path / "source"), tmp_path / "models")
    with (imported.folder / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match="damaged"):
        open_reader(imported.folder)
