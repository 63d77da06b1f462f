"""What a runtime that takes the groups of a static file for floats may answer, group by group.

It multiplies and adds float32 numbers in an order of its own, and rounds the quotient of their sum and the scale of the
result. So it takes the student's code, unless the exact value is so near the middle between two codes that the errors
of these steps reach over it; then it may take the other of the two. No form of QDQ leaves that out: a sum of products
of scaled codes is longer than the 24 bits of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgedistill.exporters._divergence import Ask, Call, Mismatch, shaped
from edgedistill.quant.activations import HIGH, LOW, bias_codes, quantize_static
from edgedistill.quant.modules import FrozenConvolution, FrozenLinear

UNIT = 2.0**-24  # what one rounding to float32 may do, as a share of the number
# of a term, besides one for each sum: of both factors, the product or the bias, and the quotient
_OTHERS = 4
_EXACT = 2**24  # integers up to here are exact in float32
StaticLayer = FrozenLinear | FrozenConvolution


class Tie(NamedTuple):
    """A code that is not the student's: the layer, and how far the exact value is from the middle, in steps."""

    place: str
    distance: float


class Sums(NamedTuple):
    """The values of a layer before they are rounded, in steps of its result, and how far float32 may be from them."""

    exact: Tensor
    away: Tensor


class GroupCall(NamedTuple):
    """A group of a file: the values given, those answered, and the floats before these were rounded."""

    given: Tensor
    answered: Tensor
    sums: Tensor


def gamma(roundings: int) -> float:
    """What so many roundings may do to a number, as a share of it: `k u / (1 - k u)`.

    Lemma 3.1 of Higham 2002, "Accuracy and Stability of Numerical Algorithms". It holds for sums in any order, with
    fused operations or without, as long as nothing underflows.
    """
    return roundings * UNIT / (1 - roundings * UNIT)


def sums_of(layer: StaticLayer, given: Tensor) -> Sums:
    """The sums of a static layer for values on its input grid, exact but for float64, and their limit.

    Each of n products and the bias is rounded at most n + 4 times until the quotient is there, so that this is at most
    `gamma(n + 4) * (sum |x w| + |bias|) / scale` away from the exact one. Shapes are those of the layer's result.
    """
    assert layer.ranges is not None
    source, result = layer.ranges
    codes, weight = quantize_static(given, source), layer.weight
    bias = bias_codes(layer.bias, source.scale, layer.scales)
    most = float(((HIGH - LOW) * weight.abs().flatten(1).sum(1).double() + bias.abs()).max())
    dtype = torch.float32 if most < _EXACT else torch.float64
    multiply: Callable[[Tensor, Tensor], Tensor] = nn.functional.linear
    channels: tuple[int, ...] = (-1,)
    if isinstance(layer, FrozenConvolution):
        multiply, channels = layer.convolve, (-1, 1, 1)
    bias, steps = bias.double().view(channels), layer.scales.double().view(channels) * source.scale / result.scale
    exact = multiply(codes.to(dtype), weight.to(dtype)).double() + bias
    sizes = multiply(codes.abs().to(dtype), weight.abs().to(dtype)).double() + bias.abs()
    return Sums(exact * steps, gamma(weight[0].numel() + _OTHERS) * sizes * steps)


def as_floats(seen: list[Tie], otherwise: Ask) -> Ask:
    """An `Ask` of static layers that notes in `seen` each code that is not the student's; `otherwise` asks of others.

    Raises:
        Mismatch (the ask): the group was given other codes than the student's layer; its sums are farther from the
            exact ones than float32 may be; or a code is another than the student's where that is no reason for it.
    """

    def ask(place: str, layer: nn.Module, ours: Tensor, output: Tensor, call: Call | GroupCall) -> Tensor:
        if isinstance(call, Call):
            return otherwise(place, layer, ours, output, call)
        assert isinstance(layer, StaticLayer)
        assert layer.ranges is not None
        (source, result), given = layer.ranges, shaped(call.given, ours, f"the input of {place}")
        wrong = quantize_static(ours, source) * source.scale != given
        if bool(wrong.any()):
            raise Mismatch(f"the input of {place}: {int(wrong.sum())} of {given.numel()} codes are not the student's")
        sums, answered = sums_of(layer, given), shaped(call.answered, output, place)
        away = (shaped(call.sums, output, place).double() / result.scale - sums.exact).abs()
        if not bool((away <= sums.away).all()):  # written so that a nan is a difference
            beyond = ~(away <= sums.away)
            raise Mismatch(
                f"{place}: sums as floats are up to {float(away.max()):.3g} steps from the exact ones, expected <= "
                f"{float(sums.away[beyond].max()):.2g} ({int(beyond.sum())} of {away.numel()} values)"
            )
        # `forward`, as a call would come back here through the hook
        expected = (layer.forward(given).double() / result.scale).round()
        off = (answered.double() / result.scale).round() - expected
        distance = (sums.exact - expected - off / 2).abs()
        unfounded = (off != 0) & ((off.abs() != 1) | (distance > sums.away))
        if bool(unfounded.any()):
            raise Mismatch(
                f"{place}: {int(unfounded.sum())} of {off.numel()} codes are up to {int(off.abs().max())} from the "
                "student's, of values that are not between two codes"
            )
        seen.extend(Tie(place, value) for value in distance[off != 0].tolist())
        return answered.to(output.dtype)

    return ask
