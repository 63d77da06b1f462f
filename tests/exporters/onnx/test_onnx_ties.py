"""Groups of a static file as floats: what float32 leaves open is told from what is wrong."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_students import BUCKETS, STATIC, Made, spoiled
from planted_onnx import change, exchange, reader

from edgedistill.errors import VerificationError
from edgedistill.exporters import onnx as exporter
from edgedistill.exporters._proof import answer
from edgedistill.exporters.onnx.groups import Group
from edgedistill.exporters.onnx.running import session_of
from edgedistill.exporters.onnx.ties import sums_of
from edgedistill.quant.modules import FrozenLinear

UP = "layers.0.up"


def feeds_of(frozen: Any, count: int = 4) -> list[Any]:
    random = np.random.default_rng(3)
    return [frozen.sample(frozen.signatures(BUCKETS)[-1], random) for _ in range(count)]


def swapped(model: Any) -> None:
    for part in ("weight.codes", "weight.scales", "bias.codes"):
        exchange(model, f"layers.0.query.{part}", f"layers.0.key.{part}")
    one, two = (next(n for n in model.graph.node if n.op_type == "Mul" and f"layers.0.{layer}.weight.scales" in n.input)
                for layer in ("query", "key"))  # fmt: skip
    one.input[1], two.input[1] = two.input[1], one.input[1]


def without_zero_point(model: Any) -> None:
    """Where the codes become floats; they were made with it."""
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.uint8), "nothing"))
    back = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and f"{UP}.input.zero_point" in n.input]
    for node in back:
        node.input[2] = "nothing"


def without_bias(model: Any) -> None:
    product = reader(model, reader(model, f"{UP}.bias.codes").output[0])
    del product.input[2]


def other_grid(model: Any) -> None:
    reader(model, f"{UP}.output.zero_point").input[1] = "layers.0.query.output.scale"


def padded(model: Any) -> None:
    """One row of padding on the other side."""
    every = (a for n in model.graph.node if n.op_type == "Conv" for a in n.attribute if a.name == "pads" and a.ints[0])
    pads = next(every)
    pads.ints[:] = [pads.ints[0] - 1, pads.ints[1], pads.ints[2] + 1, pads.ints[3]]


FAULTS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "one weight": ("static", change(f"{UP}.weight.codes", 5), UP),
    "a bias, by one code": ("static", change(f"{UP}.bias.codes", 4), UP),
    "a scale, by one unit of fp16": ("static", change(f"{UP}.weight.scales", 5, 0x20), UP),
    "the scale of the result, by one unit of fp16": ("static", change(f"{UP}.output.scale", 1, 0x20), UP),
    "the zero point left out": ("static", without_zero_point, f"the input of {UP}"),
    "no bias": ("static", without_bias, UP),
    "the grid of another layer": ("static", other_grid, UP),
    "two layers in each other's place": ("static", swapped, "layers.0.query"),
    "one weight of a convolution": ("static cnn", change("final.conv.weight.codes", 3), "final.conv"),
    "a bias of a convolution, by one code": ("static cnn", change("stem.conv.bias.codes"), "stem.conv"),
    "another padding": ("static cnn", padded, r"blocks\.\d\.depthwise\.conv"),
}


@pytest.mark.parametrize("name", STATIC)
def test_without_a_tie_the_answers_are_the_students(made: Made, name: str) -> None:
    frozen, path = made(name)
    session, module = session_of(path, path.read_bytes()), frozen.to_module()
    feeds = feeds_of(frozen, 30)
    for given, seen in zip(feeds, exporter.ties(frozen, path, feeds), strict=True):
        assert seen or np.array_equal(session.run(None, given)[0], answer(module, given))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_from_a_tie_and_named(made: Made, tmp_path: Path, fault: str) -> None:
    """By the answers alone: the numbers of the file are not asked."""
    name, edit, place = FAULTS[fault]
    frozen, path = made(name)
    with pytest.raises(VerificationError, match=f"first differs from the student at {place}: "):
        exporter.ties(frozen, spoiled(path, tmp_path, edit), feeds_of(frozen))


@pytest.mark.parametrize("name", STATIC)
def test_one_code_that_is_off_by_one_is_found_wherever_it_is(
    made: Made, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    frozen, path = made(name)
    probing = importlib.import_module("edgedistill.exporters.onnx.probing")
    random, computing, feeds = np.random.default_rng(0), probing._computing, feeds_of(frozen, 1)
    assert exporter.ties(frozen, path, feeds) == [[]]
    for layer in 3 * probing.groups(probing.open_file(path)):

        def wrong(path: Path, layer: Group = layer) -> Callable[[Any], Any]:
            def run(given: Any) -> Any:
                values = computing(path)(given)
                at = random.integers(values[layer.output].size)
                code = values[layer.output].flat[at]
                values[layer.output].flat[at] = code + 1 if code < 128 else code - 1
                return values

            return run

        monkeypatch.setattr(probing, "_computing", wrong)
        place = layer.weight.removesuffix(".weight.codes")
        with pytest.raises(VerificationError, match=f"at {place}: 1 of .* codes are up to 1 from the student's"):
            exporter.ties(frozen, path, feeds)


def test_a_file_that_is_wrong_as_floats_is_not_written(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A bias that is off by a code moves no answer by a step, so that nothing else that runs the file would see it."""
    frozen, path = made("static")
    wrong = spoiled(path, tmp_path, change(f"{UP}.bias.codes", 4)).read_bytes()
    (tmp_path / "spoiled.onnx").unlink()
    module = importlib.import_module("edgedistill.exporters.onnx")
    monkeypatch.setattr(module, "convert", lambda *_: None)
    monkeypatch.setattr(module, "pack", lambda *_: wrong)
    monkeypatch.setattr(module, "verify", lambda *_: None)
    with pytest.raises(VerificationError, match=f"with groups as floats it first differs from the student at {UP}"):
        exporter.export(frozen, BUCKETS, tmp_path / "no.onnx")
    assert not list(tmp_path.iterdir())


def test_the_exact_sums_are_those_of_fractions(made: Made) -> None:
    """And the limit holds for sums in the worst order there is for them: large ones first, each rounded."""
    frozen, _ = made("static")
    layer = frozen.to_module().get_submodule(UP)
    assert isinstance(layer, FrozenLinear)
    assert layer.ranges is not None
    source, result = layer.ranges
    codes = torch.randint(-128 - source.zero_point, 128 - source.zero_point, (1, layer.weight.shape[1]),
                          generator=torch.Generator().manual_seed(0))  # fmt: skip
    sums = sums_of(layer, codes * source.scale)
    single, biases = np.float32, frozen.floats[f"{UP}.bias"]
    for channel in range(len(layer.weight)):
        scale, weight = layer.scales[channel].item(), layer.weight[channel].int().tolist()
        bias = round(float(biases[channel]) / (source.scale * scale))
        whole = sum(a * b for a, b in zip(codes[0].tolist(), weight, strict=True)) + bias
        exact = Fraction(whole) * Fraction(scale) * Fraction(source.scale) / Fraction(result.scale)
        assert abs(float(exact) - float(sums.exact[0, channel])) < 1e-9
        terms = sorted(
            (single(a * source.scale) * single(b * scale) for a, b in zip(codes[0].tolist(), weight, strict=True)),
            key=abs,
            reverse=True,
        )
        total = single(bias) * (single(source.scale) * single(scale))
        for term in terms:
            total = single(total + term)
        assert abs(float(total / single(result.scale)) - float(exact)) <= float(sums.away[0, channel])
