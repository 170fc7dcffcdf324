"""Figures of encrypted sums are of real sums, and what was not measured reaches no bar."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from sim.bench import secure_sum
from sim.bench.bars import Bar
from sim.bench.commands import bench
from sim.bench.nvflare_he import NvflareSum, is_installed
from sim.bench.secure_sum import RESNET20, SPREAD, bench_secure_sum

needs_nvflare = pytest.mark.skipif(not is_installed(), reason="the extra 'bench' brings NVFlare")


def measured(**options: object) -> dict[str, object]:
    defaults = {"values": 5000, "clients": 3, "shapes": "one", "bits": (8, 12, 16), "repeats": 1}
    return bench_secure_sum(**defaults | options, progress=lambda _: None)  # type: ignore[arg-type]


def test_resnet_20_has_the_parameters_of_the_paper() -> None:
    """Table 6 of He et al. gives 0.27 million."""
    assert len(RESNET20) == 59
    assert sum(math.prod(shape) for shape in RESNET20) == 269_722


def test_our_schemes_open_the_mean_to_within_their_step() -> None:
    schemes = measured()["schemes"]
    assert isinstance(schemes, dict)
    for bits in (8, 12, 16):
        error = schemes[f"public-key, {bits} bit"]["max_error_of_mean"]
        assert 0 < error <= 6 * SPREAD / (2 ** (bits - 1) - 1)
    # The same integers, added by the scheme that hides nothing.
    assert (
        schemes["public-key, 16 bit"]["max_error_of_mean"]
        == schemes["clear, 16 bit"]["max_error_of_mean"]
    )


def test_bytes_are_those_of_whole_ciphertexts() -> None:
    """8,192 values of 12 bits fill one ciphertext of 58,368 bytes behind a header of 136."""
    schemes = measured(values=8193, bits=(12,))["schemes"]
    assert isinstance(schemes, dict)
    told = schemes["public-key, 12 bit"]["bytes_per_value"]
    assert told == round((2 * 58_368 + 136) / 8193, 3)


@needs_nvflare
def test_nvflares_own_classes_open_the_same_mean() -> None:
    rng = np.random.default_rng(3)
    updates = [rng.normal(size=6000) for _ in range(3)]
    nvflare = NvflareSum()
    for repeat in range(2):  # a second sum does not hold the first
        for number, update in enumerate(updates):
            tensors = {"a": update[:4500], "b": update[4500:]}
            nvflare.add(nvflare.message(nvflare.encrypt(tensors)), f"client {number}")
        opened = nvflare.open(nvflare.total(), ["a", "b"])
        assert opened == pytest.approx(np.mean(updates, axis=0), abs=1e-5), repeat


@needs_nvflare
def test_both_sides_are_told_with_their_ratios() -> None:
    result = measured(values=20_000, bits=(12,))
    assert isinstance(result["schemes"], dict)
    assert isinstance(result["ratios"], dict)
    theirs, ours = result["schemes"]["NVFlare"], result["schemes"]["public-key, 12 bit"]
    assert theirs["max_error_of_mean"] < 1e-5
    ratio = result["ratios"]["public-key, 12 bit"]["bytes"]
    assert ratio == pytest.approx(theirs["bytes_per_value"] / ours["bytes_per_value"], abs=0.05)
    assert theirs["ciphertext_bytes_per_value"] < theirs["bytes_per_value"]


def test_without_nvflare_the_comparison_is_not_measured_and_not_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(secure_sum, "is_installed", lambda: False)
    answer = CliRunner().invoke(
        bench, ["secure-sum", "--values", "5000", "--repeats", "1", "--json"]
    )
    assert answer.exit_code == 1
    result = json.loads(answer.stdout)
    unmeasured = [bar for bar in result["bars"] if bar["measured"] is None]
    assert len(unmeasured) == 3
    assert not any(bar["holds"] for bar in unmeasured)
    assert "NVFlare" not in result["schemes"]
    assert "llmos[bench]" in answer.stderr


def test_a_width_that_is_none_is_refused() -> None:
    answer = CliRunner().invoke(bench, ["secure-sum", "--bits", "9", "--bits", "12", "--bits", "7"])
    assert "--bits 9" in str(answer.exception)
    assert "--bits 7" in str(answer.exception)


@pytest.mark.parametrize("at_least", [True, False])
def test_what_was_not_measured_holds_no_bar(at_least: bool) -> None:
    assert not Bar("x", math.nan, 1.0, at_least=at_least).holds
