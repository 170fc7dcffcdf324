"""A session answers as the graph's definition says, the same bits every time, from any thread."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import DataError, ModelError, ShapeMismatch
from shared.files import digest_of
from shared.models.adapter import Adapter, AdapterShape, Slot
from shared.models.graph_session import GraphSession
from shared.types import Digest
from tests.support import tiny_graph as tiny

METHODS = ("none", "lora", "bottleneck")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def session(folder: Path) -> GraphSession:
    return GraphSession(folder, verify=True)


def ids_of(words: list[str]) -> list[int]:
    """The tokens of a text, by hand: cut to the limit with its end mark kept."""
    inner = [tiny.WORDS.index(w) if w in tiny.WORDS else 1 for w in words]
    return [2, *inner[: tiny.MAX_TOKENS - 2], 3]


words = st.lists(st.sampled_from((*tiny.WORDS[4:], "unheardof")), max_size=20)


@settings(max_examples=60, deadline=None)
@given(words=words, method=st.sampled_from(METHODS), seed=st.integers(0, 5))
def test_an_answer_is_what_the_definition_gives(
    session: GraphSession, words: list[str], method: str, seed: int
) -> None:
    adapter = tiny.tiny_adapter(method, seed=seed)
    features, logits = session.answer(" ".join(words), session.load_adapter(adapter))
    expected_features, expected_logits = tiny.slow_answer(ids_of(words), adapter)
    assert features.shape == (tiny.FEATURES,)
    assert logits.shape == (len(tiny.LABELS),)
    np.testing.assert_allclose(features, expected_features, atol=1e-5)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-3)


def test_an_embedding_is_the_bases_own(session: GraphSession) -> None:
    loaded = session.load_adapter(tiny.tiny_adapter())
    before = session.embed("send money")
    features, _ = session.answer("send money", loaded)
    np.testing.assert_array_equal(session.embed("send money"), before)
    np.testing.assert_allclose(
        before, tiny.slow_answer(ids_of(["send", "money"]), None)[0], atol=1e-6
    )
    assert np.abs(features - before).max() > 0.01


def test_tokens_are_counted_up_to_the_limit(session: GraphSession) -> None:
    assert session.tokens("") == 2
    assert session.tokens("send money") == 4
    assert session.tokens("money " * 100) == tiny.MAX_TOKENS


def test_half_a_character_is_refused_in_words(session: GraphSession) -> None:
    with pytest.raises(DataError, match="surrogate"):
        session.embed("a \ud800 b")


def test_swapping_back_is_bit_identical(session: GraphSession) -> None:
    first, second = (session.load_adapter(tiny.tiny_adapter(seed=seed)) for seed in (1, 2))
    before = session.answer("what is my balance", first)
    other = session.answer("what is my balance", second)
    after = session.answer("what is my balance", first)
    for one, two in zip(before, after, strict=True):
        assert one.tobytes() == two.tobytes()
    assert before[1].tobytes() != other[1].tobytes()


def test_a_thousand_requests_from_four_threads_meet_a_hundred_swaps(session: GraphSession) -> None:
    adapters = [session.load_adapter(tiny.tiny_adapter(m, seed=s)) for m in METHODS for s in (1, 2)]
    texts = ["what is my balance", "please send money to the bank", "weather", ""]
    expected = {
        (loaded.digest, text): session.answer(text, loaded)[1].tobytes()
        for loaded in adapters
        for text in texts
    }
    current = adapters[0]
    done, wrong, problems = itertools.count(), [], []
    finished = threading.Event()

    def ask() -> None:
        try:
            for number in range(250):
                loaded, text = current, texts[number % len(texts)]
                if session.answer(text, loaded)[1].tobytes() != expected[loaded.digest, text]:
                    wrong.append(loaded.digest)
                next(done)
        except Exception as err:  # noqa: BLE001 - whatever a thread meets is shown below
            problems.append(err)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(100):
        current = adapters[number % len(adapters)]
        finished.wait(0.001)
    for thread in threads:
        thread.join()
    assert (problems, wrong, next(done)) == ([], [], 1000)


# What does not fit


def shaped(**changes: object) -> AdapterShape:
    return tiny.tiny_adapter().shape.model_copy(update=changes)


@pytest.mark.parametrize(
    ("adapter", "error", "names"),
    [
        (tiny.tiny_adapter(base=Digest("c" * 64)), ModelError, ("c" * 12, "b" * 12)),
        (
            Adapter.initial(AdapterShape(labels=("a", "b"), features=4), tiny.BASE),
            ShapeMismatch,
            ("4 features", "gives 8"),
        ),
        (
            Adapter.initial(
                shaped(slots=(Slot(name="layer.3.value", inputs=8, outputs=8),)), tiny.BASE
            ),
            ShapeMismatch,
            ("layer.3.value", "layer.0.query, layer.0.output"),
        ),
        (
            Adapter.initial(
                shaped(slots=(Slot(name=tiny.QUERY, inputs=8, outputs=16),)), tiny.BASE
            ),
            ShapeMismatch,
            ("8 to 16", "8 to 8"),
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_both_sides_named(
    session: GraphSession, adapter: Adapter, error: type[Exception], names: tuple[str, ...]
) -> None:
    with pytest.raises(error) as refused:
        session.load_adapter(adapter)
    for name in names:
        assert name in str(refused.value)


def test_an_adapter_loaded_for_another_model_is_refused(
    session: GraphSession, tmp_path: Path
) -> None:
    other = GraphSession(tiny.make_tiny_model(tmp_path, seed=3))
    with pytest.raises(ModelError, match="loaded for the model"):
        other.answer("hi", session.load_adapter(tiny.tiny_adapter()))


def test_a_slot_of_the_manifest_that_the_graph_lacks_is_found_when_loading(tmp_path: Path) -> None:
    tiny.make_tiny_model(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["slots"].append({"name": "layer.1.query", "inputs": 8, "outputs": 8})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    shape = shaped(slots=(Slot(name="layer.1.query", inputs=8, outputs=8),))
    with pytest.raises(ShapeMismatch, match=r"layer\.1\.query\.lora_a"):
        GraphSession(tmp_path).load_adapter(Adapter.initial(shape, tiny.BASE))


# Damaged folders


def test_the_manifest_names_the_model(folder: Path, session: GraphSession) -> None:
    assert session.digest == digest_of((folder / "manifest.json").read_bytes())
    assert session.manifest.name == "tiny"


@pytest.mark.parametrize("file", ["model.onnx", "tokenizer.json"])
def test_a_changed_file_is_found_by_its_hash(tmp_path: Path, file: str) -> None:
    tiny.make_tiny_model(tmp_path)
    data = bytearray((tmp_path / file).read_bytes())
    data[-1] ^= 1
    (tmp_path / file).write_bytes(data)
    with pytest.raises(ModelError, match=file):
        GraphSession(tmp_path, verify=True)


@pytest.mark.parametrize("file", ["manifest.json", "model.onnx", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"{}"])
def test_a_missing_or_broken_file_is_named(
    tmp_path: Path, file: str, content: bytes | None
) -> None:
    tiny.make_tiny_model(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelError, match=file):
        GraphSession(tmp_path)
