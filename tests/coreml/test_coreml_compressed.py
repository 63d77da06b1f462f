"""Quantized activations, and whole models that coremltools compressed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_models import built, convert, coremltools, quiet
from torch import nn

from edgedistill.coreml import Evaluator, load


def test_activations_are_quantized_to_the_codes_of_the_definition(tmp_path: Path) -> None:
    x = np.linspace(-9, 9, 73).astype(np.float32).reshape(1, 73)
    x.flat[:3] = 0.25, 0.75, 1.25  # halves of a step of 0.5 round to even: 0, 2, 2

    def make(mb: Any, v: dict[str, Any]) -> Any:
        signed = mb.quantize(input=v["x"], scale=np.float32(0.5), zero_point=np.int8(-3), output_dtype="int8")
        unsigned = mb.quantize(input=v["x"], scale=np.float32(0.05), zero_point=np.uint8(128), output_dtype="uint8")
        return (
            mb.dequantize(input=signed, scale=np.float32(0.5), zero_point=np.int8(-3)),
            mb.dequantize(input=unsigned, scale=np.float32(0.05), zero_point=np.uint8(128)),
        )

    program = load(built(make, {"x": x}, tmp_path / "activations.mlpackage", target="iOS17"))
    signed, unsigned = Evaluator(program, "fp32").predict({"x": x}).values()
    assert np.array_equal(signed, (np.clip(np.rint(x / np.float32(0.5)) - 3, -128, 127) + 3) * np.float32(0.5))
    steps = np.clip(np.rint(x / np.float32(0.05)) + 128, 0, 255) - 128
    assert np.array_equal(unsigned, steps.astype(np.float32) * np.float32(0.05))
    assert signed.flat[0] == 0.0
    assert signed.flat[1] == 1.0


def test_quantizing_along_an_axis(tmp_path: Path) -> None:
    x = np.random.default_rng(2).uniform(-3, 3, (2, 4, 5)).astype(np.float32)
    scale = np.array([0.02, 0.03, 0.04, 0.05], np.float32)

    def make(mb: Any, v: dict[str, Any]) -> Any:
        stored = mb.quantize(input=v["x"], scale=scale, zero_point=np.zeros(4, np.int8), output_dtype="int8", axis=1)
        return mb.dequantize(input=stored, scale=scale, zero_point=np.zeros(4, np.int8), axis=1)

    program = load(built(make, {"x": x}, tmp_path / "axis.mlpackage", target="iOS17"))
    (got,) = Evaluator(program, "fp32").predict({"x": x}).values()
    along = scale[:, None]
    assert np.array_equal(got, np.clip(np.rint(x / along), -128, 127).astype(np.float32) * along)


COMPRESSED: dict[str, Callable[[Any, Any], Any]] = {
    "int8_channel": lambda cto, model: cto.linear_quantize_weights(
        model, config(cto, cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0))
    ),
    "uint4_block": lambda cto, model: cto.linear_quantize_weights(
        model,
        config(
            cto,
            cto.OpLinearQuantizerConfig(
                mode="linear", dtype="uint4", granularity="per_block", block_size=4, weight_threshold=0
            ),
        ),
    ),
    "palette_groups": lambda cto, model: cto.palettize_weights(
        model,
        config(
            cto,
            cto.OpPalettizerConfig(
                mode="uniform", nbits=3, granularity="per_grouped_channel", group_size=2, weight_threshold=0
            ),
        ),
    ),
    "pruned": lambda cto, model: cto.prune_weights(
        model, config(cto, cto.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0))
    ),
    "pruned_int8": lambda cto, model: cto.linear_quantize_weights(
        cto.prune_weights(model, config(cto, cto.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0))),
        config(cto, cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)),
        joint_compression=True,
    ),
    "pruned_palette": lambda cto, model: cto.palettize_weights(
        cto.prune_weights(model, config(cto, cto.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0))),
        config(cto, cto.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=0)),
        joint_compression=True,
    ),
}


def config(cto: Any, operation: Any) -> Any:
    return cto.OptimizationConfig(global_config=operation)


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_compressed_model_computes_what_its_decompressed_twin_does(name: str, tmp_path: Path) -> None:
    ct = coremltools()
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 12))
    feeds = {"x": np.random.default_rng(1).uniform(-1, 1, (1, 4, 4, 4)).astype(np.float32)}
    convert(module, feeds, tmp_path / "plain.mlpackage", target="iOS18", outputs=["y"])
    with quiet():
        cto = ct.optimize.coreml
        model = ct.models.MLModel(str(tmp_path / "plain.mlpackage"), skip_model_load=True)
        small = COMPRESSED[name](cto, model)
        small.save(str(tmp_path / "small.mlpackage"))
        cto.decompress_weights(small).save(str(tmp_path / "twin.mlpackage"))
    programs = [load(tmp_path / f"{kind}.mlpackage") for kind in ("plain", "small", "twin")]
    compressed = [{op.kind for op in p.main.operations if op.kind.startswith("constexpr")} for p in programs]
    assert not compressed[0]
    assert compressed[1]
    assert not compressed[2]
    plain, got, twin = (Evaluator(program, "fp64").predict(feeds)["y"] for program in programs)
    assert np.abs(got - twin).max() < 1e-6
    assert np.abs(got - plain).max() > 1e-5
