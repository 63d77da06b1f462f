"""A student's network with its layers as ONNX computes them.

A buffer's name in the network is the tensor's name in the file (`layers.0.query.weight.codes`), so that reading back
needs no guessing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from edgedistill.errors import StageError
from edgedistill.exporters.onnx.codes import Codes, Zeros
from edgedistill.exporters.onnx.static import Grid, StaticConvolution, StaticLinear, SumGrid
from edgedistill.quant.activations import Range, bias_codes
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.students._points import Convolution, Point, Sum

_INT32_MAX = 2**31 - 1


def lower(frozen: FrozenStudent) -> nn.Module:
    """The student's network with every quantized weight, and in a static scheme every grid, spelled out.

    Raises:
        StageError: if a quantized tensor is not the weight of a linear layer, convolution or embedding, or static
            activations meet what has no static form.
    """
    model = frozen.build()
    weights = {name: Codes(tensor) for name, tensor in frozen.quantized.items()}
    users = users_of(frozen, model)
    odd = sorted(set(weights) - set(users.values()))
    if odd:
        raise StageError(f"ONNX cannot hold {odd[0]}: it is not the weight of a layer of the {frozen.family} student.")
    places = {place for place, module in model.named_modules() if isinstance(module, Point)}
    if frozen.points.keys() - places:
        raise StageError(f"A {frozen.family} student has no point {min(frozen.points.keys() - places)}: damaged.")
    points = {}
    if frozen.scheme.activations == "static_int8":
        tables = {place for place in users if isinstance(model.get_submodule(place), nn.Embedding)}
        _add_zero_points(model, [weights[name] for place, name in users.items() if place not in tables])
    for place, grid in frozen.points.items():
        points[place] = SumGrid(grid) if isinstance(model.get_submodule(place), Sum) else Grid(grid)
        model.set_submodule(place, points[place])
    for place, name in users.items():
        layer = model.get_submodule(place)
        model.set_submodule(place, _lowered(frozen, place, layer, weights[name], name, points))
    return model.eval()


def users_of(frozen: FrozenStudent, model: nn.Module) -> dict[str, str]:
    """For each layer with a quantized weight, the stored tensor that is its weight; a tied one has several layers."""
    names = {id(model.get_parameter(name)): name for name in frozen.quantized}
    layers = [(place, getattr(layer, "weight", None)) for place, layer in model.named_modules(remove_duplicate=False)]
    return {place: names[id(weight)] for place, weight in layers if id(weight) in names}


def _add_zero_points(model: nn.Module, weights: Sequence[Codes]) -> None:
    """Give static weights zero points, which are all 0: ONNX Runtime makes no integer product of a Gemm without."""
    zeros = {str(count): Zeros(count) for count in sorted({len(weight.codes) for weight in weights})}
    for weight in weights:
        weight.zeros = (zeros[str(len(weight.codes))],)
    model.add_module("zero_points", nn.ModuleDict(zeros))


def static_bias(frozen: FrozenStudent, layer: str, weight: str, source: Range) -> Tensor | None:
    """The bias of a static layer whose input is on `source`: int32 codes [channels]; None if it has no bias.

    Raises:
        StageError: if a code is beyond int32.
    """
    values = frozen.floats.get(f"{layer}.bias")
    if values is None:
        return None
    scales = torch.from_numpy(frozen.quantized[weight].scales.copy())
    codes = bias_codes(torch.from_numpy(values.copy()), source.scale, scales)
    if bool((codes.abs() > _INT32_MAX).any()):
        raise StageError(f"{layer}.bias has no int32 codes: it is {codes.abs().max():.3g} steps of its layer's grid.")
    return codes.to(torch.int32)


class _Linear(nn.Module):
    def __init__(self, bias: Tensor | None, weight: Codes) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight(), self.bias)


class _Convolution(nn.Module):
    def __init__(self, layer: nn.Conv2d, weight: Codes) -> None:
        super().__init__()
        self.weight, self.bias = weight, layer.bias
        # the layer itself must not become a part of this one: its float kernel would be a parameter of the file
        self.convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor] = layer._conv_forward

    def forward(self, input: Tensor) -> Tensor:
        return self.convolve(input, self.weight(), self.bias)


class _Embedding(nn.Module):
    def __init__(self, weight: Codes, bits: int) -> None:
        super().__init__()
        self.weight, self.bits = weight, bits

    def forward(self, input: Tensor) -> Tensor:
        return self.weight.rows(input, self.bits)


def _lowered(
    frozen: FrozenStudent, place: str, layer: nn.Module, weight: Codes, name: str, points: dict[str, Grid]
) -> nn.Module:
    if isinstance(layer, nn.Embedding):
        return _Embedding(weight, frozen.grids()[name].bits)
    if isinstance(layer, Convolution) and points:
        bias = static_bias(frozen, place, name, frozen.points[layer.source])
        return StaticConvolution(layer, bias, weight, (points[layer.source], points[layer.result]))
    if isinstance(layer, nn.Conv2d):
        return _Convolution(layer, weight)
    if not isinstance(layer, nn.Linear):
        raise StageError(f"{name}: ONNX export knows no {type(layer).__name__} with integer codes.")
    if frozen.scheme.activations != "static_int8":
        return _Linear(layer.bias, weight)
    ranges = frozen.ranges.get(place)
    if ranges is None or weight.scales.dim() == 2:
        lack = "no activation ranges" if ranges is None else "one scale per group"
        raise StageError(f"{place} has {lack}: a static_int8 layer needs ranges and one scale per channel.")
    return StaticLinear(static_bias(frozen, place, name, ranges[0]), weight, ranges)
