"""Fake-quantized layers: each shares the float parameters of the layer it stands for, so that these train on.

In training a static layer answers what the file answers up to float32 rounding, and gradients pass straight through the
roundings; in eval mode it answers the file's own integers (`edgedistill.quant.kernels`), and has no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edgedistill.quant.activations import (
    SHARES,
    DynamicLinear,
    Range,
    StaticLinear,
    StaticPoint,
    bias_codes,
    factor_range_of,
    gelu_range_of,
    range_of,
    sum_range_of,
    summand_range_of,
)
from edgedistill.quant.grid import INT8, ScaleDtype, fake_quantize, quantize, scales_of
from edgedistill.quant.kernels import convolve, static_layer, static_sum
from edgedistill.quant.observers import Observer
from edgedistill.quant.scales import FittedScales, LearnedScales
from edgedistill.specs.quant import WeightGrid
from edgedistill.students._points import Point


class OnGrid(nn.Module):
    """What every layer with a quantized weight knows: the grid of its codes, and where its scales come from."""

    weight: Tensor
    grid: WeightGrid = INT8
    scale_dtype: ScaleDtype = "fp16"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_scales: FittedScales | LearnedScales | None
        self.register_module("weight_scales", None)

    def scales(self) -> Float[Tensor, " channels *groups"] | None:
        """The scales that the layer holds; None: they follow the weight's absmax."""
        holder = self.weight_scales
        return None if holder is None else holder(self.weight)

    def stored(self) -> tuple[Tensor, Tensor]:
        """The codes, as floats, and the scales that freezing would store now; without gradients."""
        with torch.no_grad():
            given = self.scales()
            scales = scales_of(self.weight, self.grid, self.scale_dtype) if given is None else given
            return quantize(self.weight, scales, self.grid), scales

    def _on_grid(self) -> Tensor:
        return fake_quantize(self.weight, self.grid, self.scale_dtype, self.scales())


class WeightQuantLinear(OnGrid, nn.Linear):
    """A linear layer whose weight is on its grid and whose activations stay float."""

    def forward(self, input: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows channels"]:
        """Same shapes as `nn.Linear`."""
        return nn.functional.linear(input, self._on_grid(), self.bias)


class DynamicQuantLinear(OnGrid, nn.Linear):
    """A linear layer whose weight is on its grid and whose input rows are quantized as LiteRT does at run time."""

    def forward(self, input: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows channels"]:
        """Same shapes as `nn.Linear`."""
        bias = self.weight.new_zeros(self.out_features) if self.bias is None else self.bias
        rows = input.reshape(-1, self.in_features)
        arguments = rows, self.weight, bias, self.grid, self.scale_dtype, self.scales()
        out: Tensor = DynamicLinear.apply(*arguments)  # type: ignore[no-untyped-call]
        return out.view(*input.shape[:-1], self.out_features)


class StaticQuantLinear(OnGrid, Observer, nn.Linear):
    """A linear layer with int8 input and output on ranges observed in training.

    Buffer `ranges` holds [[input low, input high], [output low, output high]].
    """

    most: int | None = None  # of a `Factor`
    before: tuple[StaticQuantLinear] | None = None  # whose GELU is the input; a tuple, so that it is no part of this

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: str | None = None) -> None:
        super().__init__(in_features, out_features, bias, device=device)
        self.observing = True
        self.register_buffer("ranges", torch.full((2, 2), float("nan")))

    def _grid(self, which: int, low: float, high: float) -> Range:
        if which == 0 and self.before is not None:
            return gelu_range_of(low, high, self.before[0].grids()[1])
        if which == 1 and self.most is not None:
            return factor_range_of(low, high, self.most)
        return range_of(low, high)

    def forward(self, input: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows channels"]:
        """Same shapes as `nn.Linear`.

        Raises:
            StageError: in eval mode, if the layer has never seen a training batch.
        """
        rows = input.reshape(-1, self.in_features)
        bias = self.weight.new_zeros(self.out_features) if self.bias is None else self.bias
        if not self.training:
            source, result = self.grids()
            out: Tensor = static_layer(nn.functional.linear, rows, *self.stored(), bias, (source, result))
            return out.view(*input.shape[:-1], self.out_features)
        source = self._range(0, rows)
        arguments = rows, self.weight, bias, source, lambda result: self._range(1, result)
        on_grid = self.grid, self.scale_dtype, self.scales()
        out = StaticLinear.apply(*arguments, *on_grid)  # type: ignore[no-untyped-call]
        return out.view(*input.shape[:-1], self.out_features)


class WeightQuantConv2d(OnGrid, nn.Conv2d):
    """A convolution whose kernel is on its grid, one scale per output channel; its activations stay float."""

    def forward(self, input: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out rows columns"]:
        """Same shapes as `nn.Conv2d`."""
        out: Tensor = self._conv_forward(input, self._on_grid(), self.bias)
        return out


class StaticQuantPoint(Observer, Point):
    """A place with int8 values on a range observed in training; buffer `ranges` [1, 2].

    `summand`: its values are a branch of a sum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.observing, self.summand = True, False
        self.register_buffer("ranges", torch.full((1, 2), float("nan")))

    @property
    def step(self) -> float:  # type: ignore[override]
        """The scale of the grid."""
        return self.grids()[0].scale

    def _grid(self, which: int, low: float, high: float) -> Range:
        return summand_range_of(low, high) if self.summand else range_of(low, high)

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The values on the grid.

        Raises:
            StageError: in eval mode, if it has never seen a training batch.
        """
        out: Tensor = StaticPoint.apply(input, self._range(0, input))  # type: ignore[no-untyped-call]
        return out


class StaticQuantAddend(StaticQuantPoint):
    """A point whose values are added up: a power of two is its scale."""

    def _grid(self, which: int, low: float, high: float) -> Range:
        return factor_range_of(low, high, 1)


class StaticQuantShare(StaticQuantPoint):
    """A point whose values are from 0 to 1, on a grid that needs no observation: `ranges` has no rows."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges = torch.zeros(0, 2)

    def _range(self, which: int, seen: Tensor) -> Range:
        return SHARES

    def grids(self) -> tuple[Range, ...]:
        """The one grid that there is."""
        return (SHARES,)


class StaticQuantSum(StaticQuantPoint):
    """The sum of what two points give, on a range of its own."""

    points: tuple[StaticQuantPoint, StaticQuantPoint]  # set by `prepare`; a tuple, so that they are no parts of this

    def _grid(self, which: int, low: float, high: float) -> Range:
        return sum_range_of(low, high, self._sources())

    def _sources(self) -> tuple[Range, Range]:
        first, second = self.points
        return first.grids()[0], second.grids()[0]

    def forward(  # type: ignore[override]
        self, first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """The values on the grid; the file's own fixed-point arithmetic in eval mode, 1e-4 of a step off in training.

        Raises:
            StageError: in eval mode, if it has never seen a training batch.
        """
        if self.training:
            return super().forward(first + second)
        return static_sum(first, second, self._sources(), self.grids()[0])


class StaticQuantConvolution(WeightQuantConv2d):
    """A convolution between two points, whose bias is on the grid of its sums."""

    points: tuple[StaticQuantPoint, StaticQuantPoint]  # set by `prepare`: where its input comes from, its result goes
    relu6: bool

    def forward(self, input: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out rows columns"]:
        """Same shapes as `nn.Conv2d`. In training the exact sums but for float32 rounding; in eval mode the file's.

        Raises:
            StageError: if its points have never seen a training batch.
        """
        bias = self.weight.new_zeros(self.out_channels) if self.bias is None else self.bias
        source = self.points[0].grids()[0]
        codes, scales = self.stored()
        if self.training:
            held = bias.detach()
            moved = bias_codes(held, source.scale, scales).to(held.dtype) * (source.scale * scales)
            out: Tensor = self._conv_forward(input, self._on_grid(), bias + (moved - held))
            return out
        ranges = source, self.points[1].grids()[0]
        return static_layer(convolve(self), input, codes, scales, bias, ranges, relu6=self.relu6)


class QuantEmbedding(OnGrid, nn.Embedding):
    """An embedding whose rows are on their grid; the output is float, as in the file."""

    def forward(self, input: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """Same shapes as `nn.Embedding`."""
        if input.numel() >= self.num_embeddings:
            return nn.functional.embedding(input, self._on_grid(), self.padding_idx)
        # The grid is per row, so quantizing only the rows that were looked up gives the same values for less work.
        rows = nn.functional.embedding(input, self.weight, self.padding_idx)
        flat, scales = rows.reshape(-1, self.embedding_dim), self.scales()
        used = None if scales is None else scales[input.reshape(-1)]
        return fake_quantize(flat, self.grid, self.scale_dtype, used).view(rows.shape)
