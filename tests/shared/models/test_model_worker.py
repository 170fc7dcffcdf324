"""What a child computes is what the model computes, and the parent never holds torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shared.errors import LlmOsError, ModelError, UndecodableMessage
from shared.models.encoder import MINILM, BaseModel, find_base_model
from shared.models.model_worker import ModelWorker
from shared.models.pytorch import CausalModel, TextEncoder
from tests.support.tiny_models import make_tiny_base, tiny_adapter

ROOT = Path(__file__).parents[3]

TEXTS = ["where is my parcel", "退款", "cancel my subscription"]
PAIRS = [("where is my parcel", "yes hello"), ("hello", "no")]


@pytest.fixture(scope="module")
def worker() -> Iterator[ModelWorker]:
    pytest.importorskip("torch")
    try:
        find_base_model(MINILM)
    except LlmOsError as err:
        pytest.skip(f"no MiniLM here: {err}")
    worker = ModelWorker(MINILM)
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseModel]:
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("bases")
    return {kind: make_tiny_base(folder / kind, kind) for kind in ("bert", "llama")}


@pytest.mark.model
def test_a_child_s_features_are_the_encoder_s_to_the_byte(worker: ModelWorker) -> None:
    features = worker.encode(TEXTS)
    assert features.dtype == np.float32
    assert features.tobytes() == TextEncoder(find_base_model(MINILM)).encode(TEXTS).tobytes()
    features[0, 0] = 1.0  # the caller owns them
    assert worker.encode([]).shape == (0, 384)


@pytest.mark.model
def test_after_a_death_the_next_call_gets_an_answer(worker: ModelWorker) -> None:
    worker.start()
    before = worker.encode(TEXTS)
    worker.close()
    assert (worker.encode(TEXTS) == before).all()


def test_an_adapter_and_kept_layers_reach_the_child(bases: dict[str, BaseModel]) -> None:
    base = find_base_model(str(bases["bert"].folder), keep_layers=2)
    adapter = tiny_adapter(base, "lora")
    worker = ModelWorker(str(base.folder), 2)
    try:
        with_matrices = worker.encode(TEXTS, adapter=adapter.to_bytes())
        bare = worker.encode(TEXTS)
        with pytest.raises(UndecodableMessage):
            worker.encode(TEXTS, adapter=b"not an adapter")
        with pytest.raises(ModelError, match="not a language model"):
            worker.outcome(PAIRS)
    finally:
        worker.close()
    encoder = TextEncoder(base)
    assert with_matrices.tobytes() == encoder.encode(TEXTS, adapter=adapter).tobytes()
    assert bare.tobytes() == encoder.encode(TEXTS).tobytes()


def test_a_language_model_s_outcome_is_the_same_in_a_child(bases: dict[str, BaseModel]) -> None:
    base = bases["llama"]
    adapter = tiny_adapter(base, "lora", labels=())
    worker = ModelWorker(str(base.folder))
    try:
        bare, adapted = worker.outcome(PAIRS), worker.outcome(PAIRS, adapter=adapter.to_bytes())
    finally:
        worker.close()
    model = CausalModel(base)
    for mine, child_s in ((model.outcome(PAIRS), bare), (model.outcome(PAIRS, adapter), adapted)):
        for expected, found in zip(mine, child_s, strict=True):
            assert found.tobytes() == expected.tobytes()
    assert (bare[1] != adapted[1]).all()


def test_an_unknown_model_is_our_error_in_the_parent(tmp_path: Path) -> None:
    worker = ModelWorker(str(tmp_path / "nowhere"))
    try:
        with pytest.raises(ModelError, match="there is no folder"):
            worker.encode(TEXTS)
    finally:
        worker.close()


@pytest.mark.model
def test_the_parent_never_holds_torch(worker: ModelWorker) -> None:
    assert worker is not None
    code = (
        "import sys; from shared.models.model_worker import ModelWorker;"
        f"w = ModelWorker({MINILM!r}); print(w.encode(['hi']).shape); w.close();"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["(1, 384)", "[]"]
