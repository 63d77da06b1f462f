"""Integer kernels of a static network, computed on integers that floating-point numbers hold exactly.

They are XNNPACK's: `qs8_qc8w` convolutions and linear layers with the requantization it calls fp32, and `qs8_vadd`.
Confirmed by running ai-edge-litert 2.3.0 (`tests/exporters/test_static.py` repeats the check): every code is equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgedistill.quant.activations import HIGH, LOW, Range, bias_codes, quantize_static

# Integers up to 2^24 are exact in float32, in any order of summation.
_EXACT = 2**24
# XNNPACK keeps so many bits of the larger of the two factors of a sum, after the binary point.
_SUM_BITS = 20


@torch.no_grad()
def static_layer(
    multiply: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "*shape"],
    codes: Float[Tensor, " channels *rest"],
    scales: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    ranges: tuple[Range, Range],
    relu6: bool = False,
) -> Float[Tensor, "*result"]:
    """A static int8 layer: `multiply(inputs, codes)` has the channels on axis 1, and so has the result.

    The bias is an int32 on the grid `input scale * channel scale`; the accumulator is scaled in float32, rounded half
    to even and clamped, to what a ReLU6 leaves of int8 if there is one.
    """
    source, result = ranges
    steps = bias_codes(bias, source.scale, scales)
    reach = (HIGH - LOW) * codes.abs().flatten(1).sum(1).double() + steps.abs()
    exact = torch.float32 if float(reach.max()) < _EXACT else torch.float64
    acc = multiply(quantize_static(x.float(), source).to(exact), codes.to(exact))
    channels = (-1, *[1] * (acc.dim() - 2))
    # converted as int32 is to float32: one rounding, half to even
    acc = (acc + steps.to(exact).view(channels)).float()
    factors = (source.scale * scales.float()) / result.scale
    low, high = LOW - result.zero_point, HIGH - result.zero_point
    if relu6:
        low, high = max(low, 0), min(high, round(6 / result.scale))
    rounded = acc.mul_(factors.view(channels)).round_().clamp_(low, high)
    return rounded.to(x.dtype) * result.scale


def convolve(layer: nn.Conv2d) -> Callable[[Tensor, Tensor], Tensor]:
    """`layer`'s geometry as a function of an input and a kernel."""
    geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
    return partial(nn.functional.conv2d, **geometry)


@torch.no_grad()
def static_sum(
    first: Float[Tensor, "*shape"],
    second: Float[Tensor, "*shape"],
    sources: tuple[Range, Range],
    result: Range,
) -> Float[Tensor, "*shape"]:
    """The sum of two int8 tensors on a third grid: fixed-point factors, rounded half up.

    The larger factor `scale / result scale` has 21 bits; the sum of two products of 29 bits is exact in float64.
    """
    ratios = (torch.tensor([grid.scale for grid in sources]) / result.scale).tolist()  # of float32, as the file's
    shift = 2.0 ** (_SUM_BITS - math.floor(math.log2(max(ratios))))
    total = torch.full((), 0.5 * shift, dtype=torch.float64)
    for x, grid, ratio in zip((first, second), sources, ratios, strict=True):
        total = total + quantize_static(x.float(), grid).double() * round(ratio * shift)
    rounded = torch.floor(total / shift).clamp_(LOW - result.zero_point, HIGH - result.zero_point)
    return rounded.to(first.dtype) * result.scale
