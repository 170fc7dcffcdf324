"""Features from a child are those of the encoder, and the parent never holds torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shared.errors import LlmOsError, ModelError
from shared.models.embed_worker import EmbedWorker
from shared.models.encoder import MINILM, find_base_model
from shared.models.pytorch import TextEncoder

ROOT = Path(__file__).parents[3]

TEXTS = ["where is my parcel", "退款", "cancel my subscription"]


@pytest.fixture(scope="module")
def worker() -> Iterator[EmbedWorker]:
    pytest.importorskip("torch")
    try:
        find_base_model(MINILM)
    except LlmOsError as err:
        pytest.skip(f"no MiniLM here: {err}")
    worker = EmbedWorker(MINILM)
    yield worker
    worker.close()


@pytest.mark.model
def test_a_child_s_features_are_the_encoder_s_to_the_byte(worker: EmbedWorker) -> None:
    features = worker.encode(TEXTS)
    assert features.dtype == np.float32
    assert features.tobytes() == TextEncoder(find_base_model(MINILM)).encode(TEXTS).tobytes()
    features[0, 0] = 1.0  # the caller owns them
    assert worker.encode([]).shape == (0, 384)


@pytest.mark.model
def test_after_a_death_the_next_call_gets_an_answer(worker: EmbedWorker) -> None:
    worker.start()
    before = worker.encode(TEXTS)
    worker.close()
    assert (worker.encode(TEXTS) == before).all()


def test_an_unknown_model_is_our_error_in_the_parent(tmp_path: Path) -> None:
    worker = EmbedWorker(str(tmp_path / "nowhere"))
    try:
        with pytest.raises(ModelError, match="there is no folder"):
            worker.encode(TEXTS)
    finally:
        worker.close()


@pytest.mark.model
def test_the_parent_never_holds_torch(worker: EmbedWorker) -> None:
    assert worker is not None
    code = (
        "import sys; from shared.models.embed_worker import EmbedWorker;"
        f"w = EmbedWorker({MINILM!r}); print(w.encode(['hi']).shape); w.close();"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["(1, 384)", "[]"]
