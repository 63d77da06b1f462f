"""The weight grid: symmetric integer codes with scales that fp16 (or fp16 and bfloat16) can hold, in closed form.

The same three functions serve training (with a straight-through gradient), freezing and every export, so a code seen in
training is the code in the file. A weight has any rank >= 2 with its channels on axis 0. Scales are [channels], or
[channels, groups] for a matrix whose rows are cut into groups of equal width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from edgedistill.specs.quant import PerGroup, WeightGrid

ScaleDtype = Literal["fp16", "bf16"]
INT8 = WeightGrid()
CODE_MAX = INT8.code_max
# The smallest normal fp16 number. Accelerators flush fp16 subnormals to zero, and XNNPACK refuses a zero scale, so no
# scale is smaller: an all-zero channel gets this one, and a channel below code_max * SCALE_MIN (0.0078 for int8, 0.0004
# for int4) keeps an absolute error of at most SCALE_MIN / 2 = 3e-5.
SCALE_MIN = 2.0**-14
# Clipping ratios that `scales_of` tries under "mse", 1 first, so that a tie keeps the whole range.
CLIP_RATIOS = tuple(1 - step / 40 for step in range(21))


def round_scales(scales: Float[Tensor, "*shape"], dtype: ScaleDtype = "fp16") -> Float[Tensor, "*shape"]:
    """The nearest float32 numbers that `dtype` can hold, not below `SCALE_MIN`; bf16 ones are fp16 numbers too."""
    held = scales.half() if dtype == "fp16" else scales.bfloat16()
    return held.float().clamp_min(SCALE_MIN)


def absmax_of(weight: Float[Tensor, "channels *rest"], grid: WeightGrid) -> Float[Tensor, "channels *groups"]:
    """The largest magnitude of each channel, or of each group.

    Raises:
        ValueError: groups on a weight that is no matrix, or whose width is not a multiple of their size.
    """
    if not isinstance(grid.granularity, PerGroup):
        return weight.detach().abs().flatten(1).amax(1)
    size = grid.granularity.size
    if weight.dim() != 2 or weight.shape[1] % size:
        raise ValueError(f"groups of {size} need a matrix with a multiple of {size} columns, got {list(weight.shape)}")
    return weight.detach().abs().view(len(weight), -1, size).amax(2)


def scales_of(
    weight: Float[Tensor, "channels *rest"],
    grid: WeightGrid = INT8,
    dtype: ScaleDtype = "fp16",
    rule: Literal["absmax", "mse"] = "absmax",
) -> Float[Tensor, "channels *groups"]:
    """One scale per channel or group, rounded to `dtype` and at least `SCALE_MIN`.

    `absmax`: `absmax / code_max`. Rounding to nearest moves a scale by at most 2^-9 of itself, so the largest weight
    is at most 127.25 (or 7.02) steps: nothing is clipped by more than the half step any code may be off.
    `mse`: the clipped range, of `CLIP_RATIOS` of the absmax, whose squared error is least. A row that is not finite
    gives a scale that is not finite.
    """
    whole = absmax_of(weight, grid) / grid.code_max
    best = round_scales(whole, dtype)
    if rule == "absmax":
        return best
    least = _squared_error(weight, best, grid)
    for ratio in CLIP_RATIOS[1:]:
        scales = round_scales(whole * ratio, dtype)
        error = _squared_error(weight, scales, grid)
        better = error < least
        best, least = torch.where(better, scales, best), torch.where(better, error, least)
    return best


def spread(
    scales: Float[Tensor, "channels *groups"], shape: torch.Size | tuple[int, ...]
) -> Float[Tensor, "channels *rest"]:
    """Scales in a form that broadcasts with a weight of `shape`."""
    if scales.dim() == 1:
        return scales.view(-1, *[1] * (len(shape) - 1))
    return scales.repeat_interleave(shape[1] // scales.shape[1], 1)


def quantize(
    weight: Float[Tensor, "channels *rest"], scales: Float[Tensor, "channels *groups"], grid: WeightGrid = INT8
) -> Float[Tensor, "channels *rest"]:
    """Integer codes as floats, `round(w / s)` with ties to even, clamped to the grid's codes."""
    return torch.round(weight / spread(scales, weight.shape)).clamp_(grid.code_min, grid.code_max)


def codes_of(
    weight: Float[Tensor, "channels *rest"], scales: Float[Tensor, "channels *groups"], grid: WeightGrid = INT8
) -> Int8[Tensor, "channels *rest"]:
    """The codes of `quantize` as int8, for storage."""
    return quantize(weight.detach(), scales, grid).to(torch.int8)


def dequantize(
    codes: Float[Tensor, "channels *rest"] | Int8[Tensor, "channels *rest"],
    scales: Float[Tensor, "channels *groups"],
) -> Float[Tensor, "channels *rest"]:
    """`code * scale`: exact in float32, since a code has 7 bits and a scale 11."""
    return codes.to(scales.dtype) * spread(scales, codes.shape)


def _squared_error(weight: Tensor, scales: Tensor, grid: WeightGrid) -> Tensor:
    """Sum of squared rounding errors for each scale."""
    error = (dequantize(quantize(weight.detach(), scales, grid), scales) - weight.detach()).square()
    return error.view(*scales.shape, -1).sum(-1)


class _FakeQuantize(torch.autograd.Function):
    """Forward on the grid, gradient 1 (Bengio et al. 2013): the scale follows absmax, so no weight is out of range."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, grid: WeightGrid, dtype: ScaleDtype) -> Tensor:
        scales = scales_of(weight, grid, dtype)
        return dequantize(quantize(weight, scales, grid), scales)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


def fake_quantize(
    weight: Float[Tensor, "channels *rest"], grid: WeightGrid = INT8, dtype: ScaleDtype = "fp16"
) -> Float[Tensor, "channels *rest"]:
    """`weight` moved to its own grid, with a gradient of exactly 1 for every entry."""
    out: Tensor = _FakeQuantize.apply(weight, grid, dtype)  # type: ignore[no-untyped-call]
    return out
