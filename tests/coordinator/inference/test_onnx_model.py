"""The graph computes what the model in torch computes: with adapters, alone and in company."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from coordinator.inference.onnx_model import OnnxModel
from coordinator.inference.prefix_cache import BLOCK, MemoryBlocks, PrefixCache
from coordinator.inference.schema import Schemas
from coordinator.inference.slots import SlotRuntime
from coordinator.inference.token_runtime import TokenRequest
from coordinator.registry.causal_graph import CausalGraph, causal_graph
from shared.errors import ModelError, PromptRefused
from shared.models.adapter import Adapter
from shared.models.encoder import BaseModel
from tests.support.causal_models import TorchOracle, make_causal
from tests.support.tiny_models import tiny_adapter

pytestmark = pytest.mark.slow

KINDS = ("llama", "qwen2")
PROMPTS = [[5 + (7 * row + 3 * at) % 290 for at in range(4 + 9 * row)] for row in range(6)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseModel]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: make_causal(folder / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def graphs(
    bases: dict[str, BaseModel], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, CausalGraph]:
    folder = tmp_path_factory.mktemp("graphs")
    return {kind: causal_graph(base, folder, "fp32") for kind, base in bases.items()}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def lora(base: BaseModel, seed: int, *, top: int = 2) -> Adapter:
    return tiny_adapter(base, "lora", labels=(), seed=seed, top=top)


def drain(slots: SlotRuntime) -> dict[int, list[int]]:
    out: dict[int, list[int]] = {}
    while slots.load.active or slots.load.waiting:
        for emitted in slots.step():
            out.setdefault(emitted.number, []).append(emitted.token)
    return out


def test_logits_are_those_of_torch_however_a_prompt_is_cut(
    kind: str, bases: dict[str, BaseModel], graphs: dict[str, CausalGraph]
) -> None:
    model = OnnxModel(bases[kind], graphs[kind], threads=1)
    model.reserve(3, 64)
    prompt = PROMPTS[4]
    expected = TorchOracle(bases[kind]).logits(prompt)
    for start, end in ((0, 7), (7, 8), (8, len(prompt))):
        got = model.read(1, prompt[start:end], start)
        np.testing.assert_allclose(got, expected[end - 1], atol=2e-4)


def test_rows_of_any_length_and_adapter_are_computed_as_if_alone(
    kind: str, bases: dict[str, BaseModel], graphs: dict[str, CausalGraph]
) -> None:
    base = bases[kind]
    model = OnnxModel(base, graphs[kind], threads=1)
    model.reserve(6, 64)
    adapters = [None, lora(base, 1), lora(base, 2, top=1), None, lora(base, 1), lora(base, 3)]
    for row, (prompt, adapter) in enumerate(zip(PROMPTS, adapters, strict=True)):
        model.place(row, adapter)
        model.read(row, prompt, 0)
    got = model.decode([9] * 6, [len(prompt) for prompt in PROMPTS])
    for row, (prompt, adapter) in enumerate(zip(PROMPTS, adapters, strict=True)):
        expected = TorchOracle(base, adapter).logits([*prompt, 9])[-1]
        np.testing.assert_allclose(got[row], expected, atol=5e-4)
        assert got[row].argmax() == expected.argmax()


def test_requests_in_company_get_the_tokens_that_torch_gives_them_alone(
    kind: str, bases: dict[str, BaseModel], graphs: dict[str, CausalGraph]
) -> None:
    base = bases[kind]
    adapters = [None, lora(base, 1), None, lora(base, 2), None, None]
    prefixes = PrefixCache(MemoryBlocks(2**20), "model")
    slots = SlotRuntime(
        OnnxModel(base, graphs[kind], threads=1), slots=3, kv_tokens=1024, prefixes=prefixes
    )
    for _ in range(2):  # the second time from what the first one kept
        for row, (prompt, adapter) in enumerate(zip(PROMPTS, adapters, strict=True)):
            slots.submit(TokenRequest(row, prompt, 12, adapter=adapter, share="k"))
        out = drain(slots)
        for row, (prompt, adapter) in enumerate(zip(PROMPTS, adapters, strict=True)):
            assert out[row] == TorchOracle(base, adapter).greedy(prompt, 12, ends=(1,))
    assert slots.load.cached_tokens == 2 * BLOCK  # two prompts are long enough for one each


def test_an_adapter_of_another_base_or_shape_is_refused(
    bases: dict[str, BaseModel], graphs: dict[str, CausalGraph]
) -> None:
    model = OnnxModel(bases["llama"], graphs["llama"], threads=1)
    with pytest.raises(ModelError, match="trained on the base"):
        model.check(lora(bases["qwen2"], 1))
    with pytest.raises(ModelError, match="not one of a language model"):
        model.check(tiny_adapter(bases["llama"], "none"))


def test_a_graph_is_made_once_and_an_unfinished_one_is_made_anew(
    bases: dict[str, BaseModel], graphs: dict[str, CausalGraph]
) -> None:
    made = graphs["llama"]
    before = made.graph.stat().st_mtime_ns
    assert causal_graph(bases["llama"], made.folder.parent, "fp32") == made
    assert made.graph.stat().st_mtime_ns == before


def test_what_the_builder_does_not_know_is_refused_with_what_it_said(tmp_path: Path) -> None:
    base = make_causal(tmp_path / "odd", "llama")
    config = json.loads((base.folder / "config.json").read_text())
    config |= {"architectures": ["OddForCausalLM"], "model_type": "llama"}
    (base.folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"cannot be made into a graph.*"):
        causal_graph(base, tmp_path / "graphs", "fp32")
    assert list((tmp_path / "graphs").iterdir()) == []


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantised_weights_give_nearly_the_same_logits(
    precision: str, bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    base = bases["llama"]
    graph = causal_graph(base, tmp_path, precision)  # type: ignore[arg-type]  # by parameter
    model = OnnxModel(base, graph, threads=1)
    model.reserve(1, 64)
    expected = TorchOracle(base).logits(PROMPTS[5])[-1]
    got = model.read(0, PROMPTS[5], 0)
    # Random weights are the hardest to quantise; unrelated logits would correlate by 0.
    assert np.corrcoef(got, expected)[0, 1] > {"int8": 0.99, "int4": 0.8}[precision]


SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "北京"]}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def test_an_answer_follows_its_schema_even_from_a_model_that_knows_nothing(
    bases: dict[str, BaseModel], graphs: dict[str, CausalGraph]
) -> None:
    from tokenizers import Tokenizer

    base, graph = bases["qwen2"], graphs["qwen2"]
    schemas = Schemas(base.folder / "tokenizer.json", graph.ends, graph.vocabulary)
    slots = SlotRuntime(
        OnnxModel(base, graph, threads=1), slots=4, kv_tokens=2048, follow=schemas.follow
    )
    for number in range(4):
        slots.submit(
            TokenRequest(
                number, [9, 10], 200, temperature=1.0, seed=number, schema=json.dumps(SCHEMA)
            )
        )
    slots.submit(TokenRequest(4, [9, 10], 5))
    tokenizer = Tokenizer.from_file(str(base.folder / "tokenizer.json"))
    out = drain(slots)
    whole = 0
    for number in range(4):
        text = tokenizer.decode(out[number])
        if len(out[number]) < 200:  # a model that knows nothing may write digits for ever
            answer = json.loads(text)
            assert answer["city"] in {"Bern", "北京"}
            assert isinstance(answer["days"], int)
            whole += 1
        else:
            assert text.startswith('{"city":')
    assert whole > 0
    assert len(out[4]) <= 5


@pytest.mark.parametrize(
    "schema", ["[1]", "{", '{"type": "no such type"}', '{"$ref": "#/nowhere"}']
)
def test_what_is_no_schema_is_refused(
    schema: str, bases: dict[str, BaseModel], graphs: dict[str, CausalGraph]
) -> None:
    graph = graphs["qwen2"]
    schemas = Schemas(bases["qwen2"].folder / "tokenizer.json", graph.ends, graph.vocabulary)
    with pytest.raises(PromptRefused, match="response_format"):
        schemas.follow(schema)
