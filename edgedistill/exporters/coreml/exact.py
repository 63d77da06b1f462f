"""A static student in its own float32 steps, for packages that compute in float32: the integers of its layers, exactly.

Core ML has no products of integers, and its `quantize` divides by a scale where the student multiplies with the
scale's reciprocal. So a layer's integers are float32 numbers here, whose sums are exact below 2^24, and every other
step is one IEEE operation that the student does as well. The grids of activations are in the file all the same, behind
values that lie on them already.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgedistill.errors import StageError
from edgedistill.quant.activations import HIGH, LOW, Range, bias_codes
from edgedistill.quant.kernels import convolve

_EXACT = 2**24
# a sum that may be beyond `_EXACT` is held as a multiple of this and a rest
_UNIT = 4096


class ExactLayer(nn.Module):
    """A static linear layer or convolution whose inputs are on its grid.

    `weight` are codes times scales, `bias` the codes of the bias; both are divided or multiplied here, as files hold
    a weight as codes with scales.
    """

    scales: Tensor
    factors: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, scales: Tensor, ranges: tuple[Range, Range], name: str) -> None:
        """Raises StageError if the sums of a channel cannot be rounded once in float32."""
        super().__init__()
        source, result = ranges
        columns = (-1, *[1] * (layer.weight.dim() - 2))  # of a result, from its channels on
        self.multiply: Callable[[Tensor, Tensor], Tensor] = nn.functional.linear
        self.axis = -1 if isinstance(layer, nn.Linear) else 1
        if isinstance(layer, nn.Conv2d):
            self.multiply = convolve(layer)
        codes = bias_codes(
            torch.zeros(len(scales)) if layer.bias is None else layer.bias.detach(), source.scale, scales
        )
        self.source, self.result = source.scale, result.scale
        self.weight = layer.weight  # the very parameter: coremltools is told to store it as codes
        self.bias = nn.Parameter(codes.float())
        self.register_buffer("scales", scales.view(-1, *[1] * (layer.weight.dim() - 1)))
        self.register_buffer("factors", ((source.scale * scales) / result.scale).view(columns))
        weights = (layer.weight / self.scales).detach()
        grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1  # sums of a window of one channel are small
        self.parts = [(0, weights.shape[1])] if grouped else parts_of(weights, source)
        # what is added to the bias; a channel without weights has nothing that is
        added = torch.where((weights == 0).flatten(1).all(1), 0, len(self.parts) * _UNIT if len(self.parts) > 1 else 1)
        unsure = (added > 0) & ((codes.float().double() != codes) | ((added > 1) & (codes.abs() + added >= _EXACT)))
        if bool(unsure.any()):
            raise StageError(
                f"Core ML in float32: {int(unsure.sum())} channels of {name} have a bias of up to "
                f"{float(codes.abs().max()):.3g} steps, too many for float32 to add. Take precision float16."
            )

    def forward(self, x: Tensor) -> Tensor:
        """The result's steps times its scale; those beyond the ends of its grid are not clipped yet."""
        x, weight = x / self.source, self.weight / self.scales
        if len(self.parts) == 1:
            total = self.multiply(x, weight) + self.bias.view(self.factors.shape)
        else:
            sums = [self.multiply(x.narrow(self.axis, a, b - a), weight[:, a:b]) for a, b in self.parts]
            units = [torch.floor(item * (1 / _UNIT)) for item in sums]
            rest = self.bias.view(self.factors.shape)
            for item, unit in zip(sums, units, strict=True):
                rest = rest + (item - unit * _UNIT)
            total = sum(units[1:], units[0]) * _UNIT + rest
        return torch.round(total * self.factors) * self.result


def parts_of(weights: Tensor, source: Range) -> list[tuple[int, int]]:
    """Slices of the inputs (axis 1) whose products with any codes on `source` add up to less than 2^24, in any order.

    A partial sum is at most that of the positive products, and at least that of the negative ones.
    """
    low, high = LOW - source.zero_point, HIGH - source.zero_point
    each = weights.double().view(*weights.shape[:2], -1)
    up, down = each.clamp(min=0).sum(2), each.clamp(max=0).sum(2)
    reach = torch.stack([up * high + down * low, -(up * low + down * high)]).cumsum(2)  # [2, channels, inputs]
    found, start = [], 0
    while start < weights.shape[1]:
        before = reach[..., start - 1 : start] if start else torch.zeros(())
        fits = int(((reach[..., start:] - before) < _EXACT).all(0).all(0).sum())
        found.append((start, start + max(fits, 1)))
        start += max(fits, 1)
    return found


def steps_of(x: Tensor, scale: float) -> Tensor:
    """The nearest steps of a grid, not clipped: `round(x * (1 / scale))`, as a student rounds."""
    inverse = float(torch.tensor(scale, dtype=torch.float32).reciprocal())
    return torch.round(x * inverse) * scale
