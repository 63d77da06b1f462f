"""The weight grid: symmetric int8 codes with one fp16-representable scale per channel, in closed form.

The same three functions serve training (with a straight-through gradient), freezing and every export, so a code seen in
training is the code in the file.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor

CODE_MAX = 127
# The smallest normal fp16 number. Accelerators flush fp16 subnormals to zero, and XNNPACK refuses a zero scale, so no
# scale is smaller: an all-zero channel gets this one, and a channel below 127 * SCALE_MIN = 0.0078 keeps an absolute
# error of at most SCALE_MIN / 2 = 3e-5.
SCALE_MIN = 2.0**-14


def channel_scales(weight: Float[Tensor, "channels width"]) -> Float[Tensor, " channels"]:
    """Scale of each row, `absmax / 127` rounded to fp16 and at least `SCALE_MIN`; float32 values that fp16 can hold.

    Rounding to nearest moves the scale by at most 2^-11 of itself, so the largest weight is at most 127.07 steps: it
    takes code 127 with an error below s/10, and nothing is clipped by more than the half step any code may be off.
    A row that is not finite gives a scale that is not finite.
    """
    absmax = weight.detach().abs().amax(1)
    return (absmax / CODE_MAX).half().float().clamp_min(SCALE_MIN)


def quantize(
    weight: Float[Tensor, "channels width"], scales: Float[Tensor, " channels"]
) -> Float[Tensor, "channels width"]:
    """Integer codes in [-127, 127] as floats, `round(w / s)`, ties to even."""
    return torch.round(weight / scales[:, None]).clamp_(-CODE_MAX, CODE_MAX)


def codes_of(
    weight: Float[Tensor, "channels width"], scales: Float[Tensor, " channels"]
) -> Int8[Tensor, "channels width"]:
    """The codes of `quantize` as int8, for storage."""
    return quantize(weight.detach(), scales).to(torch.int8)


def dequantize(
    codes: Float[Tensor, "channels width"] | Int8[Tensor, "channels width"], scales: Float[Tensor, " channels"]
) -> Float[Tensor, "channels width"]:
    """`code * scale`: exact in float32, since a code has 7 bits and a scale 11."""
    return codes.to(scales.dtype) * scales[:, None]


class _FakeQuantize(torch.autograd.Function):
    """Forward on the grid, gradient 1 (Bengio et al. 2013): the scale follows absmax, so no weight is out of range."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        scales = channel_scales(weight)
        return dequantize(quantize(weight, scales), scales)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def fake_quantize(weight: Float[Tensor, "channels width"]) -> Float[Tensor, "channels width"]:
    """`weight` moved to its own grid, with a gradient of exactly 1 for every entry."""
    out: Tensor = _FakeQuantize.apply(weight)  # type: ignore[no-untyped-call]
    return out
