"""What ``llmos up`` is told about the model becomes an engine, or a sentence that names the option."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from coordinator.commands import up
from coordinator.inference.engine import EngineState
from coordinator.inference.engines import Serving
from coordinator.inference.local_engine import LocalEngine
from coordinator.inference.replicated_engine import ReplicatedEngine
from coordinator.inference.run_adapters import adapters_by_name
from coordinator.inference.upstream_engine import UpstreamEngine
from shared.errors import ConfigError, ModelError
from shared.types import RunId

MODELS = Path("models")
NODES = "http://127.0.0.1:8001,http://127.0.0.1:8002"


def test_one_model_several_replicas_or_other_machines() -> None:
    assert Serving().engine(MODELS) is None
    assert isinstance(Serving("some/model").engine(MODELS), LocalEngine)
    several = Serving("some/model", replicas=3).engine(MODELS)
    assert isinstance(several, ReplicatedEngine)
    assert len(several.outstanding) == 3
    upstream = Serving(upstream=NODES, upstream_model="m", upstream_keys="k").engine(MODELS)
    assert isinstance(upstream, UpstreamEngine)
    assert (upstream.card.name, upstream.card.state) == ("m", EngineState.LOADING)
    assert list(upstream.outstanding) == ["127.0.0.1:8001", "127.0.0.1:8002"]


def test_models_of_texts_may_be_elsewhere_while_the_language_model_is_here() -> None:
    assert Serving("some/model").encoders() == (None, None)
    both = Serving("some/model", upstream=NODES, upstream_encoder="e", upstream_reader="r")
    assert isinstance(both.engine(MODELS), LocalEngine)
    embeds, reads = both.encoders()
    assert embeds is not None
    assert reads is not None
    assert (embeds.card.name, embeds.card.reads_answers) == ("e", False)
    assert (reads.card.name, reads.card.reads_answers) == ("r", True)


@pytest.mark.parametrize(
    ("serving", "named"),
    [
        (Serving("a/b", upstream=NODES, upstream_model="m"), "--model and --upstream"),
        (Serving(upstream=NODES), "--upstream-model"),
        (Serving(upstream_model="m"), "of no --upstream"),
        (Serving(upstream_encoder="m"), "of no --upstream"),
        (Serving(tensor_parallel=2), "--tensor-parallel: of no --model"),
        (Serving("a/b", tensor_parallel=2, replicas=2), "--tensor-parallel and --replicas"),
        (Serving("a/b", upstream_keys="hidden"), "--upstream-key-env"),
        (Serving("a/b", replicas=0), "--replicas: 1 to 64, not 0"),
        (Serving("a/b", replicas=65), "--replicas: 1 to 64, not 65"),
        (Serving(replicas=2), "--replicas: of no --model"),
        (Serving(upstream="here", upstream_model="m"), "here"),
        (Serving("a/b", engine_kind="vllm"), "--engine: vllm is not among"),
        (Serving("a/b", device="tpu"), "--device: tpu is not among"),
        (Serving("a/b", device="cpu", precision="fp64"), "--precision: fp64 is not among"),
        (Serving("a/b", engine_kind="onnx", device="cuda", precision="fp32"), "--engine: onnx"),
        (Serving("a/b", engine_kind="onnx", tensor_parallel=2), "--tensor-parallel: onnx"),
    ],
)
def test_options_that_contradict_each_other_are_named(serving: Serving, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        serving.engine(MODELS)
    assert "hidden" not in f"{caught.value} {serving!r}"


def test_a_model_that_cannot_be_is_named_before_anything_starts() -> None:
    with pytest.raises(ModelError, match="no folder"):
        Serving("/nowhere at all", replicas=2).engine(MODELS)


def test_an_unset_variable_and_an_unknown_kind_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    base = ["--home", str(tmp_path / "home"), "--upstream", NODES, "--upstream-model", "m"]
    for options, named in (
        (["--upstream-key-env", "NO_SUCH_KEY"], "variable NO_SUCH_KEY is not set"),
        (["--upstream-adapters", "other"], "'llmos' or 'plain', not 'other'"),
    ):
        result = CliRunner().invoke(up, [*base, *options])
        assert isinstance(result.exception, ConfigError)
        assert named in str(result.exception)
    assert not (tmp_path / "home").exists()


def test_adapters_that_go_by_name_differ_from_run_to_run() -> None:
    assert adapters_by_name(RunId("a")) != adapters_by_name(RunId("b"))
