"""How LiteRT quantizes the input of a linear layer at run time, and the linear layer computed on those integers.

Sources, both confirmed by running ai-edge-litert 2.3.0 (`tests/exporters/test_tflite.py` repeats the check): XNNPACK's
`xnn_f32_qd8_asymmetric_quantization_params` for dynamic rows, and its `qs8-qc8w` requantization for static layers.
"""

from __future__ import annotations

from collections.abc import Callable
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


class Range(NamedTuple):
    """A fixed asymmetric int8 grid for a whole activation tensor: `x = (code - zero_point) * scale`."""

    scale: float
    zero_point: int


def range_of(low: float, high: float) -> Range:
    """The grid that covers [low, high] and 0; its scale is representable in fp16 and not below `SCALE_MIN`."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(float(torch.tensor((high - low) / (HIGH - LOW)).half()), SCALE_MIN)
    return Range(scale, int(min(max(round(LOW - low / scale), LOW), HIGH)))


def quantize_rows(x: Float[Tensor, "rows width"]) -> tuple[Float[Tensor, "rows width"], Float[Tensor, "rows 1"]]:
    """Codes minus zero point (integers in [-255, 255], as floats) and the step of each row.

    XNNPACK: the range always holds 0; the zero point is taken from the end of the range with the larger rounding
    error; codes are rounded half to even and clamped to int8.
    """
    low = x.amin(1, keepdim=True).clamp_(max=0)
    high = x.amax(1, keepdim=True).clamp_(min=0)
    span = high - low
    inverse = torch.where(span == 0, 1.0, (HIGH - LOW) / span)
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


def static_linear(
    x: Float[Tensor, "rows width"],
    codes: Float[Tensor, "channels width"],
    scales: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    ranges: tuple[Range, Range],
) -> Float[Tensor, "rows channels"]:
    """A static int8 fully-connected layer as XNNPACK runs it, between a QUANTIZE and a DEQUANTIZE.

    The bias becomes an int32 on the grid `input scale * channel scale`; the accumulator is scaled in float32, rounded
    half to even and clamped to int8.
    """
    source, result = ranges
    acc = integer_matmul(quantize_static(x, source), codes) + bias_codes(bias, source.scale, scales)
    return requantize(acc, source, scales, result)


def requantize(
    acc: Float[Tensor, "rows channels"], source: Range, scales: Float[Tensor, " channels"], result: Range
) -> Float[Tensor, "rows channels"]:
    """Integer accumulators to int8 on the grid `result`, and back to float."""
    rounded = (acc * ((source.scale * scales) / result.scale)).round_()
    return rounded.clamp_(LOW - result.zero_point, HIGH - result.zero_point) * result.scale


def quantize_static(x: Float[Tensor, "*shape"], grid: Range) -> Float[Tensor, "*shape"]:
    """Codes minus zero point on a fixed grid, as floats: `round(x / scale)` clamped (TFLite's QUANTIZE)."""
    return (x / grid.scale).round_().clamp_(LOW - grid.zero_point, HIGH - grid.zero_point)


def bias_codes(
    bias: Float[Tensor, " channels"], input_scale: float, scales: Float[Tensor, " channels"]
) -> Float[Tensor, " channels"]:
    """The bias as integers on the accumulator's grid, as floats."""
    return torch.round(bias / (input_scale * scales))


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
    """`static_linear` on the weight's own grid; values clipped by an activation range get no gradient."""

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
        acc = integer_matmul(shifted, codes) + bias_codes(bias, source.scale, scales)
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
