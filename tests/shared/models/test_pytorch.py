"""Features are those of a plain loop over the same model, one text at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shared.errors import LlmOsError, ModelError
from shared.models.encoder import MINILM, BaseModel, find_base_model
from shared.models.pytorch import TextEncoder
from shared.types import Digest

ROOT = Path(__file__).parents[3]

TEXTS = [
    "where is my parcel",
    "hi",
    "我要退款",
    "",
    "I was charged twice for the same order and nobody answers the phone, what can I do? " * 20,
    "cancel my subscription",
    "hi",
]


@pytest.fixture(scope="module")
def base() -> BaseModel:
    pytest.importorskip("torch")
    try:
        return find_base_model(MINILM)
    except LlmOsError as err:
        pytest.skip(f"no MiniLM here: {err}")


@pytest.fixture(scope="module")
def encoder(base: BaseModel) -> TextEncoder:
    return TextEncoder(base)


@pytest.mark.model
def test_features_are_the_mean_over_the_tokens_of_each_text_alone(
    base: BaseModel, encoder: TextEncoder
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base.folder)
    model = transformers.AutoModel.from_pretrained(base.folder).eval()
    expected = []
    for text in TEXTS:
        with torch.inference_mode():
            tokens = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
            mean = model(**tokens).last_hidden_state[0].mean(dim=0)
        expected.append((mean / mean.norm()).numpy())
    features = encoder.encode(TEXTS, batch_size=3)
    assert features.dtype == np.float32
    assert features.shape == (len(TEXTS), encoder.features) == (7, 384)
    assert features == pytest.approx(np.array(expected), abs=2e-6)


@pytest.mark.model
def test_the_same_list_gives_the_same_bytes(encoder: TextEncoder) -> None:
    assert encoder.encode(TEXTS).tobytes() == encoder.encode(TEXTS).tobytes()


@pytest.mark.model
def test_no_texts_give_no_rows(encoder: TextEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)


@pytest.mark.model
def test_progress_counts_up_to_all_texts(encoder: TextEncoder) -> None:
    done: list[int] = []
    encoder.encode(TEXTS, batch_size=3, progress=done.append)
    assert done == [3, 6, 7]


@pytest.mark.model
def test_what_lies_beyond_the_token_limit_does_not_count(encoder: TextEncoder) -> None:
    long = encoder.encode([TEXTS[4], TEXTS[4] + " never mind"], max_tokens=16)
    assert (long[0] == long[1]).all()


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="not an encoder"):
        TextEncoder(BaseModel("x", tmp_path, Digest("00" * 32)))


def test_importing_the_module_is_light() -> None:
    code = (
        "import sys, shared.models.pytorch, shared.models.embed_worker, shared.models.encoder;"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
