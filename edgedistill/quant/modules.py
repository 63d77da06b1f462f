"""The layers of a frozen student: integer codes in, the arithmetic of the file out. Evaluation only."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor, nn

from edgedistill.quant.activations import Range, dynamic_linear, quantize_static
from edgedistill.quant.grid import dequantize
from edgedistill.quant.kernels import convolve, static_layer, static_sum
from edgedistill.students._points import Convolution


class FrozenLinear(nn.Module):
    """A linear layer on integer codes [channels, width] whose input rows, or input and output ranges, are int8."""

    weight: Tensor
    scales: Tensor
    bias: Tensor

    def __init__(
        self,
        codes: Int8[Tensor, "channels width"],
        scales: Float[Tensor, " channels *groups"],
        bias: Float[Tensor, " channels"],
        ranges: tuple[Range, Range] | None,
    ) -> None:
        super().__init__()
        self.ranges = ranges
        self.register_buffer("weight", codes.to(scales.dtype))
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    def forward(self, input: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows channels"]:
        """Same shapes as `nn.Linear`."""
        rows = input.reshape(-1, input.shape[-1])
        if self.ranges is None:
            out = dynamic_linear(rows, self.weight, self.scales, self.bias)
        else:
            out = static_layer(nn.functional.linear, rows, self.weight, self.scales, self.bias, self.ranges)
        return out.view(*input.shape[:-1], -1)


class FrozenEmbedding(nn.Module):
    """Rows of integer codes [rows, width], dequantized when they are looked up."""

    weight: Tensor
    scales: Tensor

    def __init__(self, codes: Int8[Tensor, "rows width"], scales: Float[Tensor, " rows *groups"]) -> None:
        super().__init__()
        self.register_buffer("weight", codes)
        self.register_buffer("scales", scales)

    def forward(self, input: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """Same shapes as `nn.Embedding`."""
        ids = input.reshape(-1)
        rows = dequantize(torch.index_select(self.weight, 0, ids), self.scales[ids.long()])
        return rows.view(*input.shape, -1)


class FrozenConvolution(nn.Module):
    """A convolution of integer codes [out, in / groups, height, width] between two points, `ranges` their grids."""

    weight: Tensor
    scales: Tensor
    bias: Tensor

    def __init__(
        self,
        layer: Convolution,
        codes: Int8[Tensor, "out in_ height width"],
        scales: Float[Tensor, " out"],
        bias: Float[Tensor, " out"],
        ranges: tuple[Range, Range],
    ) -> None:
        super().__init__()
        self.ranges, self.relu6, self.convolve = ranges, layer.relu6, convolve(layer)
        self.register_buffer("weight", codes.to(scales.dtype))
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    def forward(self, input: Float[Tensor, "batch in_ height width"]) -> Float[Tensor, "batch out rows columns"]:
        """Same shapes as the convolution's; the values are those of its result point, behind any ReLU6."""
        layer = self.weight, self.scales, self.bias
        return static_layer(self.convolve, input, *layer, self.ranges, relu6=self.relu6)


class FrozenPoint(nn.Module):
    """A place whose values are rounded to a fixed int8 grid."""

    def __init__(self, grid: Range) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The values on the grid."""
        return quantize_static(input, self.grid) * self.grid.scale


class FrozenSum(nn.Module):
    """The sum of two tensors on fixed int8 grids, on a third one."""

    def __init__(self, sources: tuple[Range, Range], grid: Range) -> None:
        super().__init__()
        self.sources, self.grid = sources, grid

    def forward(self, first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The values on the grid."""
        return static_sum(first, second, self.sources, self.grid)


class RoundedRoot(nn.Module):
    """A square root rounded once, which torch's own is not where MKL computes it."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Through float64, whose digits are more than twice those of float32, so that rounding twice changes nothing
        (Figueroa 1995, "When is double rounding innocuous?").
        """
        return x.double().sqrt().to(x.dtype)
