"""How LiteRT quantizes the input of a linear layer at run time, and the linear layer computed on those integers.

Sources, both confirmed by running ai-edge-litert 2.3.0 (tests/exporters repeats the checks): XNNPACK's
`xnn_f32_qd8_asymmetric_quantization_params` for dynamic rows, and its `qs8-qc8w` requantization for static layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from edgedistill.quant.grid import INT8, SCALE_MIN, ScaleDtype, clipped_gradients, dequantize, quantize, scales_of
from edgedistill.specs.quant import WeightGrid

LOW, HIGH = -128, 127
# A sum of this many products |255 * 127| stays below 2^24, so a float32 matrix product of integers is exact, in any
# order of summation.
_EXACT_WIDTH = 2**24 // (255 * 127)
# How far from the middle between two codes a value must be, in steps, to be rounded alike everywhere, and how many
# scales are tried to get there.
_UNDISPUTED, _TRIED = 1e-3, 64


class Range(NamedTuple):
    """A fixed asymmetric int8 grid for a whole activation tensor: `x = (code - zero_point) * scale`."""

    scale: float
    zero_point: int


SHARES = Range(2.0**-8, LOW)
"""The grid of attention's shares: 0 to 255/256."""


def range_of(low: float, high: float) -> Range:
    """The grid that covers [low, high] and 0; its scale is representable in fp16 and not below `SCALE_MIN`."""
    low, high = min(low, 0.0), max(high, 0.0)
    return _ranged(max(float(torch.tensor((high - low) / (HIGH - LOW)).half()), SCALE_MIN), low)


def summand_range_of(low: float, high: float) -> Range:
    """As `range_of`, for the branches of a sum: a scale of 7 bits, the next below, which `sum_range_of` builds on."""
    scale = range_of(low, high).scale
    step = 2.0 ** (math.floor(math.log2(scale)) - 6)
    return _ranged(math.floor(scale / step) * step, low)


def sum_range_of(low: float, high: float, sources: tuple[Range, Range]) -> Range:
    """As `range_of`, for the sum of two branches on grids: a scale with which no sum lies half way between two codes.

    Runtimes add with fixed-point factors (XNNPACK) or in floats, and would take either code. With a scale `m * 2^v`,
    `m` odd, and both branches' scales multiples of `2^v`, a sum is at least 1/(2m) of a step from any such middle: an
    even multiple of `2^v` cannot be an odd one of half the scale. `m` has 9 bits, more where a branch's scale needs it,
    and at most fp16's 11: 1/(2m) is then above what XNNPACK's 20 bits are off, 255 * 2^-21 for each branch.
    """
    wanted = range_of(low, high).scale
    finest = min(_lowest_bit(grid.scale) for grid in sources)
    top = math.floor(math.log2(wanted))
    step = 2.0 ** max(min(finest, top - 8), top - 10)
    odd = 2 * round((wanted / step - 1) / 2) + 1
    return _ranged((odd if odd * step >= SCALE_MIN else odd + 2) * step, low)


def factor_range_of(low: float, high: float, most: int) -> Range:
    """A symmetric grid that covers [low, high], whose scale is one of the integers up to `most` times a power of two.

    Values on it are integers times that power: with `most` 1 their sums, and with `most` as a `Factor` has it the sums
    of their products, are exact in float32.
    """
    wanted = max(float(torch.tensor(max(-low, high, 0.0) / HIGH).half()), SCALE_MIN)
    unit = 2.0 ** math.ceil(math.log2(wanted / most))
    return Range(max(math.ceil(wanted / unit) * unit, SCALE_MIN), 0)


@lru_cache(maxsize=4096)
def gelu_range_of(low: float, high: float, source: Range) -> Range:
    """As `range_of`, for the GELU of codes on `source`: none of its 256 values is half way between two codes.

    Runtimes compute it as a table or in floats, 1e-4 of a step off. The scale is the first fp16 number from that of
    `range_of` on with which all values are at least `_UNDISPUTED` of a step from any such middle, or of the next
    `_TRIED` ones that where they are farthest from one.
    """
    first = torch.tensor(range_of(low, high).scale, dtype=torch.float16)
    scales = (first.view(torch.int16) + torch.arange(_TRIED, dtype=torch.int16)).view(torch.float16).double()
    inputs = (torch.arange(LOW, HIGH + 1, dtype=torch.float64) - source.zero_point) * source.scale
    steps = torch.nn.functional.gelu(inputs) / scales[:, None]
    away = (steps - steps.floor() - 0.5).abs().amin(1)
    sure = (away >= _UNDISPUTED).nonzero()
    return _ranged(float(scales[int(sure[0]) if len(sure) else int(away.argmax())]), min(low, 0.0))


def _ranged(scale: float, low: float) -> Range:
    """The grid of this scale whose codes begin at `low`, or at 0 if that is less."""
    return Range(scale, int(min(max(round(LOW - min(low, 0.0) / scale), LOW), HIGH)))


def _lowest_bit(value: float) -> int:
    """The exponent of the largest power of two that `value` is a multiple of."""
    numerator, denominator = value.as_integer_ratio()
    return (numerator & -numerator).bit_length() - denominator.bit_length()


def quantize_rows(x: Float[Tensor, "rows width"]) -> tuple[Float[Tensor, "rows width"], Float[Tensor, "rows 1"]]:
    """Codes minus zero point (integers in [-255, 255], as floats) and the step of each row.

    XNNPACK: the range always holds 0; the zero point is taken from the end of the range with the larger rounding
    error; codes are rounded half to even and clamped to int8. Torch divides a number by a tensor through the tensor's
    reciprocal, which is rounded twice: the last bit of `inverse` decides the codes of values between two of them.
    """
    low = x.amin(1, keepdim=True).clamp_(max=0)
    high = x.amax(1, keepdim=True).clamp_(min=0)
    span = high - low
    inverse = torch.where(span == 0, 1.0, torch.full_like(span, HIGH - LOW) / span)
    from_low, from_high = low * inverse, high * inverse
    zero = torch.where((LOW + from_low) + (HIGH + from_high) > 0, LOW - from_low, HIGH - from_high)
    zero = zero.clamp_(LOW, HIGH).round_()
    shifted = torch.minimum(torch.maximum((x * inverse).round_(), LOW - zero), HIGH - zero)
    return shifted, inverse.reciprocal_()


def integer_matmul(
    a: Float[Tensor, "rows width"], b: Float[Tensor, "channels width"]
) -> Float[Tensor, "rows channels"]:
    """`a @ b.T` of integers |a| <= 255, |b| <= 127 held in float32, exact until the one rounding of the result."""
    width = a.shape[1]
    if width <= _EXACT_WIDTH:
        return a @ b.t()
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float64)
    for start in range(0, width, _EXACT_WIDTH):
        part = slice(start, start + _EXACT_WIDTH)
        total += a[:, part] @ b[:, part].t()
    return total.to(a.dtype)


def dynamic_linear(
    x: Float[Tensor, "rows width"],
    codes: Float[Tensor, "channels width"],
    scales: Float[Tensor, " channels *groups"],
    bias: Float[Tensor, " channels"],
) -> Float[Tensor, "rows channels"]:
    """A dynamic-range fully-connected layer as XNNPACK runs it: `(acc * row step) * channel scale + bias`.

    With groups each group's accumulator is scaled before they are added.
    """
    shifted, step = quantize_rows(x)
    if scales.dim() == 2:
        return shifted @ dequantize(codes, scales).t() * step + bias
    return torch.addcmul(bias, integer_matmul(shifted, codes) * step, scales)


def requantize(
    acc: Float[Tensor, "rows channels"], source: Range, scales: Float[Tensor, " channels"], result: Range
) -> Float[Tensor, "rows channels"]:
    """Integer accumulators to int8 on the grid `result`, and back to float."""
    rounded = (acc * ((source.scale * scales) / result.scale)).round_()
    return rounded.clamp_(LOW - result.zero_point, HIGH - result.zero_point) * result.scale


def quantize_static(x: Float[Tensor, "*shape"], grid: Range) -> Float[Tensor, "*shape"]:
    """Codes minus zero point on a fixed grid, as floats: `round(x * (1 / scale))` clamped, as XNNPACK's QUANTIZE.

    The reciprocal is rounded to float32, which moves a value that lies half way between two codes now and then.
    """
    inverse = torch.tensor(grid.scale, dtype=x.dtype).reciprocal()
    return (x * inverse).round_().clamp_(LOW - grid.zero_point, HIGH - grid.zero_point)


def bias_codes(
    bias: Float[Tensor, " channels"], input_scale: float, scales: Float[Tensor, " channels"]
) -> Float[Tensor, " channels"]:
    """The bias as integers on the accumulator's grid, in float64: of 17 bits and more, float32 would miss some by 1."""
    return torch.round(bias.double() / (input_scale * scales.double()))


def _weight_gradients(ctx: Any, grad: Tensor, codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gradients of a linear layer's weight and given scales, from that of its quantized weight."""
    if ctx.weight is None:
        return grad, None
    return clipped_gradients(grad, ctx.weight, codes, scales, ctx.grid)


class DynamicLinear(torch.autograd.Function):
    """`dynamic_linear` on the weight's own grid; the gradient is that of a float layer at the quantized values."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        grid: WeightGrid = INT8,
        dtype: ScaleDtype = "fp16",
        given: Tensor | None = None,
    ) -> Tensor:
        """Quantize the weight, with absmax or `given` scales, and the rows of `x`, then multiply integers."""
        scales = scales_of(weight, grid, dtype) if given is None else given
        codes = quantize(weight, scales, grid)
        shifted, step = quantize_rows(x)
        ctx.grid, ctx.weight = grid, None if given is None else weight.detach()
        ctx.save_for_backward(shifted, step, codes, scales)
        if scales.dim() == 2:
            return shifted @ dequantize(codes, scales).t() * step + bias
        return torch.addcmul(bias, integer_matmul(shifted, codes) * step, scales)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, Tensor | None]:
        """Straight through both roundings; `clipped_gradients` of the weight where its scales were given."""
        (grad,) = grads
        shifted, step, codes, scales = ctx.saved_tensors
        to_weight, to_scales = _weight_gradients(ctx, (grad * step).t() @ shifted, codes, scales)
        return grad @ dequantize(codes, scales), to_weight, grad.sum(0), None, None, to_scales


class StaticLinear(torch.autograd.Function):
    """A static linear layer on the weight's own grid; values clipped by an activation range get no gradient.

    Its sums are those of `edgedistill.quant.kernels` but for one float32 rounding of the few beyond 2^24.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        source: Range,
        result_of: Callable[[Tensor], Range],
        grid: WeightGrid = INT8,
        dtype: ScaleDtype = "fp16",
        given: Tensor | None = None,
    ) -> Tensor:
        """`result_of` sees the float output and answers its grid, so that an observer needs no second product."""
        scales = scales_of(weight, grid, dtype) if given is None else given
        codes = quantize(weight, scales, grid)
        shifted = quantize_static(x, source)
        acc = integer_matmul(shifted, codes) + bias_codes(bias, source.scale, scales).to(shifted.dtype)
        result = result_of(acc * (source.scale * scales))
        inside = (x - shifted * source.scale).abs_() <= source.scale
        out = requantize(acc, source, scales, result)
        kept = (out > (LOW - result.zero_point) * result.scale) & (out < (HIGH - result.zero_point) * result.scale)
        ctx.grid, ctx.weight = grid, None if given is None else weight.detach()
        ctx.save_for_backward(shifted, codes, scales, inside, kept)
        ctx.scale = source.scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Straight through the roundings, zero where a range clipped; as `DynamicLinear` for the weight."""
        shifted, codes, scales, inside, kept = ctx.saved_tensors
        grad = grads[0] * kept
        to_weight, to_scales = _weight_gradients(ctx, (grad.t() @ shifted) * ctx.scale, codes, scales)
        to_x = grad @ dequantize(codes, scales) * inside
        return to_x, to_weight, grad.sum(0), None, None, None, None, to_scales


class StaticPoint(torch.autograd.Function):
    """A whole tensor moved to a fixed grid; the gradient is 1, and 0 where the range clipped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Range) -> Tensor:
        """The values as the file has them."""
        out = quantize_static(x, grid) * grid.scale
        ctx.save_for_backward((x - out).abs() <= grid.scale)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Straight through the rounding."""
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None
