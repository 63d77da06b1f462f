"""How the scales of a weight are chosen in training: from its absmax at each step, fitted now and then, or learned.

`absmax` needs no state. The other two are modules that a prepared layer holds as `weight_scales`, so that the scales
are saved with the state dict, are those of a continued run, and are what `freeze` stores.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgedistill.quant.grid import SCALE_MIN, ScaleDtype, round_scales, scales_of
from edgedistill.specs.quant import WeightGrid

ScaleRule = Literal["absmax", "mse", "learned"]
# Forwards between two fits. A fit of the default student takes 31 ms on one core and a step 44 ms: 4 % of the time.
FIT_EVERY = 20


class FittedScales(nn.Module):
    """`mse`: the clipped range of least squared error, fitted again every `FIT_EVERY` training forwards until
    `observing` is switched off, and held in between and from then on.

    Buffers: `values` [channels] or [channels, groups], rounded to the scale type; `forwards` [], int64.
    """

    values: Tensor
    forwards: Tensor

    def __init__(self, weight: Float[Tensor, " channels *rest"], grid: WeightGrid, dtype: ScaleDtype) -> None:
        super().__init__()
        self.grid, self.dtype, self.observing = grid, dtype, True
        self.register_buffer("values", scales_of(weight, grid, dtype, "mse"))
        self.register_buffer("forwards", torch.zeros((), dtype=torch.int64))

    def forward(self, weight: Float[Tensor, " channels *rest"]) -> Float[Tensor, " channels *groups"]:
        """The scales, fitted to `weight` if it is time."""
        if self.training and self.observing:
            if int(self.forwards) % FIT_EVERY == 0:
                # a new tensor: autograd may still hold the one that a tied layer used in this same step
                self.values = scales_of(weight, self.grid, self.dtype, "mse")
            self.forwards += 1
        return self.values

    def stored(self) -> Float[Tensor, " channels *groups"]:
        """The scales as they are held now."""
        return self.values


class LearnedScales(nn.Module):
    """`learned`: scales are trained with the weights (Esser et al. 2020, arXiv 1902.08153), from where `mse` puts them.

    The parameter `range` is the largest value of each grid, `code_max * scale`, not the scale itself: AdamW moves a
    parameter by about the learning rate whatever its gradient, which for a range, as large as a weight, is as far as a
    weight goes, but would double or halve a scale of int8 in a few steps. Its gradient is the paper's for the scale.
    It is flat, as vectors are not decayed (`edgedistill.training`).
    """

    def __init__(self, weight: Float[Tensor, " channels *rest"], grid: WeightGrid, dtype: ScaleDtype) -> None:
        super().__init__()
        self.grid, self.dtype = grid, dtype
        start = scales_of(weight, grid, dtype, "mse")
        self.shape = start.shape
        self.range = nn.Parameter(start.flatten() * grid.code_max)

    def forward(self, weight: Float[Tensor, " channels *rest"]) -> Float[Tensor, " channels *groups"]:
        """The scales; `weight` is not looked at."""
        return self.stored()

    def stored(self) -> Float[Tensor, " channels *groups"]:
        """The scales as they are now, rounded as the file has them."""
        out: Tensor = _Rounded.apply(self.range, self.grid.code_max, self.dtype)  # type: ignore[no-untyped-call]
        return out.view(self.shape)


class _Rounded(torch.autograd.Function):
    """Ranges to scales of a type, gradients straight through, except that no range is pushed below the least scale."""

    @staticmethod
    def forward(ctx: Any, ranges: Tensor, code_max: int, dtype: ScaleDtype) -> Tensor:
        ctx.save_for_backward(ranges <= SCALE_MIN * code_max)
        return round_scales(ranges / code_max, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (least,) = ctx.saved_tensors
        return grads[0].masked_fill(least & (grads[0] > 0), 0.0), None, None


def holder_of(
    weight: Float[Tensor, " channels *rest"], grid: WeightGrid, dtype: ScaleDtype, rule: ScaleRule
) -> FittedScales | LearnedScales | None:
    """The module that chooses a layer's scales by `rule`; None for `absmax`, which follows the weight.

    Raises:
        ValueError: `grid` has groups that do not fit the weight.
    """
    if rule == "absmax":
        return None
    return (FittedScales if rule == "mse" else LearnedScales)(weight, grid, dtype)


def rule_of(names: Iterable[str]) -> ScaleRule:
    """The rule that a student was trained with, told from the names of its state dict."""
    ends = {".".join(name.rsplit(".", 2)[-2:]) for name in names}
    if "weight_scales.range" in ends:
        return "learned"
    return "mse" if "weight_scales.values" in ends else "absmax"
