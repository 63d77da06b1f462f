"""How ranges of activations are observed in training: from the least to the largest value, or clipped.

`min_max` covers all that a batch holds. `mse` clips it where the squared error of rounding and clipping together is
least, by a histogram, as torch's `HistogramObserver` does for int8; torch's walks a histogram that it gathers over all
batches in steps of 1e-5 of it, which is too slow for every step of training, and would be one more state to save. Ours
is of the batch at hand, so that the one state of either rule are the limits, averaged over batches.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from edgedistill.errors import StageError
from edgedistill.quant.activations import HIGH, LOW, Range, range_of

RangeRule = Literal["min_max", "mse"]
_BINS = 512
# What is left of a limit: 1 down to 1/7.3, in steps of 9 %.
_SHRUNK = tuple(2.0 ** (-n / 8) for n in range(24))


class Observer:
    """The limits of values, followed while its owner trains and observes, then fixed (`freeze_observers`).

    A moving average over batches, kept in rows of the buffer `ranges`; not-a-number before any batch.
    """

    MOMENTUM = 0.05
    rule: RangeRule = "min_max"
    ranges: Tensor
    observing: bool
    training: bool

    def _range(self, which: int, seen: Tensor) -> Range:
        """The grid for a row of `ranges`, which moves to what is seen in training.

        Raises:
            StageError: what is seen is not finite, or, in eval mode, nothing was seen before.
        """
        if self.training and self.observing:
            with torch.no_grad():
                now = limits_of(seen.detach(), self.rule)
                if not bool(now.isfinite().all()):
                    raise StageError(
                        f"Activations from {float(now[0]):g} to {float(now[1]):g} have no range: training diverged; "
                        "lower the learning rate."
                    )
                before = self.ranges[which]
                # the first batch sets the range
                moved = now if bool(before.isnan().any()) else before + self.MOMENTUM * (now - before)
                self.ranges[which] = moved
                low, high = moved.tolist()
            return self._grid(which, low, high)
        return self.grids()[which]

    def _grid(self, which: int, low: float, high: float) -> Range:
        """The grid of values between these, for a row of `ranges`."""
        return range_of(low, high)

    def grids(self) -> tuple[Range, ...]:
        """The activation grids, one for each row of `ranges`.

        Raises:
            StageError: if the layer has never seen a training batch.
        """
        if not bool(self.ranges.isfinite().all()):
            raise StageError(
                "A static_int8 layer has no activation ranges: run training batches through the model before it is "
                "evaluated or frozen."
            )
        return tuple(self._grid(which, *limits) for which, limits in enumerate(self.ranges.tolist()))


def limits_of(seen: Float[Tensor, "*shape"], rule: RangeRule) -> Float[Tensor, " 2"]:
    """Low and high of a batch by a rule; not finite if the batch is not."""
    extremes = torch.stack(torch.aminmax(seen))
    if rule == "min_max" or not bool(extremes.isfinite().all()):
        return extremes
    low, high = min(float(extremes[0]), 0.0), max(float(extremes[1]), 0.0)
    if high == low:
        return extremes
    counts = torch.histc(seen.float(), _BINS, low, high)
    centres = low + (torch.arange(_BINS, device=seen.device) + 0.5) * ((high - low) / _BINS)
    shrunk = seen.new_tensor(_SHRUNK, dtype=torch.float32)
    lows, highs = low * shrunk, high * shrunk
    # both limits together, then each alone, as a search of all pairs takes 24 times as long
    best = _least(counts, centres, lows, highs)
    top = _least(counts, centres, lows[best].expand_as(highs), highs)
    bottom = _least(counts, centres, lows, highs[top].expand_as(lows))
    return torch.stack([lows[bottom], highs[top]]).to(seen.dtype)


def _least(
    counts: Float[Tensor, " bins"],
    centres: Float[Tensor, " bins"],
    lows: Float[Tensor, " tried"],
    highs: Float[Tensor, " tried"],
) -> int:
    """Which of these grids moves the values of a histogram least, by their mean square."""
    scales = ((highs - lows) / (HIGH - LOW))[:, None]
    first = torch.round(lows[:, None] / scales)
    codes = torch.round(centres / scales).clamp_(first, first + (HIGH - LOW))
    return int(((codes * scales - centres).square() @ counts).argmin())
