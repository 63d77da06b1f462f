"""The weight grid: symmetric integer codes with scales that fp16 (or fp16 and bfloat16) can hold, in closed form.

The same three functions serve training (with a straight-through gradient), freezing and every export, so a code seen in
training is the code in the file. A weight has any rank >= 2 with its channels on axis 0. Scales are [channels], or
[channels, groups] for a matrix whose rows are cut into groups of equal width.

What formats make of it: codes of 4 bits are -8..7 and a scale is positive, so a group of 32 is a block of GGUF's Q4_0
with q = code + 8 (it computes `(q - 8) * d`, d in fp16), and each tensor is a signed int4 of Core ML and of TFLite.

Dequantized weights keep their codes and scales when they are quantized again by the same rule, since `code_max * scale`
is exact in float32 and so is its quotient by `code_max`. That does not hold across rules: absmax of a weight whose
largest code is not `code_max` (clipped to -8, or a learned scale) is another scale. So freezing takes the scales that
training held (`edgedistill.quant.scales`), and nothing derives scales from dequantized values.
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
    """The nearest float32 numbers that `dtype` can hold, not below `SCALE_MIN`; infinite beyond fp16's largest, 65504.

    bf16 ones are fp16 numbers too: 8 bits of 11, in fp16's range.
    """
    held = scales if dtype == "fp16" else scales.bfloat16()
    return held.half().float().clamp_min(SCALE_MIN)


def absmax_of(weight: Float[Tensor, " channels *rest"], grid: WeightGrid) -> Float[Tensor, " channels *groups"]:
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
    weight: Float[Tensor, " channels *rest"],
    grid: WeightGrid = INT8,
    dtype: ScaleDtype = "fp16",
    rule: Literal["absmax", "mse"] = "absmax",
) -> Float[Tensor, " channels *groups"]:
    """One scale per channel or group, rounded to `dtype` and at least `SCALE_MIN`.

    `absmax`: `absmax / code_max`. Rounding to nearest moves a scale by at most 2^-8 of itself (bf16; fp16: 2^-11), so
    the largest weight is at most 127.4961 (or 7.0274) steps: it takes the largest code, and nothing is off by more than
    the half step that any code may be.
    `mse`: the clipped range, of `CLIP_RATIOS` of the absmax, whose squared error is least. A row that is not finite
    gives a scale that is not finite.
    """
    whole = absmax_of(weight, grid) / grid.code_max
    best = round_scales(whole, dtype)
    if rule == "absmax":
        return best
    # an infinite scale has no error that is a number: any finite one is better
    least = _squared_error(weight, best, grid).nan_to_num(nan=float("inf"))
    for ratio in CLIP_RATIOS[1:]:
        scales = round_scales(whole * ratio, dtype)
        error = _squared_error(weight, scales, grid)
        better = error < least
        best, least = torch.where(better, scales, best), torch.where(better, error, least)
    return best


def spread(
    scales: Float[Tensor, " channels *groups"], shape: torch.Size | tuple[int, ...]
) -> Float[Tensor, " channels *rest"]:
    """Scales in a form that broadcasts with a weight of `shape`."""
    if scales.dim() == 1:
        return scales.view(-1, *[1] * (len(shape) - 1))
    return scales.repeat_interleave(shape[1] // scales.shape[1], 1)


def quantize(
    weight: Float[Tensor, " channels *rest"], scales: Float[Tensor, " channels *groups"], grid: WeightGrid = INT8
) -> Float[Tensor, " channels *rest"]:
    """Integer codes as floats, `round(w / s)` with ties to even, clamped to the grid's codes."""
    return torch.round(weight / spread(scales, weight.shape)).clamp_(grid.code_min, grid.code_max)


def codes_of(
    weight: Float[Tensor, " channels *rest"], scales: Float[Tensor, " channels *groups"], grid: WeightGrid = INT8
) -> Int8[Tensor, " channels *rest"]:
    """The codes of `quantize` as int8, for storage."""
    return quantize(weight.detach(), scales, grid).to(torch.int8)


def dequantize(
    codes: Float[Tensor, " channels *rest"] | Int8[Tensor, " channels *rest"],
    scales: Float[Tensor, " channels *groups"],
) -> Float[Tensor, " channels *rest"]:
    """`code * scale`: exact in float32, since a code has 7 bits and a scale 11."""
    return codes.to(scales.dtype) * spread(scales, codes.shape)


def _squared_error(weight: Tensor, scales: Tensor, grid: WeightGrid) -> Tensor:
    """Sum of squared rounding errors for each scale."""
    error = (dequantize(quantize(weight.detach(), scales, grid), scales) - weight.detach()).square()
    return error.view(*scales.shape, -1).sum(-1)


def clipped_gradients(
    grad: Float[Tensor, " channels *rest"],
    weight: Float[Tensor, " channels *rest"],
    codes: Float[Tensor, " channels *rest"],
    scales: Float[Tensor, " channels *groups"],
    grid: WeightGrid,
) -> tuple[Float[Tensor, " channels *rest"], Float[Tensor, " channels *groups"]]:
    """Gradients of a weight and of its scales, from `grad`, that of the quantized weight.

    Learned step size quantization (Esser et al. 2020, arXiv 1902.08153): the weight's is `grad`, and 0 where it is
    clipped (eq. 5); d(quantized)/d(scale) is `code - weight / scale` inside the grid and `code` where it clips
    (eq. 3), summed over the n weights of a scale and multiplied by 1 / sqrt(n * code_max) (section 2.2).
    """
    steps = weight / spread(scales, weight.shape)
    inside = (steps > grid.code_min) & (steps < grid.code_max)
    slope = torch.where(inside, codes - steps, codes)
    damping = (weight.numel() / scales.numel() * grid.code_max) ** -0.5
    return grad * inside, (grad * slope).reshape(*scales.shape, -1).sum(-1) * damping


class _FakeQuantize(torch.autograd.Function):
    """Forward on the grid. Gradient 1 (Bengio et al. 2013) when the scale follows absmax, as no weight is out of range;
    `clipped_gradients` when scales are given.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, grid: WeightGrid, dtype: ScaleDtype, given: Tensor | None) -> Tensor:
        scales = scales_of(weight, grid, dtype) if given is None else given
        codes = quantize(weight, scales, grid)
        ctx.grid, ctx.follows = grid, given is None
        if given is not None:
            ctx.save_for_backward(weight, codes, scales)
        return dequantize(codes, scales)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, Tensor | None]:
        if ctx.follows:
            return grads[0], None, None, None
        weight, codes, scales = ctx.saved_tensors
        to_weight, to_scales = clipped_gradients(grads[0], weight, codes, scales, ctx.grid)
        return to_weight, None, None, to_scales


def fake_quantize(
    weight: Float[Tensor, " channels *rest"],
    grid: WeightGrid = INT8,
    dtype: ScaleDtype = "fp16",
    scales: Float[Tensor, " channels *groups"] | None = None,
) -> Float[Tensor, " channels *rest"]:
    """`weight` moved to its own grid, with a gradient of exactly 1 for every entry.

    With `scales`: moved to their grid, with the gradients of `clipped_gradients`.
    """
    out: Tensor = _FakeQuantize.apply(weight, grid, dtype, scales)  # type: ignore[no-untyped-call]
    return out
