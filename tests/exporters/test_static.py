"""Static int8: files compute the integers of the frozen student, and the tests that hold formats to it can fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgedistill import catalog, coreml, quant
from edgedistill.coreml import Evaluator
from edgedistill.exporters import tflite
from edgedistill.exporters._proof import answer
from edgedistill.exporters.coreml.convert import Converter
from edgedistill.exporters.coreml.proof import unrounded
from edgedistill.quant import FrozenStudent, kernels
from edgedistill.quant.layers import StaticQuantLinear
from edgedistill.specs import QuantScheme, WeightGrid
from edgedistill.students import cnn, part

# with sums, odd paddings, and enough values that an arithmetic which is off by little shows
STAGES = [(1, 3, 1, 8, 1), (3, 5, 2, 12, 2), (4, 3, 2, 16, 2)]
CNN = cnn.TINY.model_copy(
    update={
        "image_size": 32,
        "stages": tuple(cnn.Stage(**dict(zip(cnn.Stage.model_fields, row, strict=True))) for row in STAGES),
        "head_width": 48,
        "classes": 10,
    }
)


def student(family: str, config: Any, bits: Any = 8) -> FrozenStudent:
    """Weights as large as trained ones; static ranges observed on random samples."""
    torch.manual_seed(0)
    plugin = catalog.load_plugin("students", family)
    scheme = QuantScheme(weights=WeightGrid(bits=bits), head=WeightGrid(bits=bits), activations="static_int8")
    model = part(family, "module").build(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=0.1 if parameter.dim() == 1 else 1.2 / parameter[0].numel() ** 0.5)
    quant.prepare(model, scheme, plugin.tensors(config)).train()
    random = np.random.default_rng(1)
    with torch.no_grad():
        for signature in [*plugin.signatures(config, (8, 16))] * 12:
            model(*(torch.from_numpy(value) for value in plugin.sample(config, signature, random).values()))
    quant.freeze_observers(model)
    return quant.freeze(model.eval(), family, config, scheme, {})


def steps(frozen: FrozenStudent, run: Callable[[str, Any], Any], inputs: int) -> np.ndarray:
    """For each input the largest difference of any logit, in steps of their grid."""
    module, random, found = frozen.to_module(), np.random.default_rng(5), []
    signatures = [*frozen.signatures((8, 16))]
    for signature in signatures * (inputs // len(signatures)):
        feeds = frozen.sample(signature, random)
        away = np.abs(run(signature.name, feeds) - answer(module, feeds)).max()
        found.append(away / frozen.ranges["classifier"][1].scale)
    return np.rint(np.array(found))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[FrozenStudent, Any]]:
    """An image student with weights of 8 and of 4 bits, each with the runner of its .tflite."""
    folder, made = tmp_path_factory.mktemp("static"), {}
    for bits in (8, 4):
        frozen = student("cnn", CNN, bits)
        tflite.export(frozen, (8,), folder / f"{bits}.tflite")
        made[bits] = frozen, tflite.load(folder / f"{bits}.tflite")
    return made


@pytest.mark.parametrize("bits", [8, 4])
def test_litert_computes_the_integers_of_an_image_student(images: Any, bits: int) -> None:
    """All that may differ is a mean that lies half way between two codes."""
    frozen, runner = images[bits]
    found = steps(frozen, lambda name, feeds: runner.run(name, feeds)["logits"], 60)
    assert found.max() <= 1
    assert (found == 0).mean() >= 0.95


def float_sum(first: Any, second: Any, sources: Any, result: Any) -> Any:
    """What a frozen student added before: no fixed point."""
    low, high = -128 - result.zero_point, 127 - result.zero_point
    return ((first + second) / result.scale).round().clamp(low, high) * result.scale


def truncated(multiply: Any, x: Any, codes: Any, scales: Any, bias: Any, ranges: Any, relu6: bool = False) -> Any:
    """A kernel that forgets the bias's rounding and the order of its factors: off only where a value is on the edge."""
    source, result = ranges
    layer = multiply(kernels.quantize_static(x, source).double(), codes.double())
    shape = (-1, *[1] * (layer.dim() - 2))
    exact = layer * (source.scale * scales.double()).view(shape) + bias.double().view(shape)
    low, high = -128 - result.zero_point, 127 - result.zero_point
    out = (exact.clamp(0, 6) if relu6 else exact) / result.scale
    return out.round().clamp(low, high).float() * result.scale


def test_a_kernel_without_the_rounding_of_its_bias_is_noticed(images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, runner = images[8]
    monkeypatch.setattr("edgedistill.quant.modules.static_layer", truncated)
    found = steps(frozen, lambda name, feeds: runner.run(name, feeds)["logits"], 20)
    assert (found == 0).mean() < 0.5


def test_sums_of_image_students_are_undisputed(images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A float sum gives the codes of the fixed-point one, as the scales were chosen for that."""
    frozen, runner = images[8]
    monkeypatch.setattr("edgedistill.quant.modules.static_sum", float_sum)
    assert steps(frozen, lambda name, feeds: runner.run(name, feeds)["logits"], 60).max() <= 1


@pytest.mark.parametrize("family", ["bert", "cnn", "vit"])
def test_the_graph_of_a_core_ml_program_is_within_a_step(family: str, tmp_path: Path) -> None:
    """What ships rounds to fp16; the same program with its float32 constants, in float64, shows what its graph is."""
    frozen = student(family, catalog.load_plugin("students", family).TINY)
    raw = Converter(frozen, frozen.signatures((8, 16))).write(tmp_path)
    evaluator = Evaluator(unrounded(coreml.load(raw.path), raw.floats), "fp64")
    found = steps(frozen, lambda _, feeds: next(iter(evaluator.predict(feeds).values())), 24)
    assert found.max() <= 1
    assert (found == 0).mean() >= 0.7


def test_ranges_of_texts_do_not_see_padding() -> None:
    """The same tokens with padding behind them, whatever is in it, give the same ranges."""
    plugin, ranges = catalog.load_plugin("students", "bert"), []
    ids = torch.randint(1, plugin.TINY.vocabulary, (4, 6), generator=torch.Generator().manual_seed(0))
    for padding in (0, 7):
        torch.manual_seed(0)
        model = part("bert", "module").build(plugin.TINY)
        with torch.no_grad():
            model.embeddings.word.weight[0] = 30 * torch.randn(plugin.TINY.width)
            model.embeddings.position[6:] = 30 * torch.randn(plugin.TINY.max_length - 6, plugin.TINY.width)
        scheme = QuantScheme(activations="static_int8")
        quant.prepare(model, scheme, plugin.tensors(plugin.TINY)).train()
        model(nn.functional.pad(ids, (0, padding)), nn.functional.pad(torch.ones_like(ids), (0, padding)))
        layers = [layer for layer in model.modules() if isinstance(layer, StaticQuantLinear)]
        ranges.append(torch.stack([layer.ranges for layer in layers]))
    assert torch.allclose(ranges[0], ranges[1], rtol=1e-4, atol=1e-5)
