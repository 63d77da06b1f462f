"""The static layers of a student as QDQ groups, and the grids that values are rounded to between them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgedistill.exporters.onnx.codes import Codes, operator
from edgedistill.quant.activations import Range
from edgedistill.students._points import Convolution

# Activations are uint8 in the file, codes and zero points 128 higher: the same numbers. ONNX Runtime 1.31 rewrites int8
# ones to that on x86 when it optimizes, and then cannot load the graph ("output_dtype INT8 does not match … UINT8").
TO_UINT8 = 128


def is_power_of_two(scale: float) -> bool:
    """Whether dividing by a scale and multiplying with its reciprocal are the same."""
    return math.frexp(scale)[0] == 0.5


class Grid(nn.Module):
    """A place whose values are rounded to a fixed grid of 256 codes.

    A student rounds `x * (1 / scale)`, as XNNPACK, and `QuantizeLinear` rounds `x / scale`: another float32 number now
    and then, unless the scale is a power of two. So a value is moved to the grid before: of `n * scale`, rounded to
    float32, the quotient is `n`.
    The reciprocal is a constant: ONNX Runtime makes a division of a product with one that is divided by another.
    """

    scale: Tensor
    zero_point: Tensor
    inverse: Tensor

    def __init__(self, grid: Range) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(grid.scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(grid.zero_point + TO_UINT8, dtype=torch.uint8))
        self.register_buffer("inverse", self.scale.reciprocal())
        self.divides = is_power_of_two(grid.scale)

    def rounded(self, input: Tensor) -> Tensor:
        """The values of the codes that QuantizeLinear gives, which does not ask on which side of a middle they are."""
        codes = operator("QuantizeLinear", (input, self.scale, self.zero_point), {}, input.shape, torch.uint8)
        return operator("DequantizeLinear", (codes, self.scale, self.zero_point), {}, codes.shape)

    def forward(self, input: Tensor) -> Tensor:
        """The values on the grid."""
        return self.rounded(input if self.divides else (input * self.inverse).round() * self.scale)


class SumGrid(Grid):
    """The sum of two branches on a grid on which none is near the middle of two codes (`sum_range_of`)."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:  # type: ignore[override]
        """The values on the grid."""
        return self.rounded(first + second)


class _Bias(nn.Module):
    """The bias of a static layer: int32 codes [channels] on the grid of its sums."""

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    def forward(self, source: Grid, weight: Codes) -> Tensor:
        """The bias of a layer with this input and weight."""
        inputs = self.codes, source.scale * weight.scales
        return operator("DequantizeLinear", inputs, {"axis": 0}, self.codes.shape)


class StaticLinear(nn.Module):
    """A static linear layer as a group that ONNX Runtime computes in integers, as XNNPACK: QGemm.

    That is sums, times one float32 factor a channel, rounded. The group has to be a Gemm of a matrix, as a MatMul takes
    no bias and torch's own exporter splits products of three axes.
    """

    def __init__(self, bias: Tensor | None, weight: Codes, ranges: tuple[Range, Range]) -> None:
        super().__init__()
        self.weight = weight
        self.bias = None if bias is None else _Bias(bias)
        self.input, self.output = Grid(ranges[0]), Grid(ranges[1])

    def forward(self, input: Tensor) -> Tensor:
        """Same shapes as `nn.Linear`; the values are on the grid of the output."""
        rows = self.input(input.reshape(-1, input.shape[-1]))
        bias = () if self.bias is None else (self.bias(self.input, self.weight),)
        shape = (rows.shape[0], len(self.weight.codes))
        sums = operator("Gemm", (rows, self.weight(), *bias), {"transB": 1}, shape)
        return self.output.rounded(sums).view(*input.shape[:-1], -1)


class StaticConvolution(nn.Module):
    """A convolution between the grids of two points, as a group that ONNX Runtime computes in integers: QLinearConv.

    The result saturates, which is most of a ReLU6.
    """

    def __init__(self, layer: Convolution, bias: Tensor | None, weight: Codes, points: tuple[Grid, Grid]) -> None:
        super().__init__()
        self.weight = weight
        self.bias = None if bias is None else _Bias(bias)
        self.points = points  # in a tuple: they are parts of the network, not of this
        self.sizes = [*layer.kernel_size, *layer.stride, *layer.padding]
        self.groups = layer.groups

    def forward(self, input: Tensor) -> Tensor:
        """Same shapes as the convolution's; `input` is on the grid of the first point, the result on the second's."""
        source, result = self.points
        height, width, *strides, rows, columns = self.sizes
        sides = ((input.shape[2] + 2 * rows - height) // strides[0] + 1,
                 (input.shape[3] + 2 * columns - width) // strides[1] + 1)  # fmt: skip
        attributes = {
            "kernel_shape": [height, width],
            "strides": strides,
            "pads": [rows, columns, rows, columns],
            "group": self.groups,
        }
        shape = (input.shape[0], len(self.weight.codes), *sides)
        bias = () if self.bias is None else (self.bias(source, self.weight),)
        # the input is on the grid of its point already
        inputs = source.rounded(input), self.weight(), *bias
        return result.rounded(operator("Conv", inputs, attributes, shape))
