"""The layers of a student as ONNX computes them: codes in buffers, dequantized by operators of the graph.

A buffer's name in the network is the tensor's name in the file (`layers.0.query.weight.codes`), so that reading back
needs no guessing. The operators are `torch.onnx.ops.symbolic`: torch's exporter writes them as they stand here, and
called outside of it they compute nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.errors import StageError
from edgedistill.quant.activations import Range, bias_codes
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.quant.stored import QuantizedTensor
from edgedistill.students._points import Convolution, Point, Sum

OPSET = 21  # the first with 4-bit integers and with groups in DequantizeLinear
# Activations are uint8 in the file, codes and zero points 128 higher: the same numbers. ONNX Runtime 1.31 rewrites int8
# ones to that on x86 when it optimizes, and then cannot load the graph ("output_dtype INT8 does not match … UINT8").
TO_UINT8 = 128
_INT32_MAX = 2**31 - 1


def lower(frozen: FrozenStudent) -> nn.Module:
    """The student's network with every quantized weight, and in a static scheme every grid, spelled out.

    Raises:
        StageError: if a quantized tensor is not the weight of a linear layer, convolution or embedding, or static
            activations meet what has no static form.
    """
    model, grids = frozen.build(), frozen.grids()
    weights = {name: _Codes(tensor, grids[name].bits) for name, tensor in frozen.quantized.items()}
    users = users_of(frozen, model)
    odd = sorted(set(weights) - set(users.values()))
    if odd:
        raise StageError(f"ONNX cannot hold {odd[0]}: it is not the weight of a layer of the {frozen.family} student.")
    places = {place for place, module in model.named_modules() if isinstance(module, Point)}
    if frozen.points.keys() - places:
        raise StageError(f"A {frozen.family} student has no point {min(frozen.points.keys() - places)}: damaged.")
    points = {}
    for place, grid in frozen.points.items():
        points[place] = _Sum(grid) if isinstance(model.get_submodule(place), Sum) else _Grid(grid)
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


def axes_of(tensor: QuantizedTensor) -> dict[str, int]:
    """The attributes of `DequantizeLinear` that say which codes a scale is for."""
    if tensor.scales.ndim == 1:
        return {"axis": 0}
    return {"axis": 1, "block_size": tensor.codes.shape[1] // tensor.scales.shape[1]}


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


def is_power_of_two(scale: float) -> bool:
    """Whether dividing by a scale and multiplying with its reciprocal are the same."""
    return math.frexp(scale)[0] == 0.5


class _Codes(nn.Module):
    """One quantized weight: codes [channels, …] and scales [channels] or [channels, groups].

    Codes are int8 here; those of 4 bits become INT4 when the file is packed.
    """

    codes: Tensor
    scales: Tensor
    # what a network may ask of any weight, to make tensors like it
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, tensor: QuantizedTensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("codes", torch.from_numpy(tensor.codes.copy()))
        self.register_buffer("scales", torch.from_numpy(tensor.scales.copy()))
        self.axes = axes_of(tensor)

    def forward(self) -> Tensor:
        """The whole weight."""
        return _operator("DequantizeLinear", (self.codes, self.scales), self.axes, self.codes.shape)

    def rows(self, ids: Tensor) -> Tensor:
        """The rows that `ids` name, and only these dequantized, where ONNX Runtime can look codes up: not INT4 ones."""
        shape = (*ids.shape, self.codes.shape[1])
        if self.bits == 4:
            return _operator("Gather", (self(), ids), {"axis": 0}, shape)
        flat = ids.reshape(-1)  # so that the rows are a matrix, dequantized as the weight is
        count = flat.shape[0]
        codes = _operator("Gather", (self.codes, flat), {"axis": 0}, (count, shape[-1]), torch.int8)
        scales = _operator("Gather", (self.scales, flat), {"axis": 0}, (count, *self.scales.shape[1:]))
        return _operator("DequantizeLinear", (codes, scales), self.axes, codes.shape).view(shape)


class _Grid(nn.Module):
    """A place whose values are rounded to a fixed grid of 256 codes.

    A student rounds `x * (1 / scale)`, as XNNPACK, and `QuantizeLinear` rounds `x / scale`: another float32 number now
    and then, unless the scale is a power of two. So other values are multiplied first, and rounded by a scale of 1.
    The reciprocal is a constant: ONNX Runtime makes a division of a product with one that is divided by another.
    """

    scale: Tensor
    zero_point: Tensor
    inverse: Tensor
    one: Tensor

    def __init__(self, grid: Range) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(grid.scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(grid.zero_point + TO_UINT8, dtype=torch.uint8))
        self.register_buffer("inverse", self.scale.reciprocal())
        self.register_buffer("one", torch.ones((), dtype=torch.float32))
        self.divides = is_power_of_two(grid.scale)

    def codes(self, input: Tensor) -> Tensor:
        """The values' codes."""
        steps, scale = (input, self.scale) if self.divides else (input * self.inverse, self.one)
        return _operator("QuantizeLinear", (steps, scale, self.zero_point), {}, input.shape, torch.uint8)

    def values(self, codes: Tensor) -> Tensor:
        """The values of codes."""
        return _operator("DequantizeLinear", (codes, self.scale, self.zero_point), {}, codes.shape)

    def forward(self, input: Tensor) -> Tensor:
        """The values on the grid."""
        return self.values(self.codes(input))


class _Sum(_Grid):
    """The sum of two branches on a grid of its own."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:  # type: ignore[override]
        """The values on the grid."""
        return super().forward(first + second)


class _Linear(nn.Module):
    def __init__(self, bias: Tensor | None, weight: _Codes) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight(), self.bias)


class _Bias(nn.Module):
    """The bias of a static layer: int32 codes [channels] on the grid of its sums."""

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)


class _StaticLinear(nn.Module):
    """A static linear layer in integers, as XNNPACK has it: sums, times one float32 factor a channel, rounded.

    Between a DequantizeLinear and a QuantizeLinear, ONNX Runtime would compute it in float32 or in integers, as its
    level of optimization says, and a few codes would differ.
    """

    one: Tensor

    def __init__(self, bias: Tensor | None, weight: _Codes, ranges: tuple[Range, Range]) -> None:
        super().__init__()
        self.weight = weight
        self.bias = None if bias is None else _Bias(bias)
        self.input, self.output = _Grid(ranges[0]), _Grid(ranges[1])
        self.register_buffer("one", torch.ones((), dtype=torch.float32))

    def forward(self, input: Tensor) -> Tensor:
        codes, matrix = self.input.codes(input), self.weight.codes.t()
        shape = (*input.shape[:-1], matrix.shape[1])
        sums = _operator("MatMulInteger", (codes, matrix, self.input.zero_point), {}, shape, torch.int32)
        sums = sums if self.bias is None else sums + self.bias.codes
        steps = sums.float() * (self.input.scale * self.weight.scales / self.output.scale)
        rounded = _operator("QuantizeLinear", (steps, self.one, self.output.zero_point), {}, shape, torch.uint8)
        return self.output.values(rounded)


class _StaticConvolution(nn.Module):
    """A convolution between the grids of two points, in integers. The result saturates, which is most of a ReLU6."""

    zero: Tensor

    def __init__(self, layer: Convolution, bias: Tensor | None, weight: _Codes, points: tuple[_Grid, _Grid]) -> None:
        super().__init__()
        self.weight = weight
        self.bias = None if bias is None else _Bias(bias)
        self.points = points  # in a tuple: they are parts of the network, not of this
        self.register_buffer("zero", torch.zeros((), dtype=torch.int8))
        self.sizes = [*layer.kernel_size, *layer.stride, *layer.padding]
        self.groups = layer.groups

    def forward(self, input: Tensor) -> Tensor:
        source, result = self.points
        height, width, *strides, rows, columns = self.sizes
        kernel = self.weight.codes, self.weight.scales, self.zero
        grids = result.scale, result.zero_point
        inputs = source.codes(input), source.scale, source.zero_point, *kernel, *grids
        sides = ((input.shape[2] + 2 * rows - height) // strides[0] + 1,
                 (input.shape[3] + 2 * columns - width) // strides[1] + 1)  # fmt: skip
        attributes = {
            "kernel_shape": [height, width],
            "strides": strides,
            "pads": [rows, columns, rows, columns],
            "group": self.groups,
        }
        shape = (input.shape[0], len(self.weight.codes), *sides)
        bias = () if self.bias is None else (self.bias.codes,)
        return result.values(_operator("QLinearConv", (*inputs, *bias), attributes, shape, torch.uint8))


class _Convolution(nn.Module):
    def __init__(self, layer: nn.Conv2d, weight: _Codes) -> None:
        super().__init__()
        self.weight, self.bias = weight, layer.bias
        # the layer itself must not become a part of this one: its float kernel would be a parameter of the file
        self.convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor] = layer._conv_forward

    def forward(self, input: Tensor) -> Tensor:
        return self.convolve(input, self.weight(), self.bias)


class _Embedding(nn.Module):
    def __init__(self, weight: _Codes) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, input: Tensor) -> Tensor:
        return self.weight.rows(input)


def _lowered(
    frozen: FrozenStudent, place: str, layer: nn.Module, weight: _Codes, name: str, points: dict[str, _Grid]
) -> nn.Module:
    if isinstance(layer, nn.Embedding):
        return _Embedding(weight)
    if isinstance(layer, Convolution) and points:
        bias = static_bias(frozen, place, name, frozen.points[layer.source])
        return _StaticConvolution(layer, bias, weight, (points[layer.source], points[layer.result]))
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
    return _StaticLinear(static_bias(frozen, place, name, ranges[0]), weight, ranges)


def _operator(
    kind: str,
    inputs: tuple[Tensor, ...],
    attributes: dict[str, Any],
    shape: torch.Size | tuple[Any, ...],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One operator of ONNX with one output of `shape` and `dtype`."""
    out: Tensor = torch.onnx.ops.symbolic(kind, inputs, attributes, dtype=dtype, shape=shape, version=OPSET)
    return out
