"""Features are those of a plain loop over the same model, one text at a time.

With an adapter they are those of its formulas, y = W x + b + scale · B A x and
h + up(gelu(down(h))), written down once more with plain tensors.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import LlmOsError, ModelError
from shared.models.adapter import Adapter
from shared.models.encoder import MINILM, BaseModel, find_base_model
from shared.models.pytorch import CausalModel, Prefix, TextEncoder, lowest_layer, prompt_ids
from shared.types import Digest
from tests.support.tiny_models import (
    CHAT,
    ENCODERS,
    LANGUAGE_MODELS,
    make_tiny_base,
    tiny_adapter,
)

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
        "import sys, shared.models.pytorch, shared.models.model_worker, shared.models.encoder;"
        "print([m for m in ('torch', 'transformers', 'peft', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


SAID = (
    "where is my parcel",
    "hello",
    "refund it now please the order the order the order",
    "yes no yes",
    "",
)
PAIRS = (
    ("where is my parcel", "yes hello"),
    ("hello", "no"),
    ("refund it now please", "the order the order is my parcel"),
    ("cancel", ""),
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseModel]:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("bases")
    return {
        kind: make_tiny_base(folder / kind, kind, chat=kind == "qwen2")
        for kind in (*ENCODERS, *LANGUAGE_MODELS)
    }


def with_formulas(model: Any, adapter: Adapter, torch: Any) -> None:
    """Rewrite a transformers model so that it computes what an adapter means."""
    kind = model.config.model_type
    stack = model.transformer.layer if kind == "distilbert" else None
    if kind in ENCODERS and stack is None:
        stack = model.encoder.layer
    elif stack is None:
        stack = model.model.layers
    tensors = {name: torch.tensor(array) for name, array in adapter.tensors.items()}
    inputs = {name: torch.tensor(array) for name, array in adapter.graph_inputs().items()}
    for slot in adapter.shape.slots:
        _, index, part = slot.name.split(".")
        layer = stack[int(index)]
        if part == "output":
            dense = layer.ffn.lin2 if kind == "distilbert" else layer.output.dense
            down, up = inputs[f"{slot.name}.down"], inputs[f"{slot.name}.up"]
            down_bias, up_bias = (inputs[f"{slot.name}.{n}_bias"] for n in ("down", "up"))

            def behind(_: Any, __: Any, h: Any, parts: Any = (down, down_bias, up, up_bias)) -> Any:
                inner = torch.nn.functional.gelu(h @ parts[0] + parts[1])
                return h + inner @ parts[2] + parts[3]

            dense.register_forward_hook(behind)
            continue
        if kind == "distilbert":
            dense = layer.attention.q_lin if part == "query" else layer.attention.v_lin
        elif kind in ENCODERS:
            dense = getattr(layer.attention.self, part)
        else:
            dense = layer.self_attn.q_proj if part == "query" else layer.self_attn.v_proj
        a, b = tensors[f"{slot.name}.lora_a"], tensors[f"{slot.name}.lora_b"]
        # W x + scale · B A x is one matrix, and that matrix is what goes in.
        with torch.no_grad():
            dense.weight += adapter.shape.scale * b @ a
        product = inputs[f"{slot.name}.lora_a"] @ inputs[f"{slot.name}.lora_b"]
        assert torch.allclose(product.T, adapter.shape.scale * b @ a, atol=1e-5)


def features_alone(base: BaseModel, adapter: Adapter, texts: Sequence[str]) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base.folder)
    model = transformers.AutoModel.from_pretrained(base.folder).eval()
    with_formulas(model, adapter, torch)
    rows = []
    for text in texts:
        with torch.inference_mode():
            tokens = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
            tokens.pop("token_type_ids", None)
            mean = model(**tokens).last_hidden_state[0].mean(dim=0)
        rows.append((mean / mean.norm()).numpy())
    return np.array(rows)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("method", ["lora", "rslora", "bottleneck"])
def test_matrices_in_place_are_the_adapter_s_formulas(
    bases: dict[str, BaseModel], kind: str, method: Any
) -> None:
    encoder = TextEncoder(bases[kind])
    adapter = tiny_adapter(bases[kind], method)
    features = encoder.encode(SAID, adapter=adapter, batch_size=3)
    assert features == pytest.approx(features_alone(bases[kind], adapter, SAID), abs=3e-6)
    assert np.abs(features - encoder.encode(SAID)).max() > 0.01


@pytest.mark.parametrize("method", ["lora", "bottleneck"])
def test_a_fresh_adapter_changes_nothing(bases: dict[str, BaseModel], method: Any) -> None:
    encoder = TextEncoder(bases["bert"])
    shape = tiny_adapter(bases["bert"], method).shape
    fresh = Adapter.initial(shape, bases["bert"].digest, seed=3)
    assert encoder.encode(SAID, adapter=fresh) == pytest.approx(encoder.encode(SAID), abs=1e-6)


def test_after_an_adapter_the_base_answers_as_before(bases: dict[str, BaseModel]) -> None:
    encoder = TextEncoder(bases["bert"])
    before = encoder.encode(SAID).tobytes()
    for method in ("lora", "bottleneck"):
        encoder.encode(SAID, adapter=tiny_adapter(bases["bert"], method))
        assert encoder.encode(SAID).tobytes() == before


def test_a_head_alone_leaves_the_features_to_the_byte(bases: dict[str, BaseModel]) -> None:
    encoder = TextEncoder(bases["bert"])
    adapter = tiny_adapter(bases["bert"], "none")
    assert encoder.encode(SAID, adapter=adapter).tobytes() == encoder.encode(SAID).tobytes()


def test_frozen_layers_run_once_for_a_list(
    bases: dict[str, BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = TextEncoder(bases["bert"])
    ran: list[int] = []
    states = TextEncoder.states

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        ran.append(1)
        return states(self, *args, **kwargs)

    monkeypatch.setattr(TextEncoder, "states", counted)
    first = tiny_adapter(bases["bert"], "lora", seed=1)
    other = tiny_adapter(bases["bert"], "lora", seed=2)
    one = encoder.encode(SAID, adapter=first)
    assert (encoder.encode(SAID, adapter=other) != one).any()
    assert encoder.encode(SAID, adapter=first).tobytes() == one.tobytes()
    assert len(ran) == 1
    encoder.encode(SAID[:3], adapter=first)
    encoder.encode(SAID[:3], adapter=tiny_adapter(bases["bert"], "lora", top=1))
    assert len(ran) == 3, "another list, or another depth, is another matter"


def test_a_list_too_long_to_keep_gives_the_same_features(
    bases: dict[str, BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tiny_adapter(bases["roberta"], "lora")
    kept = TextEncoder(bases["roberta"]).encode(SAID, adapter=adapter)
    monkeypatch.setattr("shared.models.pytorch.KEPT_BYTES", 100)
    fresh = TextEncoder(bases["roberta"])
    assert fresh.encode(SAID, adapter=adapter) == pytest.approx(kept, abs=2e-6)
    assert fresh._kept is not None
    assert fresh._kept[1]._states is None


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_kept_layers_are_the_first_ones(bases: dict[str, BaseModel], kind: str) -> None:
    torch = pytest.importorskip("torch")
    base = find_base_model(str(bases[kind].folder), keep_layers=2)
    assert base.digest != bases[kind].digest
    encoder, whole = TextEncoder(base), TextEncoder(bases[kind])
    tokens = whole.tokens(SAID[:1])
    states = torch.tensor(whole.states(tokens, 2)).mean(dim=0)
    expected = (states / states.norm()).numpy()
    assert encoder.encode(SAID[:1])[0] == pytest.approx(expected, abs=2e-6)
    adapter = tiny_adapter(base, "lora", top=1)
    assert [slot.name for slot in adapter.shape.slots] == ["layer.1.query", "layer.1.value"]
    assert (encoder.encode(SAID, adapter=adapter) != encoder.encode(SAID)).any()


def test_more_layers_than_there_are_cannot_be_kept(bases: dict[str, BaseModel]) -> None:
    with pytest.raises(ModelError, match="4 cannot be kept"):
        TextEncoder(find_base_model(str(bases["bert"].folder), keep_layers=4))


def test_matrices_of_another_base_are_refused(bases: dict[str, BaseModel]) -> None:
    encoder = TextEncoder(bases["bert"])
    adapter = tiny_adapter(bases["bert"], "lora")
    (low, *others) = adapter.shape.slots
    for slot, message in (
        (low.model_copy(update={"name": "layer.7.query"}), "no place layer.7.query"),
        (low.model_copy(update={"inputs": 8}), "turns 16 numbers into 16, the adapter 8"),
    ):
        shape = adapter.shape.model_copy(update={"slots": (slot, *others)})
        with pytest.raises(ModelError, match=message):
            encoder.encode(SAID, adapter=Adapter.initial(shape, bases["bert"].digest))
    assert encoder.encode(SAID).shape == (5, 16), "the base is well after a refusal"


def test_nothing_of_a_base_is_trainable_and_no_dropout_acts(bases: dict[str, BaseModel]) -> None:
    torch = pytest.importorskip("torch")
    for kind in ("bert", "qwen2"):
        labels = ("a", "b") if kind == "bert" else ()
        model = (TextEncoder if kind == "bert" else CausalModel)(bases[kind])
        adapter = tiny_adapter(bases[kind], "lora", labels=labels)
        with model.adapted(adapter) as adapted:
            trainable = {id(p) for p in adapted.module.parameters() if p.requires_grad}
            assert trainable == {id(p) for p in adapted.parameters}
            active = [m for m in adapted.module.modules() if m.training]
            assert all(isinstance(m, torch.nn.Linear) for m in active)
            assert len(active) == len(adapter.shape.slots) * 2 + bool(labels)
            shapes = [tuple(p.shape) for p in adapted.parameters]
            assert shapes == list(adapter.shape.tensors.values())


def reference_outcome(base: BaseModel, ids: list[int], asked: int, adapter: Adapter | None) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(base.folder).eval()
    if adapter is not None:
        with_formulas(model, adapter, torch)
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0]
    lost = right = 0.0
    for place in range(len(ids) - asked, len(ids)):
        token = logits[place - 1].log_softmax(dim=-1)
        lost -= float(token[ids[place]])
        right += int(token.argmax()) == ids[place]
    return right / asked, lost / asked


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
@pytest.mark.parametrize("method", [None, "lora", "rslora"])
def test_an_outcome_is_that_of_each_pair_alone(
    bases: dict[str, BaseModel], kind: str, method: Any
) -> None:
    base = bases[kind]
    model = CausalModel(base)
    adapter = None if method is None else tiny_adapter(base, method, top=3, labels=())
    scores, losses = model.outcome(PAIRS, adapter)
    tokens = model.tokens(PAIRS)
    for row, (ids, asked) in enumerate(zip(tokens.ids, tokens.asked, strict=True)):
        score, loss = reference_outcome(base, ids, asked, adapter)
        assert losses[row] == pytest.approx(loss, abs=1e-5)
        assert scores[row] == pytest.approx(score, abs=1e-6)
    if adapter is not None:
        assert np.abs(losses - model.outcome(PAIRS)[1]).max() > 0.01


def test_asked_are_the_continuation_and_the_end(bases: dict[str, BaseModel]) -> None:
    model = CausalModel(bases["llama"])
    tokens = model.tokens(PAIRS)
    tokenizer = model._tokenizer
    for (prompt, continuation), ids, asked in zip(PAIRS, tokens.ids, tokens.asked, strict=True):
        assert tokenizer.decode(ids[-asked:-1]) == continuation
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[:-asked]) == prompt


def test_a_chat_template_is_followed_where_there_is_one(bases: dict[str, BaseModel]) -> None:
    plain, chat = CausalModel(bases["llama"])._tokenizer, CausalModel(bases["qwen2"])._tokenizer
    turns = [{"role": "user", "content": "hello"}]
    assert plain.decode(prompt_ids(plain, turns)) == "hello"
    assert CHAT in chat.chat_template
    assert chat.decode(prompt_ids(chat, turns)) == "user hello [SEP] assistant "


def test_a_prompt_without_a_token_still_has_something_to_go_on(bases: dict[str, BaseModel]) -> None:
    tokenizer = CausalModel(bases["llama"])._tokenizer
    assert prompt_ids(tokenizer, [{"role": "user", "content": ""}]) == [tokenizer.eos_token_id]


def test_long_pairs_keep_the_start_of_the_answer_and_the_end_of_the_prompt(
    bases: dict[str, BaseModel],
) -> None:
    model = CausalModel(bases["llama"])
    prompt, answer = "where is my parcel " * 20, "the order " * 20
    whole = model.tokens([(prompt, answer)], max_tokens=10_000)
    cut = model.tokens([(prompt, answer)], max_tokens=16)
    (ids,), (asked,) = cut.ids, cut.asked
    (all_ids,), (all_asked,) = whole.ids, whole.asked
    assert (len(ids), asked) == (16, 8)
    assert ids[8:15] == all_ids[-all_asked:][:7]
    assert ids[:8] == all_ids[:-all_asked][-8:]
    assert ids[15] == model._tokenizer.eos_token_id


def test_no_pairs_have_no_outcome(bases: dict[str, BaseModel]) -> None:
    scores, losses = CausalModel(bases["llama"]).outcome([])
    assert scores.shape == losses.shape == (0,)


def test_an_encoder_is_no_language_model(bases: dict[str, BaseModel]) -> None:
    with pytest.raises(ModelError, match="not a language model"):
        CausalModel(bases["bert"])


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
def test_batches_are_bounded_and_hold_every_row_once(
    bases: dict[str, BaseModel], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    causal = kind == "qwen2"
    model: Any = (CausalModel if causal else TextEncoder)(bases[kind])
    said = [SAID[number % 5] for number in range(40)]
    tokens = model.tokens([(text, text) for text in said] if causal else said)
    prefix = Prefix(model, tokens, 1)
    rows = np.arange(3, 40)
    monkeypatch.setattr("shared.models.pytorch._BATCH_ROWS", 7)
    monkeypatch.setattr("shared.models.pytorch._BATCH_CELLS", 2 * 16 * 60)
    monkeypatch.setattr("shared.models.pytorch._BATCH_GRADIENTS", 600)
    monkeypatch.setattr("shared.models.pytorch._BATCH_LOGITS", 300 * 45)
    batches = prefix.split(rows, parameters=100)
    assert sorted(np.concatenate(batches).tolist()) == rows.tolist()
    lengths, asked = tokens.lengths, np.array(tokens.asked)
    for batch in batches:
        assert len(batch) <= 6
        if len(batch) > 1:
            assert len(batch) * lengths[batch].max() <= 60
            assert not causal or len(batch) * asked[batch].max() <= 45
    assert prefix.split(rows[:0]) == []


def test_the_lowest_slot_says_where_training_begins(bases: dict[str, BaseModel]) -> None:
    assert lowest_layer(tiny_adapter(bases["bert"], "lora", top=2).shape) == 1
    assert lowest_layer(tiny_adapter(bases["bert"], "bottleneck", top=3).shape) == 0
